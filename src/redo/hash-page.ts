/**
 * Pages of a hash index: opaque data, metapage, bitmap pages, and how they are initialised.
 * Source: access/hash.h; _hash_initbuf, _hash_init_metabuffer (access/hash/hashpage.c), _hash_initbitmapbuffer (hashovfl.c),
 * _hash_spareindex and _hash_get_totalbuckets (hashutil.c).
 */
import {pageHeaderSize, pageInit, pageSetLower, pageSize, specialOffset} from './bufpage.ts';
import {RedoError} from './redo.ts';

/** sizeof(HashPageOpaqueData): prevblkno u32, nextblkno u32, bucket u32, flag u16, page id u16. */
export const hashOpaqueSize = 16;
const opaqueAt = pageSize - hashOpaqueSize;
export const prevBlockAt = opaqueAt;
export const nextBlockAt = opaqueAt + 4;
export const bucketAt = opaqueAt + 8;
export const flagAt = opaqueAt + 12;
const pageIdAt = opaqueAt + 14;
const hashPageId = 0xff80;

/** hasho_flag. */
export const lhUnusedPage = 0;
export const lhOverflowPage = 0x01;
export const lhBitmapPage = 0x04;
export const lhMetaPage = 0x08;
export const lhBucketNeedsSplitCleanup = 0x40;
export const lhPageHasDeadTuples = 0x80;

export const invalidBlockNumber = 0xffffffff;

/** Where the fields of HashMetaPageData lie on the metapage. */
export const meta = {
  magic: 24,
  version: 28,
  /** A double. */
  ntuples: 32,
  ffactor: 40,
  bsize: 42,
  bmsize: 44,
  bmshift: 46,
  maxbucket: 48,
  highmask: 52,
  lowmask: 56,
  ovflpoint: 60,
  firstfree: 64,
  nmaps: 68,
  procid: 72,
  spares: 76,
  mapp: 468,
  end: 4568,
} as const;
const hashMagic = 0x6440640;
const hashVersion = 4;
/** HASH_MAX_SPLITPOINTS: length of hashm_spares. */
export const splitPointsMax = 98;
/** HASH_MAX_BITMAPS: length of hashm_mapp. */
export const bitmapsMax = 1024;

/** HashGetMaxBitmapSize: what lies between page header and opaque data. */
const bitmapBytesMax = pageSize - pageHeaderSize - hashOpaqueSize;
/** The largest power of two that fits: hashm_bmsize of every index with 8 KiB pages. */
const bitmapBytes = 4096;
const bitmapBytesLog2 = 12;
const bucketsInitialMax = 0x40000000;
/** HASH_SPLITPOINT_GROUPS_WITH_ONE_PHASE; later groups of split points have 4 phases. */
const onePhaseGroups = 10;

/** Checks that the page is one of a hash index (special space and page id). Throws RedoError. */
export function checkHashPage(page: Buffer): void {
  specialOffset(page, hashOpaqueSize);
  if ((page[pageIdAt]! | (page[pageIdAt + 1]! << 8)) !== hashPageId)
    throw new RedoError(
      `not a page of a hash index: page id ${page.readUInt16LE(pageIdAt).toString(16)}, ff80 expected`,
    );
}

/** Checks that the page is a hash index's metapage. Throws RedoError. */
export function checkHashMetaPage(page: Buffer): void {
  checkHashPage(page);
  const magic = page.readUInt32LE(meta.magic);
  if (magic !== hashMagic) throw new RedoError(`not the metapage of a hash index: magic ${magic.toString(16)}`);
}

/** _hash_initbuf and every other initialisation of a hash page. */
export function initHashPage(page: Buffer, prevBlock: number, bucket: number, flag: number): void {
  pageInit(page, hashOpaqueSize);
  page.writeUInt32LE(prevBlock, prevBlockAt);
  page.writeUInt32LE(invalidBlockNumber, nextBlockAt);
  page.writeUInt32LE(bucket, bucketAt);
  page.writeUInt16LE(flag, flagAt);
  page.writeUInt16LE(hashPageId, pageIdAt);
}

/** _hash_initbitmapbuffer: every overflow page starts as "in use". */
export function initHashBitmapPage(page: Buffer, bytes: number): void {
  if (bytes > bitmapBytesMax) throw new RedoError(`bitmap of ${bytes} bytes does not fit into a page of a hash index`);
  initHashPage(page, invalidBlockNumber, invalidBlockNumber, lhBitmapPage);
  page.fill(0xff, pageHeaderSize, pageHeaderSize + bytes);
  pageSetLower(page, pageHeaderSize + bytes);
}

/** Sets or clears the bit of one overflow page in a bitmap page (SETBIT, CLRBIT). */
export function setHashBitmapBit(page: Buffer, bit: number, value: boolean): void {
  if (bit >= bitmapBytes * 8) throw new RedoError(`bit ${bit} is beyond a bitmap page of a hash index`);
  // an array of u32, little-endian: bit n is bit n mod 8 of byte n div 8
  const at = pageHeaderSize + (bit >>> 3);
  const mask = 1 << (bit & 7);
  page[at] = value ? page[at]! | mask : page[at]! & ~mask;
}

/** _hash_init_metabuffer. `tuples` is the estimate from which the number of first buckets follows. */
export function initHashMetaPage(page: Buffer, tuples: number, procedure: number, fillFactor: number): void {
  if (fillFactor === 0 || Number.isNaN(tuples))
    throw new RedoError(`hash metapage for ${tuples} tuples with fill factor ${fillFactor}`);
  const wanted = tuples / fillFactor;
  let buckets: number;
  if (wanted <= 2) buckets = 2;
  else if (wanted >= bucketsInitialMax) buckets = bucketsInitialMax;
  else buckets = totalBuckets(spareIndex(Math.trunc(wanted)));
  const split = spareIndex(buckets);

  initHashPage(page, invalidBlockNumber, invalidBlockNumber, lhMetaPage);
  page.writeUInt32LE(hashMagic, meta.magic);
  page.writeUInt32LE(hashVersion, meta.version);
  page.writeUInt16LE(fillFactor, meta.ffactor);
  page.writeUInt16LE(bitmapBytesMax, meta.bsize);
  page.writeUInt16LE(bitmapBytes, meta.bmsize);
  page.writeUInt16LE(bitmapBytesLog2 + 3, meta.bmshift);
  page.writeUInt32LE(procedure, meta.procid);
  page.writeUInt32LE(buckets - 1, meta.maxbucket);
  const highMask = 2 ** ceilLog2(buckets + 1) - 1;
  page.writeUInt32LE(highMask, meta.highmask);
  page.writeUInt32LE(highMask >>> 1, meta.lowmask);
  page.writeUInt32LE(1, meta.spares + split * 4);
  page.writeUInt32LE(split, meta.ovflpoint);
  pageSetLower(page, meta.end);
}

/** Smallest n with 2^n >= value, for 1 <= value <= 2^31. */
function ceilLog2(value: number): number {
  return value <= 1 ? 0 : 32 - Math.clz32(value - 1);
}

/** _hash_spareindex: the phase of split point that bucket number `bucket` - 1 belongs to. */
function spareIndex(bucket: number): number {
  const group = ceilLog2(bucket);
  if (group < onePhaseGroups) return group;
  return onePhaseGroups + (group - onePhaseGroups) * 4 + (((bucket - 1) >>> (group - 3)) & 3);
}

/** _hash_get_totalbuckets: buckets allocated up to and including this phase. */
function totalBuckets(phase: number): number {
  if (phase < onePhaseGroups) return 2 ** phase;
  const half = 2 ** (onePhaseGroups + ((phase - onePhaseGroups) >>> 2) - 1);
  return half + (half / 4) * (((phase - onePhaseGroups) & 3) + 1);
}
