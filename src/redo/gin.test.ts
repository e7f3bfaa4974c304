/**
 * What the oracle (npm run oracle:redo) cannot reach, or would only show by chance: numbers of every length in posting lists,
 * leaves of the format before 9.4, rare actions, hostile records. That ordinary redo equals PostgreSQL's is the oracle's to prove.
 */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {maxOffset, pageAddItem, pageGetLower, pageSetLower} from './bufpage.ts';
import {bytesOf, testRecord, type TestBlock} from './gin-hash-testing.ts';
import {
  ginCompressed,
  ginData,
  ginDataAt,
  ginFlags,
  ginIncompleteSplit,
  ginLeaf,
  ginMaxoff,
  initGinPage,
  invalidBlockNumber,
  readBlockId,
  rightLinkAt,
  setGinMaxoff,
} from './gin-page.ts';
import {decodeSegment, encodeSegment, mergeTids, segmentSize} from './gin-posting-list.ts';
import {redoGin} from './gin.ts';
import {RedoError} from './redo.ts';

const environment = {walLogHints: false};
const gin = 13;

function redo(
  page: Buffer,
  info: number,
  main: Buffer,
  id: number,
  blocks: readonly TestBlock[],
  restored = false,
): boolean {
  const record = testRecord(gin, info, main, blocks);
  return redoGin(page, record, record.block(id)!, restored, environment);
}

/** The segment of these tids, as block * 2048 + offset. */
function segment(...tids: number[]): Buffer {
  const out = Buffer.alloc(8192);
  return out.subarray(0, encodeSegment(Float64Array.from(tids), tids.length, out));
}

function leaf(...segments: Buffer[]): Buffer {
  const page = Buffer.alloc(8192);
  initGinPage(page, ginData | ginLeaf | ginCompressed);
  const lists = Buffer.concat(segments);
  lists.copy(page, ginDataAt);
  pageSetLower(page, ginDataAt + lists.length);
  return page;
}

/** The tids of each segment of a leaf. */
function tidsOf(page: Buffer): number[][] {
  const all: number[][] = [];
  for (let at = ginDataAt; at < pageGetLower(page); at += segmentSize(page, at, pageGetLower(page))) {
    const tids = new Float64Array(8192);
    all.push([...tids.subarray(0, decodeSegment(page, at, tids))]);
  }
  return all;
}

/** VACUUM_DATA_LEAF_PAGE with these actions. */
function change(page: Buffer, count: number, ...actions: Buffer[]): boolean {
  return redo(page, 0x90, Buffer.alloc(0), 0, [{id: 0, data: Buffer.concat([bytesOf(`u16:${count}`), ...actions])}]);
}

test('posting lists hold differences of 1 to 7 bytes', () => {
  const tids = [1];
  for (let bits = 0; bits < 42; bits++) tids.push(tids.at(-1)! + 2 ** bits);
  tids.push(2 ** 43 - 1);
  const bytes = segment(...tids);
  assert.equal(segmentSize(bytes, 0, bytes.length), bytes.length);
  const into = new Float64Array(8192);
  assert.deepEqual([...into.subarray(0, decodeSegment(bytes, 0, into))], tids);
  // from ginCompressPostingList: tids (0,1) (0,2) (1,1) (4194304,1)
  assert.equal(
    segment(1, 2, 2049, 2 ** 33 + 1).toString('hex'),
    Buffer.concat([bytesOf('x:000000000100 u16:8 x:01 x:ff0f x:80f0ffff1f')]).toString('hex'),
  );
});

test('posting lists that are cut off, too long, out of order or beyond the last block are refused', () => {
  const into = new Float64Array(8192);
  assert.throws(() => segmentSize(bytesOf('x:0000000001000100'), 0, 8), RedoError);
  assert.throws(() => segmentSize(Buffer.alloc(7), 0, 7), RedoError);
  assert.throws(() => decodeSegment(bytesOf('x:000000000100 u16:1 x:8000'), 0, into), RedoError);
  assert.throws(() => decodeSegment(bytesOf('x:000000000100 u16:8 x:8080808080808001'), 0, into), RedoError);
  assert.throws(() => decodeSegment(bytesOf('x:ffffffff0100 u16:2 x:ff7f'), 0, into), RedoError);
  assert.throws(() => decodeSegment(bytesOf('x:000000000008 u16:0'), 0, into), RedoError);
  assert.throws(() => segment(5, 5), RedoError);
  assert.throws(
    () =>
      encodeSegment(
        Float64Array.from({length: 8300}, (_, i) => i),
        8300,
        Buffer.alloc(8192),
      ),
    RedoError,
  );
  const merged = new Float64Array(8);
  assert.equal(mergeTids(Float64Array.of(1, 3, 5), 3, Float64Array.of(2, 3, 9), 3, merged), 5);
  assert.deepEqual([...merged.subarray(0, 5)], [1, 2, 3, 5, 9]);
});

test('a leaf change deletes, inserts, replaces and adds to segments', () => {
  const page = leaf(segment(1, 2), segment(10, 20), segment(30), segment(40, 50));
  assert.equal(
    change(
      page,
      5,
      bytesOf('u8:1 u8:4 u16:2 x:000000000f00 x:000000001900'), // tids 15 and 25
      bytesOf('u8:2 u8:1'),
      bytesOf('u8:3 u8:2'),
      segment(35),
      bytesOf('u8:3 u8:3'),
      segment(45, 55),
      bytesOf('u8:4 u8:2'),
      segment(60, 61, 62),
    ),
    true,
  );
  assert.deepEqual(tidsOf(page), [[1, 2], [10, 15, 20, 25], [35], [45, 55], [60, 61, 62]]);
});

test('a leaf change past the segments, backwards, cut off or too big is refused', () => {
  const page = (): Buffer => leaf(segment(1, 2), segment(10));
  assert.throws(() => change(page(), 1, bytesOf('u8:3 u8:1')), RedoError);
  assert.throws(() => change(page(), 1, bytesOf('u8:2 u8:1')), RedoError);
  assert.throws(() => change(page(), 2, bytesOf('u8:1 u8:1 u8:0 u8:1')), RedoError);
  assert.throws(() => change(page(), 2, bytesOf('u8:1 u8:1')), RedoError);
  assert.throws(() => change(page(), 1, bytesOf('u8:0 u8:9')), RedoError);
  assert.throws(() => change(page(), 1, bytesOf('u8:0 u8:4 u16:3 x:000000000f00')), RedoError);
  const big = segment(...Array.from({length: 4000}, (_, i) => 100 + i));
  const insert = Buffer.concat([bytesOf('u8:2 u8:2'), big]);
  assert.throws(() => change(page(), 3, insert, insert, insert), RedoError);
  const broken = page();
  pageSetLower(broken, 9000);
  assert.throws(() => change(broken, 1, bytesOf('u8:0 u8:1')), RedoError);
  assert.throws(() => change(Buffer.alloc(8192), 1, bytesOf('u8:0 u8:1')), RedoError);
});

test('a leaf of the format before 9.4 is compressed first', () => {
  const page = Buffer.alloc(8192);
  initGinPage(page, ginData | ginLeaf);
  bytesOf('x:000000000100 x:000000000200 x:000100000500').copy(page, ginDataAt);
  setGinMaxoff(page, 3);
  change(page, 1, bytesOf('u8:1 u8:2'), segment(2 ** 30));
  assert.deepEqual(tidsOf(page), [[1, 2, 256 * 65536 * 2048 + 5], [2 ** 30]]);
  assert.deepEqual([ginFlags(page) & ginCompressed, ginMaxoff(page)], [ginCompressed, 0]);
});

test('INSERT into an inner page of a posting tree moves the link of the split child', () => {
  const page = Buffer.alloc(8192);
  initGinPage(page, ginData);
  const item = (child: number, offset: number): Buffer => bytesOf(`u16:0 u16:${child} u16:0 u16:0 u16:${offset}`);
  Buffer.concat([item(2, 9), item(3, 0)]).copy(page, ginDataAt);
  setGinMaxoff(page, 2);
  pageSetLower(page, ginDataAt + 20);
  const main = bytesOf('u16:1 u16:0 u16:2 u16:0 u16:7');
  const blocks = [{id: 0, data: Buffer.concat([bytesOf('u16:1'), item(2, 4)])}, {id: 1}];
  assert.equal(redo(page, 0x20, main, 0, blocks), true);
  const children = [0, 1, 2].map((i) => readBlockId(page, ginDataAt + i * 10));
  assert.deepEqual([children, ginMaxoff(page), pageGetLower(page)], [[2, 7, 3], 3, ginDataAt + 30]);
  for (const offset of [0, 5]) {
    const hostile = [{id: 0, data: Buffer.concat([bytesOf(`u16:${offset}`), item(2, 4)])}];
    assert.throws(() => redo(page, 0x20, main, 0, hostile), RedoError);
  }
  setGinMaxoff(page, 815);
  assert.throws(() => redo(page, 0x20, main, 0, blocks), RedoError, 'full');
  assert.throws(() => redo(leaf(), 0x20, main, 0, blocks), RedoError, 'a leaf');
});

test('INSERT and SPLIT clear the incomplete split of the child, but not on a restored page', () => {
  const child = leaf();
  child[8190]! |= ginIncompleteSplit;
  const insert = bytesOf('u16:1 u16:0 u16:2 u16:0 u16:7');
  assert.equal(redo(child, 0x20, insert, 1, [{id: 1}], true), false);
  assert.equal(redo(child, 0x20, insert, 1, [{id: 1}]), true);
  assert.equal(ginFlags(child) & ginIncompleteSplit, 0);
  child[8190]! |= ginIncompleteSplit;
  const split = (flags: number): Buffer => Buffer.concat([Buffer.alloc(24), bytesOf(`u16:${flags} u16:0`)]);
  assert.equal(redo(child, 0x30, split(1), 3, [{id: 3}]), true);
  assert.equal(ginFlags(child) & ginIncompleteSplit, 0);
  assert.equal(redo(child, 0x30, split(3), 0, [{id: 0}], true), false);
  assert.throws(() => redo(child, 0x30, split(3), 0, [{id: 0}]), RedoError);
  assert.throws(() => redo(child, 0x30, split(3), 3, [{id: 3}]), RedoError);
  assert.throws(() => redo(child, 0x40, Buffer.alloc(0), 0, [{id: 0}]), RedoError);
});

test('INSERT into an inner page of the entry tree sets the downlink; a leaf entry can replace another', () => {
  const entry = (block: number, size = 16): Buffer =>
    bytesOf(`u16:0 u16:${block} u16:0 u16:${size} u32:${block} u32:0`);
  const page = Buffer.alloc(8192);
  initGinPage(page, 0);
  pageAddItem(page, entry(2), 1);
  const main = bytesOf('u16:0 u16:0 u16:2 u16:0 u16:7');
  const data = Buffer.concat([bytesOf('u16:1 u16:0'), entry(2)]);
  assert.equal(redo(page, 0x20, main, 0, [{id: 0, data}]), true);
  assert.equal(maxOffset(page), 2);
  const leafPage = Buffer.alloc(8192);
  initGinPage(leafPage, ginLeaf);
  pageAddItem(leafPage, entry(5), 1);
  assert.equal(
    redo(leafPage, 0x20, bytesOf('u16:2'), 0, [{id: 0, data: Buffer.concat([bytesOf('u16:1 u16:1'), entry(6)])}]),
    true,
  );
  assert.equal(maxOffset(leafPage), 1);
  const bad = [
    [bytesOf('u16:3 u16:0'), entry(6)],
    [bytesOf('u16:1 u16:0'), entry(6, 4)],
    [bytesOf('u16:1 u16:0'), entry(6, 17)],
    [bytesOf('u16:9 u16:1'), entry(6)],
  ];
  for (const parts of bad)
    assert.throws(() => redo(leafPage, 0x20, bytesOf('u16:2'), 0, [{id: 0, data: Buffer.concat(parts)}]), RedoError);
  assert.throws(() => redo(page, 0x20, bytesOf('u16:2'), 0, [{id: 0, data}]), RedoError, 'not a leaf');
});

test('pending list: metapage, tail, new pages, deleted pages', () => {
  const metadata = Buffer.alloc(56, 7);
  const update = (prevTail: number, tuples: number): Buffer =>
    Buffer.concat([Buffer.alloc(16), metadata, bytesOf(`u32:${prevTail} u32:33 u32:${tuples} u32:0`)]);
  const page = Buffer.alloc(8192, 0x55);
  assert.equal(redo(page, 0x60, update(invalidBlockNumber, 0), 0, [{id: 0, willInit: true}]), true);
  assert.ok(page.subarray(24, 80).equals(metadata) && pageGetLower(page) === 80);

  const tuple = bytesOf('u32:0 u16:1 u16:13 x:0102030405');
  const list = Buffer.alloc(8192);
  const listBlock = {id: 0, willInit: true, data: Buffer.concat([tuple, tuple])};
  redo(list, 0x70, bytesOf(`u32:${invalidBlockNumber} u32:2`), 0, [listBlock]);
  assert.deepEqual([maxOffset(list), ginMaxoff(list), ginFlags(list)], [2, 1, 0x30]);
  assert.equal(redo(list, 0x60, update(invalidBlockNumber, 1), 1, [{id: 1, data: tuple}]), true);
  assert.deepEqual([maxOffset(list), ginMaxoff(list)], [3, 2]);
  redo(list, 0x60, update(4, 0), 1, [{id: 1}]);
  assert.equal(list.readUInt32LE(rightLinkAt), 33);
  assert.throws(() => redo(list, 0x60, update(4, 2), 1, [{id: 1, data: tuple}]), RedoError);
  assert.throws(() => redo(list, 0x60, update(4, 0x7fffffff), 1, [{id: 1, data: tuple}]), RedoError);

  const remove = Buffer.concat([metadata, bytesOf('u32:1 u32:0')]);
  assert.equal(redo(list, 0x80, remove, 1, [{id: 1, willInit: true}]), true);
  assert.equal(ginFlags(list), 4);
  assert.throws(() => redo(list, 0x80, remove, 2, [{id: 2, willInit: true}]), RedoError);
  assert.throws(() => redo(list, 0x80, remove, 1, [{id: 1}]), RedoError);
});

test('DELETE_PAGE marks the page, unlinks it and takes its posting item', () => {
  const main = bytesOf('u16:2 u16:0 u32:44 u32:1234');
  const deleted = leaf();
  assert.equal(redo(deleted, 0x50, main, 0, [{id: 0}]), true);
  assert.deepEqual([ginFlags(deleted) & 4, deleted.readUInt32LE(20)], [4, 1234]);
  const left = leaf();
  redo(left, 0x50, main, 2, [{id: 2}]);
  assert.equal(left.readUInt32LE(rightLinkAt), 44);
  const parent = Buffer.alloc(8192);
  initGinPage(parent, ginData);
  for (let i = 0; i < 3; i++) parent[ginDataAt + i * 10 + 2] = i + 1;
  setGinMaxoff(parent, 3);
  redo(parent, 0x50, main, 1, [{id: 1}]);
  assert.deepEqual([parent[ginDataAt + 2], parent[ginDataAt + 12], ginMaxoff(parent)], [1, 3, 2]);
  setGinMaxoff(parent, 1);
  assert.throws(() => redo(parent, 0x50, main, 1, [{id: 1}]), RedoError);
});

test('CREATE_PTREE bounds its posting lists', () => {
  const page = Buffer.alloc(8192);
  const lists = segment(1, 2, 3);
  const blocks = [{id: 0, willInit: true}];
  redo(page, 0x10, Buffer.concat([bytesOf(`u32:${lists.length}`), lists]), 0, blocks);
  assert.deepEqual(tidsOf(page), [[1, 2, 3]]);
  assert.throws(() => redo(page, 0x10, Buffer.concat([bytesOf('u32:4294967295'), lists]), 0, blocks), RedoError);
  assert.throws(() => redo(page, 0x10, Buffer.concat([bytesOf('u32:100'), lists]), 0, blocks), RedoError);
});
