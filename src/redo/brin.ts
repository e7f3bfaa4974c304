/**
 * Redo of BRIN (resource manager 17). Formats: access/brin_xlog.h, access/brin_page.h; behaviour: access/brin/brin_xlog.c.
 * A BRIN index is a metapage, revmap pages (an array of TIDs, one per range of heap blocks) and regular pages (summaries).
 */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {
  pageAddItemFrom,
  pageIndexTupleDeleteNoCompact,
  pageIndexTupleOverwrite,
  pageInit,
  pageSetLower,
  specialOffset,
} from './bufpage.ts';
import {mainData, setU16, setU32, u16, u32} from './bytes.ts';
import {RedoError, type RedoFunction} from './redo.ts';

/** info bits: the high one says that an INSERT or UPDATE puts the first tuple on a new regular page. */
const opMask = 0x70;
const initPage = 0x80;

/** BrinSpecialSpace: the last u16 is the page's type, the one before it flags. */
const specialSize = 8;
const pageTypeMeta = 0xf091;
const pageTypeRevmap = 0xf092;
const pageTypeRegular = 0xf093;

/** BrinMetaPageData at 24: magic, version, pages per range, last revmap page; u32 each. */
const metaAt = 24;
const metaSize = 16;
const metaMagic = 0xa8109cfa;

/** Revmap pages: TIDs of 6 bytes from 24 to the special space (REVMAP_PAGE_MAXITEMS). */
const revmapAt = 24;
const revmapItems = Math.floor((8192 - 24 - specialSize) / 6);
const invalidBlock = 0xffffffff;

const overwriteUnused = {overwrite: true} as const;

/** Redo of one block of a BRIN record. The functions below answer as RedoFunction says. */
export const redoBrin: RedoFunction = (page, record, block, restored) => {
  if (restored) return false;
  switch (record.info & opMask) {
    case 0x00:
      return redoCreateIndex(page, record, block);
    case 0x10:
      return redoInsertUpdate(page, record, block, mainData(record, 10));
    case 0x20: {
      // xl_brin_update {oldOffnum u16, xl_brin_insert @4}; block 2 is the page that loses the old tuple
      const main = mainData(record, 14);
      if (block.id !== 2) return redoInsertUpdate(page, record, block, main + 4);
      pageIndexTupleDeleteNoCompact(page, u16(record.bytes, main));
      return true;
    }
    case 0x30: {
      // xl_brin_samepage_update {offnum u16}; the tuple is block 0's data
      if (block.id !== 0) throw noBlock('SAMEPAGE_UPDATE', block);
      pageIndexTupleOverwrite(page, u16(record.bytes, mainData(record, 2)), record.blockData(block));
      return true;
    }
    case 0x40:
      return redoRevmapExtend(page, record, block);
    case 0x50:
      return redoDesummarize(page, record, block);
    default:
      throw new RedoError(`unknown BRIN record type ${record.info & opMask}`);
  }
};

/** xl_brin_createidx {pagesPerRange u32, version u16}: makes the metapage. */
function redoCreateIndex(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  if (block.id !== 0) throw noBlock('CREATE_INDEX', block);
  const main = mainData(record, 6);
  brinPageInit(page, pageTypeMeta);
  setU32(page, metaAt, metaMagic);
  setU32(page, metaAt + 4, u16(record.bytes, main + 4));
  setU32(page, metaAt + 8, u32(record.bytes, main));
  pageSetLower(page, metaAt + metaSize);
  return true;
}

/** xl_brin_insert {heapBlk u32, pagesPerRange u32, offnum u16} at `main`: block 0 gets the tuple, the revmap (1) its TID. */
function redoInsertUpdate(page: Buffer, record: WalRecord, block: BlockRef, main: number): boolean {
  const bytes = record.bytes;
  const offset = u16(bytes, main + 8);
  if (block.id === 0) {
    if (offset === 0) throw new RedoError('BRIN tuple has item number 0');
    if ((record.info & initPage) !== 0) brinPageInit(page, pageTypeRegular);
    pageAddItemFrom(page, bytes, block.dataOffset, block.dataLength, offset, overwriteUnused);
    return true;
  }
  if (block.id !== 1) throw noBlock('INSERT', block);
  const regular = record.block(0);
  if (regular === undefined) throw new RedoError('BRIN INSERT lacks block 0');
  setRevmapEntry(page, u32(bytes, main + 4), u32(bytes, main), regular.blockNumber, offset);
  return true;
}

/** xl_brin_revmap_extend {targetBlk u32}: the metapage (0) learns of the new revmap page (1), which is initialised. */
function redoRevmapExtend(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  if (block.id === 1) {
    brinPageInit(page, pageTypeRevmap);
    return true;
  }
  if (block.id !== 0) throw noBlock('REVMAP_EXTEND', block);
  setU32(page, metaAt + 12, u32(record.bytes, mainData(record, 4)));
  pageSetLower(page, metaAt + metaSize); // indexes from before version 11 may lack it
  return true;
}

/** xl_brin_desummarize {pagesPerRange u32, heapBlk u32, regOffset u16}: the revmap (0) forgets the range, its tuple (1) goes. */
function redoDesummarize(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const main = mainData(record, 10);
  const bytes = record.bytes;
  if (block.id === 0) setRevmapEntry(page, u32(bytes, main), u32(bytes, main + 4), invalidBlock, 0);
  else if (block.id === 1) pageIndexTupleDeleteNoCompact(page, u16(bytes, main + 8));
  else throw noBlock('DESUMMARIZE', block);
  return true;
}

/** brinSetHeapBlockItemptr. A TID with item number 0 is invalid. */
function setRevmapEntry(
  page: Buffer,
  pagesPerRange: number,
  heapBlock: number,
  blockNumber: number,
  offset: number,
): void {
  if (pagesPerRange === 0) throw new RedoError('BRIN record with 0 pages per range');
  const at = revmapAt + (Math.floor(heapBlock / pagesPerRange) % revmapItems) * 6;
  const target = offset === 0 ? invalidBlock : blockNumber;
  page[at] = target >>> 16;
  page[at + 1] = target >>> 24;
  page[at + 2] = target;
  page[at + 3] = target >>> 8;
  page[at + 4] = offset;
  page[at + 5] = offset >>> 8;
}

function brinPageInit(page: Buffer, type: number): void {
  pageInit(page, specialSize);
  setU16(page, specialOffset(page, specialSize) + 6, type);
}

function noBlock(type: string, block: BlockRef): RedoError {
  return new RedoError(`BRIN ${type} has no block ${block.id}`);
}
