import assert from 'node:assert/strict';
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {type TestContext, test} from 'node:test';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {WalArchive} from '#objectstore/wal-archive.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {segmentFileName, walSegmentSizeDefault as segmentSize} from '#postgres/wal/segment.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import {Acceptor} from '#safekeeper/acceptor.ts';
import {safekeeperMetrics} from '#safekeeper/metrics.ts';
import {makeNoopWal} from '#safekeeper/noop-wal.testing.ts';
import {WalRecordBoundary} from '#safekeeper/record-boundary.ts';
import {ArchiveSlots, TimelineArchive} from '#safekeeper/timeline-archive.ts';
import {TimelineStorage, initialState} from '#safekeeper/timeline-storage.ts';

const ids = {tenantId: '1'.repeat(32), timelineId: '2'.repeat(32)};
const startLsn = (5 * segmentSize + 0x2028) as Lsn;
/** Two segments and a bit; a record lies across each border. */
const wal = makeNoopWal(startLsn, [...Array<number>(17).fill(1_000_000), 50_000, ...Array<number>(19).fill(1_000_000)]);
const commitLsn = wal.ends.at(-1)! as Lsn;

/**
 * A timeline with that WAL on its disk, after a byte at `rotten` was flipped; tried to archive until nothing happens. With
 * `anew`, each piece by another process.
 */
async function archived(
  t: TestContext,
  rotten?: number,
  anew = false,
): Promise<{objects: string[]; error: string | undefined}> {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-archive-'));
  t.after(() => rmSync(dir, {recursive: true, force: true}));
  const directory = join(dir, 'timeline');
  const state = initialState({
    ...ids,
    systemId: '7',
    pgVersion: 150018,
    startLsn,
    membership: {generation: 1, members: [{nodeId: 1, host: 'localhost', port: 1}], newMembers: []},
  });
  TimelineStorage.create({disk: systemDisk, directory}, {...state, commitLsn});
  for (let segment = 5; segment * segmentSize < commitLsn; segment++) {
    const from = segment * segmentSize - startLsn;
    const file = Buffer.concat([
      Buffer.alloc(Math.max(0, -from)),
      wal.bytes.subarray(Math.max(0, from), from + segmentSize),
    ]);
    if (rotten !== undefined && Math.floor(rotten / segmentSize) === segment) file[rotten % segmentSize]! ^= 1;
    writeFileSync(join(directory, segmentFileName(1, segment)), file);
  }
  const storage = TimelineStorage.open({disk: systemDisk, directory, ...ids}, new WalRecordBoundary());
  t.after(() => storage.close());
  const acceptor = new Acceptor({
    nodeId: 1,
    state: storage.state,
    flushLsn: storage.flushLsn,
    boundary: new WalRecordBoundary(),
  });
  const store = new MemoryObjectStore();
  const begin = (): TimelineArchive =>
    new TimelineArchive({
      archive: new WalArchive({store, ...ids}),
      slots: new ArchiveSlots(1),
      times: {partialAfterMs: 0},
      acceptor,
      storage,
      clock: systemClock,
      log: silentLog,
      metrics: safekeeperMetrics(),
      record(archivedLsn, localStartLsn) {
        acceptor.step({kind: 'archived', archivedLsn, localStartLsn});
        return true;
      },
    });
  let archive = begin();
  for (;;) {
    archive.tick({peers: [], remoteConsistentLsn: 0 as Lsn, readersLsn: undefined, busy: true, commitStillSinceMs: 0});
    if (!archive.isWorking) break;
    while (archive.isWorking) await systemClock.sleep(1);
    if (anew && archive.error === undefined) {
      await archive.close();
      archive = begin();
    }
  }
  await archive.close();
  assert.ok(readFileSync(join(directory, segmentFileName(1, 5))).length === segmentSize, 'the WAL stays where it is');
  return {
    objects: [...store.objects.keys()].map((key) => key.split('/').at(-1)!).filter((key) => !key.startsWith('term')),
    error: archive.error,
  };
}

const [first, second] = [segmentFileName(1, 5), segmentFileName(1, 6)];

test('whole segments and the rest are archived, records across borders checked', async (t) => {
  for (const anew of [false, true]) {
    const {objects, error} = await archived(t, undefined, anew);
    assert.equal(error, undefined);
    assert.equal(objects.length, 3);
    assert.deepEqual(objects.slice(0, 2), [first, second]);
  }
});

test('what has rotted on this disk is not archived', async (t) => {
  const border = 6 * segmentSize;
  for (const [where, rotten, objects] of [
    ['in the first segment', border - 3_000_000, []],
    ['in the record across the border, behind it', border + 100, []],
    ['in the length of what is left of it', border + 16, []],
    ['in the second segment', border + 3_000_000, [first]],
    ['in the tail', 7 * segmentSize + 1_700_000, [first, second]],
  ] as const) {
    for (const anew of [false, true]) {
      const found = await archived(t, rotten, anew);
      assert.deepEqual(found.objects, objects, where);
      assert.match(found.error ?? '', /does not decode.*Replace this safekeeper/, where);
    }
  }
});
