/** WAL that a safekeeper lacks comes from its peers, without a compute; and from the archive when nobody has a disk left. */
import assert from 'node:assert/strict';
import {rmSync} from 'node:fs';
import {join} from 'node:path';
import type {Lsn} from '#postgres/lsn.ts';
import {formatLsn, parseLsn} from '#postgres/lsn.ts';
import {segmentFileName} from '#postgres/wal/segment.ts';
import {onStores} from '../objectstore/stores.ts';
import {Cell, Writer, makeWal, mebibyte, startLsn, until} from './cell.ts';

const segmentSize = 16 * mebibyte;

onStores('a member that was away gets what was committed from its peers, without a compute', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const writer = await Writer.elect(cell, [1, 2, 3]);
  const parts = [await writer.write([1000, 2000])];
  await cell.stop(3);
  parts.push(await writer.write([18 * mebibyte, 77], {to: [1, 2]}));
  writer.close();
  // The peers have it in the archive only.
  await cell.pageserverHas(1, writer.lsn);
  for (const nodeId of [1, 2]) await until(() => cell.walFiles(nodeId).length === 0);
  await cell.start(3);
  await until(async () => (await cell.lsn(3, 'commitLsn')) === writer.lsn);
  assert.equal((await cell.status(3))['term'], 1);
  assert.ok((await cell.read(3, startLsn, writer.lsn)).equals(Buffer.concat(parts)));
  await cell.stop(3);
  await cell.start(3);
  assert.equal(await cell.lsn(3, 'flushLsn'), writer.lsn, 'and it is durable');
});

onStores('a tail that was never committed gives way to what was', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const first = await Writer.elect(cell, [1, 2, 3]);
  const committed = await first.write([500]);
  const borderLsn = first.lsn;
  await first.write([3000, 3000, 3000], {to: [1], commit: false});
  first.close();
  await cell.stop(1);
  const second = await Writer.elect(cell, [2, 3]);
  assert.equal(second.lsn, borderLsn);
  const other = await second.write([10, 6 * mebibyte]);
  second.close();
  await cell.start(1);
  await until(async () => (await cell.lsn(1, 'commitLsn')) === second.lsn);
  const status = await cell.status(1);
  assert.equal(status['term'], 2);
  assert.equal(status['lastLogTerm'], 2);
  assert.ok((await cell.read(1, startLsn, second.lsn)).equals(Buffer.concat([committed, other])));
  // The next compute finds three equal members.
  const third = await Writer.elect(cell, [1, 2, 3]);
  assert.equal(third.lsn, second.lsn);
  third.close();
});

onStores('a compute that comes while a peer is read takes over', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const first = await Writer.elect(cell, [1, 2, 3]);
  await cell.stop(3);
  const parts = [await first.write([60 * mebibyte], {to: [1, 2]})];
  first.close();
  await cell.start(3);
  await until(
    async () => (await cell.lsn(3, 'flushLsn')) > startLsn || (await cell.lsn(3, 'commitLsn')) > startLsn,
    20_000,
  ).catch(() => {});
  const second = await Writer.elect(cell, [1, 2]);
  parts.push(await second.write([100, 200]));
  await until(async () => (await cell.lsn(3, 'commitLsn')) === second.lsn);
  assert.ok((await cell.read(3, startLsn, second.lsn)).equals(Buffer.concat(parts)));
  second.close();
});

onStores('a new node copies a timeline, local WAL and promises', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const writer = await Writer.elect(cell, [1, 2, 3]);
  const wal = await writer.write([100, 40 * mebibyte, 5]);
  const tail = await writer.write([3000], {commit: false});
  await cell.pageserverHas(1, writer.lsn);
  await until(() => cell.walFiles(1).length === 1);
  await cell.start(4);
  const {status, json} = await cell.http(4, 'POST', `/${cell.timelineId}/pull`, {
    membership: cell.membership,
    from: [{nodeId: 9, host: '127.0.0.1', port: 1}, cell.member(1)],
  });
  assert.equal(status, 200, JSON.stringify(json));
  assert.deepEqual(json, {
    generation: 1,
    term: 1,
    lastLogTerm: 1,
    flushLsn: formatLsn(writer.lsn),
    commitLsn: formatLsn((startLsn + wal.length) as Lsn),
  });
  assert.equal(cell.walFiles(4).length, 1);
  assert.ok(
    (await cell.read(4, startLsn, (startLsn + wal.length) as Lsn)).equals(wal),
    'from the archive, and its own',
  );
  assert.equal(tail.length > 0, true);
  // Asked again: nothing more is done.
  const again = await cell.http(4, 'POST', `/${cell.timelineId}/pull`, {
    membership: cell.membership,
    from: [cell.member(1)],
  });
  assert.equal(again.status, 200);
  // A member may not.
  const member = await cell.http(2, 'POST', `/${'e'.repeat(32)}/pull`, {
    membership: cell.membership,
    from: [cell.member(1)],
  });
  assert.equal(member.json['code'], 'not-pullable');
  // Out again, and in again; but not by `create`.
  const without = {generation: 3, members: [1, 2, 3].map((n) => cell.member(n))};
  assert.equal((await cell.http(4, 'POST', `/${cell.timelineId}/exclude`, {membership: without})).status, 200);
  assert.equal((await cell.http(4, 'GET', `/${cell.timelineId}`)).status, 404);
  const create = {timelineId: cell.timelineId, startLsn: formatLsn(startLsn), members: cell.membership.members};
  assert.equal((await cell.http(4, 'POST', '', create)).status, 410);
  await cell.stop(4);
  await cell.start(4);
  assert.equal((await cell.http(4, 'POST', '', create)).status, 410);
  assert.equal(
    (await cell.http(4, 'POST', `/${cell.timelineId}/pull`, {membership: cell.membership, from: [cell.member(2)]}))
      .status,
    200,
  );
  assert.equal((await cell.http(4, 'DELETE', `/${cell.timelineId}`)).status, 200);
  assert.equal(
    (await cell.http(4, 'POST', `/${cell.timelineId}/pull`, {membership: cell.membership, from: [cell.member(2)]}))
      .status,
    410,
  );
  // A configuration of the control plane is durable, and only newer ones are taken.
  const put = async (membership: unknown): Promise<number> =>
    (await cell.http(3, 'PUT', `/${cell.timelineId}/membership`, {membership, minTerm: 5})).status;
  assert.equal(await put(without), 200);
  assert.equal(await put(without), 200);
  assert.equal(await put(cell.membership), 409);
  assert.equal(await put({generation: 4, members: 'x'}), 400);
  await cell.stop(3);
  await cell.start(3);
  assert.equal((await cell.status(3))['term'], 5);
  writer.close();
});

onStores(
  'all three disks lost: the branch comes back to the last archived record, and the API says which',
  async (store) => {
    await using cell = await Cell.create({store});
    await cell.createTimeline();
    const writer = await Writer.elect(cell, [1, 2, 3]);
    const parts = [await writer.write([100, 18 * mebibyte, 33])];
    await until(async () => (await cell.lsn(1, 'archivedLsn')) === writer.lsn);
    // This is lost: it does not come to be archived, but for the beginning of a record that a whole segment ends with.
    const segmentEnd = Math.ceil(writer.lsn / segmentSize) * segmentSize;
    parts.push(await writer.write([700, 200]));
    const keptLsn = writer.lsn;
    const lostSegment = segmentFileName(1, segmentEnd / segmentSize);
    cell.store.decide = (operation, key) => (operation === 'put' && key.includes(lostSegment) ? 'before' : undefined);
    await writer.write([segmentEnd - writer.lsn + 100_000]);
    await until(async () => (await cell.lsn(1, 'archivedLsn')) === segmentEnd);
    writer.close();
    for (const nodeId of [1, 2, 3]) {
      await cell.stop(nodeId);
      rmSync(join(cell.dataDir(nodeId), cell.tenantId), {recursive: true});
    }
    cell.store.decide = () => undefined;
    for (const nodeId of [1, 2, 3]) await cell.start(nodeId);
    assert.equal((await cell.http(1, 'GET', `/${cell.timelineId}`)).status, 404);
    const point = await cell.http(2, 'GET', `/${cell.timelineId}/archive`);
    assert.equal(point.status, 200, JSON.stringify(point.json));
    assert.equal(point.json['restoreLsn'], formatLsn(keptLsn));
    assert.equal(point.json['archivedLsn'], formatLsn(segmentEnd as Lsn));
    const membership = {...cell.membership, generation: 2};
    for (const nodeId of [1, 2, 3]) {
      const {status, json} = await cell.http(nodeId, 'POST', `/${cell.timelineId}/restore_from_archive`, {membership});
      assert.equal(status, 201, JSON.stringify(json));
      assert.equal(json['lsn'], formatLsn(keptLsn));
    }
    assert.equal((await cell.http(1, 'POST', `/${cell.timelineId}/restore_from_archive`, {membership})).status, 200);
    const kept = Buffer.concat(parts);
    assert.ok((await cell.read(3, startLsn, keptLsn)).equals(kept));
    // And it goes on: other WAL where the lost record began, archived in its turn.
    const next = await Writer.elect(cell, [1, 2, 3], 2);
    assert.equal(next.lsn, keptLsn);
    const more = await next.write([20 * mebibyte, 9]);
    next.close();
    await cell.pageserverHas(1, next.lsn);
    for (const nodeId of [1, 2, 3]) await until(() => cell.walFiles(nodeId).length === 0);
    assert.ok((await cell.read(2, startLsn, next.lsn)).equals(Buffer.concat([kept, more])));
  },
);

onStores(
  'trimmed WAL leaves the archive, is refused to who asks for it, and the branch comes back from what is left',
  async (store) => {
    await using cell = await Cell.create({store});
    await cell.createTimeline();
    const writer = await Writer.elect(cell, [1, 2, 3]);
    const wal = await writer.write(Array.from({length: 70}, () => mebibyte));
    writer.close();
    await until(async () => (await cell.lsn(1, 'archivedLsn')) === writer.lsn);
    await cell.pageserverHas(2, writer.lsn);
    for (const nodeId of [1, 2, 3]) await until(() => cell.walFiles(nodeId).length === 0);
    const needed = Math.floor(writer.lsn / segmentSize) * segmentSize;
    const trim = async (lsn: number): Promise<Record<string, unknown>> => {
      const body = {lsn: formatLsn(lsn as Lsn)};
      const {status, json} = await cell.http(2, 'POST', `/${cell.timelineId}/archive/trim`, body);
      assert.equal(status, 200, JSON.stringify(json));
      return json;
    };
    // One segment below stays, and never is more trimmed than what is archived.
    const first = needed - segmentSize;
    assert.equal((await trim(needed))['trimmedLsn'], formatLsn(first as Lsn));
    assert.equal((await trim(needed + 100 * segmentSize))['objects'], 0);
    assert.ok((await cell.read(1, first as Lsn, writer.lsn)).equals(wal.subarray(first - startLsn)));
    await assert.rejects(async () => await cell.read(1, startLsn, writer.lsn), /nor in its archive/);
    for (const nodeId of [1, 2, 3]) {
      await cell.stop(nodeId);
      rmSync(join(cell.dataDir(nodeId), cell.tenantId), {recursive: true});
      await cell.start(nodeId);
    }
    const {json} = await cell.http(3, 'GET', `/${cell.timelineId}/archive`);
    assert.equal(json['startLsn'], formatLsn(first as Lsn));
    assert.equal(json['restoreLsn'], formatLsn(writer.lsn));
    const membership = {...cell.membership, generation: 2};
    for (const nodeId of [1, 2, 3])
      assert.equal(
        (await cell.http(nodeId, 'POST', `/${cell.timelineId}/restore_from_archive`, {membership})).json['lsn'],
        formatLsn(writer.lsn),
      );
    const next = await Writer.elect(cell, [1, 2, 3], 2);
    assert.equal(next.lsn, writer.lsn);
    const more = await next.write([20 * mebibyte, 9]);
    next.close();
    assert.ok((await cell.read(2, writer.lsn, next.lsn)).equals(more));
  },
);

onStores('restored at a later LSN that a pageserver has: WAL between is not there, and says so', async (store) => {
  await using cell = await Cell.create({store});
  await cell.createTimeline();
  const writer = await Writer.elect(cell, [1, 2, 3]);
  await writer.write([100, 5000]);
  await until(async () => (await cell.lsn(1, 'archivedLsn')) === writer.lsn);
  const lost = makeWal(writer.lsn, [5000], writer.previousLsn);
  writer.close();
  for (const nodeId of [1, 2, 3]) {
    await cell.stop(nodeId);
    rmSync(join(cell.dataDir(nodeId), cell.tenantId), {recursive: true});
    await cell.start(nodeId);
  }
  const restore = async (nodeId: number, lsn: Lsn): Promise<Record<string, unknown>> =>
    (
      await cell.http(nodeId, 'POST', `/${cell.timelineId}/restore_from_archive`, {
        membership: {...cell.membership, generation: 2},
        lsn: formatLsn(lsn),
      })
    ).json;
  assert.equal((await restore(1, (writer.lsn - 8) as Lsn))['code'], 'conflict');
  for (const nodeId of [1, 2, 3]) assert.equal((await restore(nodeId, lost.endLsn))['lsn'], formatLsn(lost.endLsn));
  const next = await Writer.elect(cell, [1, 2, 3], 2);
  assert.equal(next.lsn, lost.endLsn);
  const more = await next.write([30 * mebibyte]);
  next.close();
  await cell.pageserverHas(2, next.lsn);
  for (const nodeId of [1, 2, 3]) await until(() => cell.walFiles(nodeId).length === 0);
  assert.ok((await cell.read(1, lost.endLsn, next.lsn)).equals(more));
  await assert.rejects(async () => await cell.read(1, writer.lsn, next.lsn), /starts at/);
  assert.equal(parseLsn(String((await cell.status(1))['startLsn'])), lost.endLsn);
});
