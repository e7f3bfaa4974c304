/** The layers that one step of compaction writes: built in memory one after the other, and put into the object store. */
import {failpoint} from '#runtime/failpoint.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {layerFlagImage, objectIdentity} from '../layers/layer-format.ts';
import {LayerWriter, joinPieces} from '../layers/layer-writer.ts';
import {type LayerDescription, layerName, layerObjectId, timelinePrefix} from './index-object.ts';
import {type Key, keyBefore} from './key.ts';
import type {TimelineState} from './state.ts';
import type {Value} from './value.ts';

export class LayerOutput {
  readonly written: LayerDescription[] = [];
  readonly #objects: string[] = [];
  readonly #state: TimelineState;
  readonly #kind: 'delta' | 'image';
  readonly #level: number;
  readonly #run: number;
  #writer: LayerWriter | undefined;
  #name = '';
  #startLsn = 0 as Lsn;
  #endLsn = 0 as Lsn;
  #continues = false;
  #generation = 0;
  #cover: {readonly first: Buffer; readonly end: Buffer} | undefined;
  /** LSN of the last version added. */
  lastLsn = -1;

  constructor(state: TimelineState, kind: 'delta' | 'image', level: number, run: number) {
    this.#state = state;
    this.#kind = kind;
    this.#level = level;
    this.#run = run;
  }

  get size(): number {
    return this.#writer?.size ?? 0;
  }
  get isEmpty(): boolean {
    return this.#writer === undefined;
  }

  /** A layer of these LSNs; it is made with its first version. */
  begin(startLsn: Lsn, endLsn: Lsn, continues: boolean): void {
    this.#startLsn = startLsn;
    this.#endLsn = endLsn;
    this.#continues = continues;
  }

  /** The image holds everything of these keys. */
  cover(first: Buffer, end: Buffer): void {
    this.#cover = {first, end};
  }

  add({prefix, e}: Key, value: Value): void {
    const writer = (this.#writer ??= this.#newWriter());
    const {lsn, kind, flags, blockId, payload} = value;
    writer.add(prefix, e, lsn, kind, flags, blockId, payload, 0, payload.length);
    this.lastLsn = lsn;
  }

  async finish(): Promise<void> {
    const state = this.#state;
    const {store, metrics, clock} = state.context;
    if (this.#writer === undefined) return;
    const built = this.#writer.finish();
    this.#writer = undefined;
    const name = this.#name;
    const object = timelinePrefix(state.tenantId, state.timelineId) + name;
    state.writing.add(object);
    this.#objects.push(object);
    const file = await joinPieces(built, clock);
    failpoint('pageserver.compaction.upload.before');
    await store.put(object, file, {ifNoneMatch: '*'});
    failpoint('pageserver.compaction.upload.after');
    metrics.layersUploaded.inc();
    metrics.layerBytesUploaded.inc(built.size);
    const image = this.#kind === 'image';
    this.written.push({
      name,
      kind: this.#kind,
      generation: this.#generation,
      firstKey: (this.#cover?.first ?? built.firstKey).toString('hex'),
      lastKey: this.#cover === undefined ? built.lastKey.toString('hex') : keyBefore(this.#cover.end).toString('hex'),
      startLsn: this.#startLsn,
      endLsn: this.#endLsn,
      complete: image,
      size: built.size,
      checksum: built.checksum,
      rootOffset: built.rootOffset,
      versions: built.versions,
      keys: built.keys,
      level: image ? 1 : this.#level,
      run: this.#run,
      continues: this.#continues,
    });
  }

  /** The step is over: what it has written is in the index, or is an orphan. */
  end(): void {
    for (const object of this.#objects) this.#state.writing.delete(object);
  }

  #newWriter(): LayerWriter {
    const state = this.#state;
    const {tenantId, timelineId, generation} = state;
    this.#generation = generation;
    this.#name = layerName(this.#kind, this.#startLsn, this.#endLsn, state.context.random.uint32(), generation);
    const identity = objectIdentity(layerObjectId(tenantId, timelineId, this.#name), generation);
    return new LayerWriter(identity, {
      tenantId,
      timelineId,
      flags: this.#kind === 'image' ? layerFlagImage : 0,
      startLsn: this.#startLsn,
      endLsn: this.#endLsn,
    });
  }
}
