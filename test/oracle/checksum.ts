/**
 * Data page checksums (storage/checksum_impl.h): 32 FNV-1a sums side by side over the words of the page with pd_checksum
 * zero, folded together, with the block number mixed in. A page that was never initialised has none.
 */
import {pageIsNew, pageSize} from '#redo/bufpage.ts';

const checksumOffset = 8;
const sumsCount = 32;
const prime = 16777619;
/** What each sum starts from: constants of the format. */
const starts = Int32Array.of(
  0x5b1f36e9, 0xb8525960, 0x02ab50aa, 0x1de66d2a, 0x79ff467a, 0x9bb9f8a3, 0x217e7cd2, 0x83e13d2c, 0xf8d4474f, 0xe39eb970,
  0x42c6ae16, 0x993216fa, 0x7b093b5d, 0x98daff3c, 0xf718902a, 0x0b1c9cdb, 0xe58f764b, 0x187636bc, 0x5d7b3bb1, 0xe73de7de,
  0x92bec979, 0xcca6c0b2, 0x304a0979, 0x85aa43d4, 0x783125bb, 0x6ca8eaa2, 0xe407eac6, 0x4b5cfc3e, 0x9fbf8c76, 0x15ca20be,
  0xf2ca9fd3, 0x959bd756,
); // prettier-ignore

const copy = Buffer.alloc(pageSize);
const words = new Int32Array(copy.buffer, copy.byteOffset, pageSize / 4);
const sums = new Int32Array(sumsCount);

/** The page as PostgreSQL writes it to block `block` of a fork. The buffer is reused by the next call. */
export function withChecksum(page: Buffer, block: number): Buffer {
  page.copy(copy);
  if (!pageIsNew(copy)) copy.writeUInt16LE(pageChecksum(block), checksumOffset);
  return copy;
}

/** Of the page in `copy`. */
function pageChecksum(block: number): number {
  copy.writeUInt16LE(0, checksumOffset);
  sums.set(starts);
  for (let i = 0; i < words.length; i++) mix(i % sumsCount, words[i]!);
  for (let round = 0; round < 2; round++) for (let i = 0; i < sumsCount; i++) mix(i, 0);
  const folded = sums.reduce((all, sum) => all ^ sum, 0) ^ block;
  return ((folded >>> 0) % 65535) + 1;
}

function mix(i: number, word: number): void {
  const mixed = sums[i]! ^ word;
  sums[i] = Math.imul(mixed, prime) ^ (mixed >>> 17);
}
