/** Does what UploadQueue says: builds layer files, puts objects, asks for validation; tries again until it works. */
import {failpoint} from '#runtime/failpoint.ts';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import type {GenerationValidator} from '../generation-validator.ts';
import {layerFlagImage, objectIdentity} from '../layers/layer-format.ts';
import {type FinishedLayer, LayerWriter, joinPieces} from '../layers/layer-writer.ts';
import type {MemoryLayer} from '../layers/memory-layer.ts';
import {
  type LayerDescription,
  type TimelineIndex,
  encodeIndex,
  indexObjectKey,
  layerName,
  layerObjectId,
  timelinePrefix,
} from './index-object.ts';
import type {FrozenLayer, TimelineState} from './state.ts';
import {type UploadInput, type UploadOutput, UploadQueue} from './upload-queue.ts';

const retryDelayMsFirst = 100;
const retryDelayMsMax = 10_000;
/** Building a layer lets other work run after this many bytes. */
const buildStepBytes = 1024 * 1024;

interface Waiter {
  readonly done: () => boolean;
  /** Gives up when the generation turns out stale. */
  readonly needsGeneration: boolean;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class Uploader {
  readonly #state: TimelineState;
  readonly #validator: GenerationValidator;
  readonly #queue: UploadQueue;
  /** Layers are built and put one after the other: their memory is bounded, and reads switch over in order. */
  #layerWork: Promise<void> = Promise.resolve();
  #stopped = false;
  #waiters: Waiter[] = [];
  /** Sequence of the last index that is durable. */
  #indexSequence: number;
  #lastFailure: string | undefined;

  constructor(
    state: TimelineState,
    validator: GenerationValidator,
    loaded: {generation: number; sequence: number; layers: readonly LayerDescription[]; consistentLsn: Lsn},
  ) {
    this.#state = state;
    this.#validator = validator;
    this.#indexSequence = loaded.sequence;
    this.#queue = new UploadQueue(loaded, state.generation, (generation, sequence) =>
      indexObjectKey(state.tenantId, state.timelineId, generation, sequence),
    );
  }

  get isIdle(): boolean {
    return this.#queue.isIdle;
  }
  get isStale(): boolean {
    return this.#queue.isStale;
  }
  /** UploadQueue.uploaded. */
  get uploaded(): readonly LayerDescription[] {
    return this.#queue.uploaded;
  }
  /** UploadQueue.replaced. */
  get replaced(): string[] {
    return this.#queue.replaced;
  }
  /** UploadQueue.safeIndex. */
  get safeIndex(): {readonly generation: number; readonly sequence: number} | undefined {
    return this.#queue.safeIndex;
  }
  /** Why the last try failed, while it has not been made good. */
  get lastFailure(): string | undefined {
    return this.#lastFailure;
  }

  /** A layer was frozen (the last of state.frozen). */
  layerFrozen(frozen: FrozenLayer): void {
    this.#step({kind: 'layer-frozen', id: frozen.id, consistentLsn: frozen.consistentLsn});
  }

  /** No value is in memory: the last record is as durable as the layers are, which the next index says. */
  nothingInMemory(): void {
    const state = this.#state;
    if (this.#stopped || state.lastRecordLsn <= state.diskConsistentLsn) return;
    state.diskConsistentLsn = state.lastRecordLsn;
    this.#step({kind: 'advanced', consistentLsn: state.lastRecordLsn});
  }

  /** Compaction or GC: in one turn, readers find everything in the new arrangement, and the next index has it. */
  replaceLayers(change: {
    added: readonly LayerDescription[];
    removed: readonly LayerDescription[];
    narrowed: readonly LayerDescription[];
  }): void {
    const state = this.#state;
    if (this.#stopped) return;
    const objects: string[] = [];
    state.layers.batch(() => {
      for (const {name, timelineId} of change.removed) {
        const reader = state.layers.remove(name);
        reader.retired = true;
        state.context.cache.forget(reader);
        // The object of another timeline is that one's to delete.
        if (timelineId === undefined) objects.push(reader.objectKey);
      }
      for (const description of change.narrowed) state.layers.narrow(description);
      for (const description of change.added) state.layers.add(state.openReader(description));
    });
    this.#step({kind: 'layers-replaced', ...change, objects});
  }

  /** Sends an index with the state's present fields; resolves when an index that has them is durable. */
  indexChanged(): Promise<void> {
    this.#step({kind: 'index-changed'});
    const wanted = this.#queue.coveringSequence;
    return this.#waitFor(() => this.#indexSequence >= wanted);
  }

  /** Resolves when everything frozen so far is published, rejects when the generation turns out stale or on stop(). */
  published(): Promise<void> {
    return this.#waitFor(() => this.#queue.isIdle);
  }

  /** Resolves when everything frozen so far is in an index that is durable: a restart finds it. Rejects like published(). */
  durable(): Promise<void> {
    return this.#waitFor(() => this.#queue.isDurable);
  }

  /** Resolves when fewer than `count` frozen layers wait; rejects on stop(). */
  room(count: number): Promise<void> {
    return this.#waitFor(() => this.#state.frozen.length < count, false);
  }

  /** Nothing new is begun; what is in flight ends on its own. */
  stop(): void {
    this.#stopped = true;
    this.#wake();
  }

  #waitFor(done: () => boolean, needsGeneration = true): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiters.push({done, needsGeneration, resolve, reject});
      this.#wake();
    });
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      if (waiter.done()) waiter.resolve();
      else if (this.#stopped) waiter.reject(new Error(`${this.#state.name}: the timeline is being stopped`));
      else if (waiter.needsGeneration && this.#queue.isStale)
        waiter.reject(
          new Error(`${this.#state.name}: generation ${this.#state.generation} is stale; attach the tenant again`),
        );
      else this.#waiters.push(waiter);
    }
  }

  #step(input: UploadInput): void {
    for (const output of this.#queue.step(input)) this.#perform(output);
    this.#wake();
  }

  #perform(output: UploadOutput): void {
    const {context} = this.#state;
    switch (output.kind) {
      case 'upload-layer':
        this.#layerWork = this.#layerWork.then(() => this.#uploadLayer(output.id));
        return;
      case 'upload-index':
        void this.#uploadIndex(output);
        return;
      case 'validate':
        void this.#validate(output);
        return;
      case 'publish':
        this.#state.remoteConsistentLsn = output.remoteConsistentLsn;
        return;
      case 'delete':
        // Who attaches the tenant next may have loaded the index before.
        if (this.#stopped) return;
        failpoint('pageserver.delete.before');
        // A deletion that fails leaves garbage, never harm: orphans.ts finds it.
        context.store.delete(output.objects).then(
          () => failpoint('pageserver.delete.after'),
          (error: unknown) =>
            context.log.warn('objects not deleted', {
              timeline: this.#state.timelineId,
              error: (error as Error).message,
            }),
        );
        return;
      case 'stale':
        context.log.error('generation is stale: this pageserver stops uploading the timeline', {
          tenant: this.#state.tenantId,
          timeline: this.#state.timelineId,
          generation: output.generation,
        });
        return;
    }
  }

  async #uploadLayer(id: number): Promise<void> {
    const state = this.#state;
    const {store, random, metrics} = state.context;
    const frozen = state.frozen.find((f) => f.id === id);
    if (frozen === undefined || this.#stopped) return;
    await this.#untilDone('layer', async () => {
      const kind = frozen.image ? 'image' : 'delta';
      const {startLsn} = frozen.layer;
      const endLsn = frozen.layer.endLsn!;
      const {generation} = state;
      // A new name at each try: whatever an earlier try left behind is never met again.
      const name = layerName(kind, startLsn, endLsn, random.uint32(), generation);
      const built = await this.#build(frozen.layer, name, generation, frozen.image);
      const object = timelinePrefix(state.tenantId, state.timelineId) + name;
      state.writing.add(object);
      try {
        failpoint('pageserver.upload.layer.before');
        await store.put(object, await joinPieces(built, state.context.clock), {ifNoneMatch: '*'});
        failpoint('pageserver.upload.layer.after');
      } catch (error) {
        state.writing.delete(object);
        throw error;
      }
      const description: LayerDescription = {
        name,
        kind,
        generation,
        firstKey: built.firstKey.toString('hex'),
        lastKey: built.lastKey.toString('hex'),
        startLsn,
        endLsn,
        complete: frozen.complete,
        size: built.size,
        checksum: built.checksum,
        rootOffset: built.rootOffset,
        versions: built.versions,
        keys: built.keys,
        level: 0,
        run: state.nextRun++,
        continues: frozen.continues,
      };
      metrics.layersUploaded.inc();
      metrics.layerBytesUploaded.inc(built.size);
      // In one turn: readers find the values in the file from now on (invariant 1 of the state).
      state.layers.add(state.openReader(description));
      state.frozen.splice(state.frozen.indexOf(frozen), 1);
      if (!this.#stopped) state.context.memory.addFrozen(-frozen.layer.bytes);
      if (frozen.consistentLsn > state.diskConsistentLsn) state.diskConsistentLsn = frozen.consistentLsn;
      state.durableLogicalSizeBytes = frozen.logicalSizeBytes;
      if (!frozen.image) state.ingestedLayerBytes += built.size;
      this.#step({kind: 'layer-uploaded', id, description});
      state.writing.delete(object);
      state.onLayerAdded();
    });
  }

  async #build(layer: MemoryLayer, name: string, generation: number, image: boolean): Promise<FinishedLayer> {
    const {tenantId, timelineId, context} = this.#state;
    const writer = new LayerWriter(objectIdentity(layerObjectId(tenantId, timelineId, name), generation), {
      tenantId,
      timelineId,
      flags: image ? layerFlagImage : 0,
      startLsn: layer.startLsn,
      endLsn: layer.endLsn!,
    });
    let pauseAt = buildStepBytes;
    let added = 0;
    for (const v of layer.entries()) {
      writer.add(v.prefix, v.e, v.lsn, v.kind, v.flags, v.blockId, v.chunk, v.offset, v.length);
      added += v.length + 32;
      if (added < pauseAt) continue;
      pauseAt = added + buildStepBytes;
      await context.clock.sleep(0);
    }
    return writer.finish();
  }

  async #uploadIndex(output: UploadOutput & {kind: 'upload-index'}): Promise<void> {
    const state = this.#state;
    const {store, metrics, log, clock} = state.context;
    const index: TimelineIndex = {
      tenantId: state.tenantId,
      timelineId: state.timelineId,
      generation: output.generation,
      sequence: output.sequence,
      lifecycle: state.lifecycle,
      pgVersion: state.pgVersion,
      systemId: state.systemId,
      ...(state.ancestor === undefined
        ? {}
        : {ancestorTimelineId: state.ancestor.state.timelineId, ancestorLsn: state.ancestor.lsn}),
      ...(state.detachedFrom === undefined ? {} : {detachedFrom: state.detachedFrom}),
      diskConsistentLsn: output.consistentLsn,
      initialLsn: state.initialLsn,
      logicalSizeBytes: Math.max(0, state.durableLogicalSizeBytes),
      safekeepers: state.safekeepers,
      retention: state.retention,
      gcCutoffLsn: state.gcCutoffLsn,
      leases: [...state.leases.keys()],
      ...(state.archivedAtMs === undefined ? {} : {archivedAtMs: state.archivedAtMs}),
      layers: output.layers,
    };
    const key = indexObjectKey(state.tenantId, state.timelineId, output.generation, output.sequence);
    try {
      failpoint('pageserver.upload.index.before');
      await store.put(key, encodeIndex(index), {ifNoneMatch: '*'});
      failpoint('pageserver.upload.index.after');
    } catch (error) {
      metrics.uploadFailures.inc();
      this.#lastFailure = (error as Error).message;
      log.warn('index not uploaded; trying again', {timeline: state.timelineId, error: this.#lastFailure});
      if (!(error instanceof ObjectStoreError && error.code === 'exists')) await clock.sleep(retryDelayMsFirst * 5);
      if (!this.#stopped) this.#step({kind: 'index-failed', sequence: output.sequence});
      return;
    }
    metrics.indexesUploaded.inc();
    this.#lastFailure = undefined;
    this.#indexSequence = output.sequence;
    this.#step({kind: 'index-uploaded', sequence: output.sequence});
  }

  async #validate(output: UploadOutput & {kind: 'validate'}): Promise<void> {
    const {tenantId, context} = this.#state;
    try {
      const valid = await this.#validator.validate(tenantId, output.generation);
      this.#step({kind: 'validated', sequence: output.sequence, valid});
    } catch (error) {
      context.log.warn('generation not validated; trying again', {tenant: tenantId, error: (error as Error).message});
      await context.clock.sleep(1000);
      if (!this.#stopped) this.#step({kind: 'validate-failed', sequence: output.sequence});
    }
  }

  async #untilDone(what: string, work: () => Promise<void>): Promise<void> {
    const {log, clock, metrics} = this.#state.context;
    for (let delay = retryDelayMsFirst; !this.#stopped; delay = Math.min(delay * 2, retryDelayMsMax)) {
      try {
        await work();
        this.#lastFailure = undefined;
        return;
      } catch (error) {
        if (!(error instanceof ObjectStoreError)) {
          // A fault of ours: the data stays in memory and in the safekeepers, and everybody can see why.
          this.#state.ingestError = `${this.#state.name}: ${what} cannot be built: ${(error as Error).message}`;
          log.error(this.#state.ingestError, {stack: (error as Error).stack});
          return;
        }
        metrics.uploadFailures.inc();
        this.#lastFailure = error.message;
        log.warn(`${what} not uploaded; trying again`, {
          timeline: this.#state.timelineId,
          error: error.message,
          remoteConsistentLsn: formatLsn(this.#state.remoteConsistentLsn),
        });
        await clock.sleep(delay);
      }
    }
  }
}
