/**
 * Compressed posting lists of GIN (access/ginblock.h GinPostingList; access/gin/ginpostinglist.c).
 *
 * A segment: first heap tid (6 bytes: block u16 high, u16 low, offset u16), nbytes u16, then nbytes of differences to the tid
 * before, 7 bits a byte, the low bits first, 0x80 = more follow; padded to 2 bytes. A tid counts as one number of 43 bits:
 * block * 2048 + offset. A number holds it exactly; no BigInt.
 */
import {RedoError} from './redo.ts';

/** Bytes before the differences. */
export const segmentHeaderSize = 8;
/** MaxHeapTuplesPerPageBits = 11: offsets of heap tuples are below this. */
const offsetLimit = 2048;
const valueLimit = 2 ** 43;

/** SizeOfGinPostingList, checked: the segment at `at` must end before `end`. Throws RedoError. */
export function segmentSize(bytes: Buffer, at: number, end: number): number {
  if (at + segmentHeaderSize > end) throw new RedoError(`posting list at ${at} is cut off at ${end}`);
  const n = bytes[at + 6]! | (bytes[at + 7]! << 8);
  const size = segmentHeaderSize + ((n + 1) & ~1);
  if (at + size > end) throw new RedoError(`posting list of ${size} bytes at ${at} runs beyond ${end}`);
  return size;
}

/** A heap tid as a number. Throws RedoError for an offset that no heap page has. */
export function readTid(bytes: Buffer, at: number): number {
  const offset = bytes[at + 4]! | (bytes[at + 5]! << 8);
  if (offset >= offsetLimit) throw new RedoError(`heap tid with offset ${offset} in a posting list`);
  const block = ((bytes[at]! << 16) | (bytes[at + 1]! << 24) | bytes[at + 2]! | (bytes[at + 3]! << 8)) >>> 0;
  return block * offsetLimit + offset;
}

/**
 * ginPostingListDecode: the tids of the segment at `at` into `into` from index 0; returns how many. `into` must have room
 * for as many as the segment has bytes. The caller has checked the size with segmentSize. Throws RedoError.
 */
export function decodeSegment(bytes: Buffer, at: number, into: Float64Array): number {
  let value = readTid(bytes, at);
  into[0] = value;
  let count = 1;
  let p = at + segmentHeaderSize;
  const end = p + (bytes[at + 6]! | (bytes[at + 7]! << 8));
  while (p < end) {
    let byte = bytes[p++]!;
    let difference = byte & 0x7f;
    // up to 4 bytes fit in a 32-bit integer, the rest is rare
    for (let shift = 7; byte >= 0x80; shift += 7) {
      if (p >= end || shift > 42) throw new RedoError('posting list ends inside a number, or a number is too long');
      byte = bytes[p++]!;
      if (shift < 28) difference |= (byte & 0x7f) << shift;
      else difference += (byte & 0x7f) * 2 ** shift;
    }
    value += difference;
    if (value >= valueLimit) throw new RedoError('posting list goes beyond the last heap block');
    into[count++] = value;
  }
  return count;
}

/**
 * ginCompressPostingList: writes `count` ascending tids as one segment at the start of `target` and returns its size
 * (padding included, zero). Throws RedoError when they do not ascend or do not fit.
 */
export function encodeSegment(tids: Float64Array, count: number, target: Buffer): number {
  let previous = tids[0]!;
  const block = Math.floor(previous / offsetLimit);
  const offset = previous % offsetLimit;
  target[0] = block >>> 16;
  target[1] = block >>> 24;
  target[2] = block;
  target[3] = block >>> 8;
  target[4] = offset;
  target[5] = offset >>> 8;
  // 7 bytes for a number, 1 of padding
  const last = target.length - 8;
  let p = segmentHeaderSize;
  for (let i = 1; i < count; i++) {
    const value = tids[i]!;
    let difference = value - previous;
    if (difference <= 0) throw new RedoError('heap tids of a posting list are not in order');
    if (p > last) throw new RedoError(`posting list of ${count} tids does not fit on a page`);
    while (difference >= 0x10000000) {
      target[p++] = 0x80 | (difference % 128);
      difference = Math.floor(difference / 128);
    }
    while (difference > 0x7f) {
      target[p++] = 0x80 | (difference & 0x7f);
      difference >>>= 7;
    }
    target[p++] = difference;
    previous = value;
  }
  const n = p - segmentHeaderSize;
  target[6] = n;
  target[7] = n >>> 8;
  if ((n & 1) !== 0) target[p++] = 0;
  return p;
}

/** ginMergeItemPointers: both lists in order, equal tids once. Returns the number in `into`. */
export function mergeTids(
  a: Float64Array,
  aCount: number,
  b: Float64Array,
  bCount: number,
  into: Float64Array,
): number {
  let i = 0;
  let j = 0;
  let n = 0;
  while (i < aCount && j < bCount) {
    const x = a[i]!;
    const y = b[j]!;
    into[n++] = x < y ? x : y;
    if (x <= y) i++;
    if (y <= x) j++;
  }
  while (i < aCount) into[n++] = a[i++]!;
  while (j < bCount) into[n++] = b[j++]!;
  return n;
}
