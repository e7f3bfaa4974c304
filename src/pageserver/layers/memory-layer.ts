/**
 * The layer that ingest writes into, and, once frozen, the source of a delta layer file.
 *
 * Values lie one after the other in chunks (the arena); a large chunk of WAL becomes a chunk of the arena itself, so that its
 * records are not copied. Two open-addressed hash tables find values: prefix → prefix id, and (prefix id, e) → newest version.
 * A key's versions are a list from the newest to the oldest. Everything is typed arrays: a put allocates nothing, the
 * garbage collector has nothing to walk, and the memory used is known to the byte.
 *
 * Puts come in LSN order. Several values of one key at one LSN are kept in the order of their puts.
 */
import {assert} from '#runtime/assert.ts';
import type {Lsn} from '#postgres/lsn.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {type KeyPrefix, comparePrefixes, samePrefix} from '#pageserver/timeline/key.ts';
import {StoredValue, type Value, valueKind} from '#pageserver/timeline/value.ts';

const chunkBytesFirst = 16 * 1024;
const chunkBytesMax = 1024 * 1024;
/** A chunk of WAL from this size on is kept as it is, unless it pins much more memory than it has. */
const adoptedBytesMin = 16 * 1024;
/** Sorting packs (e, slot) into one double: 32 + 21 bits. */
const slotsMax = 1 << 21;
/** The table is doubled when it is half full; the largest is filled this far, and freezing is due a good deal before. */
const keysMax = slotsMax * 0.875;
const keysDue = slotsMax * 0.7;

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

/**
 * Versions, 24 bytes each, as doubles and as words:
 *   f64 LSN | u32 older version of the key, or all ones | u32 chunk << 16 | blockId << 8 | flags << 4 | kind | u32 offset in
 *   the chunk | u32 length
 */
interface Segment {
  readonly lsns: Float64Array;
  readonly words: Uint32Array;
}

const versionBytes = 24;
const segmentBits = 14;
const segmentVersions = 1 << segmentBits;
const chunksMax = 0xffff;

function newSegment(versions: number): Segment {
  const bytes = new ArrayBuffer(versions * versionBytes);
  return {lsns: new Float64Array(bytes), words: new Uint32Array(bytes)};
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
  /** Four words per slot, so that a look-up touches one cache line: prefix id + 1 (0: free), e, newest version, unused. */
  #slots = new Int32Array(64 * 4);

  #versions = 0;
  /** The first one grows to its full size; then there is another. */
  readonly #segments: Segment[] = [newSegment(32)];
  #segment = this.#segments[0]!;
  #segmentBytes = 32 * versionBytes;

  readonly #chunks: Buffer[] = [];
  #arenaBytes = 0;
  /** The chunk that is being filled: its place in #chunks, and its first free byte. */
  #filling = -1;
  #free = 0;
  /** The last chunk of WAL that was kept, and its place. */
  #adopted: Buffer | undefined;
  #adoptedChunk = -1;
  /** LSN of the last record that was copied: one that touches several pages is copied once. */
  #copiedLsn = -1;
  #copiedChunk = 0;
  #copiedOffset = 0;

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
    return this.#arenaBytes + this.#segmentBytes + this.#slots.length * 4;
  }
  /** No more keys may be added: freeze. */
  get isFull(): boolean {
    return this.#keys >= keysDue || this.#chunks.length >= chunksMax / 2;
  }

  /** What stands for the prefix in this layer. */
  prefixId(p: KeyPrefix): number {
    return this.#addPrefix(p);
  }

  /** `payload` is copied. */
  put(prefixId: number, e: number, lsn: Lsn, kind: number, flags: number, payload: Buffer): void {
    assert(kind < 16 && flags < 16, 'kinds and flags have four bits in memory');
    const length = payload.length;
    const chunk = this.#reserve(length);
    const offset = this.#free;
    if (length < 48) for (let i = 0; i < length; i++) chunk[offset + i] = payload[i]!;
    else payload.copy(chunk, offset);
    this.#free = offset + length;
    this.#addVersion(prefixId, e, lsn, (flags << 4) | kind, this.#filling, offset, length);
  }

  /** Block `blockId` of the record is the page. The record's bytes are kept where they are, or copied. */
  putRecord(prefixId: number, e: number, record: WalRecord, flags: number, blockId: number): void {
    const {bytes, endLsn} = record;
    const meta = (blockId << 8) | (flags << 4) | valueKind.record;
    const length = record.totalLength;
    if (bytes === this.#adopted || this.#adopt(bytes)) {
      this.#addVersion(prefixId, e, endLsn, meta, this.#adoptedChunk, record.offset, length);
      return;
    }
    if (this.#copiedLsn !== endLsn) {
      const chunk = this.#reserve(length);
      bytes.copy(chunk, this.#free, record.offset, record.offset + length);
      this.#copiedLsn = endLsn;
      this.#copiedChunk = this.#filling;
      this.#copiedOffset = this.#free;
      this.#free += length;
    }
    this.#addVersion(prefixId, e, endLsn, meta, this.#copiedChunk, this.#copiedOffset, length);
  }

  freeze(endLsn: Lsn): void {
    assert(this.endLsn === undefined && endLsn >= this.startLsn, 'a layer is frozen once');
    this.endLsn = endLsn;
    this.#adopted = undefined;
  }

  /** Id of the newest version below `belowLsn`, or -1. */
  find(p: KeyPrefix, e: number, belowLsn: number): number {
    const prefixId = this.#findPrefix(p);
    if (prefixId < 0) return -1;
    const slot = this.#findSlot(prefixId, e);
    let v = this.#slots[slot] === 0 ? -1 : this.#slots[slot + 2]!;
    while (v >= 0 && this.lsnOf(v) >= belowLsn) v = this.olderThan(v);
    return v;
  }

  /** The next older version of the same key, or -1. */
  olderThan(version: number): number {
    return this.#segments[version >>> segmentBits]!.words[(version & (segmentVersions - 1)) * 6 + 2]! | 0;
  }

  lsnOf(version: number): Lsn {
    return this.#segments[version >>> segmentBits]!.lsns[(version & (segmentVersions - 1)) * 3]! as Lsn;
  }

  value(version: number): Value {
    const {words} = this.#segments[version >>> segmentBits]!;
    const at = (version & (segmentVersions - 1)) * 6;
    const meta = words[at + 3]!;
    const offset = words[at + 4]!;
    const chunk = this.#chunks[meta >>> 16]!;
    return new StoredValue(
      this.lsnOf(version),
      meta & 0xf,
      (meta >>> 4) & 0xf,
      (meta >>> 8) & 0xff,
      chunk,
      offset,
      words[at + 5]!,
    );
  }

  /** Calls `found` for every key between the prefixes, in no order. `low` and `high` are inclusive. */
  scanPrefixes(matches: (p: KeyPrefix) => boolean, found: (p: KeyPrefix, e: number) => void): void {
    const wanted = this.#prefixes.map(matches);
    if (!wanted.includes(true)) return;
    const slots = this.#slots;
    for (let slot = 0; slot < slots.length; slot += 4) {
      const id = slots[slot]! - 1;
      if (id >= 0 && wanted[id]) found(this.#prefixes[id]!, slots[slot + 1]! >>> 0);
    }
  }

  /** All versions by key, then LSN, then order of put. */
  *entries(): Generator<LayerEntry> {
    const order = Array.from(this.#prefixes.keys()).sort((x, y) =>
      comparePrefixes(this.#prefixes[x]!, this.#prefixes[y]!),
    );
    const ends = new Uint32Array(this.#prefixes.length + 1);
    const slots = this.#slots;
    for (let slot = 0; slot < slots.length; slot += 4) ends[slots[slot]!]!++;
    ends[0] = 0; // free slots were counted there
    for (let i = 0; i < this.#prefixes.length; i++) ends[i + 1]! += ends[i]!;
    const starts = ends.slice();
    const packed = new Float64Array(this.#keys);
    for (let slot = 0; slot < slots.length; slot += 4) {
      const id = slots[slot]! - 1;
      if (id >= 0) packed[starts[id]!++] = (slots[slot + 1]! >>> 0) * slotsMax + slot / 4;
    }
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
        const slot = (sorted[i]! % slotsMax) * 4;
        entry.e = slots[slot + 1]! >>> 0;
        versions.length = 0;
        for (let v = slots[slot + 2]!; v >= 0; v = this.olderThan(v)) versions.push(v);
        for (let n = versions.length - 1; n >= 0; n--) {
          const v = versions[n]!;
          const {words} = this.#segments[v >>> segmentBits]!;
          const at = (v & (segmentVersions - 1)) * 6;
          const meta = words[at + 3]!;
          entry.lsn = this.lsnOf(v);
          entry.chunk = this.#chunks[meta >>> 16]!;
          entry.offset = words[at + 4]!;
          entry.length = words[at + 5]!;
          entry.kind = meta & 0xf;
          entry.flags = (meta >>> 4) & 0xf;
          entry.blockId = (meta >>> 8) & 0xff;
          yield entry;
        }
      }
    }
  }

  #addVersion(
    prefixId: number,
    e: number,
    lsn: Lsn,
    meta: number,
    chunk: number,
    offset: number,
    length: number,
  ): void {
    assert(this.endLsn === undefined, 'no put into a frozen layer');
    const v = this.#versions++;
    const i = v & (segmentVersions - 1);
    if (i * 3 >= this.#segment.lsns.length || (i === 0 && v > 0)) this.#growVersions(v);
    let slot = this.#findSlot(prefixId, e);
    if (this.#slots[slot] === 0) slot = this.#addKey(slot, prefixId, e);
    const slots = this.#slots;
    const {lsns, words} = this.#segment;
    const at = i * 6;
    lsns[i * 3] = lsn;
    words[at + 2] = slots[slot + 2]!;
    words[at + 3] = (chunk << 16) | meta;
    words[at + 4] = offset;
    words[at + 5] = length;
    slots[slot + 2] = v;
  }

  /** Makes the chunk a chunk of the arena, if it is large enough to be worth it. */
  #adopt(chunk: Buffer): boolean {
    if (chunk.length < adoptedBytesMin || chunk.length * 2 < chunk.buffer.byteLength) return false;
    this.#adopted = chunk;
    this.#adoptedChunk = this.#chunks.push(chunk) - 1;
    this.#arenaBytes += chunk.length;
    return true;
  }

  #reserve(length: number): Buffer {
    const current = this.#chunks[this.#filling];
    if (current !== undefined && current.length - this.#free >= length) return current;
    const grown = Math.min(chunkBytesMax, Math.max(chunkBytesFirst, this.#arenaBytes));
    // Without the pool: a chunk lives as long as the layer, a pooled slab would be kept alive with it.
    const chunk = Buffer.allocUnsafeSlow(Math.max(grown, length));
    this.#filling = this.#chunks.push(chunk) - 1;
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

  /** Takes the free slot for a new key; answers where the key is, for the table may have been doubled. */
  #addKey(free: number, prefixId: number, e: number): number {
    this.#keys++;
    assert(this.#keys <= keysMax, 'a memory layer is frozen before it is full');
    let slot = free;
    const before = this.#slots;
    if (this.#keys * 8 > before.length && before.length < slotsMax * 4) {
      const slots = new Int32Array(before.length * 2);
      this.#slots = slots;
      for (let from = 0; from < before.length; from += 4) {
        if (before[from] === 0) continue;
        const to = this.#findSlot(before[from]! - 1, before[from + 1]!);
        slots[to] = before[from]!;
        slots[to + 1] = before[from + 1]!;
        slots[to + 2] = before[from + 2]!;
      }
      slot = this.#findSlot(prefixId, e);
    }
    this.#slots[slot] = prefixId + 1;
    this.#slots[slot + 1] = e;
    this.#slots[slot + 2] = -1;
    return slot;
  }

  /** Index in #slots of the key, or of the free slot where it would be. */
  #findSlot(prefixId: number, e: number): number {
    const slots = this.#slots;
    const mask = slots.length - 1;
    const low = e | 0;
    for (let at = (hashKey(prefixId, low) << 2) & mask; ; at = (at + 4) & mask) {
      const id = slots[at]!;
      if (id === 0 || (slots[at + 1] === low && id === prefixId + 1)) return at;
    }
  }

  /** Makes room for version `v`, the first that has none. */
  #growVersions(v: number): void {
    const full = (v & (segmentVersions - 1)) === 0;
    const grown = newSegment(full ? segmentVersions : v * 2);
    if (!full) {
      grown.words.set(this.#segment.words);
      this.#segments.pop();
      this.#segmentBytes -= this.#segment.words.byteLength;
    }
    this.#segments.push(grown);
    this.#segmentBytes += grown.words.byteLength;
    this.#segment = grown;
  }
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
