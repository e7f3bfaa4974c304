/** Pages that this compute cut off or dropped never come back, not even through crash recovery. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import type pg from 'pg';
import {Cluster, Compute, buildExtension, rows, runTool} from './cluster.ts';

let base: Cluster;

before(async () => {
  buildExtension();
  base = await Cluster.initialise();
  await base.start();
  await base.query([
    `create table facts as select g as id, repeat('x', 60) as v from generate_series(1, 200000) g`,
    'alter table facts add primary key (id)',
    'create table doomed as select generate_series(1, 10000) as id',
    'create index on doomed (id)',
    'create unlogged table scratch (id int primary key, v text)',
    `insert into scratch select g, 'v' from generate_series(1, 1000) g`,
    'create table rewritten as select generate_series(1, 10) as id',
    'vacuum full rewritten',
    'vacuum analyze',
  ]);
  await base.query('create database template_for_copies');
  await base.query(
    ['create table t as select g as id from generate_series(1, 50000) g', 'create index on t (id)'],
    'template_for_copies',
  );
});

after(() => base.discard());

async function withCompute(
  work: (compute: Compute) => Promise<void>,
  settings: Record<string, string> = {},
): Promise<void> {
  await base.stop();
  const compute = await Compute.on(base);
  try {
    await compute.start({settings: {restart_after_crash: 'on', allow_in_place_tablespaces: 'on', ...settings}});
    await work(compute);
  } finally {
    await compute.discard();
    await base.start();
  }
}

/** kill -9 of one backend: the postmaster throws everything away and recovers from its local WAL. */
async function crash(compute: Compute): Promise<void> {
  const victim = await compute.connect();
  const [pid] = await rows(victim, 'select pg_backend_pid()');
  await compute.killBackend(Number(pid));
  await compute.untilReady();
}

async function amcheck(compute: Compute, database = 'postgres'): Promise<void> {
  await runTool('pg_amcheck', [
    '-h',
    '127.0.0.1',
    '-p',
    String(compute.port),
    '-U',
    'postgres',
    '--install-missing',
    '--heapallindexed',
    '-d',
    database,
  ]);
}

for (const checkpointed of [false, true]) {
  test(`truncated, extended again, crashed ${checkpointed ? 'after' : 'without'} a checkpoint: no old row returns`, () =>
    withCompute(async (compute) => {
      await compute.query(['checkpoint', 'delete from facts where id > 100000', 'vacuum facts']);
      const [small] = await compute.query(`select pg_relation_size('facts') / 8192`);
      await compute.query(`insert into facts select g, 'new' from generate_series(300001, 350000) g`);
      if (checkpointed) await compute.query('checkpoint');
      await compute.query(`insert into facts select g, 'newer' from generate_series(400001, 450000) g`);
      assert.ok(compute.metrics.guardRecords > 0);
      await crash(compute);
      assert.match(compute.log, /pagoda restored \d+ guards/);
      const [large] = await compute.query(`select pg_relation_size('facts') / 8192`);
      assert.ok(Number(large) > Number(small));
      assert.deepEqual(await compute.query('select count(*), max(id) from facts'), ['200000|450000']);
      assert.deepEqual(
        await compute.query('set enable_seqscan = off; select count(*) from facts where id between 100001 and 300000'),
        ['0'],
      );
      await amcheck(compute);
    }));
}

test('truncate with rollback, truncate with commit, crash', () =>
  withCompute(async (compute) => {
    await compute.query(['begin', 'truncate facts', 'rollback']);
    assert.deepEqual(await compute.query('select count(*) from facts'), ['200000']);
    await compute.query(['truncate facts', `insert into facts values (1, 'only')`]);
    await crash(compute);
    assert.deepEqual(await compute.query('select id, v from facts'), ['1|only']);
    await amcheck(compute);
  }));

test('a dropped relation does not exist again after crash, checkpoint and a walk over all files', () =>
  withCompute(async (compute) => {
    const [path] = await compute.query(`select pg_relation_filepath('doomed')`);
    await compute.query(['select count(*) from doomed', 'drop table doomed']);
    await crash(compute);
    await compute.query('checkpoint');
    // Copying the database makes every file of the base local that is not guarded.
    await compute.query('create database copied template postgres strategy file_copy', 'template1');
    assert.ok(!compute.relationFiles().includes(path!));
    await assert.rejects(compute.query('select * from doomed'), /does not exist/);
    await amcheck(compute, 'copied');
    await compute.query('create table doomed (id int)');
    assert.deepEqual(await compute.query('select count(*) from doomed'), ['0']);
  }));

test('relations made and dropped here leave no guard', () =>
  withCompute(async (compute) => {
    await compute.query(
      Array.from({length: 20}, (_, i) => [
        `create table n${i} (id serial primary key, v text)`,
        `drop table n${i}`,
      ]).flat(),
    );
    assert.equal(compute.metrics.guardRecords, 0);
  }));

test('unlogged relations: empty at start, emptied by a crash, usable in between', () =>
  withCompute(async (compute) => {
    assert.deepEqual(await compute.query('select count(*) from scratch'), ['0']);
    await compute.query(`insert into scratch select g, 'w' from generate_series(1, 500) g`);
    await compute.query('checkpoint');
    assert.deepEqual(await compute.query('set enable_seqscan = off; select count(*) from scratch where id < 100'), [
      '99',
    ]);
    await crash(compute);
    assert.deepEqual(await compute.query('select count(*) from scratch'), ['0']);
    await compute.query(`insert into scratch values (1, 'again')`);
    await amcheck(compute);
  }));

test('an unlogged relation that nobody touched before the crash', () =>
  withCompute(async (compute) => {
    await crash(compute);
    assert.deepEqual(await compute.query('select count(*) from scratch'), ['0']);
  }));

test('a file number that is used in storage only: one clean error, then another number', async () => {
  const [number] = await base.query(`select pg_relation_filenode('rewritten')`);
  await base.stop();
  await runTool('pg_resetwal', ['-o', number!, base.directory]);
  await base.start();
  await withCompute(async (compute) => {
    await assert.rejects(compute.query('create table fresh (id int)'), /is already used by a relation in storage/);
    await compute.query('create table fresh (id int)');
    assert.deepEqual(await compute.query('select count(*) from fresh'), ['0']);
    assert.deepEqual(await compute.query('select sum(id) from rewritten'), ['55']);
  });
});

test('CREATE DATABASE by both strategies, at the number of a dropped database too', () =>
  withCompute(async (compute) => {
    const admin: pg.Client = await compute.connect('template1');
    await rows(admin, 'create database by_copy template template_for_copies strategy file_copy');
    await rows(admin, 'create database by_wal template template_for_copies strategy wal_log');
    for (const name of ['by_copy', 'by_wal']) {
      assert.deepEqual(await compute.query('select count(*), sum(id) from t', name), ['50000|1250025000']);
      await amcheck(compute, name);
    }
    const [oid] = await rows(admin, `select oid from pg_database where datname = 'template_for_copies'`);
    await compute.query('delete from t where id > 10', 'by_wal');
    await rows(admin, 'drop database template_for_copies');
    for (const strategy of ['file_copy', 'wal_log']) {
      await rows(admin, `create database reborn template by_wal strategy ${strategy} oid ${oid}`);
      assert.deepEqual(await compute.query('select count(*) from t', 'reborn'), ['10']);
      await compute.query('create table more as select 1 as id', 'reborn');
      await amcheck(compute, 'reborn');
      await rows(admin, 'drop database reborn');
    }
    await admin.end();
    await crash(compute);
    assert.deepEqual(await compute.query('select count(*) from t', 'by_wal'), ['10']);
  }));

test('a database moves to another tablespace and back; nothing of its old place returns', () =>
  withCompute(async (compute) => {
    const admin = await compute.connect('template1');
    await rows(admin, `create tablespace elsewhere location ''`);
    await rows(admin, 'alter database template_for_copies set tablespace elsewhere');
    await compute.query(
      ['delete from t where id > 100', 'vacuum t', 'create table more as select generate_series(1, 5) as id'],
      'template_for_copies',
    );
    await rows(admin, 'alter database template_for_copies set tablespace pg_default');
    assert.deepEqual(await compute.query('select count(*), (select sum(id) from more) from t', 'template_for_copies'), [
      '100|15',
    ]);
    await compute.query('insert into t select generate_series(1000, 40000)', 'template_for_copies');
    await crash(compute);
    assert.deepEqual(await compute.query('select count(*) from t', 'template_for_copies'), ['39101']);
    await amcheck(compute, 'template_for_copies');
    await compute.query('drop tablespace elsewhere', 'template1');
    await assert.rejects(compute.query('create table nowhere (id int) tablespace elsewhere'), /does not exist/);
  }));

test('a tablespace whose relations are in storage only cannot be dropped; it can when they are gone', async () => {
  await base.stop();
  await base.start({settings: {allow_in_place_tablespaces: 'on'}});
  await base.query(`create tablespace far location ''`);
  await base.query(
    ['create table in_far (id int) tablespace far', 'insert into in_far select generate_series(1, 100)'],
    'template_for_copies',
  );
  await withCompute(async (compute) => {
    await assert.rejects(compute.query('drop tablespace far'), /tablespace "far" is not empty/);
    assert.deepEqual(await compute.query('select count(*) from in_far', 'template_for_copies'), ['100']);
    await compute.query('create table more (id int) tablespace far');
    await compute.query('drop table more');
    await compute.query('drop table in_far', 'template_for_copies');
    await compute.query('drop tablespace far');
    assert.deepEqual(await compute.query(`select count(*) from pg_tablespace where spcname = 'far'`), ['0']);
  });
});
