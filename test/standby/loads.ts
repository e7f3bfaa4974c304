/** What runs before the standby is compared: everything that changes files and metadata, besides the redo oracle's loads. */
import {writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {fullLoads, type Load} from '../oracle/loads.ts';
import type {PostgresCluster} from '../postgres-cluster.ts';
import {runSuite} from '../suites/pg-regress.ts';
import {watchDatabase} from './standby.ts';

/** Fills the base, and freezes all catalogs: the standby's session must not set hint bits. */
export async function prepareBase(cluster: PostgresCluster): Promise<void> {
  await cluster.psql(
    ...statements(`
      create database ${watchDatabase};
      create table base_rows (id int primary key, t text);
      insert into base_rows select i, repeat('b', i % 300) from generate_series(1, 5000) i;
      create index on base_rows using hash (id);
      create index on base_rows using gin (string_to_array(t, 'x'));
      create unlogged table base_unlogged (id int primary key);
      insert into base_unlogged select generate_series(1, 500);
      create tablespace base_space location '';
      create table base_apart tablespace base_space as select i from generate_series(1, 2000) i;
      create database base_template;
      create sequence base_numbers;
      select count(nextval('base_numbers')) from generate_series(1, 40);
      delete from base_rows where id % 9 = 0`),
  );
  await cluster.psql(
    '-d',
    'base_template',
    ...statements(
      'create table here as select i from generate_series(1, 3000) i; create index on here (i); create unlogged table u (i int primary key)',
    ),
  );
  await cluster.tool('vacuumdb', ['--all', '--freeze', '--quiet']);
}

/** Relation maps, databases both ways, tablespaces, unlogged relations, rewrites, truncations, sequences, large objects. */
const files: Load = {
  name: 'files and catalogs',
  async run(cluster) {
    const sql = `
      vacuum full pg_class; vacuum full pg_database; reindex table pg_authid; cluster pg_type using pg_type_oid_index;
      create database by_wal template base_template strategy wal_log;
      create database by_copy template base_template strategy file_copy;
      create database gone template base_template strategy file_copy; drop database gone;
      create database gone template base_template strategy wal_log; drop database gone;
      create tablespace apart location '';
      create table in_apart (i int primary key) tablespace apart; insert into in_apart select generate_series(1, 1500);
      alter table in_apart set tablespace pg_default; alter table base_apart set tablespace apart;
      create database moving tablespace apart strategy file_copy; alter database moving set tablespace pg_default;
      alter table base_apart set tablespace pg_default; drop tablespace apart;
      create table remade as select i, md5(i::text) t from generate_series(1, 4000) i;
      create index remade_i on remade (i); cluster remade using remade_i;
      alter table remade set unlogged; insert into remade values (0, ''); alter table remade set logged;
      vacuum full remade; reindex table concurrently remade;
      create unlogged table u2 (id int primary key, t text); insert into u2 values (1, 'x'); create index on u2 using gist (point(id, id));
      truncate remade; insert into remade select i, 'again' from generate_series(1, 50) i; drop table remade;
      create table sized as select i, repeat('s', 100) t from generate_series(1, 20000) i; vacuum (freeze) sized;
      delete from sized where i > 700; vacuum sized; insert into sized select i, 'grown' from generate_series(1, 9000) i;
      vacuum sized;
      create database lives_apart template base_template tablespace base_space strategy file_copy;
      create sequence counted_by_three cache 3; select count(nextval('counted_by_three')) from generate_series(1, 200); alter sequence counted_by_three restart;
      select lo_from_bytea(0, decode(repeat('00ff', 40000), 'hex')); select lo_unlink(max(oid)) from pg_largeobject_metadata;
      select lo_from_bytea(0, decode(repeat('ff01', 9000), 'hex'));
      update base_rows set t = t || 'x' where id % 5 = 0; vacuum (freeze, analyze) base_rows; delete from base_unlogged;
      alter table base_unlogged set logged; create materialized view seen as select count(*) from base_rows; refresh materialized view seen;
      select pg_replication_origin_create('o'); select pg_replication_origin_advance('o', '1/234');
      select pg_logical_emit_message(true, 'a', 'b'); select pg_create_restore_point('here'); select pg_switch_wal()`;
    await cluster.psql('-o', '/dev/null', ...statements(sql));
    for (const database of ['by_copy', 'by_wal'])
      await cluster.psql(
        '-d',
        database,
        ...statements(
          'insert into here select generate_series(1, 4000); vacuum here; delete from here where i < 50; vacuum full pg_class; insert into u values (1)',
        ),
      );
    // Relations in pg_default of a database that lives elsewhere: their directory comes with them, and is a template's like any other.
    await cluster.psql(
      '-d',
      'lives_apart',
      ...statements(
        'create table in_default (i int primary key) tablespace pg_default; insert into in_default select generate_series(1, 900); create unlogged table u_default (i int) tablespace pg_default',
      ),
    );
    await cluster.psql(
      ...statements(
        'create database copied_apart template lives_apart strategy file_copy; drop database lives_apart; drop database moving',
      ),
    );
  },
};

/**
 * Subtransactions by the hundred and the thousand, prepared transactions that stay over checkpoints, multixacts. What runs
 * behind it must not wait for all transactions to end, as REINDEX CONCURRENTLY does: one stays prepared.
 */
const transactions: Load = {
  name: 'subtransactions, prepared transactions, multixacts',
  async run(cluster) {
    await cluster.psql(
      ...statements(`
        create table locked (id int primary key, n int); insert into locked select i, 0 from generate_series(1, 3) i;
        begin; create table kept as select 1 n; savepoint a; insert into kept values (2); savepoint b; drop table base_apart; prepare transaction 'stays';
        begin; create table undone as select i from generate_series(1, 900) i; update base_rows set t = '' where id < 90; prepare transaction 'undone'`),
    );
    await cluster.psql('-c', 'checkpoint', '-c', "rollback prepared 'undone'");
    await cluster.query(`
      do $$ begin for i in 1..3000 loop
        begin insert into locked values (100 + i % 2000, i); exception when unique_violation then null; end;
      end loop; end $$`);
    const script = join(cluster.dir, 'locked.sql');
    writeFileSync(
      script,
      `\\set id random(1, 3)
begin;
select * from locked where id = :id for key share;
savepoint a;
update locked set n = n + 1 where id = :id;
rollback to a;
select * from locked where id = :id for share;
commit;
`,
      {mode: 0o644},
    );
    await cluster.pgbench(['-n', '-c', '10', '-t', '150', '-f', script]);
    await cluster.psql(
      ...statements(
        `begin; create table prepared_late as select 2 n; prepare transaction 'done'; commit prepared 'done'; vacuum (freeze) locked`,
      ),
    );
  },
};

/** The server is killed in the middle of its work and recovers: a torn end of WAL, and an end-of-recovery checkpoint. */
function crash(scale: number, transactionsPerClient: number): Load {
  return {
    name: 'killed during pgbench',
    async run(cluster) {
      await cluster.pgbench(['-i', '-q', '-s', String(scale)]);
      const load = cluster.pgbench(['-n', '-c', '4', '-j', '2', '-t', String(transactionsPerClient)]).catch(() => {});
      await sleep(1500);
      await cluster.kill();
      await load;
      await cluster.start();
      await cluster.pgbench(['-n', '-c', '4', '-t', '100']);
    },
  };
}

const restart: Load = {
  name: 'stopped and started',
  async run(cluster) {
    await cluster.stop('fast');
    await cluster.start();
  },
};

const regress: Load = {
  name: 'regression suite',
  async run(cluster) {
    const result = await runSuite({
      suite: 'regress',
      server: {host: '127.0.0.1', port: cluster.port, user: cluster.superuser},
      dir: join(cluster.dir, 'suite'),
    });
    console.log(`-- ${result.tests.length} tests, ${[...result.ok.values()].filter((ok) => ok).length} as expected`);
  },
};

const isRegress = (load: Load): boolean => load.name.startsWith('regression suite');

/** Some seconds; for npm test. */
export const quickStandbyLoads: readonly Load[] = [files, transactions, restart, crash(1, 100_000)];
/** About two minutes: every record type that ordinary use writes. */
export const mixedStandbyLoads: readonly Load[] = [
  files,
  restart,
  ...fullLoads.filter((load) => !isRegress(load)),
  transactions,
  crash(2, 100_000),
];
export const fullStandbyLoads: readonly Load[] = [regress, ...mixedStandbyLoads];

/**
 * Runs loads one after the other while another session takes checkpoints every `checkpointMs`: between any two LSNs at which
 * the standby is looked at there must be one. pgbench, whose tables the last load leaves, goes on until there are more than
 * `checkpointsMin`.
 */
export async function runLoads(
  cluster: PostgresCluster,
  loads: readonly Load[],
  {checkpointMs, checkpointsMin}: {checkpointMs: number; checkpointsMin: number},
): Promise<void> {
  const stop = new AbortController();
  let taken = 0;
  const checkpoints = (async () => {
    while (!stop.signal.aborted) {
      try {
        const client = await cluster.connect();
        try {
          while (!stop.signal.aborted) {
            await client.query('checkpoint');
            taken++;
            await sleep(checkpointMs);
          }
        } finally {
          await client.end().catch(() => {});
        }
      } catch {
        await sleep(50); // the server was stopped by a load, and will be back
      }
    }
  })();
  try {
    for (const load of loads) {
      const from = Date.now();
      await load.run(cluster);
      console.log(`-- ${load.name}: ${((Date.now() - from) / 1000).toFixed(1)} s`);
    }
    // One more than wanted: behind the last one there is no earlier LSN.
    while (taken <= checkpointsMin + 1) await cluster.pgbench(['-n', '-c', '4', '-t', '20']);
  } finally {
    stop.abort();
    await checkpoints;
  }
}

/** psql arguments: each statement of its own, so that those which cannot be in a transaction can run. */
function statements(sql: string): string[] {
  return sql
    .split(';')
    .filter((statement) => statement.trim() !== '')
    .flatMap((statement) => ['-c', statement.trim()]);
}
