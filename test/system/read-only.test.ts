/** Computes that only read: a branch at a point of its past without making a branch, and replicas that follow the writer. */
import {strict as assert} from 'node:assert';
import {readFileSync, readdirSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {type Branch, Pagoda} from '../pagoda.ts';

let pagoda: Pagoda;
let branch: Branch;

before(async () => {
  pagoda = await Pagoda.start();
  branch = await pagoda.mainBranch();
});
after(async () => {
  await pagoda.stop();
  await pagoda[Symbol.asyncDispose]();
});

async function until(what: string, check: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 240_000;
  while (!(await check().catch(() => false))) {
    assert.ok(Date.now() < deadline, what);
    await sleep(50);
  }
}

/** As `neon connection-string main@POINT` prints it: the branch's id in place of the endpoint's, and the point in `options`. */
function at(point: string): string {
  const url = new URL(branch.uri);
  url.hostname = url.hostname.replace(branch.endpointId, branch.branchId);
  url.searchParams.set('options', point);
  return url.href;
}

test('main@LSN and main@time are read as they were, also when the password has changed since', async () => {
  await pagoda.query(
    'create table t (i int primary key, t text); insert into t select i, md5(i::text) from generate_series(1, 2000) i',
  );
  const [{lsn, time} = {}] = await pagoda.query(`select pg_current_wal_flush_lsn()::text as lsn, now()::text as time`);
  const timestamp = new Date(String(time)).toISOString();
  await sleep(1100);
  await pagoda.query('delete from t where i > 10; create table later ()');
  const then = 'select count(*)::int as n, min(t) is not null as there from t';
  assert.deepEqual(await pagoda.query(then, at(`neon_lsn:${String(lsn)}`)), [{n: 2000, there: true}]);
  assert.deepEqual(await pagoda.query(then, at(`neon_timestamp:${timestamp}`)), [{n: 2000, there: true}]);
  assert.deepEqual(await pagoda.query(then), [{n: 10, there: true}]);
  // The roles of now were there already: Postgres is started once, and ready to read at once.
  const statics = readdirSync(join(pagoda.dir, 'logs'))
    .filter((name) => name.startsWith('compute-'))
    .map((name) => readFileSync(join(pagoda.dir, 'logs', name), 'utf8'))
    .filter((log) => log.includes(' mode=static '));
  assert.ok(statics.length > 0);
  for (const log of statics) assert.equal(log.match(/starting PostgreSQL/g)?.length, 1, log);
  await assert.rejects(pagoda.query('delete from t', at(`neon_lsn:${String(lsn)}`)), /read-only/);
  await assert.rejects(pagoda.query('select from later', at(`neon_lsn:${String(lsn)}`)), /does not exist/);
  await assert.rejects(pagoda.query('select 1', at('neon_lsn:7F/0')), /no such point/);

  const project = pagoda.status.projectId;
  const [{between} = {}] = await pagoda.query(`select pg_current_wal_flush_lsn()::text as between`);
  const {role} = await pagoda.api<{role: {password: string}}>(
    'POST',
    `/projects/${project}/branches/${branch.branchId}/roles/neondb_owner/reset_password`,
  );
  await pagoda.settled();
  branch = {...branch, uri: await pagoda.uri(branch.branchId)};
  await sleep(5500); // the proxy knows verifiers for five seconds
  assert.ok(branch.uri.includes(encodeURIComponent(role.password)));
  // A point before the change gets the password of now all the same, and so does one whose compute had the old one.
  assert.deepEqual(await pagoda.query(then, at(`neon_lsn:${String(lsn)}`)), [{n: 2000, there: true}]);
  assert.deepEqual(await pagoda.query(then, at(`neon_lsn:${String(between)}`)), [{n: 10, there: true}]);
  const [{next} = {}] = await pagoda.query(`select (pg_current_wal_flush_lsn() - 8)::text as next`, branch.uri);
  assert.deepEqual(await pagoda.query(then, at(`neon_lsn:${String(next)}`)), [{n: 10, there: true}]);
  const {branches} = await pagoda.api<{branches: unknown[]}>('GET', `/projects/${project}/branches`);
  assert.equal(branches.length, 1, 'no branch was made');
  const {endpoints} = await pagoda.api<{endpoints: unknown[]}>('GET', `/projects/${project}/endpoints`);
  assert.equal(endpoints.length, 1, 'and no endpoint that anybody sees');
});

test('a replica sees what is committed and nothing else, refuses writes, and outlives a restart of the writer', async (t) => {
  const project = pagoda.status.projectId;
  const open = await pagoda.connect(branch.uri);
  // Runs at the moment where the replica begins: neither there yet nor lost.
  await open.query('begin');
  await open.query(`insert into t values (-1, 'open')`);
  await open.query('savepoint s');
  await open.query(`insert into t values (-2, 'open, in a subtransaction')`);
  await pagoda.query(`insert into t values (-3, 'committed beside it')`, branch.uri);
  const started = performance.now();
  const {endpoint} = await pagoda.api<{endpoint: {id: string; type: string}}>(
    'POST',
    `/projects/${project}/endpoints`,
    {
      endpoint: {branch_id: branch.branchId, type: 'read_only'},
    },
  );
  await pagoda.settled();
  t.diagnostic(`a replica is there after ${(performance.now() - started).toFixed(0)} ms`);
  assert.equal(endpoint.type, 'read_only');
  const uri = branch.uri.replace(branch.endpointId, endpoint.id);
  const read = (sql: string): Promise<Record<string, unknown>[]> => pagoda.query(sql, uri);
  await until(
    'it has what was committed',
    async () => Number((await read('select count(*)::int as n from t'))[0]?.['n']) === 11,
  );
  assert.deepEqual(await read('select i from t where i < 0'), [{i: -3}]);
  await open.query('commit');
  await open.end();
  const committed = performance.now();
  await until(
    'the open one',
    async () => Number((await read('select count(*)::int as n from t where i < 0'))[0]?.['n']) === 3,
  );
  t.diagnostic(`a commit is seen after ${(performance.now() - committed).toFixed(0)} ms`);
  await assert.rejects(read(`insert into t values (7777, '')`), /read-only/);
  await assert.rejects(read('create table x ()'), /read-only/);

  await pagoda.suspend(branch.endpointId);
  assert.equal((await read('select count(*)::int as n from t where i < 0'))[0]?.['n'], 3, 'it needs no writer');
  await pagoda.query(`update t set t = 'new' where i = 5`, branch.uri);
  await until(
    'after a restart of the writer',
    async () => (await read('select t from t where i = 5'))[0]?.['t'] === 'new',
  );

  // Redo copies files here, and some of them are not local: the replica begins anew behind it.
  await pagoda.query('create database copied strategy file_copy', branch.uri);
  await pagoda.query(`update t set t = 'newer' where i = 5`, branch.uri);
  await until('after a copied database', async () => (await read('select t from t where i = 5'))[0]?.['t'] === 'newer');

  await pagoda.query(
    `create table wide as select i, repeat('x', 500) as x from generate_series(1, 20000) i; create index on wide (i); truncate t`,
    branch.uri,
  );
  await until(
    'bulk',
    async () =>
      Number((await read('select count(*)::int as n from wide where i between 1 and 20000'))[0]?.['n']) === 20_000,
  );
  await until('truncation', async () => Number((await read('select count(*)::int as n from t'))[0]?.['n']) === 0);
  const shown = await pagoda.api<{
    endpoint: {replication: {lag_bytes: number; lag_seconds: number; replay_lsn: string}};
  }>('GET', `/projects/${project}/endpoints/${endpoint.id}`);
  assert.match(shown.endpoint.replication.replay_lsn, /^[0-9A-F]+\/[0-9A-F]+$/);
  assert.ok(shown.endpoint.replication.lag_seconds < 10);
});
