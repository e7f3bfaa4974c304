/** Redo of hash indexes (access/hash_xlog.h; access/hash/hash_xlog.c). */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';

import {
  copyBytes,
  itemsMax,
  maxAlign,
  pageAddItemFrom,
  pageAddSpace,
  pageGetUpper,
  pageIndexMultiDelete,
} from './bufpage.ts';
import {blockData, mainData, setU16, setU32, u16, u32} from './bytes.ts';
import {
  bitmapsMax,
  checkHashMetaPage,
  checkHashPage,
  flagAt,
  initHashBitmapPage,
  initHashMetaPage,
  initHashPage,
  invalidBlockNumber,
  lhBucketNeedsSplitCleanup,
  lhOverflowPage,
  lhPageHasDeadTuples,
  lhUnusedPage,
  meta,
  nextBlockAt,
  prevBlockAt,
  setHashBitmapBit,
  splitPointsMax,
} from './hash-page.ts';
import {type RedoFunction, RedoError} from './redo.ts';

/** Opcodes: high 4 bits of xl_info. */
const opInitMetaPage = 0x00;
const opInitBitmapPage = 0x10;
const opInsert = 0x20;
const opAddOverflowPage = 0x30;
const opSplitAllocatePage = 0x40;
const opSplitPage = 0x50;
const opSplitComplete = 0x60;
const opMovePageContents = 0x70;
const opSqueezePage = 0x80;
const opDelete = 0x90;
const opSplitCleanup = 0xa0;
const opUpdateMetaPage = 0xb0;
const opVacuumOnePage = 0xc0;

/** xl_hash_split_allocate_page.flags. */
const metaUpdateMasks = 0x01;
const metaUpdateSplitPoint = 0x02;

/** Redo of one block of a record of resource manager Hash. */
export const redoHash: RedoFunction = (page, record, block, restored) => {
  switch (record.info & 0xf0) {
    case opInsert:
      return !restored && redoInsert(page, record, block);
    case opInitMetaPage:
      return redoInitMetaPage(page, record, block);
    case opInitBitmapPage:
      return redoInitBitmapPage(page, record, block, restored);
    case opAddOverflowPage:
      return redoAddOverflowPage(page, record, block, restored);
    case opSplitAllocatePage:
      return redoSplitAllocatePage(page, record, block, restored);
    case opSplitPage:
      needBlock(block.id === 0, block);
      if (!restored) throw new RedoError('Hash SPLIT_PAGE: the record has no page image to restore');
      return false;
    case opSplitComplete:
      return redoSplitComplete(page, record, block);
    case opMovePageContents:
      return !restored && redoMovePageContents(page, record, block);
    case opSqueezePage:
      return !restored && redoSqueezePage(page, record, block);
    case opDelete:
      return !restored && redoDelete(page, record, block);
    case opSplitCleanup:
      return !restored && redoSplitCleanup(page, block);
    case opUpdateMetaPage:
      return !restored && redoUpdateMetaPage(page, record, block);
    case opVacuumOnePage:
      return !restored && redoVacuumOnePage(page, record, block);
    default:
      throw new RedoError(`unknown Hash record type ${(record.info & 0xf0).toString(16)}`);
  }
};

/** Main data: offnum u16. Block 0: the page, data = the tuple. Block 1: metapage. */
function redoInsert(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  if (block.id === 0) {
    checkHashPage(page);
    const main = mainData(record, 2);
    const bytes = record.bytes;
    const length = block.dataLength;
    const offset = bytes[main]! | (bytes[main + 1]! << 8);
    pageAddSpace(page, length, offset, false, false);
    copyBytes(page, pageGetUpper(page), bytes, block.dataOffset, length);
  } else {
    needBlock(block.id === 1, block);
    checkHashMetaPage(page);
    page.writeDoubleLE(page.readDoubleLE(meta.ntuples) + 1, meta.ntuples);
  }
  return true;
}

/** Main data: num_tuples double, procid u32, ffactor u16. Block 0: metapage. */
function redoInitMetaPage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id === 0 && block.willInit, block);
  const main = mainData(record, 14);
  const bytes = record.bytes;
  initHashMetaPage(page, bytes.readDoubleLE(main), u32(bytes, main + 8), u16(bytes, main + 12));
  return true;
}

/** Main data: bmsize u16. Block 0: the new bitmap page. Block 1: metapage. */
function redoInitBitmapPage(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (block.id === 0) {
    needBlock(block.willInit, block);
    initHashBitmapPage(page, u16(record.bytes, mainData(record, 2)));
    return true;
  }
  needBlock(block.id === 1, block);
  if (restored) return false;
  checkHashMetaPage(page);
  // the first bitmap page follows the buckets, which start at block 1
  addBitmapPage(page, u32(page, meta.maxbucket) + 2);
  return true;
}

/**
 * Main data: bmsize u16, bmpage_found u8. Block 0: the new overflow page, data = bucket. Block 1: the page before it.
 * Block 2, if any: bitmap page, data = bit number. Block 3, if any: a new bitmap page. Block 4: metapage, data = firstfree.
 */
function redoAddOverflowPage(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  const main = mainData(record, 3);
  const bytes = record.bytes;
  if (block.id === 0) {
    needBlock(block.willInit, block);
    initHashPage(page, blockNumberOf(record, 1), u32(bytes, blockData(block, 4)), lhOverflowPage);
    return true;
  }
  if (block.id === 3) {
    needBlock(block.willInit, block);
    initHashBitmapPage(page, u16(bytes, main));
    return true;
  }
  needBlock(block.id <= 4, block);
  if (restored) return false;
  if (block.id === 1) {
    checkHashPage(page);
    setU32(page, nextBlockAt, blockNumberOf(record, 0));
  } else if (block.id === 2) {
    checkHashPage(page);
    setHashBitmapBit(page, u32(bytes, blockData(block, 4)), true);
  } else {
    checkHashMetaPage(page);
    setU32(page, meta.firstfree, u32(bytes, blockData(block, 4)));
    if (bytes[main + 2] === 0) {
      const split = u32(page, meta.ovflpoint);
      if (split >= splitPointsMax)
        throw new RedoError(`hash metapage: split point ${split} is beyond ${splitPointsMax}`);
      const at = meta.spares + split * 4;
      const newBitmap = record.block(3);
      if (newBitmap !== undefined) addBitmapPage(page, newBitmap.blockNumber);
      setU32(page, at, u32(page, at) + (newBitmap === undefined ? 1 : 2));
    }
  }
  return true;
}

/**
 * Main data: new_bucket u32, old_bucket_flag u16, new_bucket_flag u16, flags u8. Block 0: old bucket's first page, edited
 * even after a restore. Block 1: new bucket's first page. Block 2: metapage, data = masks and split point, as flags say.
 */
function redoSplitAllocatePage(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  const main = mainData(record, 9);
  const bytes = record.bytes;
  const newBucket = u32(bytes, main);
  if (block.id === 0) {
    needBlock(!block.willInit, block);
    checkHashPage(page);
    setU16(page, flagAt, u16(bytes, main + 4));
    setU32(page, prevBlockAt, newBucket);
    return true;
  }
  if (block.id === 1) {
    needBlock(block.willInit, block);
    initHashPage(page, newBucket, newBucket, u16(bytes, main + 6));
    return true;
  }
  needBlock(block.id === 2, block);
  if (restored) return false;
  checkHashMetaPage(page);
  const flags = bytes[main + 8]!;
  const masks = (flags & metaUpdateMasks) !== 0;
  const splitPoint = (flags & metaUpdateSplitPoint) !== 0;
  let at = blockData(block, (masks ? 8 : 0) + (splitPoint ? 8 : 0));
  setU32(page, meta.maxbucket, newBucket);
  if (masks) {
    setU32(page, meta.lowmask, u32(bytes, at));
    setU32(page, meta.highmask, u32(bytes, at + 4));
    at += 8;
  }
  if (splitPoint) {
    const split = u32(bytes, at);
    if (split >= splitPointsMax)
      throw new RedoError(`Hash SPLIT_ALLOCATE_PAGE: split point ${split} is beyond ${splitPointsMax}`);
    setU32(page, meta.spares + split * 4, u32(bytes, at + 4));
    setU32(page, meta.ovflpoint, split);
  }
  return true;
}

/** Main data: old_bucket_flag u16, new_bucket_flag u16. Blocks 0 and 1: the two first pages, edited even after a restore. */
function redoSplitComplete(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id <= 1 && !block.willInit, block);
  checkHashPage(page);
  const main = mainData(record, 4);
  setU16(page, flagAt, u16(record.bytes, main + block.id * 2));
  return true;
}

/**
 * Main data: ntups u16, is_prim_bucket_same_wrt u8. Block 0, if any: only locked. Block 1: page that gets tuples, data =
 * item numbers and tuples. Block 2: page that loses them, data = item numbers.
 */
function redoMovePageContents(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id <= 2 && !block.willInit, block);
  if (block.id === 0) return false;
  checkHashPage(page);
  if (block.id === 1) addTuples(page, record, block, u16(record.bytes, mainData(record, 3)));
  else deleteItems(page, record.bytes, block.dataOffset, block.dataLength >>> 1);
  return true;
}

/**
 * Main data: prevblkno u32, nextblkno u32, ntups u16, is_prim_bucket_same_wrt u8, is_prev_bucket_same_wrt u8.
 * Block 0, if any: only locked. Block 1: page that gets tuples. Block 2: freed overflow page. Block 3, if any: the page
 * before it. Block 4, if any: the page after it. Block 5: bitmap page, data = bit. Block 6, if any: metapage, data = firstfree.
 */
function redoSqueezePage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id <= 6 && !block.willInit, block);
  const main = mainData(record, 12);
  const bytes = record.bytes;
  const previousIsWritten = bytes[main + 11] !== 0;
  switch (block.id) {
    case 0:
      return false;
    case 1:
      checkHashPage(page);
      addTuples(page, record, block, u16(bytes, main + 8));
      if (previousIsWritten) setU32(page, nextBlockAt, u32(bytes, main + 4));
      return true;
    case 2:
      initHashPage(page, invalidBlockNumber, invalidBlockNumber, lhUnusedPage);
      return true;
    case 3:
      if (previousIsWritten) return false;
      checkHashPage(page);
      setU32(page, nextBlockAt, u32(bytes, main + 4));
      return true;
    case 4:
      checkHashPage(page);
      setU32(page, prevBlockAt, u32(bytes, main));
      return true;
    case 5:
      checkHashPage(page);
      setHashBitmapBit(page, u32(bytes, blockData(block, 4)), false);
      return true;
    default:
      checkHashMetaPage(page);
      setU32(page, meta.firstfree, u32(bytes, blockData(block, 4)));
      return true;
  }
}

/** Main data: clear_dead_marking u8, is_primary_bucket_page u8. Block 0, if any: only locked. Block 1: the page, data = items. */
function redoDelete(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id <= 1 && !block.willInit, block);
  if (block.id === 0) return false;
  checkHashPage(page);
  const main = mainData(record, 2);
  deleteItems(page, record.bytes, block.dataOffset, block.dataLength >>> 1);
  if (record.bytes[main] !== 0) page[flagAt] = page[flagAt]! & ~lhPageHasDeadTuples;
  return true;
}

/** Block 0: first page of the bucket that was split. */
function redoSplitCleanup(page: Buffer, block: BlockRef): boolean {
  needBlock(block.id === 0 && !block.willInit, block);
  checkHashPage(page);
  page[flagAt] = page[flagAt]! & ~lhBucketNeedsSplitCleanup;
  return true;
}

/** Main data: ntuples double. Block 0: metapage. */
function redoUpdateMetaPage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id === 0 && !block.willInit, block);
  checkHashMetaPage(page);
  // the bytes, not the number: a NaN keeps its payload
  record.bytes.copy(page, meta.ntuples, mainData(record, 8), record.mainDataOffset + 8);
  return true;
}

/** Main data: latestRemovedXid u32, ntuples i32, then item numbers. Block 0: the page. Block 1: metapage. */
function redoVacuumOnePage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id <= 1 && !block.willInit, block);
  const main = mainData(record, 8);
  const count = record.bytes.readInt32LE(main + 4);
  if (block.id === 0) {
    checkHashPage(page);
    if (count < 0 || count * 2 > record.mainDataLength - 8)
      throw new RedoError(`Hash VACUUM_ONE_PAGE: ${count} item numbers in ${record.mainDataLength} bytes`);
    deleteItems(page, record.bytes, main + 8, count);
    page[flagAt] = page[flagAt]! & ~lhPageHasDeadTuples;
  } else {
    checkHashMetaPage(page);
    page.writeDoubleLE(page.readDoubleLE(meta.ntuples) - count, meta.ntuples);
  }
  return true;
}

/** Appends a bitmap page to hashm_mapp. */
function addBitmapPage(page: Buffer, blockNumber: number): void {
  const maps = u32(page, meta.nmaps);
  if (maps >= bitmapsMax) throw new RedoError(`hash metapage: ${maps} bitmap pages, no room for one more`);
  setU32(page, meta.mapp + maps * 4, blockNumber);
  setU32(page, meta.nmaps, maps + 1);
}

/** Block data: `count` item numbers u16, then as many index tuples, each rounded up to 8 bytes. */
function addTuples(page: Buffer, record: WalRecord, block: BlockRef, count: number): void {
  if (count === 0) return;
  const bytes = record.bytes;
  const end = block.dataOffset + block.dataLength;
  let numberAt = block.dataOffset;
  let at = numberAt + count * 2;
  for (let i = 0; i < count; i++) {
    if (at + 8 > end) throw new RedoError(`${count} tuples announced, the block data end after ${i}`);
    // IndexTupleSize: low 13 bits of t_info
    const size = maxAlign(u16(bytes, at + 6) & 0x1fff);
    if (size < 8 || at + size > end)
      throw new RedoError(`tuple ${i} of ${count} has ${size} bytes at ${end - at} bytes before the end`);
    pageAddItemFrom(page, bytes, at, size, u16(bytes, numberAt));
    at += size;
    numberAt += 2;
  }
  if (at !== end) throw new RedoError(`${end - at} bytes of block data follow the last of ${count} tuples`);
}

const deletions = new Uint16Array(itemsMax);

/** Deletes the items whose u16 numbers stand at `at`. The caller has checked that they lie within `bytes`. */
function deleteItems(page: Buffer, bytes: Buffer, at: number, count: number): void {
  if (count > itemsMax) throw new RedoError(`${count} items to delete: a page has at most ${itemsMax}`);
  for (let i = 0; i < count; i++) deletions[i] = bytes[at + i * 2]! | (bytes[at + i * 2 + 1]! << 8);
  if (count > 0) pageIndexMultiDelete(page, deletions, count);
}

function needBlock(condition: boolean, block: BlockRef): void {
  if (!condition)
    throw new RedoError(`Hash record: unexpected block ${block.id}${block.willInit ? ' with WILL_INIT' : ''}`);
}

function blockNumberOf(record: WalRecord, id: number): number {
  const block = record.block(id);
  if (block === undefined) throw new RedoError(`Hash record: block ${id} is missing`);
  return block.blockNumber;
}
