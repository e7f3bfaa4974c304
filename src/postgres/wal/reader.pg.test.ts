/** The reader and decoder against pg_waldump: per resource manager the same number of records, record bytes and image bytes. */
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {test} from 'node:test';
import {PostgresCluster} from '../../../test/postgres-cluster.ts';
import {type Lsn, formatLsn, lsn, parseLsn} from '#postgres/lsn.ts';
import {blockSize} from '#postgres/relation.ts';
import {restoreImage} from '#postgres/wal/image.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {rmgr, rmgrNames} from '#postgres/wal/rmgr.ts';
import {segmentFileName, segmentNumber, walSegmentSizeDefault} from '#postgres/wal/segment.ts';

interface Total {
  count: number;
  recordBytes: number;
  imageBytes: number;
}

function readTotals(dataDir: string, start: Lsn, end: Lsn, chunkBytes: number): Map<string, Total> {
  const reader = new WalReader({startLsn: start});
  const record = new WalRecord();
  const totals = new Map<string, Total>();
  const page = Buffer.alloc(blockSize);
  for (let segment = segmentNumber(start); segment * walSegmentSizeDefault < end; segment++) {
    let bytes = readFileSync(join(dataDir, 'pg_wal', segmentFileName(1, segment)));
    const segmentLsn = segment * walSegmentSizeDefault;
    bytes = bytes.subarray(Math.max(start - segmentLsn, 0), end - segmentLsn);
    for (let at = 0; at < bytes.length; at += chunkBytes) {
      reader.push(bytes.subarray(at, at + chunkBytes));
      while (reader.next(record)) {
        const name = rmgrNames[record.rmid]!;
        let total = totals.get(name);
        if (total === undefined) totals.set(name, (total = {count: 0, recordBytes: 0, imageBytes: 0}));
        let images = 0;
        for (let id = 0; id <= record.maxBlockId; id++) {
          const b = record.block(id);
          if (b === undefined || !b.hasImage) continue;
          images += b.imageLength;
          restoreImage(record, b, page);
        }
        total.count++;
        total.recordBytes += record.totalLength - images;
        total.imageBytes += images;
      }
    }
  }
  assert.equal(reader.failure, undefined);
  assert.equal(reader.lastRecordEndLsn, end);
  return totals;
}

/** Rows of `pg_waldump --stats`: name, count, (%), record size, (%), image size, (%), … */
function parseStats(text: string): Map<string, Total> {
  const totals = new Map<string, Total>();
  for (const line of text.split('\n')) {
    const match = /^(\w+) +(\d+) \( *[\d.]+\) +(\d+) \( *[\d.]+\) +(\d+) \(/.exec(line);
    if (match === null || match[1] === 'Total' || match[2] === '0') continue;
    totals.set(match[1]!, {count: Number(match[2]), recordBytes: Number(match[3]), imageBytes: Number(match[4])});
  }
  return totals;
}

const sorted = (totals: Map<string, Total>): [string, Total][] => [...totals].sort(([a], [b]) => (a < b ? -1 : 1));

test('totals equal pg_waldump --stats, whatever the chunk size; images restore to the pages on disk', async () => {
  await using cluster = await PostgresCluster.create({
    settings: {wal_keep_size: '2GB', max_wal_size: '4GB', wal_level: 'logical'},
  });
  const position = async (): Promise<Lsn> =>
    parseLsn(String((await cluster.query('select pg_current_wal_insert_lsn() as l'))[0]!['l']));
  const start = await position();
  await cluster.pgbench(['-i', '-q', '-s', '2']);
  for (const compression of ['off', 'pglz', 'lz4', 'zstd']) {
    await cluster.query(`set wal_compression = ${compression}`);
    for (const command of ['checkpoint', 'vacuum full pgbench_accounts', 'checkpoint']) await cluster.query(command);
    await cluster.query('update pgbench_branches set filler = repeat(md5(random()::text), 2); select pg_switch_wal()');
  }
  await cluster.query('checkpoint');
  await cluster.pgbench(['-n', '-c', '4', '-t', '500']);
  // Large records: continuation over many pages.
  await cluster.query("select pg_logical_emit_message(false, 'test', repeat('x', 3000000))");
  await cluster.query('checkpoint');
  const end = await position();

  // Images of relations whose pages nobody changed afterwards equal the file.
  for (const compression of ['off', 'pglz', 'lz4', 'zstd']) {
    await cluster.query(`set wal_compression = ${compression}`);
    await cluster.query(
      `create table image_${compression} as select g, repeat(md5(g::text), 1 + g % 5) t from generate_series(1, 3000) g`,
    );
    await cluster.query(`create index on image_${compression} (t)`);
  }
  await cluster.query('checkpoint');
  const imagesEnd = await position();
  const stats = await cluster.tool('pg_waldump', [
    '--stats',
    '-s',
    formatLsn(start),
    '-e',
    formatLsn(end),
    '-p',
    join(cluster.dataDir, 'pg_wal'),
  ]);
  const expected = sorted(parseStats(stats));
  assert.ok(expected.length >= 8, stats);
  for (const chunkBytes of [walSegmentSizeDefault, 128 * 1024, 777])
    assert.deepEqual(sorted(readTotals(cluster.dataDir, start, end, chunkBytes)), expected);

  for (const compression of ['off', 'pglz', 'lz4', 'zstd']) {
    const [row] = await cluster.query(
      'select pg_relation_filepath(i.indexrelid) as path, c.relfilenode::int as node from pg_index i join pg_class c on c.oid = indexrelid where indrelid = $1::regclass',
      [`image_${compression}`],
    );
    const file = readFileSync(join(cluster.dataDir, String(row!['path'])));
    assert.ok(compareImages(cluster.dataDir, end, imagesEnd, Number(row!['node']), file) > 20, compression);
  }
});

/** Compares every FPI of a relation with its file, page header's LSN aside; answers how many. */
function compareImages(dataDir: string, start: Lsn, end: Lsn, relNode: number, file: Buffer): number {
  const reader = new WalReader({startLsn: start});
  const record = new WalRecord();
  const page = Buffer.alloc(blockSize);
  let compared = 0;
  for (let segment = segmentNumber(start); segment * walSegmentSizeDefault < end; segment++) {
    const bytes = readFileSync(join(dataDir, 'pg_wal', segmentFileName(1, segment)));
    const segmentLsn = lsn(segment * walSegmentSizeDefault);
    reader.push(bytes.subarray(Math.max(start - segmentLsn, 0), end - segmentLsn));
    while (reader.next(record)) {
      if (record.rmid !== rmgr.xlog) continue;
      for (let id = 0; id <= record.maxBlockId; id++) {
        const b = record.block(id);
        if (b === undefined || b.relNode !== relNode || b.fork !== 0) continue;
        restoreImage(record, b, page);
        const theirs = Buffer.from(file.subarray(b.blockNumber * blockSize, (b.blockNumber + 1) * blockSize));
        theirs.fill(0, b.holeOffset, b.holeOffset + b.holeLength); // the writer's own page may hold anything there
        assert.ok(page.subarray(8).equals(theirs.subarray(8)), `block ${b.blockNumber} differs`);
        compared++;
      }
    }
  }
  return compared;
}
