/**
 * `npm run bench -- stalls`: how long a request waits for its turn while a pageserver (in this process, over a folder) takes in
 * pages, uploads layers, and merges them. Nobody serves a page before the event loop comes round: each turn of it is timed, on
 * the wall clock and in CPU time of the thread, which says something on a busy machine too.
 *
 * waitP50Ms, waitP99Ms: of a request that arrives at any moment; maxMs: the longest turn; above10Ms: all turns longer than 10 ms
 * together, per GB of layers written.
 *
 *   --megabytes N   taken in, default 600     --l0 N   layers that start a merge, default 8 as in production
 *   --reads         instead: how long getPage takes. A client in a thread of its own asks over the page service for one random page
 *                   every 2 ms, whether the one before has come or not. Steps of compaction for a second, a second without, and
 *                   so on until nothing is left to compact. ratio: p99 without ÷ p99 beside compaction
 */
import {once} from 'node:events';
import {chmodSync, mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {Worker} from 'node:worker_threads';
import {alwaysValid} from '#pageserver/generation-validator.ts';
import {BlockCache} from '#pageserver/layers/block-cache.ts';
import {PageserverMetrics} from '#pageserver/metrics.ts';
import {Readers} from '#pageserver/pages/readers.ts';
import {servePages} from '#pageserver/pages/service.ts';
import {MemoryBudget} from '#pageserver/timeline/memory-budget.ts';
import {type PageserverContext, limitsWith} from '#pageserver/timeline/state.ts';
import {Tenant} from '#pageserver/timeline/tenant.ts';
import type {Timeline} from '#pageserver/timeline/timeline.ts';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {blockSize} from '#postgres/relation.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import {listenFrames} from '#runtime/net.ts';
import {SeededRandom, systemRandom} from '#runtime/random.ts';
import {TokenIssuer, TokenVerifier, generateKeys} from '#wire/auth.ts';
import {percentile, printReport, say} from './report.ts';
import type {ReadsAnswer, ReadsOptions} from './stalls-reads.ts';

const blocks = 20_000;
const tenantId = 'c'.repeat(32);
const timelineId = 'a'.repeat(32);
/** Of reads with compaction and without, in turn. */
const phaseMs = 1000;

interface Turns {
  readonly wall: number[];
  readonly cpu: number[];
}

export async function stalls(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      megabytes: {type: 'string', default: '600'},
      l0: {type: 'string', default: '8'},
      reads: {type: 'boolean', default: false},
    },
  });
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-stalls-'));
  chmodSync(dir, 0o700);
  try {
    const context: PageserverContext = {
      clock: systemClock,
      random: systemRandom,
      store: new FolderObjectStore({root: dir, disk: systemDisk, random: systemRandom, nowMs: Date.now()}),
      cache: new BlockCache(64 << 20),
      log: silentLog,
      metrics: new PageserverMetrics(),
      limits: limitsWith({compaction: {l0Threshold: Number(options.l0)}}),
      memory: new MemoryBudget(1 << 30),
    };
    const tenant = await Tenant.attach(context, alwaysValid, tenantId, 1);
    const timeline = await tenant.createEmpty(timelineId, 15);
    await timeline.import(async (writer) => {
      writer.createDatabase(1663, 5, true, lsn(0x1000));
      return {lsn: lsn(0x1000), systemId: '7'};
    });
    const writer = await timeline.writer();
    let at = 0x2000;
    writer.createRelation(1663, 5, 1000, 0, lsn(at));
    writer.setRelationSize(1663, 5, 1000, 0, blocks, lsn(at));
    writer.endRecord(lsn(at));
    const random = new SeededRandom(7);
    const end = Number(options.megabytes) * 1e6;
    const ingest = await timed(async () => {
      for (let bytes = 0; bytes < end; bytes += blockSize) {
        const page = Buffer.alloc(blockSize, 'half of a page compresses ');
        random.bytes(blockSize / 2).copy(page, 24);
        at += 8200;
        writer.relationPageImage(1663, 5, 1000, 0, random.uint32() % blocks, lsn(at), page);
        writer.endRecord(lsn(at));
        if (!timeline.hasRoom) await timeline.waitForRoom();
        if ((bytes / blockSize) % 16 === 15) await new Promise(setImmediate); // as from the socket
      }
      await timeline.checkpoint();
    });
    const uploaded = context.metrics.layerBytesUploaded.value();
    say(`${(uploaded / 1e6).toFixed(0)} MB of layers uploaded`);
    if (options.reads) {
      await reads(context, timeline, lsn(at), dir);
      timeline.stop();
      return;
    }
    const compaction = await timed(async () => {
      while (await timeline.compactionStep()) await systemClock.sleep(0);
      await timeline.checkpoint();
    });
    const compacted = context.metrics.compactionBytes.value();
    say(`${(compacted / 1e6).toFixed(0)} MB written by compaction`);
    timeline.stop();
    printReport({
      name: 'stalls',
      uploadedBytes: uploaded,
      compactedBytes: compacted,
      ingest: {cpu: figures(ingest.cpu, uploaded), wall: figures(ingest.wall, uploaded)},
      compaction: {cpu: figures(compaction.cpu, compacted), wall: figures(compaction.wall, compacted)},
    });
  } finally {
    rmSync(dir, {recursive: true, force: true});
  }
}

async function reads(context: PageserverContext, timeline: Timeline, requestLsn: Lsn, dir: string): Promise<void> {
  const {clock, log, metrics} = context;
  const keysDir = join(dir, 'keys');
  await generateKeys(keysDir);
  const verifier = await TokenVerifier.load(keysDir, 'pageserver', clock);
  const issuer = await TokenIssuer.load(keysDir, 'control', clock);
  const isLatest = async (): Promise<boolean> => true;
  const readers = new Readers();
  const service = await listenFrames({host: '127.0.0.1', port: 0}, (connection) =>
    servePages(connection, {verifier, findTimeline: () => timeline, isLatest, readers, clock, log, metrics}),
  );
  const token = await issuer.sign({aud: 'pageserver', scope: 'tenant', tenant: tenantId, timeline: timelineId});
  const rel = {spcNode: 1663, dbNode: 5, relNode: 1000, fork: 0} as const;
  const workerData: ReadsOptions = {port: service.port, token, tenantId, timelineId, rel, blocks, requestLsn};
  const client = new Worker(new URL('./stalls-reads.ts', import.meta.url), {workerData});
  /** Of the requests since the last call. */
  const taken = async (): Promise<ReadsAnswer> => {
    const answer = once(client, 'message'); // rejects when the thread ends with an error
    client.postMessage('taken');
    return ((await answer) as [ReadsAnswer])[0];
  };
  try {
    const without: number[] = [];
    const beside: number[] = [];
    let notSent = 0;
    await clock.sleep(2 * phaseMs);
    await taken(); // the first ones compile the code
    for (let more = true; more;) {
      for (const until = performance.now() + phaseMs; more && performance.now() < until; await clock.sleep(0))
        more = await timeline.compactionStep();
      const busy = await taken();
      await timeline.checkpoint();
      await taken();
      await clock.sleep(phaseMs);
      const idle = await taken();
      beside.push(...busy.ms);
      without.push(...idle.ms);
      notSent += busy.notSent + idle.notSent;
    }
    const p99Ms = percentile(beside, 99);
    const p99MsWithout = percentile(without, 99);
    printReport({
      name: 'stalls-reads',
      ratio: p99MsWithout / p99Ms,
      p50Ms: percentile(beside, 50),
      p99Ms,
      maxMs: percentile(beside, 100),
      reads: beside.length,
      notSent,
      compactedBytes: metrics.compactionBytes.value(),
      without: {
        p50Ms: percentile(without, 50),
        p99Ms: p99MsWithout,
        maxMs: percentile(without, 100),
        reads: without.length,
      },
    });
  } finally {
    await client.terminate();
    await service.close();
  }
}

/** Milliseconds of each turn of the event loop while `work` runs. */
async function timed(work: () => Promise<void>): Promise<Turns> {
  const turns: Turns = {wall: [], cpu: []};
  const cpuMs = (): number => {
    const {user, system} = process.threadCpuUsage();
    return (user + system) / 1000;
  };
  let wall = performance.now();
  let cpu = cpuMs();
  let timer: NodeJS.Timeout;
  const tick = (): void => {
    const now = performance.now();
    const used = cpuMs();
    turns.wall.push(now - wall);
    turns.cpu.push(used - cpu);
    wall = now;
    cpu = used;
    timer = setTimeout(tick, 0);
  };
  timer = setTimeout(tick, 0);
  await work();
  clearTimeout(timer);
  return turns;
}

function figures(turns: readonly number[], bytes: number): Record<string, number> {
  return {
    waitP50Ms: waitPercentile(turns, 0.5),
    waitP99Ms: waitPercentile(turns, 0.99),
    maxMs: turns.reduce((max, ms) => Math.max(max, ms), 0),
    above10Ms: turns.filter((ms) => ms > 10).reduce((sum, ms) => sum + ms, 0) / (bytes / 1e9),
  };
}

/** Of a request that arrives at any moment and waits for the end of the turn. */
function waitPercentile(turns: readonly number[], share: number): number {
  const total = turns.reduce((sum, ms) => sum + ms, 0);
  let low = 0;
  let high = turns.reduce((max, ms) => Math.max(max, ms), 0);
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2;
    const longer = turns.reduce((sum, ms) => sum + Math.max(0, ms - middle), 0) / total;
    if (longer > 1 - share) low = middle;
    else high = middle;
  }
  return high;
}
