/** Two pageservers: a project moves under load, its pageserver is killed, and one that was stopped comes back stale. */
import assert from 'node:assert/strict';
import {createHash} from 'node:crypto';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {test} from 'node:test';
import {Locations} from '#compute/locations.ts';
import {PageSource} from '#compute/page-source.ts';
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import type {RelTag} from '#postgres/relation.ts';
import {systemClock} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {TokenIssuer} from '#wire/auth.ts';
import type {ComputeSpec} from '#wire/compute-spec.ts';
import {PagesClient} from '#wire/pages.ts';
import {Pagoda} from '../pagoda.ts';

/** On a quiet machine it is below five seconds; it is printed. */
const gapMsMax = 60_000;

test('a project moves under load, is failed over, and a stale pageserver harms nothing', async (t) => {
  await using pagoda = await Pagoda.start({upOptions: ['--pageservers', '2']});
  const {internal} = pagoda.status.ports;
  const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
  const ask = async (aud: 'control' | 'pageserver', method: string, url: string, body?: unknown): Promise<never> => {
    const token = await issuer.sign({aud, scope: 'node'});
    const {status, json} = await requestJson({
      method,
      url,
      token,
      ...(body === undefined ? {} : {body}),
      timeoutMs: 30_000,
    });
    assert.ok(status < 300, `${method} ${url}: ${status} ${JSON.stringify(json)}`);
    return json as never;
  };
  const control = `http://127.0.0.1:${internal + 9}/internal/v1`;
  const ports = (node: number): {port: number; httpPort: number} =>
    node === 1 ? {port: internal + 7, httpPort: internal + 8} : {port: internal + 10, httpPort: internal + 11};
  const name = (node: number): string => (node === 1 ? 'pageserver' : 'pageserver-2');
  const held = async (node: number): Promise<{id: string; mode: string}[]> =>
    (await ask('pageserver', 'GET', `http://127.0.0.1:${ports(node).httpPort}/v1/held`))['tenants'];
  const until = async (what: string, done: () => Promise<boolean>): Promise<number> => {
    const started = performance.now();
    while (!(await done().catch(() => false))) {
      assert.ok(performance.now() - started < 240_000, `not within four minutes: ${what}`);
      await sleep(50);
    }
    return Math.round(performance.now() - started);
  };

  const {branches} = (await ask('control', 'GET', `${control}/branch_places`)) as {
    branches: {tenantId: string; timelineId: string; projectId: string}[];
  };
  const {tenantId, timelineId, projectId} = branches[0]!;
  const locationsUrl = `${control}/tenants/${tenantId}/locations`;
  const holder = async (): Promise<number> => {
    const {shards} = (await ask('control', 'GET', locationsUrl)) as {shards: {port: number}[]};
    return shards[0]!.port === ports(1).port ? 1 : 2;
  };
  const first = await holder();
  const second = 3 - first;

  // History with several states.
  const db = await pagoda.connect();
  await db.query(
    `create table t as select i, 0 as n, repeat(md5(i::text), 8) as filler from generate_series(1, 12000) i`,
  );
  const [{rel, blocks}] = (
    await db.query(`select oid::int as db, pg_relation_filenode('t')::int as rel,
      (pg_relation_size('t') / 8192)::int as blocks from pg_database where datname = current_database()`)
  ).rows as [{db: number; rel: number; blocks: number}];
  const [{oid: dbNode}] = (await db.query('select oid::int from pg_database where datname = current_database()'))
    .rows as [{oid: number}];
  const tag: RelTag = {spcNode: 1663, dbNode, relNode: rel, fork: 0};
  const lsnNow = async (): Promise<Lsn> =>
    parseLsn((await db.query('select pg_current_wal_flush_lsn()::text as lsn')).rows[0].lsn as string);
  const points: Lsn[] = [];
  for (let i = 0; i < 3; i++) {
    await db.query('update t set n = n + 1 where i % 3 = $1', [i]);
    points.push(await lsnNow());
  }

  // The agent's own way to its pages, with another compute's token.
  const spec = {
    tenantId,
    timelineId,
    branchId: 'test',
    locationsUrl,
    shards: [{shardId: tenantId, host: '127.0.0.1', ...ports(first)}],
  } as unknown as ComputeSpec;
  const token = await issuer.sign({
    aud: ['pageserver', 'control'],
    scope: 'tenant',
    tenant: tenantId,
    timeline: timelineId,
  });
  const shared = {spec, token: () => token, clock: systemClock, log: silentLog};
  const locations = new Locations(shared);
  const reader = (lsn: Lsn): PageSource => new PageSource({...shared, locations, lsn});
  const digests = async (): Promise<string[]> => {
    const found: string[] = [];
    for (const lsn of points) {
      const source = reader(lsn);
      const hash = createHash('sha256');
      for (let block = 0; block < blocks; block += 32)
        hash.update((await source.getPages(tag, block, Math.min(32, blocks - block))).bytes);
      source.stop();
      found.push(hash.digest('hex'));
    }
    return found;
  };

  /** Reads and writes until `work` is over; answers the longest gap between two answers of each. */
  const underLoad = async (work: () => Promise<unknown>): Promise<{readGapMs: number; writeGapMs: number}> => {
    let over = false;
    const source = reader(points[0]!);
    const loop = async (step: () => Promise<unknown>): Promise<number> => {
      let gap = 0;
      for (let last = performance.now(); !over;) {
        await step();
        const now = performance.now();
        gap = Math.max(gap, now - last);
        last = now;
        await sleep(2);
      }
      return Math.round(gap);
    };
    const reads = loop(() => source.getPages(tag, Math.floor(Math.random() * blocks), 1));
    const writes = loop(() => db.query('insert into t select 0, 0, $1', ['x'.repeat(100)]));
    try {
      await sleep(300);
      await work();
      await sleep(500);
    } finally {
      over = true;
      await Promise.allSettled([reads, writes]);
      source.stop();
    }
    return {readGapMs: await reads, writeGapMs: await writes};
  };
  const before = await digests();
  assert.equal(new Set(before).size, 3);

  await t.test('it moves while it is read and written to', async () => {
    await until('the other pageserver keeps it ready', async () => (await held(second)).some((s) => s.id === tenantId));
    const gaps = await underLoad(() =>
      pagoda.cli('pageservers', 'migrate', projectId, '--to', String(second), '--wait'),
    );
    console.log(`migration: longest gap between reads ${gaps.readGapMs} ms, between commits ${gaps.writeGapMs} ms`);
    assert.ok(gaps.readGapMs < gapMsMax && gaps.writeGapMs < gapMsMax, JSON.stringify(gaps));
    assert.equal(await holder(), second);
    assert.deepEqual((await held(first)).find((s) => s.id === tenantId)?.mode, 'secondary');
    assert.deepEqual(await digests(), before);
    const list = await pagoda.cli('pageservers', 'list');
    assert.match(list, new RegExp(`pageserver ${first} .* holds 0, keeps 1 ready`));
    assert.match(list, new RegExp(`pageserver ${second} .* holds 1, keeps 0 ready`));
  });

  await t.test('its pageserver is stopped: the other one takes over, and the stale one harms nothing', async () => {
    const stale = pagoda.pidOf(name(second));
    // It has what it has read in memory, and objects of its own that it may want to delete.
    await ask('pageserver', 'POST', `http://127.0.0.1:${ports(second).httpPort}/v1/tenant/${tenantId}/save`);
    let failedOverMs = 0;
    const gaps = await underLoad(async () => {
      process.kill(stale, 'SIGSTOP');
      failedOverMs = await until('failover', async () => (await holder()) === first);
      await until('attached', async () => (await held(first)).some((s) => s.id === tenantId && s.mode === 'attached'));
    });
    console.log(
      `failover: decided after ${failedOverMs} ms; longest gap between reads ${gaps.readGapMs} ms, between commits ${gaps.writeGapMs} ms`,
    );
    assert.ok(gaps.readGapMs < gapMsMax, JSON.stringify(gaps));
    // History goes on at the new one, with layers, merges and indexes of its own.
    for (let i = 0; i < 12; i++) {
      await db.query('update t set n = n + 1 where i % 12 = $1', [i]);
      await ask('pageserver', 'POST', `http://127.0.0.1:${ports(first).httpPort}/v1/tenant/${tenantId}/save`);
    }
    points.push(await lsnNow());
    const expected = await digests();
    assert.deepEqual(expected.slice(0, 3), before);

    process.kill(stale, 'SIGCONT');
    const wokenMs = await until('the stale one lets go', async () =>
      (await held(second)).every((s) => s.id !== tenantId || s.mode === 'secondary'),
    );
    console.log(`the stale pageserver let go after ${wokenMs} ms`);
    await assert.rejects(
      PagesClient.connect({host: '127.0.0.1', ...ports(second)}, token, tenantId, timelineId),
      (error: {code?: string}) => error.code === 'not-attached',
    );
    assert.deepEqual(await digests(), expected);
    assert.match(await pagoda.cli('verify'), /every page can be read/);
    points.splice(3);
  });

  await t.test('its pageserver is killed: reads go on', async () => {
    const dead = await holder();
    const gaps = await underLoad(async () => {
      process.kill(pagoda.pidOf(name(dead)), 'SIGKILL');
      await sleep(4000);
    });
    console.log(
      `kill -9 of pageserver ${dead}: pageserver ${await holder()} serves; longest gap between reads ${gaps.readGapMs} ms, between commits ${gaps.writeGapMs} ms`,
    );
    assert.ok(gaps.readGapMs < gapMsMax, JSON.stringify(gaps));
    assert.deepEqual(await digests(), before);
    // A fresh compute reads all of it from the pageserver.
    const {endpointId} = await pagoda.mainBranch();
    const [{count, sum}] = (await db.query('select count(*)::int, sum(n)::int from t where i > 0')).rows as [
      {count: number; sum: number},
    ];
    await db.end();
    await pagoda.suspend(endpointId);
    assert.deepEqual(await pagoda.query('select count(*)::int, sum(n)::int from t where i > 0'), [{count, sum}]);
  });
});
