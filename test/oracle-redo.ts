/**
 * The redo oracle: `npm run oracle:redo -- [options]`. A stock PostgreSQL writes WAL with wal_consistency_checking = all, so
 * that every record carries the after-image of every block it changes; this program redoes all of it with src/redo and
 * compares every step (wal-redo.md 9). Exit code 1 on any difference, or when a record type seen in the WAL was never compared.
 *
 *   --quick         small loads, some seconds (part of npm test); without it the whole set, minutes
 *   --rmgr NAME     compare only record types that start with NAME: Hash, Gin, Gist, SPGist, BRIN, Generic, Btree/DEDUP …
 *   --keep DIR      leave base copy and data directory in DIR
 *   --again DIR     no load: verify once more what --keep left in DIR
 *   --sql FILE      this SQL file instead of the loads (repeatable)
 */
import {execFileSync} from 'node:child_process';
import {chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {parseLsn} from '#postgres/lsn.ts';
import {type Load, fullLoads, quickLoads, sqlLoad} from './oracle/loads.ts';
import {report, verify} from './oracle/verify.ts';
import {PostgresCluster, runTool} from './postgres-cluster.ts';

const {values: options} = parseArgs({
  options: {
    quick: {type: 'boolean', default: false},
    rmgr: {type: 'string'},
    keep: {type: 'string'},
    again: {type: 'string'},
    sql: {type: 'string', multiple: true},
  },
});

/** One cluster: its settings, what runs on it. */
interface Run {
  readonly name: string;
  readonly settings: Readonly<Record<string, string | number | boolean>>;
  readonly loads: readonly Load[];
  /** Every record type that is seen must be compared (not so where images are applied). */
  readonly strict: boolean;
}

const settings = {
  fsync: 'off',
  synchronous_commit: 'off',
  full_page_writes: 'off',
  wal_consistency_checking: 'all',
  wal_level: 'logical',
  wal_compression: 'lz4',
  shared_buffers: '128MB',
  max_wal_size: '200GB',
  wal_keep_size: '200GB',
  checkpoint_timeout: '1d',
  max_prepared_transactions: 20,
  max_locks_per_transaction: 256,
  track_commit_timestamp: 'on',
} as const;

function runs(): Run[] {
  if (options.sql !== undefined) return [{name: 'given SQL', settings, loads: options.sql.map(sqlLoad), strict: true}];
  if (options.quick) return [{name: 'quick', settings, loads: quickLoads, strict: true}];
  return [{name: 'everything', settings, loads: fullLoads, strict: true}];
}

async function main(): Promise<boolean> {
  if (options.again !== undefined) return check(options.again, undefined);
  let good = true;
  for (const run of runs()) {
    const dir = options.keep ?? mkdtempSync(join(tmpdir(), 'pagoda-oracle-'));
    try {
      good = (await load(run, dir)) && good;
    } finally {
      if (options.keep === undefined) rmSync(dir, {recursive: true, force: true});
    }
  }
  return good;
}

/** Makes a cluster in `dir`, keeps a copy of it as the base, runs the loads, stops it, and verifies its WAL. */
async function load(run: Run, dir: string): Promise<boolean> {
  console.log(`== ${run.name}`);
  mkdirSync(dir, {recursive: true});
  chmodSync(dir, 0o755);
  await using cluster = await PostgresCluster.create({dir, settings: run.settings, start: false});
  const control = runTool('pg_controldata', [cluster.dataDir]);
  const start = /^Latest checkpoint location:\s+(\S+)$/m.exec(control)![1]!;
  execFileSync('cp', ['-a', '--reflink=auto', cluster.dataDir, join(dir, 'base')]);
  writeFileSync(
    join(dir, 'oracle.json'),
    JSON.stringify({start, walLogHints: run.settings['wal_log_hints'] === 'on', strict: run.strict}),
  );
  await cluster.start();
  for (const step of run.loads) {
    const began = performance.now();
    await step.run(cluster);
    console.log(`-- ${step.name}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
  await cluster.stop('fast');
  return check(dir, options.rmgr);
}

function check(dir: string, only: string | undefined = options.rmgr): boolean {
  const state = JSON.parse(readFileSync(join(dir, 'oracle.json'), 'utf8')) as {
    start: string;
    walLogHints: boolean;
    strict: boolean;
  };
  const began = performance.now();
  const result = verify({
    base: join(dir, 'base'),
    walDirectory: join(dir, 'data', 'pg_wal'),
    startLsn: parseLsn(state.start),
    walLogHints: state.walLogHints,
    only,
  });
  console.log(`-- verified in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  return report(result, (line) => console.log(line), only);
}

process.exitCode = (await main()) ? 0 : 1;
