import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {listenFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';
import type {ForkNumber} from '#postgres/relation.ts';
import {lsn} from '#postgres/lsn.ts';
import * as wire from '#wire/pages.ts';

const u32 = fc.integer({min: 0, max: 0xffffffff});

test('a request survives the wire', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('getPages', 'relSize', 'relExists', 'dbSize', 'listDb') as fc.Arbitrary<wire.PageRequestKind>,
      fc.array(u32, {minLength: 5, maxLength: 5}),
      fc.integer({min: 1, max: 64}),
      fc.integer({min: 0, max: 3}),
      fc.maxSafeNat(),
      (kind, n, count, fork, at) => {
        const request: wire.PageRequest = {
          kind,
          requestId: n[0]!,
          requestLsn: lsn(at),
          notModifiedSinceLsn: lsn(Math.floor(at / 2)),
          spcNode: n[1]!,
          dbNode: n[2]!,
          relNode: n[3]!,
          fork: fork as ForkNumber,
          blockNumber: n[4]!,
          count,
          packed: count % 2 === 1,
        };
        const decoded = wire.decodePageRequest(wire.requestFrameType(kind), wire.encodePageRequest(request));
        assert.deepEqual(decoded, request);
      },
    ),
  );
});

test('hostile requests are refused, never misread', () => {
  const good = wire.encodePageRequest({
    kind: 'getPages',
    requestId: 1,
    requestLsn: lsn(100),
    notModifiedSinceLsn: lsn(100),
    spcNode: 1663,
    dbNode: 5,
    relNode: 16384,
    fork: 0,
    blockNumber: 0,
    count: 1,
    packed: true,
  });
  const bad = (change: (b: Buffer) => void): Buffer => {
    const b = Buffer.from(good);
    change(b);
    return b;
  };
  const refused = (type: number, b: Buffer): void =>
    assert.throws(() => wire.decodePageRequest(type, b), {code: 'bad-request'});
  refused(99, good);
  refused(wire.pageFrame.getPages, good.subarray(1));
  refused(
    wire.pageFrame.getPages,
    bad((b) => b.writeUInt16LE(0, 4)),
  );
  refused(
    wire.pageFrame.getPages,
    bad((b) => b.writeUInt16LE(65, 4)),
  );
  refused(
    wire.pageFrame.getPages,
    bad((b) => b.writeUInt8(4, 6)),
  );
  refused(
    wire.pageFrame.getPages,
    bad((b) => b.fill(0xff, 8, 16)),
  );
  refused(
    wire.pageFrame.getPages,
    bad((b) => b.writeUInt32LE(101, 16)),
  );
  fc.assert(
    fc.property(fc.integer({min: 0, max: 255}), fc.uint8Array({maxLength: 64}), (type, bytes) => {
      try {
        wire.decodePageAnswer(type, Buffer.from(bytes));
      } catch (error) {
        assert.ok(error instanceof wire.PageServiceError || error instanceof RangeError);
      }
    }),
  );
});

test('client: pipelined answers in any order, errors, refusal, disconnect', async () => {
  const listener = await listenFrames({host: '127.0.0.1', port: 0}, (c) => {
    const held: wire.PageRequest[] = [];
    c.onFrame = (type, payload) => {
      if (type === wire.pageFrame.hello) {
        const hello = parseJsonFrame(payload) as {token: string};
        if (hello.token !== 'good') {
          sendJson(c, wire.pageFrame.refused, {code: 'bad-request', message: 'no such token'});
          c.close();
        } else sendJson(c, wire.pageFrame.welcome, {});
        return;
      }
      const request = wire.decodePageRequest(type, payload);
      if (request.kind === 'dbSize') return c.destroy();
      held.push(request);
      if (held.length < 4) return;
      for (const r of held.toReversed()) {
        if (r.kind === 'relSize')
          c.send(wire.pageFrame.relSizeAnswer, wire.encodeRelSizeAnswer(r.requestId, r.relNode === 1 ? 7 : undefined));
        else if (r.kind === 'listDb')
          c.send(
            wire.pageFrame.listDbAnswer,
            wire.encodeListDbAnswer(r.requestId, [{rel: {spcNode: 1, dbNode: 2, relNode: 3, fork: 2}, blocks: 9}]),
          );
        else if (r.blockNumber > 10)
          c.send(wire.pageFrame.error, wire.encodePageError(r.requestId, 'beyond-end', 'the relation ends at 10'));
        else
          c.send(
            wire.pageFrame.pages,
            wire.encodePagesHeader(r.requestId, r.count),
            ...Array.from({length: r.count}, (_, i) => Buffer.alloc(8192, r.blockNumber + i)),
          );
      }
    };
  });
  const address = {host: '127.0.0.1', port: listener.port};
  try {
    await assert.rejects(wire.PagesClient.connect(address, 'bad', 'a', 'b'), /no such token/);
    const client = await wire.PagesClient.connect(address, 'good', 'a', 'b');
    const at = {requestLsn: lsn(1000)};
    const rel = {spcNode: 1663, dbNode: 5, relNode: 1, fork: 0} as const;
    const results = await Promise.allSettled([
      client.getPages(rel, 3, 2, at),
      client.relSize(rel, at),
      client.getPages(rel, 11, 1, at),
      client.listDb(1663, 5, at),
    ]);
    assert.deepEqual(results[0], {status: 'fulfilled', value: [Buffer.alloc(8192, 3), Buffer.alloc(8192, 4)]});
    assert.deepEqual(results[1], {status: 'fulfilled', value: 7});
    assert.ok(results[2].status === 'rejected' && results[2].reason.code === 'beyond-end');
    assert.deepEqual(results[3], {
      status: 'fulfilled',
      value: [{rel: {spcNode: 1, dbNode: 2, relNode: 3, fork: 2}, blocks: 9}],
    });
    const lost = client.relSize(rel, at);
    const killer = client.dbSize(5, at);
    await assert.rejects(lost, {code: 'disconnected'});
    await assert.rejects(killer, {code: 'disconnected'});
    await client.closed;
    await assert.rejects(client.relSize(rel, at), {code: 'disconnected'});
  } finally {
    await listener.close();
  }
});
