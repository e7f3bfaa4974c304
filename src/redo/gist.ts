/**
 * Redo of GiST (resource manager 14). Formats: access/gistxlog.h, access/gist.h; behaviour: access/gist/gistxlog.c.
 *
 * The child block of PAGE_UPDATE and PAGE_SPLIT is the left half of an earlier split whose downlink this record inserts:
 * its F_FOLLOW_RIGHT is cleared and its NSN becomes the record's LSN. That happens on a restored image too, because the
 * image was taken before the NSN was known.
 *
 * F_TUPLES_DELETED (flag 4) is left as it is: minor releases up to at least 15.18 set it in PAGE_UPDATE and DELETE, 15.20 no
 * longer does (access/gist.h calls it deprecated), and nothing reads it.
 */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {
  maxOffset,
  pageAddItemFrom,
  pageIndexMultiDelete,
  pageIndexTupleDelete,
  pageIndexTupleOverwrite,
  pageInit,
  pageSetLower,
  specialOffset,
} from './bufpage.ts';
import {mainData, setU16, setU32, u16, u32} from './bytes.ts';
import {RedoError, type RedoFunction} from './redo.ts';

/** Block number of every GiST index's root. */
const rootBlock = 0;

/** GISTPageOpaqueData: NSN as two u32 (high word first) @0, rightlink u32 @8, flags u16 @12, page id u16 @14. */
const opaqueSize = 16;
const rightlinkAt = 8;
const flagsAt = 12;
const pageIdAt = 14;
const gistPageId = 0xff81;
const invalidBlock = 0xffffffff;

const flagLeaf = 1;
const flagDeleted = 2;
const flagFollowRight = 8;
const flagHasGarbage = 16;

/** IndexTupleData: TID 6 bytes, then t_info whose low 13 bits are the whole tuple's size (access/itup.h). */
const indexTupleHeaderSize = 8;

/** Redo of one block of a GiST record. The functions below answer as RedoFunction says. */
export const redoGist: RedoFunction = (page, record, block, restored) => {
  switch (record.info & 0xf0) {
    case 0x00:
      return redoPageUpdate(page, record, block, restored);
    case 0x10:
      return redoDelete(page, record, block, restored);
    case 0x20: // PAGE_REUSE: only a conflict point for hot standby
    case 0x70: // ASSIGN_LSN: only takes an LSN
      return false;
    case 0x30:
      return redoPageSplit(page, record, block, restored);
    case 0x60:
      return redoPageDelete(page, record, block, restored);
    default:
      throw new RedoError(`unknown GiST record type ${record.info & 0xf0}`);
  }
};

/** gistxlogPageUpdate {ntodelete u16, ntoinsert u16}; data of block 0: item numbers to delete, then tuples to add. */
function redoPageUpdate(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (block.id === 1) return clearFollowRight(page, record);
  if (block.id !== 0) throw new RedoError(`GiST PAGE_UPDATE has no block ${block.id}`);
  if (restored) return false;
  const main = mainData(record, 4);
  const bytes = record.bytes;
  const deleteCount = u16(bytes, main);
  const insertCount = u16(bytes, main + 2);
  let at = block.dataOffset;
  const end = at + block.dataLength;
  if (deleteCount > 0) {
    if (deleteCount * 2 > end - at)
      throw new RedoError(`GiST PAGE_UPDATE deletes ${deleteCount} items and has ${end - at} bytes of data`);
    if (deleteCount === 1 && insertCount === 1) {
      const tupleAt = at + 2;
      const size = indexTupleSize(bytes, tupleAt, end);
      pageIndexTupleOverwrite(page, u16(bytes, at), bytes.subarray(tupleAt, tupleAt + size));
      at = tupleAt + size;
    } else {
      pageIndexMultiDelete(page, readOffsets(bytes, at, deleteCount), deleteCount);
      at += deleteCount * 2;
    }
  }
  addTuples(page, bytes, at, end);
  return true;
}

/** gistxlogDelete {latestRemovedXid u32, ntodelete u16}, then the item numbers, in the main data. */
function redoDelete(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (block.id !== 0) throw new RedoError(`GiST DELETE has no block ${block.id}`);
  if (restored) return false;
  const main = mainData(record, 6);
  const opaque = specialOffset(page, opaqueSize);
  if (record.mainDataLength > 6) {
    const count = u16(record.bytes, main + 4);
    if (6 + count * 2 > record.mainDataLength)
      throw new RedoError(`GiST DELETE of ${count} items has ${record.mainDataLength} bytes of main data`);
    pageIndexMultiDelete(page, readOffsets(record.bytes, main + 6, count), count);
  }
  page[opaque + flagsAt]! &= ~flagHasGarbage;
  return true;
}

/**
 * gistxlogPageSplit {origrlink u32, orignsn u64 @8, origleaf bool @16, npage u16 @18, markfollowright bool @20}. Block 0 is
 * the child (if any), blocks 1 … npage are the halves, each made anew from its data: i32 count, then the tuples.
 */
function redoPageSplit(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (block.id === 0) return clearFollowRight(page, record);
  const main = mainData(record, 21);
  const bytes = record.bytes;
  const pageCount = u16(bytes, main + 18);
  if (block.id > pageCount) throw new RedoError(`GiST PAGE_SPLIT into ${pageCount} pages has no block ${block.id}`);
  if (restored) return false; // the halves are initialised, never imaged; an image would be the whole truth
  const isRoot = block.blockNumber === rootBlock;
  let followRight = block.id < pageCount && bytes[main + 20]! !== 0;
  for (let id = 1; id <= block.id && followRight; id++)
    if (record.block(id)?.blockNumber === rootBlock) followRight = false;
  let rightlink = invalidBlock;
  if (!isRoot && block.id < pageCount) {
    const next = record.block(block.id + 1);
    if (next === undefined) throw new RedoError(`GiST PAGE_SPLIT into ${pageCount} pages lacks block ${block.id + 1}`);
    rightlink = next.blockNumber;
  } else if (!isRoot) {
    rightlink = u32(bytes, main);
  }
  const start = block.dataOffset;
  const end = start + block.dataLength;
  if (block.dataLength < 4)
    throw new RedoError(`GiST PAGE_SPLIT has ${block.dataLength} bytes of data for block ${block.id}`);
  const count = u32(bytes, start);
  pageInit(page, opaqueSize);
  const added = addTuples(page, bytes, start + 4, end);
  if (added !== count)
    throw new RedoError(`GiST PAGE_SPLIT announces ${count} tuples for block ${block.id} and has ${added}`);
  const opaque = specialOffset(page, opaqueSize);
  setU32(page, opaque, u32(bytes, main + 12));
  setU32(page, opaque + 4, u32(bytes, main + 8));
  setU32(page, opaque + rightlinkAt, rightlink);
  const leaf = !isRoot && bytes[main + 16]! !== 0;
  page[opaque + flagsAt] = (leaf ? flagLeaf : 0) | (followRight && !isRoot ? flagFollowRight : 0);
  setU16(page, opaque + pageIdAt, gistPageId);
  return true;
}

/** gistxlogPageDelete {deleteXid u64, downlinkOffset u16}: block 0 becomes deleted, block 1 loses the downlink. */
function redoPageDelete(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (block.id > 1) throw new RedoError(`GiST PAGE_DELETE has no block ${block.id}`);
  if (restored) return false;
  const main = mainData(record, 10);
  const opaque = specialOffset(page, opaqueSize);
  if (block.id === 1) {
    pageIndexTupleDelete(page, u16(record.bytes, main + 8));
    return true;
  }
  // GISTDeletedPageContents, the xid after which the page may be reused, stands where the line pointers were
  page[opaque + flagsAt]! |= flagDeleted;
  setU32(page, 24, u32(record.bytes, main));
  setU32(page, 28, u32(record.bytes, main + 4));
  pageSetLower(page, 32);
  return true;
}

/** gistRedoClearFollowRight. Also after a restore: see above. */
function clearFollowRight(page: Buffer, record: WalRecord): boolean {
  const opaque = specialOffset(page, opaqueSize);
  const low = record.endLsn % 4294967296;
  setU32(page, opaque, (record.endLsn - low) / 4294967296);
  setU32(page, opaque + 4, low);
  page[opaque + flagsAt]! &= ~flagFollowRight;
  return true;
}

/** Adds the index tuples in [at, end) after the last item; returns how many. */
function addTuples(page: Buffer, bytes: Buffer, at: number, end: number): number {
  let offset = maxOffset(page) + 1;
  let added = 0;
  while (at < end) {
    const size = indexTupleSize(bytes, at, end);
    pageAddItemFrom(page, bytes, at, size, offset++);
    at += size;
    added++;
  }
  return added;
}

/** Size of the index tuple at `at`, checked to end at `end` or before. */
function indexTupleSize(bytes: Buffer, at: number, end: number): number {
  if (end - at < indexTupleHeaderSize) throw new RedoError(`GiST tuple has only ${end - at} bytes`);
  const size = u16(bytes, at + 6) & 0x1fff;
  if (size < indexTupleHeaderSize || size > end - at)
    throw new RedoError(`GiST tuple of ${size} bytes where ${end - at} are left`);
  return size;
}

/** Item numbers of the record; valid until the next call. The caller has checked the bounds. */
function readOffsets(bytes: Buffer, at: number, count: number): Uint16Array {
  if (count > offsetsWork.length) throw new RedoError(`GiST record deletes ${count} items of one page`);
  for (let i = 0; i < count; i++) offsetsWork[i] = u16(bytes, at + i * 2);
  return offsetsWork;
}

const offsetsWork = new Uint16Array(2048);
