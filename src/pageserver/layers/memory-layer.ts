/**
 * The layer that ingest writes into, and, once frozen, the source of a delta layer file.
 *
 * Values lie one after the other in chunks (the arena). Two open-addressed hash tables find them: prefix → prefix id, and
 * (prefix id, e) → key id. A key's versions are a list from the newest to the oldest. Everything is typed arrays: a put
 * allocates nothing, the garbage collector has nothing to walk, and the memory used is known to the byte.
 *
 * Puts come in LSN order. Several values of one key at one LSN are kept in the order of their puts.
 */
import {assert} from '#runtime/assert.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {type KeyPrefix, comparePrefixes, samePrefix} from '#pageserver/timeline/key.ts';
import type {Value} from '#pageserver/timeline/value.ts';

const chunkBytesFirst = 16 * 1024;
const chunkBytesMax = 1024 * 1024;
/** Sorting packs (e, key id) into one double: 32 + 21 bits. */
const keysMax = 1 << 21;

/** One version as the flush sees it, in (key, LSN) order. The object is reused between steps. */
export interface LayerEntry {
  prefix: KeyPrefix;
  e: number;
  lsn: Lsn;
  /** The encoded value (value.ts) is chunk[offset … offset+length), with its own kind, flags and blockId. */
  chunk: Buffer;
  offset: number;
  length: number;
  kind: number;
  flags: number;
  blockId: number;
}

export class MemoryLayer {
  /** LSN of the first put, or of the end before it: the layer holds LSNs ≥ this. */
  readonly startLsn: Lsn;
  /** Set by freeze(): the layer holds LSNs below this. */
  endLsn: Lsn | undefined;
  readonly createdMs: number;

  readonly #prefixes: KeyPrefix[] = [];
  #prefixSlots = new Int32Array(16).fill(-1);
  #lastPrefix = -1;

  #keys = 0;
  #keySlots = new Int32Array(64).fill(-1);
  #keyPrefix = new Uint32Array(32);
  #keyE = new Uint32Array(32);
  /** Newest version of the key. */
  #keyHead = new Int32Array(32);

  #versions = 0;
  #lsn = new Float64Array(32);
  #older = new Int32Array(32);
  #chunkOf = new Uint32Array(32);
  #offsetOf = new Uint32Array(32);
  #lengthOf = new Uint32Array(32);
  /** kind | flags << 8 | blockId << 16 */
  #meta = new Uint32Array(32);

  readonly #chunks: Buffer[] = [];
  #free = 0;
  #arenaBytes = 0;
  /** The last payload stored: a record that touches several pages is stored once. */
  #lastPayload: Buffer | undefined;
  #lastPayloadLsn = -1;

  constructor(startLsn: Lsn, createdMs: number) {
    this.startLsn = startLsn;
    this.createdMs = createdMs;
  }

  get keyCount(): number {
    return this.#keys;
  }
  get versionCount(): number {
    return this.#versions;
  }
  /** All memory the layer holds. */
  get bytes(): number {
    return this.#arenaBytes + this.#lsn.length * 28 + this.#keyE.length * 12 + this.#keySlots.length * 4;
  }
  /** No more keys may be added: freeze. */
  get isFull(): boolean {
    return this.#keys >= keysMax - 65536;
  }

  /** `payload` is copied. */
  put(p: KeyPrefix, e: number, lsn: Lsn, kind: number, flags: number, blockId: number, payload: Buffer): void {
    assert(this.endLsn === undefined, 'no put into a frozen layer');
    const key = this.#addKey(this.#addPrefix(p), e);
    const v = this.#versions++;
    if (v >= this.#lsn.length) this.#growVersions();
    this.#lsn[v] = lsn;
    this.#older[v] = this.#keyHead[key]!;
    this.#keyHead[key] = v;
    this.#meta[v] = kind | (flags << 8) | (blockId << 16);
    if (payload === this.#lastPayload && lsn === this.#lastPayloadLsn) {
      this.#chunkOf[v] = this.#chunkOf[v - 1]!;
      this.#offsetOf[v] = this.#offsetOf[v - 1]!;
      this.#lengthOf[v] = this.#lengthOf[v - 1]!;
      return;
    }
    const length = payload.length;
    const chunk = this.#reserve(length);
    const offset = this.#free;
    if (length < 48) for (let i = 0; i < length; i++) chunk[offset + i] = payload[i]!;
    else payload.copy(chunk, offset);
    this.#free = offset + length;
    this.#chunkOf[v] = this.#chunks.length - 1;
    this.#offsetOf[v] = offset;
    this.#lengthOf[v] = length;
    this.#lastPayload = payload;
    this.#lastPayloadLsn = lsn;
  }

  /** Called after each record: its buffers may be reused by the caller from now on. */
  endRecord(): void {
    this.#lastPayload = undefined;
  }

  freeze(endLsn: Lsn): void {
    assert(this.endLsn === undefined && endLsn >= this.startLsn, 'a layer is frozen once');
    this.endLsn = endLsn;
    this.#lastPayload = undefined;
  }

  /** Id of the newest version below `belowLsn`, or -1. */
  find(p: KeyPrefix, e: number, belowLsn: number): number {
    const prefixId = this.#findPrefix(p);
    if (prefixId < 0) return -1;
    const key = this.#findKey(prefixId, e);
    if (key < 0) return -1;
    let v = this.#keyHead[key]!;
    while (v >= 0 && this.#lsn[v]! >= belowLsn) v = this.#older[v]!;
    return v;
  }

  /** The next older version of the same key, or -1. */
  olderThan(version: number): number {
    return this.#older[version]!;
  }

  lsnOf(version: number): Lsn {
    return this.#lsn[version]! as Lsn;
  }

  value(version: number): Value {
    const meta = this.#meta[version]!;
    const offset = this.#offsetOf[version]!;
    return {
      lsn: this.#lsn[version]! as Lsn,
      kind: meta & 0xff,
      flags: (meta >>> 8) & 0xff,
      blockId: meta >>> 16,
      payload: this.#chunks[this.#chunkOf[version]!]!.subarray(offset, offset + this.#lengthOf[version]!),
    };
  }

  /** Calls `found` for every key between the prefixes, in no order. `low` and `high` are inclusive. */
  scanPrefixes(matches: (p: KeyPrefix) => boolean, found: (p: KeyPrefix, e: number) => void): void {
    const wanted = this.#prefixes.map(matches);
    if (!wanted.includes(true)) return;
    for (let key = 0; key < this.#keys; key++) {
      const id = this.#keyPrefix[key]!;
      if (wanted[id]) found(this.#prefixes[id]!, this.#keyE[key]!);
    }
  }

  /** All versions by key, then LSN, then order of put. */
  *entries(): Generator<LayerEntry> {
    const order = Array.from(this.#prefixes.keys()).sort((x, y) =>
      comparePrefixes(this.#prefixes[x]!, this.#prefixes[y]!),
    );
    const ends = new Uint32Array(this.#prefixes.length + 1);
    for (let key = 0; key < this.#keys; key++) ends[this.#keyPrefix[key]! + 1]!++;
    for (let i = 0; i < this.#prefixes.length; i++) ends[i + 1]! += ends[i]!;
    const starts = ends.slice();
    const packed = new Float64Array(this.#keys);
    for (let key = 0; key < this.#keys; key++)
      packed[starts[this.#keyPrefix[key]!]!++] = this.#keyE[key]! * keysMax + key;
    const entry: LayerEntry = {
      prefix: {kind: 0, a: 0, b: 0, c: 0, d: 0},
      e: 0,
      lsn: 0 as Lsn,
      chunk: Buffer.alloc(0),
      offset: 0,
      length: 0,
      kind: 0,
      flags: 0,
      blockId: 0,
    };
    const versions: number[] = [];
    for (const id of order) {
      entry.prefix = this.#prefixes[id]!;
      const sorted = packed.subarray(ends[id]!, ends[id + 1]!).sort();
      for (let i = 0; i < sorted.length; i++) {
        const key = sorted[i]! % keysMax;
        entry.e = this.#keyE[key]!;
        versions.length = 0;
        for (let v = this.#keyHead[key]!; v >= 0; v = this.#older[v]!) versions.push(v);
        for (let n = versions.length - 1; n >= 0; n--) {
          const v = versions[n]!;
          const meta = this.#meta[v]!;
          entry.lsn = this.#lsn[v]! as Lsn;
          entry.chunk = this.#chunks[this.#chunkOf[v]!]!;
          entry.offset = this.#offsetOf[v]!;
          entry.length = this.#lengthOf[v]!;
          entry.kind = meta & 0xff;
          entry.flags = (meta >>> 8) & 0xff;
          entry.blockId = meta >>> 16;
          yield entry;
        }
      }
    }
  }

  #reserve(length: number): Buffer {
    const current = this.#chunks[this.#chunks.length - 1];
    if (current !== undefined && current.length - this.#free >= length) return current;
    const grown = Math.min(chunkBytesMax, Math.max(chunkBytesFirst, this.#arenaBytes));
    // Without the pool: a chunk lives as long as the layer, a pooled slab would be kept alive with it.
    const chunk = Buffer.allocUnsafeSlow(Math.max(grown, length));
    this.#chunks.push(chunk);
    this.#arenaBytes += chunk.length;
    this.#free = 0;
    return chunk;
  }

  #addPrefix(p: KeyPrefix): number {
    const last = this.#lastPrefix;
    if (last >= 0 && samePrefix(this.#prefixes[last]!, p)) return last;
    const found = this.#findPrefix(p);
    if (found >= 0) {
      this.#lastPrefix = found;
      return found;
    }
    const id = this.#prefixes.push(p) - 1;
    if (this.#prefixes.length * 2 > this.#prefixSlots.length) {
      this.#prefixSlots = new Int32Array(this.#prefixSlots.length * 2).fill(-1);
      for (let i = 0; i <= id; i++) this.#prefixSlots[freePrefixSlot(this.#prefixSlots, this.#prefixes[i]!)] = i;
    } else {
      this.#prefixSlots[freePrefixSlot(this.#prefixSlots, p)] = id;
    }
    this.#lastPrefix = id;
    return id;
  }

  #findPrefix(p: KeyPrefix): number {
    const slots = this.#prefixSlots;
    const mask = slots.length - 1;
    for (let at = hashPrefix(p) & mask; ; at = (at + 1) & mask) {
      const id = slots[at]!;
      if (id < 0 || samePrefix(this.#prefixes[id]!, p)) return id;
    }
  }

  #addKey(prefixId: number, e: number): number {
    const found = this.#findKey(prefixId, e);
    if (found >= 0) return found;
    const key = this.#keys++;
    assert(this.#keys <= keysMax, 'a memory layer is frozen before it is full');
    if (key >= this.#keyE.length) {
      this.#keyE = grow(this.#keyE, new Uint32Array(key * 2));
      this.#keyPrefix = grow(this.#keyPrefix, new Uint32Array(key * 2));
      this.#keyHead = grow(this.#keyHead, new Int32Array(key * 2));
    }
    this.#keyE[key] = e;
    this.#keyPrefix[key] = prefixId;
    this.#keyHead[key] = -1;
    if (this.#keys * 2 > this.#keySlots.length) {
      this.#keySlots = new Int32Array(this.#keySlots.length * 2).fill(-1);
      for (let k = 0; k <= key; k++) this.#placeKey(k);
    } else {
      this.#placeKey(key);
    }
    return key;
  }

  #placeKey(key: number): void {
    const mask = this.#keySlots.length - 1;
    let at = hashKey(this.#keyPrefix[key]!, this.#keyE[key]!) & mask;
    while (this.#keySlots[at]! >= 0) at = (at + 1) & mask;
    this.#keySlots[at] = key;
  }

  #findKey(prefixId: number, e: number): number {
    const slots = this.#keySlots;
    const mask = slots.length - 1;
    for (let at = hashKey(prefixId, e) & mask; ; at = (at + 1) & mask) {
      const key = slots[at]!;
      if (key < 0 || (this.#keyE[key] === e && this.#keyPrefix[key] === prefixId)) return key;
    }
  }

  #growVersions(): void {
    const size = this.#lsn.length * 2;
    this.#lsn = grow(this.#lsn, new Float64Array(size));
    this.#older = grow(this.#older, new Int32Array(size));
    this.#chunkOf = grow(this.#chunkOf, new Uint32Array(size));
    this.#offsetOf = grow(this.#offsetOf, new Uint32Array(size));
    this.#lengthOf = grow(this.#lengthOf, new Uint32Array(size));
    this.#meta = grow(this.#meta, new Uint32Array(size));
  }
}

function grow<T extends Uint32Array | Int32Array | Float64Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

function hashPrefix(p: KeyPrefix): number {
  let h = Math.imul(p.c ^ (p.kind << 24) ^ (p.d << 20), 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 15) ^ p.b, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13) ^ p.a, 0xc2b2ae35);
  return h ^ (h >>> 16);
}

function hashKey(prefixId: number, e: number): number {
  let h = Math.imul(e ^ Math.imul(prefixId, 0x85ebca6b), 0x9e3779b1);
  h ^= h >>> 15;
  return Math.imul(h, 0x2c1b3c6d) ^ (h >>> 12);
}

function freePrefixSlot(slots: Int32Array, p: KeyPrefix): number {
  const mask = slots.length - 1;
  let at = hashPrefix(p) & mask;
  while (slots[at]! >= 0) at = (at + 1) & mask;
  return at;
}
