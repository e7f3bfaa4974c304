/** Builds the bytes of a layer file from versions that come in (key, LSN) order. See layer-format.ts. */
import {assert} from '#runtime/assert.ts';
import type {Clock} from '#runtime/clock.ts';
import {crc32c} from '#runtime/crc.ts';
import {type Lsn, writeLsn64} from '#postgres/lsn.ts';
import {type KeyPrefix, comparePrefixes, keyBytes, keyKind, samePrefix, writeKey} from '#pageserver/timeline/key.ts';
import {flagStartsHistory, valueHeaderBytes, valueKind} from '#pageserver/timeline/value.ts';
import {
  type LayerHeader,
  type ObjectIdentity,
  type PackedBlock,
  blockType,
  encodeFooter,
  encodeFrame,
  encodeHeader,
  layerFlagImage,
  packBlock,
} from './layer-format.ts';

/** A data block is closed when it would hold more: three pages. Larger values get a block of their own. */
const dataBlockBytes = 32 * 1024;
/** An index block is closed at about this size. */
const indexBlockBytes = 16 * 1024;
export const rootEntryBytes = keyBytes + 8 + 8 + 4;
const joinStepBytes = 2 * 1024 * 1024;
/** Versions of one index block address their data blocks with 16 bits. */
const indexDataBlocksMax = 60000;

export interface FinishedLayer {
  /** The file, in pieces. */
  readonly pieces: readonly Buffer[];
  readonly size: number;
  /** CRC-32C of the whole file. */
  readonly checksum: number;
  readonly rootOffset: number;
  /** First key, and last key (inclusive), encoded. */
  readonly firstKey: Buffer;
  readonly lastKey: Buffer;
  readonly keys: number;
  readonly versions: number;
}

export class LayerWriter {
  readonly #identity: ObjectIdentity;
  readonly #header: LayerHeader;
  readonly #pieces: Buffer[] = [];
  #offset = 0;

  #block = Buffer.allocUnsafe(dataBlockBytes * 2);
  #blockLength = 0;
  #dataBlocks = 0;

  // The index block being filled. Versions of the data block that is still open have the number of the next block.
  #indexKeys: Buffer = Buffer.allocUnsafe(keyBytes * 1024);
  #indexKeyCount = 0;
  #firstVersion: number[] = [];
  #indexLsns: number[] = [];
  #indexBlockNumbers: number[] = [];
  #indexOffsets: number[] = [];
  /** Data blocks that this index block refers to: offset, stored length. */
  #blockOffsets: number[] = [];
  #blockLengths: number[] = [];
  #indexBlocks = 0;
  readonly #pendingIndex: {packed: PackedBlock; firstKey: Buffer; firstLsn: Lsn}[] = [];
  #checksum = 0;

  #lastPrefix: KeyPrefix | undefined;
  #lastE = -1;
  #lastLsn = -1;
  #firstKey: Buffer | undefined;
  #keys = 0;
  #versions = 0;

  constructor(identity: ObjectIdentity, header: LayerHeader) {
    this.#identity = identity;
    this.#header = header;
    this.#append([encodeHeader(identity, header)]);
  }

  /** Bytes written so far. */
  get size(): number {
    return this.#offset + this.#blockLength;
  }

  /** Adds one version; `chunk[offset … offset+length)` is its payload. */
  add(
    p: KeyPrefix,
    e: number,
    lsn: Lsn,
    kind: number,
    flags: number,
    blockId: number,
    chunk: Buffer,
    offset: number,
    length: number,
  ): void {
    const sameKey = this.#lastPrefix !== undefined && this.#lastE === e && samePrefix(this.#lastPrefix, p);
    if (sameKey) assert(lsn >= this.#lastLsn, 'versions of a key come in LSN order');
    else if (this.#lastPrefix !== undefined) {
      const order = comparePrefixes(this.#lastPrefix, p) || this.#lastE - e;
      assert(order < 0, 'keys come in order');
    }
    // A reader of a run tells an image by its size, without looking at it (PackedPage).
    if ((this.#header.flags & layerFlagImage) !== 0 && p.kind === keyKind.relPage)
      assert(kind !== valueKind.record && kind !== valueKind.patch, 'pages of an image layer are images');
    assert(lsn >= this.#header.startLsn && lsn < this.#header.endLsn, 'a version lies in the LSN range of its layer');

    const bytes = valueHeaderBytes + length;
    if (this.#blockLength > 0 && this.#blockLength + bytes > dataBlockBytes) this.#endDataBlock();
    if (!sameKey) {
      if (this.#indexSize() >= indexBlockBytes) this.#endIndexBlock();
      this.#beginKey(p, e);
      this.#keys++;
    } else if (this.#indexSize() >= indexBlockBytes * 2 || this.#blockOffsets.length >= indexDataBlocksMax) {
      // A key with very many versions goes on in the next index block.
      this.#endIndexBlock();
      this.#beginKey(p, e);
    }
    this.#indexLsns.push(lsn);
    this.#indexBlockNumbers.push(this.#blockOffsets.length);
    this.#indexOffsets.push(this.#blockLength * 2 + ((flags & flagStartsHistory) !== 0 ? 1 : 0));

    this.#reserve(bytes);
    const block = this.#block;
    const at = this.#blockLength;
    block[at] = kind;
    block[at + 1] = flags;
    block[at + 2] = blockId;
    block[at + 3] = 0;
    block.writeUInt32LE(length, at + 4);
    chunk.copy(block, at + valueHeaderBytes, offset, offset + length);
    this.#blockLength = at + bytes;
    this.#versions++;
    this.#lastPrefix = p;
    this.#lastE = e;
    this.#lastLsn = lsn;
  }

  /** Writes index, root and footer. At least one version must have been added. */
  finish(): FinishedLayer {
    assert(this.#firstKey !== undefined && this.#lastPrefix !== undefined, 'a layer holds at least one version');
    this.#endIndexBlock();
    const root = Buffer.alloc(4 + this.#pendingIndex.length * rootEntryBytes);
    root.writeUInt32LE(this.#pendingIndex.length, 0);
    this.#pendingIndex.forEach((block, i) => {
      const at = 4 + i * rootEntryBytes;
      block.firstKey.copy(root, at);
      writeLsn64(root, at + keyBytes, block.firstLsn);
      writeLsn64(root, at + keyBytes + 8, this.#offset as Lsn);
      root.writeUInt32LE(this.#append(encodeFrame(this.#identity, this.#offset, block.packed)), at + keyBytes + 16);
    });
    const rootOffset = this.#offset;
    const rootStoredBytes = this.#append(encodeFrame(this.#identity, rootOffset, packBlock(blockType.root, root)));
    this.#append([
      encodeFooter(this.#identity, this.#offset, {
        flags: this.#header.flags,
        rootOffset,
        rootStoredBytes,
        dataBlocks: this.#dataBlocks,
        indexBlocks: this.#indexBlocks,
        keys: this.#keys,
        versions: this.#versions,
      }),
    ]);
    const lastKey = Buffer.alloc(keyBytes);
    writeKey(lastKey, 0, this.#lastPrefix, this.#lastE);
    return {
      pieces: this.#pieces,
      size: this.#offset,
      checksum: this.#checksum,
      rootOffset,
      firstKey: this.#firstKey,
      lastKey,
      keys: this.#keys,
      versions: this.#versions,
    };
  }

  #append(pieces: readonly Buffer[]): number {
    let length = 0;
    for (const piece of pieces) {
      this.#pieces.push(piece);
      this.#checksum = crc32c(piece, this.#checksum);
      length += piece.length;
    }
    this.#offset += length;
    return length;
  }

  #beginKey(p: KeyPrefix, e: number): void {
    const at = this.#indexKeyCount * keyBytes;
    if (at + keyBytes > this.#indexKeys.length) this.#indexKeys = Buffer.concat([this.#indexKeys, this.#indexKeys]);
    writeKey(this.#indexKeys, at, p, e);
    this.#indexKeyCount++;
    this.#firstVersion.push(this.#indexLsns.length);
    this.#firstKey ??= Buffer.from(this.#indexKeys.subarray(0, keyBytes));
  }

  #indexSize(): number {
    return this.#indexKeyCount * (keyBytes + 4) + this.#indexLsns.length * 14 + this.#blockOffsets.length * 12;
  }

  #reserve(bytes: number): void {
    if (this.#blockLength + bytes <= this.#block.length) return;
    const larger = Buffer.allocUnsafe(this.#blockLength + bytes);
    this.#block.copy(larger, 0, 0, this.#blockLength);
    this.#block = larger;
  }

  #endDataBlock(): void {
    if (this.#blockLength === 0) return;
    // encodeFrame may keep the raw bytes when they do not compress: they are copied out of the reused buffer first.
    const raw = Buffer.from(this.#block.subarray(0, this.#blockLength));
    const offset = this.#offset;
    const stored = this.#append(encodeFrame(this.#identity, offset, packBlock(blockType.data, raw)));
    this.#blockOffsets.push(offset);
    this.#blockLengths.push(stored);
    this.#dataBlocks++;
    this.#blockLength = 0;
    if (this.#block.length > 4 * dataBlockBytes) this.#block = Buffer.allocUnsafe(dataBlockBytes * 2);
  }

  /** Index blocks are kept back and written after all data blocks, so that one read gets index and root of a small layer. */
  #endIndexBlock(): void {
    this.#endDataBlock();
    if (this.#indexKeyCount === 0) return;
    const keys = this.#indexKeyCount;
    const versions = this.#indexLsns.length;
    const blocks = this.#blockOffsets.length;
    const raw = Buffer.alloc(indexBlockRawBytes(keys, versions, blocks));
    raw.writeUInt32LE(keys, 0);
    raw.writeUInt32LE(versions, 4);
    raw.writeUInt32LE(blocks, 8);
    let at = 12;
    this.#indexKeys.copy(raw, at, 0, keys * keyBytes);
    at += keys * keyBytes;
    for (let i = 0; i < keys; i++, at += 4) raw.writeUInt32LE(this.#firstVersion[i]!, at);
    raw.writeUInt32LE(versions, at);
    at += 4;
    for (let i = 0; i < versions; i++, at += 8) writeLsn64(raw, at, this.#indexLsns[i]! as Lsn);
    for (let i = 0; i < versions; i++, at += 4) raw.writeUInt32LE(this.#indexOffsets[i]!, at);
    for (let i = 0; i < versions; i++, at += 2) raw.writeUInt16LE(this.#indexBlockNumbers[i]!, at);
    for (let i = 0; i < blocks; i++, at += 12) {
      writeLsn64(raw, at, this.#blockOffsets[i]! as Lsn);
      raw.writeUInt32LE(this.#blockLengths[i]!, at + 8);
    }
    this.#pendingIndex.push({
      packed: packBlock(blockType.index, raw),
      firstKey: Buffer.from(this.#indexKeys.subarray(0, keyBytes)),
      firstLsn: this.#indexLsns[0]! as Lsn,
    });
    this.#indexBlocks++;
    this.#indexKeyCount = 0;
    this.#firstVersion = [];
    this.#indexLsns = [];
    this.#indexBlockNumbers = [];
    this.#indexOffsets = [];
    this.#blockOffsets = [];
    this.#blockLengths = [];
  }
}

/** The file in one piece; after every few megabytes others get a turn. */
export async function joinPieces({pieces, size}: FinishedLayer, clock: Clock): Promise<Buffer> {
  const file = Buffer.allocUnsafeSlow(size);
  let at = 0;
  let pauseAt = joinStepBytes;
  for (const piece of pieces) {
    at += piece.copy(file, at);
    if (at < pauseAt) continue;
    pauseAt = at + joinStepBytes;
    await clock.sleep(0);
  }
  return file;
}

/** Size of the raw content of an index block: 3 counts, keys, first versions, LSNs, offsets, block numbers, blocks. */
export function indexBlockRawBytes(keys: number, versions: number, blocks: number): number {
  return 12 + keys * keyBytes + (keys + 1) * 4 + versions * 14 + blocks * 12;
}
