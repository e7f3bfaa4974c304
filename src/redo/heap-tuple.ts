/**
 * Heap tuple headers on a page (access/htup_details.h): t_xmin u32 @0, t_xmax u32 @4, t_cid u32 @8, t_ctid 6 bytes @12,
 * t_infomask2 u16 @18, t_infomask u16 @20, t_hoff u8 @22, then the null bitmap.
 */
import {checkItem, itemFlags, lpNormal} from './bufpage.ts';
import {setU16, setU32, u16} from './bytes.ts';
import {RedoError} from './redo.ts';

/** SizeofHeapTupleHeader. */
export const tupleHeaderSize = 23;

export const heapCombocid = 0x0020;
export const heapXmaxKeyshrLock = 0x0010;
export const heapXmaxExclLock = 0x0040;
export const heapXmaxLockOnly = 0x0080;
export const heapXmaxIsMulti = 0x1000;
/** HEAP_XMAX_BITS | HEAP_MOVED: what an update, delete or lock clears in t_infomask. */
const xmaxAndMovedBits = 0xdcd0;
export const heapKeysUpdated = 0x2000; // t_infomask2
export const heapHotUpdated = 0x4000; // t_infomask2

/** Position of the tuple of line pointer `n`, which must be normal and hold a tuple header. Throws RedoError. */
export function heapTuple(page: Buffer, n: number): number {
  const at = checkItem(page, n, tupleHeaderSize);
  if (itemFlags(page, n) !== lpNormal) throw new RedoError(`line pointer ${n} is not normal`);
  return at;
}

export function setCtid(page: Buffer, tuple: number, blockNumber: number, n: number): void {
  setU16(page, tuple + 12, blockNumber >>> 16);
  setU16(page, tuple + 14, blockNumber);
  setU16(page, tuple + 16, n);
}

export function setXmin(page: Buffer, tuple: number, xid: number): void {
  setU32(page, tuple, xid);
}

export function setXmax(page: Buffer, tuple: number, xid: number): void {
  setU32(page, tuple + 4, xid);
}

/** HeapTupleHeaderSetCmax with FirstCommandId: redo never knows the real command. */
export function clearCommandId(page: Buffer, tuple: number): void {
  setU32(page, tuple + 8, 0);
  page[tuple + 20] = page[tuple + 20]! & ~heapCombocid;
}

export function infomask(page: Buffer, tuple: number): number {
  return u16(page, tuple + 20);
}

/** Replaces the xmax bits of both infomasks by those of a record's infobits (fix_infomask_from_infobits). */
export function setXmaxInfobits(page: Buffer, tuple: number, infobits: number): void {
  let mask = u16(page, tuple + 20) & ~xmaxAndMovedBits;
  let mask2 = u16(page, tuple + 18) & ~heapKeysUpdated;
  if ((infobits & 0x01) !== 0) mask |= heapXmaxIsMulti;
  if ((infobits & 0x02) !== 0) mask |= heapXmaxLockOnly;
  if ((infobits & 0x04) !== 0) mask |= heapXmaxExclLock;
  if ((infobits & 0x08) !== 0) mask |= heapXmaxKeyshrLock;
  if ((infobits & 0x10) !== 0) mask2 |= heapKeysUpdated;
  setU16(page, tuple + 20, mask);
  setU16(page, tuple + 18, mask2);
}

export function setHotUpdated(page: Buffer, tuple: number, hot: boolean): void {
  const mask2 = u16(page, tuple + 18);
  setU16(page, tuple + 18, hot ? mask2 | heapHotUpdated : mask2 & ~heapHotUpdated);
}

/** HEAP_XMAX_IS_LOCKED_ONLY. */
export function xmaxIsLockedOnly(mask: number): boolean {
  return (
    (mask & heapXmaxLockOnly) !== 0 ||
    (mask & (heapXmaxIsMulti | heapXmaxExclLock | heapXmaxKeyshrLock)) === heapXmaxExclLock
  );
}

/** Writes a new tuple's header fields: xmin, no xmax, no command, own ctid, and the 5 bytes of an xl_heap_header. */
export function writeTupleHeader(
  page: Buffer,
  tuple: number,
  xid: number,
  xmax: number,
  blockNumber: number,
  n: number,
  header: Buffer,
  headerAt: number,
): void {
  setU32(page, tuple, xid);
  setU32(page, tuple + 4, xmax);
  setU32(page, tuple + 8, 0);
  setCtid(page, tuple, blockNumber, n);
  page[tuple + 18] = header[headerAt]!;
  page[tuple + 19] = header[headerAt + 1]!;
  page[tuple + 20] = header[headerAt + 2]! & ~heapCombocid;
  page[tuple + 21] = header[headerAt + 3]!;
  page[tuple + 22] = header[headerAt + 4]!;
}
