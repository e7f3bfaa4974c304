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
  itemFlags,
  itemLength,
  itemOffset,
  checkOffset,
  maxOffset,
  pageAddItemFrom,
  pageAddSpace,
  pageGetUpper,
  pageIndexMultiDelete,
  pageIndexTupleDelete,
  pageInit,
  setItemId,
  specialOffset,
} from './bufpage.ts';
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
  page.writeUInt16LE(flags, opaque);
  page.writeUInt16LE(spgistPageId, opaque + pageIdAt);
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

/** addOrReplaceTuple: puts the record's tuple at item number `offset`: after the last item, or in place of a placeholder. */
export function addOrReplaceTuple(page: Buffer, bytes: Buffer, tupleAt: number, size: number, offset: number): void {
  if (offset === 0) throw new RedoError('SP-GiST tuple has item number 0');
  if (offset <= maxOffset(page)) {
    if (tupleState(page, checkItem(page, offset, 4)) !== statePlaceholder) throw new RedoError(`SP-GiST item ${offset} is not a placeholder and cannot be replaced`);
    changeCounts(page, 0, -1);
    pageIndexTupleDelete(page, offset);
  }
  pageAddItemFrom(page, bytes, tupleAt, size, offset);
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
  for (let i = 0; i < count; i++) list[i] = bytes[listAt + i * 2]! | (bytes[listAt + i * 2 + 1]! << 8);
  const first = list[0]!;
  if (count > 1) list.sort();
  pageIndexMultiDelete(page, list, count);
  let redirections = 0;
  let placeholders = 0;
  for (let i = 0; i < count; i++) {
    const n = list[i]!;
    const state = n === first ? firstState : restState;
    pageAddSpace(page, deadTupleSize, n, false, false);
    writeDeadTuple(page, pageGetUpper(page), state, blockNumber, offset, xid);
    if (state === stateRedirect) redirections++;
    else if (state === statePlaceholder) placeholders++;
  }
  changeCounts(page, redirections, placeholders);
}

const listWork = new Uint16Array(2048);

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
  const nodes = (page[start]! | (page[start + 1]! << 8)) >>> 3;
  if (node >= nodes) throw new RedoError(`SP-GiST inner tuple ${n} has ${nodes} nodes, not number ${node}`);
  let at = start + 8 + (page[start + 2]! | (page[start + 3]! << 8));
  for (let i = 0; i < node && at + nodeHeaderSize <= end; i++) at += Math.max(nodeHeaderSize, page[at + 6]! | ((page[at + 7]! & 0x1f) << 8));
  if (at + nodeHeaderSize > end) throw new RedoError(`SP-GiST inner tuple ${n} ends before its node ${node}`);
  writeTid(page, at, blockNumber, offset);
}

/** spgFormDeadTuple, straight onto the page. */
function writeDeadTuple(page: Buffer, at: number, state: number, blockNumber: number, offset: number, xid: number): void {
  const redirect = state === stateRedirect;
  page[at] = (deadTupleSize << 2) | state;
  page[at + 1] = 0;
  page[at + 2] = 0;
  page[at + 3] = 0;
  page[at + 4] = 0;
  page[at + 5] = 0;
  writeTid(page, at + 6, redirect ? blockNumber : invalidBlock, redirect ? offset : 0);
  page.writeUInt32LE(redirect ? xid : 0, at + 12);
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
  const count = (page[at]! | (page[at + 1]! << 8)) + difference;
  page[at] = count;
  page[at + 1] = count >>> 8;
}
