/** What a graceful stop puts into WAL: free space, and where sequences are. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {Cluster, Compute, buildExtension, rows} from './cluster.ts';

let base: Cluster;

before(async () => {
  buildExtension();
  base = await Cluster.initialise();
  await base.start();
  await base.query([
    `create table facts as select g as id, repeat('x', 100) as v from generate_series(1, 50000) g`,
    'create sequence plain',
    'create sequence cached cache 10',
    'create sequence down increment -2',
    'create sequence idle',
    'create unlogged sequence unlogged_numbers',
    'create table rows_with_serial (id serial, v int)',
    `select nextval('plain'), nextval('cached'), nextval('down'), nextval('idle')`,
    'vacuum analyze',
    'create extension pg_freespacemap',
  ]);
  await base.stop();
});

after(() => base.discard());

test('the next compute goes on where this one stopped', async () => {
  const compute = await Compute.on(base);
  let recovered: Cluster | undefined;
  try {
    await compute.start();
    const client = await compute.connect();
    await rows(client, 'delete from facts where id % 2 = 0');
    await rows(client, 'vacuum facts');
    await rows(client, 'create table fresh as select g as id, g as v from generate_series(1, 20000) g');
    await rows(client, 'delete from fresh where id < 10000');
    await rows(client, 'vacuum fresh');
    for (let i = 0; i < 6; i++) await rows(client, `select nextval('plain'), nextval('cached'), nextval('down')`);
    await rows(client, `select nextval('unlogged_numbers')`);
    await rows(client, 'insert into rows_with_serial (v) select generate_series(1, 45)');
    await client.end();
    const free = await compute.query(
      `select 'facts', sum(avail) from pg_freespace('facts') union all select 'fresh', sum(avail) from pg_freespace('fresh')`,
    );
    const sizes = await compute.query(
      `select pg_relation_size('facts'), pg_relation_size('facts', 'fsm'), pg_relation_size('fresh', 'fsm')`,
    );
    assert.ok(Number(free[0]!.split('|')[1]) > 1_000_000);
    await compute.stop('fast');
    assert.match(compute.log, /pagoda saved \d+ free-space pages and [4-9] sequences before stopping/);
    assert.doesNotMatch(compute.log, /PANIC|ERROR/);

    recovered = await compute.recovered(base);
    assert.deepEqual(
      await recovered.query(
        `select 'facts', sum(avail) from pg_freespace('facts') union all select 'fresh', sum(avail) from pg_freespace('fresh')`,
      ),
      free,
    );
    assert.deepEqual(
      await recovered.query(
        `select pg_relation_size('facts'), pg_relation_size('facts', 'fsm'), pg_relation_size('fresh', 'fsm')`,
      ),
      sizes,
    );
    assert.deepEqual(
      await recovered.query(
        `select nextval('plain'), nextval('down'), nextval('idle'), nextval('rows_with_serial_id_seq')`,
      ),
      ['8|-15|2|46'],
    );
    assert.deepEqual(await recovered.query(`select nextval('cached')`), ['21']);
    // No value twice when the next compute crashes: the first nextval after the stop was logged.
    assert.deepEqual(await recovered.query(`select nextval('plain')`), ['9']);
    assert.deepEqual(await recovered.query(`select nextval('unlogged_numbers')`), ['1']);
  } finally {
    await recovered?.discard();
    await compute.discard();
  }
});

test('after an immediate stop values are skipped, never repeated', async () => {
  const compute = await Compute.on(base);
  let recovered: Cluster | undefined;
  try {
    await compute.start();
    await compute.query(`select nextval('plain')`);
    await compute.query([`select nextval('plain')`, 'create table committed (id int)']);
    await compute.stop('immediate');
    recovered = await compute.recovered(base);
    assert.ok(Number((await recovered.query(`select nextval('plain')`))[0]) > 3);
  } finally {
    await recovered?.discard();
    await compute.discard();
  }
});

test('a stop with nothing to keep is quick', async () => {
  const compute = await Compute.on(base);
  try {
    await compute.start();
    const started = performance.now();
    await compute.stop('fast');
    assert.ok(performance.now() - started < 20_000);
    assert.match(compute.log, /saved 0 free-space pages and 0 sequences/);
  } finally {
    await compute.discard();
  }
});
