import assert from 'node:assert/strict';
import {mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {type TestContext, test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {segmentFileName, walSegmentSizeDefault as segmentSize} from '#postgres/wal/segment.ts';
import {systemDisk} from '#runtime/disk.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import {flushMarkName} from '#safekeeper/flush-mark.ts';
import {makeNoopWal} from '#safekeeper/noop-wal.testing.ts';
import {WalRecordBoundary} from '#safekeeper/record-boundary.ts';
import {TimelineStorage, initialState} from '#safekeeper/timeline-storage.ts';
import {WalLostError} from '#safekeeper/wal-store.ts';

const startLsn = (5 * segmentSize + 0x2028) as Lsn;

const ids = {tenantId: '1'.repeat(32), timelineId: '2'.repeat(32)};

function open(directory: string): TimelineStorage {
  return TimelineStorage.open({disk: systemDisk, directory, ...ids}, new WalRecordBoundary());
}

function folder(t: TestContext, changes: Partial<AcceptorState>): string {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-storage-'));
  t.after(() => rmSync(dir, {recursive: true, force: true}));
  const directory = join(dir, 'timeline');
  const state = initialState({
    ...ids,
    systemId: '7',
    pgVersion: 150018,
    startLsn,
    membership: {generation: 1, members: [{nodeId: 1, host: 'localhost', port: 1}], newMembers: []},
  });
  TimelineStorage.create({disk: systemDisk, directory}, {...state, ...changes});
  return directory;
}

function put(directory: string, segment: number, bytes: Buffer): void {
  writeFileSync(join(directory, segmentFileName(1, segment)), bytes);
}

const segments = (directory: string): string[] => readdirSync(directory).filter((name) => name.length === 24);

test('a crash between the control file and the removal of archived WAL: the next start removes it', (t) => {
  const endLsn = (7 * segmentSize + 4096) as Lsn;
  const rest = {commitLsn: endLsn, archivedLsn: endLsn, localStartLsn: endLsn};
  const directory = folder(t, rest);
  for (const segment of [5, 6]) put(directory, segment, Buffer.alloc(segmentSize, 1));
  put(directory, 7, Buffer.concat([Buffer.alloc(4096, 1), Buffer.alloc(4096)]));
  const storage = open(directory);
  assert.equal(storage.flushLsn, endLsn);
  assert.deepEqual(segments(directory), []);
  // What comes next begins where WAL ended, in a file with a hole; the hole is not read as WAL.
  storage.apply({kind: 'write', lsn: endLsn, bytes: Buffer.from('abc')});
  assert.equal(storage.wal.read(endLsn, 3).toString(), 'abc');
  assert.equal(storage.wal.read((endLsn - 100) as Lsn, 3).length, 0);
  storage.close();
});

test('trimmed up to a segment: what is left begins there, and must be there', (t) => {
  const trimmed = {
    commitLsn: (6 * segmentSize + 500) as Lsn,
    archivedLsn: (6 * segmentSize) as Lsn,
    localStartLsn: (6 * segmentSize) as Lsn,
  };
  const directory = folder(t, trimmed);
  put(directory, 5, Buffer.alloc(segmentSize, 1));
  put(directory, 6, Buffer.alloc(500, 1));
  const storage = open(directory);
  assert.equal(storage.flushLsn, trimmed.commitLsn);
  assert.deepEqual(segments(directory), [segmentFileName(1, 6)]);
  storage.close();
  put(directory, 6, Buffer.alloc(499, 1));
  assert.throws(() => open(directory), WalLostError);
});

test('a control file of another timeline is not taken for its own, and touches no WAL', (t) => {
  const directory = folder(t, {timelineId: '3'.repeat(32)});
  const wal = Buffer.alloc(0x3000, 1);
  put(directory, 5, wal);
  assert.throws(() => open(directory), /is that of tenant 1+ timeline 3+/);
  assert.deepEqual(readFileSync(join(directory, segmentFileName(1, 5))), wal);
});

test('rot of WAL that was acknowledged and is not known to be committed is told from a torn tail', (t) => {
  const directory = folder(t, {});
  const {bytes, ends} = makeNoopWal(startLsn, [100, 200, 300]);
  const storage = open(directory);
  storage.apply({kind: 'write', lsn: startLsn, bytes});
  for (const file of storage.beginSync()) file.syncNow();
  storage.endSync();
  const [first, second, third] = ends as [number, number, number] as [Lsn, Lsn, Lsn];
  storage.apply({kind: 'mark', lsn: second});
  storage.close();
  const path = join(directory, segmentFileName(1, 5));
  const flip = (lsn: Lsn): void => {
    const wal = readFileSync(path);
    wal[(lsn % segmentSize) - 40]! ^= 1;
    writeFileSync(path, wal);
  };
  flip(second);
  const before = readFileSync(path);
  assert.throws(
    () => open(directory),
    (e) => e instanceof WalLostError && /must be replaced/.test(e.message),
  );
  assert.deepEqual(readFileSync(path), before, 'what is left can be looked at');
  flip(second);
  // Behind the mark nothing was promised.
  flip(third);
  const torn = open(directory);
  assert.equal(torn.flushLsn, second);
  // A truncation lowers the mark, an advance raises it again.
  torn.apply({kind: 'truncate', lsn: first});
  torn.close();
  assert.equal(open(directory).flushLsn, first);
  // A damaged mark says nothing.
  const mark = readFileSync(join(directory, flushMarkName));
  mark[9]! ^= 1;
  writeFileSync(join(directory, flushMarkName), mark);
  const unmarked = open(directory);
  assert.equal(unmarked.flushLsn, first);
  unmarked.close();
});
