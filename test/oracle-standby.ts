/**
 * The second oracle: `npm run oracle:standby -- [options]`. A stock PostgreSQL runs a load. Its data directory from before and
 * its WAL go through import, WAL reader, interpreter and timeline into layers, as in a pageserver but in one process; a stock
 * physical standby replays the same WAL and waits at the end and at earlier LSNs. At each of them every page of every relation
 * and SLRU, every size, relation map, directory and two-phase file of the standby must equal what the timeline answers there,
 * byte for byte and without masks. Exit code 1 on any difference.
 *
 *   (none)            mixed load, the end and 20 earlier LSNs
 *   --endpoint        instead: pgbench and all index types through a whole Pagoda, the compute killed again and again (see
 *                     standby/endpoint.ts); with --quick two kills and 3 earlier LSNs
 *   --full            PostgreSQL's regression suite too
 *   --quick           a small load, the end and 3 earlier LSNs (part of npm test)
 *   --lsns N          that many earlier LSNs
 *   --seed N          of the choice of LSNs, restarts and WAL chunks; printed at the start
 *   --churn           layers of 1 MiB, compaction at every one of them, GC of all history before the LSN that is compared, a block
 *                     cache of 4 MiB in memory and one of 2 MiB on disk; before every fourth comparison everything archived, attached
 *                     anew from the object store alone, and woken; before another fourth the pageservers stopped and started with
 *                     nothing but the object store; and of the branches that are read every fourth is detached first
 *   --migrate         two pageservers: the timeline moves to and fro between them, in ingest and all the while it is compared, as in
 *                     a migration or taken from one that lives on and is told nothing; with --churn or without
 *   --shards N        the tenant is N shards, each of which is ingested, moved and archived by itself
 *   --set NAME=VALUE  a setting of the cluster, for example full_page_writes=on (repeatable)
 *   --keep DIR        leave base/, the stopped cluster and the object store in DIR
 *   --again DIR       no load: compare once more what --keep left
 *   --prove           then damage the standby's files in every way, and fail unless each damage is reported
 */
import {execFileSync} from 'node:child_process';
import {chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {endOfCheckpointRecord} from '#pageserver/ingest/import.ts';
import {newestIndex, timelinePrefix} from '#pageserver/timeline/index-object.ts';
import {type ControlFile, parseControlFile} from '#postgres/control-file.ts';
import {formatLsn} from '#postgres/lsn.ts';
import {rmgrNames} from '#postgres/wal/rmgr.ts';
import {systemDisk} from '#runtime/disk.ts';
import {SeededRandom} from '#runtime/random.ts';
import {recover} from './oracle/standby.ts';
import {Pagoda} from './pagoda.ts';
import {PostgresCluster} from './postgres-cluster.ts';
import {type Comparison, compareAt} from './standby/compare.ts';
import {findTimeline, ingested, runThroughEndpoint, writeFirstDirectory, writeWal} from './standby/endpoint.ts';
import {fullStandbyLoads, mixedStandbyLoads, prepareBase, quickStandbyLoads, runLoads} from './standby/loads.ts';
import {damage} from './standby/damage.ts';
import {Standby} from './standby/standby.ts';
import {Storage} from './standby/storage.ts';
import {type Target, planAnywhere, planWal} from './standby/wal.ts';

const {values: options} = parseArgs({
  options: {
    quick: {type: 'boolean', default: false},
    full: {type: 'boolean', default: false},
    endpoint: {type: 'boolean', default: false},
    lsns: {type: 'string'},
    seed: {type: 'string'},
    set: {type: 'string', multiple: true, default: []},
    keep: {type: 'string'},
    again: {type: 'string'},
    prove: {type: 'boolean', default: false},
    churn: {type: 'boolean', default: false},
    migrate: {type: 'boolean', default: false},
    shards: {type: 'string', default: '1'},
  },
});

const settings: Record<string, string | number | boolean> = {
  fsync: 'off',
  synchronous_commit: 'off',
  full_page_writes: 'off',
  wal_level: 'logical',
  shared_buffers: '128MB',
  max_wal_size: '200GB',
  wal_keep_size: '200GB',
  checkpoint_timeout: '1d',
  track_commit_timestamp: 'on',
  max_prepared_transactions: 20,
  max_locks_per_transaction: 256,
  allow_in_place_tablespaces: 'on',
  ...Object.fromEntries(options.set.map((pair) => pair.split(/=(.*)/s).slice(0, 2))),
};

const started = Date.now();
const seconds = (): string => `${((Date.now() - started) / 1000).toFixed(1)} s`;
const dir = options.again ?? options.keep ?? mkdtempSync(join(tmpdir(), 'pagoda-standby-'));
const base = join(dir, 'base');
try {
  process.exitCode = (await (options.endpoint ? throughEndpoint() : main())) ? 0 : 1;
} finally {
  for (const name of ['standby', 'cache', ...(options.again === undefined ? [] : ['objects'])])
    rmSync(join(dir, name), {recursive: true, force: true});
  if (options.again === undefined && options.keep === undefined) rmSync(dir, {recursive: true, force: true});
}

async function main(): Promise<boolean> {
  const seed = Number(options.seed ?? Date.now() % 1_000_000);
  console.log(`seed ${seed}, in ${dir}`);
  const random = new SeededRandom(seed);
  mkdirSync(dir, {recursive: true});
  chmodSync(dir, 0o755);
  await using cluster = await PostgresCluster.create({dir, settings, start: false});
  if (options.again === undefined) await load(cluster);

  const baseControl = parseControlFile(readFileSync(join(base, 'global/pg_control')));
  const baseLsn = endOfCheckpointRecord(baseControl.checkPointLsn);
  const walDir = join(cluster.dataDir, 'pg_wal');
  const plan = await planWal(walDir, baseLsn, Number(options.lsns ?? (options.quick ? 3 : 20)), random);
  const megabytes = (plan.endLsn - baseLsn) / 1e6;
  console.log(
    `WAL: ${plan.records} records, ${megabytes.toFixed(1)} MB, ${plan.checkpoints.length} checkpoints (${seconds()})`,
  );

  const objects = join(dir, 'objects');
  rmSync(objects, {recursive: true, force: true});
  const store = options.quick
    ? new MemoryObjectStore()
    : new FolderObjectStore({root: objects, disk: systemDisk, random, nowMs: Date.now()});
  const layerBytes = options.quick || options.churn ? 1 << 20 : 8 << 20;
  const pageservers = options.migrate ? 2 : 1;
  const shards = Number(options.shards);
  const churnDir = options.churn ? join(dir, 'cache') : undefined;
  const storage = new Storage({store, random, layerBytes, churnDir, pageservers, shards});
  const still = new AbortController();
  let moving: Promise<void> | undefined;
  try {
    const imported = await storage.import(base);
    if (imported !== baseLsn)
      throw new Error(`the import ends at ${formatLsn(imported)}, not at ${formatLsn(baseLsn)}`);
    const importedAt = Date.now();
    const restarts = Math.min(options.migrate ? 8 : 2, plan.targets.length - 1);
    const restartAt = Array.from(
      {length: restarts},
      (_, i) => plan.targets[Math.floor(((i + 1) * plan.targets.length) / (restarts + 1))]!.lsn,
    );
    const reached = await storage.ingest(walDir, restartAt);
    if (reached !== plan.endLsn)
      throw new Error(`ingest ended at ${formatLsn(reached)}, the WAL at ${formatLsn(plan.endLsn)}`);
    const {layers, layerBytes} = storage.size();
    const rate = megabytes / ((Date.now() - importedAt) / 1000);
    console.log(
      `ingested into ${layers} layers of ${(layerBytes / 1e6).toFixed(1)} MB in all, ${rate.toFixed(1)} MB/s, ${restarts} ${options.migrate ? 'moves' : 'restarts'} (${seconds()})`,
    );

    await using standby = await Standby.start({baseDir: base, baseLsn, walDir, dir: join(dir, 'standby'), settings});
    const all: Comparison[] = [];
    const trunk = storage.reader();
    const compare = (target: Target, control: ControlFile, timeline = trunk): Promise<Comparison> =>
      compareAt({timeline, past: trunk, dataDir: standby.dataDir, target, plan, control});
    if (options.migrate) moving = storage.moveAbout(still.signal);
    moving?.catch(() => {}); // it is thrown at the end
    for (const [i, target] of plan.targets.entries()) {
      const control = await standby.advance(target.lsn);
      const replayedAt = Date.now();
      if (options.churn && i % 4 === 1) await storage.restart();
      if (options.churn && i % 4 === 3) await storage.sleepAndWake();
      if (options.churn) await storage.keep(target.lsn, [target.checkpoint.endLsn]);
      const timeline = i % 2 === 1 ? await storage.branch(target.lsn, options.churn && i % 8 === 1) : trunk;
      const result = await compare(target, control, timeline);
      all.push(result);
      reportTarget(target, result, Date.now() - replayedAt);
    }
    still.abort();
    await moving;
    console.log(`${storage.reads.packed} pages came compressed, as they lie in storage`);
    if (options.migrate) {
      const {moves, taken, refusals} = storage.churned;
      const {answers, stale, sentOn} = storage.reads;
      console.log(
        `${moves} migrations, ${taken} times taken from a pageserver that lives, which was refused ${refusals} times; ` +
          `${answers.join(' and ')} reads answered by them, ${stale} by one that did not hold the shard any more, ${sentOn} sent on`,
      );
      if (moves < 2 || taken === 0 || !(answers[0]! > 0 && answers[1]! > 0))
        throw new Error('the timeline has not moved');
    }
    if (options.churn) {
      const {steps, collected, evicted, evictedLocally, archivings, restarts, detachments} = storage.churned;
      const {layers: left, layerBytes: leftBytes} = storage.size();
      console.log(
        `${steps} steps of compaction, ${collected} layers collected; ${left} layers of ${(leftBytes / 1e6).toFixed(1)} MB are left`,
      );
      console.log(
        `${evicted} blocks evicted from memory and ${evictedLocally} chunks from local disk; ${archivings} times archived, attached from the ` +
          `object store alone and woken, ${restarts} pageservers started anew with an empty folder, ${detachments} branches detached`,
      );
      // With few LSNs there is not always a layer of which everything may go.
      if (steps < 10 || (collected === 0 && plan.targets.length > 20))
        throw new Error('compaction and GC have not been at work');
      if (evicted === 0 || evictedLocally === 0) throw new Error('nothing was evicted');
      if (archivings === 0 || restarts === 0 || detachments === 0)
        throw new Error('nothing was archived, no pageserver was restarted, or no branch was detached');
    }
    if (options.prove) {
      const end = plan.targets.at(-1)!;
      const control = await standby.advance(end.lsn);
      const expected = damage(standby.dataDir);
      const {messages} = await compare(end, control);
      const unseen = expected.filter((pattern) => !messages.some((message) => pattern.test(message)));
      if (unseen.length > 0 || messages.length !== expected.length)
        throw new Error(`damage not reported: ${unseen.join(', ')}; reported: ${messages.join('\n')}`);
      console.log(`-- and ${expected.length} damages of the standby's files were all reported`);
    }
    return reportAll(all);
  } finally {
    still.abort();
    await moving?.catch(() => {});
    await storage.close();
  }
}

function reportTarget(target: Target, result: Comparison, ms: number): void {
  const kinds = [...result.pages].map(([kind, count]) => `${kind} ${count}`).join(', ');
  console.log(
    `${formatLsn(target.lsn)} behind ${rmgrNames[target.rmid]} ${target.info.toString(16).padStart(2, '0')}: ${result.compared} pages compared, ` +
      `${result.equal} equal, ${result.differentPages} different (${kinds}); ${result.forks} sizes, ${result.facts} other facts equal, ` +
      `${result.differentFacts} different; ${result.emptyMaps} empty maps, ${result.inMemory} prepared in memory; ${ms} ms`,
  );
  for (const message of result.messages.slice(0, 12)) console.log(`  ${message}`);
}

/** The last line counts pages; whether sizes and other facts were equal too decides the answer with it. */
function reportAll(all: readonly Comparison[]): boolean {
  const sum = (value: (c: Comparison) => number): number => all.reduce((total, c) => total + value(c), 0);
  console.log(
    `${sum((c) => c.forks)} relation sizes and ${sum((c) => c.facts)} maps, files and counters equal, ${sum((c) => c.differentFacts)} different (${seconds()})`,
  );
  console.log(
    `${sum((c) => c.compared)} pages at ${all.length} LSNs compared, ${sum((c) => c.equal)} equal, ${sum((c) => c.different)} different`,
  );
  return sum((c) => c.different) === 0;
}

/** WAL of killed computes, and the layers that a real pageserver made of it. */
async function throughEndpoint(): Promise<boolean> {
  const seed = Number(options.seed ?? Date.now() % 1_000_000);
  console.log(`seed ${seed}, in ${dir}`);
  const random = new SeededRandom(seed);
  chmodSync(dir, 0o755);
  await using pagoda = await Pagoda.start();
  await runThroughEndpoint(pagoda, {kills: options.quick ? 2 : 8, random});
  const branch = await findTimeline(pagoda);
  const baseLsn = await writeFirstDirectory(pagoda, branch.systemId, base);
  const walDir = join(dir, 'wal');
  const commitLsn = await writeWal(pagoda, branch, {base, startLsn: baseLsn, directory: walDir});
  await ingested(pagoda, branch, commitLsn);
  await pagoda.stop();
  const plan = await planAnywhere(walDir, baseLsn, Number(options.lsns ?? (options.quick ? 3 : 20)), random);
  const starts = plan.checkpoints.filter(({shutdown}) => shutdown).length;
  console.log(
    `WAL: ${plan.records} records, ${((plan.endLsn - baseLsn) / 1e6).toFixed(1)} MB, ${starts} shutdown checkpoints, ${plan.checkpoints.length - starts} others (${seconds()})`,
  );
  if (plan.endLsn !== commitLsn)
    throw new Error(
      `WAL is committed up to ${formatLsn(commitLsn)}, its last record ends at ${formatLsn(plan.endLsn)}`,
    );

  const store = new FolderObjectStore({root: join(pagoda.dir, 'objects'), disk: systemDisk, random, nowMs: Date.now()});
  const indexes = await store.list(timelinePrefix(branch.tenantId, branch.timelineId));
  const newest = newestIndex(indexes.map(({key}) => key));
  if (newest === undefined) throw new Error(`the object store holds no index of timeline ${branch.timelineId}`);
  const existing = {...branch, generation: newest.generation};
  const storage = new Storage({store, random, layerBytes: 8 << 20, existing});
  try {
    await storage.attach();
    if (storage.lastRecordLsn !== plan.endLsn)
      throw new Error(`the layers end at ${formatLsn(storage.lastRecordLsn)}, the WAL at ${formatLsn(plan.endLsn)}`);
    const timeline = storage.reader();
    const all: Comparison[] = [];
    for (const target of plan.targets) {
      const dataDir = join(dir, 'standby');
      rmSync(dataDir, {recursive: true, force: true});
      execFileSync('cp', ['-a', base, dataDir]);
      recover({
        dataDir,
        walDir,
        dir: dataDir,
        lastRecordLsn: target.startLsn,
        settings: {max_prepared_transactions: '64'},
      });
      const replayedAt = Date.now();
      const control = parseControlFile(readFileSync(join(dataDir, 'global/pg_control')));
      const result = await compareAt({timeline, dataDir, target, plan, control});
      all.push(result);
      reportTarget(target, result, Date.now() - replayedAt);
    }
    return reportAll(all);
  } finally {
    await storage.close();
  }
}

async function load(cluster: PostgresCluster): Promise<void> {
  if (existsSync(base)) throw new Error(`${base} is there already: give --keep a new folder`);
  await cluster.start();
  await prepareBase(cluster);
  await cluster.stop('fast');
  execFileSync('cp', ['-a', cluster.dataDir, base]);
  await cluster.start();
  const loads = options.full ? fullStandbyLoads : options.quick ? quickStandbyLoads : mixedStandbyLoads;
  const lsns = Number(options.lsns ?? 0);
  await runLoads(cluster, loads, {
    checkpointMs: options.quick ? Math.min(300, 4000 / Math.max(lsns, 1)) : 1000,
    checkpointsMin: lsns,
  });
  await cluster.stop('fast');
}
