/**
 * One real record for every block of every record type of GiST, SP-GiST, BRIN and generic, and what hostile changes of them
 * do. That redo equals PostgreSQL's on millions of records is the oracle's to prove (npm run oracle:redo).
 *
 * testdata/gist-spgist-brin-generic.br (brotli) was taken from WAL of PostgreSQL 15.20 with wal_consistency_checking on. Per
 * sample: u32 name length, u32 base page length (0: none needed), u32 record length, f64 end LSN; name (`type#block`), base
 * page, record, page after redo. The final pages of that WAL equalled, in all 8192 bytes, those of PostgreSQL's own recovery.
 */
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {test} from 'node:test';
import {brotliDecompressSync} from 'node:zlib';
import {type Lsn, readPageLsn, writePageLsn} from '#postgres/lsn.ts';
import {restoreImage} from '#postgres/wal/image.ts';
import {decodeRecord, WalDecodeError, WalRecord} from '#postgres/wal/record.ts';
import {SeededRandom} from '#runtime/random.ts';
import {applyRecord} from './apply.ts';
import {pageInit} from './bufpage.ts';
import {redoBrin} from './brin.ts';
import {redoGeneric} from './generic.ts';
import {redoGist} from './gist.ts';
import {maskPage} from './mask.ts';
import {RedoError, type RedoFunction} from './redo.ts';
import {redoSpGist} from './spgist.ts';

interface Sample {
  readonly name: string;
  readonly blockId: number;
  readonly base: Buffer | undefined;
  readonly bytes: Buffer;
  readonly endLsn: Lsn;
  readonly after: Buffer;
}

const environment = {walLogHints: false};
const functions: Readonly<Record<number, RedoFunction>> = {14: redoGist, 16: redoSpGist, 17: redoBrin, 20: redoGeneric};
const samples = readSamples();

function readSamples(): Sample[] {
  const raw = brotliDecompressSync(readFileSync(new URL('testdata/gist-spgist-brin-generic.br', import.meta.url)));
  const list: Sample[] = [];
  for (let at = 0; at < raw.length;) {
    const take = (length: number): Buffer => raw.subarray((at += length) - length, at);
    const head = take(20);
    const name = take(head.readUInt32LE(0)).toString();
    const base = take(head.readUInt32LE(4));
    const bytes = take(head.readUInt32LE(8));
    const after = take(8192);
    const blockId = Number(/#(\d+)/.exec(name)![1]);
    list.push({
      name,
      blockId,
      base: base.length > 0 ? base : undefined,
      bytes,
      endLsn: head.readDoubleLE(12) as Lsn,
      after,
    });
  }
  return list;
}

function decode(sample: Sample, bytes = sample.bytes): WalRecord {
  const record = new WalRecord();
  decodeRecord(bytes, 8 as Lsn, sample.endLsn, record);
  return record;
}

test('there is a sample of every record type', () => {
  const types = new Set(samples.map((s) => s.name.replace(/#.*/, '')));
  const expected = {
    BRIN: 'CREATE_INDEX DESUMMARIZE INSERT INSERT+INIT REVMAP_EXTEND SAMEPAGE_UPDATE UPDATE UPDATE+INIT',
    Generic: 'GENERIC',
    Gist: 'DELETE PAGE_DELETE PAGE_SPLIT PAGE_UPDATE',
    SPGist: 'ADD_LEAF ADD_NODE MOVE_LEAFS PICKSPLIT SPLIT_TUPLE VACUUM_LEAF VACUUM_REDIRECT VACUUM_ROOT',
  };
  const names = Object.entries(expected).flatMap(([rmgr, list]) => list.split(' ').map((type) => `${rmgr}/${type}`));
  assert.deepEqual([...types].toSorted(), names.toSorted());
});

for (const sample of samples) {
  test(`redo of ${sample.name}`, () => {
    const record = decode(sample);
    const page = Buffer.alloc(8192);
    sample.base?.copy(page);
    applyRecord(page, record, sample.blockId, environment);
    assert.ok(page.equals(sample.after), 'the page is not the expected one');
    const block = record.block(sample.blockId)!;
    if (!block.hasImage || block.applyImage) return;
    const theirs = Buffer.alloc(8192);
    restoreImage(record, block, theirs);
    maskPage(record.rmid, theirs, block.blockNumber);
    maskPage(record.rmid, page, block.blockNumber);
    assert.ok(page.equals(theirs), "the page is not PostgreSQL's own after-image");
  });
}

test('GiST: the child of a finished split gets its NSN even when it was restored from an image', () => {
  const sample = samples.find((s) => s.name === 'Gist/PAGE_UPDATE#1 restored')!;
  const record = decode(sample);
  const image = Buffer.alloc(8192);
  restoreImage(record, record.block(1)!, image);
  assert.equal(image[8176 + 12]! & 8, 8, 'the image still has F_FOLLOW_RIGHT');
  const page = Buffer.alloc(8192);
  applyRecord(page, record, 1, environment);
  assert.equal(page[8176 + 12]! & 8, 0);
  assert.equal(readPageLsn(page.subarray(8176)), sample.endLsn, 'NSN');
  assert.equal(readPageLsn(page), sample.endLsn);
});

test('a restored page is final for all other types', () => {
  for (const sample of samples) {
    const record = decode(sample);
    const follows = /^Gist\/PAGE_UPDATE#1|^Gist\/PAGE_SPLIT#0/.test(sample.name);
    const page = Buffer.alloc(8192);
    pageInit(page, 16);
    const before = Buffer.from(page);
    const changed = functions[record.rmid]!(page, record, record.block(sample.blockId)!, true, environment);
    assert.equal(changed, follows, sample.name);
    if (!follows) assert.ok(page.equals(before), sample.name);
  }
});

test('changed bytes of record or page end in a RedoError or a page, soon', () => {
  const random = new SeededRandom(15);
  const startedMs = performance.now();
  for (const sample of samples) {
    for (let round = 0; round < 150; round++) {
      const bytes = Buffer.from(sample.bytes);
      const page = Buffer.alloc(8192);
      sample.base?.copy(page);
      const record = decode(sample, bytes);
      const block = record.block(sample.blockId)!;
      const targets = [
        [bytes, record.mainDataOffset, Math.min(record.mainDataLength, 40)],
        [bytes, record.mainDataOffset, record.mainDataLength],
        [bytes, block.dataOffset, Math.min(block.dataLength, 24)],
        [bytes, block.dataOffset, block.dataLength],
        [page, 12, 6],
        [page, 24, 64],
        [page, 0, 8192],
      ] as const;
      for (let i = 0; i <= round % 3; i++) {
        const [buffer, start, length] = targets[random.uint32() % targets.length]!;
        if (length > 0) buffer[start + (random.uint32() % length)] = random.float() < 0.3 ? 0xff : random.uint32();
      }
      if (round % 5 === 0) record.mainDataLength = random.uint32() % (record.mainDataLength + 1);
      if (round % 7 === 0) block.dataLength = random.uint32() % (block.dataLength + 1);
      try {
        functions[record.rmid]!(page, record, block, false, environment);
      } catch (error) {
        if (!(error instanceof RedoError)) throw new Error(`${sample.name}, round ${round}`, {cause: error});
      }
    }
  }
  assert.ok(performance.now() - startedMs < 120_000);
});

test('a record with any byte changed decodes, or is refused, and redo never fails otherwise', () => {
  const random = new SeededRandom(16);
  for (const sample of samples) {
    for (let round = 0; round < 60; round++) {
      const bytes = Buffer.from(sample.bytes);
      bytes[16] = round % 3 === 0 ? random.uint32() & 0xf0 : bytes[16]!;
      const at = 24 + (random.uint32() % Math.min(80, bytes.length - 24));
      bytes[at] = random.uint32();
      const page = Buffer.alloc(8192);
      sample.base?.copy(page);
      try {
        const record = decode(sample, bytes);
        for (let id = 0; id <= record.maxBlockId; id++)
          if (record.block(id) !== undefined) applyRecord(page, record, id, environment);
      } catch (error) {
        if (!(error instanceof RedoError || error instanceof WalDecodeError)) throw error;
      }
    }
  }
});

test('hostile records and pages are refused by name', () => {
  const refuse = (
    name: string,
    pattern: RegExp,
    change: (main: Buffer, page: Buffer, record: WalRecord) => void,
  ): void => {
    const sample = samples.find((s) => s.name === name)!;
    const record = decode(sample, Buffer.from(sample.bytes));
    const page = Buffer.alloc(8192);
    sample.base?.copy(page);
    change(record.mainData(), page, record);
    const run = (): unknown => functions[record.rmid]!(page, record, record.block(sample.blockId)!, false, environment);
    assert.throws(run, (error: Error) => error instanceof RedoError && pattern.test(error.message), name);
  };
  refuse('SPGist/VACUUM_ROOT#0', /cut off/, (main) => main.writeUInt16LE(0xffff, 0));
  refuse('SPGist/VACUUM_LEAF#0', /cut off/, (main) => main.writeUInt16LE(0xffff, 6));
  refuse('SPGist/MOVE_LEAFS#0', /cut off/, (main) => main.writeUInt16LE(0xffff, 0));
  refuse('SPGist/MOVE_LEAFS#0', /twice|out of order|does not exist|invalid/, (main) => main.copy(main, 20, 22, 24));
  refuse('SPGist/PICKSPLIT#2', /inner tuple/, (main) => main.writeUInt16LE(0xffff, 4));
  refuse('SPGist/ADD_LEAF#0', /item number 0/, (main) => (main.writeUInt16LE(0, 2), main.writeUInt16LE(1, 4)));
  refuse('SPGist/ADD_LEAF#0', /leaf tuple of/, (main) => main.writeUInt32LE(0xfffffffc, 10));
  refuse('SPGist/ADD_LEAF#1', /nodes/, (main) => main.writeUInt16LE(8191, 8));
  refuse('SPGist/VACUUM_REDIRECT#0', /does not exist/, (main) => main.writeUInt16LE(0xffff, 2));
  refuse('BRIN/INSERT#1', /0 pages per range/, (main) => main.writeUInt32LE(0, 4));
  refuse('BRIN/INSERT#0', /item/, (main) => main.writeUInt16LE(2000, 8));
  refuse('Gist/PAGE_UPDATE#0', /deletes 65535/, (main) => main.writeUInt16LE(0xffff, 0));
  refuse('Gist/DELETE#0', /main data/, (main) => main.writeUInt16LE(0xffff, 4));
  refuse('Gist/PAGE_SPLIT#3', /lacks block/, (main) => main.writeUInt16LE(500, 18));
  refuse('Gist/PAGE_UPDATE#1', /special space/, (_, page) => page.writeUInt16LE(8190, 16));
  refuse('Generic/GENERIC#0', /generic delta/, (_, __, record) =>
    record.blockData(record.block(0)!).writeUInt16LE(0xffff, 2),
  );
  refuse('Generic/GENERIC#0', /lower = /, (_, page) => page.writeUInt16LE(9000, 14));
  refuse('Gist/PAGE_UPDATE#0', /unknown GiST/, (_, __, record) => (record.info = 0x40));
  refuse('SPGist/ADD_LEAF#0', /unknown SP-GiST/, (_, __, record) => (record.info = 0));
  refuse('BRIN/INSERT#0', /unknown BRIN/, (_, __, record) => (record.info = 0x70));
  refuse('Generic/GENERIC#0', /unknown generic/, (_, __, record) => (record.info = 0x10));
});

test('SP-GiST: counts of redirects and placeholders wrap instead of losing the page', () => {
  const sample = samples.find((s) => s.name === 'SPGist/VACUUM_REDIRECT#0')!;
  const record = decode(sample);
  const page = Buffer.from(sample.base!);
  page.writeUInt16LE(0, 8184 + 2);
  assert.equal(redoSpGist(page, record, record.block(0)!, false, environment), true);
  const converted = record.mainData().readUInt16LE(0);
  assert.equal(page.readUInt16LE(8184 + 2), (0x10000 - converted) & 0xffff);
  writePageLsn(page, sample.endLsn);
  sample.after.copy(page, 8186, 8186, 8188);
  assert.ok(page.equals(sample.after));
});
