/**
 * WAL of a stock PostgreSQL for one load, with the data directory as it was before: what both sides of a replay benchmark
 * start from. Kept in .cache/bench/ under the load's name; `npm run bench -- … --fresh` records anew.
 */
import {execFileSync} from 'node:child_process';
import {existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {segmentFileName, segmentNumber, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {PostgresCluster, runTool} from '../test/postgres-cluster.ts';
import {say} from './report.ts';

export interface Load {
  /** Also names the recording; put every parameter into it. */
  readonly name: string;
  /** Before the recording. */
  readonly setUp: (cluster: PostgresCluster) => Promise<void>;
  readonly run: (cluster: PostgresCluster) => Promise<void>;
}

export interface Recording {
  readonly name: string;
  /** Data directory of the cleanly shut-down cluster at startLsn. */
  readonly base: string;
  /** The segment files from startLsn to endLsn. */
  readonly wal: string;
  /** Of the shutdown checkpoint: the first record, which both sides skip over. */
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
}

/** As a Pagoda compute writes WAL: no torn-page images. */
export const recordingSettings = {
  fsync: 'off',
  full_page_writes: 'off',
  wal_level: 'replica',
  autovacuum: 'off',
  shared_buffers: '1GB',
  max_wal_size: '50GB',
  wal_keep_size: '50GB',
  checkpoint_timeout: '1d',
} as const;

const root = join(import.meta.dirname, '../.cache/bench');

export async function recordWal(load: Load, fresh = false): Promise<Recording> {
  const dir = join(root, load.name);
  if (fresh || !existsSync(join(dir, 'recording.json'))) await record(load, dir);
  const {startLsn, endLsn} = JSON.parse(readFileSync(join(dir, 'recording.json'), 'utf8')) as Record<string, string>;
  return {
    name: load.name,
    base: join(dir, 'base'),
    wal: join(dir, 'wal'),
    startLsn: parseLsn(startLsn!),
    endLsn: parseLsn(endLsn!),
  };
}

async function record(load: Load, dir: string): Promise<void> {
  const started = performance.now();
  rmSync(dir, {recursive: true, force: true});
  mkdirSync(join(dir, 'wal'), {recursive: true});
  await using cluster = await PostgresCluster.create({settings: recordingSettings});
  await load.setUp(cluster);
  await cluster.query('checkpoint');
  await cluster.stop('fast');
  const control = runTool('pg_controldata', [cluster.dataDir]);
  const startLsn = parseLsn(/^Latest checkpoint location:\s+(\S+)$/m.exec(control)![1]!);
  copyTree(cluster.dataDir, join(dir, 'base'));
  for (const name of readdirSync(join(dir, 'base/pg_wal')))
    rmSync(join(dir, 'base/pg_wal', name), {recursive: true, force: true});
  mkdirSync(join(dir, 'base/pg_wal/archive_status'));
  await cluster.start();
  await load.run(cluster);
  const rows = await cluster.query('select pg_current_wal_flush_lsn()::text as lsn');
  const endLsn = parseLsn(String(rows[0]!['lsn']));
  await cluster.stop('immediate');
  for (let segment = segmentNumber(startLsn); segment <= segmentNumber((endLsn - 1) as Lsn); segment++)
    copyTree(
      join(cluster.dataDir, 'pg_wal', segmentFileName(1, segment)),
      join(dir, 'wal', segmentFileName(1, segment)),
    );
  const json = JSON.stringify({startLsn: formatLsn(startLsn), endLsn: formatLsn(endLsn)});
  writeFileSync(join(dir, 'recording.new'), json);
  renameSync(join(dir, 'recording.new'), join(dir, 'recording.json'));
  say(
    `recorded ${load.name}: ${mebibytes(endLsn - startLsn)} MiB of WAL in ${((performance.now() - started) / 1000).toFixed(0)} s`,
  );
}

export function mebibytes(bytes: number): string {
  return (bytes / 1024 / 1024).toFixed(1);
}

export function copyTree(from: string, to: string): void {
  execFileSync('cp', ['-a', '--reflink=auto', from, to]);
}

/** The recording's WAL in memory, from startLsn on, as chunks that WalReader takes. */
export function walChunks(recording: Recording): {readonly chunks: readonly Buffer[]; readonly bytes: number} {
  const chunks: Buffer[] = [];
  let position: number = recording.startLsn;
  while (position < recording.endLsn) {
    const segment = segmentNumber(position as Lsn);
    const file = readFileSync(join(recording.wal, segmentFileName(1, segment)));
    const start = position - segment * walSegmentSizeDefault;
    const end = Math.min(walSegmentSizeDefault, recording.endLsn - segment * walSegmentSizeDefault);
    for (let at = start; at < end; at += chunkBytes)
      chunks.push(asFrame(file.subarray(at, Math.min(end, at + chunkBytes))));
    position = (segment + 1) * walSegmentSizeDefault;
  }
  return {chunks, bytes: recording.endLsn - recording.startLsn};
}

/** WAL as a safekeeper sends it: frames of this size, each a buffer of its own with the frame's head before the WAL. */
const chunkBytes = 128 * 1024;
const frameHeadBytes = 21;

function asFrame(wal: Buffer): Buffer {
  const frame = Buffer.allocUnsafeSlow(frameHeadBytes + wal.length);
  wal.copy(frame, frameHeadBytes);
  return frame.subarray(frameHeadBytes);
}
