/**
 * One timeline (branch) of a tenant on this pageserver: its state, with the write path, the upload, compaction and GC around it;
 * what is read of it is readable-timeline.ts. What others use is here; how it works is in the files beside it.
 */
import type {Timer} from '#runtime/clock.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import {type Lsn, invalidLsn} from '#postgres/lsn.ts';
import {blockSize} from '#postgres/relation.ts';
import type {GenerationValidator} from '../generation-validator.ts';
import {Compactor} from './compaction.ts';
import {GarbageCollector} from './garbage-collector.ts';
import {
  type LayerDescription,
  type Retention,
  type TimelineIndex,
  type TimelineLifecycle,
  defaultRetention,
  timelinePrefix,
} from './index-object.ts';
import {lease, walNeededFrom} from './kept-history.ts';
import {keyKind, rangeOf, wholeKeySpace} from './key.ts';
import {read, tryBlobs} from './read-path.ts';
import {ReadableTimeline} from './readable-timeline.ts';
import {decodeSize} from './sizes.ts';
import {type PageserverContext, TimelineState} from './state.ts';
import {TimelineError} from './timeline-reader.ts';
import {Uploader} from './upload.ts';
import {TimelineWriter} from './write-path.ts';

/** What a timeline that has settled has in memory becomes a layer when it is this part of one. */
const settledLayerShare = 1 / 16;
/** Ingest waits so long, per layer it writes, for each layer that compaction is behind. */
const debtStepMs = 100;

export interface TimelineInfo {
  readonly timelineId: string;
  readonly state: TimelineLifecycle;
  readonly lastRecordLsn: Lsn;
  readonly diskConsistentLsn: Lsn;
  readonly remoteConsistentLsn: Lsn;
  readonly ancestorTimelineId?: string;
  readonly ancestorLsn?: Lsn;
  /** The timeline it branched from at initialLsn, when it was detached from it since. */
  readonly detachedFrom?: string;
  readonly initialLsn: Lsn;
  readonly pgVersion: number;
  readonly systemId: string;
  readonly logicalSizeBytes: number;
  readonly layers: number;
  readonly layerBytes: number;
  /** Layers that wait for compaction. */
  readonly l0Layers: number;
  readonly retention: Retention;
  /** History below is not kept, but for branch points and leases. */
  readonly gcCutoffLsn: Lsn;
  /** Archived WAL below can be trimmed; validated like remoteConsistentLsn. */
  readonly walNeededLsn: Lsn;
  readonly ingestError?: string;
  /** No safekeeper gives WAL now. */
  readonly walError?: string;
  readonly uploadError?: string;
  readonly compactionError?: string;
}

export class Timeline extends ReadableTimeline {
  #ancestor: Timeline | undefined;
  readonly #uploader: Uploader;
  readonly #compactor: Compactor;
  readonly #garbage: GarbageCollector;
  #writer: Promise<TimelineWriter> | undefined;
  #loadedWriter: TimelineWriter | undefined;
  #ageTimer: Timer | undefined;
  /** lookWhetherSettled() was called last at this LSN. */
  #lookedAtLsn: Lsn;
  #stopped = false;
  #importing = false;
  /** Ingest has frozen a layer while compaction is behind: it waits so long before it goes on. */
  #debtMs = 0;
  /** takeOverStep() goes on with this key. */
  #takenOver: Buffer | undefined;
  /** When what was in memory was last frozen. */
  #frozenMs: number;
  /** The driver of ingest forgets what it has in memory; false: it is at work. */
  onRelease: () => boolean = () => false;

  private constructor(
    state: TimelineState,
    ancestor: Timeline | undefined,
    validator: GenerationValidator,
    loaded: {generation: number; sequence: number; layers: readonly LayerDescription[]; consistentLsn: Lsn},
  ) {
    super(state);
    this.#ancestor = ancestor;
    this.#uploader = new Uploader(state, validator, loaded);
    this.#compactor = new Compactor(state, this.#uploader);
    this.#garbage = new GarbageCollector(state, this.#compactor);
    this.#lookedAtLsn = state.lastRecordLsn;
    this.#frozenMs = state.context.clock.monotonicMs();
    if (ancestor !== undefined && state.ancestor !== undefined)
      ancestor.state.branchPoints.set(state.timelineId, state.ancestor.lsn);
  }

  /** A new timeline: nothing is in the object store until saveIndex(). */
  static create(
    context: PageserverContext,
    validator: GenerationValidator,
    options: {
      tenantId: string;
      timelineId: string;
      pgVersion: number;
      generation: number;
      branch?: {ancestor: Timeline; lsn: Lsn};
    },
  ): Timeline {
    const {branch} = options;
    const state = new TimelineState(context, {
      tenantId: options.tenantId,
      timelineId: options.timelineId,
      pgVersion: branch?.ancestor.state.pgVersion ?? options.pgVersion,
      systemId: branch?.ancestor.state.systemId ?? '0',
      generation: options.generation,
      lifecycle: branch === undefined ? 'creating' : 'active',
      ancestor: branch && {state: branch.ancestor.state, lsn: branch.lsn},
      initialLsn: branch?.lsn ?? invalidLsn,
      diskConsistentLsn: branch?.lsn ?? invalidLsn,
      safekeepers: [],
      retention: branch?.ancestor.state.retention ?? defaultRetention,
      gcCutoffLsn: invalidLsn,
    });
    if (branch !== undefined) state.setLogicalSize(branch.ancestor.state.logicalSizeBytes);
    return new Timeline(state, branch?.ancestor, validator, {
      generation: options.generation,
      sequence: 0,
      layers: [],
      consistentLsn: state.diskConsistentLsn,
    });
  }

  /** A timeline as its index describes it; `generation` is the tenant's, not below the index's. */
  static load(
    context: PageserverContext,
    validator: GenerationValidator,
    index: TimelineIndex,
    generation: number,
    ancestor: Timeline | undefined,
  ): Timeline {
    const state = new TimelineState(context, {
      tenantId: index.tenantId,
      timelineId: index.timelineId,
      pgVersion: index.pgVersion,
      systemId: index.systemId,
      generation,
      lifecycle: index.lifecycle,
      ancestor: ancestor && {state: ancestor.state, lsn: index.ancestorLsn ?? invalidLsn},
      detachedFrom: index.detachedFrom,
      initialLsn: index.initialLsn,
      diskConsistentLsn: index.diskConsistentLsn,
      safekeepers: index.safekeepers,
      retention: index.retention,
      gcCutoffLsn: index.gcCutoffLsn,
    });
    state.setLogicalSize(index.logicalSizeBytes);
    const leasedUntil = context.clock.monotonicMs() + context.limits.leaseMsMax;
    for (const at of index.leases) state.leases.set(at, leasedUntil);
    state.layers.batch(() => {
      for (const description of index.layers) {
        state.layers.add(state.openReader(description));
        state.nextRun = Math.max(state.nextRun, description.run + 1);
        if (description.kind === 'delta') state.ingestedLayerBytes += description.size;
      }
    });
    return new Timeline(state, ancestor, validator, {
      generation: index.generation,
      sequence: index.sequence,
      layers: index.layers,
      consistentLsn: index.diskConsistentLsn,
    });
  }

  get ancestor(): Timeline | undefined {
    return this.#ancestor;
  }
  info(): TimelineInfo {
    const s = this.state;
    const uploadError = this.#uploader.lastFailure;
    const compactionError = this.#compactor.lastFailure;
    return {
      timelineId: s.timelineId,
      state: s.lifecycle,
      lastRecordLsn: s.lastRecordLsn,
      diskConsistentLsn: s.diskConsistentLsn,
      remoteConsistentLsn: s.remoteConsistentLsn,
      ...(s.ancestor === undefined
        ? {}
        : {ancestorTimelineId: s.ancestor.state.timelineId, ancestorLsn: s.ancestor.lsn}),
      ...(s.detachedFrom === undefined ? {} : {detachedFrom: s.detachedFrom}),
      initialLsn: s.initialLsn,
      pgVersion: s.pgVersion,
      systemId: s.systemId,
      logicalSizeBytes: s.logicalSizeBytes,
      layers: s.layers.count,
      layerBytes: s.layers.bytes,
      l0Layers: s.layers.l0Count,
      retention: s.retention,
      gcCutoffLsn: s.gcCutoffLsn,
      walNeededLsn: walNeededFrom(s),
      ...(s.ingestError === undefined ? {} : {ingestError: s.ingestError}),
      ...(s.walError === undefined ? {} : {walError: s.walError}),
      ...(uploadError === undefined ? {} : {uploadError}),
      ...(compactionError === undefined ? {} : {compactionError}),
    };
  }

  /** An import runs at this moment. */
  get isImporting(): boolean {
    return this.#importing;
  }

  // ---- writing

  /** The write path: one driver at a time. Loads what ingest needs in memory at the first call. */
  writer(): Promise<TimelineWriter> {
    this.#writer ??= TimelineWriter.load(this.state, {
      onAdvance: () => this.waiters.advanced(),
      onFrozen: () => this.#frozen(),
      onFarAhead: () => this.#freeze(),
    }).then(
      (writer) => {
        this.#startAgeTimer();
        return (this.#loadedWriter = writer);
      },
      (error: unknown) => {
        this.#writer = undefined;
        throw error;
      },
    );
    return this.#writer;
  }

  #frozen(): void {
    this.#uploader.layerFrozen(this.state.frozen.at(-1)!);
    const {l0SlowAt, enabled} = this.state.context.limits.compaction;
    const behind = this.state.layers.l0Count - l0SlowAt;
    if (enabled && behind >= 0) this.#debtMs = (behind + 1) * debtStepMs;
  }

  /**
   * Resolves when ingest may go on: few enough frozen layers wait for the object store, the process has memory, and
   * compaction is not too far behind; the further it is, the longer each layer's worth of WAL waits.
   */
  async waitForRoom(): Promise<void> {
    const {state} = this;
    const {limits, memory, clock} = state.context;
    if (state.frozen.length >= limits.frozenLayersMax) await this.#uploader.room(limits.frozenLayersMax);
    if (memory.isFull) await memory.room(() => this.#stopped);
    const {l0StopAt, enabled} = limits.compaction;
    for (let waited = 0; waited < this.#debtMs && !this.#stopped; waited += debtStepMs) {
      state.onLayerAdded();
      await clock.sleep(debtStepMs);
      if (enabled && state.layers.l0Count >= l0StopAt) waited -= debtStepMs;
    }
    this.#debtMs = 0;
  }

  get hasRoom(): boolean {
    const {frozen, context} = this.state;
    return frozen.length < context.limits.frozenLayersMax && this.#debtMs === 0 && !context.memory.isFull;
  }

  /** Fills an empty timeline: `fill` gives everything of a data directory to the sink at `lsn`, and answers the system id. */
  async import(
    fill: (writer: TimelineWriter) => Promise<{lsn: Lsn; systemId: string; lastRecordStartLsn?: Lsn}>,
  ): Promise<Lsn> {
    const {state} = this;
    if (state.lifecycle !== 'creating')
      throw new TimelineError(
        'bad-request',
        `${state.name}: the timeline is ${state.lifecycle}; only a new one can be filled`,
      );
    state.lifecycle = 'importing';
    this.#importing = true;
    try {
      const writer = await this.writer();
      writer.beginImport();
      const {lsn, systemId, lastRecordStartLsn} = await fill(writer);
      writer.endImport(lsn);
      state.lastRecordStartLsn = lastRecordStartLsn;
      state.systemId = systemId;
      state.initialLsn = lsn;
      await this.#uploader.published();
      state.lifecycle = 'active';
      await this.saveIndex();
      return lsn;
    } catch (error) {
      // What was put is of no use; the timeline must be deleted and created anew.
      state.ingestError = `the import failed: ${(error as Error).message}`;
      throw error;
    } finally {
      this.#importing = false;
    }
  }

  /**
   * A branch from an earlier point begins with the size that its ancestor has now: sets right by how much that was wrong.
   * `assumed`: what it began with.
   */
  async correctLogicalSize(assumed: number): Promise<void> {
    const {state} = this;
    const at = state.initialLsn;
    await this.waitForLsn(at);
    const blobs = await read(state, at, (pass) => tryBlobs(state, pass, rangeOf(keyKind.relSize), at));
    const real = blobs.reduce((sum, {bytes}) => sum + decodeSize(bytes).blocks, 0) * blockSize;
    state.logicalSizeBytes += real - assumed;
    state.durableLogicalSizeBytes += real - assumed;
    await this.saveIndex();
  }

  /** Uploads an index with the present state; resolves when it is durable. */
  saveIndex(): Promise<void> {
    return this.#uploader.indexChanged();
  }

  /** Freezes what is open, and resolves when everything is uploaded, indexed and validated. */
  async checkpoint(): Promise<void> {
    const {state} = this;
    if (state.lifecycle !== 'active')
      throw new TimelineError(
        'unavailable',
        `${state.name}: the timeline is ${state.lifecycle}, there is nothing to save`,
      );
    // In the middle of a long record (a database being copied) there is no point to stop at.
    while (this.#loadedWriter?.hasUnfinishedWork === true && state.ingestError === undefined)
      await state.context.clock.sleep(20);
    this.#freeze();
    await this.#uploader.published();
    // Behind the last layer there may be WAL that needs none.
    this.#saveEnd();
    await this.#uploader.published();
  }

  /** What is in memory goes on its way to the object store. */
  #freeze(): void {
    if (this.#loadedWriter?.hasUnfinishedWork === true || this.state.lifecycle !== 'active') return;
    this.#frozenMs = this.state.context.clock.monotonicMs();
    this.#loadedWriter?.freeze();
    this.#saveEnd();
  }

  /** Where nothing is in memory, the index alone tells how far ingest is. */
  #saveEnd(): void {
    const {open, frozen, lifecycle} = this.state;
    if (open !== undefined || frozen.length > 0 || lifecycle !== 'active') return;
    if (this.#loadedWriter?.isEmpty !== false) this.#uploader.nothingInMemory();
  }

  /** Before the process ends: saves what is open, so that the next one need not ingest it again. Ingest must have stopped. */
  async save(): Promise<void> {
    const writer = this.#loadedWriter;
    if (writer === undefined || this.state.lifecycle !== 'active' || writer.hasUnfinishedWork) return;
    this.#freeze();
    await this.#uploader.durable();
  }

  // ---- history

  /** See kept-history.ts; answers the milliseconds granted. Waits until the LSN is readable. */
  async lease(lsn: Lsn, ttlMs: number): Promise<number> {
    await this.waitForLsn(lsn);
    return lease(this.state, lsn, ttlMs);
  }

  async setRetention(retention: Retention): Promise<void> {
    const {state} = this;
    const same =
      retention.windowSeconds === state.retention.windowSeconds &&
      retention.windowBytes === state.retention.windowBytes;
    if (same) return;
    state.retention = retention;
    await this.saveIndex();
  }

  /**
   * Moves the GC cutoff to where the restore window begins, and removes what nobody can read any more. Not while step() runs.
   * Does nothing in the first leaseMsMax after the attachment: those who held leases come back.
   */
  async collectGarbage(): Promise<void> {
    if (this.#stopped || !this.isReadableAt(this.state.lastRecordLsn)) return;
    await this.#garbage.collect(() => this.#stopped);
  }

  // ---- leaving the ancestor

  /**
   * One step towards reading nothing of the ancestors any more; true: that is so. Never beside a step of compaction or GC.
   * Interrupted anywhere, the next call goes on: what is done is in the index like any image.
   */
  async takeOverStep(): Promise<boolean> {
    if (this.state.ancestor === undefined) return true;
    failpoint('pageserver.detach.step.before');
    const from: Buffer = this.#takenOver ?? wholeKeySpace.start;
    const next = await this.#compactor.takeOver(from);
    this.#takenOver = next;
    return next === undefined;
  }

  /**
   * After takeOverStep() said true, in the same turn: the timeline begins at its branch point, with no ancestor. Resolves when an
   * index that says so is durable and validated; then the ancestor may go.
   */
  async leaveAncestor(): Promise<void> {
    const {state} = this;
    if (state.ancestor !== undefined) {
      state.detachedFrom = state.ancestor.state.timelineId;
      state.ancestor = undefined;
      this.#ancestor = undefined;
    }
    failpoint('pageserver.detach.index.before');
    await this.saveIndex();
    failpoint('pageserver.detach.index.after');
    await this.#uploader.published();
  }

  /** compactionStep() would find something to do. */
  get hasCompactionWork(): boolean {
    return !this.#stopped && this.#compactor.hasWork;
  }

  /** Layers that wait for compaction: who has most goes first. */
  get compactionDebt(): number {
    return this.#stopped ? 0 : this.state.layers.l0Count;
  }

  /** One step of compaction; false: there is nothing to do. Rejects when the object store or a page does not allow it. */
  async compactionStep(): Promise<boolean> {
    if (this.#stopped || this.#uploader.isStale) return false;
    try {
      return await this.#compactor.step();
    } catch (error) {
      const passes =
        error instanceof ObjectStoreError || (error instanceof TimelineError && error.code === 'unavailable');
      if (!passes) this.#compactor.breakOff();
      throw error;
    }
  }

  /** Bytes that compaction has held in memory at once. */
  get compactionBytesHeldMax(): number {
    return this.#compactor.heldBytesMax;
  }

  /** Keys of what is in the object store and needed: by the next index, or until that is durable. */
  neededObjects(): string[] {
    const {tenantId, timelineId} = this.state;
    const {uploaded, replaced} = this.#uploader;
    return [
      ...uploaded.map(({name, timelineId: owner}) => timelinePrefix(tenantId, owner ?? timelineId) + name),
      ...replaced,
    ];
  }

  /** UploadQueue.safeIndex. */
  get safeIndex(): {readonly generation: number; readonly sequence: number} | undefined {
    return this.#uploader.safeIndex;
  }

  /** Forgets what only ingest needs; true: done. It is loaded again when WAL comes. */
  releaseIdle(): boolean {
    const {state} = this;
    const writer = this.#loadedWriter;
    if (writer === undefined || state.open !== undefined || state.frozen.length > 0 || !writer.isEmpty) return false;
    if (state.lifecycle !== 'active' || !this.#uploader.isIdle || !this.onRelease()) return false;
    this.#writer = undefined;
    this.#loadedWriter = undefined;
    this.#ageTimer?.cancel();
    state.commitTail = undefined;
    state.freezeOpen = () => {};
    state.sizes.clear();
    return true;
  }

  get isStopped(): boolean {
    return this.#stopped;
  }

  /** Ends timers and uploads. What is not uploaded is ingested again by whoever loads the timeline next. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#ageTimer?.cancel();
    this.#uploader.stop();
    this.waiters.stop();
    const {memory} = this.state.context;
    memory.setOpen(this.state, 0);
    for (const {layer} of this.state.frozen) memory.addFrozen(-layer.bytes);
    memory.wakeAll();
    for (const reader of this.state.layers.readers()) this.state.context.cache.forget(reader);
  }

  #startAgeTimer(): void {
    if (this.#stopped) return;
    const {clock, limits} = this.state.context;
    this.#ageTimer = clock.setTimer(Math.min(limits.layerAgeMs / 4, limits.settleMs), () => {
      if (clock.monotonicMs() - (this.state.open?.createdMs ?? this.#frozenMs) >= limits.layerAgeMs) this.#freeze();
      this.lookWhetherSettled();
      this.#startAgeTimer();
    });
  }

  /** Whether next to no WAL has come since the last call; then what is worth an image is made one. For the timer and tests. */
  lookWhetherSettled(): void {
    const {state} = this;
    const came = state.lastRecordLsn - this.#lookedAtLsn;
    this.#lookedAtLsn = state.lastRecordLsn;
    state.settledLsn = came <= state.settledWalBytes ? state.lastRecordLsn : undefined;
    if (!state.isSettled) return;
    if ((state.open?.bytes ?? 0) >= state.context.limits.layerBytes * settledLayerShare) this.#freeze();
    else if (this.#compactor.hasSettledWork) state.onLayerAdded();
  }
}
