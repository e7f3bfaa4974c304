/** WAL goes to the object store once, is trimmed only when that is safe, and is read from there by whoever needs it. */
import assert from 'node:assert/strict';
import {WalArchiveError, walFooterBytes} from '#objectstore/wal-archive.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {SeededRandom} from '#runtime/random.ts';
import {onStores} from '../objectstore/stores.ts';
import {Cell, Writer, mebibyte, startLsn, until} from './cell.ts';

const segmentSize = 16 * mebibyte;
const firstSegment = Math.floor(startLsn / segmentSize);

onStores('whole segments are archived by one member, and trimmed when a pageserver has passed them', async (store) => {
  await using cell = await Cell.create({
    store,
    config: {archive: {partialAfterMs: 3_600_000, evictAfterMs: 3_600_000, takeOverMs: 60_000}},
  });
  await cell.createTimeline();
  const puts: string[] = [];
  cell.store.decide = (operation, key) => {
    if (operation === 'put' && key.startsWith('wal/')) puts.push(key);
    return undefined;
  };
  const writer = await Writer.elect(cell, [1, 2, 3]);
  const wal = await writer.write([100, 18 * mebibyte, 50, 18 * mebibyte, 7]);
  const third = ((firstSegment + 2) * segmentSize) as Lsn;
  await until(async () => (await cell.lsn(1, 'archivedLsn')) === third);
  for (const nodeId of [2, 3]) await until(async () => (await cell.lsn(nodeId, 'archivedLsn')) === third);
  // Nothing else was put. That one member does it is archiver.test.ts's: one that has not heard yet that the others have the
  // WAL too archives it as well, with the same bytes.
  assert.deepEqual(
    [...new Set(puts.filter((key) => !key.endsWith('.json')).map((key) => key.slice(-24)))],
    ['000000010000000100000001', '000000010000000100000002'],
  );
  // Archived is not enough.
  for (const nodeId of [1, 2, 3]) assert.equal(cell.walFiles(nodeId).length, 3);
  await cell.pageserverHas(2, (third - 5) as Lsn);
  for (const nodeId of [1, 2, 3]) await until(() => cell.walFiles(nodeId).length === 2);
  await cell.pageserverHas(2, writer.lsn);
  for (const nodeId of [1, 2, 3]) {
    await until(() => cell.walFiles(nodeId).length === 1);
    assert.equal(await cell.lsn(nodeId, 'localStartLsn'), third);
    assert.ok(
      (await cell.read(nodeId, startLsn, writer.lsn)).equals(wal),
      `node ${nodeId} gives all WAL, trimmed or not`,
    );
  }
  // A restart believes the control file, and nothing that was dropped is missed.
  await cell.stop(3);
  await cell.start(3);
  assert.equal(await cell.lsn(3, 'flushLsn'), writer.lsn);
  const more = await writer.write([3000], {to: [1, 2]});
  assert.ok((await cell.read(1, startLsn, writer.lsn)).equals(Buffer.concat([wal, more])));
  writer.close();
});

onStores('a branch that rests leaves the local disk, and wakes where it was', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  let writer = await Writer.elect(cell, [1, 2, 3]);
  const parts = [await writer.write([100, 5000, 3 * mebibyte])];
  const rest = async (): Promise<void> => {
    writer.close();
    await cell.pageserverHas(1, writer.lsn);
    for (const nodeId of [1, 2, 3]) {
      await until(() => cell.walFiles(nodeId).length === 0);
      assert.equal(await cell.lsn(nodeId, 'localStartLsn'), writer.lsn);
      assert.equal((await cell.status(nodeId))['localBytes'], 0);
    }
  };
  await rest();
  // Twice more in the same segment, then over its end: what is gone from the disk is part of the whole segment's object.
  for (const payloads of [[10, 20_000], [77], [15 * mebibyte, 9]]) {
    writer = await Writer.elect(cell, [1, 2, 3]);
    assert.equal(writer.lsn, startLsn + Buffer.concat(parts).length);
    parts.push(await writer.write(payloads));
    await rest();
    assert.ok((await cell.read(2, startLsn, writer.lsn)).equals(Buffer.concat(parts)));
  }
  await until(async () => (await cell.archive.list()).length === 2); // older parts go beside
  const pieces = await cell.archive.list();
  assert.deepEqual(
    pieces.map((piece) => [piece.segment - firstSegment, piece.partialTerm]),
    [
      [0, undefined],
      [1, 4],
    ],
    'one whole segment and one part; older parts are gone',
  );
  for (const piece of pieces) await cell.archive.get(piece);
  for (const nodeId of [1, 2, 3]) {
    await cell.stop(nodeId);
    await cell.start(nodeId);
    assert.equal(await cell.lsn(nodeId, 'flushLsn'), writer.lsn);
  }
});

onStores('one that was away when the others came to rest hears from them what it needs to rest too', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const writer = await Writer.elect(cell, [1, 2, 3]);
  await writer.write([100, 5000]);
  writer.close();
  for (const nodeId of [1, 2, 3]) await until(async () => (await cell.lsn(nodeId, 'archivedLsn')) === writer.lsn);
  await cell.stop(3);
  await cell.pageserverHas(1, writer.lsn);
  for (const nodeId of [1, 2]) await until(() => cell.walFiles(nodeId).length === 0);
  await cell.start(3);
  await until(() => cell.walFiles(3).length === 0);
  assert.equal(await cell.lsn(3, 'remoteConsistentLsn'), writer.lsn);
});

onStores('a store that fails before or after the effect delays, and loses nothing', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const random = new SeededRandom(4);
  cell.store.decide = () => {
    const draw = random.float();
    return draw < 0.15 ? 'before' : draw < 0.3 ? 'after' : undefined;
  };
  const writer = await Writer.elect(cell, [1, 2, 3]);
  const wal = await writer.write([100, 17 * mebibyte, 50]);
  writer.close();
  await cell.pageserverHas(3, writer.lsn);
  for (const nodeId of [1, 2, 3]) await until(() => cell.walFiles(nodeId).length === 0);
  cell.store.decide = () => undefined;
  assert.ok((await cell.read(1, startLsn, writer.lsn)).equals(wal));
  assert.equal(await cell.archive.endLsn(startLsn), writer.lsn);
});

onStores('no put at all: WAL stays, and says why; it goes when the store is back', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  cell.store.decide = (operation) => (operation === 'put' ? 'before' : undefined);
  const writer = await Writer.elect(cell, [1, 2, 3]);
  await writer.write([100, 17 * mebibyte]);
  await cell.pageserverHas(1, writer.lsn);
  await until(async () =>
    (await Promise.all([1, 2, 3].map(async (n) => (await cell.status(n))['archiveError']))).some(
      (error) => typeof error === 'string' && /refused by the test/.test(error),
    ),
  );
  for (const nodeId of [1, 2, 3]) assert.equal(cell.walFiles(nodeId).length, 2);
  cell.store.decide = () => undefined;
  for (const nodeId of [1, 2, 3]) await until(() => cell.walFiles(nodeId).length === 1);
  writer.close();
});

onStores('another history under the name of a segment: an alarm, and nothing is trimmed', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const segment = firstSegment;
  const endLsn = ((segment + 1) * segmentSize) as Lsn;
  await cell.archive.put(
    {segment, startLsn, endLsn, partialTerm: undefined},
    Buffer.alloc(endLsn - startLsn + walFooterBytes, 1),
  );
  const writer = await Writer.elect(cell, [1, 2, 3]);
  await writer.write([100, 17 * mebibyte]);
  await cell.pageserverHas(1, writer.lsn);
  await until(async () =>
    (await Promise.all([1, 2, 3].map(async (n) => (await cell.status(n))['archiveError']))).some(
      (error) => typeof error === 'string' && /holds other WAL/.test(error),
    ),
  );
  for (const nodeId of [1, 2, 3]) {
    assert.equal(await cell.lsn(nodeId, 'archivedLsn'), startLsn);
    assert.equal(cell.walFiles(nodeId).length, 2);
  }
  writer.close();
});

onStores('a damaged object is found', async (store) => {
  await using cell = await Cell.create({store, withBroker: false});
  const piece = {segment: firstSegment, startLsn, endLsn: (startLsn + 5000) as Lsn, partialTerm: 1};
  await cell.archive.put(piece, Buffer.alloc(5000 + walFooterBytes, 3));
  const key = cell.archive.key(piece);
  const object = await cell.store.get(key);
  assert.deepEqual(await cell.archive.list(), [piece]);
  for (const at of [0, 4999, 5001, 5010, 5015, 5020, 5036]) {
    const damaged = Buffer.from(object);
    damaged[at]! ^= 4;
    await cell.store.delete([key]);
    await cell.store.put(key, damaged);
    await assert.rejects(async () => await cell.archive.get(piece), WalArchiveError, `byte ${at}`);
  }
  await cell.store.delete([key]);
  await cell.store.put(key, object.subarray(0, 4000));
  await assert.rejects(async () => await cell.archive.verify(piece), WalArchiveError);
});

onStores('a deleted branch leaves nothing in the object store', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const writer = await Writer.elect(cell, [1, 2, 3]);
  await writer.write([100, 17 * mebibyte]);
  await until(async () => (await cell.archive.list()).length > 0);
  // Excluding or deleting one member's copy leaves the archive alone.
  assert.equal((await cell.http(3, 'DELETE', `/${cell.timelineId}`)).status, 200);
  assert.ok((await cell.archive.list()).length > 0);
  await Promise.all(
    [1, 2, 3].map(async (nodeId) => {
      assert.equal((await cell.http(nodeId, 'DELETE', `/${cell.timelineId}?archive=delete`)).status, 200);
    }),
  );
  assert.deepEqual(await cell.store.list('wal/'), []);
  writer.close();
});
