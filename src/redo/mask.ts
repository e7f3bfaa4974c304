/**
 * What may differ between a page rebuilt by redo and the page that the writer had: hint bits, unused space and the like.
 * The rm_mask functions of PostgreSQL 15's resource managers, for comparisons with wal_consistency_checking's images
 * (access/transam/xlogrecovery.c verifyBackupPageConsistency, access/common/bufmask.c). Used by the oracle only.
 */
import {rmgr} from '#postgres/wal/rmgr.ts';
import {
  hasStorage,
  itemFlags,
  itemLength,
  itemOffset,
  lpNormal,
  lpUnused,
  maxAlign,
  maxOffset,
  pageGetFlags,
  pageGetLower,
  pageGetSpecial,
  pageGetUpper,
  pageHeaderSize,
  pageSetFlags,
  pageSetLower,
  pageSetPruneXid,
  pageSetUpper,
  pageSize,
  pdAllVisible,
  pdHasFreeLines,
  pdPageFull,
  setItemFlags,
} from './bufpage.ts';
import {setU16, setU32, u16} from './bytes.ts';
import {setCtid} from './heap-tuple.ts';
import {RedoError} from './redo.ts';

/**
 * Masks `page` in place as the record's resource manager does. A resource manager without a mask function leaves the page as
 * it is. Throws RedoError when the page header is corrupt.
 */
export function maskPage(rmid: number, page: Buffer, blockNumber: number): void {
  masks[rmid]?.(page, blockNumber);
}

type Mask = (page: Buffer, blockNumber: number) => void;
const masks: (Mask | undefined)[] = [];
masks[rmgr.heap] = maskHeap;
masks[rmgr.heap2] = maskHeap;
masks[rmgr.btree] = maskBtree;
masks[rmgr.hash] = maskHash;
masks[rmgr.gin] = maskGin;
masks[rmgr.gist] = maskGist;
masks[rmgr.spGist] = maskSpGist;
masks[rmgr.brin] = maskBrin;
masks[rmgr.sequence] = maskPlain;
masks[rmgr.generic] = maskPlain;

function maskHeap(page: Buffer, blockNumber: number): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const last = maxOffset(page);
  for (let n = 1; n <= last; n++) {
    const at = itemOffset(page, n);
    if (itemFlags(page, n) === lpNormal) {
      const infomask = u16(page, at + 20);
      // frozen: xmin committed and xmin invalid
      setU16(page, at + 20, (infomask & 0x0300) === 0x0300 ? infomask & ~0x0c00 : infomask & ~0xfff0);
      setU32(page, at + 8, 0);
      if (u16(page, at + 16) === 0xfffe) setCtid(page, at, blockNumber, n);
    }
    if (hasStorage(page, n)) {
      const length = itemLength(page, n);
      page.fill(0, Math.min(pageSize, at + length), Math.min(pageSize, at + maxAlign(length)));
    }
  }
}

function maskBtree(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const flagsAt = pageGetSpecial(page) + 12;
  const flags = u16(page, flagsAt);
  if ((flags & 0x01) !== 0) maskLinePointerFlags(page);
  setU16(page, flagsAt, flags & ~0x60); // BTP_SPLIT_END, BTP_HAS_GARBAGE
  setU16(page, flagsAt + 2, 0); // cycle id
}

function maskHash(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const flagsAt = pageGetSpecial(page) + 12;
  const type = u16(page, flagsAt) & 0x0f;
  if (type === 0) maskContent(page);
  else if (type === 1 || type === 2) maskLinePointerFlags(page);
  setU16(page, flagsAt, u16(page, flagsAt) & ~0x80); // LH_PAGE_HAS_DEAD_TUPLES
}

function maskGin(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  if ((u16(page, pageGetSpecial(page) + 6) & 0x04) !== 0) maskContent(page);
  else if (pageGetLower(page) > pageHeaderSize) maskUnusedSpace(page);
}

function maskGist(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const special = pageGetSpecial(page);
  page.fill(0, special, special + 8); // NSN
  const flags = u16(page, special + 12);
  setU16(page, special + 12, (flags | 0x08) & ~0x10); // F_FOLLOW_RIGHT, F_HAS_GARBAGE
  if ((flags & 0x01) !== 0) maskLinePointerFlags(page);
}

function maskSpGist(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  if (pageGetLower(page) >= pageHeaderSize) maskUnusedSpace(page);
}

function maskBrin(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  const special = pageGetSpecial(page);
  const type = u16(page, special + 6);
  const meta = type === 0xf091;
  const regular = type === 0xf093;
  if (regular || (meta && pageGetLower(page) > pageHeaderSize)) maskUnusedSpace(page);
  setU16(page, special + 4, u16(page, special + 4) & ~0x01); // BRIN_EVACUATE_PAGE
}

function maskPlain(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskUnusedSpace(page);
}

export function maskLsnAndChecksum(page: Buffer): void {
  page.fill(0, 0, 10);
}

function maskHintBits(page: Buffer): void {
  pageSetPruneXid(page, 0);
  pageSetFlags(page, pageGetFlags(page) & ~(pdPageFull | pdHasFreeLines | pdAllVisible));
}

function maskUnusedSpace(page: Buffer): void {
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  const special = pageGetSpecial(page);
  if (lower > upper || special < upper || lower < pageHeaderSize || special > pageSize)
    throw new RedoError(`corrupted page pointers: lower = ${lower}, upper = ${upper}, special = ${special}`);
  page.fill(0, lower, upper);
}

function maskLinePointerFlags(page: Buffer): void {
  const last = maxOffset(page);
  for (let n = 1; n <= last; n++) if (itemFlags(page, n) !== lpUnused) setItemFlags(page, n, lpUnused);
}

function maskContent(page: Buffer): void {
  page.fill(0, pageHeaderSize);
  pageSetLower(page, 0);
  pageSetUpper(page, 0);
}
