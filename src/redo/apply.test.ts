import {test} from 'node:test';
import assert from 'node:assert/strict';
import {type Lsn, readPageLsn, writePageLsn} from '#postgres/lsn.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {SeededRandom} from '#runtime/random.ts';
import {applyRecord} from './apply.ts';
import {itemLength, itemOffset, maxOffset, pageAddItem, pageGetFlags, pageInit, pageSize} from './bufpage.ts';
import {RedoError} from './redo.ts';

const environment = {walLogHints: false};
const lsn = (n: number): Lsn => n as Lsn;

interface Part {
  readonly data?: Buffer;
  readonly willInit?: boolean;
  readonly image?: Buffer;
  readonly fork?: 0 | 1 | 2 | 3;
  readonly blockNumber?: number;
}

function makeRecord(
  rmid: number,
  info: number,
  main: Buffer,
  blocks: readonly Part[],
  endLsn = 1000,
  xid = 7,
): WalRecord {
  const record = new WalRecord();
  const pieces: Buffer[] = [];
  let at = 0;
  blocks.forEach((part, id) => {
    const block = record.blocks[id]!;
    block.inUse = true;
    block.id = id;
    block.relNode = 16384;
    block.fork = part.fork ?? 0;
    block.blockNumber = part.blockNumber ?? 5 + id;
    block.willInit = part.willInit ?? false;
    if (part.image !== undefined) {
      block.hasImage = true;
      block.applyImage = true;
      block.imageOffset = at;
      block.imageLength = part.image.length;
      pieces.push(part.image);
      at += part.image.length;
    }
    const data = part.data ?? Buffer.alloc(0);
    block.dataOffset = at;
    block.dataLength = data.length;
    pieces.push(data);
    at += data.length;
  });
  record.maxBlockId = blocks.length - 1;
  record.mainDataOffset = at;
  record.mainDataLength = main.length;
  record.bytes = Buffer.concat([...pieces, main]);
  record.rmid = rmid;
  record.info = info;
  record.xid = xid;
  record.startLsn = lsn(endLsn - 100);
  record.endLsn = lsn(endLsn);
  return record;
}

/** Heap INSERT of `text` as item `n`. */
function insertRecord(n: number, text: string, init: boolean, endLsn: number): WalRecord {
  const main = Buffer.from([n, 0, 0]);
  // t_infomask2 = 1 attribute, t_infomask = 0x0802, t_hoff = 24; one byte of padding, then the data
  const data = Buffer.concat([Buffer.from([1, 0, 0x02, 0x08, 24, 0]), Buffer.from(text)]);
  return makeRecord(rmgr.heap, init ? 0x80 : 0, main, [{data, willInit: init}], endLsn);
}

test('an insertion starts the page, the next one adds to it, and neither is applied twice', () => {
  const page = Buffer.alloc(pageSize, 0xee); // what was there does not matter
  applyRecord(page, insertRecord(1, 'one', true, 1000), 0, environment);
  applyRecord(page, insertRecord(2, 'two', false, 2000), 0, environment);
  const once = Buffer.from(page);
  applyRecord(page, insertRecord(2, 'two', false, 2000), 0, environment);
  applyRecord(page, insertRecord(3, 'old', false, 1500), 0, environment);
  assert.ok(page.equals(once));
  assert.equal(maxOffset(page), 2);
  assert.equal(readPageLsn(page), 2000);
  const at = itemOffset(page, 2);
  assert.equal(page.toString('latin1', at + 24, at + itemLength(page, 2)), 'two');
  assert.equal(page.readUInt32LE(at), 7); // xmin
  assert.deepEqual([page.readUInt16LE(at + 12), page.readUInt16LE(at + 14), page.readUInt16LE(at + 16)], [0, 5, 2]); // ctid
});

test('an update on one page takes prefix and suffix from the old tuple', () => {
  const page = Buffer.alloc(pageSize);
  applyRecord(page, insertRecord(1, 'prefix-old-suffix', true, 1000), 0, environment);
  const main = Buffer.alloc(14);
  main.writeUInt32LE(9, 0);
  main.writeUInt16LE(1, 4);
  main[7] = 0x60; // prefix and suffix
  main.writeUInt16LE(2, 12);
  const data = Buffer.concat([Buffer.from([7, 0, 7, 0, 1, 0x80, 0x02, 0x28, 24, 0]), Buffer.from('newer')]);
  applyRecord(page, makeRecord(rmgr.heap, 0x40, main, [{data}], 2000, 9), 0, environment);
  const at = itemOffset(page, 2);
  assert.equal(page.toString('latin1', at + 24, at + itemLength(page, 2)), 'prefix-newer-suffix');
  const old = itemOffset(page, 1);
  assert.equal(page.readUInt32LE(old + 4), 9); // xmax
  assert.equal(page.readUInt16LE(old + 18) & 0x4000, 0x4000); // HOT updated
  assert.equal(page.readUInt16LE(old + 16), 2);
  assert.equal(page.readUInt32LE(20), 9); // prune xid
});

test('an image replaces the page whatever its LSN is, and an all-new page keeps LSN 0', () => {
  const image = Buffer.alloc(pageSize);
  pageInit(image, 0);
  pageAddItem(image, Buffer.from('from the image'), 0);
  const page = Buffer.alloc(pageSize, 0xff);
  applyRecord(page, makeRecord(rmgr.xlog, 0xb0, Buffer.alloc(0), [{image}], 3000), 0, environment);
  assert.equal(readPageLsn(page), 3000);
  assert.equal(maxOffset(page), 1);
  applyRecord(
    page,
    makeRecord(rmgr.xlog, 0xb0, Buffer.alloc(0), [{image: Buffer.alloc(pageSize)}], 3000),
    0,
    environment,
  );
  assert.ok(page.equals(Buffer.alloc(pageSize)));
});

test('a visibility map page may start from zeros; the heap page gets the LSN only with wal_log_hints', () => {
  const record = makeRecord(
    rmgr.heap2,
    0x40,
    Buffer.from([0, 0, 0, 0, 3]),
    [{fork: 2, blockNumber: 0}, {blockNumber: 5}],
    4000,
  );
  const map = Buffer.alloc(pageSize);
  applyRecord(map, record, 0, environment);
  assert.equal(map[24 + 1], 3 << 2);
  assert.equal(readPageLsn(map), 4000);
  for (const walLogHints of [false, true]) {
    const heap = Buffer.alloc(pageSize);
    pageInit(heap, 0);
    writePageLsn(heap, lsn(50));
    applyRecord(heap, record, 1, {walLogHints});
    assert.equal(pageGetFlags(heap) & 4, 4);
    assert.equal(readPageLsn(heap), walLogHints ? 4000 : 50);
  }
});

test('what cannot be applied is refused, naming record and block', () => {
  const zeros = Buffer.alloc(pageSize);
  assert.throws(
    () => applyRecord(zeros, insertRecord(1, 'x', false, 1000), 0, environment),
    (error: unknown) =>
      error instanceof RedoError && /Heap 0x0 at 0\/384, block 0 .*16384.*never initialised/.test(error.message),
  );
  assert.throws(() => applyRecord(zeros, insertRecord(1, 'x', true, 1000), 3, environment), RedoError);
  assert.throws(() => applyRecord(zeros, makeRecord(rmgr.clog, 0, Buffer.alloc(4), [{}]), 0, environment), RedoError);
  assert.throws(() => applyRecord(zeros, makeRecord(200, 0, Buffer.alloc(4), [{}]), 0, environment), RedoError);
  assert.throws(() => applyRecord(Buffer.alloc(100), insertRecord(1, 'x', true, 1000), 0, environment), RedoError);
});

test('random records on random pages end in a page or in a RedoError that was raised on purpose', () => {
  const random = new SeededRandom(42);
  const below = (n: number): number => random.uint32() % n;
  for (let round = 0; round < 8000; round++) {
    const rmid = [
      rmgr.xlog,
      rmgr.heap,
      rmgr.heap2,
      rmgr.btree,
      rmgr.hash,
      rmgr.gin,
      rmgr.gist,
      rmgr.sequence,
      rmgr.spGist,
      rmgr.brin,
      rmgr.generic,
    ][below(11)]!;
    const small = (length: number): Buffer =>
      Buffer.from(Uint8Array.from({length}, () => (below(3) === 0 ? below(256) : below(4))));
    const blocks = Array.from({length: 1 + below(4)}, () => ({
      data: small(below(8) === 0 ? below(2000) : below(60)),
      willInit: below(4) === 0,
      blockNumber: below(3),
    }));
    const record = makeRecord(rmid, below(16) * 16, small(below(60)), blocks, 1000);
    const page = Buffer.alloc(pageSize);
    pageInit(page, [0, 8, 16][below(3)]!);
    const count = below(20);
    for (let i = 0; i < count; i++) pageAddItem(page, small(8 + below(100)), 0);
    for (let i = below(4); i > 0; i--) page[below(2) === 0 ? 10 + below(60) : pageSize - 1 - below(24)] = below(256);
    try {
      applyRecord(page, record, below(blocks.length), environment);
    } catch (error) {
      assert.ok(
        error instanceof RedoError && error.cause instanceof RedoError,
        String((error as Error).cause ?? error),
      );
    }
  }
});
