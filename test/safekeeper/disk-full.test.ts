/** A safekeeper process on a disk that is really full: a small tmpfs. */
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {type TestContext, test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {Cell, Writer, mebibyte, startLsn, until} from './cell.ts';

function smallDisk(
  t: TestContext,
  mebibytes: number,
): {readonly dir: string; resize(mebibytes: number): void} | undefined {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-full-'));
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${mebibytes}m`, 'tmpfs', dir], {stdio: 'ignore'});
  } catch {
    rmSync(dir, {recursive: true});
    t.skip('needs the right to mount');
    return undefined;
  }
  t.after(() => {
    execFileSync('umount', ['-l', dir]);
    rmSync(dir, {recursive: true});
  });
  return {
    dir,
    resize: (to) => execFileSync('mount', ['-o', `remount,size=${to}m`, dir], {stdio: 'ignore'}),
  };
}

/** Writes records of 1 MiB until somebody refuses; answers the bytes that were acknowledged, at the end of a record. */
async function fill(writer: Writer, nodeId: number): Promise<{readonly acknowledged: number; readonly reason: string}> {
  for (let i = 0; ; i++) {
    assert.ok(i < 200, 'the disk is full at last');
    try {
      await writer.write([mebibyte]);
    } catch (error) {
      return {acknowledged: writer.flushLsn(nodeId), reason: String(error)};
    }
  }
}

test(
  'full: nothing more is acknowledged, what was is there after kill -9, and it goes on by itself when there is space',
  {timeout: 600_000},
  async (t) => {
    const disk = smallDisk(t, 40);
    if (disk === undefined) return;
    await using cell = await Cell.create({
      processes: true,
      nodes: [1],
      withBroker: false,
      dataDir: () => join(disk.dir, 'sk'),
    });
    await cell.createTimeline([1]);
    const writer = await Writer.elect(cell, [1]);
    const {acknowledged, reason} = await fill(writer, 1);
    assert.match(reason, /no disk space for WAL/);
    assert.equal(writer.refusals.get(1)!.code, 'disk-full');
    assert.ok(acknowledged > startLsn + 20 * mebibyte);
    writer.close();
    // It answers, and promises no more than it has.
    assert.equal(await cell.lsn(1, 'flushLsn'), acknowledged);
    // A term can be promised all the same (the reserve), and refused again is what follows.
    const second = await Writer.elect(cell, [1]);
    assert.equal(second.lsn, acknowledged);
    await assert.rejects(async () => await second.write([mebibyte]), /no disk space/);
    second.close();
    await cell.stop(1); // kill -9
    await cell.start(1);
    assert.equal(await cell.lsn(1, 'flushLsn'), acknowledged);
    disk.resize(80);
    const third = await Writer.elect(cell, [1]);
    assert.equal(third.lsn, acknowledged);
    await third.write([2 * mebibyte, 5]);
    assert.equal((await cell.read(1, startLsn, third.lsn)).length, third.lsn - startLsn);
    third.close();
  },
);

test(
  'full to the last byte: what is archived can still be trimmed, and that is the space',
  {timeout: 600_000},
  async (t) => {
    const disk = smallDisk(t, 44);
    if (disk === undefined) return;
    await using cell = await Cell.create({
      processes: true,
      nodes: [1],
      withBroker: false,
      dataDir: () => join(disk.dir, 'sk'),
      config: {archive: {partialAfterMs: 3_600_000, evictAfterMs: 3_600_000}},
    });
    await cell.createTimeline([1]);
    const writer = await Writer.elect(cell, [1]);
    const {acknowledged} = await fill(writer, 1);
    writer.close();
    // Not one block is left.
    const {bavail, bsize} = statfsSync(disk.dir);
    try {
      writeFileSync(join(disk.dir, 'filler'), Buffer.alloc(bavail * bsize + mebibyte));
    } catch {
      // As intended.
    }
    assert.equal(statfsSync(disk.dir).bavail, 0);
    await cell.pageserverHas(1, acknowledged as Lsn);
    await until(() => cell.walFiles(1).length === 1);
    const second = await Writer.elect(cell, [1]);
    assert.equal(second.lsn, acknowledged);
    await second.write([3 * mebibyte]);
    assert.equal((await cell.read(1, startLsn, second.lsn)).length, second.lsn - startLsn);
    assert.ok(readFileSync(join(disk.dir, 'filler')).length >= 0);
    second.close();
  },
);
