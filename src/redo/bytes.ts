/**
 * Little-endian integers of pages and records, read and written byte by byte: several times faster than Buffer's methods
 * in redo's hot loops. Nothing here checks bounds; the callers have (a byte that does not exist reads as 0).
 */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {RedoError} from './redo.ts';

export function u16(b: Buffer, at: number): number {
  return b[at]! | (b[at + 1]! << 8);
}

export function u32(b: Buffer, at: number): number {
  return (b[at]! | (b[at + 1]! << 8) | (b[at + 2]! << 16) | (b[at + 3]! << 24)) >>> 0;
}

export function setU16(b: Buffer, at: number, value: number): void {
  b[at] = value;
  b[at + 1] = value >>> 8;
}

export function setU32(b: Buffer, at: number, value: number): void {
  b[at] = value;
  b[at + 1] = value >>> 8;
  b[at + 2] = value >>> 16;
  b[at + 3] = value >>> 24;
}

/** Where the main data starts in record.bytes, checked to have `length` bytes. Throws RedoError. */
export function mainData(record: WalRecord, length: number): number {
  if (record.mainDataLength < length)
    throw new RedoError(`main data of ${record.mainDataLength} bytes, at least ${length} expected`);
  return record.mainDataOffset;
}

/** Where the block's data starts in record.bytes, checked to have `length` bytes. Throws RedoError. */
export function blockData(block: BlockRef, length: number): number {
  if (block.dataLength < length)
    throw new RedoError(`block data of ${block.dataLength} bytes, at least ${length} expected`);
  return block.dataOffset;
}
