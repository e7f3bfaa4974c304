/**
 * Data checksums of pages (storage/checksum_impl.h of PostgreSQL 9.3 … 18): 32 interleaved FNV-like sums over the page's 32-bit
 * words, folded by XOR, mixed with the block number, reduced to 1 … 65535. The sum stands in pd_checksum, which counts as zero.
 */
import {blockSize} from '#postgres/relation.ts';

const lanes = 32;
const prime = 16777619;
const checksumOffset = 8;
/** pd_upper: zero in a page that was never initialised. Such a page has no checksum. */
const upperOffset = 14;

/** Where each of the sums begins. */
// prettier-ignore
const initial = Uint32Array.of(
  0x5b1f36e9, 0xb8525960, 0x02ab50aa, 0x1de66d2a, 0x79ff467a, 0x9bb9f8a3, 0x217e7cd2, 0x83e13d2c,
  0xf8d4474f, 0xe39eb970, 0x42c6ae16, 0x993216fa, 0x7b093b5d, 0x98daff3c, 0xf718902a, 0x0b1c9cdb,
  0xe58f764b, 0x187636bc, 0x5d7b3bb1, 0xe73de7de, 0x92bec979, 0xcca6c0b2, 0x304a0979, 0x85aa43d4,
  0x783125bb, 0x6ca8eaa2, 0xe407eac6, 0x4b5cfc3e, 0x9fbf8c76, 0x15ca20be, 0xf2ca9fd3, 0x959bd756,
);

/** The checksum that the page should have as block `block` of its fork (counted over all segments). */
export function pageChecksum(page: Buffer, block: number): number {
  const sums = Uint32Array.from(initial);
  for (let at = 0; at < blockSize; at += lanes * 4)
    for (let lane = 0; lane < lanes; lane++) {
      const word = page.readUInt32LE(at + lane * 4);
      const mixed = sums[lane]! ^ (at === 0 && lane === checksumOffset / 4 ? word & 0xffff0000 : word);
      sums[lane] = Math.imul(mixed, prime) ^ (mixed >>> 17);
    }
  let folded = block;
  for (let sum of sums) {
    for (let round = 0; round < 2; round++) sum = (Math.imul(sum, prime) ^ (sum >>> 17)) >>> 0;
    folded ^= sum;
  }
  return ((folded >>> 0) % 65535) + 1;
}

/** True also of a page that was never initialised. */
export function hasRightChecksum(page: Buffer, block: number): boolean {
  return page.readUInt16LE(upperOffset) === 0 || page.readUInt16LE(checksumOffset) === pageChecksum(page, block);
}
