import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {existsSync, readFileSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {test} from 'node:test';
import {MemoryTimeline} from '../../../test/memory-timeline.ts';
import {PostgresCluster, runTool} from '../../../test/postgres-cluster.ts';
import {ImportError, endOfCheckpointRecord, importDataDirectory} from '#pageserver/ingest/import.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import {formatLsn, lsn, parseLsn} from '#postgres/lsn.ts';
import {systemDisk} from '#runtime/disk.ts';

async function* once(bytes: Buffer): AsyncGenerator<Buffer> {
  await Promise.resolve();
  for (let at = 0; at < bytes.length; at += 65536) yield bytes.subarray(at, at + 65536);
}

function importing(source: AsyncIterable<Buffer>): ReturnType<typeof importDataDirectory> {
  const timeline = new MemoryTimeline();
  timeline.importing = true;
  return importDataDirectory({source, sink: timeline});
}

test('the LSN of an import is where the next record goes', async () => {
  await using cluster = await PostgresCluster.create();
  await cluster.stop('fast');
  const result = await importing(tarDataDirectory(systemDisk, cluster.dataDir));
  await cluster.start();
  // The first record after a start lies right behind the shutdown checkpoint.
  await cluster.query('create extension pg_walinspect');
  const [row] = await cluster.query(
    'select min(start_lsn)::text as l from pg_get_wal_records_info($1, pg_current_wal_lsn())',
    [formatLsn(result.lsn)],
  );
  assert.equal(parseLsn(String(row!['l'])), result.lsn);
});

test('the end of a checkpoint record that crosses a page or segment counts the page header', () => {
  assert.equal(endOfCheckpointRecord(lsn(0x1000028)), 0x1000028 + 120);
  assert.equal(endOfCheckpointRecord(lsn(0x1002000 - 120)), 0x1002000);
  assert.equal(endOfCheckpointRecord(lsn(0x1002000 - 112)), 0x1002000 + 24 + 8);
  assert.equal(endOfCheckpointRecord(lsn(0x1002000 - 8)), 0x1002000 + 24 + 112);
  assert.equal(endOfCheckpointRecord(lsn(0x2000000 - 8)), 0x2000000 + 40 + 112);
});

test('what cannot be imported is refused with what to do', async () => {
  await using cluster = await PostgresCluster.create({start: false});
  const {dataDir} = cluster;
  const refused = async (pattern: RegExp): Promise<void> => {
    await assert.rejects(
      importing(tarDataDirectory(systemDisk, dataDir)),
      (error) => error instanceof ImportError && pattern.test(error.message),
    );
  };
  await importing(tarDataDirectory(systemDisk, dataDir));

  // Any tar program will do, if pg_control comes first.
  const byTar = (...names: string[]): Buffer =>
    execFileSync('tar', ['-C', dataDir, '-cf', '-', ...names], {maxBuffer: 1 << 30});
  const plain = await importing(once(byTar('global/pg_control', '.')));
  assert.equal(plain.systemId, parseControlFile(readFileSync(join(dataDir, 'global/pg_control'))).systemId);
  await assert.rejects(importing(once(byTar('base', '.'))), /pg_control must come first/);
  await assert.rejects(importing(once(byTar('global/pg_control', 'base'))), /no PG_VERSION/);
  await assert.rejects(importing(once(byTar('base/1/PG_VERSION').subarray(0, 0))), /not a data directory/);

  writeFileSync(join(dataDir, 'backup_label'), '');
  await refused(/is a backup or a standby/);
  execFileSync('rm', [join(dataDir, 'backup_label')]);

  writeFileSync(join(dataDir, 'base/1/99999'), Buffer.alloc(8191));
  await refused(/not a multiple of 8192/);
  execFileSync('rm', [join(dataDir, 'base/1/99999')]);

  runTool('pg_checksums', ['--enable', '-D', dataDir]);
  const checked = await importing(tarDataDirectory(systemDisk, dataDir));
  assert.equal(checked.pages, plain.pages);
  // What Postgres wrote is right, block by block; a flipped bit is not.
  const file = join(dataDir, 'base/1/1255');
  const healthy = readFileSync(file);
  const flipped = Buffer.from(healthy);
  flipped[3 * 8192 + 5000]! ^= 4;
  writeFileSync(file, flipped);
  await refused(/block 3 of base\/1\/1255 has a wrong checksum/);
  writeFileSync(file, healthy);
  runTool('pg_checksums', ['--disable', '-D', dataDir]);

  await cluster.start();
  await cluster.stop('immediate');
  assert.ok(existsSync(join(dataDir, 'global/pg_control')));
  await refused(/not shut down cleanly/);

  const damaged = readFileSync(join(dataDir, 'global/pg_control'));
  damaged[50]! ^= 1;
  writeFileSync(join(dataDir, 'global/pg_control'), damaged);
  await refused(/pg_control is damaged/);
});
