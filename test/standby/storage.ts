/** Our side of the comparison: a data directory and its WAL become a timeline in an object store, by production code alone. */
import {importDataDirectory} from '#pageserver/ingest/import.ts';
import {RecordIngest} from '#pageserver/ingest/record-ingest.ts';
import {Background} from '#pageserver/background.ts';
import {alwaysValid} from '#pageserver/generation-validator.ts';
import {BlockCache} from '#pageserver/layers/block-cache.ts';
import {PageserverMetrics} from '#pageserver/metrics.ts';
import {MemoryBudget} from '#pageserver/timeline/memory-budget.ts';
import {type LimitChanges, type PageserverContext, limitsWith} from '#pageserver/timeline/state.ts';
import {Tenant} from '#pageserver/timeline/tenant.ts';
import type {Timeline} from '#pageserver/timeline/timeline.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import type {Lsn} from '#postgres/lsn.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import {readWal} from './wal.ts';

export interface StorageOptions {
  readonly store: ObjectStore;
  readonly random: Random;
  readonly layerBytes: number;
  readonly limits?: LimitChanges;
  /**
   * Compaction at every layer, GC all the time, a block cache that holds nothing for long; only what keep() was told last is
   * kept.
   */
  readonly churn?: boolean;
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

export class Storage {
  readonly #context: PageserverContext;
  readonly #random: Random;
  readonly #tenantId: string;
  readonly #timelineId: string;
  #tenant: Tenant | undefined;
  #generation: number;
  #branches = 0;
  #background: Background | undefined;
  #held: readonly Lsn[] = [];

  constructor(options: StorageOptions) {
    this.#random = options.random;
    this.#tenantId = options.existing?.tenantId ?? '0123456789abcdef0123456789abcdef';
    this.#timelineId = options.existing?.timelineId ?? 'a'.repeat(32);
    this.#generation = options.existing?.generation ?? 0;
    this.#context = {
      clock: systemClock,
      random: options.random,
      store: options.store,
      cache: new BlockCache(options.churn === true ? 4 << 20 : 256 << 20),
      log: silentLog,
      metrics: new PageserverMetrics(),
      // Few sizes in memory, so that ingest has to load them from layers now and then.
      limits: limitsWith({
        layerBytes: options.layerBytes,
        layerAgeMs: 3_600_000,
        frozenLayersMax: 3,
        relationSizesMax: 500,
        // Nobody compacts here: ingest must not wait for it.
        ...(options.churn === true ? churnLimits : {compaction: {enabled: false}}),
        ...options.limits,
      }),
      memory: new MemoryBudget(512 << 20),
    };
    if (options.churn === true)
      this.#background = new Background(this.#context, () => (this.#tenant === undefined ? [] : [this.#tenant]));
  }

  get timeline(): Timeline {
    return this.#tenant!.timeline(this.#timelineId);
  }

  /** Lets go of everything in memory without saving it, and attaches the tenant anew from the object store. */
  async attach(): Promise<Timeline> {
    await this.#tenant?.detach();
    this.#tenant = await Tenant.attach(this.#context, alwaysValid, this.#tenantId, ++this.#generation);
    this.#churn();
    return this.timeline;
  }

  /**
   * Archives the timeline and its branches, lets go of everything, attaches the tenant anew from the object store alone, and wakes
   * the timeline; the branches sleep on.
   */
  async sleepAndWake(): Promise<void> {
    const tenant = this.#tenant!;
    const archive = async (): Promise<void> => {
      const branches = tenant.timelines().filter(({timelineId}) => timelineId !== this.#timelineId);
      for (const {timelineId, lastRecordLsn} of [...branches, this.timeline])
        await tenant.archive(timelineId, lastRecordLsn);
    };
    await (this.#background === undefined ? archive() : this.#background.alone(archive));
    await tenant.detach();
    this.#tenant = await Tenant.attach(this.#context, alwaysValid, this.#tenantId, ++this.#generation);
    if (this.#tenant.timelines().length > 0) throw new Error('what was archived is awake after a restart');
    await this.#tenant.wake(this.#timelineId);
    this.#churn();
  }

  /** With `churn`: everything from `from` on will be read, and the single `points`; the rest is garbage from now on. */
  async keep(from: Lsn, points: readonly Lsn[]): Promise<void> {
    this.#held = points;
    this.#churn();
    if (this.#background === undefined) return;
    const {timeline} = this;
    await timeline.setRetention({windowSeconds: 0, windowBytes: timeline.lastRecordLsn - from});
    // GC and what it sets going runs while pages are compared; here it gets a start.
    await this.#context.clock.sleep(1000);
  }

  /** Steps of compaction and layers collected so far. */
  get churned(): {readonly steps: number; readonly collected: number} {
    const {compactionSteps, layersCollected} = this.#context.metrics;
    return {steps: compactionSteps.value(), collected: layersCollected.value()};
  }

  #churn(): void {
    const background = this.#background;
    if (background === undefined) return;
    const {timeline} = this;
    // As leases that never end; taken before their time has come.
    timeline.state.leases.clear();
    for (const at of this.#held) timeline.state.leases.set(at, Number.MAX_SAFE_INTEGER);
    timeline.state.onLayerAdded = () => background.wake(timeline);
  }

  /** Imports a cleanly stopped cluster; answers the LSN at which the timeline begins. */
  async import(dataDir: string): Promise<Lsn> {
    this.#tenant = await Tenant.attach(this.#context, alwaysValid, this.#tenantId, ++this.#generation);
    const timeline = await this.#tenant.createEmpty(this.#timelineId, 15);
    return timeline.import(async (writer) => {
      const result = await importDataDirectory({
        source: tarDataDirectory(systemDisk, dataDir),
        sink: writer,
        pauseBytes: 1 << 20,
        pause: async () => {
          if (writer.importStep()) await timeline.waitForRoom();
        },
      });
      return {lsn: result.lsn, systemId: String(result.systemId), lastRecordStartLsn: result.lastRecordStartLsn};
    });
  }

  /**
   * Ingests the WAL to its end. At each of the LSNs `restartAt` the timeline is thrown out of memory and loaded again from the
   * object store, and ingest goes on where that had got. At the end everything is in layers and nothing in memory.
   */
  async ingest(walDir: string, restartAt: readonly Lsn[]): Promise<Lsn> {
    const restarts = [...restartAt];
    for (;;) {
      const restart = restarts.shift();
      await this.#ingestUntil(walDir, restart);
      if (restart === undefined) break;
      await this.attach();
    }
    await this.timeline.checkpoint();
    await this.attach();
    return this.timeline.lastRecordLsn;
  }

  async #ingestUntil(walDir: string, until: Lsn | undefined): Promise<void> {
    const {timeline} = this;
    const from = timeline.lastRecordLsn;
    const records = await RecordIngest.load(timeline);
    const take = (record: WalRecord): Promise<void> | undefined => records.take(record);
    await readWal({walDir, startLsn: from, endLsn: until, random: this.#random, use: take});
  }

  /**
   * A new branch at an LSN: everything it answers comes from its ancestor. The one before goes, and with it what is kept of history
   * for it alone.
   */
  async branch(at: Lsn): Promise<Timeline> {
    const id = (number: number): string => number.toString(16).padStart(32, 'b');
    if (this.#branches > 0) await this.#tenant!.deleteTimeline(id(this.#branches));
    return this.#tenant!.createBranch(id(++this.#branches), this.#timelineId, at);
  }

  async close(): Promise<void> {
    await this.#background?.stop();
    await this.#tenant?.detach();
  }
}
