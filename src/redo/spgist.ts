/**
 * Redo of SP-GiST (resource manager 16). Formats: access/spgxlog.h; behaviour: access/spgist/spgxlog.c. What the records
 * do to tuples is in spgist-page.ts. All data is in the main data: a fixed head, item numbers, then unaligned tuples.
 */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {checkItem, checkOffset, maxOffset, pageIndexMultiDelete} from './bufpage.ts';
import {mainData, u16, u32} from './bytes.ts';
import {RedoError, type RedoFunction} from './redo.ts';
import {
  addOrReplaceTuple,
  changeCounts,
  initSpGistPage,
  invalidBlock,
  pageFlagLeaf,
  pageFlagNulls,
  replaceTuple,
  replaceWithDead,
  setNextOffset,
  statePlaceholder,
  stateDead,
  stateRedirect,
  swapItems,
  tupleState,
  updateNodeLink,
} from './spgist-page.ts';

/** Sizes of the fixed heads (sizeof or SizeOfSpgxlog… in access/spgxlog.h). */
const addLeafSize = 10;
const moveLeafsSize = 20;
const addNodeSize = 20;
const splitTupleSize = 6;
const pickSplitSize = 28;
const vacuumLeafSize = 16;
const vacuumRootSize = 12;
const vacuumRedirectSize = 8;

/** Sizes of the smallest leaf tuple (SpGistLeafTupleData) and inner tuple (SpGistInnerTupleData). */
const leafHeaderSize = 12;
const innerHeaderSize = 8;

/** Redo of one block of an SP-GiST record. The functions below answer as RedoFunction says. */
export const redoSpGist: RedoFunction = (page, record, block, restored) => {
  if (restored) return false;
  switch (record.info & 0xf0) {
    case 0x10:
      return redoAddLeaf(page, record, block);
    case 0x20:
      return redoMoveLeafs(page, record, block);
    case 0x30:
      return redoAddNode(page, record, block);
    case 0x40:
      return redoSplitTuple(page, record, block);
    case 0x50:
      return redoPickSplit(page, record, block);
    case 0x60:
      return redoVacuumLeaf(page, record, block);
    case 0x70:
      return redoVacuumRoot(page, record, block);
    case 0x80:
      return redoVacuumRedirect(page, record, block);
    default:
      throw new RedoError(`unknown SP-GiST record type ${record.info & 0xf0}`);
  }
};

/**
 * spgxlogAddLeaf {newPage u8, storesNulls u8, offnumLeaf u16, offnumHeadLeaf u16, offnumParent u16, nodeI u16}, then the
 * leaf tuple. Block 0 gets the tuple, block 1 is the parent whose node points to it.
 */
function redoAddLeaf(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const bytes = record.bytes;
  const main = mainData(record, addLeafSize);
  const leaf = u16(bytes, main + 2);
  if (block.id === 1) {
    updateNodeLink(page, u16(bytes, main + 6), u16(bytes, main + 8), blockNumberOf(record, 0), leaf);
    return true;
  }
  if (block.id !== 0) throw noBlock('ADD_LEAF', block);
  const head = u16(bytes, main + 4);
  const tupleAt = main + addLeafSize;
  const size = leafTupleSize(bytes, tupleAt, mainDataEnd(record));
  if (bytes[main] !== 0) initSpGistPage(page, pageFlagLeaf | (bytes[main + 1] !== 0 ? pageFlagNulls : 0));
  if (leaf === head) {
    // the chain's head is a dead tuple, which the new one replaces
    replaceTuple(page, bytes, tupleAt, size, leaf);
  } else {
    addOrReplaceTuple(page, bytes, tupleAt, size, leaf);
    if (head !== 0) setNextOffset(page, head, leaf);
  }
  return true;
}

/**
 * spgxlogMoveLeafs {nMoves u16, newPage u8, replaceDead u8, storesNulls u8, offnumParent u16 @6, nodeI u16, stateSrc @12},
 * then item numbers deleted, item numbers inserted (nMoves + 1, or 1 when a dead tuple is replaced), the leaf tuples.
 * Block 0 is the source, 1 the destination, 2 the parent.
 */
function redoMoveLeafs(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const bytes = record.bytes;
  const main = mainData(record, moveLeafsSize);
  const moves = u16(bytes, main);
  const inserts = bytes[main + 3] !== 0 ? 1 : moves + 1;
  const deleteAt = main + moveLeafsSize;
  const insertAt = deleteAt + moves * 2;
  let tupleAt = insertAt + inserts * 2;
  const end = mainDataEnd(record);
  if (tupleAt > end) throw cutOff('MOVE_LEAFS', record);
  const target = blockNumberOf(record, 1);
  const last = u16(bytes, tupleAt - 2);
  if (block.id === 0) {
    const build = bytes[main + 16] !== 0;
    replaceWithDead(
      page,
      bytes,
      deleteAt,
      moves,
      build ? statePlaceholder : stateRedirect,
      statePlaceholder,
      target,
      last,
      u32(bytes, main + 12),
    );
  } else if (block.id === 1) {
    if (bytes[main + 2] !== 0) initSpGistPage(page, pageFlagLeaf | (bytes[main + 4] !== 0 ? pageFlagNulls : 0));
    for (let i = 0; i < inserts; i++) {
      const size = leafTupleSize(bytes, tupleAt, end);
      addOrReplaceTuple(page, bytes, tupleAt, size, u16(bytes, insertAt + i * 2));
      tupleAt += size;
    }
  } else if (block.id === 2) {
    updateNodeLink(page, u16(bytes, main + 6), u16(bytes, main + 8), target, last);
  } else {
    throw noBlock('MOVE_LEAFS', block);
  }
  return true;
}

/**
 * spgxlogAddNode {offnum u16, offnumNew u16, newPage u8, parentBlk i8, offnumParent u16, nodeI u16, stateSrc @12}, then the
 * inner tuple with its new node. Block 0 is the old place, 1 the new place if another page, 2 the parent if a third one.
 */
function redoAddNode(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const bytes = record.bytes;
  const main = mainData(record, addNodeSize);
  const offset = u16(bytes, main);
  const tupleAt = main + addNodeSize;
  const size = innerTupleSize(bytes, tupleAt, mainDataEnd(record));
  if (record.block(1) === undefined) {
    if (block.id !== 0) throw noBlock('ADD_NODE', block);
    replaceTuple(page, bytes, tupleAt, size, offset);
    return true;
  }
  const target = blockNumberOf(record, 1);
  const newOffset = u16(bytes, main + 2);
  const parentBlock = bytes[main + 5]!;
  if (block.id === 0) {
    const build = bytes[main + 16] !== 0;
    // one item, so it may be taken as "the first" of a list whose item number is in the record's first two bytes
    replaceWithDead(
      page,
      bytes,
      main,
      1,
      build ? statePlaceholder : stateRedirect,
      statePlaceholder,
      target,
      newOffset,
      u32(bytes, main + 12),
    );
  } else if (block.id === 1) {
    if (bytes[main + 4] !== 0) initSpGistPage(page, 0);
    addOrReplaceTuple(page, bytes, tupleAt, size, newOffset);
  } else if (block.id !== 2 || parentBlock !== 2) {
    throw noBlock('ADD_NODE', block);
  }
  if (parentBlock === block.id) updateNodeLink(page, u16(bytes, main + 6), u16(bytes, main + 8), target, newOffset);
  return true;
}

/**
 * spgxlogSplitTuple {offnumPrefix u16, offnumPostfix u16, newPage u8, postfixBlkSame u8}, then the inner tuple for the
 * prefix (takes the old one's place in block 0) and the one for the postfix (block 1, or block 0 too).
 */
function redoSplitTuple(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const bytes = record.bytes;
  const main = mainData(record, splitTupleSize);
  const end = mainDataEnd(record);
  const prefixAt = main + splitTupleSize;
  const prefixSize = innerTupleSize(bytes, prefixAt, end);
  const postfixAt = prefixAt + prefixSize;
  const postfixSize = innerTupleSize(bytes, postfixAt, end);
  const same = bytes[main + 5] !== 0;
  const postfixOffset = u16(bytes, main + 2);
  if (block.id === 0) {
    replaceTuple(page, bytes, prefixAt, prefixSize, u16(bytes, main));
    if (same) addOrReplaceTuple(page, bytes, postfixAt, postfixSize, postfixOffset);
  } else if (block.id === 1 && !same) {
    if (bytes[main + 4] !== 0) initSpGistPage(page, 0);
    addOrReplaceTuple(page, bytes, postfixAt, postfixSize, postfixOffset);
  } else {
    throw noBlock('SPLIT_TUPLE', block);
  }
  return true;
}

/**
 * spgxlogPickSplit {isRootSplit u8, nDelete u16 @2, nInsert u16, initSrc u8, initDest u8, offnumInner u16, initInner u8,
 * storesNulls u8, innerIsParent u8, offnumParent u16 @14, nodeI u16, stateSrc @20}, then nDelete item numbers, nInsert item
 * numbers, nInsert bytes (0 = tuple goes to the source page, else to the destination), the inner tuple, nInsert leaf
 * tuples. Block 0 is the source (absent when the root splits), 1 the destination, 2 the inner tuple's page, 3 the parent.
 */
function redoPickSplit(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  const bytes = record.bytes;
  const main = mainData(record, pickSplitSize);
  const deletes = u16(bytes, main + 2);
  const inserts = u16(bytes, main + 4);
  const deleteAt = main + pickSplitSize;
  const insertAt = deleteAt + deletes * 2;
  const selectAt = insertAt + inserts * 2;
  const innerAt = selectAt + inserts;
  const end = mainDataEnd(record);
  const innerSize = innerTupleSize(bytes, innerAt, end);
  const innerBlock = blockNumberOf(record, 2);
  const innerOffset = u16(bytes, main + 8);
  const nullsFlag = bytes[main + 11] !== 0 ? pageFlagNulls : 0;
  if (block.id === 2) {
    if (bytes[main + 10] !== 0) initSpGistPage(page, nullsFlag);
    addOrReplaceTuple(page, bytes, innerAt, innerSize, innerOffset);
    if (bytes[main + 12] !== 0)
      updateNodeLink(page, u16(bytes, main + 14), u16(bytes, main + 16), innerBlock, innerOffset);
    return true;
  }
  if (block.id === 3) {
    updateNodeLink(page, u16(bytes, main + 14), u16(bytes, main + 16), innerBlock, innerOffset);
    return true;
  }
  const source = block.id === 0;
  if (block.id > 1 || (source && bytes[main] !== 0)) throw noBlock('PICKSPLIT', block);
  if (bytes[main + (source ? 6 : 7)] !== 0) {
    initSpGistPage(page, pageFlagLeaf | nullsFlag);
  } else if (source) {
    const build = bytes[main + 24] !== 0;
    const first = build ? statePlaceholder : stateRedirect;
    replaceWithDead(
      page,
      bytes,
      deleteAt,
      deletes,
      first,
      statePlaceholder,
      innerBlock,
      innerOffset,
      u32(bytes, main + 20),
    );
  }
  let tupleAt = innerAt + innerSize;
  for (let i = 0; i < inserts; i++) {
    const size = leafTupleSize(bytes, tupleAt, end);
    if ((bytes[selectAt + i] === 0) === source)
      addOrReplaceTuple(page, bytes, tupleAt, size, u16(bytes, insertAt + i * 2));
    tupleAt += size;
  }
  return true;
}

/**
 * spgxlogVacuumLeaf {nDead u16, nPlaceholder u16, nMove u16, nChain u16, stateSrc @8}, then item numbers: to become dead, to
 * become placeholders, to move from, to move to, whose next-link changes, and the new links.
 */
function redoVacuumLeaf(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  if (block.id !== 0) throw noBlock('VACUUM_LEAF', block);
  const bytes = record.bytes;
  const main = mainData(record, vacuumLeafSize);
  const dead = u16(bytes, main);
  const placeholders = u16(bytes, main + 2);
  const moves = u16(bytes, main + 4);
  const chains = u16(bytes, main + 6);
  const deadAt = main + vacuumLeafSize;
  const placeholderAt = deadAt + dead * 2;
  const moveFromAt = placeholderAt + placeholders * 2;
  const moveToAt = moveFromAt + moves * 2;
  const chainAt = moveToAt + moves * 2;
  const linkAt = chainAt + chains * 2;
  if (linkAt + chains * 2 > mainDataEnd(record)) throw cutOff('VACUUM_LEAF', record);
  replaceWithDead(page, bytes, deadAt, dead, stateDead, stateDead, invalidBlock, 0, 0);
  replaceWithDead(page, bytes, placeholderAt, placeholders, statePlaceholder, statePlaceholder, invalidBlock, 0, 0);
  for (let i = 0; i < moves; i++) swapItems(page, u16(bytes, moveFromAt + i * 2), u16(bytes, moveToAt + i * 2));
  replaceWithDead(page, bytes, moveFromAt, moves, statePlaceholder, statePlaceholder, invalidBlock, 0, 0);
  for (let i = 0; i < chains; i++) setNextOffset(page, u16(bytes, chainAt + i * 2), u16(bytes, linkAt + i * 2));
  return true;
}

/** spgxlogVacuumRoot {nDelete u16, stateSrc @4}, then the item numbers to delete from a root that is a leaf, ascending. */
function redoVacuumRoot(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  if (block.id !== 0) throw noBlock('VACUUM_ROOT', block);
  const main = mainData(record, vacuumRootSize);
  const count = u16(record.bytes, main);
  if (vacuumRootSize + count * 2 > record.mainDataLength) throw cutOff('VACUUM_ROOT', record);
  const offsets: number[] = [];
  for (let i = 0; i < count; i++) offsets.push(u16(record.bytes, main + vacuumRootSize + i * 2));
  pageIndexMultiDelete(page, offsets);
  return true;
}

/**
 * spgxlogVacuumRedirect {nToPlaceholder u16, firstPlaceholder u16, newestRedirectXid u32}, then the item numbers of
 * redirects that become placeholders. The items from firstPlaceholder on (0: none) are placeholders and go.
 */
function redoVacuumRedirect(page: Buffer, record: WalRecord, block: BlockRef): boolean {
  if (block.id !== 0) throw noBlock('VACUUM_REDIRECT', block);
  const bytes = record.bytes;
  const main = mainData(record, vacuumRedirectSize);
  const count = u16(bytes, main);
  const first = u16(bytes, main + 2);
  if (vacuumRedirectSize + count * 2 > record.mainDataLength) throw cutOff('VACUUM_REDIRECT', record);
  for (let i = 0; i < count; i++) {
    const n = u16(bytes, main + vacuumRedirectSize + i * 2);
    const at = checkItem(page, n, leafHeaderSize);
    if (tupleState(page, at) !== stateRedirect) throw new RedoError(`SP-GiST item ${n} is not a redirect`);
    page[at] = (page[at]! & ~3) | statePlaceholder;
    page.fill(0xff, at + 6, at + 10); // an invalid TID
    page.fill(0, at + 10, at + 12);
  }
  changeCounts(page, -count, count);
  if (first !== 0) {
    checkOffset(page, first);
    const offsets: number[] = [];
    for (let n = first; n <= maxOffset(page); n++) offsets.push(n);
    changeCounts(page, 0, -offsets.length);
    pageIndexMultiDelete(page, offsets);
  }
  return true;
}

/** Size of the leaf tuple at `at`: the upper 30 bits of its first u32. Checked to end at `end` or before. */
function leafTupleSize(bytes: Buffer, at: number, end: number): number {
  if (end - at < leafHeaderSize) throw new RedoError(`SP-GiST leaf tuple has only ${end - at} bytes`);
  const size = u32(bytes, at) >>> 2;
  if (size < leafHeaderSize || size > end - at)
    throw new RedoError(`SP-GiST leaf tuple of ${size} bytes where ${end - at} are left`);
  return size;
}

/** Size of the inner tuple at `at`: its u16 at 4. Checked to end at `end` or before. */
function innerTupleSize(bytes: Buffer, at: number, end: number): number {
  if (end - at < innerHeaderSize) throw new RedoError(`SP-GiST inner tuple has only ${end - at} bytes`);
  const size = u16(bytes, at + 4);
  if (size < innerHeaderSize || size > end - at)
    throw new RedoError(`SP-GiST inner tuple of ${size} bytes where ${end - at} are left`);
  return size;
}

function mainDataEnd(record: WalRecord): number {
  return record.mainDataOffset + record.mainDataLength;
}

function blockNumberOf(record: WalRecord, id: number): number {
  const block = record.block(id);
  if (block === undefined) throw new RedoError(`SP-GiST record lacks block ${id}`);
  return block.blockNumber;
}

function cutOff(type: string, record: WalRecord): RedoError {
  return new RedoError(`SP-GiST ${type} is cut off: ${record.mainDataLength} bytes of main data`);
}

function noBlock(type: string, block: BlockRef): RedoError {
  return new RedoError(`SP-GiST ${type} has no block ${block.id}`);
}
