/** Redo of the Heap2 resource manager (access/heap/heapam.c heap2_redo, access/heap/visibilitymap.c). */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {
  checkOffset,
  copyBytes,
  hasStorage,
  lpDead,
  lpRedirect,
  lpUnused,
  pageAddSpace,
  pageGetFlags,
  pageGetUpper,
  pageHeaderSize,
  pageInit,
  pageIsNew,
  pageRepairFragmentation,
  pageSetFlags,
  pageTruncateLinePointerArray,
  pdAllVisible,
  setItemId,
} from './bufpage.ts';
import {blockData, mainData, setU32, u16, u32} from './bytes.ts';
import {checkBlock, checkNextOffset, clearAllVisible, initHeapPage} from './heap.ts';
import {heapTuple, setXmax, setXmaxInfobits, tupleHeaderSize, writeTupleHeader} from './heap-tuple.ts';
import {RedoError, type RedoEnvironment} from './redo.ts';

const opPrune = 0x10;
const opVacuum = 0x20;
const opFreezePage = 0x30;
const opVisible = 0x40;
const opMultiInsert = 0x50;
const opLockUpdated = 0x60;

/** Heap blocks per visibility map page: two bits each in 8192 − 24 bytes. */
const heapBlocksPerMapPage = 32672;

export function redoHeap2(
  page: Buffer,
  record: WalRecord,
  block: BlockRef,
  restored: boolean,
  environment: RedoEnvironment,
): boolean {
  if (restored) return false;
  switch (record.info & 0x70) {
    case opPrune:
      prune(page, record, block);
      return true;
    case opVacuum:
      vacuum(page, record, block);
      return true;
    case opFreezePage:
      freezePage(page, record, block);
      return true;
    case opVisible:
      if (block.id === 0) return setVisibilityMap(page, record);
      checkBlock(block, 1);
      pageSetFlags(page, pageGetFlags(page) | pdAllVisible);
      return environment.walLogHints;
    case opMultiInsert:
      multiInsert(page, record, block);
      return true;
    case opLockUpdated:
      lockUpdated(page, record, block);
      return true;
    default:
      throw new RedoError('Heap2 record of this type has no blocks');
  }
}

/**
 * xl_heap_prune: latestRemovedXid u32, nredirected u16, ndead u16. Block data: u16 pairs (from, to) of redirects, then dead
 * items, then unused items up to the end (heap_page_prune_execute).
 */
function prune(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const main = mainData(record, 8);
  const bytes = record.bytes;
  const redirected = u16(bytes, main + 4);
  const dead = u16(bytes, main + 6);
  let at = blockData(block, redirected * 4 + dead * 2);
  const end = block.dataOffset + (block.dataLength & ~1);
  for (let i = 0; i < redirected; i++, at += 4) {
    const from = u16(bytes, at);
    checkOffset(page, from);
    checkOffset(page, u16(bytes, at + 2));
    setItemId(page, from, u16(bytes, at + 2), lpRedirect, 0);
  }
  for (let i = 0; i < dead; i++, at += 2) {
    checkOffset(page, u16(bytes, at));
    setItemId(page, u16(bytes, at), 0, lpDead, 0);
  }
  for (; at < end; at += 2) {
    checkOffset(page, u16(bytes, at));
    setItemId(page, u16(bytes, at), 0, lpUnused, 0);
  }
  pageRepairFragmentation(page);
}

/** xl_heap_vacuum: nunused u16. Block data: the numbers of dead items that become unused. */
function vacuum(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const bytes = record.bytes;
  const count = u16(bytes, mainData(record, 2));
  const at = blockData(block, count * 2);
  for (let i = 0; i < count; i++) {
    const n = u16(bytes, at + i * 2);
    checkOffset(page, n);
    if (hasStorage(page, n)) throw new RedoError(`item ${n} to be freed still has storage`);
    setItemId(page, n, 0, lpUnused, 0);
  }
  pageTruncateLinePointerArray(page);
}

/**
 * xl_heap_freeze_page: cutoff_xid u32, ntuples u16. Block data: 12 bytes per tuple: xmax u32, offset u16, t_infomask2 u16,
 * t_infomask u16, flags u8 (0x02: xvac becomes frozen, 0x04: xvac becomes invalid).
 */
function freezePage(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const bytes = record.bytes;
  const count = u16(bytes, mainData(record, 6) + 4);
  let at = blockData(block, count * 12);
  for (let i = 0; i < count; i++, at += 12) {
    const tuple = heapTuple(page, u16(bytes, at + 4));
    const flags = bytes[at + 10]!;
    setXmax(page, tuple, u32(bytes, at));
    if ((flags & 0x02) !== 0) setU32(page, tuple + 8, 2);
    if ((flags & 0x04) !== 0) setU32(page, tuple + 8, 0);
    page[tuple + 18] = bytes[at + 6]!;
    page[tuple + 19] = bytes[at + 7]!;
    page[tuple + 20] = bytes[at + 8]!;
    page[tuple + 21] = bytes[at + 9]!;
  }
}

/**
 * xl_heap_visible: cutoff_xid u32, flags u8 (0x01 all-visible, 0x02 all-frozen). Block 0 is the map page, block 1 the heap
 * page. The map page's LSN changes only when its bits do (visibilitymap_set).
 */
function setVisibilityMap(page: Buffer, record: WalRecord): boolean {
  const flags = record.bytes[mainData(record, 5) + 4]! & 0x03;
  const heap = record.block(1);
  const map = record.block(0)!;
  if (heap === undefined) throw new RedoError('Heap2 VISIBLE without block 1');
  if (map.fork !== 2 || Math.floor(heap.blockNumber / heapBlocksPerMapPage) !== map.blockNumber)
    throw new RedoError(`heap block ${heap.blockNumber} is not in fork ${map.fork} block ${map.blockNumber}`);
  if (pageIsNew(page)) pageInit(page, 0);
  const index = heap.blockNumber % heapBlocksPerMapPage;
  const at = pageHeaderSize + (index >>> 2);
  const shift = (index & 3) * 2;
  if (flags === ((page[at]! >>> shift) & 0x03)) return false;
  page[at] = page[at]! | (flags << shift);
  return true;
}

/**
 * xl_heap_multi_insert: flags u8 (0x01: PD_ALL_VISIBLE was cleared, 0x20: it was set), ntuples u16 @2, offsets u16 each @4
 * unless the page is new. Block data: per tuple, 2-byte aligned, datalen u16, xl_heap_header (5 bytes), the tuple from byte 23.
 */
function multiInsert(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const bytes = record.bytes;
  const main = mainData(record, 4);
  const flags = bytes[main]!;
  const count = u16(bytes, main + 2);
  const init = block.willInit;
  initHeapPage(page, record, block);
  if (!init) mainData(record, 4 + count * 2);
  const start = block.dataOffset;
  let used = 0;
  for (let i = 0; i < count; i++) {
    const n = init ? i + 1 : u16(bytes, main + 4 + i * 2);
    checkNextOffset(page, n);
    used += used & 1;
    const header = start + used;
    used += 7;
    const length = u16(bytes, header);
    if (used + length > block.dataLength) throw new RedoError(`tuple ${i + 1} of ${count} runs beyond the block data`);
    pageAddSpace(page, tupleHeaderSize + length, n, true, true);
    const tuple = pageGetUpper(page);
    writeTupleHeader(page, tuple, record.xid, 0, block.blockNumber, n, bytes, header + 2);
    copyBytes(page, tuple + tupleHeaderSize, bytes, start + used, length);
    used += length;
  }
  if (used !== block.dataLength) throw new RedoError(`tuples take ${used} of ${block.dataLength} bytes of block data`);
  if ((flags & 0x01) !== 0) clearAllVisible(page);
  if ((flags & 0x20) !== 0) pageSetFlags(page, pageGetFlags(page) | pdAllVisible);
}

/** xl_heap_lock_updated: xmax u32, offnum u16, infobits u8, flags u8. */
function lockUpdated(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlock(block, 0);
  const main = mainData(record, 8);
  const tuple = heapTuple(page, u16(record.bytes, main + 4));
  setXmaxInfobits(page, tuple, record.bytes[main + 6]!);
  setXmax(page, tuple, u32(record.bytes, main));
}
