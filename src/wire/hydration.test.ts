import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {HydrationRequest, HydrationSource} from './hydration.ts';
import {
  allForks,
  decodeAllForks,
  decodeExtensionMetrics,
  decodeHydrationList,
  decodeHydrationRequest,
  encodeHydrationRequest,
  hydrationOp,
  HydrationProtocolError,
  HydrationResponseDecoder,
  HydrationSession,
  hydrationStatus,
} from './hydration.ts';

const request: HydrationRequest = {
  op: hydrationOp.getPages,
  fork: 0,
  count: 2,
  spcNode: 1663,
  dbNode: 5,
  relNode: 16384,
  block: 7,
  requestId: 99,
  packed: false,
};

const source: HydrationSource = {
  relSize: async (rel) => (rel.relNode === 16384 && rel.fork !== 3 ? 10 + rel.fork : undefined),
  getPages: async (_rel, block, count) => ({
    bytes: Buffer.concat(Array.from({length: Math.min(count, 10 - block)}, (_, i) => Buffer.alloc(8192, block + i))),
    release() {},
  }),
  listDb: async (spcNode, dbNode) => [{rel: {spcNode, dbNode, relNode: 4000000000, fork: 2}, blocks: 4000000001}],
  dbSize: async (dbNode) => {
    if (dbNode === 13) throw new Error('the pageserver is away');
    return dbNode === 5 ? 2 ** 33 + 5 : undefined;
  },
};

async function ask(...requests: HydrationRequest[]) {
  const decoder = new HydrationResponseDecoder();
  const written: Buffer[] = [];
  const session = new HydrationSession(source, (parts) => written.push(...parts));
  // One byte at a time: a stream may be cut anywhere.
  for (const byte of Buffer.concat(requests.map(encodeHydrationRequest))) session.receive(Buffer.from([byte]));
  while (session.unanswered > 0) await new Promise((done) => setImmediate(done));
  const bytes = Buffer.concat(written);
  return [...decoder.push(bytes.subarray(0, 20)), ...decoder.push(bytes.subarray(20))];
}

test('a request survives the wire and has the layout that extension/agent.c writes', () => {
  const bytes = encodeHydrationRequest(request);
  assert.equal(
    bytes.toString('hex'),
    '02000200' + '7f060000' + '05000000' + '00400000' + '07000000' + '63000000' + '0'.repeat(16),
  );
  assert.deepEqual(decodeHydrationRequest(bytes), request);
});

test('pages come back, fewer at the end of the fork', async () => {
  const [two, one] = await ask(request, {...request, block: 9, requestId: 100});
  assert.deepEqual([two!.status, two!.count, two!.payload.length, two!.requestId], [0, 2, 16384, 99]);
  assert.deepEqual([two!.payload[0], two!.payload[8192]], [7, 8]);
  assert.deepEqual([one!.count, one!.payload.length, one!.requestId], [1, 8192, 100]);
});

test('sizes of one fork, of all forks, of none', async () => {
  const blocks = {...request, op: hydrationOp.blocks, count: 0, block: 0};
  const [one, missing, all, none] = await ask(
    {...blocks, fork: 1},
    {...blocks, fork: 3},
    {...blocks, fork: allForks},
    {...blocks, fork: allForks, relNode: 1},
  );
  assert.equal(one!.value, 11);
  assert.equal(missing!.status, hydrationStatus.missing);
  assert.deepEqual(decodeAllForks(all!.payload), [10, 11, 12, undefined]);
  assert.equal(none!.status, hydrationStatus.missing);
});

test('lists and database sizes keep large numbers; a failing source becomes an error text', async () => {
  const empty = {...request, fork: 0, count: 0, block: 0, relNode: 0};
  const [list, size, missing, failed] = await ask(
    {...empty, op: hydrationOp.listDatabase},
    {...empty, op: hydrationOp.databaseSize},
    {...empty, op: hydrationOp.databaseSize, dbNode: 6},
    {...empty, op: hydrationOp.databaseSize, dbNode: 13},
  );
  assert.deepEqual(decodeHydrationList(list!.payload), [
    {rel: {spcNode: 1663, dbNode: 5, relNode: 4000000000, fork: 2}, blocks: 4000000001},
  ]);
  assert.equal(size!.payload.readBigUInt64LE(), 2n ** 33n + 5n);
  assert.equal(missing!.status, hydrationStatus.missing);
  assert.equal(failed!.status, hydrationStatus.error);
  assert.equal(failed!.payload.toString(), 'the pageserver is away');
});

test('bytes that are not a request are refused', () => {
  const bad = [{op: 0}, {op: 5}, {fork: 4}, {fork: allForks}, {count: 0}, {count: 65}] as const;
  for (const change of bad)
    assert.throws(
      () => decodeHydrationRequest(encodeHydrationRequest({...request, ...change})),
      HydrationProtocolError,
    );
  const session = new HydrationSession(source, () => {});
  assert.throws(
    () => session.receive(Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')),
    HydrationProtocolError,
  );
});

test('a peer that asks without end is cut off', () => {
  const session = new HydrationSession(source, () => {});
  assert.throws(() => session.receive(Buffer.concat(Array(100).fill(encodeHydrationRequest(request)))), /requests/);
});

test('after close no answer is written', async () => {
  let written = 0;
  const session = new HydrationSession(source, () => written++);
  session.receive(encodeHydrationRequest(request));
  session.close();
  while (session.unanswered > 0) await new Promise((done) => setImmediate(done));
  assert.equal(written, 0);
});

test('metrics file', () => {
  const file = Buffer.alloc(16 + 8 * 15);
  file.write('PGDMETR1');
  file.writeUInt32LE(15, 8);
  file.writeBigUInt64LE(2n ** 40n, 16);
  file.writeBigUInt64LE(7n, 16 + 8 * 12);
  assert.equal(decodeExtensionMetrics(file)?.pagesFetched, 2 ** 40);
  assert.equal(decodeExtensionMetrics(file)?.guardRecords, 7);
  assert.equal(decodeExtensionMetrics(file.subarray(0, 40)), undefined);
});
