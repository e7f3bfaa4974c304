/** What runs on the oracle's clusters (wal-redo.md 9.4). */
import {execFileSync} from 'node:child_process';
import {chownSync, mkdirSync} from 'node:fs';
import {join, resolve} from 'node:path';
import {postgresSource} from '../../scripts/postgres-source.ts';
import {type PostgresCluster, postgresBinDir, runAs} from '../postgres-cluster.ts';

export interface Load {
  readonly name: string;
  run(cluster: PostgresCluster): Promise<void>;
}

/** One SQL file, statement by statement, by psql. */
export function sqlLoad(path: string): Load {
  return {
    name: path,
    async run(cluster) {
      await cluster.psql('-o', '/dev/null', '-f', resolve(path));
    },
  };
}

function own(name: string): Load {
  return {...sqlLoad(join(import.meta.dirname, name)), name};
}

function pgbench(scale: number, ...args: string[]): Load {
  return {
    name: `pgbench ${args.join(' ')}`,
    async run(cluster) {
      await cluster.pgbench(['-i', '-q', '-s', String(scale)]);
      await cluster.pgbench(args);
    },
  };
}

/** All index types under eight clients and autovacuum. */
function mix(transactions: number): Load {
  return {
    name: 'mix of all index types, 8 clients',
    async run(cluster) {
      await cluster.psql('-o', '/dev/null', '-f', join(import.meta.dirname, 'mix-setup.sql'));
      const script = join(import.meta.dirname, 'mix.pgbench');
      // two clients that wait for each other's rows end in a deadlock now and then: that one transaction is given up
      await cluster.pgbench(['-n', '-c', '8', '-j', '2', '-t', String(transactions), '--max-tries=100', '-f', script]);
      await cluster.psql('-o', '/dev/null', '-c', 'vacuum busy', '-c', 'vacuum freeze parents');
    },
  };
}

/** Heap2 LOCK_UPDATED: a key share lock on a row that another transaction has updated and not committed. */
const lockUpdated: Load = {
  name: 'locks on updated rows',
  async run(cluster) {
    const [one, two] = [await cluster.connect(), await cluster.connect()];
    await one.query('create table updated_rows (id int primary key, v int)');
    await one.query('insert into updated_rows select i, 0 from generate_series(1, 200) i');
    await one.query('vacuum freeze updated_rows');
    await one.query('begin');
    await one.query('update updated_rows set v = v + 1 where id < 100');
    await one.query('update updated_rows set v = v + 1 where id < 50');
    await two.query('begin');
    await two.query('select * from updated_rows where id < 120 for key share');
    await one.query('commit');
    await two.query('commit');
    await two.query('vacuum freeze updated_rows');
    await one.end();
    await two.end();
  },
};

/** A tablespace, a database copied file by file into it, and back. */
const tablespace: Load = {
  name: 'tablespaces',
  async run(cluster) {
    const location = join(cluster.dir, 'space');
    mkdirSync(location, {recursive: true});
    if (runAs.uid !== undefined) chownSync(location, runAs.uid, runAs.gid!);
    for (const sql of [
      `create tablespace apart location '${location}'`,
      'create database moved strategy file_copy',
      'alter database moved set tablespace apart',
    ])
      await cluster.query(sql);
    const moved = await cluster.connect('moved');
    await moved.query('create table t (i int primary key) tablespace pg_default');
    await moved.query('insert into t select generate_series(1, 2000)');
    await moved.query('update pg_class set reltuples = reltuples where relkind = $1', ['r']);
    await moved.query('alter table t set tablespace apart');
    await moved.query('delete from t where i % 2 = 0');
    await moved.query('vacuum full pg_class');
    await moved.end();
    await cluster.query('alter database moved set tablespace pg_default');
    const back = await cluster.connect('moved');
    await back.query('vacuum freeze');
    await back.end();
    await cluster.query('create database again template moved strategy wal_log');
    await cluster.query('drop database moved');
    await cluster.query('drop tablespace apart');
  },
};

/** Everything frozen, template0 included, twice: multixact and commit timestamp truncation. */
const freezeAll: Load = {
  name: 'freeze everything',
  async run(cluster) {
    await cluster.query(`update pg_database set datallowconn = true where datname = 'template0'`);
    const databases = (await cluster.query('select datname from pg_database where datallowconn')).map((row) =>
      String(row['datname']),
    );
    for (let round = 0; round < 2; round++)
      for (const database of databases)
        await cluster.psql(
          '-d',
          database,
          '-c',
          'set vacuum_freeze_min_age = 0',
          '-c',
          'set vacuum_multixact_freeze_min_age = 0',
          '-c',
          'vacuum freeze',
        );
    await cluster.query('checkpoint');
  },
};

const compiler = process.env['CC'] ?? 'gcc';
const pgRegress = join(postgresBinDir, '../lib/pgxs/src/test/regress/pg_regress');

/**
 * PostgreSQL's own regression suite, when its source and a C compiler are there. Its output is not compared: other settings
 * than the suite expects change it.
 */
const regressionSuite: Load = {
  name: 'regression suite of PostgreSQL 15',
  async run(cluster) {
    let sourceDir;
    try {
      sourceDir = postgresSource();
    } catch (error) {
      console.log(`-- skipped: ${error instanceof Error ? error.message : String(error)}`);
      return;
    }
    const source = join(sourceDir, 'src/test/regress');
    const libraries = join(cluster.dir, 'libraries');
    const output = join(cluster.dir, 'regress');
    for (const dir of [libraries, output]) {
      mkdirSync(dir, {recursive: true});
      if (runAs.uid !== undefined) chownSync(dir, runAs.uid, runAs.gid!);
    }
    const include = execFileSync(join(postgresBinDir, 'pg_config'), ['--includedir-server']).toString().trim();
    for (const file of ['src/test/regress/regress.c', 'contrib/spi/refint.c', 'contrib/spi/autoinc.c']) {
      const library = join(libraries, file.replace(/^.*\/(.*)\.c$/, '$1.so'));
      execFileSync(compiler, ['-O1', '-w', '-fPIC', '-shared', '-I', include, '-o', library, join(sourceDir, file)]);
    }
    // in the suite's folder, because a few tests name files by relative paths
    const args = [
      `--inputdir=${source}`,
      `--outputdir=${output}`,
      `--bindir=${postgresBinDir}`,
      `--dlpath=${libraries}`,
      `--schedule=${join(source, 'parallel_schedule')}`,
      '--max-connections=8',
      '--host',
      cluster.socketDir,
      '--port',
      String(cluster.port),
      '--user=postgres',
      '--use-existing',
      '--dbname=regression',
    ];
    await cluster.query('create database regression template template0');
    await cluster.query('alter database regression set lc_messages = "C"');
    const log = await runToEnd(pgRegress, args, output);
    const failed = (log.match(/FAILED/g) ?? []).length;
    console.log(`-- ${(log.match(/ ok  /g) ?? []).length} tests as expected, ${failed} with other output`);
  },
};

function runToEnd(command: string, args: readonly string[], cwd: string): Promise<string> {
  return new Promise((done) => {
    try {
      done(
        execFileSync(command, args, {cwd, ...runAs, stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 1 << 28}).toString(),
      );
    } catch (error) {
      done(String((error as {stdout?: Buffer}).stdout ?? error));
    }
  });
}

/** For npm test: all resource managers in a few seconds. */
export const quickLoads: readonly Load[] = [
  own('quick.sql'),
  lockUpdated,
  pgbench(1, '-c', '4', '-j', '2', '-t', '500'),
];

/** For npm test, a second time with data checksums on. */
export const quickChecksumLoads: readonly Load[] = [own('quick.sql')];

/** What fullLoads must have seen between them: every record type with blocks. */
export const fullLoads: readonly Load[] = [
  ...quickLoads,
  own('rare.sql'),
  mix(1500),
  tablespace,
  pgbench(5, '-c', '8', '-j', '2', '-t', '2000'),
  pgbench(2, '-N', '-c', '8', '-j', '2', '-t', '2000'),
  regressionSuite,
  freezeAll,
];

/** For clusters with full_page_writes = on: every form of image, each after a checkpoint. */
export const imageLoads: readonly Load[] = [
  own('quick.sql'),
  ...['pglz', 'zstd', 'lz4', 'off'].map((method): Load => ({
    name: `wal_compression = ${method}`,
    async run(cluster) {
      await cluster.query(`alter system set wal_compression = '${method}'`);
      await cluster.query('select pg_reload_conf()');
      await cluster.query('checkpoint');
      await cluster.psql('-o', '/dev/null', '-f', join(import.meta.dirname, 'touch.sql'));
    },
  })),
];

/** For wal_log_hints = on or data checksums: deletions and vacuums of all index types. */
export const hintLoads: readonly Load[] = [
  own('quick.sql'),
  own('rare.sql'),
  pgbench(1, '-c', '4', '-j', '2', '-t', '500'),
];
