/** Branches and time travel, and the reads that made Neon patch Postgres. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';
import {PostgresCluster} from '../postgres-cluster.ts';

let pagoda: Pagoda;
before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
});

test('a branch from an LSN and from a time shows exactly the rows of then; nothing crosses over', async () => {
  const client = await pagoda.connect();
  await client.query('create table t (n int primary key); insert into t select generate_series(1, 1000)');
  const points: {lsn: string; time: string; rows: number}[] = [];
  for (let i = 1; i <= 3; i++) {
    const {rows} = await client.query<{lsn: string; time: Date; n: string}>(
      'select pg_current_wal_flush_lsn()::text as lsn, clock_timestamp() as time, (select count(*) from t) as n',
    );
    points.push({lsn: rows[0]!.lsn, time: rows[0]!.time.toISOString(), rows: Number(rows[0]!.n)});
    await sleep(50);
    await client.query(
      `insert into t select generate_series(${i * 10_000}, ${i * 10_000 + 499}); delete from t where n % ${i + 6} = 0 and n < 1000; update t set n = -n where n % 97 = ${i}`,
    );
    await client.query('vacuum t');
    await sleep(50);
  }
  const [now] = (await client.query('select count(*)::int as n, sum(n)::bigint::text as s from t')).rows as {
    n: number;
    s: string;
  }[];
  for (const [i, point] of points.entries()) {
    const branch = await pagoda.branch(i % 2 === 0 ? {parent_lsn: point.lsn} : {parent_timestamp: point.time});
    const [row] = await pagoda.query('select count(*)::int as n from t', branch.uri);
    assert.equal(row!['n'], point.rows, `branch ${i}`);
    await pagoda.query(
      'insert into t select generate_series(500000, 500099); create table only_child (x int)',
      branch.uri,
    );
    await client.query('insert into t values ($1)', [900_000 + i]);
    const [child] = await pagoda.query(
      'select count(*)::int as n, count(*) filter (where n >= 900000)::int as crossed from t',
      branch.uri,
    );
    assert.deepEqual({...child}, {n: point.rows + 100, crossed: 0});
  }
  const {rows} = await client.query(
    "select count(*) filter (where n < 500000)::int as n, count(*) filter (where n between 500000 and 500099)::int as crossed, to_regclass('only_child') as child from t",
  );
  assert.deepEqual({...rows[0]}, {n: now!.n, crossed: 0, child: null});
  await client.end();
});

test('a branch of a branch', async () => {
  const child = await pagoda.branch();
  await pagoda.query('create table in_child as select generate_series(1, 10) as n', child.uri);
  const grandchild = await pagoda.branch({parent_id: child.branchId});
  const [row] = await pagoda.query('select count(*)::int as n from in_child', grandchild.uri);
  assert.equal(row!['n'], 10);

  // The one between goes; the grandchild lives on with all it read of both, while it is written to, and after all is killed.
  const path = `/projects/${pagoda.status.projectId}/branches`;
  const everything = `select md5(string_agg(c::text, ',' order by c.oid)) as classes,
    (select count(*)::int from in_child) as n from (select oid, relname, relkind from pg_class where relname <> 'while_leaving') c`;
  const before = await pagoda.query(everything, grandchild.uri);
  await assert.rejects(pagoda.api('DELETE', `${path}/${child.branchId}`), /has child branches/);
  const deleting = pagoda.api('DELETE', `${path}/${child.branchId}?detach_children=true&hard_delete=true`);
  await pagoda.query('create table while_leaving as select generate_series(1, 5000) as n', grandchild.uri);
  await deleting;
  await pagoda.settled();
  const {branches} = await pagoda.api<{branches: {id: string; parent_id?: string}[]}>('GET', path);
  assert.equal(
    branches.some((b) => b.id === child.branchId),
    false,
  );
  assert.equal(branches.find((b) => b.id === grandchild.branchId)!.parent_id, undefined);
  await pagoda.suspend(grandchild.endpointId);
  pagoda.killEverything();
  await pagoda.up();
  assert.deepEqual(await pagoda.query(everything, grandchild.uri), before);
  const [late] = await pagoda.query('select count(*)::int as n from while_leaving', grandchild.uri);
  assert.equal(late!['n'], 5000);
  const again = await pagoda.branch({parent_id: grandchild.branchId});
  assert.deepEqual(await pagoda.query(everything, again.uri), before);
  assert.match(await pagoda.cli('verify', '--branch', grandchild.branchId), /every page can be read/);
});

/** Command ids are not in WAL: a page evicted and read back inside its transaction must still know them. */
test('a transaction reads its own changes on a table many times shared_buffers as vanilla does', async () => {
  const script = [
    'create table big (id int, filler text)',
    "insert into big select g, repeat('x', 400) from generate_series(1, 100000) g",
    'begin',
    'insert into big select id + 100000, filler from big',
    'declare c cursor for select id from big where id % 1000 = 0 order by id',
    "update big set filler = 'y' || filler where id % 3 = 0",
    'delete from big where id % 7 = 0',
    'insert into big select id + 1000000, filler from big where id % 11 = 0',
  ];
  const questions = [
    'fetch 500 from c',
    "select count(*)::int as n, sum(id::bigint)::text as s, count(*) filter (where filler like 'y%')::int as y from big",
    'fetch 100 from c',
  ];
  const answers = async (client: {query(sql: string): Promise<{rows: unknown[]}>}): Promise<unknown[]> => {
    for (const sql of script) await client.query(sql);
    const out: unknown[] = [];
    for (const sql of questions) out.push((await client.query(sql)).rows);
    await client.query('commit');
    out.push((await client.query('select count(*)::int as n, sum(id::bigint)::text as s from big')).rows);
    return out;
  };
  await using vanilla = await PostgresCluster.create({settings: {shared_buffers: '16MB'}});
  const reference = await vanilla.connect();
  const expected = await answers(reference);
  await reference.end();
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.configure(endpointId, {shared_buffers: '16MB'});
  const client = await pagoda.connect();
  assert.equal((await client.query('show shared_buffers')).rows[0]?.['shared_buffers'], '16MB');
  assert.deepEqual(await answers(client), expected);
  await client.end();
});

test('a suspended compute comes back with everything, from storage alone, and its first query is lazy', async () => {
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.query(
    "create table kept as select g, md5(g::text) from generate_series(1, 50000) g; create sequence s; select nextval('s'); create unlogged table u as select 1",
  );
  await pagoda.suspend(endpointId);
  const [row] = await pagoda.query("select count(*)::int as n, nextval('s')::int as next from kept");
  assert.deepEqual({...row}, {n: 50000, next: 2});
  const {pagesFetched} = (await pagoda.agent<{pagesFetched: number}>(endpointId, '/status')) as {pagesFetched: number};
  const [all] = await pagoda.query(
    "select sum(pg_relation_size(oid))::float8 / 8192 as pages from pg_class where relkind in ('r', 'i', 't')",
  );
  const pages = Number(all!['pages']);
  console.log(`pages fetched by start and first queries: ${pagesFetched} of ${pages}`);
  // What was in shared_buffers at the suspend is fetched in the background, by the time we look more or less of it.
  assert.ok(pagesFetched > 0 && pagesFetched < pages / 2, `${pagesFetched} of ${pages}`);
  const [unlogged] = await pagoda.query('select count(*)::int as n from u');
  assert.equal(unlogged!['n'], 0); // as after a crash of vanilla: unlogged data is local
});
