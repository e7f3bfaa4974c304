/**
 * What the oracle (npm run oracle:redo) cannot reach, or would only show by chance: rare blocks, edits of restored images,
 * sizes of big metapages, hostile records. That ordinary redo equals PostgreSQL's is the oracle's to prove.
 */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {itemLength, maxOffset, pageAddItem, pageGetLower} from './bufpage.ts';
import {bytesOf, testRecord, type TestBlock} from './gin-hash-testing.ts';
import {
  initHashBitmapPage,
  initHashMetaPage,
  initHashPage,
  meta,
  nextBlockAt,
  prevBlockAt,
  flagAt,
} from './hash-page.ts';
import {redoHash} from './hash.ts';
import {RedoError} from './redo.ts';

const environment = {walLogHints: false};
const hash = 12;

function redo(
  page: Buffer,
  info: number,
  main: Buffer,
  id: number,
  blocks: readonly TestBlock[],
  restored = false,
): boolean {
  const record = testRecord(hash, info, main, blocks);
  return redoHash(page, record, record.block(id)!, restored, environment);
}

/** A bucket page with `items` tuples of 16 bytes whose last byte is their number. */
function bucketPage(items = 0): Buffer {
  const page = Buffer.alloc(8192);
  initHashPage(page, 1, 0, 2);
  for (let n = 1; n <= items; n++) pageAddItem(page, tuple(n), n);
  return page;
}

function tuple(mark: number): Buffer {
  return bytesOf(`u32:0 u16:1 u16:16 u32:${mark} u32:0`);
}

function metaPage(): Buffer {
  const page = Buffer.alloc(8192);
  initHashMetaPage(page, 0, 400, 307);
  return page;
}

test('INIT_META_PAGE sizes the index as _hash_init_metabuffer does', () => {
  // from the C functions: tuples, fill factor -> maxbucket, split point, highmask
  const cases = [
    [0, 307, 1, 1, 3],
    [100000, 307, 511, 9, 1023],
    [1e6, 307, 3583, 20, 4095],
    [1e9, 10, 100663295, 79, 134217727],
  ] as const;
  for (const [tuples, fillFactor, maxBucket, split, highMask] of cases) {
    const main = Buffer.alloc(14);
    main.writeDoubleLE(tuples, 0);
    main.writeUInt32LE(400, 8);
    main.writeUInt16LE(fillFactor, 12);
    const page = Buffer.alloc(8192, 0x55);
    assert.equal(redo(page, 0x00, main, 0, [{id: 0, willInit: true}]), true);
    assert.deepEqual(
      [page.readUInt32LE(meta.maxbucket), page.readUInt32LE(meta.ovflpoint), page.readUInt32LE(meta.highmask)],
      [maxBucket, split, highMask],
    );
    assert.equal(page.readUInt32LE(meta.spares + split * 4), 1);
    assert.equal(page.readDoubleLE(meta.ntuples), 0);
    assert.equal(pageGetLower(page), 4568);
  }
  assert.throws(() => redo(Buffer.alloc(8192), 0x00, Buffer.alloc(14), 0, [{id: 0, willInit: true}]), RedoError);
});

test('INSERT adds the tuple and counts it on the metapage', () => {
  const page = bucketPage(2);
  const blocks = [{id: 0, data: tuple(9)}, {id: 1}];
  assert.equal(redo(page, 0x20, bytesOf('u16:2'), 0, blocks), true);
  assert.equal(maxOffset(page), 3);
  const metapage = metaPage();
  assert.equal(redo(metapage, 0x20, bytesOf('u16:2'), 1, blocks), true);
  assert.equal(metapage.readDoubleLE(meta.ntuples), 1);
  assert.throws(() => redo(page, 0x20, bytesOf('u16:5'), 0, blocks), RedoError);
  assert.throws(() => redo(Buffer.alloc(8192), 0x20, bytesOf('u16:1'), 0, blocks), RedoError);
  assert.throws(() => redo(page, 0x20, bytesOf('u16:1'), 1, blocks), RedoError, 'a bucket page is not the metapage');
});

test('SPLIT_ALLOCATE_PAGE and SPLIT_COMPLETE edit a page that was restored from its image', () => {
  const page = bucketPage(1);
  const allocate = bytesOf('u32:7 u16:34 u16:18 u8:3');
  const blocks = [{id: 0}, {id: 1, willInit: true}, {id: 2, data: bytesOf('u32:7 u32:15 u32:4 u32:9')}];
  assert.equal(redo(page, 0x40, allocate, 0, blocks, true), true);
  assert.deepEqual([page.readUInt16LE(flagAt), page.readUInt32LE(prevBlockAt)], [34, 7]);
  const metapage = metaPage();
  assert.equal(redo(metapage, 0x40, allocate, 2, blocks), true);
  assert.deepEqual(
    [meta.maxbucket, meta.lowmask, meta.highmask, meta.ovflpoint, meta.spares + 16].map((at) =>
      metapage.readUInt32LE(at),
    ),
    [7, 7, 15, 4, 9],
  );
  assert.equal(redo(metaPage(), 0x40, allocate, 2, blocks, true), false);
  assert.equal(redo(page, 0x60, bytesOf('u16:66 u16:2'), 1, [{id: 0}, {id: 1}], true), true);
  assert.equal(page.readUInt16LE(flagAt), 2);
  const hostile = [{id: 2, data: bytesOf('u32:7 u32:15 u32:98 u32:9')}];
  assert.throws(() => redo(metaPage(), 0x40, allocate, 2, hostile), RedoError);
});

test('SPLIT_PAGE without a restored image is refused', () => {
  assert.throws(() => redo(bucketPage(), 0x50, Buffer.alloc(0), 0, [{id: 0}]), RedoError);
  assert.equal(redo(bucketPage(), 0x50, Buffer.alloc(0), 0, [{id: 0}], true), false);
});

test('ADD_OVFL_PAGE with a new bitmap page counts two pages', () => {
  const blocks = [
    {id: 0, willInit: true, data: bytesOf('u32:5'), blockNumber: 40},
    {id: 1, blockNumber: 30},
    {id: 3, willInit: true, blockNumber: 41},
    {id: 4, data: bytesOf('u32:32768')},
  ];
  const main = bytesOf('u16:4096 u8:0');
  const overflow = Buffer.alloc(8192);
  redo(overflow, 0x30, main, 0, blocks);
  assert.deepEqual([overflow.readUInt32LE(prevBlockAt), overflow.readUInt32LE(nextBlockAt)], [30, 0xffffffff]);
  const left = bucketPage();
  redo(left, 0x30, main, 1, blocks);
  assert.equal(left.readUInt32LE(nextBlockAt), 40);
  const metapage = metaPage();
  redo(metapage, 0x30, main, 4, blocks);
  assert.deepEqual(
    [meta.firstfree, meta.spares + 4, meta.nmaps, meta.mapp].map((at) => metapage.readUInt32LE(at)),
    [32768, 3, 1, 41],
  );
  metapage.writeUInt32LE(1024, meta.nmaps);
  assert.throws(() => redo(metapage, 0x30, main, 4, blocks), RedoError);
  assert.throws(() => redo(bucketPage(), 0x30, main, 0, [{id: 0, data: bytesOf('u32:5')}]), RedoError, 'no WILL_INIT');
});

test('SQUEEZE_PAGE: every block, the next page of a middle one included', () => {
  const main = bytesOf('u32:11 u32:12 u16:2 u8:0 u8:0');
  const blocks = [
    {id: 0},
    {id: 1, data: Buffer.concat([bytesOf('u16:1 u16:3'), tuple(8), tuple(9)])},
    {id: 2},
    {id: 3},
    {id: 4},
    {id: 5, data: bytesOf('u32:9')},
    {id: 6, data: bytesOf('u32:9')},
  ];
  const pages = [
    bucketPage(),
    bucketPage(1),
    bucketPage(3),
    bucketPage(),
    bucketPage(),
    Buffer.alloc(8192),
    metaPage(),
  ];
  initHashBitmapPage(pages[5]!, 4096);
  const before = Buffer.from(pages[0]!);
  const changed = pages.map((page, id) => redo(page, 0x80, main, id, blocks));
  assert.deepEqual(changed, [false, true, true, true, true, true, true]);
  assert.ok(pages[0]!.equals(before), 'block 0 is only locked');
  assert.equal(maxOffset(pages[1]!), 3);
  assert.equal(pages[1]!.readUInt32LE(nextBlockAt), 0xffffffff, 'the written page is not the previous one');
  assert.deepEqual([maxOffset(pages[2]!), pages[2]!.readUInt16LE(flagAt)], [0, 0]);
  assert.equal(pages[3]!.readUInt32LE(nextBlockAt), 12);
  assert.equal(pages[4]!.readUInt32LE(prevBlockAt), 11);
  assert.deepEqual([pages[5]![24], pages[5]![25]], [0xff, 0xfd]);
  assert.equal(pages[6]!.readUInt32LE(meta.firstfree), 9);
  const previousWritten = bytesOf('u32:11 u32:12 u16:0 u8:0 u8:1');
  const written = bucketPage();
  redo(written, 0x80, previousWritten, 1, [{id: 1}]);
  assert.equal(written.readUInt32LE(nextBlockAt), 12);
});

test('tuples and item numbers beyond the data are refused', () => {
  const page = (): Buffer => bucketPage(3);
  const move = (ntups: number, data: Buffer): boolean =>
    redo(page(), 0x70, bytesOf(`u16:${ntups} u8:1`), 1, [{id: 1, data}]);
  assert.throws(() => move(2, Buffer.concat([bytesOf('u16:1 u16:2'), tuple(1)])), RedoError);
  assert.throws(() => move(60000, bytesOf('u16:1')), RedoError);
  assert.throws(() => move(1, Buffer.concat([bytesOf('u16:1'), tuple(1), tuple(2)])), RedoError);
  assert.throws(() => move(1, bytesOf('u16:1 u32:0 u16:1 u16:0')), RedoError, 'a tuple of 0 bytes');
  const remove = (data: Buffer): boolean => redo(page(), 0x90, bytesOf('u8:1 u8:1'), 1, [{id: 1, data}]);
  assert.throws(() => remove(bytesOf('u16:4')), RedoError);
  assert.throws(() => remove(bytesOf('u16:1 u16:3 u16:2')), RedoError);
  assert.throws(() => remove(Buffer.alloc(5000)), RedoError);
  const vacuum = bytesOf('u32:700 u32:3 u16:1 u16:2');
  assert.throws(() => redo(page(), 0xc0, vacuum, 0, [{id: 0}]), RedoError);
  assert.throws(() => redo(page(), 0xd0, Buffer.alloc(16), 0, [{id: 0}]), RedoError);
});

test('VACUUM_ONE_PAGE and DELETE clear the hint of dead tuples', () => {
  const page = bucketPage(4);
  page.writeUInt16LE(0x82, flagAt);
  assert.equal(redo(page, 0xc0, bytesOf('u32:700 u32:2 u16:1 u16:3'), 0, [{id: 0}]), true);
  assert.deepEqual([maxOffset(page), page.readUInt16LE(flagAt), itemLength(page, 1)], [2, 2, 16]);
  const metapage = metaPage();
  redo(metapage, 0xc0, bytesOf('u32:700 u32:2 u16:1 u16:3'), 1, [{id: 0}, {id: 1}]);
  assert.equal(metapage.readDoubleLE(meta.ntuples), -2);
  assert.equal(redo(page, 0x90, bytesOf('u8:0 u8:0'), 0, [{id: 0}, {id: 1}]), false);
});
