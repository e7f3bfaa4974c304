/**
 * Changes to the posting lists of a posting-tree leaf (ginxlogRecompressDataLeaf; ginRedoRecompress in
 * access/gin/ginxlog.c). The format: nactions u16, then for each action the segment it applies to (u8), its kind (u8) and, for
 * INSERT and REPLACE, a segment padded to 2 bytes; for ADDITEMS a count u16 and as many heap tids.
 */
import {copyBytes, pageGetLower, pageSize} from './bufpage.ts';
import {
  ginCompressed,
  ginDataAt,
  ginDataBytesMax,
  ginFlags,
  ginMaxoff,
  setGinDataSize,
  setGinFlags,
  setGinMaxoff,
} from './gin-page.ts';
import {decodeSegment, encodeSegment, mergeTids, readTid, segmentSize} from './gin-posting-list.ts';
import {RedoError} from './redo.ts';

const actionDelete = 1;
const actionInsert = 2;
const actionReplace = 3;
const actionAddItems = 4;

const dataEnd = ginDataAt + ginDataBytesMax;
/** Every tid takes at least one byte of a page; block data are shorter than 64 KiB and hold 6 bytes a tid. */
const tidsOfPageMax = pageSize;
const tidsOfRecordMax = Math.ceil(65536 / 6);

// Work areas; redo is synchronous, so one set is enough.
const oldTids = new Float64Array(tidsOfPageMax);
const newTids = new Float64Array(tidsOfRecordMax);
const mergedTids = new Float64Array(tidsOfPageMax + tidsOfRecordMax);
const encoded = Buffer.alloc(pageSize);
const tail = Buffer.alloc(pageSize);

/**
 * Applies the actions at `at` up to `end` of `bytes` to the leaf. Segments before the first changed one stay where they are;
 * from there on the old ones are read from a copy and the page is written anew. The caller has checked that it is a leaf.
 * Work is bounded by the sizes of page and record: actions go through the segments once. Throws RedoError.
 */
export function recompressLeaf(page: Buffer, bytes: Buffer, at: number, end: number): void {
  if ((ginFlags(page) & ginCompressed) === 0) compressLeaf(page);
  if (at + 2 > end) throw new RedoError('GIN leaf change: no actions');
  const actions = bytes[at]! | (bytes[at + 1]! << 8);
  let p = at + 2;

  let old = page; // where the old segments are read: the page itself until the first change, then `tail`
  let oldAt = ginDataAt;
  let oldEnd = pageGetLower(page);
  if (oldEnd < ginDataAt || oldEnd > dataEnd) throw new RedoError(`GIN leaf: posting lists end at ${oldEnd}`);
  let writeAt = ginDataAt;
  let segment = 0;

  for (let i = 0; i < actions; i++) {
    if (p + 2 > end) throw new RedoError(`GIN leaf change: ${actions} actions announced, the data end after ${i}`);
    const target = bytes[p]!;
    const action = bytes[p + 1]!;
    p += 2;

    let source = bytes;
    let sourceAt = p;
    let newSize = 0;
    let added = 0;
    if (action === actionInsert || action === actionReplace) {
      newSize = segmentSize(bytes, p, end);
      p += newSize;
    } else if (action === actionAddItems) {
      if (p + 2 > end) throw new RedoError('GIN leaf change: heap tids are cut off');
      added = bytes[p]! | (bytes[p + 1]! << 8);
      sourceAt = p + 2;
      p = sourceAt + added * 6;
      if (p > end) throw new RedoError(`GIN leaf change: ${added} heap tids are cut off`);
    } else if (action !== actionDelete) {
      throw new RedoError(`GIN leaf change: unknown action ${action}`);
    }

    if (target < segment) throw new RedoError(`GIN leaf change: segment ${target} after segment ${segment}`);
    for (; segment < target; segment++) {
      const size = segmentSize(old, oldAt, oldEnd);
      if (old !== page) write(page, writeAt, old, oldAt, size);
      writeAt += size;
      oldAt += size;
    }

    const size = oldAt === oldEnd ? 0 : segmentSize(old, oldAt, oldEnd);
    if (action !== actionInsert && size === 0) throw new RedoError(`GIN leaf change: segment ${target} does not exist`);
    if (action === actionAddItems) {
      const oldCount = decodeSegment(old, oldAt, oldTids);
      for (let k = 0; k < added; k++) newTids[k] = readTid(bytes, sourceAt + k * 6);
      newSize = encodeSegment(mergedTids, mergeTids(newTids, added, oldTids, oldCount, mergedTids), encoded);
      source = encoded;
      sourceAt = 0;
    }
    if (old === page && oldAt !== oldEnd) {
      copyBytes(tail, 0, page, oldAt, oldEnd - oldAt);
      old = tail;
      oldEnd -= oldAt;
      oldAt = 0;
    }
    if (action !== actionDelete) {
      write(page, writeAt, source, sourceAt, newSize);
      writeAt += newSize;
    }
    if (action !== actionInsert) {
      oldAt += size;
      segment++;
    }
  }
  if (old !== page && oldAt !== oldEnd) {
    write(page, writeAt, old, oldAt, oldEnd - oldAt);
    writeAt += oldEnd - oldAt;
  }
  setGinDataSize(page, writeAt - ginDataAt);
}

/** A leaf in the format of before 9.4 (upgraded clusters): maxoff plain heap tids become one segment. */
function compressLeaf(page: Buffer): void {
  const count = ginMaxoff(page);
  if (count * 6 > ginDataBytesMax) throw new RedoError(`GIN leaf of the old format has ${count} heap tids`);
  let size = 0;
  if (count > 0) {
    for (let i = 0; i < count; i++) oldTids[i] = readTid(page, ginDataAt + i * 6);
    size = encodeSegment(oldTids, count, encoded);
    write(page, ginDataAt, encoded, 0, size);
  }
  setGinDataSize(page, size);
  setGinFlags(page, ginFlags(page) | ginCompressed);
  setGinMaxoff(page, 0);
}

function write(page: Buffer, to: number, source: Buffer, from: number, length: number): void {
  if (to + length > dataEnd)
    throw new RedoError(`GIN leaf change: posting lists do not fit on the page (${to + length} of ${dataEnd})`);
  copyBytes(page, to, source, from, length);
}
