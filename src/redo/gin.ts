/** Redo of GIN indexes (access/ginxlog.h; access/gin/ginxlog.c). */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';

import {
  checkItem,
  copyBytes,
  maxOffset,
  pageAddItemFrom,
  pageAddSpace,
  pageGetUpper,
  pageIndexTupleDelete,
  pageSetPruneXid,
} from './bufpage.ts';
import {blockData, mainData, setU32, u16, u32} from './bytes.ts';
import {
  addPostingItem,
  checkGinDataPage,
  checkGinPage,
  deletePostingItem,
  ginCompressed,
  ginData,
  ginDataAt,
  ginDataBytesMax,
  ginDeleted,
  ginFlags,
  ginIncompleteSplit,
  ginLeaf,
  ginList,
  ginListFullRow,
  ginMaxoff,
  ginMetaSize,
  initGinMetaPage,
  initGinPage,
  invalidBlockNumber,
  readBlockId,
  rightLinkAt,
  setGinDataSize,
  setGinFlags,
  setGinMaxoff,
  writeBlockId,
} from './gin-page.ts';
import {recompressLeaf} from './gin-recompress.ts';
import {type RedoFunction, RedoError} from './redo.ts';

/** Opcodes: high 4 bits of xl_info. */
const opCreatePostingTree = 0x10;
const opInsert = 0x20;
const opSplit = 0x30;
const opVacuumPage = 0x40;
const opDeletePage = 0x50;
const opUpdateMetaPage = 0x60;
const opInsertListPage = 0x70;
const opDeleteListPage = 0x80;
const opVacuumDataLeafPage = 0x90;

/** Flags of ginxlogInsert and ginxlogSplit. */
const insertIsData = 0x01;
const insertIsLeaf = 0x02;
const splitRoot = 0x04;

/** Redo of one block of a record of resource manager Gin. */
export const redoGin: RedoFunction = (page, record, block, restored) => {
  switch (record.info & 0xf0) {
    case opUpdateMetaPage:
      return redoUpdateMetaPage(page, record, block, restored);
    case opInsert:
      return !restored && redoInsert(page, record, block);
    case opCreatePostingTree:
      return redoCreatePostingTree(page, record, block);
    case opSplit:
      return redoSplit(page, record, block, restored);
    case opVacuumPage:
      needBlock(block.id === 0, block);
      if (!restored) throw new RedoError('Gin VACUUM_PAGE: the record has no page image to restore');
      return false;
    case opDeletePage:
      return !restored && redoDeletePage(page, record, block);
    case opInsertListPage:
      return redoInsertListPage(page, record, block);
    case opDeleteListPage:
      return redoDeleteListPage(page, record, block);
    case opVacuumDataLeafPage:
      return !restored && redoVacuumDataLeafPage(page, record, block);
    default:
      throw new RedoError(`unknown Gin record type ${(record.info & 0xf0).toString(16)}`);
  }
};

/**
 * Main data: relation (12 bytes), 4 of padding, GinMetaPageData, prevTail u32 @72, newRightlink u32 @76, ntuples i32 @80.
 * Block 0: metapage. Block 1, if any: tail of the pending list; it gets the tuples in its data, or a right link.
 */
function redoUpdateMetaPage(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  const main = mainData(record, 84);
  const bytes = record.bytes;
  if (block.id === 0) {
    needBlock(block.willInit, block);
    initGinMetaPage(page, bytes, main + 16);
    return true;
  }
  needBlock(block.id === 1, block);
  if (restored) return false;
  checkGinPage(page);
  const count = bytes.readInt32LE(main + 80);
  if (count > 0) {
    addTuples(page, record, block, count, maxOffset(page) + 1);
    setGinMaxoff(page, ginMaxoff(page) + 1);
    return true;
  }
  if (u32(bytes, main + 72) === invalidBlockNumber) return false;
  setU32(page, rightLinkAt, u32(bytes, main + 76));
  return true;
}

/**
 * Main data: flags u16; unless leaf: left and right child block, high half first. Block 0: the page, data by kind of tree.
 * Block 1 (not leaf): the left child, whose split this insertion completes.
 */
function redoInsert(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const bytes = record.bytes;
  const main = mainData(record, 2);
  const flags = bytes[main]!;
  const leaf = (flags & insertIsLeaf) !== 0;
  if (block.id !== 0) {
    needBlock(block.id === 1 && !leaf, block);
    clearIncompleteSplit(page);
    return true;
  }
  if (!leaf) mainData(record, 10);
  if ((flags & insertIsData) === 0) {
    insertEntry(page, bytes, block, leaf, main);
  } else if (leaf) {
    checkGinDataPage(page, true);
    recompressLeaf(page, bytes, block.dataOffset, block.dataOffset + block.dataLength);
  } else {
    checkGinDataPage(page, false);
    // ginxlogInsertDataInternal: item number u16, posting item
    const at = blockData(block, 12);
    addPostingItem(page, u16(bytes, at), bytes, at + 2, readBlockId(bytes, main + 6));
  }
  return true;
}

/** ginxlogInsertEntry: item number u16, isDelete u8, 1 of padding, index tuple (ginRedoInsertEntry). */
function insertEntry(page: Buffer, bytes: Buffer, block: BlockRef, leaf: boolean, main: number): void {
  checkGinPage(page);
  const pageFlags = ginFlags(page);
  if ((pageFlags & ginData) !== 0 || ((pageFlags & ginLeaf) !== 0) !== leaf)
    throw new RedoError(
      `not ${leaf ? 'a leaf' : 'an inner page'} of a GIN entry tree: flags ${pageFlags.toString(16)}`,
    );
  const at = blockData(block, 12);
  const offset = bytes[at]! | (bytes[at + 1]! << 8);
  // IndexTupleSize: low 13 bits of t_info
  const size = bytes[at + 10]! | ((bytes[at + 11]! & 0x1f) << 8);
  if (size < 8 || size > block.dataLength - 4)
    throw new RedoError(`GIN entry of ${size} bytes in ${block.dataLength} bytes of block data`);
  if (!leaf) {
    const right = readBlockId(bytes, main + 6);
    if (right !== invalidBlockNumber) {
      // the item of the split child now names the right half: GinSetDownlink, t_tid = (block, 0)
      const item = checkItem(page, offset, 8);
      writeBlockId(page, item, right);
      page[item + 4] = 0;
      page[item + 5] = 0;
    }
  }
  if (bytes[at + 2] !== 0) pageIndexTupleDelete(page, offset);
  pageAddSpace(page, size, offset, false, false);
  copyBytes(page, pageGetUpper(page), bytes, at + 4, size);
}

/** Main data: size u32, then as many bytes of posting lists. Block 0: the new leaf. */
function redoCreatePostingTree(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id === 0 && block.willInit, block);
  const main = mainData(record, 4);
  const size = u32(record.bytes, main);
  if (size > ginDataBytesMax || size > record.mainDataLength - 4)
    throw new RedoError(`Gin CREATE_PTREE: ${size} bytes of posting lists in ${record.mainDataLength} bytes`);
  initGinPage(page, ginData | ginLeaf | ginCompressed);
  copyBytes(page, ginDataAt, record.bytes, main + 4, size);
  setGinDataSize(page, size);
  return true;
}

/**
 * Main data: 24 bytes, flags u16. Blocks 0, 1 and, for a root, 2: always images. Block 3 (not leaf): the left child, whose
 * split this record completes; it may come without an image.
 */
function redoSplit(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  const flags = record.bytes[mainData(record, 26) + 24]!;
  if (block.id === 3) {
    needBlock((flags & insertIsLeaf) === 0, block);
    if (restored) return false;
    clearIncompleteSplit(page);
    return true;
  }
  needBlock(block.id < 2 || (block.id === 2 && (flags & splitRoot) !== 0), block);
  if (!restored) throw new RedoError(`Gin SPLIT: the record has no page image to restore block ${block.id}`);
  return false;
}

/**
 * Main data: parentOffset u16, 2 of padding, rightLink u32, deleteXid u32. Block 0: the deleted page. Block 1: its parent.
 * Block 2: its left sibling.
 */
function redoDeletePage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id <= 2, block);
  const main = mainData(record, 12);
  const bytes = record.bytes;
  if (block.id === 1) {
    checkGinDataPage(page, false);
    deletePostingItem(page, u16(bytes, main));
    return true;
  }
  checkGinPage(page);
  if ((ginFlags(page) & ginData) === 0)
    throw new RedoError(`Gin DELETE_PAGE: block ${block.id} is not a page of a posting tree`);
  if (block.id === 0) {
    setGinFlags(page, ginFlags(page) | ginDeleted);
    // GinPageSetDeleteXid
    pageSetPruneXid(page, u32(bytes, main + 8));
  } else {
    setU32(page, rightLinkAt, u32(bytes, main + 4));
  }
  return true;
}

/** Main data: rightlink u32, ntuples i32. Block 0: a new page of the pending list, data = its tuples. */
function redoInsertListPage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id === 0 && block.willInit, block);
  const main = mainData(record, 8);
  const rightLink = u32(record.bytes, main);
  const isTail = rightLink === invalidBlockNumber;
  initGinPage(page, isTail ? ginList | ginListFullRow : ginList);
  setU32(page, rightLinkAt, rightLink);
  setGinMaxoff(page, isTail ? 1 : 0);
  addTuples(page, record, block, record.bytes.readInt32LE(main + 4), 1);
  return true;
}

/** Main data: GinMetaPageData, ndeleted i32. Block 0: metapage. Blocks 1 to ndeleted: pages that leave the pending list. */
function redoDeleteListPage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const main = mainData(record, ginMetaSize + 4);
  needBlock(block.willInit && block.id <= record.bytes.readInt32LE(main + ginMetaSize), block);
  if (block.id === 0) initGinMetaPage(page, record.bytes, main);
  else initGinPage(page, ginDeleted);
  return true;
}

/** Block 0: a leaf of a posting tree, data = actions. */
function redoVacuumDataLeafPage(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  needBlock(block.id === 0, block);
  checkGinDataPage(page, true);
  recompressLeaf(page, record.bytes, block.dataOffset, block.dataOffset + block.dataLength);
  return true;
}

function clearIncompleteSplit(page: Buffer): void {
  checkGinPage(page);
  setGinFlags(page, ginFlags(page) & ~ginIncompleteSplit);
}

/** Block data: `count` index tuples, one after the other without padding; they become items `first`, `first` + 1 and so on. */
function addTuples(page: Buffer, record: WalRecord, block: BlockRef, count: number, first: number): void {
  const bytes = record.bytes;
  const end = block.dataOffset + block.dataLength;
  let at = block.dataOffset;
  for (let i = 0; i < count; i++) {
    if (at + 8 > end) throw new RedoError(`${count} tuples announced, the block data end after ${i}`);
    // IndexTupleSize: low 13 bits of t_info
    const size = bytes[at + 6]! | ((bytes[at + 7]! & 0x1f) << 8);
    if (size < 8 || at + size > end)
      throw new RedoError(`tuple ${i} of ${count} has ${size} bytes at ${end - at} bytes before the end`);
    pageAddItemFrom(page, bytes, at, size, first + i);
    at += size;
  }
  if (at !== end) throw new RedoError(`${end - at} bytes of block data follow the last of ${count} tuples`);
}

function needBlock(condition: boolean, block: BlockRef): void {
  if (!condition)
    throw new RedoError(`Gin record: unexpected block ${block.id}${block.willInit ? ' with WILL_INIT' : ''}`);
}
