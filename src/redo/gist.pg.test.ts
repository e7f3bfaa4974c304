/**
 * The rare case in which an applied image is not the final page: a checkpoint falls between a GiST split and the insertion
 * of its downlink. Made on purpose: crash right after the split's record, let PostgreSQL recover (the end-of-recovery
 * checkpoint), insert until it finishes the split, crash again. PostgreSQL's own redo of that then gives the page to expect.
 */
import assert from 'node:assert/strict';
import {readFileSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {test} from 'node:test';
import {type Lsn, formatLsn, parseLsn, readPageLsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {parseSegmentFileName, segmentFileName, segmentNumber, segmentStart} from '#postgres/wal/segment.ts';
import {PostgresCluster} from '../../test/postgres-cluster.ts';
import {applyRecord} from './apply.ts';

const pageSplit = 0x30;
const pageUpdate = 0x00;
const insertRows = (count: number): string =>
  `insert into points select point(random() * 1000, random() * 1000) from generate_series(1, ${count})`;

test('a GiST split that is finished after a checkpoint: NSN on a restored image', async () => {
  const settings = {
    full_page_writes: 'on',
    shared_buffers: '128MB',
    bgwriter_lru_maxpages: 0,
    checkpoint_timeout: '1d',
  };
  await using cluster = await PostgresCluster.create({settings});
  await cluster.query('create extension pageinspect; create table points(p point)');
  await cluster.query('create index points_p on points using gist(p)');
  await cluster.query(`select setseed(0.3); ${insertRows(3000)}; checkpoint`);
  await cluster.query(insertRows(2000));
  await cluster.stop('immediate');

  // crash right after the last split of a page below the root
  let split: {child: number; endLsn: Lsn} | undefined;
  for (const record of readWal(cluster, await redoStart(cluster))) {
    if (record.rmid !== rmgr.gist) continue;
    const child = record.block(1);
    if ((record.info & 0xf0) === pageSplit && child!.blockNumber !== 0)
      split = {child: child!.blockNumber, endLsn: record.endLsn};
  }
  assert.ok(split, 'the load split no page');
  cutWal(cluster, split.endLsn);

  await cluster.start();
  const opaque = `select flags, nsn::text from gist_page_opaque_info(get_raw_page('points_p', ${split.child}))`;
  assert.deepEqual((await cluster.query(opaque))[0]!['flags'], ['leaf', 'follow_right']);
  let flags: unknown;
  for (let round = 0; round < 200 && String(flags) !== 'leaf'; round++) {
    await cluster.query(insertRows(20));
    flags = (await cluster.query(opaque))[0]!['flags'];
  }
  assert.deepEqual(flags, ['leaf'], 'no insertion finished the split');
  const path = String((await cluster.query("select pg_relation_filepath('points_p') as path"))[0]!['path']);
  await cluster.stop('immediate');

  // our redo of that page, from its image on
  const page = Buffer.alloc(8192);
  let finished: Lsn | undefined;
  for (const record of readWal(cluster, await redoStart(cluster))) {
    if (record.rmid !== rmgr.gist) continue;
    for (let id = 0; id <= record.maxBlockId; id++) {
      const block = record.block(id);
      if (block?.blockNumber !== split.child) continue;
      applyRecord(page, record, id, {walLogHints: false});
      if (id !== 1 || (record.info & 0xf0) !== pageUpdate || !block.applyImage) continue;
      finished = record.endLsn;
      assert.equal(readPageLsn(page.subarray(8176)), finished, 'NSN');
    }
  }
  assert.ok(finished, 'the record that finished the split restored no image of the child');

  // PostgreSQL's
  await cluster.start();
  await cluster.stop('fast');
  const file = readFileSync(join(cluster.dataDir, path));
  const theirs = file.subarray(split.child * 8192, (split.child + 1) * 8192);
  assert.equal(formatLsn(readPageLsn(page)), formatLsn(readPageLsn(theirs)));
  assert.ok(page.equals(theirs), `block ${split.child} differs from PostgreSQL's recovery`);
});

/** The redo pointer of the latest checkpoint. */
async function redoStart(cluster: PostgresCluster): Promise<Lsn> {
  const control = await cluster.tool('pg_controldata', [cluster.dataDir]);
  return parseLsn(/REDO location:\s*(\S+)/.exec(control)![1]!);
}

/** All records from `startLsn` to the end of WAL; the record object is reused. */
function* readWal(cluster: PostgresCluster, startLsn: Lsn): Generator<WalRecord> {
  const reader = new WalReader({startLsn});
  const record = new WalRecord();
  const first = segmentNumber(startLsn);
  const names = readdirSync(join(cluster.dataDir, 'pg_wal'));
  for (let n = first; names.includes(segmentFileName(1, n)); n++) {
    const bytes = readFileSync(join(cluster.dataDir, 'pg_wal', segmentFileName(1, n)));
    reader.push(n === first ? bytes.subarray(startLsn - segmentStart(startLsn)) : bytes);
    while (reader.next(record)) yield record;
  }
}

/** Makes WAL end at `endLsn`, as a crash would. */
function cutWal(cluster: PostgresCluster, endLsn: Lsn): void {
  const directory = join(cluster.dataDir, 'pg_wal');
  const last = segmentFileName(1, segmentNumber(endLsn));
  for (const name of readdirSync(directory))
    if (parseSegmentFileName(name) !== undefined && name > last) rmSync(join(directory, name));
  const bytes = readFileSync(join(directory, last));
  writeFileSync(join(directory, last), bytes.fill(0, endLsn - segmentStart(endLsn)));
}
