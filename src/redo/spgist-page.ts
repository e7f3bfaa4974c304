/**
 * What SP-GiST records do to tuples of a page: formats in access/spgist_private.h, behaviour in access/spgist/spgxlog.c,
 * spgdoinsert.c and spgutils.c. Item numbers of an SP-GiST page never change; a tuple that goes leaves a dead one behind:
 * - redirect: the tuple moved; readers with an old link follow it
 * - dead: the head of a chain whose tuples are all gone
 * - placeholder: only keeps later item numbers; the next insertion may take its place
 *
 * Dead tuple (SpGistDeadTupleData, 16 bytes): u32 state in the low 2 bits and size above, u16 unused, TID @6, xid @12.
 */
import {
  checkItem,
  checkOffset,
  copyBytes,
  itemFlags,
  itemIdSize,
  itemLength,
  itemOffset,
  lpNormal,
  maxAlign,
  maxOffset,
  moveBytes,
  pageAddItemFrom,
  pageGetLower,
  pageGetUpper,
  pageHeaderSize,
  pageIndexMultiDelete,
  pageInit,
  pageSetLower,
  pageSetUpper,
  setItemId,
  specialOffset,
} from './bufpage.ts';
import {setU16, setU32, u16} from './bytes.ts';
import {RedoError} from './redo.ts';

/** tupstate: the low 2 bits of every tuple. */
export const stateRedirect = 1;
export const stateDead = 2;
export const statePlaceholder = 3;

/** SpGistPageOpaqueData: flags u16, nRedirection u16, nPlaceholder u16, page id u16. */
const opaqueSize = 8;
const redirectionsAt = 2;
const placeholdersAt = 4;
const pageIdAt = 6;
const spgistPageId = 0xff82;
export const pageFlagLeaf = 4;
export const pageFlagNulls = 8;

export const invalidBlock = 0xffffffff;
const deadTupleSize = 16;
const nodeHeaderSize = 8;

/** SpGistInitPage. */
export function initSpGistPage(page: Buffer, flags: number): void {
  pageInit(page, opaqueSize);
  const opaque = specialOffset(page, opaqueSize);
  setU16(page, opaque, flags);
  setU16(page, opaque + pageIdAt, spgistPageId);
}

/** The tupstate of the tuple at byte `at`. */
export function tupleState(page: Buffer, at: number): number {
  return page[at]! & 3;
}

/** Adds to nRedirection and nPlaceholder. They wrap, as in PostgreSQL: a wrong count is harmless and must not lose the page. */
export function changeCounts(page: Buffer, redirections: number, placeholders: number): void {
  const opaque = specialOffset(page, opaqueSize);
  addToCount(page, opaque + redirectionsAt, redirections);
  addToCount(page, opaque + placeholdersAt, placeholders);
}

/**
 * addOrReplaceTuple: puts the record's tuple at item number `offset`: after the last item, or in place of a placeholder.
 * The caller has checked that the tuple is inside `bytes`.
 */
export function addOrReplaceTuple(page: Buffer, bytes: Buffer, tupleAt: number, size: number, offset: number): void {
  if (offset === 0) throw new RedoError('SP-GiST tuple has item number 0');
  if (offset > maxOffset(page)) {
    pageAddItemFrom(page, bytes, tupleAt, size, offset);
    return;
  }
  if (tupleState(page, checkItem(page, offset, 4)) !== statePlaceholder)
    throw new RedoError(`SP-GiST item ${offset} is not a placeholder and cannot be replaced`);
  changeCounts(page, 0, -1);
  replaceTuple(page, bytes, tupleAt, size, offset);
}

/**
 * Takes item `offset` out and puts the record's tuple in its place. The same bytes as PageIndexTupleDelete and PageAddItem
 * with that number, the hole included, without moving the line pointers there and back: ADD_LEAF spends its time here.
 */
export function replaceTuple(page: Buffer, bytes: Buffer, tupleAt: number, size: number, offset: number): void {
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  const special = specialOffset(page, opaqueSize);
  checkOffset(page, offset);
  const old = itemOffset(page, offset);
  const oldSize = maxAlign(itemLength(page, offset));
  if (lower > upper || upper > special || old < upper || old + oldSize > special || (old & 7) !== 0)
    throw new RedoError(
      `SP-GiST item ${offset} has ${oldSize} bytes at ${old} on a page with lower = ${lower}, upper = ${upper}`,
    );
  const newUpper = upper + oldSize - maxAlign(size);
  if (lower > newUpper)
    throw new RedoError(`SP-GiST tuple of ${size} bytes does not fit: lower = ${lower}, upper = ${upper}`);
  if (old > upper) moveBytes(page, upper + oldSize, upper, old - upper);
  for (let at = pageHeaderSize; at < lower; at += 4) {
    const word = u16(page, at); // lp_off is the low 15 bits, and the sum below stays within the special space
    if ((word & 0x7fff) <= old) setU16(page, at, word + oldSize);
  }
  setItemId(page, offset, newUpper, lpNormal, size);
  pageSetUpper(page, newUpper);
  copyBytes(page, newUpper, bytes, tupleAt, size);
}

/**
 * spgPageIndexMultiDelete: puts dead tuples in the place of the `count` items whose numbers (u16 each, any order) stand at
 * `listAt` in `bytes`: the one listed first gets `firstState`, the others `restState`. `blockNumber`, `offset` and `xid` are
 * what a redirect carries. The caller has checked that the list is inside `bytes`.
 */
export function replaceWithDead(
  page: Buffer,
  bytes: Buffer,
  listAt: number,
  count: number,
  firstState: number,
  restState: number,
  blockNumber: number,
  offset: number,
  xid: number,
): void {
  if (count === 0) return;
  if (count > listWork.length) throw new RedoError(`SP-GiST record deletes ${count} items of one page`);
  const list = listWork.subarray(0, count);
  for (let i = 0; i < count; i++) list[i] = u16(bytes, listAt + i * 2);
  const first = list[0]!;
  if (count > 1) list.sort();
  for (let i = 1; i < count; i++)
    if (list[i] === list[i - 1]) throw new RedoError(`SP-GiST record deletes item ${list[i]} twice`);
  pageIndexMultiDelete(page, list, count);
  // Adding the dead tuples one by one, in ascending order, would move the later line pointers up each time. One pass from
  // the end gives the same bytes, because the line pointers end where they began.
  const lower = pageGetLower(page) + count * itemIdSize;
  const upper = pageGetUpper(page) - count * deadTupleSize;
  if (lower > upper) throw new RedoError(`${count} SP-GiST dead tuples do not fit: lower = ${lower}, upper = ${upper}`);
  const lines = maxOffset(page) + count;
  let left = count;
  for (let n = lines; left > 0; n--) {
    if (n !== list[left - 1]) {
      copyItemId(page, n, n - left);
      continue;
    }
    left--;
    const state = n === first ? firstState : restState;
    const at = upper + (count - 1 - left) * deadTupleSize;
    setItemId(page, n, at, lpNormal, deadTupleSize);
    writeDeadTuple(page, at, state, blockNumber, offset, xid);
  }
  pageSetLower(page, lower);
  pageSetUpper(page, upper);
  const redirections = (firstState === stateRedirect ? 1 : 0) + (restState === stateRedirect ? count - 1 : 0);
  const placeholders = (firstState === statePlaceholder ? 1 : 0) + (restState === statePlaceholder ? count - 1 : 0);
  changeCounts(page, redirections, placeholders);
}

const listWork = new Uint16Array(2048);

/** Line pointer `to` becomes what line pointer `from` is. */
function copyItemId(page: Buffer, to: number, from: number): void {
  for (let i = 0; i < itemIdSize; i++)
    page[pageHeaderSize + (to - 1) * itemIdSize + i] = page[pageHeaderSize + (from - 1) * itemIdSize + i]!;
}

/** Exchanges two line pointers. */
export function swapItems(page: Buffer, a: number, b: number): void {
  checkOffset(page, a);
  checkOffset(page, b);
  const offset = itemOffset(page, a);
  const flags = itemFlags(page, a);
  const length = itemLength(page, a);
  setItemId(page, a, itemOffset(page, b), itemFlags(page, b), itemLength(page, b));
  setItemId(page, b, offset, flags, length);
}

/** SGLT_SET_NEXTOFFSET: links leaf tuple `n` to the next one of its chain; 14 bits of t_info, the upper 2 stay. */
export function setNextOffset(page: Buffer, n: number, next: number): void {
  const at = checkItem(page, n, 6);
  page[at + 4] = next;
  page[at + 5] = (page[at + 5]! & 0xc0) | ((next >>> 8) & 0x3f);
}

/**
 * spgUpdateNodeLink: points node `node` of the inner tuple at item number `n` to a tuple. Inner tuple: u32 with tupstate in
 * bits 0–1, number of nodes in bits 3–15, prefix size in bits 16–31; then after 8 bytes and the prefix the nodes, each an
 * index tuple with its TID first and its size in the low 13 bits of the u16 at 6.
 */
export function updateNodeLink(page: Buffer, n: number, node: number, blockNumber: number, offset: number): void {
  const start = checkItem(page, n, nodeHeaderSize);
  const end = start + itemLength(page, n);
  const nodes = u16(page, start) >>> 3;
  if (node >= nodes) throw new RedoError(`SP-GiST inner tuple ${n} has ${nodes} nodes, not number ${node}`);
  let at = start + 8 + u16(page, start + 2);
  for (let i = 0; i < node && at + nodeHeaderSize <= end; i++)
    at += Math.max(nodeHeaderSize, u16(page, at + 6) & 0x1fff);
  if (at + nodeHeaderSize > end) throw new RedoError(`SP-GiST inner tuple ${n} ends before its node ${node}`);
  writeTid(page, at, blockNumber, offset);
}

/** spgFormDeadTuple, straight onto the page. */
function writeDeadTuple(
  page: Buffer,
  at: number,
  state: number,
  blockNumber: number,
  offset: number,
  xid: number,
): void {
  const redirect = state === stateRedirect;
  page[at] = (deadTupleSize << 2) | state;
  page[at + 1] = 0;
  page[at + 2] = 0;
  page[at + 3] = 0;
  page[at + 4] = 0;
  page[at + 5] = 0;
  writeTid(page, at + 6, redirect ? blockNumber : invalidBlock, redirect ? offset : 0);
  setU32(page, at + 12, redirect ? xid : 0);
}

/** ItemPointerData: block number as two u16 (high first), then the item number. */
function writeTid(page: Buffer, at: number, blockNumber: number, offset: number): void {
  page[at] = blockNumber >>> 16;
  page[at + 1] = blockNumber >>> 24;
  page[at + 2] = blockNumber;
  page[at + 3] = blockNumber >>> 8;
  page[at + 4] = offset;
  page[at + 5] = offset >>> 8;
}

function addToCount(page: Buffer, at: number, difference: number): void {
  setU16(page, at, u16(page, at) + difference);
}
