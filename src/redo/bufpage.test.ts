import {test} from 'node:test';
import assert from 'node:assert/strict';
import {
  checkItem,
  hasStorage,
  itemFlags,
  itemLength,
  itemOffset,
  lpDead,
  lpNormal,
  lpUnused,
  maxOffset,
  pageAddItem,
  pageGetLower,
  pageGetUpper,
  pageIndexMultiDelete,
  pageIndexTupleDelete,
  pageIndexTupleDeleteNoCompact,
  pageIndexTupleOverwrite,
  pageInit,
  pageIsNew,
  pageRepairFragmentation,
  pageSize,
  pageTruncateLinePointerArray,
  setItemId,
} from './bufpage.ts';
import {SeededRandom} from '#runtime/random.ts';
import {RedoError} from './redo.ts';

function newPage(special = 0): Buffer {
  const page = Buffer.alloc(8192);
  pageInit(page, special);
  return page;
}

function item(page: Buffer, n: number): string {
  return page.toString('latin1', itemOffset(page, n), itemOffset(page, n) + itemLength(page, n));
}

function items(page: Buffer): string[] {
  return Array.from({length: maxOffset(page)}, (_, i) => (hasStorage(page, i + 1) ? item(page, i + 1) : '-'));
}

function add(page: Buffer, ...texts: string[]): void {
  for (const text of texts) pageAddItem(page, Buffer.from(text), 0);
}

test('a line pointer keeps its three fields', () => {
  const page = newPage();
  setItemId(page, 7, 0x7abc, lpDead, 0x5432);
  assert.deepEqual([itemOffset(page, 7), itemFlags(page, 7), itemLength(page, 7)], [0x7abc, lpDead, 0x5432]);
  setItemId(page, 7, 8184, lpNormal, 1);
  assert.deepEqual([itemOffset(page, 7), itemFlags(page, 7), itemLength(page, 7)], [8184, lpNormal, 1]);
});

test('pageAddItem appends, shifts and fills unused line pointers', () => {
  const page = newPage(16);
  assert.equal(pageIsNew(Buffer.alloc(8192)), true);
  add(page, 'one', 'three');
  pageAddItem(page, Buffer.from('two'), 2);
  assert.deepEqual(items(page), ['one', 'two', 'three']);
  assert.equal(pageGetUpper(page), 8176 - 24);
  pageIndexTupleDeleteNoCompact(page, 1);
  assert.deepEqual(items(page), ['-', 'two', 'three']);
  assert.throws(() => pageAddItem(page, Buffer.from('x'), 2, {overwrite: true}), RedoError);
  assert.equal(pageAddItem(page, Buffer.from('uno'), 1, {overwrite: true}), 1);
  assert.deepEqual(items(page), ['uno', 'two', 'three']);
  assert.throws(() => pageAddItem(page, Buffer.from('x'), 5), RedoError);
  assert.throws(() => pageAddItem(page, Buffer.alloc(8160), 0), RedoError);
});

test('index deletes compact and overwrites shift', () => {
  const page = newPage(16);
  add(page, 'a', 'bb', 'ccc', 'dddddddddd', 'e', 'f', 'g');
  pageIndexTupleDelete(page, 2);
  assert.deepEqual(items(page), ['a', 'ccc', 'dddddddddd', 'e', 'f', 'g']);
  pageIndexTupleOverwrite(page, 3, Buffer.from('D'));
  assert.deepEqual(items(page), ['a', 'ccc', 'D', 'e', 'f', 'g']);
  assert.equal(pageGetUpper(page), 8176 - 6 * 8);
  pageIndexMultiDelete(page, [1, 3, 6]);
  assert.deepEqual(items(page), ['ccc', 'e', 'f']);
  assert.equal(pageGetUpper(page), 8176 - 3 * 8);
  assert.equal(pageGetLower(page), 24 + 3 * 4);
  assert.throws(() => pageIndexMultiDelete(page, [3, 2, 1]), RedoError);
  assert.throws(() => pageIndexTupleDelete(page, 4), RedoError);
});

test('pageRepairFragmentation compacts sorted and unsorted pages alike and truncates the line pointers', () => {
  for (const order of [
    [1, 2, 3, 4, 5],
    [3, 1, 5, 2, 4],
  ]) {
    const page = newPage();
    add(page, 'one', 'two', 'three', 'four', 'five');
    // let line pointers point at the items in another order
    const ids = order.map((n) => [itemOffset(page, n), itemLength(page, n)] as const);
    ids.forEach(([offset, length], i) => setItemId(page, i + 1, offset, lpNormal, length));
    const before = items(page);
    setItemId(page, 2, 0, lpUnused, 0);
    setItemId(page, 5, 0, lpUnused, 0);
    pageRepairFragmentation(page);
    assert.deepEqual(items(page), [before[0], '-', before[2], before[3]]);
    assert.equal(pageGetUpper(page), 8192 - 3 * 8);
    assert.equal(page[10], 1);
  }
});

test('pageTruncateLinePointerArray leaves one line pointer', () => {
  const page = newPage();
  add(page, 'one', 'two', 'three');
  for (const n of [1, 2, 3]) setItemId(page, n, 0, lpUnused, 0);
  pageTruncateLinePointerArray(page);
  assert.equal(maxOffset(page), 1);
  assert.equal(page[10], 1);
});

test('corrupt pages are refused, whatever bytes they hold', () => {
  let seed = 1;
  const next = (): number => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) >>> 8;
  for (let round = 0; round < 3000; round++) {
    const page = newPage(16);
    add(page, 'one', 'two', 'three', 'four', 'five', 'six');
    for (let i = 0; i < 4; i++) page[10 + (next() % 40)] = next();
    for (const change of [
      () => pageRepairFragmentation(page),
      () => pageIndexMultiDelete(page, [1, 2, 4]),
      () => pageIndexTupleDelete(page, 2),
      () => pageIndexTupleOverwrite(page, 1, Buffer.from('seven seven seven')),
      () => pageIndexTupleDeleteNoCompact(page, 1),
      () => pageTruncateLinePointerArray(page),
      () => checkItem(page, 1),
      () => pageAddItem(page, Buffer.from('eight'), 1),
    ]) {
      try {
        change();
      } catch (error) {
        assert.ok(error instanceof RedoError, String(error));
      }
    }
  }
});

test('compaction gives the same bytes on a page that does not lie at a multiple of four', () => {
  for (const seed of [1, 2, 3, 4, 5]) {
    const random = new SeededRandom(seed);
    const aligned = Buffer.alloc(pageSize);
    pageInit(aligned, 16);
    for (let n = 1; n <= 60; n++) {
      const item = random.bytes(8 + (random.uint32() % 90));
      // every third one in the middle, so that offsets do not descend
      pageAddItem(aligned, item, seed % 2 === 0 && n % 3 === 0 ? 1 + (random.uint32() % n) : n);
    }
    const apart = Buffer.alloc(pageSize + 3).subarray(3);
    const both = (change: (page: Buffer) => void): void => {
      aligned.copy(apart);
      change(aligned);
      change(apart);
      assert.ok(aligned.equals(apart), `seed ${seed}`);
    };
    assert.notEqual(apart.byteOffset % 4, aligned.byteOffset % 4);
    both((page) => pageIndexMultiDelete(page, [2, 3, 17, 40]));
    assert.equal(maxOffset(aligned), 56);
    const lengths = (): number[] => Array.from({length: maxOffset(aligned)}, (_, i) => itemLength(aligned, i + 1));
    const before = lengths();
    both((page) => {
      for (const n of [5, 9, 10, 55, 56]) setItemId(page, n, 0, 0, 0);
      setItemId(page, 20, 7, 2, 0); // a redirect
      pageRepairFragmentation(page);
    });
    assert.deepEqual(
      lengths(),
      before.slice(0, 54).map((length, i) => ([5, 9, 10, 20].includes(i + 1) ? 0 : length)),
    );
    assert.equal(itemFlags(aligned, 20), 2);
    assert.equal(itemOffset(aligned, 20), 7);
  }
});
