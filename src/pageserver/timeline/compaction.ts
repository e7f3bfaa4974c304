/**
 * Carries out what compaction-plan.ts and gc-plan.ts say, a step at a time: reads a stretch of keys from layers in order,
 * writes one layer (more only when a single key fills it), puts it into the object store, and changes the timeline's layers
 * in one turn of the event loop.
 *
 * Memory of a step: readAheadBytes over all inputs (but a block of each), an index and a data block of each, and twice
 * targetBytes for the layer being written. `heldBytesMax` is what was really held. One step runs at a time in a process.
 *
 * It shares the event loop with reads: after sliceMs of work they get a turn.
 */
import {assert} from '#runtime/assert.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {blockSize, formatRel} from '#postgres/relation.ts';
import {LayerCursor} from '../layers/layer-cursor.ts';
import {LayerMerge} from '../layers/layer-merge.ts';
import type {LayerReader} from '../layers/layer-reader.ts';
import {type ImageContext, type MergePlan, inputsAfter, planImage, planMerge, slices} from './compaction-plan.ts';
import {planGc, planSweep} from './gc-plan.ts';
import type {LayerDescription} from './index-object.ts';
import {
  type Key,
  type KeyPrefix,
  type KeyRange,
  keyAfter,
  keyBytes,
  keyKind,
  readKey,
  samePrefix,
  wholeKeySpace,
} from './key.ts';
import {firstReadable, heldPoints} from './kept-history.ts';
import type {PlacedLayer, RangePlan} from './layer-map.ts';
import {LayerOutput} from './layer-output.ts';
import {applyValue, read, tryRelInfo, zeroPage} from './read-path.ts';
import {type RelInfo, blockFloor} from './sizes.ts';
import type {TimelineState} from './state.ts';
import {TimelineError} from './timeline-reader.ts';
import type {Uploader} from './upload.ts';
import {type Value, flagStartsHistory, valueKind} from './value.ts';
import {relOf} from './write-path.ts';

const sliceMs = 3;
const sleepMs = 0;
/** Versions between two looks at the clock. */
const stepsPerLook = 64;
/** After a step failed because of its data: not to fail again all the time. */
const brokenMs = 3_600_000;
const readAheadBytesMin = 64 * 1024;

export class Compactor {
  readonly #state: TimelineState;
  readonly #uploader: Uploader;
  /** Images of everything at `lsn` are being made; those up to `from` are. */
  #sweep: {readonly lsn: Lsn; from: Buffer} | undefined;
  /** Bytes of images near the end of history: by what reads cost, and of what has settled. */
  #imageBytesSpent = 0;
  #settledBytesSpent = 0;
  /** state.ingestedLayerBytes when an image turned out to have nothing in it, and when nothing was left to be made of what has settled. */
  #emptyAt = -1;
  #settledAt = -1;
  #brokenUntilMs = 0;
  /** Why the last step failed, while none has succeeded since. */
  lastFailure: string | undefined;
  /** The most memory that steps have held at once. */
  heldBytesMax = 0;

  constructor(state: TimelineState, uploader: Uploader) {
    this.#state = state;
    this.#uploader = uploader;
    // Those of an import are what history begins with.
    for (const {kind, startLsn, size} of state.layers.descriptions())
      if (kind === 'image' && startLsn > state.initialLsn) this.#imageBytesSpent += size;
    const {imageBytesPerIngested} = state.context.limits.compaction;
    const beyond = this.#imageBytesSpent - state.ingestedLayerBytes * imageBytesPerIngested;
    if (beyond > 0) {
      this.#imageBytesSpent -= beyond;
      this.#settledBytesSpent = beyond;
    }
  }

  /** Whether step() would find something to do. */
  get hasWork(): boolean {
    return this.#plan() !== undefined;
  }

  /** The same of what has settled alone; quick. */
  get hasSettledWork(): boolean {
    return this.#planSettled() !== undefined;
  }

  /**
   * One step; false when there is nothing to do. Rejects when the object store cannot be reached; nothing has changed then.
   */
  async step(): Promise<boolean> {
    const work = this.#plan();
    if (work === undefined) return false;
    try {
      await work();
      this.lastFailure = undefined;
    } catch (error) {
      this.lastFailure = (error as Error).message;
      throw error;
    }
    return true;
  }

  /**
   * Makes the timeline's own, as images, what it reads of its ancestors: a layer's worth, from the key `from` on. Answers the key to
   * go on with; undefined: nothing is read of the ancestors any more. What was done is seen in the layers: to begin anew
   * costs a look. TimelineError 'unavailable' when an ancestor has to put something into layers first.
   */
  async takeOver(from: Buffer): Promise<Buffer | undefined> {
    const state = this.#state;
    if (!hasAncestorsInLayers(state))
      throw new TimelineError('unavailable', `${state.name}: its ancestor is being saved; try again`);
    const at = firstReadable(state);
    const {segments} = state.layers.plan({start: from, end: wholeKeySpace.end}, at + 1);
    const lacking = segments.find((segment) => segment.image === undefined);
    if (lacking === undefined) return undefined;
    const {next} = await this.#writeImage(lacking, at, state.context.limits.compaction.targetBytes);
    if (next !== undefined) return next;
    return lacking.end.equals(wholeKeySpace.end) ? undefined : lacking.end;
  }

  /** A page cannot be rebuilt or a layer is damaged: images wait, so that the rest of the process is not kept busy with it. */
  breakOff(): void {
    this.#brokenUntilMs = this.#state.context.clock.monotonicMs() + brokenMs;
    this.#sweep = undefined;
  }

  /** What GC looks at: removes layers that nothing can read, and begins images that set others free. True: neither was needed. */
  collect(cutoff: Lsn): boolean {
    const state = this.#state;
    // At the end of history a version may still come for an LSN that was reached already (putStatistics).
    const points = [...heldPoints(state, cutoff), cutoff].filter((at) => at < state.diskConsistentLsn);
    const removable = planGc(state.layers.descriptions(), points);
    if (removable.length > 0) {
      this.#uploader.replaceLayers({added: [], removed: removable, narrowed: []});
      state.context.metrics.layersCollected.inc(removable.length);
    }
    // A point that nobody holds any more cannot be read: the rest of the keys is done at the next one that can.
    const sweep = this.#sweep;
    if (sweep !== undefined && !points.includes(sweep.lsn)) {
      const next = points.find((at) => at > sweep.lsn);
      this.#sweep = next === undefined ? undefined : {lsn: next, from: sweep.from};
    }
    const idle = removable.length === 0 && this.#sweep === undefined;
    if (this.#sweep !== undefined || !state.context.limits.compaction.enabled) return idle;
    const {garbageRatio} = state.context.limits.compaction;
    const lsn = planSweep(state.layers.descriptions(), points, garbageRatio, state.logicalSizeBytes);
    if (lsn !== undefined) this.#sweep = {lsn, from: wholeKeySpace.start};
    return idle && lsn === undefined;
  }

  #plan(): (() => Promise<void>) | undefined {
    const state = this.#state;
    const {limits, clock} = state.context;
    if (!limits.compaction.enabled || state.lifecycle !== 'active') return undefined;
    if (clock.monotonicMs() < this.#brokenUntilMs) return undefined;
    const merge = planMerge(
      state.layers.descriptions(),
      limits.compaction,
      state.diskConsistentLsn - state.gcCutoffLsn,
    );
    if (merge !== undefined) return () => this.#merge(merge);
    if (state.layers.count === 0 || !hasAncestorsInLayers(state)) return undefined;
    const sweep = this.#sweep;
    if (sweep !== undefined)
      return async () => {
        const range = {start: sweep.from, end: wholeKeySpace.end};
        const {next} = await this.#writeImage(range, sweep.lsn, limits.compaction.targetBytes);
        if (next === undefined) this.#sweep = undefined;
        else sweep.from = next;
      };
    return this.#planCostly() ?? this.#planSettled();
  }

  #planCostly(): (() => Promise<void>) | undefined {
    const state = this.#state;
    const {compaction} = state.context.limits;
    const budget = state.ingestedLayerBytes * compaction.imageBytesPerIngested - this.#imageBytesSpent;
    if (budget <= 0 || this.#emptyAt === state.ingestedLayerBytes) return undefined;
    const plan = state.layers.plan(wholeKeySpace, state.diskConsistentLsn);
    const range = planImage(plan, compaction, this.#imageContext(false));
    if (range === undefined) return undefined;
    return async () => {
      for (const {reader} of plan.deltas) reader.visits = Math.floor(reader.visits / 2);
      const bytes = await this.#writeNewestImage(range, budget);
      this.#imageBytesSpent += bytes;
      // The plan is an estimate: without another layer it would be made again, and be as wrong.
      if (bytes === 0) this.#emptyAt = state.ingestedLayerBytes;
    };
  }

  /**
   * Once a timeline has settled: a step looks where in their keys its deltas have how much, and writes one image where that pays.
   * The last step finds nothing, and is the last until ingest has written another layer.
   */
  #planSettled(): (() => Promise<void>) | undefined {
    const state = this.#state;
    const {compaction} = state.context.limits;
    if (!compaction.enabled || state.lifecycle !== 'active') return undefined;
    const ingested = state.ingestedLayerBytes;
    const budget = ingested * compaction.settledBytesPerIngested - this.#settledBytesSpent;
    // A branch that has written next to nothing is not even looked at.
    if (!state.isSettled || this.#settledAt === ingested || budget < compaction.targetBytes / 32) return undefined;
    return async () => {
      const {segments, deltas} = state.layers.plan(wholeKeySpace, state.diskConsistentLsn);
      const sliced: PlacedLayer[] = [];
      for (const delta of deltas) sliced.push(...slices(delta, await delta.reader.outline()));
      const range = planImage({segments, deltas: sliced}, compaction, this.#imageContext(true));
      // What it can pay only in part waits until it can pay it: else every pause would write a small image.
      const pays = range !== undefined && budget >= Math.min(range.bytes, compaction.targetBytes);
      const bytes = pays ? await this.#writeNewestImage(range, budget) : 0;
      this.#settledBytesSpent += bytes;
      if (bytes === 0) this.#settledAt = ingested;
    };
  }

  #imageContext(settled: boolean): ImageContext {
    const {ancestor, logicalSizeBytes, shard} = this.#state;
    return {inheritedPages: ancestor === undefined ? 0 : logicalSizeBytes / blockSize, shards: shard.count, settled};
  }

  /** Bytes written. */
  async #writeNewestImage(range: KeyRange, budget: number): Promise<number> {
    const {diskConsistentLsn, context} = this.#state;
    // One below the end of history, for the reason given in collect().
    const at = (diskConsistentLsn - 1) as Lsn;
    return (await this.#writeImage(range, at, Math.min(budget, context.limits.compaction.targetBytes))).bytes;
  }

  async #merge(plan: MergePlan): Promise<void> {
    const output = this.#output(plan.kind, plan.level, plan.run);
    try {
      await this.#mergeInto(output, plan);
    } finally {
      output.end();
    }
  }

  async #mergeInto(output: LayerOutput, plan: MergePlan): Promise<void> {
    const state = this.#state;
    const byName = new Map(state.layers.readers().map((reader) => [reader.description.name, reader]));
    const readers = plan.inputs.map((input) => byName.get(input.name)!);
    const from = Buffer.from(plan.from, 'hex');
    const merge = await this.#open(readers, {start: from, end: wholeKeySpace.end});
    const slices = this.#slices(() => merge.heldBytes + output.size);
    output.begin(plan.startLsn, plan.endLsn, plan.continues);
    let next: string | undefined;
    /** The layer begins in the middle of a key: it is for that key alone. */
    let cut = false;
    const key = Buffer.alloc(keyBytes);
    let present: Key | undefined;
    for (let cursor = merge.first; cursor !== undefined; cursor = merge.first) {
      const sameKey =
        present !== undefined &&
        cursor.keyBuffer.compare(key, 0, keyBytes, cursor.keyOffset, cursor.keyOffset + keyBytes) === 0;
      const {lsn} = cursor;
      if (output.size >= state.context.limits.compaction.targetBytes || (cut && !sameKey)) {
        if (!sameKey) {
          next = cursor.keyBuffer.toString('hex', cursor.keyOffset, cursor.keyOffset + keyBytes);
          break;
        }
        // A single key fills a layer: the next one goes on with it, at later LSNs.
        if (lsn > output.lastLsn) {
          await output.finish();
          output.begin(lsn, plan.endLsn, false);
          cut = true;
        }
      }
      if (!sameKey) {
        cursor.keyBuffer.copy(key, 0, cursor.keyOffset, cursor.keyOffset + keyBytes);
        present = sharingPrefix(readKey(key, 0), present);
      }
      output.add(present!, cursor.value ?? (await cursor.fetchValue()));
      const moved = merge.advance();
      if (moved !== undefined) await moved;
      const pause = slices.next();
      if (pause !== undefined) await pause;
    }
    if (plan.kind === 'image') output.cover(from, next === undefined ? wholeKeySpace.end : Buffer.from(next, 'hex'));
    await output.finish();
    const {removed, narrowed} = inputsAfter(plan, next);
    this.#install({added: output.written, removed, narrowed});
  }

  /**
   * Writes complete images of the range at `lsn`, one layer of about `bytesMax` at most. `next`: the key to go on with, when
   * the range is not done; `bytes`: of the layer.
   */
  async #writeImage(range: KeyRange, lsn: Lsn, bytesMax: number): Promise<{next: Buffer | undefined; bytes: number}> {
    const output = this.#output('image', 1, this.#state.nextRun++);
    try {
      const next = await this.#writeImageInto(output, range, lsn, bytesMax);
      return {next, bytes: output.written.reduce((sum, layer) => sum + layer.size, 0)};
    } finally {
      output.end();
    }
  }

  async #writeImageInto(output: LayerOutput, range: KeyRange, lsn: Lsn, bytesMax: number): Promise<Buffer | undefined> {
    output.begin(lsn, (lsn + 1) as Lsn, false);
    const source = await this.#valuesAt(range, lsn, () => output.size);
    let next: Buffer | undefined;
    for (;;) {
      const found = await source.next();
      if (found === undefined) break;
      if (output.size >= bytesMax) {
        next = found.encoded;
        break;
      }
      output.add(found.key, found.value);
    }
    if (output.isEmpty) return undefined;
    output.cover(range.start, next ?? range.end);
    await output.finish();
    this.#install({added: output.written, removed: [], narrowed: []});
    return next;
  }

  /** The value of every key of the range at `lsn`, in order of keys, without those that need not be in a complete image. */
  async #valuesAt(
    range: KeyRange,
    lsn: Lsn,
    writtenBytes: () => number,
  ): Promise<{next(): Promise<{key: Key; encoded: Buffer; value: Value} | undefined>}> {
    const state = this.#state;
    const sources: {readonly plan: RangePlan; readonly below: number}[] = [];
    for (let s: TimelineState | undefined = state, below: number = lsn + 1; s !== undefined;) {
      const plan = s.layers.plan(range, below);
      sources.push({plan, below});
      const {ancestor}: TimelineState = s;
      if (plan.segments.every((segment) => segment.image !== undefined)) break;
      if (ancestor !== undefined && ancestor.lsn + 1 < below) below = ancestor.lsn + 1;
      s = ancestor?.state;
    }
    // Oldest first: the ancestors' layers, the images, the deltas.
    const origin = new Map<LayerReader, number>();
    const readers: LayerReader[] = [];
    for (let depth = sources.length - 1; depth >= 0; depth--) {
      const {segments, deltas} = sources[depth]!.plan;
      for (const reader of [
        ...segments.flatMap((s) => (s.image === undefined ? [] : [s.image])),
        ...deltas.map((d) => d.reader),
      ])
        if (!origin.has(reader)) {
          origin.set(reader, depth);
          readers.push(reader);
        }
    }
    const merge = await this.#open(readers, range);
    const slices = this.#slices(() => merge.heldBytes + writtenBytes());
    const at = sources.map(() => 0);
    const encoded = Buffer.alloc(keyBytes);
    const page = Buffer.alloc(blockSize);
    let key: Key | undefined;
    let rel: {readonly prefix: KeyPrefix; readonly info: RelInfo} | undefined;
    /** A chunk of commit times before the cutoff is of no use when the next one begins before it too. */
    let heldChunk: {key: Key; encoded: Buffer; value: Value} | undefined;

    /** Whether a read at `lsn` would look at this version. */
    const isWanted = (depth: number, reader: LayerReader, version: Lsn, floor: Lsn): boolean => {
      if (version >= sources[depth]!.below || version < floor) return false;
      for (let d = 0; d <= depth; d++) {
        const {segments} = sources[d]!.plan;
        while (segments[at[d]!]!.end.compare(encoded) <= 0) at[d]!++;
        const segment = segments[at[d]!]!;
        if (d < depth) {
          if (segment.image !== undefined) return false;
        } else if (reader.description.complete) return segment.image === reader;
        else if (version <= segment.imageLsn) return false;
      }
      return true;
    };

    const readOne = async (): Promise<{key: Key; encoded: Buffer; value: Value} | undefined> => {
      for (let cursor = merge.first; cursor !== undefined; cursor = merge.first) {
        cursor.keyBuffer.copy(encoded, 0, cursor.keyOffset, cursor.keyOffset + keyBytes);
        key = sharingPrefix(readKey(encoded, 0), key);
        const {prefix, e} = key;
        const isPage = prefix.kind === keyKind.relPage || prefix.kind === keyKind.slruPage;
        let floor = 0 as Lsn;
        let exists = true;
        if (prefix.kind === keyKind.relPage) {
          if (rel === undefined || !samePrefix(rel.prefix, prefix)) {
            const tag = relOf(key);
            rel = {prefix, info: await read(state, lsn, (pass) => tryRelInfo(state, pass, tag, lsn))};
          }
          exists = e < rel.info.blocks;
          floor = blockFloor(rel.info, e);
        }
        const what = (): string =>
          prefix.kind === keyKind.relPage ? `relation ${formatRel(relOf(key!))} block ${e}` : `page ${e}`;
        let last: Value | undefined;
        do {
          const version = cursor.lsn;
          if (exists && isWanted(origin.get(cursor.reader)!, cursor.reader, version, floor)) {
            const value = cursor.value ?? (await cursor.fetchValue());
            if (isPage) {
              // A page begins as zeros.
              if (last === undefined) page.fill(0);
              applyValue(state, page, value, lsn, what);
            }
            last = value;
          }
          const moved = merge.advance();
          if (moved !== undefined) await moved;
          const pause = slices.next();
          if (pause !== undefined) await pause;
          cursor = merge.first;
        } while (
          cursor !== undefined &&
          cursor.keyBuffer.compare(encoded, 0, keyBytes, cursor.keyOffset, cursor.keyOffset + keyBytes) === 0
        );
        if (last === undefined || last.kind === valueKind.tombstone) continue;
        const found = {key, encoded: Buffer.from(encoded)};
        if (!isPage) {
          const {kind, blockId, payload} = last;
          return {...found, value: {lsn, kind, flags: flagStartsHistory, blockId, payload}};
        }
        const zero = page.equals(zeroPage);
        // Blocks of a relation that are not there read as zeros; which pages an SLRU has is told by its keys.
        if (zero && prefix.kind === keyKind.relPage) continue;
        const kind = zero ? valueKind.zero : valueKind.image;
        const payload = zero ? Buffer.alloc(0) : page;
        return {...found, value: {lsn, kind, flags: flagStartsHistory, blockId: 0, payload}};
      }
      return undefined;
    };

    return {
      next: async () => {
        for (;;) {
          const found = await readOne();
          const chunk = heldChunk;
          heldChunk = undefined;
          if (found?.key.prefix.kind !== keyKind.commitTimes) {
            if (chunk === undefined) return found;
            assert(found === undefined, 'commit times are the last keys');
            return chunk;
          }
          heldChunk = found;
          const begins = found.key.prefix.a * 4294967296 + found.key.prefix.b;
          if (chunk !== undefined && begins > state.gcCutoffLsn) return chunk;
        }
      },
    };
  }

  async #open(readers: readonly LayerReader[], range: KeyRange): Promise<LayerMerge> {
    const {readAheadBytes} = this.#state.context.limits.compaction;
    const each = Math.max(readAheadBytesMin, Math.floor(readAheadBytes / Math.max(1, readers.length)));
    return LayerMerge.start(
      readers.map((reader) => {
        const {lastKey, moving, firstKey} = reader.description;
        const first = Buffer.from(moving !== undefined && moving.from > firstKey ? moving.from : firstKey, 'hex');
        const end = keyAfter(Buffer.from(lastKey, 'hex'));
        return new LayerCursor(
          reader,
          first.compare(range.start) > 0 ? first : range.start,
          end.compare(range.end) < 0 ? end : range.end,
          each,
        );
      }),
    );
  }

  #slices(heldBytes: () => number): {next(): Promise<void> | undefined} {
    const {clock} = this.#state.context;
    let until = clock.monotonicMs() + sliceMs;
    let steps = 0;
    return {
      next: () => {
        if (++steps % stepsPerLook !== 0) return undefined;
        this.heldBytesMax = Math.max(this.heldBytesMax, heldBytes());
        if (clock.monotonicMs() < until) return undefined;
        return clock.sleep(sleepMs).then(() => void (until = clock.monotonicMs() + sliceMs));
      },
    };
  }

  #output(kind: 'delta' | 'image', level: number, run: number): LayerOutput {
    return new LayerOutput(this.#state, kind, level, run);
  }

  #install(change: {
    added: readonly LayerDescription[];
    removed: readonly LayerDescription[];
    narrowed: readonly LayerDescription[];
  }): void {
    failpoint('pageserver.compaction.install.before');
    const {metrics, log} = this.#state.context;
    this.#uploader.replaceLayers(change);
    metrics.compactionSteps.inc();
    for (const layer of change.added) metrics.compactionBytes.inc(layer.size);
    log.debug('compacted', {
      timeline: this.#state.timelineId,
      added: change.added.length,
      removed: change.removed.length,
      until: formatLsn(change.added[0]?.endLsn ?? (0 as Lsn)),
    });
  }
}

/**
 * Images are made of layers: an ancestor that has in memory what the timeline reads of it puts that into a layer first. It is
 * at most asked to, here; the next look finds it done.
 */
function hasAncestorsInLayers(state: TimelineState): boolean {
  let inLayers = true;
  let end = Infinity;
  for (let {ancestor} = state; ancestor !== undefined; {ancestor} = ancestor.state) {
    end = Math.min(end, ancestor.lsn);
    const {open, frozen, lastRecordLsn, freezeOpen} = ancestor.state;
    if (lastRecordLsn < end) inLayers = false; // a restart: it ingests again
    else if (open !== undefined && open.startLsn <= end) {
      freezeOpen();
      inLayers = false;
    } else if (frozen.some(({layer}) => layer.startLsn <= end)) inLayers = false;
  }
  return inLayers;
}

/** Keys of one relation share their prefix, so that comparing them is quick. */
function sharingPrefix(key: Key, before: Key | undefined): Key {
  return before !== undefined && samePrefix(before.prefix, key.prefix) ? {prefix: before.prefix, e: key.e} : key;
}
