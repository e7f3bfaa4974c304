/** Our side of the comparison: a data directory and its WAL become a timeline in an object store, by production code alone. */
import {rmSync} from 'node:fs';
import {join} from 'node:path';
import {importDataDirectory} from '#pageserver/ingest/import.ts';
import {RecordIngest} from '#pageserver/ingest/record-ingest.ts';
import {BlockCache} from '#pageserver/layers/block-cache.ts';
import {PageserverMetrics} from '#pageserver/metrics.ts';
import {MemoryBudget} from '#pageserver/timeline/memory-budget.ts';
import {type LimitChanges, type PageserverContext, limitsWith} from '#pageserver/timeline/state.ts';
import type {Timeline} from '#pageserver/timeline/timeline.ts';
import {CachingObjectStore} from '#objectstore/caching-object-store.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import type {Lsn} from '#postgres/lsn.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import {shardIdsOf} from '#wire/shard.ts';
import {Fleet, type NodeParts} from './fleet.ts';
import {FollowingReader, type ReadCounts} from './reader.ts';
import {readWal} from './wal.ts';

export interface StorageOptions {
  readonly store: ObjectStore;
  readonly random: Random;
  readonly layerBytes: number;
  readonly limits?: LimitChanges;
  /**
   * Compaction at every layer, GC all the time, caches of blocks in memory and in this folder that hold nothing for long; only
   * what keep() was told last is kept.
   */
  readonly churnDir?: string | undefined;
  /** Over these the shards move; 1 unless said otherwise. */
  readonly pageservers?: number;
  readonly shards?: number;
  /** A timeline that is in the store already, of an attachment before this generation. */
  readonly existing?: {readonly tenantId: string; readonly timelineId: string; readonly generation: number};
}

const churnLimits: LimitChanges = {
  layerBytes: 1 << 20,
  leaseMsMax: 0,
  gcPeriodMs: 300,
  compaction: {
    l0Threshold: 2,
    l0BatchMax: 6,
    runsPerLevel: 2,
    targetBytes: 512 << 10,
    imageDepth: 2,
    imageVisits: 0,
    garbageRatio: 0.1,
  },
};

const churnCacheBytes = 4 << 20;
const churnLocalBytes = 2 << 20;

const detachMs = 10_000;

/** Between two moves of a shard, at most. */
const restMsMax = 1500;

export class Storage {
  readonly #options: StorageOptions;
  /** Of every start of a pageserver. */
  readonly #contexts: PageserverContext[] = [];
  readonly #localCaches: CachingObjectStore[] = [];
  readonly #fleet: Fleet;
  readonly #random: Random;
  readonly #shardIds: readonly string[];
  readonly #timelineId: string;
  #branches = 0;
  #archivings = 0;
  #detachments = 0;
  #held: readonly Lsn[] = [];
  /** What changes a shard happens one after the other. */
  #turn: Promise<void> = Promise.resolve();
  readonly reads: ReadCounts = {answers: [], stale: 0, sentOn: 0, runs: 0, packed: 0};

  constructor(options: StorageOptions) {
    const {random, pageservers = 1, shards = 1, existing} = options;
    this.#options = options;
    this.#random = random;
    this.#shardIds = shardIdsOf(existing?.tenantId ?? '0123456789abcdef0123456789abcdef', shards);
    this.#timelineId = existing?.timelineId ?? 'a'.repeat(32);
    this.#fleet = new Fleet(pageservers, (node) => this.#parts(node), existing?.generation ?? 0);
    this.#fleet.onLoaded = (tenant) => {
      if (tenant.has(this.#timelineId)) this.#isLoaded(tenant.timeline(this.#timelineId));
    };
  }

  /** Of a pageserver that starts: nothing in memory, an empty folder. */
  #parts(node: number): NodeParts {
    const {random, store, churnDir, layerBytes, limits} = this.#options;
    let local: CachingObjectStore | undefined;
    if (churnDir !== undefined) {
      const directory = join(churnDir, String(node));
      rmSync(directory, {recursive: true, force: true});
      local = new CachingObjectStore(store, {disk: systemDisk, directory, bytesMax: churnLocalBytes, log: silentLog});
      this.#localCaches.push(local);
    }
    const context: PageserverContext = {
      clock: systemClock,
      random,
      store: local ?? store,
      cache: new BlockCache(churnDir === undefined ? 256 << 20 : churnCacheBytes),
      log: silentLog,
      metrics: new PageserverMetrics(),
      // Few sizes in memory, so that ingest has to load them from layers now and then.
      limits: limitsWith({
        layerBytes,
        layerAgeMs: 3_600_000,
        frozenLayersMax: 3,
        relationSizesMax: 500,
        // Nobody compacts here: ingest must not wait for it.
        ...(churnDir === undefined ? {gcPeriodMs: 86_400_000, compaction: {enabled: false}} : churnLimits),
        ...limits,
      }),
      memory: new MemoryBudget(512 << 20),
    };
    this.#contexts.push(context);
    return {context, hasLocalCache: local !== undefined};
  }

  /** Of every shard. */
  #timelines(): Timeline[] {
    return this.#shardIds.map((id) => this.#fleet.tenant(id).timeline(this.#timelineId));
  }

  /** What all shards have taken in. */
  get lastRecordLsn(): Lsn {
    return Math.min(...this.#timelines().map((timeline) => timeline.lastRecordLsn)) as Lsn;
  }

  /** Of all shards. */
  size(): {readonly layers: number; readonly layerBytes: number} {
    const infos = this.#timelines().map((timeline) => timeline.info());
    return {
      layers: infos.reduce((sum, info) => sum + info.layers, 0),
      layerBytes: infos.reduce((sum, info) => sum + info.layerBytes, 0),
    };
  }

  /** Lets go of everything in memory without saving it, and attaches every shard anew from the object store. */
  async attach(): Promise<void> {
    await this.#each((id) => this.#fleet.attach(id));
  }

  reader(timelineId = this.#timelineId): FollowingReader {
    return new FollowingReader(this.#fleet, this.#shardIds, timelineId, this.reads);
  }

  /**
   * Archives the timeline and its branches, lets go of everything, attaches every shard anew from the object store alone, and wakes
   * the timeline; the branches sleep on.
   */
  async sleepAndWake(): Promise<void> {
    await this.#each(async (id) => {
      const before = this.#fleet.tenant(id);
      const branches = before.timelines().filter(({timelineId}) => timelineId !== this.#timelineId);
      for (const {timelineId, lastRecordLsn} of [...branches, before.timeline(this.#timelineId)])
        await this.#fleet.pageserver(id).archive(id, timelineId, lastRecordLsn);
      const tenant = await this.#fleet.attach(id);
      if (tenant.timelines().length > 0) throw new Error('what was archived is awake after a restart');
      this.#isLoaded(await tenant.wake(this.#timelineId));
    });
    this.#archivings++;
  }

  /** Every pageserver stops and starts again with an empty folder: what it answers from then on comes from the object store alone. */
  restart(): Promise<void> {
    return this.#inTurn(() => this.#fleet.restart(this.#shardIds));
  }

  /** With `churn`: everything from `from` on will be read, and the single `points`; the rest is garbage from now on. */
  async keep(from: Lsn, points: readonly Lsn[]): Promise<void> {
    await this.#each(async (id) => {
      this.#held = points;
      const timeline = this.#fleet.tenant(id).timeline(this.#timelineId);
      this.#isLoaded(timeline);
      await timeline.setRetention({windowSeconds: 0, windowBytes: timeline.lastRecordLsn - from});
    });
    // GC and what it sets going runs while pages are compared; here it gets a start.
    await systemClock.sleep(1000);
  }

  /** What happened so far. */
  get churned(): {
    readonly steps: number;
    readonly collected: number;
    /** Blocks from memory, and chunks of objects from local disk. */
    readonly evicted: number;
    readonly evictedLocally: number;
    readonly archivings: number;
    readonly restarts: number;
    readonly detachments: number;
    readonly moves: number;
    readonly taken: number;
    readonly refusals: number;
  } {
    const sum = (of: (metrics: PageserverMetrics) => number): number =>
      this.#contexts.reduce((total, {metrics}) => total + of(metrics), 0);
    return {
      steps: sum((m) => m.compactionSteps.value()),
      collected: sum((m) => m.layersCollected.value()),
      evicted: this.#contexts.reduce((total, {cache}) => total + cache.evictions, 0),
      evictedLocally: this.#localCaches.reduce((total, {counts}) => total + counts.evictions, 0),
      archivings: this.#archivings,
      restarts: this.#fleet.restarts,
      detachments: this.#detachments,
      moves: this.#fleet.migrations,
      taken: this.#fleet.failovers,
      refusals: this.#fleet.refusals,
    };
  }

  /** Shards move to and fro until `signal`: two migrations, then one is taken from its pageserver, which lives on. */
  async moveAbout(signal: AbortSignal): Promise<void> {
    for (let i = 0; !signal.aborted; i++) {
      const id = this.#shardIds[i % this.#shardIds.length]!;
      await this.#inTurn(() => (i % 3 === 2 ? this.#fleet.failOver(id) : this.#fleet.migrate(id)));
      await systemClock.sleep(this.#random.uint32() % restMsMax);
    }
  }

  /** In the turn in which it is loaded, before anything is done with it. */
  #isLoaded(timeline: Timeline): void {
    // WAL comes from here, and not only when somebody waits for it.
    timeline.onRelease = () => false;
    if (this.#options.churnDir === undefined) return;
    // As leases that never end; taken before their time has come.
    timeline.state.leases.clear();
    for (const at of this.#held) timeline.state.leases.set(at, Number.MAX_SAFE_INTEGER);
  }

  /** For every shard at once, in a turn of its own. */
  async #each(work: (shardId: string) => Promise<unknown>): Promise<void> {
    await this.#inTurn(() => Promise.all(this.#shardIds.map(work)));
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.then(
      () => {},
      () => {},
    );
    return result;
  }

  /** Imports a cleanly stopped cluster; answers the LSN at which the timeline begins. */
  async import(dataDir: string): Promise<Lsn> {
    await this.#each(async (id) => {
      const tenant = await this.#fleet.attach(id);
      const timeline = await tenant.createEmpty(this.#timelineId, 15);
      await timeline.import(async (writer) => {
        const result = await importDataDirectory({
          source: tarDataDirectory(systemDisk, dataDir),
          sink: writer,
          pauseBytes: 1 << 20,
          pause: async () => {
            if (writer.importStep()) await timeline.waitForRoom();
          },
        });
        return {
          lsn: result.lsn,
          systemId: String(result.systemId),
          lastRecordStartLsn: result.lastRecordStartLsn,
        };
      });
      tenant.imported(timeline);
      this.#isLoaded(timeline);
    });
    return this.lastRecordLsn;
  }

  /**
   * Ingests the WAL to its end. At each of the LSNs `restartAt` the timeline is thrown out of memory and loaded again from the
   * object store, by the next pageserver where there are several, and ingest goes on where that had got. At the end everything is
   * in layers and nothing in memory.
   */
  async ingest(walDir: string, restartAt: readonly Lsn[]): Promise<Lsn> {
    for (const [i, restart] of restartAt.entries()) {
      await this.#ingestUntil(walDir, restart);
      if (this.#fleet.size === 1) await this.attach();
      else await this.#each((id) => (i % 2 === 0 ? this.#fleet.failOver(id) : this.#fleet.migrate(id)));
    }
    await this.#ingestUntil(walDir, undefined);
    await Promise.all(this.#timelines().map((timeline) => timeline.checkpoint()));
    await this.attach();
    return this.lastRecordLsn;
  }

  async #ingestUntil(walDir: string, until: Lsn | undefined): Promise<void> {
    const shards = await Promise.all(
      this.#timelines().map(async (timeline) => ({timeline, records: await RecordIngest.load(timeline)})),
    );
    const take = (record: WalRecord): Promise<unknown> | undefined => {
      const waiting: Promise<void>[] = [];
      for (const {timeline, records} of shards) {
        if (record.endLsn <= timeline.lastRecordLsn) continue; // this shard had saved more than another
        const slow = records.take(record);
        if (slow !== undefined) waiting.push(slow);
      }
      return waiting.length === 0 ? undefined : Promise.all(waiting);
    };
    await readWal({walDir, startLsn: this.lastRecordLsn, endLsn: until, random: this.#random, use: take});
  }

  /**
   * A new branch at an LSN: everything it answers comes from its ancestor. The one before goes, and with it what is kept of history
   * for it alone. `detached`: it is made independent of its ancestor before it is read, and begins at the LSN.
   */
  async branch(at: Lsn, detached = false): Promise<FollowingReader> {
    const name = (number: number): string => number.toString(16).padStart(32, 'b');
    const before = this.#branches++;
    await this.#each(async (id) => {
      const tenant = this.#fleet.tenant(id);
      if (before > 0) await tenant.deleteTimeline(name(before));
      const branch = await tenant.createBranch(name(before + 1), this.#timelineId, at);
      while (detached && !(await this.#fleet.pageserver(id).detachAncestor(id, branch.timelineId, detachMs)));
    });
    if (detached) this.#detachments++;
    return this.reader(name(this.#branches));
  }

  async close(): Promise<void> {
    await this.#turn;
    await this.#fleet.stop();
    for (const local of this.#localCaches) local.close();
  }
}
