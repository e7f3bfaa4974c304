import assert from 'node:assert/strict';
import {test} from 'node:test';
import fc from 'fast-check';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {Interpreter} from '#pageserver/ingest/interpret.ts';
import {decodePagePatch} from '#pageserver/ingest/page-patch.ts';
import type {IngestSink, IngestState, InterpretOutcome} from '#pageserver/ingest/sink.ts';
import {ControlFile, controlFileDataSize} from '#postgres/control-file.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import type {SlruKind} from '#postgres/slru.ts';
import {type BlockRef, WalRecord, decodeRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {encodeRecord, mainDataBody} from '#postgres/wal/writer.ts';

const endLsn = lsn(0x2000);

/** Writes down every call; sizes and pages are what the test sets. */
class Recorder {
  readonly calls: unknown[][] = [];
  readonly sizes = new Map<string, number>();
  readonly slruPages = new Set<string>();
  readonly directories = new Set(['1663/5']);
  readonly state: IngestState = {
    relationSize: (spc, db, rel, fork) => this.sizes.get(`${spc}/${db}/${rel}/${fork}`) ?? -1,
    databaseExists: (spc, db) => this.directories.has(`${spc}/${db}`),
    slruPageExists: (kind: SlruKind, page: number) => this.slruPages.has(`${kind}/${page}`),
    ownsBlock: () => true,
    isFirstShard: true,
  };
  readonly sink = new Proxy({} as IngestSink, {
    get:
      (_, name) =>
      (...args: unknown[]) => {
        if (name === 'relationPageRecord') {
          const [record, b, needsBase] = args as [WalRecord, BlockRef, boolean];
          assert.equal(record.endLsn, endLsn);
          this.calls.push([name, b.spcNode, b.dbNode, b.relNode, b.fork, b.blockNumber, b.id, needsBase]);
          return;
        }
        // a patch is valid only during the call
        const kept = args.map((a) => (Buffer.isBuffer(a) ? Buffer.from(a) : a));
        this.calls.push([name, ...kept.filter((a) => a !== endLsn)]);
        if (name === 'setRelationSize') this.sizes.set(args.slice(0, 4).join('/'), args[4] as number);
        if (name === 'createRelation') this.sizes.set(args.slice(0, 4).join('/'), 0);
      },
  });
  readonly checkpoint = new CheckpointState(new ControlFile(Buffer.alloc(controlFileDataSize)));

  constructor() {
    this.checkpoint.control.checkPoint.timeline = 1;
    this.checkpoint.control.checkPoint.nextXid = 1_000_000;
    this.checkpoint.control.checkPoint.nextMulti = 1;
  }

  interpret(body: {rmid: number; info: number; xid?: number; body: Buffer}): InterpretOutcome {
    const bytes = encodeRecord(body, 0 as Lsn);
    const record = new WalRecord();
    decodeRecord(bytes, lsn(0x1f00), endLsn, record);
    return new Interpreter(this.sink, this.state, this.checkpoint).interpret(record);
  }

  names(): unknown[] {
    return this.calls.map(([name]) => name);
  }
}

/** Block headers without data or image, then main data. */
function blocks(
  references: readonly {id: number; rel: number; fork?: number; block: number; willInit?: boolean}[],
  data: Buffer,
): Buffer {
  const headers = references.map(({id, rel, fork, block, willInit}) => {
    const header = Buffer.alloc(20);
    header[0] = id;
    header[1] = (fork ?? 0) | (willInit === true ? 0x40 : 0);
    header.writeUInt32LE(1663, 4);
    header.writeUInt32LE(5, 8);
    header.writeUInt32LE(rel, 12);
    header.writeUInt32LE(block, 16);
    return header;
  });
  return Buffer.concat([...headers, mainDataBody(data)]);
}

function u32s(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((v, i) => bytes.writeUInt32LE(v, i * 4));
  return bytes;
}

const insertFlags = (flags: number): Buffer => Buffer.from([1, 0, flags]);

test('a gap in an extended relation becomes zero pages, and the block stands alone', () => {
  const r = new Recorder();
  r.sizes.set('1663/5/100/0', 3);
  r.interpret({rmid: rmgr.heap, info: 0, body: blocks([{id: 0, rel: 100, block: 7}], insertFlags(0))});
  assert.deepEqual(
    r.calls.map((c) => c.filter((a) => !Buffer.isBuffer(a))),
    [
      ['zeroPages', 1663, 5, 100, 0, 3, 7],
      ['setRelationSize', 1663, 5, 100, 0, 8],
      ['relationPageRecord', 1663, 5, 100, 0, 7, 0, false],
    ],
  );
});

test('blocks of one record that extend one fork in any order have one value each', () => {
  const r = new Recorder();
  r.interpret({
    rmid: rmgr.generic,
    info: 0,
    body: blocks(
      [
        {id: 0, rel: 100, block: 5},
        {id: 1, rel: 100, block: 2},
        {id: 2, rel: 100, block: 6, willInit: true},
      ],
      Buffer.alloc(0),
    ),
  });
  assert.deepEqual(
    r.calls.map((c) => c.filter((a) => !Buffer.isBuffer(a))),
    [
      ['createRelation', 1663, 5, 100, 0],
      ['zeroPages', 1663, 5, 100, 0, 0, 2],
      ['zeroPages', 1663, 5, 100, 0, 3, 5],
      ['setRelationSize', 1663, 5, 100, 0, 6],
      ['relationPageRecord', 1663, 5, 100, 0, 5, 0, false],
      ['relationPageRecord', 1663, 5, 100, 0, 2, 1, false],
      ['setRelationSize', 1663, 5, 100, 0, 7],
      ['relationPageRecord', 1663, 5, 100, 0, 6, 2, false],
    ],
  );
});

test('a size that is not loaded: the record has no effect and says what to load', () => {
  const r = new Recorder();
  r.sizes.set('1663/5/100/0', 10);
  r.sizes.set('1663/5/100/2', -2);
  const outcome = r.interpret({
    rmid: rmgr.heap,
    info: 0,
    xid: 2_000_000,
    body: blocks([{id: 0, rel: 100, block: 1}], insertFlags(1)),
  });
  assert.deepEqual(outcome, {kind: 'missing', relations: [{spcNode: 1663, dbNode: 5, relNode: 100, fork: 2}]});
  assert.deepEqual(r.calls, []);
  assert.equal(r.checkpoint.control.checkPoint.nextXid, 1_000_000);
});

test('an update that clears bits of two blocks on one map page gives one patch; on two pages, two', () => {
  const update = (newBlock: number, oldBlock: number): Recorder => {
    const r = new Recorder();
    r.sizes.set('1663/5/100/0', 100_000);
    r.sizes.set('1663/5/100/2', 4);
    const data = Buffer.alloc(14);
    data[7] = 3;
    r.interpret({
      rmid: rmgr.heap,
      info: 0x20,
      body: blocks(
        [
          {id: 0, rel: 100, block: newBlock},
          {id: 1, rel: 100, block: oldBlock},
        ],
        data,
      ),
    });
    return r;
  };
  const one = update(5, 9).calls.filter(([name]) => name === 'relationPagePatch');
  assert.equal(one.length, 1);
  assert.deepEqual(decodePagePatch(one[0]![6] as Buffer), [
    {kind: 'mask', offset: 24 + 2, and: 0b1111_0011, or: 0},
    {kind: 'mask', offset: 24 + 1, and: 0b1111_0011, or: 0},
  ]);
  const two = update(5, 32672 + 4).calls.filter(([name]) => name === 'relationPagePatch');
  assert.deepEqual(
    two.map((c) => [c[5], decodePagePatch(c[6] as Buffer)]),
    [
      [1, [{kind: 'mask', offset: 25, and: 0b1111_1100, or: 0}]],
      [0, [{kind: 'mask', offset: 25, and: 0b1111_0011, or: 0}]],
    ],
  );
});

test('a heap lock clears only the all-frozen bit; a map page that does not exist has nothing to clear', () => {
  const r = new Recorder();
  r.sizes.set('1663/5/100/0', 100_000);
  r.sizes.set('1663/5/100/2', 1);
  const data = Buffer.alloc(8);
  data[7] = 1;
  r.interpret({rmid: rmgr.heap, info: 0x60, body: blocks([{id: 0, rel: 100, block: 2}], data)});
  r.interpret({rmid: rmgr.heap, info: 0x60, body: blocks([{id: 0, rel: 100, block: 40_000}], data)});
  const patches = r.calls.filter(([name]) => name === 'relationPagePatch');
  assert.equal(patches.length, 1);
  assert.deepEqual(decodePagePatch(patches[0]![6] as Buffer), [{kind: 'mask', offset: 24, and: 0b1101_1111, or: 0}]);
});

test('what cannot be interpreted is an error that names record, resource manager and position; nothing is done', () => {
  const cases: [Parameters<Recorder['interpret']>[0], RegExp][] = [
    [
      {rmid: 130, info: 0, body: mainDataBody(Buffer.alloc(4))},
      /at 0\/1F00 \(resource manager 130 custom, info 0x00.*custom resource managers are not supported/,
    ],
    [
      {rmid: rmgr.btree, info: 0xf0, body: mainDataBody(Buffer.alloc(4))},
      /resource manager 11 Btree, info 0xf0.*unknown type/,
    ],
    [{rmid: rmgr.transaction, info: 0x80, body: mainDataBody(Buffer.alloc(9))}, /Transaction.*too early/],
    [{rmid: rmgr.transaction, info: 0x30, body: mainDataBody(Buffer.alloc(8))}, /does not say which/],
    [{rmid: rmgr.transaction, info: 0x80, body: mainDataBody(u32s(0, 0, 2, 0xffffffff))}, /too early/],
    [{rmid: rmgr.multiXact, info: 0x20, body: mainDataBody(u32s(1, 1, 0xffffffff))}, /members announced/],
    [{rmid: rmgr.xlog, info: 0x60, body: mainDataBody(u32s(100, 8, 10, 0, 64, 0, 0))}, /wal_level = minimal/],
    [{rmid: rmgr.relMap, info: 0, body: mainDataBody(u32s(5, 1663, 400))}, /relation map of 400 bytes/],
    [
      {rmid: rmgr.xlog, info: 0, body: mainDataBody(u32s(0, 0, 2, ...Array.from({length: 19}, () => 0)))},
      /timeline 2, expected 1/,
    ],
    [{rmid: rmgr.xlog, info: 0xb0, body: blocks([{id: 0, rel: 1, block: 0}], Buffer.alloc(0))}, /block 0 has no image/],
    [{rmid: rmgr.heap, info: 0, body: mainDataBody(insertFlags(1))}, /block 0 is missing/],
    [
      {rmid: rmgr.generic, info: 0, body: blocks([{id: 0, rel: 1, block: 0xffffffff}], Buffer.alloc(0))},
      /block 0 has number 4294967295/,
    ],
  ];
  for (const [record, message] of cases) {
    const r = new Recorder();
    const outcome = r.interpret({...record, xid: 5_000_000});
    assert.ok(outcome.kind === 'error', String(message));
    assert.match(outcome.error.message, message);
    assert.deepEqual(r.calls, []);
    assert.equal(r.checkpoint.control.checkPoint.nextXid, 1_000_000);
  }
});

test('the next transaction id is rounded up, wraps into the next epoch, and skips special ids', () => {
  const r = new Recorder();
  const {checkpoint} = r;
  checkpoint.advanceNextXid(999_999);
  assert.equal(checkpoint.takeChange(), undefined);
  checkpoint.advanceNextXid(1_000_000);
  assert.equal(checkpoint.control.checkPoint.nextXid, 1_000_064);
  checkpoint.advanceNextXid(1_000_063);
  assert.equal(checkpoint.control.checkPoint.nextXid, 1_000_064);
  checkpoint.control.checkPoint.nextXid = 2 ** 32 - 10;
  checkpoint.advanceNextXid(0xfffffffe);
  assert.equal(checkpoint.control.checkPoint.nextXid, 2 ** 32 + 3);
  checkpoint.advanceNextXid(0xfffffff0);
  assert.equal(checkpoint.control.checkPoint.nextXid, 2 ** 32 + 3);
  checkpoint.advanceNextXid(3);
  assert.equal(checkpoint.control.checkPoint.nextXid, 2 ** 32 + 128);
  checkpoint.origins.set(3, 0xffffffffffffffffn);
  checkpoint.preInitializedOffsetsPage = 9;
  const copy = CheckpointState.decode(checkpoint.encode());
  assert.deepEqual(copy.encode(), checkpoint.encode());
  assert.throws(() => CheckpointState.decode(checkpoint.encode().subarray(0, 100)), /at least/);
});

test('WAL of an older minor release: the next offsets page is made ahead, and its zero record passed over', () => {
  const r = new Recorder();
  r.slruPages.add('1/0');
  r.slruPages.add('2/0');
  r.interpret({rmid: rmgr.multiXact, info: 0x20, body: mainDataBody(u32s(2047, 100, 2, 700, 1, 701, 4))});
  assert.deepEqual(
    r.calls
      .filter(([name]) => name === 'slruPagePatch')
      .map((c) => [c[1], c[2], decodePagePatch(c[3] as Buffer), c[4]]),
    [
      [1, 0, [{kind: 'set', offset: 2047 * 4, bytes: u32s(100)}], true],
      [1, 1, [{kind: 'set', offset: 0, bytes: u32s(102)}], false],
      [
        2,
        0,
        [
          {kind: 'set', offset: 25 * 20 + 4, bytes: u32s(700)},
          {kind: 'mask', offset: 25 * 20, and: 0, or: 1},
          {kind: 'set', offset: 25 * 20 + 8, bytes: u32s(701)},
          {kind: 'mask', offset: 25 * 20 + 1, and: 0, or: 4},
        ],
        true,
      ],
    ],
  );
  r.calls.length = 0;
  r.interpret({rmid: rmgr.multiXact, info: 0x00, body: mainDataBody(u32s(1))});
  assert.deepEqual(r.names(), ['putCheckpointState']);
  r.calls.length = 0;
  r.interpret({rmid: rmgr.multiXact, info: 0x00, body: mainDataBody(u32s(1))});
  assert.deepEqual(r.names(), ['slruPageZero']);
});

test('SLRU truncation drops the segments before the cut-off, around the end of the number space too', () => {
  const drops = (rmid: number, info: number, ...data: number[]): unknown[][] => {
    const r = new Recorder();
    r.interpret({rmid, info, body: mainDataBody(u32s(...data))});
    return r.calls.filter(([name]) => name === 'slruDropPages').map((c) => c.slice(1));
  };
  assert.deepEqual(drops(rmgr.clog, 0x10, 100, 100 * 32768, 1), [
    [0, 131072 - (65536 - 96), 131072],
    [0, 0, 96],
  ]);
  assert.deepEqual(drops(rmgr.clog, 0x10, 70_000, 5, 1), [[0, 69_984 - 65536, 69_984]]);
  // Members: exactly the segments between the two offsets; 52,352 members a segment.
  assert.deepEqual(drops(rmgr.multiXact, 0x30, 1, 0, 3000, 10, 3 * 52352 + 1)[0], [2, 0, 96]);
  assert.deepEqual(
    drops(rmgr.multiXact, 0x30, 1, 0, 3000, 4294967295 - 10, 52352 * 2).filter(([kind]) => kind === 2),
    [
      [2, 82040 * 32, 2625285 + 1],
      [2, 0, 64],
    ],
  );
  // All of the freed half is dropped when the cut-off segment is the first.
  assert.deepEqual(drops(rmgr.clog, 0x10, 5, 5 * 32768, 1), [[0, 65536, 131072]]);
});

test('CREATE DATABASE by file copy asks the driver to wait', () => {
  const r = new Recorder();
  assert.deepEqual(r.interpret({rmid: rmgr.database, info: 0, body: mainDataBody(u32s(10, 1663, 4, 1663))}), {
    kind: 'applied',
    barrier: true,
  });
  assert.deepEqual(r.calls, [['copyDatabase', 1663, 4, 1663, 10]]);
});

test('a relation brings the directory of its database, where there is none, in any tablespace but that of shared relations', () => {
  const created = (...relation: number[]): unknown[][] => {
    const r = new Recorder();
    r.interpret({rmid: rmgr.storage, info: 0x10, body: mainDataBody(u32s(...relation, 0))});
    return r.calls;
  };
  assert.deepEqual(created(20000, 5, 300), [
    ['createDatabase', 20000, 5, false],
    ['createRelation', 20000, 5, 300, 0],
  ]);
  // A database that lives in another tablespace, and one of its relations in pg_default.
  assert.deepEqual(created(1663, 6, 300), [
    ['createDatabase', 1663, 6, false],
    ['createRelation', 1663, 6, 300, 0],
  ]);
  assert.deepEqual(created(1663, 5, 300), [['createRelation', 1663, 5, 300, 0]]);
  assert.deepEqual(created(1664, 0, 300), [['createRelation', 1664, 0, 300, 0]]);
  // By a page of it, as well as by its creation.
  const r = new Recorder();
  r.directories.clear();
  r.interpret({rmid: rmgr.heap, info: 0, body: blocks([{id: 0, rel: 100, block: 0}], insertFlags(0))});
  assert.deepEqual(r.names().slice(0, 2), ['createDatabase', 'createRelation']);
});

test('a database is made with its version file where a relation has brought the directory before', () => {
  const r = new Recorder();
  r.interpret({rmid: rmgr.database, info: 0x10, body: mainDataBody(u32s(5, 1663))});
  assert.deepEqual(r.calls, [['createDatabase', 1663, 5, true]]);
});

test('whatever a record holds, the answer is a value: applied or an error, and an error leaves no trace', () => {
  fc.assert(
    fc.property(
      fc.nat(22),
      fc.nat(15),
      fc.uint8Array({maxLength: 120}),
      fc.boolean(),
      (rmid, opcode, data, withBlock) => {
        const r = new Recorder();
        const main = Buffer.from(data);
        const body = withBlock ? blocks([{id: 0, rel: 100, block: 9}], main) : mainDataBody(main);
        const outcome = r.interpret({rmid: rmid === 22 ? 200 : rmid, info: opcode << 4, xid: 5, body});
        if (outcome.kind === 'error') assert.deepEqual(r.calls, []);
        else assert.equal(outcome.kind, 'applied');
      },
    ),
    {numRuns: 5000},
  );
});
