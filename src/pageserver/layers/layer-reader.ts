/**
 * Reads one layer file through the block cache.
 *
 * Look-ups are synchronous and total: they answer from cached blocks, and note in the ReadPass each block that is not there.
 * The caller fetches what was noted (fetchBlocks: few range GETs, one flight per block) and looks up again. That keeps
 * promises out of the loop over layers and blocks, and a pass that misses notes all it can see at once.
 */
import type {ObjectStore, RangeOptions} from '#objectstore/object-store.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import {crc32c} from '#runtime/crc.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {blockSize} from '#postgres/relation.ts';
import {
  type Key,
  type KeyPrefix,
  type KeyRange,
  compareKeyAt,
  keyBytes,
  keyKind,
  readKey,
} from '#pageserver/timeline/key.ts';
import {type Value, flagStartsHistory, readValue, valueHeaderBytes, valueKind} from '#pageserver/timeline/value.ts';
import type {LayerDescription} from '#pageserver/timeline/index-object.ts';
import type {BlockCache, BlockOwner, CachedBlock} from './block-cache.ts';
import {
  LayerCorruption,
  type LayerFooter,
  type ObjectIdentity,
  StoredBlock,
  blockType,
  checkHeader,
  corrupt,
  decodeFooter,
  decodeFrame,
  layerFooterBytes,
  layerHeaderBytes,
  objectIdentity,
} from './layer-format.ts';
import {indexBlockRawBytes, rootEntryBytes} from './layer-writer.ts';

/** Adjacent missing blocks are read in one request up to this size. */
const requestBytesMax = 4 * 1024 * 1024;
/** Bytes between two missing blocks that are read along rather than paid for with another request. */
const requestGapBytes = 64 * 1024;

/** Stored blocks of 64 pages that do not compress fit. */
const runMemoryBytes = 640 * 1024;

interface MissingBlock {
  readonly layer: LayerReader;
  readonly offset: number;
  readonly storedBytes: number;
  readonly type: number;
}

/** What one attempt to read has found missing, and the blocks that earlier attempts of the same read fetched. */
export class ReadPass {
  readonly #missing = new Map<LayerReader, Map<number, MissingBlock>>();
  /** Kept until the read ends, so that a cache smaller than one read cannot make it go round for ever. */
  readonly #fetched = new Map<LayerReader, FetchedBlocks>();
  readonly cache: BlockCache;
  /** Many pages in order are read. */
  readonly isRun: boolean;
  /** Where blocks of images are read for a run, if its asker has memory for them. */
  readonly memory: RunMemory | undefined;
  /** Layers looked into, for metrics. */
  layersVisited = 0;

  /** A block of images that is fetched for a run is used up at once: it would only push others out of the cache. */
  constructor(cache: BlockCache, isRun = false, memory?: RunMemory) {
    this.cache = cache;
    this.isRun = isRun;
    this.memory = memory;
  }

  /** Blocks have been noted that are to be fetched. */
  get lacks(): boolean {
    return this.#missing.size > 0;
  }

  block(layer: LayerReader, offset: number, storedBytes: number, type: number): Buffer | undefined {
    const cached = this.cache.find(layer, offset);
    if (cached !== undefined) return cached;
    const fetched = this.#fetched.get(layer)?.get(offset);
    if (fetched !== undefined) return fetched instanceof StoredBlock ? fetched.raw : fetched;
    this.#note(layer, offset, storedBytes, type);
    return undefined;
  }

  /** A block of images for a run: as it lies in the object, unless it happens to be in the cache. */
  imageBlock(layer: LayerReader, offset: number, storedBytes: number): Buffer | StoredBlock | undefined {
    const block = this.cache.find(layer, offset) ?? this.#fetched.get(layer)?.get(offset);
    if (block === undefined) this.#note(layer, offset, storedBytes, blockType.data);
    return block;
  }

  #note(layer: LayerReader, offset: number, storedBytes: number, type: number): void {
    let ofLayer = this.#missing.get(layer);
    if (ofLayer === undefined) this.#missing.set(layer, (ofLayer = new Map()));
    if (!ofLayer.has(offset)) ofLayer.set(offset, {layer, offset, storedBytes, type});
  }

  /** Fetches all missing blocks. Throws LayerCorruption, or ObjectStoreError. */
  async fetch(): Promise<void> {
    const wanted = [...this.#missing.values()].flatMap((blocks) =>
      [...blocks.values()].sort((x, y) => x.offset - y.offset),
    );
    this.#missing.clear();
    const flights: Promise<void>[] = [];
    for (let i = 0; i < wanted.length;) {
      const first = wanted[i]!;
      const group = [first];
      let end = first.offset + first.storedBytes;
      for (i++; i < wanted.length; i++) {
        const next = wanted[i]!;
        const nextEnd = next.offset + next.storedBytes;
        if (
          next.layer !== first.layer ||
          next.offset - end > requestGapBytes ||
          nextEnd - first.offset > requestBytesMax
        )
          break;
        group.push(next);
        end = nextEnd;
      }
      flights.push(this.#fetchGroup(first.layer, group, end));
    }
    await Promise.all(flights);
  }

  async #fetchGroup(layer: LayerReader, group: readonly MissingBlock[], end: number): Promise<void> {
    let blocks;
    try {
      blocks = await layer.fetchBlocks(group, end, this);
    } catch (error) {
      // The next attempt sees the layers that have taken its place.
      if (layer.retired) return;
      throw error;
    }
    const kept = this.#fetched.get(layer);
    if (kept === undefined) this.#fetched.set(layer, new Map(blocks));
    else for (const [offset, raw] of blocks) kept.set(offset, raw);
  }
}

/**
 * Memory for the stored blocks of one run, used again for another when its answer has been sent. (Fresh memory for each is the garbage
 * collector's largest customer.)
 */
export class RunMemory {
  readonly #bytes = Buffer.allocUnsafeSlow(runMemoryBytes);
  #taken = 0;
  /** Another read has blocks in it too: it cannot be used again. */
  isShared = false;

  take(length: number): Buffer | undefined {
    const from = this.#taken;
    if (from + length > runMemoryBytes) return undefined;
    this.#taken += length;
    return this.#bytes.subarray(from, from + length);
  }

  /** Nothing of what was taken is in use any more. */
  reset(): void {
    this.#taken = 0;
  }
}

/** By offset. Blocks of images that are fetched for a run are not unpacked. */
type FetchedBlocks = Map<number, Buffer | StoredBlock>;

/** Called for each version found, newest first. */
export type OnVersion = (value: Value) => void;

/**
 * 'done': history of the key starts in what was given. 'continue': look into older layers too. 'missing': blocks were noted
 * in the pass, and older layers may be needed too; 'done-missing': they are not.
 */
export type FindOutcome = 'done' | 'continue' | 'missing' | 'done-missing';

export class LayerReader implements BlockOwner {
  /** A merge narrows it (LayerMap.narrow); what is about the object itself never changes. */
  description: LayerDescription;
  /** The timeline consists of other layers by now, and the object may be gone: whoever misses it looks again. */
  retired = false;
  /** Look-ups, since whoever plans images has set it back. */
  visits = 0;
  readonly blocks = new Map<number, CachedBlock>();
  readonly #store: ObjectStore;
  /** Name of the object in the store. */
  readonly objectKey: string;
  readonly #identity: ObjectIdentity;
  readonly #cache: BlockCache;
  readonly #flights = new Map<
    number,
    {readonly blocks: Promise<FetchedBlocks>; readonly memory: RunMemory | undefined}
  >();
  readonly #onRead: (bytes: number) => void;
  readonly #onRepair: (damage: LayerCorruption) => void;

  constructor(options: {
    description: LayerDescription;
    store: ObjectStore;
    /** Name of the object in the store. */
    objectKey: string;
    /** `<tenant>/<timeline>/<name>` of the timeline that wrote it. */
    objectId: string;
    cache: BlockCache;
    onRead?: (bytes: number) => void;
    /** A block came damaged, and whole when it was asked for again. */
    onRepair?: (damage: LayerCorruption) => void;
  }) {
    this.description = options.description;
    this.#store = options.store;
    this.objectKey = options.objectKey;
    this.#identity = objectIdentity(options.objectId, options.description.generation);
    this.#cache = options.cache;
    this.#onRead = options.onRead ?? (() => {});
    this.#onRepair = options.onRepair ?? (() => {});
  }

  /**
   * Gives `onVersion` the versions of a key below `belowLsn` and not below `floorLsn`, newest first, until one that starts
   * history. With blocks missing, what was given is void.
   */
  find(pass: ReadPass, p: KeyPrefix, e: number, belowLsn: number, floorLsn: number, onVersion: OnVersion): FindOutcome {
    const root = this.#root(pass);
    if (root === undefined) return 'missing';
    pass.layersVisited++;
    this.visits++;
    let at = lastRootEntry(root, p, e, belowLsn);
    let outcome: FindOutcome = 'continue';
    for (; at >= 0; at--) {
      const entry = 4 + at * rootEntryBytes;
      const index = this.#indexBlock(pass, root, entry);
      if (index === undefined) return 'missing';
      const found = this.#findInBlock(pass, index, p, e, belowLsn, floorLsn, onVersion);
      if (found === 'done-missing') return 'done-missing';
      if (found === 'missing') outcome = 'missing';
      else if (found === 'done') return outcome === 'missing' ? 'done-missing' : 'done';
      // A key's older versions are in the block before only when this block begins with the key.
      if (compareKeyAt(root, entry, p, e) !== 0) break;
    }
    return outcome;
  }

  /** Calls `found` for every key of the range. False: blocks are missing. */
  scanKeys(pass: ReadPass, range: KeyRange, found: (key: Key) => void): boolean {
    const start = readKey(range.start, 0);
    const root = this.#root(pass);
    if (root === undefined) return false;
    let complete = true;
    const count = root.readUInt32LE(0);
    for (let at = Math.max(0, lastRootEntry(root, start.prefix, start.e, 0)); at < count; at++) {
      const entry = 4 + at * rootEntryBytes;
      if (root.compare(range.end, 0, keyBytes, entry, entry + keyBytes) >= 0) break;
      const index = this.#indexBlock(pass, root, entry);
      if (index === undefined) {
        complete = false;
        continue;
      }
      const keys = index.readUInt32LE(0);
      for (let k = 0; k < keys; k++) {
        const offset = 12 + k * keyBytes;
        if (index.compare(range.start, 0, keyBytes, offset, offset + keyBytes) < 0) continue;
        if (index.compare(range.end, 0, keyBytes, offset, offset + keyBytes) >= 0) return complete;
        found(readKey(index, offset));
      }
    }
    return complete;
  }

  /**
   * Reads the whole object and checks size, checksum, header, footer and every block. Throws LayerCorruption or
   * ObjectStoreError.
   */
  async verify(object?: Buffer): Promise<LayerFooter> {
    const {size, checksum} = this.description;
    const bytes = object ?? (await this.#store.get(this.objectKey));
    if (bytes.length !== size)
      throw corrupt(this.#identity, bytes.length, `the object has ${bytes.length} bytes, its index says ${size}`);
    if (crc32c(bytes) !== checksum)
      throw corrupt(this.#identity, 0, 'the checksum of the object differs from its index');
    checkHeader(this.#identity, bytes.subarray(0, layerHeaderBytes));
    const footerAt = size - layerFooterBytes;
    const footer = decodeFooter(this.#identity, footerAt, bytes.subarray(footerAt));
    const frame = (offset: number, stored: number, type: number): Buffer =>
      decodeFrame(this.#identity, offset, type, bytes.subarray(offset, offset + stored));
    const root = this.#checkRoot(frame(footer.rootOffset, footer.rootStoredBytes, blockType.root));
    for (let i = 0; i < root.readUInt32LE(0); i++) {
      const {offset, storedBytes} = rootBlock(root, 4 + i * rootEntryBytes);
      const index = this.#checkIndex(offset, frame(offset, storedBytes, blockType.index));
      const layout = layoutOf(index);
      for (let b = 0; b < layout.blocks; b++) {
        const at = layout.blocksAt + b * 12;
        frame(u64(index, at), index.readUInt32LE(at + 8), blockType.data);
      }
    }
    return footer;
  }

  /** Stored bytes of the object, past the cache: for those who read a layer once, in order. */
  async readStored(offset: number, length: number): Promise<Buffer> {
    return this.#getRange(offset, length);
  }

  /** Verifies and decompresses a data or index block that was read with readStored(). Throws LayerCorruption. */
  decodeStored(offset: number, type: number, stored: Buffer): Buffer {
    const raw = decodeFrame(this.#identity, offset, type, stored);
    return type === blockType.index ? this.#checkIndex(offset, raw) : raw;
  }

  /** The root block, past the cache. */
  async readRoot(): Promise<Buffer> {
    const {rootOffset, size} = this.description;
    return this.#decodeRoot(rootOffset, await this.readStored(rootOffset, size - rootOffset));
  }

  /** The first key of each index block, in order: where in its keys a layer has how much. Past the cache. */
  async outline(): Promise<Buffer[]> {
    const root = await this.readRoot();
    return Array.from({length: root.readUInt32LE(0)}, (_, i) =>
      root.subarray(4 + i * rootEntryBytes).subarray(0, keyBytes),
    );
  }

  /** One flight for blocks of this layer that lie in [group[0].offset, end). */
  async fetchBlocks(group: readonly MissingBlock[], end: number, pass: ReadPass): Promise<FetchedBlocks> {
    const start = group[0]!.offset;
    const joined = this.#flights.get(start);
    if (joined !== undefined) {
      if (joined.memory !== undefined) joined.memory.isShared = true;
      const blocks = await joined.blocks;
      if (group.every((b) => blocks.has(b.offset))) return blocks;
    }
    // Nothing but blocks that stay packed: of those that are unpacked here a view may go into the cache.
    const memory = group.every((b) => this.#staysPacked(b, pass.isRun)) ? pass.memory : undefined;
    const flight = {blocks: this.#fetchNow(group, start, end, pass.isRun, memory?.take(end - start)), memory};
    this.#flights.set(start, flight);
    try {
      return await flight.blocks;
    } finally {
      if (this.#flights.get(start) === flight) this.#flights.delete(start);
    }
  }

  #staysPacked({type}: MissingBlock, isRun: boolean): boolean {
    return isRun && this.description.kind === 'image' && type === blockType.data;
  }

  async #fetchNow(
    group: readonly MissingBlock[],
    start: number,
    end: number,
    isRun: boolean,
    into: Buffer | undefined,
  ): Promise<FetchedBlocks> {
    const objectBytes = this.description.size;
    const options = into === undefined ? {objectBytes} : {objectBytes, into};
    try {
      return this.#decode(group, start, await this.#getRange(start, end - start, options), isRun);
    } catch (error) {
      if (!(error instanceof LayerCorruption)) throw error;
      // Perhaps only the way, or a copy on local disk, is damaged: once more, from the object itself.
      const bytes = await this.#getRange(start, end - start, {objectBytes, fresh: true});
      const blocks = this.#decode(group, start, bytes, isRun);
      this.#onRepair(error);
      return blocks;
    }
  }

  #decode(group: readonly MissingBlock[], start: number, bytes: Buffer, isRun: boolean): FetchedBlocks {
    const blocks: FetchedBlocks = new Map();
    for (const b of group) {
      const stored = bytes.subarray(b.offset - start, b.offset - start + b.storedBytes);
      if (this.#staysPacked(b, isRun)) {
        blocks.set(b.offset, new StoredBlock(this.#identity, b.offset, b.type, stored));
        continue;
      }
      let raw: Buffer;
      if (b.type === blockType.root) raw = this.#decodeRoot(b.offset, stored);
      else raw = this.decodeStored(b.offset, b.type, stored);
      blocks.set(b.offset, raw);
      this.#cache.insert(this, b.offset, raw);
    }
    return blocks;
  }

  async #getRange(start: number, length: number, options?: RangeOptions): Promise<Buffer> {
    try {
      const bytes = await this.#store.getRange(this.objectKey, start, length, options);
      this.#onRead(bytes.length);
      return bytes;
    } catch (error) {
      if (error instanceof ObjectStoreError && (error.code === 'bad-range' || error.code === 'not-found'))
        throw corrupt(this.#identity, start, error.message);
      throw error;
    }
  }

  /** Root and footer come in one read. */
  #decodeRoot(offset: number, stored: Buffer): Buffer {
    const footerAt = stored.length - layerFooterBytes;
    const footer = decodeFooter(this.#identity, offset + footerAt, stored.subarray(footerAt));
    if (footer.rootOffset !== offset || footer.rootStoredBytes !== footerAt)
      throw corrupt(this.#identity, offset, 'the footer names another root');
    return this.#checkRoot(decodeFrame(this.#identity, offset, blockType.root, stored.subarray(0, footerAt)));
  }

  #root(pass: ReadPass): Buffer | undefined {
    const {rootOffset, size} = this.description;
    return pass.block(this, rootOffset, size - rootOffset, blockType.root);
  }

  #indexBlock(pass: ReadPass, root: Buffer, entry: number): Buffer | undefined {
    const {offset, storedBytes} = rootBlock(root, entry);
    return pass.block(this, offset, storedBytes, blockType.index);
  }

  #checkRoot(root: Buffer): Buffer {
    if (root.length < 4 || root.length !== 4 + root.readUInt32LE(0) * rootEntryBytes)
      throw corrupt(this.#identity, this.description.rootOffset, `root of ${root.length} bytes`);
    return root;
  }

  #checkIndex(offset: number, index: Buffer): Buffer {
    if (
      index.length < 12 ||
      index.length !== indexBlockRawBytes(index.readUInt32LE(0), index.readUInt32LE(4), index.readUInt32LE(8))
    )
      throw corrupt(this.#identity, offset, `index block of ${index.length} bytes`);
    return index;
  }

  #findInBlock(
    pass: ReadPass,
    index: Buffer,
    p: KeyPrefix,
    e: number,
    belowLsn: number,
    floorLsn: number,
    onVersion: OnVersion,
  ): FindOutcome {
    const keys = u32(index, 0);
    let low = 0;
    let high = keys - 1;
    let key = -1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const order = compareKeyAt(index, 12 + middle * keyBytes, p, e);
      if (order === 0) {
        key = middle;
        break;
      }
      if (order < 0) low = middle + 1;
      else high = middle - 1;
    }
    if (key < 0) return 'continue';
    const layout = layoutOf(index);
    const first = u32(index, layout.firstVersionAt + key * 4);
    let v = u32(index, layout.firstVersionAt + key * 4 + 4) - 1;
    // Most reads want the newest version; only then search.
    if (v >= first && u64(index, layout.lsnsAt + v * 8) >= belowLsn) {
      low = first;
      high = v;
      while (low < high) {
        const middle = (low + high) >>> 1;
        if (u64(index, layout.lsnsAt + middle * 8) >= belowLsn) high = middle;
        else low = middle + 1;
      }
      v = low - 1;
    }
    let missing = false;
    // The versions of a key mostly lie in one block.
    let blockNumber = -1;
    let data: Buffer | StoredBlock | undefined;
    const wantsStored = pass.isRun && this.description.kind === 'image' && p.kind === keyKind.relPage;
    for (; v >= first; v--) {
      const lsn = u64(index, layout.lsnsAt + v * 8);
      if (lsn < floorLsn) break; // older layers hold nothing above the floor either, but an image below it may be wanted
      const packed = u32(index, layout.offsetsAt + v * 4);
      const itsBlock = u16(index, layout.blockNumbersAt + v * 2);
      if (itsBlock !== blockNumber) {
        blockNumber = itsBlock;
        const blockAt = layout.blocksAt + itsBlock * 12;
        const offset = u64(index, blockAt);
        const storedBytes = u32(index, blockAt + 8);
        data = wantsStored
          ? pass.imageBlock(this, offset, storedBytes)
          : pass.block(this, offset, storedBytes, blockType.data);
      }
      if (data === undefined) missing = true;
      else if (!missing) {
        if (data instanceof StoredBlock) onVersion(this.#storedImage(data, index, layout, v, lsn as Lsn));
        else onVersion(readValue(data, packed >>> 1, lsn as Lsn));
      }
      if ((packed & 1) !== 0) return missing ? 'done-missing' : 'done';
    }
    return missing ? 'missing' : 'continue';
  }

  /** The version number `v` of an index block, which lies in `block`. A page of an image layer is told by its size alone. */
  #storedImage(block: StoredBlock, index: Buffer, layout: IndexLayout, v: number, lsn: Lsn): Value {
    const offset = u32(index, layout.offsetsAt + v * 4) >>> 1;
    const blockNumber = u16(index, layout.blockNumbersAt + v * 2);
    const isLast = v + 1 >= u32(index, 4) || u16(index, layout.blockNumbersAt + (v + 1) * 2) !== blockNumber;
    const end = isLast ? block.rawLength : u32(index, layout.offsetsAt + (v + 1) * 4) >>> 1;
    return end - offset === valueHeaderBytes + blockSize
      ? new PackedPage(lsn, block, offset + valueHeaderBytes)
      : readValue(block.raw, offset, lsn);
  }
}

/** An image of a page within a block that nobody has unpacked yet. */
export class PackedPage implements Value {
  readonly lsn: Lsn;
  readonly block: StoredBlock;
  /** Of the page, in the raw block. */
  readonly offset: number;

  constructor(lsn: Lsn, block: StoredBlock, offset: number) {
    this.lsn = lsn;
    this.block = block;
    this.offset = offset;
  }

  get kind(): number {
    return valueKind.image;
  }
  get flags(): number {
    return flagStartsHistory;
  }
  get blockId(): number {
    return 0;
  }
  get payload(): Buffer {
    return this.block.raw.subarray(this.offset, this.offset + blockSize);
  }
}

export interface IndexLayout {
  blocks: number;
  firstVersionAt: number;
  lsnsAt: number;
  offsetsAt: number;
  blockNumbersAt: number;
  blocksAt: number;
}

export function layoutOf(index: Buffer): IndexLayout {
  const keys = u32(index, 0);
  const versions = u32(index, 4);
  const firstVersionAt = 12 + keys * keyBytes;
  const lsnsAt = firstVersionAt + (keys + 1) * 4;
  const offsetsAt = lsnsAt + versions * 8;
  const blockNumbersAt = offsetsAt + versions * 4;
  return {
    blocks: u32(index, 8),
    firstVersionAt,
    lsnsAt,
    offsetsAt,
    blockNumbersAt,
    blocksAt: blockNumbersAt + versions * 2,
  };
}

/** Number of the last root entry whose (key, LSN) is not above (key, belowLsn - 1), or -1. */
function lastRootEntry(root: Buffer, p: KeyPrefix, e: number, belowLsn: number): number {
  let low = 0;
  let high = u32(root, 0) - 1;
  let found = -1;
  while (low <= high) {
    const middle = (low + high) >>> 1;
    const at = 4 + middle * rootEntryBytes;
    const order = compareKeyAt(root, at, p, e) || (u64(root, at + keyBytes) < belowLsn ? -1 : 1);
    if (order < 0) {
      found = middle;
      low = middle + 1;
    } else high = middle - 1;
  }
  return found;
}

export function rootBlock(root: Buffer, entry: number): {offset: number; storedBytes: number} {
  return {offset: u64(root, entry + keyBytes + 8), storedBytes: u32(root, entry + keyBytes + 16)};
}

function u16(b: Buffer, at: number): number {
  return b[at]! | (b[at + 1]! << 8);
}
function u32(b: Buffer, at: number): number {
  return (b[at]! | (b[at + 1]! << 8) | (b[at + 2]! << 16) | (b[at + 3]! << 24)) >>> 0;
}
function u64(b: Buffer, at: number): number {
  return u32(b, at) + u32(b, at + 4) * 4294967296;
}
