/** The archive in a real S3 store (Ceph RGW), with failures before and after the effect on top. */
import assert from 'node:assert/strict';
import {rmSync} from 'node:fs';
import {join} from 'node:path';
import {test} from 'node:test';
import {S3ObjectStore} from '#objectstore/s3-object-store.ts';
import {formatLsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {SeededRandom} from '#runtime/random.ts';
import {Rgw} from '../objectstore/rgw.ts';
import {Cell, Writer, mebibyte, startLsn, until} from './cell.ts';

test('archived, trimmed, read back and restored on S3', {timeout: 600_000}, async () => {
  await using rgw = await Rgw.start();
  await using cell = await Cell.create({store: new S3ObjectStore(await rgw.bucket(), systemClock)});
  const random = new SeededRandom(11);
  cell.store.decide = () => {
    const draw = random.float();
    return draw < 0.1 ? 'before' : draw < 0.2 ? 'after' : undefined;
  };
  await cell.createTimeline();
  const writer = await Writer.elect(cell, [1, 2, 3]);
  const wal = await writer.write([100, 18 * mebibyte, 33]);
  writer.close();
  await cell.pageserverHas(2, writer.lsn);
  for (const nodeId of [1, 2, 3]) await until(() => cell.walFiles(nodeId).length === 0);
  assert.ok((await cell.read(1, startLsn, writer.lsn)).equals(wal));
  for (const nodeId of [1, 2, 3]) {
    await cell.stop(nodeId);
    rmSync(join(cell.dataDir(nodeId), cell.tenantId), {recursive: true});
  }
  for (const nodeId of [1, 2, 3]) {
    await cell.start(nodeId);
    const {membership} = cell;
    const {json} = await cell.http(nodeId, 'POST', `/${cell.timelineId}/restore_from_archive`, {membership});
    assert.equal(json['lsn'], formatLsn(writer.lsn), JSON.stringify(json));
  }
  const next = await Writer.elect(cell, [1, 2, 3]);
  assert.equal(next.lsn, writer.lsn);
  const more = await next.write([500]);
  assert.ok((await cell.read(3, startLsn, next.lsn)).equals(Buffer.concat([wal, more])));
  next.close();
});
