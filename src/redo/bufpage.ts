/**
 * Page primitives of redo: line pointers, adding, deleting and replacing items, defragmentation.
 * Format and behaviour: storage/bufpage.h, storage/itemid.h and storage/page/bufpage.c. Results are equal to
 * PostgreSQL's byte for byte, the bytes of the hole included, because later records and page images build on them.
 *
 * Every function checks what it takes from the page or from its arguments and throws RedoError before it changes the page.
 * Item numbers (OffsetNumber) start at 1; offsets and lengths are bytes.
 */
import {RedoError} from './redo.ts';

export const pageSize = 8192;
export const pageHeaderSize = 24;
export const itemIdSize = 4;
/** Most line pointers that fit on a page. */
export const itemsMax = (pageSize - pageHeaderSize) / itemIdSize;
/** MaxHeapTuplesPerPage for 8 KiB pages (access/htup_details.h). */
export const heapTuplesMax = 291;

/** lp_flags (storage/itemid.h). */
export const lpUnused = 0;
export const lpNormal = 1;
export const lpRedirect = 2;
export const lpDead = 3;

/** pd_flags (storage/bufpage.h). */
export const pdHasFreeLines = 0x0001;
export const pdPageFull = 0x0002;
export const pdAllVisible = 0x0004;

const pdFlagsAt = 10;
const pdLowerAt = 12;
const pdUpperAt = 14;
const pdSpecialAt = 16;
const pdPruneXidAt = 20;

/** PageAddItemExtended's flags. `overwrite`: put the item into this unused line pointer instead of shifting later ones. */
export interface AddItemFlags {
  readonly overwrite?: boolean;
  /** At most MaxHeapTuplesPerPage line pointers. */
  readonly isHeap?: boolean;
}

/** The page that is known to be zeros: pageInit need not do it again. */
let zeros: Buffer | undefined;

/** Zeroes the page of a block with WILL_INIT, whose redo nearly always begins with pageInit. Undefined: the record is done. */
export function startFromZeros(page: Buffer | undefined): void {
  page?.fill(0);
  zeros = page;
}

/** Zeroes the page and writes an empty header with `specialSize` bytes (rounded up to 8) of special space (PageInit). */
export function pageInit(page: Buffer, specialSize: number): void {
  const special = pageSize - maxAlign(specialSize);
  if (specialSize < 0 || special < pageHeaderSize)
    throw new RedoError(`page cannot hold a special space of ${specialSize} bytes`);
  if (zeros !== page) page.fill(0);
  zeros = undefined;
  setU16(page, pdLowerAt, pageHeaderSize);
  setU16(page, pdUpperAt, special);
  setU16(page, pdSpecialAt, special);
  setU16(page, 18, pageSize | 4); // pd_pagesize_version: layout version 4
}

/** True when the page was never initialised (pd_upper = 0). */
export function pageIsNew(page: Buffer): boolean {
  return (page[pdUpperAt]! | page[pdUpperAt + 1]!) === 0;
}

export function pageGetLower(page: Buffer): number {
  return page[pdLowerAt]! | (page[pdLowerAt + 1]! << 8);
}

export function pageGetUpper(page: Buffer): number {
  return page[pdUpperAt]! | (page[pdUpperAt + 1]! << 8);
}

/** Where the special space starts. */
export function pageGetSpecial(page: Buffer): number {
  return page[pdSpecialAt]! | (page[pdSpecialAt + 1]! << 8);
}

export function pageSetLower(page: Buffer, lower: number): void {
  setU16(page, pdLowerAt, lower);
}

export function pageSetUpper(page: Buffer, upper: number): void {
  setU16(page, pdUpperAt, upper);
}

export function pageGetFlags(page: Buffer): number {
  return page[pdFlagsAt]! | (page[pdFlagsAt + 1]! << 8);
}

export function pageSetFlags(page: Buffer, flags: number): void {
  setU16(page, pdFlagsAt, flags);
}

export function pageGetPruneXid(page: Buffer): number {
  return (page[pdPruneXidAt]! | (page[21]! << 8) | (page[22]! << 16) | (page[23]! << 24)) >>> 0;
}

export function pageSetPruneXid(page: Buffer, xid: number): void {
  page[pdPruneXidAt] = xid;
  page[21] = xid >>> 8;
  page[22] = xid >>> 16;
  page[23] = xid >>> 24;
}

/**
 * Start of the special space, checked: it must be exactly `size` bytes (before alignment) at the end of the page.
 * The way for an access method to find its opaque data. Throws RedoError.
 */
export function specialOffset(page: Buffer, size: number): number {
  const special = pageGetSpecial(page);
  if (special !== pageSize - maxAlign(size))
    throw new RedoError(`special space starts at ${special}, ${pageSize - maxAlign(size)} expected`);
  return special;
}

/** PageGetMaxOffsetNumber: how many line pointers the page has. Never beyond the page, whatever pd_lower says. */
export function maxOffset(page: Buffer): number {
  const lower = pageGetLower(page);
  if (lower <= pageHeaderSize) return 0;
  if (lower > pageSize) throw new RedoError(`corrupted page pointers: lower = ${lower}`);
  return (lower - pageHeaderSize) >>> 2;
}

/** lp_off of item `n` (1 ≤ n ≤ maxOffset, not checked: see checkItem). */
export function itemOffset(page: Buffer, n: number): number {
  const at = 20 + n * 4;
  return page[at]! | ((page[at + 1]! & 0x7f) << 8);
}

/** lp_len of item `n`. */
export function itemLength(page: Buffer, n: number): number {
  const at = 20 + n * 4;
  return (page[at + 2]! >>> 1) | (page[at + 3]! << 7);
}

/** lp_flags of item `n`: lpUnused, lpNormal, lpRedirect or lpDead. */
export function itemFlags(page: Buffer, n: number): number {
  const at = 20 + n * 4;
  return (page[at + 1]! >>> 7) | ((page[at + 2]! & 1) << 1);
}

/** True when item `n` has bytes on the page (ItemIdHasStorage). */
export function hasStorage(page: Buffer, n: number): boolean {
  const at = 20 + n * 4;
  return ((page[at + 2]! & 0xfe) | page[at + 3]!) !== 0;
}

/** Writes the whole line pointer. */
export function setItemId(page: Buffer, n: number, offset: number, flags: number, length: number): void {
  const at = 20 + n * 4;
  page[at] = offset;
  page[at + 1] = ((offset >>> 8) & 0x7f) | ((flags & 1) << 7);
  page[at + 2] = ((flags >>> 1) & 1) | ((length & 0x7f) << 1);
  page[at + 3] = length >>> 7;
}

/** Changes lp_flags only. */
export function setItemFlags(page: Buffer, n: number, flags: number): void {
  const at = 20 + n * 4;
  page[at + 1] = (page[at + 1]! & 0x7f) | ((flags & 1) << 7);
  page[at + 2] = (page[at + 2]! & 0xfe) | ((flags >>> 1) & 1);
}

/** Changes lp_off only. */
export function setItemOffset(page: Buffer, n: number, offset: number): void {
  const at = 20 + n * 4;
  page[at] = offset;
  page[at + 1] = (page[at + 1]! & 0x80) | ((offset >>> 8) & 0x7f);
}

/** Checks that line pointer `n` exists. Throws RedoError. */
export function checkOffset(page: Buffer, n: number): void {
  if (n < 1 || n > maxOffset(page)) throw new RedoError(`item ${n} does not exist: page has ${maxOffset(page)}`);
}

/**
 * Checks that item `n` exists and that its bytes (at least `lengthMin`) lie between the line pointers and the special
 * space. Returns its offset. Throws RedoError.
 */
export function checkItem(page: Buffer, n: number, lengthMin = 1): number {
  checkOffset(page, n);
  const offset = itemOffset(page, n);
  const length = itemLength(page, n);
  const special = pageGetSpecial(page);
  if (special > pageSize || length < lengthMin || offset < pageGetLower(page) || offset + length > special)
    throw new RedoError(
      `item ${n} has ${length} bytes at ${offset}: at least ${lengthMin} expected inside ${pageGetLower(page)} to ${special}`,
    );
  return offset;
}

/** Rounds up to the 8 bytes at which items start (MAXALIGN). */
export function maxAlign(n: number): number {
  return (n + 7) & ~7;
}

/** Copies between two buffers that do not overlap. The caller has checked the bounds. */
export function copyBytes(target: Buffer, targetAt: number, source: Buffer, sourceAt: number, length: number): void {
  // Buffer.copy costs 50 to 100 ns a call, whatever the length
  if (length < 48) for (let i = 0; i < length; i++) target[targetAt + i] = source[sourceAt + i]!;
  else source.copy(target, targetAt, sourceAt, sourceAt + length);
}

/** Moves bytes inside the page; the ranges may overlap. The caller has checked the bounds. */
export function moveBytes(page: Buffer, to: number, from: number, length: number): void {
  if (to === from) return;
  if (length >= 48) page.copyWithin(to, from, from + length);
  else if (to < from) for (let i = 0; i < length; i++) page[to + i] = page[from + i]!;
  else for (let i = length - 1; i >= 0; i--) page[to + i] = page[from + i]!;
}

/**
 * PageAddItemExtended: puts `item` onto the page and returns its item number. `offsetNumber` 0 takes the first unused line
 * pointer; else the item gets that number, and later line pointers shift unless `overwrite`. Throws RedoError when it does
 * not fit, when the number lies beyond the first free one, or when `overwrite` hits a used line pointer.
 */
export function pageAddItem(page: Buffer, item: Buffer, offsetNumber: number, flags?: AddItemFlags): number {
  const n = pageAddSpace(page, item.length, offsetNumber, flags?.overwrite === true, flags?.isHeap === true);
  copyBytes(page, pageGetUpper(page), item, 0, item.length);
  return n;
}

/** pageAddItem without a slice of the source: `length` bytes of `source` from `start`; bounds of the source are checked. */
export function pageAddItemFrom(
  page: Buffer,
  source: Buffer,
  start: number,
  length: number,
  offsetNumber: number,
  flags?: AddItemFlags,
): number {
  if (start < 0 || length < 0 || start + length > source.length)
    throw new RedoError(`item of ${length} bytes at ${start} runs beyond its source of ${source.length}`);
  const n = pageAddSpace(page, length, offsetNumber, flags?.overwrite === true, flags?.isHeap === true);
  copyBytes(page, pageGetUpper(page), source, start, length);
  return n;
}

/**
 * The first half of PageAddItemExtended: finds the line pointer, sets it and the header. The caller must then write the
 * item's `length` bytes at pageGetUpper(page). Returns the item number; throws as pageAddItem does.
 */
export function pageAddSpace(
  page: Buffer,
  length: number,
  offsetNumber: number,
  overwrite: boolean,
  isHeap: boolean,
): number {
  const oldLower = pageGetLower(page);
  const oldUpper = pageGetUpper(page);
  const special = pageGetSpecial(page);
  if (oldLower < pageHeaderSize || oldLower > oldUpper || oldUpper > special || special > pageSize)
    throw corruptedPointers(page);
  const limit = ((oldLower - pageHeaderSize) >>> 2) + 1;
  let n = offsetNumber;
  let shuffle = false;
  if (n !== 0) {
    if (n < limit) {
      if (!overwrite) shuffle = true;
      else if (itemFlags(page, n) !== lpUnused || hasStorage(page, n))
        throw new RedoError(`item ${n} is in use and cannot be overwritten`);
    }
  } else if ((page[pdFlagsAt]! & pdHasFreeLines) !== 0) {
    for (n = 1; n < limit; n++) if (itemFlags(page, n) === lpUnused && !hasStorage(page, n)) break;
    if (n >= limit) page[pdFlagsAt] = page[pdFlagsAt]! & ~pdHasFreeLines; // the hint was wrong
  } else {
    n = limit;
  }
  if (n > limit || n < 1) throw new RedoError(`item ${n} cannot be added: the next free number is ${limit}`);
  if (isHeap && n > heapTuplesMax)
    throw new RedoError(`item ${n} cannot be added: a heap page has at most ${heapTuplesMax}`);
  const lower = n === limit || shuffle ? oldLower + itemIdSize : oldLower;
  const upper = oldUpper - maxAlign(length);
  if (lower > upper)
    throw new RedoError(`item of ${length} bytes does not fit: lower = ${oldLower}, upper = ${oldUpper}`);
  if (shuffle) moveBytes(page, 24 + n * 4, 20 + n * 4, (limit - n) * itemIdSize);
  setItemId(page, n, upper, lpNormal, length);
  setU16(page, pdLowerAt, lower);
  setU16(page, pdUpperAt, upper);
  return n;
}

/** PageIndexTupleDelete: takes the item and its line pointer out; later items move down by one number. */
export function pageIndexTupleDelete(page: Buffer, off: number): void {
  checkPointersAligned(page);
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  const lines = maxOffset(page);
  const offset = checkIndexItem(page, off, lines);
  const size = maxAlign(itemLength(page, off));
  moveBytes(page, 20 + off * 4, 24 + off * 4, lower - (24 + off * 4));
  if (offset > upper) moveBytes(page, upper + size, upper, offset - upper);
  setU16(page, pdUpperAt, upper + size);
  setU16(page, pdLowerAt, lower - itemIdSize);
  for (let i = 1; i < lines; i++) {
    const o = itemOffset(page, i);
    if (o <= offset) setItemOffset(page, i, o + size);
  }
}

/** PageIndexTupleDeleteNoCompact: as pageIndexTupleDelete, but later items keep their numbers. */
export function pageIndexTupleDeleteNoCompact(page: Buffer, off: number): void {
  checkPointersAligned(page);
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  let lines = maxOffset(page);
  const offset = checkIndexItem(page, off, lines);
  const size = maxAlign(itemLength(page, off));
  if (off < lines) {
    setItemId(page, off, 0, lpUnused, 0);
  } else {
    setU16(page, pdLowerAt, lower - itemIdSize);
    lines--;
  }
  if (offset > upper) moveBytes(page, upper + size, upper, offset - upper);
  setU16(page, pdUpperAt, upper + size);
  for (let i = 1; i <= lines; i++) {
    const o = itemOffset(page, i);
    if (o <= offset && hasStorage(page, i)) setItemOffset(page, i, o + size);
  }
}

/** PageIndexTupleOverwrite: puts `newTuple` where item `off` was. Throws RedoError when it does not fit. */
export function pageIndexTupleOverwrite(page: Buffer, off: number, newTuple: Buffer): void {
  checkPointersAligned(page);
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  const lines = maxOffset(page);
  const offset = checkIndexItem(page, off, lines);
  const oldSize = maxAlign(itemLength(page, off));
  const newSize = maxAlign(newTuple.length);
  if (newSize > oldSize + (upper - lower))
    throw new RedoError(`tuple of ${newTuple.length} bytes does not fit in place of item ${off} of ${oldSize} bytes`);
  const difference = oldSize - newSize;
  if (difference !== 0) {
    moveBytes(page, upper + difference, upper, offset - upper);
    setU16(page, pdUpperAt, upper + difference);
    for (let i = 1; i <= lines; i++) {
      const o = itemOffset(page, i);
      if (o <= offset && hasStorage(page, i)) setItemOffset(page, i, o + difference);
    }
  }
  setItemId(page, off, offset + difference, itemFlags(page, off), newTuple.length);
  copyBytes(page, offset + difference, newTuple, 0, newTuple.length);
}

/**
 * PageIndexMultiDelete: deletes the items whose numbers are in `offsets` (ascending; the first `count` of them). Up to two
 * go one by one from the last, as in PostgreSQL: that leaves other hole bytes than a compaction.
 */
export function pageIndexMultiDelete(page: Buffer, offsets: ArrayLike<number>, count = offsets.length): void {
  if (count <= 2) {
    for (let i = count - 1; i >= 0; i--) pageIndexTupleDelete(page, offsets[i]!);
    return;
  }
  checkPointersAligned(page);
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  const special = pageGetSpecial(page);
  const lines = maxOffset(page);
  const words = lineWords(page, lines);
  let next = 0;
  let used = 0;
  let total = 0;
  let last = special;
  let presorted = true;
  for (let n = 1; n <= lines; n++) {
    const word = words[n - 1]!;
    const offset = word & 0x7fff;
    const size = maxAlign(word >>> 17);
    if (offset < upper || offset + size > special || (offset & 7) !== 0) throw corruptedItem(page, n);
    if (next < count && n === offsets[next]) {
      next++;
      continue;
    }
    itemIndex[used] = used;
    itemWord[used] = word;
    if (last > offset) last = offset;
    else presorted = false;
    total += size;
    used++;
  }
  if (next !== count)
    throw new RedoError(`item numbers to delete are out of order or beyond the page's ${lines} items`);
  if (total > special - lower)
    throw new RedoError(`corrupted item lengths: total ${total}, available space ${special - lower}`);
  setU16(page, pdLowerAt, pageHeaderSize + used * itemIdSize);
  compactify(page, words, used, presorted);
  putBackLines(page, words, used);
}

/**
 * PageRepairFragmentation: closes the gaps between items after pruning, drops unused line pointers at the end. Line pointers
 * are read and written as words. Which of its four kinds one is cannot be predicted, so the first loop does not branch on it.
 */
export function pageRepairFragmentation(page: Buffer): void {
  checkPointersAligned(page);
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  const special = pageGetSpecial(page);
  const lines = maxOffset(page);
  const words = lineWords(page, lines);
  let stored = 0;
  let unused = 0;
  let unusedAtEnd = 0;
  for (let i = 0; i < lines; i++) {
    const word = words[i]!;
    const isUnused = (((word >>> 15) & 3) - 1) >>> 31;
    unused += isUnused;
    unusedAtEnd = (unusedAtEnd + 1) & -isUnused;
    const kept = word & (isUnused - 1);
    words[i] = kept;
    itemIndex[stored] = i;
    itemWord[stored] = kept;
    stored += (0 - (kept >>> 17)) >>> 31;
  }
  let total = 0;
  let last = special;
  let presorted = true;
  for (let i = 0; i < stored; i++) {
    const word = itemWord[i]!;
    const offset = word & 0x7fff;
    const size = ((word >>> 17) + 7) & ~7;
    if (offset < upper || offset >= special || offset + size > special) throw corruptedItem(page, itemIndex[i]! + 1);
    if (offset >= last) presorted = false;
    else last = offset;
    total += size;
  }
  if (total > special - lower)
    throw new RedoError(`corrupted item lengths: total ${total}, available space ${special - lower}`);
  compactify(page, words, stored, presorted);
  putBackLines(page, words, lines);
  if (unusedAtEnd > 0) setU16(page, pdLowerAt, lower - itemIdSize * unusedAtEnd);
  setFreeLinesHint(page, unused > unusedAtEnd);
}

// Work arrays of the items being compacted: line pointers, and where they go. Redo is synchronous, so one set is enough.
const itemIndex = new Uint16Array(itemsMax);
const itemWord = new Uint32Array(itemsMax);
const scratch = Buffer.alloc(pageSize);
// Line pointers of a page that does not lie at a multiple of four: a copy, which putBackLines writes back.
const alignedLines = new Uint32Array(itemsMax);
const alignedBytes = Buffer.from(alignedLines.buffer);

/** The first `lines` line pointers as words: lp_off 15 bits, lp_flags 2, lp_len 15. */
function lineWords(page: Buffer, lines: number): Uint32Array {
  if ((page.byteOffset & 3) === 0) return new Uint32Array(page.buffer, page.byteOffset + pageHeaderSize, lines);
  page.copy(alignedBytes, 0, pageHeaderSize, pageHeaderSize + lines * itemIdSize);
  return alignedLines;
}

function putBackLines(page: Buffer, words: Uint32Array, lines: number): void {
  if (words === alignedLines) alignedBytes.copy(page, pageHeaderSize, 0, lines * itemIdSize);
}

/**
 * compactify_tuples: moves the `count` items of itemWord to the end of the page, in list order from the special space
 * downward, sets their line pointers (itemIndex counts from 0) and pd_upper. `presorted` = offsets descend, so that items can
 * be moved in place. Adjacent items move in one copy. The callers have checked that all items lie in [pd_upper, pd_special)
 * and fit.
 */
function compactify(page: Buffer, words: Uint32Array, count: number, presorted: boolean): void {
  const special = pageGetSpecial(page);
  let source = page;
  if (!presorted) {
    const oldUpper = pageGetUpper(page);
    copyBytes(scratch, oldUpper, page, oldUpper, special - oldUpper);
    source = scratch;
  }
  let upper = special;
  // Items from head to tail lie side by side and have not been moved yet; they go to upper.
  let tail = upper;
  let head = upper;
  for (let i = 0; i < count; i++) {
    const word = itemWord[i]!;
    const offset = word & 0x7fff;
    const size = ((word >>> 17) + 7) & ~7;
    const end = offset + size;
    if (head !== end) {
      if (presorted) moveBytes(page, upper, head, tail - head);
      else copyBytes(page, upper, source, head, tail - head);
      tail = end;
    }
    upper -= size;
    head = offset;
    words[itemIndex[i]!] = (word & 0xffff8000) | upper;
  }
  if (presorted) moveBytes(page, upper, head, tail - head);
  else copyBytes(page, upper, source, head, tail - head);
  setU16(page, pdUpperAt, upper);
}

/** PageTruncateLinePointerArray: drops unused line pointers at the end, but never the first one. */
export function pageTruncateLinePointerArray(page: Buffer): void {
  const lines = maxOffset(page);
  let kept = lines;
  while (kept > 1 && itemFlags(page, kept) === lpUnused) kept--;
  let unusedLeft = false;
  for (let n = kept; n >= 1 && !unusedLeft; n--) unusedLeft = itemFlags(page, n) === lpUnused;
  if (kept !== lines) setU16(page, pdLowerAt, pageGetLower(page) - itemIdSize * (lines - kept));
  setFreeLinesHint(page, unusedLeft);
}

function checkPointersAligned(page: Buffer): void {
  const upper = pageGetUpper(page);
  const lower = pageGetLower(page);
  const special = pageGetSpecial(page);
  if (lower < pageHeaderSize || lower > upper || upper > special || special > pageSize || (special & 7) !== 0)
    throw corruptedPointers(page);
}

/** What the PageIndexTuple… functions demand of the item they change. Returns its offset. */
function checkIndexItem(page: Buffer, off: number, lines: number): number {
  if (off < 1 || off > lines) throw new RedoError(`invalid index item number ${off}: page has ${lines}`);
  const offset = itemOffset(page, off);
  if (
    offset < pageGetUpper(page) ||
    offset + maxAlign(itemLength(page, off)) > pageGetSpecial(page) ||
    (offset & 7) !== 0
  )
    throw corruptedItem(page, off);
  return offset;
}

function setFreeLinesHint(page: Buffer, free: boolean): void {
  page[pdFlagsAt] = free ? page[pdFlagsAt]! | pdHasFreeLines : page[pdFlagsAt]! & ~pdHasFreeLines;
}

function setU16(page: Buffer, at: number, value: number): void {
  page[at] = value;
  page[at + 1] = value >>> 8;
}

function corruptedPointers(page: Buffer): RedoError {
  return new RedoError(
    `corrupted page pointers: lower = ${pageGetLower(page)}, upper = ${pageGetUpper(page)}, special = ${pageGetSpecial(page)}`,
  );
}

function corruptedItem(page: Buffer, n: number): RedoError {
  return new RedoError(
    `corrupted line pointer ${n}: offset = ${itemOffset(page, n)}, length = ${itemLength(page, n)}, upper = ${pageGetUpper(page)}`,
  );
}
