/** `pagoda wal fsck` finds what is wrong; metrics say what a safekeeper has. */
import assert from 'node:assert/strict';
import {readFileSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {fsckTimeline} from '#cli/wal/fsck.ts';
import {dumpWal} from '#cli/wal/dump.ts';
import {ArchiveSource, FolderSource, JoinedSource} from '#cli/wal/wal-source.ts';
import {systemDisk} from '#runtime/disk.ts';
import {onStores} from '../objectstore/stores.ts';
import {Cell, Writer, mebibyte, startLsn, until} from './cell.ts';

onStores('all WAL of a timeline is read; a flipped bit, a lost file, a damaged object are found', async (store) => {
  await using cell = await Cell.create({store, config: {archive: {partialAfterMs: 500, evictAfterMs: 3_600_000}}});
  await cell.createTimeline();
  const writer = await Writer.elect(cell, [1, 2, 3]);
  await writer.write([100, 17 * mebibyte, ...Array.from({length: 500}, () => 300)]);
  await until(async () => (await cell.lsn(1, 'archivedLsn')) === writer.lsn);
  await cell.pageserverHas(1, writer.lsn);
  await until(() => [1, 2, 3].every((nodeId) => cell.walFiles(nodeId).length === 1)); // each hears it in its own time
  // What a safekeeper says in Prometheus's form.
  const metrics = await (await fetch(`http://127.0.0.1:${cell.ports.get(1)!.httpPort}/metrics`)).text();
  const labels = `{tenant="${cell.tenantId}",timeline="${cell.timelineId}"}`;
  for (const line of [
    `pagoda_safekeeper_timeline_term${labels} 1`,
    `pagoda_safekeeper_timeline_flush_lsn${labels} ${writer.lsn}`,
    `pagoda_safekeeper_timeline_commit_lsn${labels} ${writer.lsn}`,
    `pagoda_safekeeper_timeline_archived_lsn${labels} ${writer.lsn}`,
    `pagoda_safekeeper_timeline_local_start_lsn${labels} ${Math.floor(writer.lsn / 16 / mebibyte) * 16 * mebibyte}`,
  ])
    assert.ok(metrics.includes(`${line}\n`), `${line} in\n${metrics}`);
  assert.match(metrics, /pagoda_safekeeper_timeline_wal_local_bytes\{[^}]*\} [1-9]/);
  writer.close();
  for (const nodeId of [1, 2, 3]) await cell.stop(nodeId);

  const folderOf = (nodeId: number): string => join(cell.dataDir(nodeId), cell.tenantId, cell.timelineId);
  const fsck = async (): Promise<{problems: number; text: string}> => {
    const lines: string[] = [];
    const folders = [1, 2, 3].map((nodeId) => FolderSource.find(systemDisk, folderOf(nodeId))!);
    const problems = await fsckTimeline(folders, await ArchiveSource.find(cell.archive), (line) => lines.push(line));
    for (const folder of folders) folder.close();
    return {problems, text: lines.join('\n')};
  };
  const fine = await fsck();
  assert.equal(fine.problems, 0, fine.text);
  assert.match(fine.text, /the same bytes/);
  assert.match(fine.text, /archive .*: 502 records/);

  // The records over archive and local disk together.
  const records: string[] = [];
  const archive = (await ArchiveSource.find(cell.archive))!;
  const local = FolderSource.find(systemDisk, folderOf(1))!;
  await dumpWal([new JoinedSource('all', [local, archive])], {}, (line) => records.push(line));
  assert.equal(records.length, 502);
  assert.ok(records.every((line) => line.includes('desc: NOOP')));
  local.close();

  const path = join(folderOf(2), cell.walFiles(2)[0]!);
  const good = readFileSync(path);
  const flipped = Buffer.from(good);
  flipped[(writer.lsn % (16 * mebibyte)) - 4000]! ^= 1;
  writeFileSync(path, flipped);
  const damaged = await fsck();
  assert.match(damaged.text, /BAD .*sk2.*committed WAL up to .*readable only up to .*checksum/);
  assert.match(damaged.text, /BAD .*sk1.*sk2.* differ at /);
  rmSync(path);
  assert.match((await fsck()).text, /BAD .*sk2.*is missing/);
  writeFileSync(path, good);
  assert.equal((await fsck()).problems, 0);

  const piece = (await cell.archive.list())[0]!;
  const key = cell.archive.key(piece);
  const object = await cell.store.get(key);
  const bad = Buffer.from(object);
  bad[12_345]! ^= 8;
  await cell.store.delete([key]);
  await cell.store.put(key, bad);
  assert.match((await fsck()).text, /BAD .*fails its checksum/);
  await cell.store.delete([key]);
  assert.match((await fsck()).text, /BAD .*is missing, but there is some up to/);
  assert.ok(startLsn > 0);
});
