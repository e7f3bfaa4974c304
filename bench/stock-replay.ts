/**
 * The reference of the replay benchmarks: a stock physical standby replays the recording; what is measured is the CPU time
 * (user + system) of its startup process, from /proc/<pid>/schedstat (nanoseconds on a CPU). Decoding, checksums, buffer
 * look-ups, reading pages from the file cache, and redo are all in that one process; writing pages out is not.
 */
import {mkdtempSync, chmodSync, readFileSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {formatLsn} from '#postgres/lsn.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {type Recording, copyTree} from './recorded-wal.ts';

export interface ReplayTime {
  /** Of the startup process, start-up of the server included. */
  readonly cpuNs: number;
  /** The kernel's part of it, in steps of 10 ms: mostly reading pages. */
  readonly systemNs: number;
}

/** Replays up to `until` (default: the end); with startLsn, what starting a standby costs without any WAL. */
export async function replayByStock(recording: Recording, withWal = true): Promise<ReplayTime> {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-bench-standby-'));
  chmodSync(dir, 0o755);
  try {
    copyTree(recording.base, join(dir, 'data'));
    const segments = readdirSync(recording.wal).sort();
    for (const name of withWal ? segments : segments.slice(0, 1))
      copyTree(join(recording.wal, name), join(dir, 'data/pg_wal', name));
    if (!withWal) cutAfterCheckpoint(join(dir, 'data/pg_wal', segments[0]!), recording);
    writeFileSync(join(dir, 'data/standby.signal'), '');
    await using cluster = await PostgresCluster.create({
      dir,
      settings: {
        shared_buffers: '1GB', // all pages stay in memory, as on the other side
        max_wal_size: '50GB',
        checkpoint_timeout: '1d',
        bgwriter_lru_maxpages: 0,
        wal_level: 'replica',
        max_connections: 100,
      },
    });
    const wanted = formatLsn(withWal ? recording.endLsn : recording.startLsn);
    for (let attempt = 0; ; attempt++) {
      const rows = await cluster.query('select pg_last_wal_replay_lsn() >= $1::pg_lsn as done', [wanted]);
      if (rows[0]!['done'] === true) break;
      if (attempt > 12_000) throw new Error(`the standby did not reach ${wanted}:\n${cluster.log.slice(-2000)}`);
      await sleep(50);
    }
    const pid = startupProcess(Number(readFileSync(join(cluster.dataDir, 'postmaster.pid'), 'utf8').split('\n')[0]));
    const cpuNs = Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]);
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return {cpuNs, systemNs: Number(fields[12]) * 10_000_000};
  } finally {
    rmSync(dir, {recursive: true, force: true});
  }
}

/** Zeros behind the shutdown checkpoint (its record has 114 bytes): there is nothing to replay. */
function cutAfterCheckpoint(path: string, recording: Recording): void {
  const file = readFileSync(path);
  file.fill(0, (recording.startLsn % file.length) + 120);
  writeFileSync(path, file);
}

function startupProcess(postmaster: number): number {
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
      if (Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]) !== postmaster) continue;
      if (readFileSync(`/proc/${name}/cmdline`, 'utf8').includes('startup')) return Number(name);
    } catch {
      // gone meanwhile
    }
  }
  throw new Error(`no startup process under ${postmaster}`);
}
