/**
 * The shared state of one timeline. Read path, write path and upload are separate files around it; each field says who
 * changes it. Everything runs on one event loop, and no function leaves the state half changed when it awaits.
 *
 *   puts → open → frozen (oldest first) → layers (files in the object store) → ancestor at its branch LSN
 *
 * Invariants
 *  1. Every value at an LSN ≤ lastRecordLsn of this timeline's own history is in exactly one of open, frozen, layers (a
 *     layer file is added in the same turn of the event loop in which its frozen layer leaves).
 *  2. remoteConsistentLsn ≤ diskConsistentLsn ≤ lastRecordLsn.
 *  3. lastRecordLsn never falls while the timeline is loaded, and advances only when a record has been put in whole.
 *  4. Nothing is read of the ancestor above ancestor.lsn.
 *  5. gcCutoffLsn never falls; a layer that is needed at or above it, at a branch point or under a lease is never taken away.
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {ForkNumber} from '#postgres/relation.ts';
import {type ShardIdentity, parseShardId, shardOf} from '#wire/shard.ts';
import {BlockCache} from '../layers/block-cache.ts';
import {LayerReader} from '../layers/layer-reader.ts';
import type {MemoryLayer} from '../layers/memory-layer.ts';
import type {PageserverMetrics} from '../metrics.ts';
import {
  type LayerDescription,
  type Retention,
  type SafekeeperNode,
  type TimelineLifecycle,
  layerObjectId,
  timelinePrefix,
} from './index-object.ts';
import {type CompactionLimits, defaultCompactionLimits} from './compaction-plan.ts';
import type {CommitTail} from './commit-times.ts';
import {LayerMap} from './layer-map.ts';
import type {MemoryBudget} from './memory-budget.ts';
import {RelSizeCache} from './sizes.ts';

/** What all timelines of a pageserver share. */
export interface PageserverContext {
  readonly clock: Clock;
  readonly random: Random;
  readonly store: ObjectStore;
  readonly cache: BlockCache;
  readonly log: Log;
  readonly metrics: PageserverMetrics;
  readonly limits: TimelineLimits;
  readonly memory: MemoryBudget;
}

export interface TimelineLimits {
  /** A memory layer is frozen when it holds this much. */
  readonly layerBytes: number;
  /** … or is this old and holds anything. */
  readonly layerAgeMs: number;
  /** How often a timeline that ingests is looked at whether WAL still comes: TimelineState.settled. */
  readonly settleMs: number;
  /** Frozen layers that wait for the object store before ingest has to wait. */
  readonly frozenLayersMax: number;
  /** Relation sizes kept in memory per timeline. */
  readonly relationSizesMax: number;
  /** The longest lease; after an attachment GC waits so long for holders to come back. */
  readonly leaseMsMax: number;
  /** How often GC looks at each timeline. */
  readonly gcPeriodMs: number;
  readonly compaction: CompactionLimits;
}

export const defaultLimits: TimelineLimits = {
  layerBytes: 64 * 1024 * 1024,
  layerAgeMs: 300_000,
  settleMs: 10_000,
  frozenLayersMax: 4,
  relationSizesMax: 50_000,
  leaseMsMax: 600_000,
  gcPeriodMs: 300_000,
  compaction: defaultCompactionLimits,
};

/** The same with some values changed. */
export type LimitChanges = Partial<Omit<TimelineLimits, 'compaction'>> & {
  readonly compaction?: Partial<CompactionLimits>;
};

export function limitsWith(changes: LimitChanges = {}): TimelineLimits {
  return {...defaultLimits, ...changes, compaction: {...defaultCompactionLimits, ...changes.compaction}};
}

export interface FrozenLayer {
  readonly id: number;
  readonly layer: MemoryLayer;
  /** Every record up to here was complete when the layer was frozen. */
  readonly consistentLsn: Lsn;
  /** Written as image layer(s) of an import. */
  readonly image: boolean;
  readonly complete: boolean;
  /** LayerDescription.continues. */
  readonly continues: boolean;
  /** TimelineState.logicalSizeBytes as of consistentLsn. */
  readonly logicalSizeBytes: number;
}

export class TimelineState {
  readonly context: PageserverContext;
  /** Of the shard: wire/shard.ts. */
  readonly tenantId: string;
  readonly shard: ShardIdentity;
  readonly timelineId: string;
  readonly pgVersion: number;
  /** Tenant: undefined from when the timeline is detached. */
  ancestor: {readonly state: TimelineState; readonly lsn: Lsn} | undefined;
  /** Tenant: the ancestor it was detached from, at initialLsn. */
  detachedFrom: string | undefined;
  /** Where the timeline's own history begins; an import sets it. */
  initialLsn: Lsn;

  /** Of the tenant's attachment. */
  readonly generation: number;
  /** Changed by the timeline's lifecycle. */
  lifecycle: TimelineLifecycle;
  systemId: string;

  /** Write path. */
  open: MemoryLayer | undefined;
  /** Write path adds at the end, upload takes away at the front. */
  readonly frozen: FrozenLayer[] = [];
  /** Upload adds, compaction and GC replace. */
  readonly layers = new LayerMap();
  /** Write path: end of the last record that is in whole. */
  lastRecordLsn: Lsn;
  /** Driver: where the record that ends at lastRecordLsn starts, when it was ingested by this process. */
  lastRecordStartLsn: Lsn | undefined;
  /** Safekeepers of the timeline, as the control plane told last; kept in the index. */
  safekeepers: readonly SafekeeperNode[];
  /** Upload: everything up to here is in layer files that are durable. */
  diskConsistentLsn: Lsn;
  /** Upload: … and in an index that was uploaded and validated. Safekeepers may trim WAL below it. */
  remoteConsistentLsn: Lsn;
  /** Write path: blocks of all forks times 8192. */
  logicalSizeBytes = 0;
  /** Upload: the same as of diskConsistentLsn; goes into the index. */
  durableLogicalSizeBytes = 0;
  /** Write path and read path. */
  readonly sizes: RelSizeCache;
  /** Why ingest of this timeline stopped; the driver sets it. */
  ingestError: string | undefined;
  /** Why no safekeeper gives WAL, once all have refused some times and until one gives it; the driver sets it, and asks on. */
  walError: string | undefined;
  nextFrozenId = 1;
  /** Upload, compaction: keys of objects that are being written and are in no index yet. */
  readonly writing = new Set<string>();
  /** Upload, compaction: LayerDescription.run of the next layer. */
  nextRun = 1;

  /** Management: how much history is to be kept. */
  retention: Retention;
  /** GC: kept-history.ts. */
  gcCutoffLsn: Lsn;
  /** kept-history.ts: LSN → monotonic time at which the lease ends. */
  readonly leases = new Map<Lsn, number>();
  /** Tenant: children, archived ones too → where each begins. */
  readonly branchPoints = new Map<string, Lsn>();
  /** Tenant: when the timeline was archived; it leaves memory with the index that says so. */
  archivedAtMs: number | undefined;
  /** Timeline: lastRecordLsn when next to no WAL had come of late; not known of one that has not ingested since it was loaded. */
  settledLsn: Lsn | undefined;
  /** Write path: commits that no layer holds yet, while the timeline ingests. */
  commitTail: CommitTail | undefined;
  /** Write path: freezes the open layer, when that can be done now. */
  freezeOpen: () => void = () => {};
  /** Whoever compacts: a layer was added. */
  onLayerAdded: () => void = () => {};
  /**
   * Upload: bytes of layers that ingest has written, at first those of the deltas that the index named; compaction spends on
   * images in proportion.
   */
  ingestedLayerBytes = 0;

  constructor(
    context: PageserverContext,
    options: {
      tenantId: string;
      timelineId: string;
      pgVersion: number;
      systemId: string;
      generation: number;
      lifecycle: TimelineLifecycle;
      ancestor: {readonly state: TimelineState; readonly lsn: Lsn} | undefined;
      detachedFrom?: string | undefined;
      initialLsn: Lsn;
      diskConsistentLsn: Lsn;
      safekeepers: readonly SafekeeperNode[];
      retention: Retention;
      gcCutoffLsn: Lsn;
    },
  ) {
    this.context = context;
    this.tenantId = options.tenantId;
    this.shard = parseShardId(options.tenantId);
    this.timelineId = options.timelineId;
    this.pgVersion = options.pgVersion;
    this.systemId = options.systemId;
    this.generation = options.generation;
    this.lifecycle = options.lifecycle;
    this.ancestor = options.ancestor;
    this.detachedFrom = options.detachedFrom;
    this.initialLsn = options.initialLsn;
    this.safekeepers = options.safekeepers;
    this.retention = options.retention;
    this.gcCutoffLsn = options.gcCutoffLsn;
    this.lastRecordLsn = options.diskConsistentLsn;
    this.diskConsistentLsn = options.diskConsistentLsn;
    this.remoteConsistentLsn = options.diskConsistentLsn;
    this.sizes = new RelSizeCache(context.limits.relationSizesMax);
  }

  /** `tenant … timeline …`: how every error of the timeline begins. */
  get name(): string {
    return `tenant ${this.tenantId} timeline ${this.timelineId}`;
  }

  describe(at: Lsn): string {
    return `${this.name} at ${formatLsn(at)}`;
  }

  /** Whether this shard keeps the block. */
  ownsBlock(relNode: number, fork: ForkNumber, block: number): boolean {
    const {count, number} = this.shard;
    return count === 1 || shardOf(count, relNode, fork, block) === number;
  }

  /** Whether this shard keeps what is no page of a relation's main fork, beside sizes and what ingest itself needs. */
  get isFirstShard(): boolean {
    return this.shard.number === 0;
  }

  /** Less than this much WAL in settleMs is next to none. */
  get settledWalBytes(): number {
    return this.context.limits.layerBytes / 64;
  }

  /** No load is under way: what it wrote is worth another look. */
  get isSettled(): boolean {
    return this.settledLsn !== undefined && this.lastRecordLsn - this.settledLsn <= this.settledWalBytes;
  }

  setLogicalSize(bytes: number): void {
    this.logicalSizeBytes = bytes;
    this.durableLogicalSizeBytes = bytes;
  }

  openReader(description: LayerDescription): LayerReader {
    const {store, cache, metrics, log} = this.context;
    const owner = description.timelineId ?? this.timelineId;
    return new LayerReader({
      description,
      store,
      cache,
      objectKey: timelinePrefix(this.tenantId, owner) + description.name,
      objectId: layerObjectId(this.tenantId, owner, description.name),
      onRead: (bytes) => {
        metrics.objectReads.inc();
        metrics.objectReadBytes.inc(bytes);
      },
      onRepair: (damage) => {
        metrics.blocksRepaired.inc();
        log.error('a block was damaged and is whole again after another read', {reason: damage.message});
      },
    });
  }
}
