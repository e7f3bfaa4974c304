/**
 * One timeline (branch) of a tenant on this pageserver: its state, with the read path, the write path and the upload around
 * it. What others use is here; how it works is in the files beside it.
 */
import type {Timer} from '#runtime/clock.ts';
import {type Lsn, formatLsn, invalidLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize} from '#postgres/relation.ts';
import type {SlruKind} from '#postgres/slru.ts';
import type {RelListEntry} from '#wire/pages.ts';
import type {GenerationValidator} from '../generation-validator.ts';
import {ReadPass} from '../layers/layer-reader.ts';
import {decodeCommitChunk} from './commit-times.ts';
import type {LayerDescription, TimelineIndex, TimelineLifecycle} from './index-object.ts';
import {type Key, checkpointStateKey, keyKind, rangeOf, relationMapKey, slruPrefix} from './key.ts';
import {
  buildPage,
  read,
  readOn,
  tryBlob,
  tryBlobs,
  tryCollect,
  tryRelInfo,
  tryRelPages,
  tryScanKeys,
} from './read-path.ts';
import {decodeSize} from './sizes.ts';
import {type PageserverContext, TimelineState} from './state.ts';
import {type DatabaseEntry, TimelineError, type TimelineReader} from './timeline-reader.ts';
import {Uploader} from './upload.ts';
import {valueKind} from './value.ts';
import {TimelineWriter, existingSlruPages, relOf} from './write-path.ts';

const waitMsDefault = 60_000;

interface LsnWaiter {
  readonly lsn: Lsn;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  readonly timer: Timer;
}

export interface TimelineInfo {
  readonly timelineId: string;
  readonly state: TimelineLifecycle;
  readonly lastRecordLsn: Lsn;
  readonly diskConsistentLsn: Lsn;
  readonly remoteConsistentLsn: Lsn;
  readonly ancestorTimelineId?: string;
  readonly ancestorLsn?: Lsn;
  readonly initialLsn: Lsn;
  readonly pgVersion: number;
  readonly systemId: string;
  readonly logicalSizeBytes: number;
  readonly layers: number;
  readonly layerBytes: number;
  readonly ingestError?: string;
  readonly uploadError?: string;
}

/** present: `lsn` is the end of the last commit before the first one later than the time. future: nothing is later. */
export interface LsnAtTime {
  readonly kind: 'present' | 'future' | 'past' | 'nodata';
  readonly lsn: Lsn;
}

export class Timeline implements TimelineReader {
  /** For the files of timeline/ and for tests; others use the methods. */
  readonly state: TimelineState;
  readonly ancestor: Timeline | undefined;
  readonly #uploader: Uploader;
  #writer: Promise<TimelineWriter> | undefined;
  #loadedWriter: TimelineWriter | undefined;
  #waiters: LsnWaiter[] = [];
  #ageTimer: Timer | undefined;
  #stopped = false;
  #importing = false;
  /** Children on this pageserver. */
  readonly children = new Set<string>();
  /** Somebody waits for WAL: set by the driver of ingest. */
  onWanted: () => void = () => {};

  private constructor(
    state: TimelineState,
    ancestor: Timeline | undefined,
    validator: GenerationValidator,
    loaded: {generation: number; sequence: number; layers: readonly LayerDescription[]; consistentLsn: Lsn},
  ) {
    this.state = state;
    this.ancestor = ancestor;
    this.#uploader = new Uploader(state, validator, loaded);
    ancestor?.children.add(state.timelineId);
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
      initialLsn: index.initialLsn,
      diskConsistentLsn: index.diskConsistentLsn,
      safekeepers: index.safekeepers,
    });
    state.setLogicalSize(index.logicalSizeBytes);
    for (const description of index.layers) state.layers.add(state.openReader(description));
    return new Timeline(state, ancestor, validator, {
      generation: index.generation,
      sequence: index.sequence,
      layers: index.layers,
      consistentLsn: index.diskConsistentLsn,
    });
  }

  get tenantId(): string {
    return this.state.tenantId;
  }
  get timelineId(): string {
    return this.state.timelineId;
  }
  get lastRecordLsn(): Lsn {
    return this.state.lastRecordLsn;
  }
  get remoteConsistentLsn(): Lsn {
    return this.state.remoteConsistentLsn;
  }
  get diskConsistentLsn(): Lsn {
    return this.state.diskConsistentLsn;
  }

  info(): TimelineInfo {
    const s = this.state;
    const uploadError = this.#uploader.lastFailure;
    return {
      timelineId: s.timelineId,
      state: s.lifecycle,
      lastRecordLsn: s.lastRecordLsn,
      diskConsistentLsn: s.diskConsistentLsn,
      remoteConsistentLsn: s.remoteConsistentLsn,
      ...(s.ancestor === undefined
        ? {}
        : {ancestorTimelineId: s.ancestor.state.timelineId, ancestorLsn: s.ancestor.lsn}),
      initialLsn: s.initialLsn,
      pgVersion: s.pgVersion,
      systemId: s.systemId,
      logicalSizeBytes: s.logicalSizeBytes,
      layers: s.layers.count,
      layerBytes: s.layers.readers().reduce((sum, reader) => sum + reader.description.size, 0),
      ...(s.ingestError === undefined ? {} : {ingestError: s.ingestError}),
      ...(uploadError === undefined ? {} : {uploadError}),
    };
  }

  /** An import runs at this moment. */
  get isImporting(): boolean {
    return this.#importing;
  }

  // ---- waiting

  /** See TimelineReader. */
  async waitForLsn(lsn: Lsn, timeoutMs = waitMsDefault): Promise<void> {
    if (!this.isReadableAt(lsn)) await this.#wait(lsn, timeoutMs);
  }

  /** No waiting is needed: this timeline and its ancestors have everything up to `lsn` that a read there needs. */
  isReadableAt(lsn: Lsn): boolean {
    const s = this.state;
    if (s.lifecycle !== 'active' || lsn > s.lastRecordLsn) return false;
    for (let a = s.ancestor; a !== undefined; a = a.state.ancestor) if (a.state.lastRecordLsn < a.lsn) return false;
    return true;
  }

  async #wait(lsn: Lsn, timeoutMs: number): Promise<void> {
    const s = this.state;
    if (s.lifecycle !== 'active')
      throw new TimelineError('unavailable', `${s.name}: the timeline is ${s.lifecycle}, it cannot be read`);
    // After a restart an ancestor may have to ingest again up to where this branch left it.
    if (this.ancestor !== undefined && s.ancestor !== undefined)
      await this.ancestor.waitForLsn(s.ancestor.lsn, timeoutMs);
    if (lsn <= s.lastRecordLsn) return;
    if (s.ingestError !== undefined) throw this.#stoppedAt(lsn, s.ingestError);
    this.onWanted();
    await new Promise<void>((resolve, reject) => {
      const timer = s.context.clock.setTimer(timeoutMs, () => {
        this.#waiters = this.#waiters.filter((w) => w !== waiter);
        reject(
          new TimelineError(
            'lsn-timeout',
            `${s.name}: LSN ${formatLsn(lsn)} was waited for ${timeoutMs} ms, ingest has reached ${formatLsn(s.lastRecordLsn)}; ` +
              'look at the safekeepers of the timeline and at the ingest lag of this pageserver',
          ),
        );
      });
      const waiter = {lsn, resolve, reject, timer};
      this.#waiters.push(waiter);
    });
  }

  #stoppedAt(lsn: Lsn, reason: string): TimelineError {
    return new TimelineError(
      'lsn-timeout',
      `${this.state.name}: LSN ${formatLsn(lsn)} will not be reached: ingest stopped at ${formatLsn(this.state.lastRecordLsn)}: ${reason}`,
    );
  }

  /** Ingest cannot go on: everybody who waits is told, reads up to lastRecordLsn go on. */
  ingestStopped(reason: string): void {
    this.state.ingestError = reason;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      waiter.timer.cancel();
      waiter.reject(this.#stoppedAt(waiter.lsn, reason));
    }
  }

  #advanced(): void {
    if (this.#waiters.length === 0) return;
    const reached = this.state.lastRecordLsn;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      if (waiter.lsn > reached) {
        this.#waiters.push(waiter);
        continue;
      }
      waiter.timer.cancel();
      waiter.resolve();
    }
  }

  // ---- reading

  async relSize(rel: RelTag, at: Lsn): Promise<number | undefined> {
    this.#checkReadable(at);
    const info = await read(this.state, (pass) => tryRelInfo(this.state, pass, rel, at));
    return info.blocks < 0 ? undefined : info.blocks;
  }

  /** Size when memory knows it: a number, null = does not exist, undefined = ask relSize(). */
  relSizeNow(rel: RelTag, at: Lsn): number | null | undefined {
    const info = this.isReadableAt(at) ? this.state.sizes.at(rel, at) : undefined;
    return info === undefined ? undefined : info.blocks < 0 ? null : info.blocks;
  }

  /**
   * Pages without a promise when everything is in memory; else a promise. Throws or rejects with TimelineError. The LSN must
   * be readable (isReadableAt).
   */
  getRelPagesNow(rel: RelTag, block: number, count: number, at: Lsn): Buffer[] | Promise<Buffer[]> {
    this.#checkReadable(at);
    const {state} = this;
    const pass = new ReadPass(state.context.cache);
    const pages = tryRelPages(state, pass, rel, block, count, at);
    const {layersPerRead} = state.context.metrics;
    if (pages !== undefined) {
      layersPerRead.observe(pass.layersVisited / pages.length);
      return pages;
    }
    return readOn(state, pass, () => tryRelPages(state, pass, rel, block, count, at)).then((slow) => {
      layersPerRead.observe(pass.layersVisited / slow.length);
      return slow;
    });
  }

  async getRelPages(rel: RelTag, block: number, count: number, at: Lsn): Promise<Buffer[]> {
    return this.getRelPagesNow(rel, block, count, at);
  }

  async listRelations(spcNode: number, dbNode: number, at: Lsn): Promise<RelListEntry[]> {
    this.#checkReadable(at);
    const range = spcNode === 0 ? rangeOf(keyKind.relSize) : rangeOf(keyKind.relSize, spcNode, dbNode);
    const blobs = await read(this.state, (pass) =>
      tryBlobs(this.state, pass, range, at, (key) => key.prefix.b === dbNode),
    );
    return blobs.map(({key, bytes}) => ({rel: relOf(key), blocks: decodeSize(bytes).blocks}));
  }

  /** Bytes of all forks of a database, in every tablespace. */
  async databaseSize(dbNode: number, at: Lsn): Promise<number> {
    const relations = await this.listRelations(0, dbNode, at);
    return relations.reduce((sum, entry) => sum + entry.blocks, 0) * blockSize;
  }

  async listDatabases(at: Lsn): Promise<DatabaseEntry[]> {
    this.#checkReadable(at);
    const blobs = await read(this.state, (pass) => tryBlobs(this.state, pass, rangeOf(keyKind.database), at));
    return blobs.map(({key, bytes}) => ({
      spcNode: key.prefix.a,
      dbNode: key.prefix.b,
      hasVersionFile: bytes[0] === 1,
    }));
  }

  relationMap(spcNode: number, dbNode: number, at: Lsn): Promise<Buffer | undefined> {
    return this.#blob(relationMapKey(spcNode, dbNode), at);
  }

  async slruPages(kind: SlruKind, at: Lsn): Promise<number[]> {
    this.#checkReadable(at);
    return existingSlruPages(this.state, kind, at);
  }

  async getSlruPages(kind: SlruKind, pages: readonly number[], at: Lsn): Promise<Buffer[]> {
    this.#checkReadable(at);
    const {state} = this;
    return read(state, (pass) => {
      const out: Buffer[] = [];
      let missing = false;
      for (const page of pages) {
        const values = tryCollect(state, pass, slruPrefix(kind), page, at, 0);
        if (values === undefined) {
          missing = true;
          continue;
        }
        if (values.length === 0 || values[0]!.kind === valueKind.tombstone)
          throw new TimelineError('not-found', `${state.describe(at)}: SLRU ${kind} has no page ${page}`);
        if (!missing) out.push(buildPage(state, values, at, () => `SLRU ${kind} page ${page}`));
      }
      return missing ? undefined : out;
    });
  }

  async twoPhaseFiles(at: Lsn): Promise<{xid: number; contents: Buffer}[]> {
    this.#checkReadable(at);
    const blobs = await read(this.state, (pass) => tryBlobs(this.state, pass, rangeOf(keyKind.twoPhase), at));
    return blobs.map(({key, bytes}) => ({xid: key.e, contents: bytes}));
  }

  async auxFiles(at: Lsn): Promise<{path: string; contents: Buffer}[]> {
    this.#checkReadable(at);
    const blobs = await read(this.state, (pass) => tryBlobs(this.state, pass, rangeOf(keyKind.auxFile), at));
    return blobs
      .map(({bytes}) => {
        const nameBytes = bytes.readUInt16LE(0);
        return {path: bytes.toString('utf8', 2, 2 + nameBytes), contents: bytes.subarray(2 + nameBytes)};
      })
      .sort((x, y) => (x.path < y.path ? -1 : 1));
  }

  checkpointState(at: Lsn): Promise<Buffer | undefined> {
    return this.#blob(checkpointStateKey, at);
  }

  /** The end of the last commit of which everything before is not later than the time (µs since 1970). */
  async lsnAtTime(unixMicroseconds: number): Promise<LsnAtTime> {
    const {state} = this;
    await this.waitForLsn(state.lastRecordLsn);
    return this.#lsnAtTime(unixMicroseconds, state.lastRecordLsn);
  }

  async #lsnAtTime(time: number, until: Lsn): Promise<LsnAtTime> {
    const {state} = this;
    const range = rangeOf(keyKind.commitTimes);
    const at = state.lastRecordLsn;
    // Chunks name their first commit: the list alone says where to search. The ancestor's are asked for there.
    const ownStart = state.ancestor?.lsn ?? invalidLsn;
    const keys = (await read(state, (pass) => tryScanKeys(state, pass, range, at))).filter(
      ({prefix}) => prefix.a * 4294967296 + prefix.b > ownStart,
    );
    const chunkOf = async (key: Key) => decodeCommitChunk((await this.#blob(key, at)) ?? Buffer.alloc(10));
    const tail = this.#loadedWriter?.commitTail.chunk();
    const first = keys.length > 0 ? await chunkOf(keys[0]!) : tail;
    if (first !== undefined && first.runningMaxBefore > time) return this.#lsnBefore(time, ownStart, until);
    // The last chunk before which nothing is later than the time: the first later commit is in it, or in the tail.
    let low = 0;
    let high = keys.length;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if ((await chunkOf(keys[middle]!)).runningMaxBefore > time) high = middle;
      else low = middle;
    }
    const candidates = [];
    for (let i = Math.max(0, low - 1); i < Math.min(low + 1, keys.length); i++)
      candidates.push(await chunkOf(keys[i]!));
    if (low + 1 >= keys.length && tail !== undefined) candidates.push(tail);
    let last: Lsn | undefined;
    for (const chunk of candidates)
      for (let i = 0; i < chunk.lsns.length; i++) {
        const lsn = chunk.lsns[i]!;
        if (lsn > until) break;
        if (chunk.times[i]! > time)
          return last === undefined ? this.#lsnBefore(time, ownStart, until) : {kind: 'present', lsn: last};
        last = lsn;
      }
    if (last !== undefined) return {kind: 'future', lsn: last};
    if (state.ancestor === undefined || this.ancestor === undefined) return {kind: 'nodata', lsn: state.lastRecordLsn};
    return this.ancestor.#lsnAtTime(time, min(until, state.ancestor.lsn));
  }

  /** The first commit of this timeline is later: what came before it decides. */
  async #lsnBefore(time: number, ownStart: Lsn, until: Lsn): Promise<LsnAtTime> {
    const {state, ancestor} = this;
    if (ancestor === undefined || state.ancestor === undefined) return {kind: 'past', lsn: state.initialLsn};
    const before = await ancestor.#lsnAtTime(time, min(until, ownStart));
    // All the ancestor's commits are early enough: the time lies between them and the first one here.
    return before.kind === 'future'
      ? {kind: 'present', lsn: before.lsn}
      : before.kind === 'nodata'
        ? {kind: 'past', lsn: ownStart}
        : before;
  }

  async #blob(key: Key, at: Lsn): Promise<Buffer | undefined> {
    this.#checkReadable(at);
    return (await read(this.state, (pass) => tryBlob(this.state, pass, key, at))) ?? undefined;
  }

  #checkReadable(at: Lsn): void {
    if (this.isReadableAt(at)) return;
    throw new TimelineError(
      'lsn-timeout',
      `${this.state.describe(at)}: not readable yet: the timeline is ${this.state.lifecycle} and has reached ${formatLsn(this.state.lastRecordLsn)}`,
    );
  }

  // ---- writing

  /** The write path: one driver at a time. Loads what ingest needs in memory at the first call. */
  writer(): Promise<TimelineWriter> {
    this.#writer ??= TimelineWriter.load(this.state, {
      onAdvance: () => this.#advanced(),
      onFrozen: () => this.#uploader.layerFrozen(this.state.frozen.at(-1)!),
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

  /** Resolves when few enough frozen layers wait for the object store: back-pressure for ingest. */
  waitForRoom(): Promise<void> {
    const {frozen, context} = this.state;
    return frozen.length < context.limits.frozenLayersMax
      ? Promise.resolve()
      : this.#uploader.room(context.limits.frozenLayersMax);
  }

  get hasRoom(): boolean {
    return this.state.frozen.length < this.state.context.limits.frozenLayersMax;
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
    if (this.#loadedWriter?.hasUnfinishedWork === false) this.#loadedWriter.freeze();
    await this.#uploader.published();
  }

  /** Before the process ends: saves what is open, so that the next one need not ingest it again. Ingest must have stopped. */
  async save(): Promise<void> {
    const writer = this.#loadedWriter;
    if (writer === undefined || this.state.lifecycle !== 'active' || writer.hasUnfinishedWork) return;
    writer.freeze();
    await this.#uploader.durable();
  }

  setGeneration(generation: number): void {
    this.state.generation = generation;
    this.#uploader.generationChanged();
  }

  /** Ends timers and uploads. What is not uploaded is ingested again by whoever loads the timeline next. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#ageTimer?.cancel();
    this.#uploader.stop();
    this.ancestor?.children.delete(this.timelineId);
    for (const waiter of this.#waiters) {
      waiter.timer.cancel();
      waiter.reject(new TimelineError('unavailable', `${this.state.name}: the timeline is being stopped`));
    }
    this.#waiters = [];
    for (const reader of this.state.layers.readers()) this.state.context.cache.forget(reader);
  }

  #startAgeTimer(): void {
    const {clock, limits} = this.state.context;
    this.#ageTimer = clock.setTimer(limits.layerAgeMs / 4, () => {
      if (this.#stopped) return;
      const {open, lifecycle} = this.state;
      if (
        open !== undefined &&
        lifecycle === 'active' &&
        this.#loadedWriter?.hasUnfinishedWork === false &&
        clock.monotonicMs() - open.createdMs >= limits.layerAgeMs
      )
        this.#loadedWriter.freeze();
      this.#startAgeTimer();
    });
  }
}

function min(x: Lsn, y: Lsn): Lsn {
  return x < y ? x : y;
}
