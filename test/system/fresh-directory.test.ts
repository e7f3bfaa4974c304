/** A compute starts without relation files; what its first query fetches can be seen. */
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {readTar} from '#postgres/tar.ts';
import {systemClock} from '#runtime/clock.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {Pagoda} from '../pagoda.ts';

let pagoda: Pagoda;
before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
});

test('a basebackup, which is all a data directory starts with, holds no relation file', async () => {
  await pagoda.query('create table t as select generate_series(1, 1000) as n; create unlogged table u (n int)');
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.suspend(endpointId);
  const internal = pagoda.status.ports.internal;
  const control = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
  const {tenantId, timelineId} = storageIds(endpointId);
  const token = await control.sign({aud: 'pageserver', scope: 'tenant', tenant: tenantId, timeline: timelineId});
  const timeline = `http://127.0.0.1:${internal + 8}/v1/tenant/${tenantId}/timeline/${timelineId}`;
  const headers = {authorization: `Bearer ${token}`};
  const node = await control.sign({aud: 'pageserver', scope: 'node'});
  const detail = (await (await fetch(timeline, {headers: {authorization: `Bearer ${node}`}})).json()) as {
    lastRecordLsn: string;
  };
  const response = await fetch(`${timeline}/basebackup?lsn=${encodeURIComponent(detail.lastRecordLsn)}`, {headers});
  assert.equal(response.status, 200, await response.clone().text());
  const names: string[] = [];
  for await (const member of readTar(buffers(response))) if (member.kind === 'file') names.push(member.path);
  assert.ok(names.includes('global/pg_control') && names.some((n) => n.startsWith('pg_wal/')), names.join(' '));
  // Of the unlogged table, its init fork and the empty main fork made from it: the only relation that storage has no pages of.
  const relations = names.filter((n) => /^(global|base\/\d+)\/\d+(_\w+)?(\.\d+)?$/.test(n));
  const unlogged = new Set(relations.filter((n) => n.endsWith('_init')).map((n) => n.replace('_init', '')));
  assert.deepEqual(
    relations.filter((n) => !unlogged.has(n.replace('_init', ''))),
    [],
  );
});

test('the pages that the first query fetched are in the metrics', async () => {
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.query('select count(*) from t');
  const text = (await pagoda.agent(endpointId, '/metrics')) as string;
  const fetched = Number(/^pagoda_compute_pages_fetched_total (\d+)/m.exec(text)?.[1]);
  assert.ok(fetched > 5 && fetched < 2000, text.slice(0, 500));
  console.log(`pages fetched by a start and its first query: ${fetched}`);
});

async function* buffers(response: Response): AsyncGenerator<Buffer> {
  for await (const part of response.body as unknown as AsyncIterable<Uint8Array>) yield Buffer.from(part);
}

function storageIds(endpointId: string): {tenantId: string; timelineId: string} {
  const config = JSON.parse(readFileSync(join(pagoda.computeDir(endpointId), 'config.json'), 'utf8')) as {
    spec: {tenantId: string; timelineId: string};
  };
  return config.spec;
}
