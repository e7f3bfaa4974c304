import assert from 'node:assert/strict';
import {test} from 'node:test';
import fc from 'fast-check';
import {type Lsn, lsn, writeLsn64} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {pageFirstIsOverwriteContrecord, walPageSize} from '#postgres/wal/segment.ts';
import {WalWriter, mainDataBody} from '#postgres/wal/writer.ts';

const systemId = 7123456789012345678n;
const segmentSize = 1024 * 1024;

interface Read {
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly data: string;
}

function readAll(reader: WalReader, chunks: readonly Buffer[]): Read[] {
  const record = new WalRecord();
  const found: Read[] = [];
  for (const chunk of chunks) {
    reader.push(chunk);
    while (reader.next(record))
      found.push({startLsn: record.startLsn, endLsn: record.endLsn, data: record.mainData().toString('hex')});
  }
  return found;
}

/** Start positions of every kind: segment start, page start, just after headers, near page and segment ends. */
const startLsns = [
  segmentSize,
  segmentSize + 40,
  segmentSize + walPageSize,
  segmentSize + walPageSize + 24,
  segmentSize + walPageSize - 8,
  2 * segmentSize - 8,
  2 * segmentSize - 32,
  segmentSize + 4096,
  5 * 2 ** 40 + 3 * walPageSize + 1000,
];

test('records survive any layout and any chunking', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...startLsns),
      fc.array(fc.oneof(fc.nat(300), fc.nat(30_000), fc.constant(-1)), {minLength: 1, maxLength: 40}),
      fc.array(fc.oneof(fc.integer({min: 1, max: 60}), fc.integer({min: 1, max: 100_000})), {
        minLength: 1,
        maxLength: 50,
      }),
      (start, lengths, cuts) => {
        const writer = new WalWriter({startLsn: lsn(start), systemId, segmentSize, previousLsn: lsn(start - 8)});
        const expected: Read[] = lengths.map((length, i) => {
          const data = Buffer.alloc(Math.max(length, 0), i);
          const info = length < 0 ? 0x40 : 0x20;
          return {...writer.append({rmid: 0, info, body: mainDataBody(data)}), data: data.toString('hex')};
        });
        const wal = writer.take();
        const chunks: Buffer[] = [];
        for (let at = 0, i = 0; at < wal.length; i++) {
          const count = cuts[i % cuts.length]!;
          chunks.push(wal.subarray(at, at + count));
          at += count;
        }
        const reader = new WalReader({startLsn: lsn(start), systemId, segmentSize});
        assert.deepEqual(readAll(reader, chunks), expected);
        assert.equal(reader.failure, undefined);
        assert.equal(reader.lastRecordEndLsn, writer.position);
        assert.equal(reader.lastRecordStartLsn, writer.previousLsn);
        assert.equal(reader.pushLsn, start + wal.length);
      },
    ),
    {numRuns: 300},
  );
});

test('a flipped bit is never read over: reading ends at or before the damaged record', () => {
  fc.assert(
    fc.property(fc.nat(), fc.nat(7), fc.array(fc.nat(6000), {minLength: 2, maxLength: 20}), (where, bit, lengths) => {
      const start = lsn(segmentSize);
      const writer = new WalWriter({startLsn: start, systemId, segmentSize});
      const expected = lengths.map((length, i) => ({
        ...writer.append({rmid: 20, info: 0, body: mainDataBody(Buffer.alloc(length, i + 1))}),
        data: Buffer.alloc(length, i + 1).toString('hex'),
      }));
      const wal = writer.take();
      const at = where % wal.length;
      wal[at]! ^= 1 << bit;
      const reader = new WalReader({startLsn: start, systemId, segmentSize});
      const found = readAll(reader, [wal]);
      // What was read is a prefix of the truth, whatever the damage (padding, unused header bytes and flags may be flipped harmlessly).
      assert.deepEqual(found, expected.slice(0, found.length));
      if (found.length < expected.length) {
        const damaged = expected[found.length]!;
        assert.ok(reader.failure !== undefined || reader.pushLsn < damaged.endLsn + 2 ** 31);
        if (reader.failure) assert.ok(reader.failure.position <= damaged.endLsn);
      }
    }),
    {numRuns: 500},
  );
});

test('the tail of a recycled segment ends reading with position and reason', () => {
  const writer = new WalWriter({startLsn: lsn(segmentSize), systemId, segmentSize});
  const {endLsn} = writer.append({rmid: 20, info: 0, body: mainDataBody(Buffer.alloc(100))});
  const reader = new WalReader({startLsn: lsn(segmentSize), systemId, segmentSize});
  const found = readAll(reader, [writer.take(), Buffer.alloc(500)]);
  assert.equal(found.length, 1);
  assert.deepEqual(reader.failure, {position: endLsn, reason: 'invalid record length 0'});
  reader.push(Buffer.alloc(10));
  assert.equal(reader.next(new WalRecord()), false);
});

test('each page header field is checked', () => {
  const cases: [string, (page: Buffer) => void, RegExp][] = [
    ['magic', (page) => page.writeUInt16LE(0xd10f, 0), /magic number d10f/],
    ['info', (page) => page.writeUInt16LE(0x12, 2), /unknown info bits/],
    ['contrecord', (page) => page.writeUInt16LE(0x3, 2), /does not start before/],
    ['long header', (page) => page.writeUInt16LE(0, 2), /no long header/],
    ['address', (page) => page.writeUInt32LE(7, 8), /page address/],
    ['system', (page) => page.writeUInt32LE(7, 24), /database system/],
    ['segment size', (page) => page.writeUInt32LE(7, 32), /segment size 7/],
    ['block size', (page) => page.writeUInt32LE(7, 36), /block size 7/],
  ];
  for (const [name, damage, reason] of cases) {
    const writer = new WalWriter({startLsn: lsn(segmentSize), systemId, segmentSize});
    writer.append({rmid: 20, info: 0, body: mainDataBody(Buffer.alloc(100))});
    const wal = writer.take();
    damage(wal);
    const reader = new WalReader({startLsn: lsn(segmentSize), systemId, segmentSize});
    assert.deepEqual(readAll(reader, [wal]), [], name);
    assert.match(reader.failure!.reason, reason);
    assert.equal(reader.failure!.position, segmentSize);
  }
});

test('a record given up by a crashed writer is dropped, and the record that says so is checked', () => {
  for (const honest of [true, false]) {
    const writer = new WalWriter({startLsn: lsn(segmentSize), systemId, segmentSize});
    const first = writer.append({rmid: 20, info: 0, body: mainDataBody(Buffer.alloc(100, 1))});
    const lost = writer.position;
    writer.appendTorn(
      {rmid: 20, info: 0, body: mainDataBody(Buffer.alloc(20_000, 2))},
      walPageSize - (writer.position % walPageSize),
    );
    writer.startPage(pageFirstIsOverwriteContrecord);
    const named = Buffer.alloc(16);
    writeLsn64(named, 0, honest ? lost : first.startLsn);
    writer.append({rmid: 0, info: 0xd0, body: mainDataBody(named)});
    const last = writer.append({rmid: 20, info: 0, body: mainDataBody(Buffer.alloc(100, 3))});
    const reader = new WalReader({startLsn: lsn(segmentSize), systemId, segmentSize});
    const found = readAll(reader, [writer.take()]);
    if (honest) {
      assert.equal(found.length, 3);
      assert.equal(reader.lastRecordEndLsn, last.endLsn);
    } else {
      assert.equal(found.length, 1);
      assert.match(reader.failure!.reason, /OVERWRITE_CONTRECORD names/);
    }
  }
});

test('xl_prev must name the record before; at a known start the given one', () => {
  const wal = (previousLsn: Lsn): Buffer => {
    const writer = new WalWriter({startLsn: lsn(segmentSize), systemId, segmentSize, previousLsn});
    writer.append({rmid: 20, info: 0, body: mainDataBody(Buffer.alloc(10))});
    return writer.take();
  };
  const options = {startLsn: lsn(segmentSize), systemId, segmentSize};
  assert.equal(readAll(new WalReader({...options, previousLsn: lsn(8)}), [wal(lsn(8))]).length, 1);
  assert.equal(readAll(new WalReader({...options, previousLsn: lsn(8)}), [wal(lsn(16))]).length, 0);
  assert.equal(readAll(new WalReader(options), [wal(lsn(16))]).length, 1);
  assert.equal(readAll(new WalReader(options), [wal(lsn(2 * segmentSize))]).length, 0);
});

test('a start inside a page header is refused', () => {
  assert.match(new WalReader({startLsn: lsn(segmentSize + 24), segmentSize}).failure!.reason, /inside a page header/);
  assert.match(
    new WalReader({startLsn: lsn(segmentSize + walPageSize + 16), segmentSize}).failure!.reason,
    /inside a page header/,
  );
});
