/**
 * One WAL record, decoded (access/xlogrecord.h; access/transam/xlogreader.c DecodeXLogRecord). The decoder fills one
 * reused object: nothing is allocated for a record but the Buffer slices the caller asks for. A record is a stretch of
 * `bytes`, which may hold other records too; all offsets are into `bytes`.
 */
import type {ForkNumber} from '#postgres/relation.ts';
import {type Lsn, invalidLsn} from '#postgres/lsn.ts';

export const recordHeaderSize = 24;
/** XLR_MAX_BLOCK_ID + 1. */
export const blocksMax = 33;

export const bkpImageHasHole = 0x01;
export const bkpImageApply = 0x02;
export const bkpImageCompressPglz = 0x04;
export const bkpImageCompressLz4 = 0x08;
export const bkpImageCompressZstd = 0x10;

/** A block reference of a record. `dataOffset`/`imageOffset` index `WalRecord.bytes`. */
export class BlockRef {
  inUse = false;
  id = 0;
  spcNode = 0;
  dbNode = 0;
  relNode = 0;
  fork: ForkNumber = 0;
  blockNumber = 0;
  willInit = false;
  hasData = false;
  hasImage = false;
  /** The image must be restored in redo (else it is only for wal_consistency_checking). */
  applyImage = false;
  imageOffset = 0;
  imageLength = 0;
  holeOffset = 0;
  holeLength = 0;
  imageInfo = 0;
  dataOffset = 0;
  dataLength = 0;
}

/** A record that cannot be decoded: corrupt, or of a form this major version does not have. */
export class WalDecodeError extends Error {}

export class WalRecord {
  /** Holds the whole record, header included, contiguous (continuation page headers taken out), from `offset` on. */
  bytes: Buffer = Buffer.alloc(0);
  offset = 0;
  /** Where the record starts in WAL. */
  startLsn: Lsn = invalidLsn;
  /** EndRecPtr: what redo writes as page LSN (rounded up to 8; wal-redo.md 2.5). */
  endLsn: Lsn = invalidLsn;
  totalLength = 0;
  xid = 0;
  prevLsn: Lsn = invalidLsn;
  info = 0;
  rmid = 0;
  crc = 0;
  /** Highest block id in use, or -1. */
  maxBlockId = -1;
  readonly blocks: BlockRef[] = Array.from({length: blocksMax}, () => new BlockRef());
  mainDataOffset = 0;
  mainDataLength = 0;
  /** XLR_BLOCK_ID_ORIGIN, or 0. */
  originId = 0;
  /** XLR_BLOCK_ID_TOPLEVEL_XID, or 0. */
  toplevelXid = 0;

  /** The block with this id, or undefined. */
  block(id: number): BlockRef | undefined {
    const b = id <= this.maxBlockId ? this.blocks[id] : undefined;
    return b !== undefined && b.inUse ? b : undefined;
  }

  /** A view, not a copy, of the whole record. */
  whole(): Buffer {
    return this.bytes.subarray(this.offset, this.offset + this.totalLength);
  }

  /** A view, not a copy, of the main data. */
  mainData(): Buffer {
    return this.bytes.subarray(this.mainDataOffset, this.mainDataOffset + this.mainDataLength);
  }

  /** A view, not a copy, of a block's data. */
  blockData(b: BlockRef): Buffer {
    return this.bytes.subarray(b.dataOffset, b.dataOffset + b.dataLength);
  }
}

/**
 * Decodes the record that `bytes` holds from its first to its last byte into `into`. The CRC is not checked here.
 * Throws WalDecodeError with the reason; `into` is then undefined.
 */
export function decodeRecord(bytes: Buffer, startLsn: Lsn, endLsn: Lsn, into: WalRecord): void {
  if (bytes.length < recordHeaderSize)
    throw new WalDecodeError(`record of ${bytes.length} bytes is shorter than its header`);
  const total = u32(bytes, 0);
  if (total !== bytes.length) throw new WalDecodeError(`record says ${total} bytes, ${bytes.length} are here`);
  decodeRecordAt(bytes, 0, total, startLsn, endLsn, into);
}

/**
 * decodeRecord for the `length` ≥ 24 bytes from `start` on, all of which `bytes` holds; its own length field has been
 * looked at.
 */
export function decodeRecordAt(
  bytes: Buffer,
  start: number,
  length: number,
  startLsn: Lsn,
  endLsn: Lsn,
  into: WalRecord,
): void {
  const end = start + length;
  into.bytes = bytes;
  into.offset = start;
  into.startLsn = startLsn;
  into.endLsn = endLsn;
  into.totalLength = length;
  into.xid = u32(bytes, start + 4);
  into.prevLsn = (u32(bytes, start + 8) + u32(bytes, start + 12) * 4294967296) as Lsn;
  into.info = bytes[start + 16]!;
  into.rmid = bytes[start + 17]!;
  into.crc = u32(bytes, start + 20);
  into.mainDataLength = 0;
  into.originId = 0;
  into.toplevelXid = 0;
  for (let i = 0; i <= into.maxBlockId; i++) into.blocks[i]!.inUse = false;
  into.maxBlockId = -1;

  let at = start + recordHeaderSize;
  let payload = 0;
  let previous: BlockRef | undefined;
  while (end - at > payload) {
    const id = bytes[at]!;
    if (id === 255 || id === 254) {
      const long = id === 254;
      need(end, at, long ? 5 : 2);
      into.mainDataLength = long ? u32(bytes, at + 1) : bytes[at + 1]!;
      at += long ? 5 : 2;
      payload += into.mainDataLength;
      break; // by convention, the main data header comes last
    }
    if (id === 253) {
      need(end, at, 3);
      into.originId = u16(bytes, at + 1);
      at += 3;
      continue;
    }
    if (id === 252) {
      need(end, at, 5);
      into.toplevelXid = u32(bytes, at + 1);
      at += 5;
      continue;
    }
    if (id >= blocksMax) throw new WalDecodeError(`invalid block id ${id}`);
    if (id <= into.maxBlockId) throw new WalDecodeError(`block id ${id} out of order after ${into.maxBlockId}`);
    need(end, at, 4);
    for (let i = into.maxBlockId + 1; i < id; i++) into.blocks[i]!.inUse = false;
    into.maxBlockId = id;
    const b = into.blocks[id]!;
    b.inUse = true;
    b.id = id;
    const flags = bytes[at + 1]!;
    b.fork = (flags & 0x0f) as ForkNumber;
    if (b.fork > 3) throw new WalDecodeError(`block ${id}: invalid fork ${b.fork}`);
    b.hasImage = (flags & 0x10) !== 0;
    b.hasData = (flags & 0x20) !== 0;
    b.willInit = (flags & 0x40) !== 0;
    b.dataLength = u16(bytes, at + 2);
    if (b.hasData !== (b.dataLength !== 0))
      throw new WalDecodeError(`block ${id}: HAS_DATA is ${b.hasData} with ${b.dataLength} bytes of data`);
    at += 4;
    payload += b.dataLength;
    b.applyImage = false;
    b.imageLength = 0;
    b.holeOffset = 0;
    b.holeLength = 0;
    b.imageInfo = 0;
    if (b.hasImage) {
      at = decodeImageHeader(bytes, at, end, b);
      payload += b.imageLength;
    }
    if ((flags & 0x80) === 0) {
      need(end, at, 12);
      b.spcNode = u32(bytes, at);
      b.dbNode = u32(bytes, at + 4);
      b.relNode = u32(bytes, at + 8);
      at += 12;
    } else {
      if (previous === undefined) throw new WalDecodeError(`block ${id}: SAME_REL without a previous relation`);
      b.spcNode = previous.spcNode;
      b.dbNode = previous.dbNode;
      b.relNode = previous.relNode;
    }
    previous = b;
    need(end, at, 4);
    b.blockNumber = u32(bytes, at);
    at += 4;
  }
  if (end - at !== payload)
    throw new WalDecodeError(`record of ${length} bytes announces ${payload} bytes of payload and has ${end - at}`);
  for (let id = 0; id <= into.maxBlockId; id++) {
    const b = into.blocks[id]!;
    if (!b.inUse) continue;
    b.imageOffset = at;
    at += b.imageLength;
    b.dataOffset = at;
    at += b.dataLength;
  }
  into.mainDataOffset = at;
}

function need(end: number, at: number, count: number): void {
  if (end - at < count) throw new WalDecodeError(`record ends inside a header, ${end - at} bytes before its end`);
}

function decodeImageHeader(bytes: Buffer, start: number, end: number, b: BlockRef): number {
  let at = start;
  need(end, at, 5);
  b.imageLength = u16(bytes, at);
  b.holeOffset = u16(bytes, at + 2);
  b.imageInfo = bytes[at + 4]!;
  at += 5;
  b.applyImage = (b.imageInfo & bkpImageApply) !== 0;
  const compressed = (b.imageInfo & (bkpImageCompressPglz | bkpImageCompressLz4 | bkpImageCompressZstd)) !== 0;
  const hasHole = (b.imageInfo & bkpImageHasHole) !== 0;
  if (compressed) {
    if (hasHole) {
      need(end, at, 2);
      b.holeLength = u16(bytes, at);
      at += 2;
    }
  } else {
    b.holeLength = 8192 - b.imageLength;
  }
  if (hasHole && (b.holeOffset === 0 || b.holeLength === 0 || b.imageLength === 8192))
    throw new WalDecodeError(
      `block ${b.id}: HAS_HOLE with hole ${b.holeOffset}+${b.holeLength}, image of ${b.imageLength} bytes`,
    );
  if (!hasHole && (b.holeOffset !== 0 || b.holeLength !== 0))
    throw new WalDecodeError(`block ${b.id}: no HAS_HOLE, but hole ${b.holeOffset}+${b.holeLength}`);
  if (compressed && b.imageLength === 8192) throw new WalDecodeError(`block ${b.id}: compressed image of a whole page`);
  if (!hasHole && !compressed && b.imageLength !== 8192)
    throw new WalDecodeError(`block ${b.id}: whole image of ${b.imageLength} bytes`);
  if (b.holeOffset + b.holeLength > 8192) throw new WalDecodeError(`block ${b.id}: hole beyond the page`);
  return at;
}

/** Buffer's own readers check more than is needed here; this is the hottest loop of ingest. */
function u32(bytes: Buffer, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

function u16(bytes: Buffer, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}
