/**
 * Pages of a GIN index: opaque data, metapage, posting-tree pages.
 * Source: access/ginblock.h; GinInitPage, GinInitMetabuffer (access/gin/ginutil.c); GinDataPageAddPostingItem and
 * GinPageDeletePostingItem (access/gin/gindatapage.c).
 */
import {copyBytes, moveBytes, pageInit, pageSetLower, pageSize, specialOffset} from './bufpage.ts';
import {RedoError} from './redo.ts';

/** sizeof(GinPageOpaqueData): rightlink u32, maxoff u16, flags u16. */
export const ginOpaqueSize = 8;
const opaqueAt = pageSize - ginOpaqueSize;
export const rightLinkAt = opaqueAt;
const maxoffAt = opaqueAt + 4;
const flagsAt = opaqueAt + 6;

/** GinPageOpaqueData.flags. */
export const ginData = 0x01;
export const ginLeaf = 0x02;
export const ginDeleted = 0x04;
export const ginMeta = 0x08;
export const ginList = 0x10;
export const ginListFullRow = 0x20;
export const ginIncompleteSplit = 0x40;
export const ginCompressed = 0x80;

export const invalidBlockNumber = 0xffffffff;

/** PageGetContents: on a data page the right bound (a heap tid), then the posting lists or posting items. */
const contentsAt = 24;
/** GinDataPageGetData. */
export const ginDataAt = 32;
/** GinDataPageMaxDataSize. */
export const ginDataBytesMax = opaqueAt - ginDataAt;
/** sizeof(GinMetaPageData), alignment at the end included. */
export const ginMetaSize = 56;
/** sizeof(PostingItem): child block u32 (high half first), heap tid. */
export const postingItemSize = 10;

/** Checks that the special space is that of a GIN page. Throws RedoError. */
export function checkGinPage(page: Buffer): void {
  specialOffset(page, ginOpaqueSize);
}

/** Checks that the page belongs to a posting tree and is a leaf or not, as asked. Throws RedoError. */
export function checkGinDataPage(page: Buffer, leaf: boolean): void {
  checkGinPage(page);
  const flags = page[flagsAt]!;
  if ((flags & ginData) === 0 || ((flags & ginLeaf) !== 0) !== leaf)
    throw new RedoError(`not ${leaf ? 'a leaf' : 'an inner page'} of a GIN posting tree: flags ${flags.toString(16)}`);
}

/** The low byte of the flags: all flags that PostgreSQL 15 has. */
export function ginFlags(page: Buffer): number {
  return page[flagsAt]!;
}

export function setGinFlags(page: Buffer, flags: number): void {
  page[flagsAt] = flags;
}

/** How many posting items (inner page of a posting tree), or heap tuples (list page). */
export function ginMaxoff(page: Buffer): number {
  return page[maxoffAt]! | (page[maxoffAt + 1]! << 8);
}

export function setGinMaxoff(page: Buffer, value: number): void {
  page[maxoffAt] = value;
  page[maxoffAt + 1] = value >>> 8;
}

/** GinInitPage. */
export function initGinPage(page: Buffer, flags: number): void {
  pageInit(page, ginOpaqueSize);
  page[flagsAt] = flags;
  page.writeUInt32LE(invalidBlockNumber, rightLinkAt);
}

/** GinInitMetabuffer, then the 56 bytes of GinMetaPageData at `at`. */
export function initGinMetaPage(page: Buffer, source: Buffer, at: number): void {
  initGinPage(page, ginMeta);
  pageSetLower(page, contentsAt + ginMetaSize);
  copyBytes(page, contentsAt, source, at, ginMetaSize);
}

/** GinDataPageSetDataSize. */
export function setGinDataSize(page: Buffer, bytes: number): void {
  pageSetLower(page, ginDataAt + bytes);
}

/** GinDataPageAddPostingItem, with a right link set in the item that moves up: copies 10 bytes from `at`. */
export function addPostingItem(page: Buffer, offset: number, source: Buffer, at: number, rightBlock: number): void {
  const count = ginMaxoff(page);
  if (offset < 1 || offset > count + 1 || (count + 1) * postingItemSize > ginDataBytesMax)
    throw new RedoError(`posting item ${offset} cannot be added to a page with ${count}`);
  const to = ginDataAt + (offset - 1) * postingItemSize;
  // update the link of the split child's item, which now names the right half
  writeBlockId(page, to, rightBlock);
  moveBytes(page, to + postingItemSize, to, (count + 1 - offset) * postingItemSize);
  copyBytes(page, to, source, at, postingItemSize);
  setGinMaxoff(page, count + 1);
  setGinDataSize(page, (count + 1) * postingItemSize);
}

/** GinPageDeletePostingItem. */
export function deletePostingItem(page: Buffer, offset: number): void {
  const count = ginMaxoff(page);
  if (offset < 1 || offset > count || count * postingItemSize > ginDataBytesMax)
    throw new RedoError(`posting item ${offset} cannot be deleted from a page with ${count}`);
  const to = ginDataAt + (offset - 1) * postingItemSize;
  moveBytes(page, to, to + postingItemSize, (count - offset) * postingItemSize);
  setGinMaxoff(page, count - 1);
  setGinDataSize(page, (count - 1) * postingItemSize);
}

/** BlockIdData: two u16, the high half first. */
export function readBlockId(bytes: Buffer, at: number): number {
  return ((bytes[at]! << 16) | (bytes[at + 1]! << 24) | bytes[at + 2]! | (bytes[at + 3]! << 8)) >>> 0;
}

export function writeBlockId(bytes: Buffer, at: number, block: number): void {
  bytes[at] = block >>> 16;
  bytes[at + 1] = block >>> 24;
  bytes[at + 2] = block;
  bytes[at + 3] = block >>> 8;
}
