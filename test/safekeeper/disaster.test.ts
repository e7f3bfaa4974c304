/**
 * A whole Pagoda whose three safekeepers have lost their disks: the branch comes back from the object store, up to an LSN that
 * the safekeepers' API names, and is written to again.
 */
import assert from 'node:assert/strict';
import {readFileSync, readdirSync, rmSync} from 'node:fs';
import {join} from 'node:path';
import {test} from 'node:test';
import pg from 'pg';
import {parseLsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {Pagoda} from '../pagoda.ts';
import {until} from './cell.ts';

const nodeIds = [1, 2, 3];
const rows = 150_000;

test('all safekeepers lose their disks: the branch is back from the archive', {timeout: 850_000}, async () => {
  await using pagoda = await Pagoda.start();
  const query = async (sql: string): Promise<Record<string, unknown>[]> => {
    const client = new pg.Client({connectionString: pagoda.status.databaseUrl});
    await client.connect();
    try {
      return (await client.query(sql)).rows as Record<string, unknown>[];
    } finally {
      await client.end();
    }
  };
  await query(`create table t as select i, md5(i::text) from generate_series(1, ${rows}) i`);
  const tenantDir = (nodeId: number, tenant: string): string => join(pagoda.dir, `safekeeper-${nodeId}`, tenant);
  const tenant = readdirSync(join(pagoda.dir, 'safekeeper-1')).find((name) => name.length === 32)!;
  const timeline = readdirSync(tenantDir(1, tenant)).find((name) => name.length === 32)!;
  const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
  const ask = async (
    role: string,
    method: string,
    path: string,
    body?: unknown,
  ): Promise<{status: number; json: Record<string, unknown>}> => {
    const {httpPort} = JSON.parse(readFileSync(join(pagoda.dir, 'config', `${role}.json`), 'utf8')) as {
      httpPort: number;
    };
    const call = {
      method,
      url: `http://127.0.0.1:${httpPort}/v1/tenant/${tenant}/timeline/${timeline}${path}`,
      token: await issuer.sign({aud: role === 'pageserver' ? 'pageserver' : 'safekeeper', scope: 'node'}),
      ...(body === undefined ? {} : {body}),
    };
    const {status, json} = await requestJson(call).catch(async () => await requestJson(call));
    return {status, json: json as Record<string, unknown>};
  };
  const before = (await ask('safekeeper-1', 'GET', '')).json;
  const {membership} = before;
  const written = parseLsn(String(before['commitLsn']));
  await until(
    async () => parseLsn(String((await ask('safekeeper-2', 'GET', '')).json['archivedLsn'])) >= written,
    500_000,
  );

  await pagoda.stop();
  for (const nodeId of nodeIds) rmSync(tenantDir(nodeId, tenant), {recursive: true});
  await pagoda.up();
  assert.equal((await ask('safekeeper-1', 'GET', '')).status, 404);
  const point = (await ask('safekeeper-1', 'GET', '/archive')).json;
  assert.ok(parseLsn(String(point['restoreLsn'])) >= written, JSON.stringify(point));
  // What the pageserver has of the end of the branch's life need not be lost either.
  const uploaded = String((await ask('pageserver', 'GET', '')).json['lastRecordLsn']);
  const later = parseLsn(uploaded) > parseLsn(String(point['restoreLsn']));
  for (const nodeId of nodeIds) {
    const {status, json} = await ask(`safekeeper-${nodeId}`, 'POST', '/restore_from_archive', {
      membership,
      ...(later ? {lsn: uploaded} : {}),
    });
    assert.equal(status, 201, JSON.stringify(json));
    assert.equal(json['lsn'], later ? uploaded : point['restoreLsn']);
  }
  assert.deepEqual(await query('select count(*)::int as n, sum(i)::int8::text as sum from t'), [
    {n: rows, sum: String((rows * (rows + 1)) / 2)},
  ]);
  await query('insert into t values (0, 0)');
  assert.deepEqual(await query('select count(*)::int as n from t'), [{n: rows + 1}]);
  console.log(`restored at ${later ? uploaded : point['restoreLsn']}, the archive ends at ${point['archivedLsn']}`);
});
