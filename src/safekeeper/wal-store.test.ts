import assert from 'node:assert/strict';
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {type TestContext, test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {segmentFileName} from '#postgres/wal/segment.ts';
import {systemDisk} from '#runtime/disk.ts';
import {makeNoopWal} from '#safekeeper/noop-wal.testing.ts';
import {WalRecordBoundary, feedAcrossTerms} from '#safekeeper/record-boundary.ts';
import {WalLostError, WalStore} from '#safekeeper/wal-store.ts';

const segmentSize = 16 * 1024 * 1024;
const startLsn = 0x1_0100_2028 as Lsn;
const history = [{term: 0, lsn: startLsn}];

function folder(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-wal-'));
  t.after(() => rmSync(dir, {recursive: true, force: true}));
  return dir;
}

function recovered(dir: string, commitLsn: Lsn = startLsn): {store: WalStore; endLsn: Lsn} {
  const store = new WalStore({disk: systemDisk, directory: dir, startLsn});
  return {store, endLsn: store.recover(commitLsn, history, new WalRecordBoundary())};
}

test('the end of WAL is found again, over page and segment boundaries', (t) => {
  const dir = folder(t);
  const near = 0x1_02ff_e000 - startLsn - 5000;
  const {bytes, ends} = makeNoopWal(startLsn, [10, near, 9000, 1, 40_000, 3]);
  const {store} = recovered(dir);
  for (let at = 0; at < bytes.length; at += 100_001)
    store.write((startLsn + at) as Lsn, bytes.subarray(at, at + 100_001));
  store.close();
  const again = recovered(dir);
  assert.equal(again.endLsn, ends.at(-1));
  const parts: Buffer[] = [];
  for (let at = startLsn; at < again.endLsn;) {
    const part = again.store.read(at, again.endLsn - at);
    parts.push(part);
    at = (at + part.length) as Lsn;
  }
  assert.ok(Buffer.concat(parts).equals(bytes));
  again.store.close();
});

test('a tail torn at any byte of the last three records ends at a record, and nothing of it comes back (F8)', (t) => {
  const dir = folder(t);
  const {bytes, ends, rawEnds} = makeNoopWal(startLsn, [100, 8000, 30, 500, 77]);
  const path = join(dir, segmentFileName(1, Math.floor(startLsn / segmentSize)));
  const offset = startLsn % segmentSize;
  const from = ends[1]! - startLsn;
  for (let cut = from; cut <= bytes.length; cut += cut < from + 80 ? 1 : 7) {
    // Behind the tear: zeros up to 8, garbage, then the old WAL.
    const torn = Buffer.concat([Buffer.alloc(offset), bytes]);
    const garbage = offset + Math.ceil(cut / 8) * 8;
    torn.fill(0, offset + cut, garbage);
    torn.fill(0xee, Math.min(garbage, torn.length), Math.min(garbage + 8, torn.length));
    writeFileSync(path, torn);
    const {store, endLsn} = recovered(dir);
    const expected = ends[rawEnds.filter((end) => end <= startLsn + cut).length - 1]!;
    assert.equal(endLsn, expected, `cut at ${cut}`);
    store.close();
    const left = readFileSync(path);
    assert.ok(left.subarray(offset + expected - startLsn).every((b) => b === 0));
  }
});

test('truncate leaves nothing behind, also not in later segments', (t) => {
  const dir = folder(t);
  const {bytes, ends} = makeNoopWal(startLsn, [10, 20_000_000, 5, 17_000_000, 6]);
  const {store} = recovered(dir);
  store.write(startLsn, bytes);
  store.truncate(ends[0]! as Lsn);
  store.close();
  const again = recovered(dir);
  assert.equal(again.endLsn, ends[0]);
  assert.equal(systemDisk.list(dir).length, 1);
  again.store.close();
});

test('missing committed WAL is an error that says what to do', (t) => {
  const dir = folder(t);
  const {bytes, ends} = makeNoopWal(startLsn, [10, 20]);
  const {store} = recovered(dir);
  store.write(startLsn, bytes);
  store.close();
  rmSync(join(dir, systemDisk.list(dir)[0]!));
  assert.throws(
    () => recovered(dir, ends[1]! as Lsn),
    (error: Error) => error instanceof WalLostError && /must be replaced/.test(error.message),
  );
});

test('xl_prev need not chain where a term starts', () => {
  const first = makeNoopWal(startLsn, [10, 20]);
  const border = first.ends[1]! as Lsn;
  const second = makeNoopWal(border, [30]);
  const all = Buffer.concat([first.bytes, second.bytes]);
  const boundary = new WalRecordBoundary();
  boundary.reset(startLsn);
  assert.throws(() => boundary.feed(all), /xl_prev/);
  boundary.reset(startLsn);
  assert.equal(feedAcrossTerms(boundary, [...history, {term: 5, lsn: border}], startLsn, all), second.ends[0]);
  // The same in two pieces that part inside the first record of the new term.
  boundary.reset(startLsn);
  const cut = first.bytes.length + 5;
  feedAcrossTerms(boundary, [...history, {term: 5, lsn: border}], startLsn, all.subarray(0, cut));
  assert.equal(
    feedAcrossTerms(boundary, [...history, {term: 5, lsn: border}], (startLsn + cut) as Lsn, all.subarray(cut)),
    second.ends[0],
  );
  // A term cannot start inside a record.
  boundary.reset(startLsn);
  assert.throws(
    () => feedAcrossTerms(boundary, [...history, {term: 5, lsn: (border - 8) as Lsn}], startLsn, all),
    /inside the record/,
  );
});
