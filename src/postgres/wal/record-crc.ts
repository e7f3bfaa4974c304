/**
 * The checksum of a WAL record: CRC-32C over everything after the header, then over the header without xl_crc
 * (ValidXLogRecord in access/transam/xlogreader.c). Most records are so short that the price of a native call and of the
 * view it needs is higher than that of eight table look-ups per eight bytes; measured break-even: about 110 bytes.
 *
 * Records that follow each other are summed up by one native call, and what the sum must be follows from their headers, because a
 * CRC is linear. Below, a state is an inverted sum; update(bytes, s) is the state behind n bytes, shift(s, n) behind n zeros, and
 * update(bytes, s) = shift(s, n) ^ update(bytes, 0). xl_crc is ~update(header, update(payload, -1)): with the header it gives
 * update(payload, -1), and with that the state behind the payload for any state before it, without a look at the payload.
 */
import {crc32c} from '#runtime/crc.ts';

const recordHeaderSize = 24;
const headerBytesSummed = 20;
const nativeBytesMin = 112;

/** The checksum that the record in bytes [start, end) must carry at start + 20. */
export function recordCrc(bytes: Buffer, start: number, end: number): number {
  const payload = start + recordHeaderSize;
  const sum = end - payload >= nativeBytesMin ? ~crc32c(bytes.subarray(payload, end)) : update(bytes, payload, end, -1);
  return ~update(bytes, start, start + headerBytesSummed, sum) >>> 0;
}

/** Shorter records are summed up one by one. */
export const runRecordBytesMin = recordHeaderSize + nativeBytesMin;

/**
 * The end of the last of the records from `start` on that lie whole before `limit`, when all their checksums are right; else
 * `start`: only `recordCrc` of each can tell which is wrong.
 */
export function endOfCheckedRun(bytes: Buffer, start: number, limit: number): number {
  let state = -1;
  let end = start;
  for (let at = start; limit - at >= recordHeaderSize;) {
    const total = int32(bytes, at) >>> 0;
    if (total < recordHeaderSize || total > limit - at) break;
    if (at > end) state = update(bytes, end, at, state); // padding
    const stored = int32(bytes, at + headerBytesSummed);
    const header = update(bytes, at, at + headerBytesSummed, 0);
    const afterPayload = apply(shiftBackByHeader, ~stored ^ header);
    const afterHeader = apply(shiftBy4, apply(shiftByHeader, state) ^ header ^ stored);
    state = shift(~afterHeader, total - recordHeaderSize) ^ afterPayload;
    end = at + total;
    at = end + (-total & 7);
  }
  return end > start && ~crc32c(bytes.subarray(start, end)) === state ? end : start;
}

function int32(bytes: Buffer, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
}

/** Slicing by 8; `state` is the inverted sum. */
function update(bytes: Buffer, start: number, end: number, state: number): number {
  let sum = state;
  let at = start;
  for (; at + 8 <= end; at += 8) {
    sum ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    sum =
      table7[sum & 0xff]! ^
      table6[(sum >>> 8) & 0xff]! ^
      table5[(sum >>> 16) & 0xff]! ^
      table4[sum >>> 24]! ^
      table3[bytes[at + 4]!]! ^
      table2[bytes[at + 5]!]! ^
      table1[bytes[at + 6]!]! ^
      table0[bytes[at + 7]!]!;
  }
  for (; at < end; at++) sum = (sum >>> 8) ^ table0[(sum ^ bytes[at]!) & 0xff]!;
  return sum;
}

/** Entry i: the sum of byte i followed by no further byte; the next tables add one zero byte each. */
const table0 = new Int32Array(256);
for (let i = 0; i < 256; i++) {
  let sum = i;
  for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ ((sum & 1) * 0x82f63b78);
  table0[i] = sum;
}
const table1 = withZeroByte(table0);
const table2 = withZeroByte(table1);
const table3 = withZeroByte(table2);
const table4 = withZeroByte(table3);
const table5 = withZeroByte(table4);
const table6 = withZeroByte(table5);
const table7 = withZeroByte(table6);

function withZeroByte(table: Int32Array): Int32Array {
  return table.map((sum) => (sum >>> 8) ^ table0[sum & 0xff]!);
}

/** A linear function of a state: what it makes of each of the four bytes, lowest first, 4 × 256. */
type Linear = Int32Array;

function apply(f: Linear, state: number): number {
  return (
    f[state & 0xff]! ^ f[256 + ((state >>> 8) & 0xff)]! ^ f[512 + ((state >>> 16) & 0xff)]! ^ f[768 + (state >>> 24)]!
  );
}

function linear(f: (state: number) => number): Linear {
  const tables = new Int32Array(1024);
  for (let byte = 0; byte < 4; byte++) for (let i = 0; i < 256; i++) tables[byte * 256 + i] = f(i << (8 * byte));
  return tables;
}

/** By 2^i zero bytes: enough for what lies in one page. */
const shiftsByPowers: Linear[] = [linear((state) => (state >>> 8) ^ table0[state & 0xff]!)];
while (shiftsByPowers.length < 14) {
  const half = shiftsByPowers.at(-1)!;
  shiftsByPowers.push(linear((state) => apply(half, apply(half, state))));
}

function shift(state: number, count: number): number {
  let shifted = state;
  for (let i = 0, left = count; left > 0; i++, left >>>= 1)
    if ((left & 1) !== 0) shifted = apply(shiftsByPowers[i]!, shifted);
  return shifted;
}

/** Back by one zero byte: no two entries of table0 have the same top byte, so it tells which one was used. */
function shiftBack(state: number): number {
  const index = table0.findIndex((entry) => entry >>> 24 === state >>> 24);
  return ((state ^ table0[index]!) << 8) | index;
}

const shiftBy4 = shiftsByPowers[2]!;
const shiftByHeader = linear((state) => shift(state, headerBytesSummed));
const shiftBackByHeader = linear((state) => {
  let before = state;
  for (let i = 0; i < headerBytesSummed; i++) before = shiftBack(before);
  return before;
});
