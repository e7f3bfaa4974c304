/**
 * The order in which a timeline becomes durable, as a pure class: step(input) → outputs. upload.ts does what the outputs
 * say and comes back with inputs; the simulator can drive the same class.
 *
 *   layer PUT acknowledged → index PUT acknowledged → generation validated → publish, delete
 *
 * Invariants (checked in checkInvariants)
 *  1. The index lists uploaded layers only, and of them the longest unbroken row in the order they were frozen: so its
 *     consistentLsn is covered by the layers it lists.
 *  2. One index at a time is in flight, sequences rise: a late one cannot replace a newer one.
 *  3. remoteConsistentLsn and deletions come only from an index whose generation was validated after its upload.
 *  4. An object is deleted only when an index without it has been uploaded and validated.
 *  5. Once stale (validation said no), nothing is sent any more.
 */
import {assert, unreachable} from '#runtime/assert.ts';
import type {Lsn} from '#postgres/lsn.ts';
import type {LayerDescription} from './index-object.ts';

export type UploadInput =
  /** A layer was frozen. Layers come in order; `consistentLsn`: see FrozenLayer. */
  | {readonly kind: 'layer-frozen'; readonly id: number; readonly consistentLsn: Lsn}
  | {readonly kind: 'layer-uploaded'; readonly id: number; readonly description: LayerDescription}
  /** Nothing is frozen, and WAL up to here has nothing more to keep: a shard's pages are few among those of its tenant. */
  | {readonly kind: 'advanced'; readonly consistentLsn: Lsn}
  /** Something else in the index changed (lifecycle, system id). */
  | {readonly kind: 'index-changed'}
  /** Compaction or GC, once what it adds is uploaded: the next index has the change; then `objects` go. */
  | {
      readonly kind: 'layers-replaced';
      readonly added: readonly LayerDescription[];
      readonly removed: readonly LayerDescription[];
      /** Under their names, with a smaller range. */
      readonly narrowed: readonly LayerDescription[];
      readonly objects: readonly string[];
    }
  | {readonly kind: 'index-uploaded'; readonly sequence: number}
  | {readonly kind: 'index-failed'; readonly sequence: number}
  | {readonly kind: 'validated'; readonly sequence: number; readonly valid: boolean}
  | {readonly kind: 'validate-failed'; readonly sequence: number};

export type UploadOutput =
  | {readonly kind: 'upload-layer'; readonly id: number}
  | {
      readonly kind: 'upload-index';
      readonly generation: number;
      readonly sequence: number;
      readonly consistentLsn: Lsn;
      readonly layers: readonly LayerDescription[];
    }
  | {readonly kind: 'validate'; readonly generation: number; readonly sequence: number}
  | {readonly kind: 'publish'; readonly remoteConsistentLsn: Lsn}
  | {readonly kind: 'delete'; readonly objects: readonly string[]}
  | {readonly kind: 'stale'; readonly generation: number};

interface PendingLayer {
  readonly id: number;
  readonly consistentLsn: Lsn;
  /** Its upload was asked for; not while the queue is stale. */
  asked: boolean;
  description: LayerDescription | undefined;
}

interface SentIndex {
  readonly generation: number;
  readonly sequence: number;
  readonly consistentLsn: Lsn;
  /** Objects that this index and those before it no longer need. */
  readonly garbage: string[];
}

export class UploadQueue {
  readonly #generation: number;
  #sequence: number;
  #layers: readonly LayerDescription[];
  #consistentLsn: Lsn;
  /** Frozen, not yet part of #layers, in order. */
  readonly #pending: PendingLayer[] = [];
  #dirty = false;
  #garbage: string[] = [];
  #inFlight: SentIndex | undefined;
  #validating: SentIndex | undefined;
  #publishedLsn: Lsn;
  #safe: {readonly generation: number; readonly sequence: number} | undefined;
  #stale = false;
  readonly #indexObject: (generation: number, sequence: number) => string;

  /**
   * Goes on from the index that was loaded (sequence 0 and no layers for a new timeline). `indexObject` names index objects:
   * those that were replaced are deleted like layers.
   */
  constructor(
    loaded: {generation: number; sequence: number; layers: readonly LayerDescription[]; consistentLsn: Lsn},
    generation: number,
    indexObject: (generation: number, sequence: number) => string,
  ) {
    assert(generation >= loaded.generation, 'an index of a higher generation is never loaded');
    this.#generation = generation;
    this.#sequence = loaded.sequence;
    this.#layers = loaded.layers;
    this.#consistentLsn = loaded.consistentLsn;
    this.#publishedLsn = loaded.consistentLsn;
    this.#indexObject = indexObject;
    if (loaded.sequence > 0) {
      this.#garbage.push(indexObject(loaded.generation, loaded.sequence));
      this.#safe = {generation: loaded.generation, sequence: loaded.sequence};
    }
  }

  get isStale(): boolean {
    return this.#stale;
  }
  /** The index that was loaded, or the last one whose generation was validated after its upload: older ones are of no use. */
  get safeIndex(): {readonly generation: number; readonly sequence: number} | undefined {
    return this.#safe;
  }
  /** Keys of objects that the next index does without, and the last one that is durable may still need. */
  get replaced(): string[] {
    return [...this.#garbage, ...(this.#inFlight?.garbage ?? []), ...(this.#validating?.garbage ?? [])];
  }
  /** Layers whose objects are there, and needed from now on: those of the next index, and what waits for an older one. */
  get uploaded(): readonly LayerDescription[] {
    return [...this.#layers, ...this.#pending.flatMap(({description}) => description ?? [])];
  }
  /** Layers of the next index. */
  get layers(): readonly LayerDescription[] {
    return this.#layers;
  }
  /** Nothing waits and nothing is in flight: what was frozen is published. */
  get isIdle(): boolean {
    return this.#pending.length === 0 && !this.#dirty && this.#inFlight === undefined && this.#validating === undefined;
  }
  /** Everything that was frozen is in an uploaded index; its validation may be under way. */
  get isDurable(): boolean {
    return this.#pending.length === 0 && !this.#dirty && this.#inFlight === undefined;
  }
  /** Sequence of the first index that has everything stepped in so far. */
  get coveringSequence(): number {
    return this.#dirty ? this.#sequence + 1 : this.#sequence;
  }

  /** All there is to know of it: two queues with equal snapshots go on alike. For the model check. */
  snapshot(): unknown {
    return {
      generation: this.#generation,
      sequence: this.#sequence,
      layers: this.#layers,
      consistentLsn: this.#consistentLsn,
      pending: this.#pending,
      dirty: this.#dirty,
      garbage: this.#garbage,
      inFlight: this.#inFlight,
      validating: this.#validating,
      publishedLsn: this.#publishedLsn,
      safe: this.#safe,
      stale: this.#stale,
    };
  }

  step(input: UploadInput): UploadOutput[] {
    const out: UploadOutput[] = [];
    switch (input.kind) {
      case 'layer-frozen': {
        const before = this.#pending.at(-1);
        assert(
          before === undefined || (before.id < input.id && before.consistentLsn <= input.consistentLsn),
          'layers are frozen in order',
        );
        this.#pending.push({
          id: input.id,
          consistentLsn: input.consistentLsn,
          asked: false,
          description: undefined,
        });
        this.#askForLayers(out);
        break;
      }
      case 'layer-uploaded': {
        const layer = this.#pending.find((p) => p.id === input.id);
        assert(layer !== undefined && layer.description === undefined, 'a layer is uploaded once');
        layer.description = input.description;
        this.#takeUploaded();
        break;
      }
      case 'advanced':
        assert(this.#pending.length === 0, 'only what is frozen can be missing below');
        if (input.consistentLsn <= this.#consistentLsn) break;
        this.#consistentLsn = input.consistentLsn;
        this.#dirty = true;
        break;
      case 'index-changed':
        this.#dirty = true;
        break;
      case 'layers-replaced': {
        const removed = new Set(input.removed.map((layer) => layer.name));
        const narrowed = new Map(input.narrowed.map((layer) => [layer.name, layer]));
        const kept = this.#layers.filter((layer) => !removed.has(layer.name));
        assert(kept.length === this.#layers.length - removed.size, 'only layers of the index are removed');
        this.#layers = [...kept.map((layer) => narrowed.get(layer.name) ?? layer), ...input.added];
        this.#garbage.push(...input.objects);
        this.#dirty = true;
        break;
      }
      case 'index-uploaded': {
        const sent = this.#inFlight;
        assert(sent !== undefined && sent.sequence === input.sequence, 'the answer is for the index in flight');
        this.#inFlight = undefined;
        // An older index that still waits for its validation is covered by this one, and goes with it.
        const older = this.#validating;
        if (older !== undefined)
          sent.garbage.push(...older.garbage, this.#indexObject(older.generation, older.sequence));
        this.#validating = sent;
        out.push({kind: 'validate', generation: sent.generation, sequence: sent.sequence});
        break;
      }
      case 'index-failed': {
        const sent = this.#inFlight;
        assert(sent !== undefined && sent.sequence === input.sequence, 'the answer is for the index in flight');
        // It may have been stored nevertheless: the next one has a higher sequence, and deletes it.
        this.#inFlight = undefined;
        this.#dirty = true;
        this.#garbage.push(...sent.garbage, this.#indexObject(sent.generation, sent.sequence));
        break;
      }
      case 'validated': {
        const sent = this.#validating;
        if (sent === undefined || sent.sequence !== input.sequence) break; // a newer index is being validated
        this.#validating = undefined;
        if (!input.valid) {
          // What the index promised is not kept: nothing that waits for it may believe so.
          this.#dirty = true;
          this.#stale = true;
          out.push({kind: 'stale', generation: sent.generation});
          break;
        }
        this.#safe = {generation: sent.generation, sequence: sent.sequence};
        if (sent.consistentLsn > this.#publishedLsn) this.#publishedLsn = sent.consistentLsn;
        out.push({kind: 'publish', remoteConsistentLsn: this.#publishedLsn});
        if (sent.garbage.length > 0) out.push({kind: 'delete', objects: sent.garbage});
        // This index goes when a later one has been validated: the one that is on its way already, if there is one.
        (this.#inFlight?.garbage ?? this.#garbage).push(this.#indexObject(sent.generation, sent.sequence));
        break;
      }
      case 'validate-failed': {
        const sent = this.#validating;
        if (sent !== undefined && sent.sequence === input.sequence)
          out.push({kind: 'validate', generation: sent.generation, sequence: sent.sequence});
        break;
      }
      default:
        unreachable(input);
    }
    this.#sendIndex(out);
    this.checkInvariants();
    return out;
  }

  checkInvariants(): void {
    assert(this.#publishedLsn <= this.#consistentLsn, 'only what an index holds is published (3)');
    assert(this.#pending[0]?.description === undefined, 'an uploaded layer at the head belongs to the index (1)');
    assert(
      this.#inFlight === undefined || this.#inFlight.sequence === this.#sequence,
      'one index in flight, the newest (2)',
    );
  }

  #askForLayers(out: UploadOutput[]): void {
    if (this.#stale) return;
    for (const layer of this.#pending) {
      if (layer.asked) continue;
      layer.asked = true;
      out.push({kind: 'upload-layer', id: layer.id});
    }
  }

  #takeUploaded(): void {
    for (let head = this.#pending[0]; head?.description !== undefined; head = this.#pending[0]) {
      this.#layers = [...this.#layers, head.description];
      this.#consistentLsn = head.consistentLsn;
      this.#pending.shift();
      this.#dirty = true;
    }
  }

  #sendIndex(out: UploadOutput[]): void {
    if (!this.#dirty || this.#inFlight !== undefined || this.#stale) return;
    this.#dirty = false;
    this.#sequence++;
    this.#inFlight = {
      generation: this.#generation,
      sequence: this.#sequence,
      consistentLsn: this.#consistentLsn,
      garbage: this.#garbage,
    };
    this.#garbage = [];
    out.push({
      kind: 'upload-index',
      generation: this.#generation,
      sequence: this.#sequence,
      consistentLsn: this.#consistentLsn,
      layers: this.#layers,
    });
  }
}
