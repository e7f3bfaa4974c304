/** What a compute answers is what the stock cluster answered, although it starts without a relation file. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {Cluster, Compute, buildExtension, library, rows, runTool} from './cluster.ts';

let base: Cluster;

before(async () => {
  buildExtension();
  base = await Cluster.initialise();
  await base.start({settings: {allow_in_place_tablespaces: 'on'}});
  await base.query([
    'set max_parallel_workers_per_gather = 0',
    `create table facts as select g as id, g % 97 as k, repeat('x', 100) as v from generate_series(1, 200000) g`,
    'create index on facts (id)',
    'create index on facts using hash (k)',
    'create index on facts using brin (id)',
    `create table documents as select g as id, array[g, g % 100] as tags, to_tsvector('simple', 'word' || g % 1000) as words, point(g, -g) as p from generate_series(1, 5000) g`,
    'create index on documents using gin (words)',
    'create index on documents using gist (p)',
    'create index on documents using spgist (p)',
    `create table big_values as select g as id, (select string_agg(md5((g * i)::text), '') from generate_series(1, 400) i) as v from generate_series(1, 200) g`,
    'alter table big_values add primary key (id)',
    'create unlogged table scratch (id int primary key, v text)',
    `insert into scratch select g, 'lost by design' from generate_series(1, 100) g`,
    'create sequence numbers',
    `select nextval('numbers')`,
    `create tablespace elsewhere location ''`,
    `create table far (id int primary key) tablespace elsewhere`,
    'insert into far select generate_series(1, 1000)',
    'vacuum analyze',
  ]);
  await base.query('create database other');
  await base.query(['create table only_here as select generate_series(1, 10) as id'], 'other');
});

after(async () => {
  await base.discard();
});

const sizes = `select relname, pg_relation_size(oid), pg_relation_size(oid, 'fsm'), pg_relation_size(oid, 'vm'), pg_table_size(oid),
    pg_indexes_size(oid), pg_total_relation_size(oid) from pg_class where relname not like '%scratch%' order by relname`;
const queries = [
  'select count(*), sum(id), sum(k), sum(length(v)) from facts',
  'set enable_seqscan = off; select * from facts where id between 777 and 780 order by id',
  'set enable_seqscan = off; select count(*) from facts where k = 13',
  `select count(*) from documents where words @@ 'word7'`,
  'select count(*) from documents where p <@ box(point(10, -50), point(50, -10))',
  'select count(*), sum(length(v)), md5(string_agg(v, chr(10) order by id)) from big_values',
  'select last_value, is_called from numbers',
  'select count(*), sum(id) from far',
  sizes,
];

test('a compute answers like the stock cluster; sizes too, before anything was read', async () => {
  const stock = await Promise.all(queries.map((sql) => base.query(sql)));
  const [databases] = await base.query(`select pg_database_size('postgres') || '|' || pg_database_size('other')`);
  const dump = await dumpOf(base);
  await base.stop();
  const compute = await Compute.on(base);
  try {
    assert.deepEqual(compute.relationFiles(), [], 'no relation file before the first connection');
    await compute.start();
    assert.ok(
      compute.metrics.pagesFetched > 50 && compute.metrics.pagesFetched < 250,
      `first query: ${compute.metrics.pagesFetched} pages`,
    );
    assert.deepEqual(await compute.query(sizes), stock.at(-1));
    const [now] = await compute.query(`select pg_database_size('postgres') || '|' || pg_database_size('other')`);
    // pg_internal.init is written anew, and not yet for the database nobody connected to.
    for (const [i, bytes] of now!.split('|').entries())
      assert.ok(
        Math.abs(Number(bytes) - Number(databases!.split('|')[i])) < 400_000,
        `database sizes ${now} instead of ${databases}`,
      );
    assert.equal(
      (await compute.query("select pg_tablespace_size(oid) > 40000 from pg_tablespace where spcname = 'elsewhere'"))[0],
      't',
    );
    assert.match(
      (await compute.query("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'"))[0]!,
      /^pg_tblspc\/\d+$/,
    );
    for (const [i, sql] of queries.entries()) assert.deepEqual(await compute.query(sql), stock[i], sql);
    assert.deepEqual(
      await compute.query('select count(*) from scratch'),
      ['0'],
      'unlogged data does not outlive its compute',
    );
    assert.deepEqual(await compute.query('select sum(id) from only_here', 'other'), ['55']);
    const emptied = dump.replace(/(COPY public\.scratch [^;]*;\n)(?:.*\n)*?\\\.\n/, '$1\\.\n');
    assert.notEqual(emptied, dump);
    sameDump(await dumpOf(compute), emptied);

    // Everything is local now.
    const {pagesFetched} = compute.metrics;
    await compute.query(queries[0]!);
    assert.equal(compute.metrics.pagesFetched, pagesFetched);
    await runTool('pg_amcheck', [
      '-h',
      '127.0.0.1',
      '-p',
      String(compute.port),
      '-U',
      'postgres',
      '-a',
      '--install-missing',
      '--heapallindexed',
    ]);
  } finally {
    await compute.discard();
    await base.start({settings: {allow_in_place_tablespaces: 'on'}});
  }
});

test('a stock Postgres with the base and the WAL of the compute is the same database', async () => {
  await base.stop();
  const compute = await Compute.on(base);
  let recovered: Cluster | undefined;
  try {
    await compute.start();
    await compute.query([
      `update facts set v = repeat('y', 90) where id % 3 = 0`,
      'delete from facts where id % 7 = 0',
      'vacuum facts',
      `insert into documents select g, array[g], 'word1'::tsvector, point(g, g) from generate_series(5001, 6000) g`,
      'insert into far select generate_series(1001, 2000)',
      'create table near (id int) tablespace elsewhere',
      'truncate big_values',
      `insert into scratch values (1, 'again')`,
      'drop sequence numbers',
    ]);
    const dump = await dumpOf(compute, ['--no-unlogged-table-data']);
    await compute.stop();
    recovered = await compute.recovered(base);
    sameDump(await dumpOf(recovered, ['--no-unlogged-table-data']), dump);
  } finally {
    await recovered?.discard();
    await compute.discard();
    await base.start({settings: {allow_in_place_tablespaces: 'on'}});
  }
});

test('the library refuses to be without an agent, and a server of another version', async () => {
  await base.stop();
  const compute = await Compute.on(base);
  try {
    await assert.rejects(compute.start({settings: {'pagoda.agent_socket': ''}}), /pagoda\.agent_socket is not set/);
    await compute.start();
    await assert.rejects(compute.query(`set pagoda.agent_socket = '/tmp/other'`), /cannot be changed/);
    const client = await compute.connect();
    await assert.rejects(rows(client, `alter system set pagoda.agent_socket = ''`), /managed by Pagoda/);
    await assert.rejects(rows(client, `alter system set synchronous_standby_names = ''`), /managed by Pagoda/);
    await rows(client, `alter system set work_mem = '8MB'`);
    await client.end();
  } finally {
    await compute.discard();
    await base.start({settings: {allow_in_place_tablespaces: 'on'}});
  }
  await base.stop();
  try {
    await base.start({
      settings: {shared_preload_libraries: library, 'pagoda.disabled': 'on', allow_in_place_tablespaces: 'on'},
    });
    assert.deepEqual(await base.query('select count(*) from scratch'), ['100']);
  } finally {
    await base.stop();
    await base.start({settings: {allow_in_place_tablespaces: 'on'}});
  }
});

/** pg_dump, without the random key that it puts into each run. */
async function dumpOf(cluster: Cluster, more: string[] = []): Promise<string> {
  const dump = await runTool('pg_dump', [
    '-h',
    '127.0.0.1',
    '-p',
    String(cluster.port),
    '-U',
    'postgres',
    ...more,
    'postgres',
  ]);
  return dump.replace(/^\\(un)?restrict .*$/gm, '');
}

function sameDump(actual: string, expected: string): void {
  if (actual === expected) return;
  const lines = expected.split('\n');
  const at = actual.split('\n').findIndex((line, i) => line !== lines[i]);
  assert.fail(
    `pg_dump differs in line ${at + 1}: ${actual.split('\n')[at]?.slice(0, 200)} instead of ${lines[at]?.slice(0, 200)}`,
  );
}
