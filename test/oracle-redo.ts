/**
 * The redo oracle: `npm run oracle:redo -- [options]`. A stock PostgreSQL writes WAL with wal_consistency_checking = all, so
 * that every record carries the after-image of every block it changes; this program redoes all of it with src/redo and
 * compares every step (wal-redo.md 9). Then a stock standby recovers the same WAL, and all final pages are compared unmasked.
 * Exit code 1 on any difference, or when a record type seen in the WAL was never compared. The last line is the sum of all
 * runs: `N compared, N equal, N different`.
 *
 *   --quick         small loads, some seconds (part of npm test); without it the whole set, minutes
 *   --rmgr NAME     compare only record types that start with NAME: Hash, Gin, Gist, SPGist, BRIN, Generic, Btree/DEDUP …
 *   --keep DIR      leave base copy and data directory in DIR
 *   --again DIR     no load: verify once more what --keep left in a folder of DIR
 *   --fuzz          also apply damaged records to damaged pages: nothing but RedoError may come of it
 *   --run NAME      only one of the full set's clusters: all, images, hints, checksums or checksum-images
 *   --sql FILE      this SQL file instead of the loads (repeatable)
 */
import {execFileSync} from 'node:child_process';
import {chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {parseLsn} from '#postgres/lsn.ts';
import {type Load, fullLoads, hintLoads, imageLoads, quickChecksumLoads, quickLoads, sqlLoad} from './oracle/loads.ts';
import {blockRecordNames, imageOnly} from './oracle/record-names.ts';
import {compareWithStandby} from './oracle/standby.ts';
import {type VerifyResult, report, verify} from './oracle/verify.ts';
import {PostgresCluster, runTool} from './postgres-cluster.ts';

const {values: options} = parseArgs({
  options: {
    quick: {type: 'boolean', default: false},
    rmgr: {type: 'string'},
    fuzz: {type: 'boolean', default: false},
    keep: {type: 'string'},
    again: {type: 'string'},
    sql: {type: 'string', multiple: true},
    run: {type: 'string'},
  },
});

/** One cluster: its settings, what runs on it. */
interface Run {
  readonly name: string;
  /** Folder under --keep. */
  readonly dir: string;
  readonly settings: Readonly<Record<string, string | number | boolean>>;
  /** initdb --data-checksums. */
  readonly checksums?: boolean;
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

/** The load changes wal_compression as it goes; on the command line it would be fixed. */
const {wal_compression: _, ...withoutCompression} = settings;

function runs(): Run[] {
  if (options.sql !== undefined)
    return [{name: 'given SQL', dir: 'sql', settings, loads: options.sql.map(sqlLoad), strict: true}];
  if (options.quick)
    return [
      {name: 'quick', dir: 'quick', settings, loads: quickLoads, strict: true},
      {
        name: 'quick, data checksums on',
        dir: 'quick-checksums',
        settings,
        checksums: true,
        loads: quickChecksumLoads,
        strict: true,
      },
    ];
  return [
    {name: 'everything, images never applied', dir: 'all', settings, loads: fullLoads, strict: true},
    {
      name: 'full_page_writes = on, every wal_compression in turn',
      dir: 'images',
      settings: {...withoutCompression, full_page_writes: 'on', wal_level: 'replica'},
      loads: imageLoads,
      strict: false,
    },
    {
      name: 'wal_log_hints = on',
      dir: 'hints',
      settings: {...settings, wal_log_hints: 'on'},
      loads: hintLoads,
      strict: true,
    },
    {
      name: 'data checksums on',
      dir: 'checksums',
      settings,
      checksums: true,
      loads: hintLoads,
      strict: true,
    },
    {
      name: 'data checksums, wal_log_hints and full_page_writes on, every wal_compression in turn',
      dir: 'checksum-images',
      settings: {...withoutCompression, full_page_writes: 'on', wal_level: 'replica', wal_log_hints: 'on'},
      checksums: true,
      loads: imageLoads,
      strict: false,
    },
  ];
}

/** What `--keep` leaves for `--again`. */
interface State {
  readonly start: string;
  readonly walLogHints: boolean;
  readonly checksums: boolean;
  readonly strict: boolean;
}

const seen = new Set<string>();
const totals = {records: 0, compared: 0, equal: 0, different: 0};

async function main(): Promise<boolean> {
  const good = options.again === undefined ? await allRuns() : check(options.again);
  console.log(`${totals.compared} compared, ${totals.equal} equal, ${totals.different} different`);
  return good;
}

async function allRuns(): Promise<boolean> {
  let good = true;
  for (const run of runs().filter(({dir}) => options.run === undefined || options.run === dir)) {
    const dir =
      options.keep === undefined ? mkdtempSync(join(tmpdir(), 'pagoda-oracle-')) : join(options.keep, run.dir);
    try {
      good = (await load(run, dir)) && good;
    } finally {
      if (options.keep === undefined) rmSync(dir, {recursive: true, force: true});
    }
  }
  return options.quick || options.sql !== undefined || options.run !== undefined ? good : coverage() && good;
}

/** Makes a cluster in `dir`, keeps a copy of it as the base, runs the loads, stops it, and verifies its WAL. */
async function load(run: Run, dir: string): Promise<boolean> {
  console.log(`== ${run.name}`);
  mkdirSync(dir, {recursive: true});
  chmodSync(dir, 0o755);
  await using cluster = await PostgresCluster.create({
    dir,
    settings: run.settings,
    initdbArgs: run.checksums === true ? ['--data-checksums'] : [],
    start: false,
  });
  const control = runTool('pg_controldata', [cluster.dataDir]);
  const checksums = !/^Data page checksum version:\s+0$/m.test(control);
  if (checksums !== (run.checksums === true))
    throw new Error(`${run.name}: the cluster's data checksums are ${checksums}`);
  const start = /^Latest checkpoint location:\s+(\S+)$/m.exec(control)![1]!;
  execFileSync('cp', ['-a', '--reflink=auto', cluster.dataDir, join(dir, 'base')]);
  writeFileSync(
    join(dir, 'oracle.json'),
    JSON.stringify({start, walLogHints: run.settings['wal_log_hints'] === 'on', checksums, strict: run.strict}),
  );
  await cluster.start();
  for (const step of run.loads) {
    const began = performance.now();
    await step.run(cluster);
    console.log(`-- ${step.name}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
  await cluster.stop('fast');
  return check(dir);
}

/** Verifies what `dir` holds. */
function check(dir: string): boolean {
  const state = JSON.parse(readFileSync(join(dir, 'oracle.json'), 'utf8')) as State;
  const began = performance.now();
  const result = verify({
    base: join(dir, 'base'),
    walDirectory: join(dir, 'data', 'pg_wal'),
    startLsn: parseLsn(state.start),
    walLogHints: state.walLogHints || state.checksums,
    only: options.rmgr,
    fuzz: options.fuzz,
  });
  console.log(`-- verified in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  for (const [name, count] of result.types) {
    if (count.compared > 0 || (count.blocks > 0 && imageOnly.has(name))) seen.add(name.replace('+INIT', ''));
    totals.records += count.records;
    totals.compared += count.compared;
    totals.equal += count.equal;
    totals.different += count.different;
  }
  const good = report(result, {print: (line) => console.log(line), only: options.rmgr, strict: state.strict});
  return (options.rmgr !== undefined || standby(dir, state, result)) && good;
}

/** Lets a stock PostgreSQL recover the same WAL and compares all final pages. */
function standby(dir: string, state: State, {store, lastRecordLsn}: VerifyResult): boolean {
  const began = performance.now();
  const {equal, different, missing, messages} = compareWithStandby({
    dir,
    store,
    lastRecordLsn,
    walLogHints: state.walLogHints,
    checksums: state.checksums,
  });
  for (const message of messages) console.log(message);
  console.log(
    `final pages against a stock standby, no mask: ${equal} equal, ${different} different, ${missing} missing (${((performance.now() - began) / 1000).toFixed(1)} s)`,
  );
  return different === 0 && missing === 0;
}

/** The whole set must reach every record type that carries blocks. Answers whether it did. */
function coverage(): boolean {
  const missing = blockRecordNames.filter((name) => !seen.has(name));
  console.log(`== all runs: ${seen.size} record types with blocks, ${totals.records} records`);
  if (missing.length > 0) console.log(`never seen: ${missing.join(', ')}`);
  return missing.length === 0;
}

process.exitCode = (await main()) ? 0 : 1;
