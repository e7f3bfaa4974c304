/**
 * B-tree pages and index tuples (access/nbtree.h, access/itup.h).
 * Special space, 16 bytes: btpo_prev u32 @0, btpo_next u32 @4, btpo_level u32 @8, btpo_flags u16 @12, btpo_cycleid u16 @14.
 * Index tuple: t_tid (block high u16, block low u16, offset u16), t_info u16 @6 (low 13 bits: size), then the key. A posting
 * list tuple has bit 0x2000 set in t_info and in the tid's offset, whose low 12 bits count its heap tids; they start at the
 * byte that the tid's block number names.
 */
import {checkItem, itemLength, pageAddSpace, pageGetUpper, pageInit, specialOffset} from './bufpage.ts';
import {setU16, setU32, u16, u32} from './bytes.ts';
import {RedoError} from './redo.ts';

export const btpLeaf = 0x0001;
export const btpRoot = 0x0002;
export const btpDeleted = 0x0004;
export const btpMeta = 0x0008;
export const btpHalfDead = 0x0010;
export const btpHasGarbage = 0x0040;
export const btpIncompleteSplit = 0x0080;
export const btpHasFullXid = 0x0100;

export const tupleHeaderSize = 8;
export const tidSize = 6;
const sizeMask = 0x1fff;
const altTidMask = 0x2000;
const isPostingBit = 0x2000;
const offsetMask = 0x0fff;
const opaqueSize = 16;

/** _bt_pageinit, and the fields of the special space. */
export function initBtreePage(page: Buffer, previous: number, next: number, level: number, flags: number): void {
  pageInit(page, opaqueSize);
  const opaque = specialOffset(page, opaqueSize);
  setU32(page, opaque, previous);
  setU32(page, opaque + 4, next);
  setU32(page, opaque + 8, level);
  setU16(page, opaque + 12, flags);
}

export function isRightmost(page: Buffer): boolean {
  return u32(page, specialOffset(page, opaqueSize) + 4) === 0;
}

/** P_FIRSTDATAKEY: item 1 is the high key, unless the page is the rightmost of its level. */
export function firstDataKey(page: Buffer): number {
  return isRightmost(page) ? 1 : 2;
}

export function setPrevious(page: Buffer, block: number): void {
  setU32(page, specialOffset(page, opaqueSize), block);
}

export function setNext(page: Buffer, block: number): void {
  setU32(page, specialOffset(page, opaqueSize) + 4, block);
}

export function setFlags(page: Buffer, flags: number): void {
  setU16(page, specialOffset(page, opaqueSize) + 12, flags);
}

export function clearFlag(page: Buffer, flag: number): void {
  const at = specialOffset(page, opaqueSize) + 12;
  setU16(page, at, u16(page, at) & ~flag);
}

export function setCycleId(page: Buffer, cycleId: number): void {
  setU16(page, specialOffset(page, opaqueSize) + 14, cycleId);
}

/** PageGetTempPageCopySpecial: an empty page with the special space of `page`. */
export function initLike(target: Buffer, page: Buffer): void {
  const special = specialOffset(page, opaqueSize);
  pageInit(target, opaqueSize);
  for (let i = special; i < special + opaqueSize; i++) target[i] = page[i]!;
}

/** IndexTupleSize. */
export function tupleSize(b: Buffer, at: number): number {
  return u16(b, at + 6) & sizeMask;
}

export function setTupleSize(b: Buffer, at: number, size: number): void {
  setU16(b, at + 6, (u16(b, at + 6) & ~sizeMask) | size);
}

/** Position of item `n`, checked to hold an index tuple that lies within the item. Throws RedoError. */
export function indexTuple(page: Buffer, n: number): number {
  const at = checkItem(page, n, tupleHeaderSize);
  const size = tupleSize(page, at);
  if (size < tupleHeaderSize || size > itemLength(page, n))
    throw new RedoError(`index tuple ${n} of ${size} bytes in an item of ${itemLength(page, n)}`);
  return at;
}

export function isPosting(b: Buffer, at: number): boolean {
  return (u16(b, at + 6) & altTidMask) !== 0 && (u16(b, at + 4) & isPostingBit) !== 0;
}

export function postingCount(b: Buffer, at: number): number {
  return u16(b, at + 4) & offsetMask;
}

/** Where the posting list starts, counted from the tuple's start: also the size of the key part. */
export function postingOffset(b: Buffer, at: number): number {
  return tidBlock(b, at);
}

/** Checks that the tuple at `at` is a posting list tuple whose list lies within it. Throws RedoError. */
export function checkPosting(b: Buffer, at: number): void {
  const offset = postingOffset(b, at);
  if (!isPosting(b, at) || offset < tupleHeaderSize || offset + postingCount(b, at) * tidSize > tupleSize(b, at))
    throw new RedoError(`index tuple of ${tupleSize(b, at)} bytes has no valid posting list (offset ${offset})`);
}

/** BTreeTupleSetPosting: marks the tuple at `at` as a posting list of `count` tids after `keySize` bytes. */
export function setPosting(b: Buffer, at: number, count: number, keySize: number): void {
  setU16(b, at + 6, u16(b, at + 6) | altTidMask);
  setU16(b, at + 4, count | isPostingBit);
  setTidBlock(b, at, keySize);
}

/** A tuple that had a posting list becomes a plain one. */
export function clearPosting(b: Buffer, at: number): void {
  setU16(b, at + 6, u16(b, at + 6) & ~altTidMask);
}

/** The block number of a tuple's tid: downlink of pivot tuples. */
export function tidBlock(b: Buffer, at: number): number {
  return ((u16(b, at) << 16) | u16(b, at + 2)) >>> 0;
}

export function setTidBlock(b: Buffer, at: number, block: number): void {
  setU16(b, at, block >>> 16);
  setU16(b, at + 2, block);
}

/** Adds the dummy high key of a half-dead leaf page, which holds the top parent's block number. */
export function addTopParent(page: Buffer, topParent: number): void {
  pageAddSpace(page, tupleHeaderSize, 1, false, false);
  const at = pageGetUpper(page);
  setTidBlock(page, at, topParent);
  setU16(page, at + 4, 0);
  setU16(page, at + 6, tupleHeaderSize | altTidMask);
}
