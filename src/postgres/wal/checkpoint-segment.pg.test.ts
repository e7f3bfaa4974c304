import assert from 'node:assert/strict';
import {mkdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {test} from 'node:test';
import {PostgresCluster, runTool} from '../../../test/postgres-cluster.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {checkpointRecordLength, makeCheckpointSegment} from '#postgres/wal/checkpoint-segment.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {segmentFileName, segmentNumber, walPageSize, walSegmentSizeDefault} from '#postgres/wal/segment.ts';

const segment = walSegmentSizeDefault;

/** Ways to lay X relative to pages and segments; `from` is somewhere behind the end of WAL. */
const placements: Record<string, (from: number) => number> = {
  'the end of WAL': (from) => from,
  'mid page': (from) => nextSegment(from) + 5 * walPageSize + 4096,
  'segment start': (from) => nextSegment(from),
  'segment start + 40': (from) => nextSegment(from) + 40,
  'page start': (from) => nextSegment(from) + 3 * walPageSize,
  'page start + 24': (from) => nextSegment(from) + 3 * walPageSize + 24,
  '32 bytes before a page end': (from) => nextSegment(from) + 7 * walPageSize - 32,
  '24 bytes before a page end': (from) => nextSegment(from) + 7 * walPageSize - 24,
  '8 bytes before a page end': (from) => nextSegment(from) + 7 * walPageSize - 8,
  '8 bytes before a segment end': (from) => nextSegment(from) + segment - 8,
  'beyond 4 GiB': (from) => nextSegment(from) + 5 * 2 ** 32 + 9 * walPageSize + 1024,
};

function nextSegment(from: number): number {
  return Math.ceil(from / segment) * segment + segment;
}

test('stock Postgres starts from a synthesised checkpoint at any LSN and recovers from it', async (t) => {
  await using cluster = await PostgresCluster.create();
  await cluster.query('create table t as select g as n from generate_series(1, 1000) g');
  let rows = 1000;
  for (const [name, place] of Object.entries(placements)) {
    await t.test(name, async () => {
      await cluster.stop('fast');
      const controlPath = join(cluster.dataDir, 'global/pg_control');
      const control = parseControlFile(readFileSync(controlPath));
      const x = lsn(place(endOfWal(control.checkPointLsn)));
      const made = makeCheckpointSegment({lsn: x, controlFile: control});
      const walDir = join(cluster.dataDir, 'pg_wal');
      rmSync(walDir, {recursive: true});
      mkdirSync(join(walDir, 'archive_status'), {recursive: true});
      for (const file of made.files) writeFileSync(join(walDir, file.name), file.bytes);
      writeFileSync(controlPath, made.controlFile);
      cluster.takeOwnership();

      await cluster.start();
      assert.deepEqual(await cluster.query('select count(*)::int as n from t'), [{n: rows}]);
      await cluster.query('insert into t select g from generate_series(1, 100) g');
      rows += 100;
      // Recovery starts at the synthesised record too.
      await cluster.query('select pg_switch_wal()');
      await cluster.query('insert into t select g from generate_series(1, 100) g');
      rows += 100;
      await cluster.stop('immediate');

      // Our own reader goes from X through what Postgres wrote behind the record.
      const reader = new WalReader({startLsn: x, systemId: control.systemId});
      const record = new WalRecord();
      const starts: Lsn[] = [];
      const first = segmentNumber(x);
      for (const number of [first, first + 1, first + 2].slice(0, made.files.length + 1)) {
        const bytes = readFileSync(join(walDir, segmentFileName(1, number)));
        reader.push(number === first ? bytes.subarray(x % segment) : bytes);
        while (reader.next(record)) {
          starts.push(record.startLsn);
          if (starts.length === 2) assert.equal(record.prevLsn, made.recordLsn);
        }
      }
      assert.equal(starts[0], made.recordLsn);
      assert.ok(starts.length > 200, `${starts.length} records, ${JSON.stringify(reader.failure)}`);

      await cluster.start();
      assert.deepEqual(await cluster.query('select count(*)::int as n from t'), [{n: rows}]);
    });
  }
});

test('a position where no record can start is refused', async () => {
  await using cluster = await PostgresCluster.create({start: false});
  const controlFile = parseControlFile(readFileSync(join(cluster.dataDir, 'global/pg_control')));
  assert.throws(() => makeCheckpointSegment({lsn: lsn(segment + 4), controlFile}), /multiple of 8/);
});

test('pg_control is read as pg_controldata reads it, and a flipped bit is found', async () => {
  await using cluster = await PostgresCluster.create({start: false});
  const file = readFileSync(join(cluster.dataDir, 'global/pg_control'));
  const control = parseControlFile(file);
  const shown = runTool('pg_controldata', ['-D', cluster.dataDir]);
  const field = (name: string): string => new RegExp(`^${name}: +(.*)$`, 'm').exec(shown)![1]!;
  assert.equal(String(control.systemId), field('Database system identifier'));
  assert.equal(String(control.catalogVersion), field('Catalog version number'));
  assert.equal(`0:${control.checkPoint.nextXid}`, field("Latest checkpoint's NextXID"));
  assert.equal(String(control.checkPoint.nextOid), field("Latest checkpoint's NextOID"));
  assert.equal(String(control.checkPoint.oldestXid), field("Latest checkpoint's oldestXID"));
  assert.equal(String(control.maxConnections), field('max_connections setting'));
  assert.equal(control.walLevel, 1);
  assert.deepEqual(control.encode(), file);
  file[100]! ^= 1;
  assert.throws(() => parseControlFile(file), /damaged/);
});

/** End of the shutdown checkpoint's record: cleanly stopped clusters have nothing behind it. */
function endOfWal(checkPointLsn: Lsn): number {
  return Math.ceil((checkPointLsn + checkpointRecordLength) / 8) * 8;
}
