/**
 * Redo of the Heap resource manager (access/heap/heapam.c heap_redo). The visibility map bits that these records clear
 * are not blocks of theirs: ingest does that (wal-redo.md 5.2).
 */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {
  copyBytes,
  itemLength,
  maxOffset,
  pageAddSpace,
  pageGetFlags,
  pageGetPruneXid,
  pageGetUpper,
  pageInit,
  pageSetFlags,
  pageSetPruneXid,
  pdAllVisible,
} from './bufpage.ts';
import {blockData, mainData, u16, u32} from './bytes.ts';
import {
  clearCommandId,
  heapTuple,
  infomask,
  setCtid,
  setHotUpdated,
  setXmax,
  setXmaxInfobits,
  setXmin,
  tupleHeaderSize,
  writeTupleHeader,
  xmaxIsLockedOnly,
} from './heap-tuple.ts';
import {RedoError} from './redo.ts';

const opInsert = 0x00;
const opDelete = 0x10;
const opUpdate = 0x20;
const opHotUpdate = 0x40;
const opConfirm = 0x50;
const opLock = 0x60;
const opInplace = 0x70;
const initPage = 0x80;

/** xl_heap_header: t_infomask2, t_infomask, t_hoff. */
const heapHeaderLength = 5;

export function redoHeap(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (restored) return false;
  switch (record.info & 0x70) {
    case opInsert:
      insert(page, record, block);
      return true;
    case opDelete:
      remove(page, record, block);
      return true;
    case opUpdate:
      update(page, record, block, false);
      return true;
    case opHotUpdate:
      update(page, record, block, true);
      return true;
    case opConfirm:
      confirm(page, record, block);
      return true;
    case opLock:
      lock(page, record, block);
      return true;
    case opInplace:
      inplace(page, record, block);
      return true;
    default:
      throw new RedoError('Heap record of this type has no blocks');
  }
}

/** Starts the page anew when the record says so. The block must say the same (WILL_INIT). */
export function initHeapPage(page: Buffer, record: WalRecord, block: BlockRef): void {
  const init = (record.info & initPage) !== 0;
  if (init !== block.willInit) throw new RedoError(`INIT_PAGE is ${init}, WILL_INIT is ${block.willInit}`);
  if (init) pageInit(page, 0);
}

export function clearAllVisible(page: Buffer): void {
  pageSetFlags(page, pageGetFlags(page) & ~pdAllVisible);
}

/** xl_heap_insert: offnum u16, flags u8 (0x01: PD_ALL_VISIBLE was cleared). Block data: xl_heap_header, tuple from byte 23. */
function insert(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const main = mainData(record, 3);
  const bytes = record.bytes;
  const n = u16(bytes, main);
  const data = blockData(block, heapHeaderLength + 1);
  initHeapPage(page, record, block);
  checkNextOffset(page, n);
  const length = block.dataLength - heapHeaderLength;
  pageAddSpace(page, tupleHeaderSize + length, n, true, true);
  const tuple = pageGetUpper(page);
  writeTupleHeader(page, tuple, record.xid, 0, block.blockNumber, n, bytes, data);
  copyBytes(page, tuple + tupleHeaderSize, bytes, data + heapHeaderLength, length);
  if ((bytes[main + 2]! & 0x01) !== 0) clearAllVisible(page);
}

/**
 * xl_heap_delete: xmax u32, offnum u16, infobits u8, flags u8 (0x01: PD_ALL_VISIBLE was cleared, 0x08: of a speculative
 * insertion, 0x10: the row moved to another partition).
 */
function remove(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const main = mainData(record, 8);
  const bytes = record.bytes;
  const n = u16(bytes, main + 4);
  const flags = bytes[main + 7]!;
  const tuple = heapTuple(page, n);
  setXmaxInfobits(page, tuple, bytes[main + 6]!);
  setHotUpdated(page, tuple, false);
  if ((flags & 0x08) === 0) setXmax(page, tuple, u32(bytes, main));
  else setXmin(page, tuple, 0);
  clearCommandId(page, tuple);
  setPrunable(page, record.xid);
  if ((flags & 0x01) !== 0) clearAllVisible(page);
  if ((flags & 0x10) !== 0) setCtid(page, tuple, 0xffffffff, 0xfffd);
  else setCtid(page, tuple, block.blockNumber, n);
}

/**
 * xl_heap_update: old_xmax u32, old_offnum u16, old_infobits u8, flags u8 (0x01 and 0x02: PD_ALL_VISIBLE was cleared on the
 * old and on the new page, 0x20 and 0x40: prefix and suffix come from the old tuple), new_xmax u32, new_offnum u16.
 * Block 0 is the new tuple's page, block 1 the old one's if it is another.
 */
function update(page: Buffer, record: WalRecord, block: BlockRef, hot: boolean): void {
  if (block.id > 1) throw new RedoError('Heap UPDATE has blocks 0 and 1 only');
  const main = mainData(record, 14);
  const bytes = record.bytes;
  const flags = bytes[main + 7]!;
  const newNumber = u16(bytes, main + 12);
  const newBlock = record.block(0);
  if (newBlock === undefined) throw new RedoError('Heap UPDATE without block 0');
  const samePage = record.block(1) === undefined;
  let old = -1;
  let oldLength = 0;
  if (samePage || block.id === 1) {
    const n = u16(bytes, main + 4);
    old = heapTuple(page, n);
    oldLength = itemLength(page, n);
    setXmaxInfobits(page, old, bytes[main + 6]!);
    setHotUpdated(page, old, hot);
    setXmax(page, old, u32(bytes, main));
    clearCommandId(page, old);
    setCtid(page, old, newBlock.blockNumber, newNumber);
    setPrunable(page, record.xid);
    if ((flags & 0x01) !== 0) clearAllVisible(page);
  }
  if (block.id === 1) return;

  let at = blockData(block, heapHeaderLength);
  const end = block.dataOffset + block.dataLength;
  let prefix = 0;
  let suffix = 0;
  if ((flags & 0x60) !== 0) {
    if (!samePage) throw new RedoError('prefix or suffix of a tuple on another page');
    if ((flags & 0x20) !== 0) {
      prefix = u16(bytes, at);
      at += 2;
    }
    if ((flags & 0x40) !== 0) {
      suffix = u16(bytes, at);
      at += 2;
    }
  }
  if (!samePage) initHeapPage(page, record, block);
  checkNextOffset(page, newNumber);
  const header = at;
  at += heapHeaderLength;
  const logged = end - at;
  // with a prefix, the bitmap comes first in the record, the prefix follows it
  const bitmap = prefix > 0 ? bytes[header + 4]! - tupleHeaderSize : 0;
  if (logged < 0 || bitmap < 0 || bitmap > logged) throw new RedoError('block data is too short for the new tuple');
  if (old >= 0 && (page[old + 22]! + prefix > oldLength || suffix > oldLength))
    throw new RedoError(`prefix of ${prefix} or suffix of ${suffix} bytes from an old tuple of ${oldLength}`);
  pageAddSpace(page, tupleHeaderSize + logged + prefix + suffix, newNumber, true, true);
  const tuple = pageGetUpper(page);
  writeTupleHeader(page, tuple, record.xid, u32(bytes, main + 8), newBlock.blockNumber, newNumber, bytes, header);
  let to = tuple + tupleHeaderSize;
  if (prefix > 0) {
    copyBytes(page, to, bytes, at, bitmap);
    to += bitmap;
    copyBytes(page, to, page, old + page[old + 22]!, prefix);
    to += prefix;
  }
  copyBytes(page, to, bytes, at + bitmap, logged - bitmap);
  to += logged - bitmap;
  if (suffix > 0) copyBytes(page, to, page, old + oldLength - suffix, suffix);
  if ((flags & 0x02) !== 0) clearAllVisible(page);
}

/** xl_heap_confirm: offnum u16. A speculative insertion got its own ctid. */
function confirm(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const n = u16(record.bytes, mainData(record, 2));
  setCtid(page, heapTuple(page, n), block.blockNumber, n);
}

/** xl_heap_lock: locking_xid u32, offnum u16, infobits u8, flags u8. */
function lock(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const main = mainData(record, 8);
  const bytes = record.bytes;
  const n = u16(bytes, main + 4);
  const tuple = heapTuple(page, n);
  setXmaxInfobits(page, tuple, bytes[main + 6]!);
  if (xmaxIsLockedOnly(infomask(page, tuple))) {
    setHotUpdated(page, tuple, false);
    setCtid(page, tuple, block.blockNumber, n);
  }
  setXmax(page, tuple, u32(bytes, main));
  clearCommandId(page, tuple);
}

/** xl_heap_inplace: offnum u16. Block data: the tuple from t_hoff on, of the same length. */
function inplace(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const n = u16(record.bytes, mainData(record, 2));
  const tuple = heapTuple(page, n);
  const hoff = page[tuple + 22]!;
  const length = itemLength(page, n) - hoff;
  if (length !== block.dataLength) throw new RedoError(`new tuple data of ${block.dataLength} bytes, old of ${length}`);
  copyBytes(page, tuple + hoff, record.bytes, block.dataOffset, length);
}

/** PageSetPrunable: keeps the oldest xid whose removal may make pruning worthwhile. */
function setPrunable(page: Buffer, xid: number): void {
  const old = pageGetPruneXid(page);
  // TransactionIdPrecedes: modulo 2^32, except for the permanent xids below 3
  if (old === 0 || (xid < 3 || old < 3 ? xid < old : ((xid - old) | 0) < 0)) pageSetPruneXid(page, xid);
}

export function checkNextOffset(page: Buffer, n: number): void {
  if (n < 1 || n > maxOffset(page) + 1) throw new RedoError(`new item number ${n} on a page with ${maxOffset(page)}`);
}

export function checkBlock(block: BlockRef, id: number): void {
  if (block.id !== id) throw new RedoError(`records of this type change block ${id} only`);
}
