/** Redo of posting lists: deduplication, splits of a posting list, deletion of some of its tids (access/nbtree/nbtdedup.c). */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {
  checkItem,
  copyBytes,
  itemLength,
  maxAlign,
  maxOffset,
  moveBytes,
  pageAddItemFrom,
  pageAddSpace,
  pageGetUpper,
  pageIndexTupleOverwrite,
  pageSize,
} from './bufpage.ts';
import {blockData, mainData, u16} from './bytes.ts';
import {
  btpHasGarbage,
  checkPosting,
  clearFlag,
  clearPosting,
  firstDataKey,
  indexTuple,
  initLike,
  isPosting,
  isRightmost,
  postingCount,
  postingOffset,
  setPosting,
  setTupleSize,
  tidSize,
  tupleSize,
} from './btree-page.ts';
import {RedoError} from './redo.ts';

/** BTMaxItemSize of an 8 KiB page: what a merged posting list tuple may take. */
const postingSizeMax = 2704;

// Work space; redo is synchronous, so one of each is enough.
const newPage = Buffer.alloc(pageSize);
const tids = Buffer.alloc(pageSize);
const tuple = Buffer.alloc(pageSize);

/**
 * btree_xlog_dedup. xl_btree_dedup: nintervals u16. Block data: per interval baseoff u16 and nitems u16: so many items from
 * baseoff on become one posting list tuple; all others stay.
 */
export function redoDedup(page: Buffer, record: WalRecord, block: BlockRef): void {
  const bytes = record.bytes;
  const intervals = u16(bytes, mainData(record, 2));
  const data = blockData(block, intervals * 4);
  const last = maxOffset(page);
  let n = firstDataKey(page);
  if (n > last) throw new RedoError('no items to deduplicate');
  initLike(newPage, page);
  if (!isRightmost(page)) pageAddItemFrom(newPage, page, checkItem(page, 1), itemLength(page, 1), 1);
  let interval = 0;
  while (n <= last) {
    const base = n;
    let items = 1;
    if (interval < intervals && u16(bytes, data + interval * 4) === base)
      items = Math.min(Math.max(1, u16(bytes, data + interval * 4 + 2)), last - base + 1);
    if (items === 1) {
      const at = indexTuple(page, base);
      pageAddItemFrom(newPage, page, at, tupleSize(page, at), maxOffset(newPage) + 1);
    } else {
      addPosting(page, base, items);
      interval++;
    }
    n += items;
  }
  if (interval !== intervals) throw new RedoError(`${interval} of ${intervals} intervals deduplicated`);
  clearFlag(newPage, btpHasGarbage);
  newPage.copy(page);
}

/** Adds the posting list tuple that `items` items of `page` from `base` on become (_bt_form_posting). */
function addPosting(page: Buffer, base: number, items: number): void {
  const baseAt = indexTuple(page, base);
  const keySize = keyLength(page, baseAt);
  let count = 0;
  for (let n = base; n < base + items; n++) {
    const at = indexTuple(page, n);
    const list = isPosting(page, at);
    if (list) checkPosting(page, at);
    const more = list ? postingCount(page, at) : 1;
    if (maxAlign(keySize + (count + more) * tidSize) > postingSizeMax)
      throw new RedoError(`posting list of items ${base} to ${n} grows beyond ${postingSizeMax} bytes`);
    copyBytes(tids, count * tidSize, page, list ? at + postingOffset(page, at) : at, more * tidSize);
    count += more;
  }
  const size = maxAlign(keySize + count * tidSize);
  pageAddSpace(newPage, size, maxOffset(newPage) + 1, false, false);
  const to = pageGetUpper(newPage);
  copyBytes(newPage, to, page, baseAt, keySize);
  setTupleSize(newPage, to, size);
  setPosting(newPage, to, count, keySize);
  copyBytes(newPage, to + keySize, tids, 0, count * tidSize); // the padding is zero: the page is new
}

/** Length of the tuple without its posting list. */
function keyLength(page: Buffer, at: number): number {
  if (!isPosting(page, at)) return tupleSize(page, at);
  checkPosting(page, at);
  return postingOffset(page, at);
}

/**
 * _bt_swap_posting: the tid of the tuple at `itemAt` of `item` goes into the posting list at `postingAt` of `list`, at index
 * `index`; the list's last tid falls out and becomes that tuple's. Both change in place.
 */
export function swapPosting(list: Buffer, postingAt: number, item: Buffer, itemAt: number, index: number): void {
  checkPosting(list, postingAt);
  const count = postingCount(list, postingAt);
  if (index <= 0 || index >= count) throw new RedoError(`posting list of ${count} tids cannot be split at ${index}`);
  const place = postingAt + postingOffset(list, postingAt) + index * tidSize;
  const last = postingAt + postingOffset(list, postingAt) + (count - 1) * tidSize;
  copyBytes(tids, 0, list, last, tidSize);
  moveBytes(list, place + tidSize, place, last - place);
  copyBytes(list, place, item, itemAt, tidSize);
  copyBytes(item, itemAt, tids, 0, tidSize);
}

/**
 * btree_xlog_updates: takes tids out of posting list tuples. From `offsetsAt` on, `count` item numbers u16; then for each
 * ndeletedtids u16 and so many ascending list indexes u16. `end` is where the block data ends. Throws RedoError.
 */
export function updatePostings(page: Buffer, bytes: Buffer, offsetsAt: number, count: number, end: number): void {
  let at = offsetsAt + count * 2;
  for (let i = 0; i < count; i++) {
    if (at + 2 > end) throw new RedoError('posting list updates run beyond the block data');
    const deleted = u16(bytes, at);
    if (at + 2 + deleted * 2 > end) throw new RedoError('posting list updates run beyond the block data');
    updatePosting(page, u16(bytes, offsetsAt + i * 2), bytes, at + 2, deleted);
    at += 2 + deleted * 2;
  }
}

/** _bt_update_posting, then PageIndexTupleOverwrite. */
function updatePosting(page: Buffer, n: number, bytes: Buffer, deletedAt: number, deleted: number): void {
  const at = indexTuple(page, n);
  checkPosting(page, at);
  const keySize = postingOffset(page, at);
  const oldCount = postingCount(page, at);
  const count = oldCount - deleted;
  if (count <= 0) throw new RedoError(`${deleted} of ${oldCount} tids of item ${n} to be deleted`);
  const size = count > 1 ? maxAlign(keySize + count * tidSize) : keySize;
  tuple.fill(0, 0, maxAlign(size) + tidSize);
  copyBytes(tuple, 0, page, at, keySize);
  setTupleSize(tuple, 0, size);
  if (count > 1) setPosting(tuple, 0, count, keySize);
  else clearPosting(tuple, 0);
  let to = count > 1 ? keySize : 0;
  let next = 0;
  for (let i = 0; i < oldCount; i++) {
    if (next < deleted && u16(bytes, deletedAt + next * 2) === i) {
      next++;
      continue;
    }
    if (i - next >= count) break;
    copyBytes(tuple, to, page, at + keySize + i * tidSize, tidSize);
    to += tidSize;
  }
  if (next !== deleted) throw new RedoError(`tids to be deleted from item ${n} are not in its list of ${oldCount}`);
  pageIndexTupleOverwrite(page, n, tuple.subarray(0, maxAlign(size)));
}
