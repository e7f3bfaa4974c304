/** Redo of the Btree resource manager (access/nbtree/nbtxlog.c btree_redo). */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {
  checkItem,
  checkOffset,
  copyBytes,
  itemIdSize,
  itemLength,
  itemsMax,
  lpNormal,
  maxAlign,
  maxOffset,
  pageAddItemFrom,
  pageGetSpecial,
  pageHeaderSize,
  pageIndexMultiDelete,
  pageIndexTupleDelete,
  pageSetLower,
  pageSetUpper,
  pageSize,
  setItemId,
} from './bufpage.ts';
import {redoDedup, swapPosting, updatePostings} from './btree-dedup.ts';
import {
  addTopParent,
  btpDeleted,
  btpHalfDead,
  btpHasFullXid,
  btpHasGarbage,
  btpIncompleteSplit,
  btpLeaf,
  btpMeta,
  btpRoot,
  clearFlag,
  firstDataKey,
  indexTuple,
  initBtreePage,
  initLike,
  setCycleId,
  setFlags,
  setNext,
  setPrevious,
  setTidBlock,
  tidBlock,
  tupleHeaderSize,
  tupleSize,
} from './btree-page.ts';
import {blockData, mainData, setU32, u16, u32} from './bytes.ts';
import {RedoError} from './redo.ts';

const opInsertLeaf = 0x00;
const opInsertUpper = 0x10;
const opInsertMeta = 0x20;
const opSplitL = 0x30;
const opSplitR = 0x40;
const opInsertPost = 0x50;
const opDedup = 0x60;
const opDelete = 0x70;
const opUnlinkPage = 0x80;
const opUnlinkPageMeta = 0x90;
const opNewroot = 0xa0;
const opMarkPageHalfdead = 0xb0;
const opVacuum = 0xc0;
const opReusePage = 0xd0;
const opMetaCleanup = 0xe0;

// Work space; redo is synchronous, so one of each is enough.
const leftPage = Buffer.alloc(pageSize);
const newTuple = Buffer.alloc(pageSize);
const postingTuple = Buffer.alloc(pageSize);
const deletedItems = new Uint16Array(itemsMax);

export function redoBtree(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (restored) return false;
  switch (record.info & 0xf0) {
    case opInsertLeaf:
      checkBlocks(block, 0);
      insert(page, record, block);
      return true;
    case opInsertUpper:
    case opInsertMeta:
      if (block.id === 0) insert(page, record, block);
      else if (block.id === 1) clearFlag(page, btpIncompleteSplit);
      else restoreMeta(page, record, block, 2);
      return true;
    case opInsertPost:
      checkBlocks(block, 0);
      insertIntoPosting(page, record, block);
      return true;
    case opSplitL:
      split(page, record, block, true);
      return true;
    case opSplitR:
      split(page, record, block, false);
      return true;
    case opDedup:
      checkBlocks(block, 0);
      redoDedup(page, record, block);
      return true;
    case opDelete:
      checkBlocks(block, 0);
      // xl_btree_delete: latestRemovedXid u32, ndeleted u16, nupdated u16
      deleteItems(page, record, block, mainData(record, 8) + 4);
      return true;
    case opVacuum:
      checkBlocks(block, 0);
      // xl_btree_vacuum: ndeleted u16, nupdated u16
      deleteItems(page, record, block, mainData(record, 4));
      return true;
    case opMarkPageHalfdead:
      markPageHalfDead(page, record, block);
      return true;
    case opUnlinkPage:
    case opUnlinkPageMeta:
      unlinkPage(page, record, block);
      return true;
    case opNewroot:
      newRoot(page, record, block);
      return true;
    case opMetaCleanup:
      restoreMeta(page, record, block, 0);
      return true;
    case opReusePage:
    default:
      throw new RedoError('Btree record of this type has no blocks');
  }
}

/** xl_btree_insert: offnum u16. Block data: the index tuple. */
function insert(page: Buffer, record: WalRecord, block: BlockRef): void {
  const n = u16(record.bytes, mainData(record, 2));
  if (n === 0) throw new RedoError('index tuple inserted as item 0');
  pageAddItemFrom(page, record.bytes, blockData(block, tupleHeaderSize), block.dataLength, n);
}

/**
 * Insertion that splits a posting list: block data is the index in the list u16, then the new tuple. The new tuple's tid
 * goes into the list of the item before, whose last tid becomes the new tuple's.
 */
function insertIntoPosting(page: Buffer, record: WalRecord, block: BlockRef): void {
  const bytes = record.bytes;
  const n = u16(bytes, mainData(record, 2));
  const data = blockData(block, 2 + tupleHeaderSize);
  const length = block.dataLength - 2;
  if (length > pageSize || tupleSize(bytes, data + 2) !== length)
    throw new RedoError(`new tuple of ${tupleSize(bytes, data + 2)} bytes, ${length} are here`);
  const posting = indexTuple(page, n - 1);
  copyBytes(newTuple, 0, bytes, data + 2, length);
  swapPosting(page, posting, newTuple, 0, u16(bytes, data));
  pageAddItemFrom(page, newTuple, 0, length, n);
}

/**
 * xl_btree_split: level u32, firstrightoff u16, newitemoff u16, postingoff u16. Block 0 is the page split (the left one
 * after it), 1 the new right one, 2 the page right of that, 3 the child whose split this one completes.
 */
function split(page: Buffer, record: WalRecord, block: BlockRef, newItemOnLeft: boolean): void {
  const main = mainData(record, 10);
  const bytes = record.bytes;
  const level = u32(bytes, main);
  const left = record.block(0);
  const right = record.block(1);
  if (left === undefined || right === undefined) throw new RedoError('Btree SPLIT without block 0 or 1');
  switch (block.id) {
    case 0:
      splitLeft(page, record, block, newItemOnLeft, main);
      setFlags(page, btpIncompleteSplit | (level === 0 ? btpLeaf : 0));
      setNext(page, right.blockNumber);
      setCycleId(page, 0);
      return;
    case 1:
      initBtreePage(page, left.blockNumber, record.block(2)?.blockNumber ?? 0, level, level === 0 ? btpLeaf : 0);
      restoreItems(page, bytes, block.dataOffset, block.dataLength);
      return;
    case 2:
      setPrevious(page, right.blockNumber);
      return;
    case 3:
      clearFlag(page, btpIncompleteSplit);
      return;
    default:
      throw new RedoError('Btree SPLIT has blocks 0 to 3 only');
  }
}

/**
 * The left half: block data is the new tuple (if it goes left, or splits a posting list), then the new high key. The items
 * are added to an empty page in order, so that they lie as PostgreSQL lays them.
 */
function splitLeft(page: Buffer, record: WalRecord, block: BlockRef, newItemOnLeft: boolean, main: number): void {
  const bytes = record.bytes;
  const firstRight = u16(bytes, main + 4);
  const newItem = u16(bytes, main + 6);
  const postingIndex = u16(bytes, main + 8);
  const end = block.dataOffset + block.dataLength;
  let at = blockData(block, tupleHeaderSize);
  let newSize = 0;
  let replaced = 0;
  let postingSize = 0;
  if (newItemOnLeft || postingIndex !== 0) {
    newSize = alignedTupleSize(bytes, at, end);
    copyBytes(newTuple, 0, bytes, at, newSize);
    at += newSize;
    if (postingIndex !== 0) {
      replaced = newItem - 1;
      const old = indexTuple(page, replaced);
      postingSize = tupleSize(page, old);
      if ((postingSize & 7) !== 0) throw new RedoError(`posting list tuple of ${postingSize} bytes is not aligned`);
      copyBytes(postingTuple, 0, page, old, postingSize);
      swapPosting(postingTuple, 0, newTuple, 0, postingIndex);
    }
  }
  const highKeySize = alignedTupleSize(bytes, at, end);
  if (at + highKeySize !== end) throw new RedoError('block data goes on after the new high key');

  initLike(leftPage, page);
  pageAddItemFrom(leftPage, bytes, at, highKeySize, 1);
  let to = 2;
  let n = firstDataKey(page);
  if (firstRight > maxOffset(page) + 1) throw new RedoError(`split at item ${firstRight}, page has ${maxOffset(page)}`);
  for (; n < firstRight; n++) {
    if (n === replaced) {
      pageAddItemFrom(leftPage, postingTuple, 0, postingSize, to++);
      continue;
    }
    if (newItemOnLeft && n === newItem) pageAddItemFrom(leftPage, newTuple, 0, newSize, to++);
    pageAddItemFrom(leftPage, page, checkItem(page, n), itemLength(page, n), to++);
  }
  if (newItemOnLeft && n === newItem) pageAddItemFrom(leftPage, newTuple, 0, newSize, to);
  leftPage.copy(page);
}

/** Size, rounded up to 8, of the index tuple at `at`, checked to end before `end`. */
function alignedTupleSize(bytes: Buffer, at: number, end: number): number {
  if (at + tupleHeaderSize > end) throw new RedoError('block data ends before an index tuple');
  const size = maxAlign(tupleSize(bytes, at));
  if (size < tupleHeaderSize || at + size > end)
    throw new RedoError(`index tuple of ${size} bytes runs beyond the data`);
  return size;
}

/**
 * _bt_restore_page: `length` bytes of a page's former upper part go onto the empty `page`. The tuple with the highest number
 * comes first, so the bytes land as they are and only the line pointers have to be made.
 */
function restoreItems(page: Buffer, bytes: Buffer, start: number, length: number): void {
  const end = start + length;
  let count = 0;
  for (let at = start; at < end; at += alignedTupleSize(bytes, at, end)) count++;
  const upper = pageGetSpecial(page) - length;
  const lower = pageHeaderSize + count * itemIdSize;
  if (lower > upper) throw new RedoError(`${count} items of ${length} bytes do not fit on a page`);
  copyBytes(page, upper, bytes, start, length);
  let at = start;
  for (let n = count; n > 0; n--) {
    const size = alignedTupleSize(bytes, at, end);
    setItemId(page, n, upper + at - start, lpNormal, size);
    at += size;
  }
  pageSetLower(page, lower);
  pageSetUpper(page, upper);
}

/**
 * Btree DELETE and VACUUM. At `counts` of the record: ndeleted u16, nupdated u16. Block data: the numbers of deleted items,
 * the numbers of updated ones, then the updates. Updates come first, by the old numbers.
 */
function deleteItems(page: Buffer, record: WalRecord, block: BlockRef, counts: number): void {
  const bytes = record.bytes;
  const deleted = u16(bytes, counts);
  const updated = u16(bytes, counts + 2);
  const data = blockData(block, (deleted + updated) * 2);
  updatePostings(page, bytes, data + deleted * 2, updated, data + block.dataLength);
  if (deleted > 0) {
    if (deleted > maxOffset(page)) throw new RedoError(`${deleted} items deleted from a page of ${maxOffset(page)}`);
    for (let i = 0; i < deleted; i++) deletedItems[i] = u16(bytes, data + i * 2);
    pageIndexMultiDelete(page, deletedItems, deleted);
  }
  clearFlag(page, btpHasGarbage);
}

/**
 * xl_btree_mark_page_halfdead: poffset u16, leafblk u32 @4, leftblk u32, rightblk u32, topparent u32. Block 0 is the leaf,
 * block 1 the parent of the subtree: its item poffset takes over the downlink of the next one, which goes.
 */
function markPageHalfDead(page: Buffer, record: WalRecord, block: BlockRef): void {
  checkBlocks(block, 1);
  const main = mainData(record, 20);
  const bytes = record.bytes;
  if (block.id === 0) {
    initBtreePage(page, u32(bytes, main + 8), u32(bytes, main + 12), 0, btpHalfDead | btpLeaf);
    addTopParent(page, u32(bytes, main + 16));
    return;
  }
  const n = u16(bytes, main);
  checkOffset(page, n);
  const rightSibling = tidBlock(page, indexTuple(page, n + 1));
  setTidBlock(page, indexTuple(page, n), rightSibling);
  pageIndexTupleDelete(page, n + 1);
}

/**
 * xl_btree_unlink_page: leftsib u32, rightsib u32, level u32, safexid u64 @16, leafleftsib u32, leafrightsib u32,
 * leaftopparent u32. Block 0 is the deleted page, 1 and 2 its siblings, 3 the leaf of the subtree being deleted (when block
 * 0 is another page), 4 the metapage.
 */
function unlinkPage(page: Buffer, record: WalRecord, block: BlockRef): void {
  const main = mainData(record, 36);
  const bytes = record.bytes;
  const leftSibling = u32(bytes, main);
  const rightSibling = u32(bytes, main + 4);
  switch (block.id) {
    case 0: {
      const level = u32(bytes, main + 8);
      const flags = btpDeleted | btpHasFullXid | (level === 0 ? btpLeaf : 0);
      initBtreePage(page, leftSibling, rightSibling, level, flags);
      // BTDeletedPageData
      copyBytes(page, pageHeaderSize, bytes, main + 16, 8);
      pageSetLower(page, pageHeaderSize + 8);
      return;
    }
    case 1:
      setNext(page, rightSibling);
      return;
    case 2:
      setPrevious(page, leftSibling);
      return;
    case 3:
      initBtreePage(page, u32(bytes, main + 24), u32(bytes, main + 28), 0, btpHalfDead | btpLeaf);
      addTopParent(page, u32(bytes, main + 32));
      return;
    default:
      restoreMeta(page, record, block, 4);
  }
}

/** xl_btree_newroot: rootblk u32, level u32. Block 0 is the root, 1 its left child, 2 the metapage. */
function newRoot(page: Buffer, record: WalRecord, block: BlockRef): void {
  const level = u32(record.bytes, mainData(record, 8) + 4);
  if (block.id === 0) {
    initBtreePage(page, 0, 0, level, btpRoot | (level === 0 ? btpLeaf : 0));
    if (level > 0) restoreItems(page, record.bytes, block.dataOffset, block.dataLength);
  } else if (block.id === 1) {
    clearFlag(page, btpIncompleteSplit);
  } else {
    restoreMeta(page, record, block, 2);
  }
}

/**
 * _bt_restore_meta. xl_btree_metadata: version, root, level, fastroot, fastlevel, last_cleanup_num_delpages, u32 each, then
 * allequalimage u8. BTMetaPageData adds a magic number before and an unused double before the last field.
 */
function restoreMeta(page: Buffer, record: WalRecord, block: BlockRef, id: number): void {
  if (block.id !== id || block.blockNumber !== 0) throw new RedoError(`block ${block.id} is not the metapage`);
  const data = blockData(block, 25);
  initBtreePage(page, 0, 0, 0, btpMeta);
  setU32(page, pageHeaderSize, 0x053162);
  copyBytes(page, pageHeaderSize + 4, record.bytes, data, 24);
  page[pageHeaderSize + 38] = 0xf0; // btm_last_cleanup_num_heap_tuples = -1.0
  page[pageHeaderSize + 39] = 0xbf;
  page[pageHeaderSize + 40] = record.bytes[data + 24]!;
  pageSetLower(page, pageHeaderSize + 48);
}

function checkBlocks(block: BlockRef, highest: number): void {
  if (block.id > highest) throw new RedoError(`records of this type have blocks 0 to ${highest} only`);
}
