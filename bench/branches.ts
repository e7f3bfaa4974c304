/**
 * `npm run bench -- branches`: many branches on one pageserver (in this process, over a folder): time to make one, time to
 * attach them all again as after a restart, and memory for each that rests, timers and ingest driver included.
 *
 *   --branches N   default 10,000
 *   --written N    of which so many have a layer of their own, default 1,000
 *   --archived N   of which so many are archived before the restart, default 0
 */
import {chmodSync, mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {alwaysValid} from '#pageserver/generation-validator.ts';
import {BlockCache} from '#pageserver/layers/block-cache.ts';
import {PageserverMetrics} from '#pageserver/metrics.ts';
import {Pageserver} from '#pageserver/pageserver.ts';
import {MemoryBudget} from '#pageserver/timeline/memory-budget.ts';
import {type PageserverContext, limitsWith} from '#pageserver/timeline/state.ts';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import {lsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import {systemRandom} from '#runtime/random.ts';
import {collectGarbage} from './collect-garbage.ts';
import {median, printReport, say} from './report.ts';

const tenantId = 'c'.repeat(32);
const root = 'a'.repeat(32);

export async function branches(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      branches: {type: 'string', default: '10000'},
      written: {type: 'string', default: '1000'},
      archived: {type: 'string', default: '0'},
    },
  });
  const count = Number(options.branches);
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-branches-'));
  chmodSync(dir, 0o700);
  try {
    const first = pageserver(dir);
    const tenant = await first.attach(tenantId, 1);
    const timeline = await tenant.createEmpty(root, 15);
    await timeline.import(async (writer) => {
      writer.createDatabase(1663, 5, true, lsn(0x1000));
      return {lsn: lsn(0x1000), systemId: '7'};
    });
    const times: number[] = [];
    for (let i = 0; i < count; i++) {
      const started = performance.now();
      const branch = await tenant.createBranch((i + 1).toString(16).padStart(32, '0'), root, undefined);
      times.push(performance.now() - started);
      if (i < Number(options.written)) {
        const writer = await branch.writer();
        const at = lsn(0x2000 + i * 8);
        writer.slruPageImage(0, 3, at, systemRandom.bytes(8192));
        writer.endRecord(at);
        await branch.checkpoint();
      }
    }
    for (let i = count; i > count - Number(options.archived); i--)
      await tenant.archive(i.toString(16).padStart(32, '0'), lsn(0x1000));
    await first.stop(60_000);
    times.sort((x, y) => x - y);

    const before = memory();
    const started = performance.now();
    const second = pageserver(dir);
    await second.attach(tenantId, 2);
    const startMs = performance.now() - started;
    await systemClock.sleep(200);
    const bytes = (memory() - before) / count;
    say(`${second.tenant(tenantId).timelines().length} timelines are there`);
    await second.stop(1000);
    printReport({
      name: 'branches',
      p50Ms: median(times),
      p99Ms: times[Math.floor(times.length * 0.99)]!,
      branches: count,
      archived: Number(options.archived),
      startMs,
      bytesPerBranch: bytes,
    });
  } finally {
    rmSync(dir, {recursive: true, force: true});
  }
}

function memory(): number {
  collectGarbage();
  collectGarbage();
  const {heapUsed, external} = process.memoryUsage();
  return heapUsed + external;
}

function pageserver(dir: string): Pageserver {
  const context: PageserverContext = {
    clock: systemClock,
    random: systemRandom,
    store: new FolderObjectStore({root: dir, disk: systemDisk, random: systemRandom, nowMs: Date.now()}),
    cache: new BlockCache(1 << 20),
    log: silentLog,
    metrics: new PageserverMetrics(),
    limits: limitsWith({}),
    memory: new MemoryBudget(512 << 20),
  };
  return new Pageserver({
    context,
    validator: alwaysValid,
    clock: systemClock,
    hasLocalCache: false,
    log: silentLog,
    safekeeperToken: () => Promise.reject(new Error('there is no safekeeper')),
  });
}
