/**
 * The second oracle (wal-redo.md 9.1, number 2): a stock PostgreSQL recovers from the same base copy and the same WAL; all
 * files it leaves must equal our final pages byte for byte, without any mask: hint bits, page LSNs and the bytes of holes too.
 */
import {execFileSync, spawnSync} from 'node:child_process';
import {closeSync, existsSync, openSync, readSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {pageSize} from '#redo/bufpage.ts';
import {postgresBinDir, runAs} from '../postgres-cluster.ts';
import {withChecksum} from './checksum.ts';
import type {PageStore} from './pages.ts';

export interface StandbyOptions {
  /** Where base/ and data/ are; standby/ is made here and removed again. */
  readonly dir: string;
  readonly store: PageStore;
  /** Start of the last record: recovery stops after it. */
  readonly lastRecordLsn: Lsn;
  readonly walLogHints: boolean;
  /** The cluster has data checksums: a page equals the file with the checksum that belongs to its bytes and block. */
  readonly checksums: boolean;
}

export interface StandbyResult {
  readonly equal: number;
  readonly different: number;
  readonly missing: number;
  readonly messages: readonly string[];
}

const segmentBlocks = 131072;
const forkSuffixes = ['', '_fsm', '_vm', '_init'];

export function compareWithStandby(options: StandbyOptions): StandbyResult {
  const standby = join(options.dir, 'standby');
  rmSync(standby, {recursive: true, force: true});
  execFileSync('cp', ['-a', '--reflink=auto', join(options.dir, 'base'), standby]);
  try {
    recover({
      dataDir: standby,
      walDir: join(options.dir, 'data', 'pg_wal'),
      dir: options.dir,
      lastRecordLsn: options.lastRecordLsn,
      settings: {
        wal_log_hints: options.walLogHints ? 'on' : 'off',
        track_commit_timestamp: 'on',
        max_prepared_transactions: '20',
        max_locks_per_transaction: '256',
      },
    });
    return compare(options.store, standby, options.checksums);
  } finally {
    rmSync(standby, {recursive: true, force: true});
  }
}

export interface RecoverOptions {
  /** A copy of the base; afterwards all its files are as of the record. */
  readonly dataDir: string;
  readonly walDir: string;
  /** For the socket. */
  readonly dir: string;
  /** Start of the last record to replay. */
  readonly lastRecordLsn: Lsn;
  readonly settings: Readonly<Record<string, string>>;
}

/** Runs recovery up to and with one record; PostgreSQL then shuts down and has written every page. */
export function recover({dataDir, walDir, dir, lastRecordLsn, settings}: RecoverOptions): void {
  writeFileSync(join(dataDir, 'recovery.signal'), '');
  const all = {
    restore_command: `cp "${walDir}/%f" "%p"`,
    recovery_target_lsn: formatLsn(lastRecordLsn),
    recovery_target_action: 'shutdown',
    recovery_target_timeline: 'current',
    hot_standby: 'off',
    fsync: 'off',
    shared_buffers: '256MB',
    checkpoint_timeout: '1d',
    max_wal_size: '200GB',
    listen_addresses: '',
    unix_socket_directories: dir,
    ...settings,
  };
  const args = ['-D', dataDir, ...Object.entries(all).flatMap(([name, value]) => ['-c', `${name}=${value}`])];
  const run = spawnSync(join(postgresBinDir, 'postgres'), args, {
    ...runAs,
    cwd: '/',
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (!run.stderr.includes('shutting down') || !run.stderr.includes('recovery stopping after'))
    throw new Error(`the standby did not recover to ${formatLsn(lastRecordLsn)}: ${run.stderr.slice(-3000)}`);
}

function compare(store: PageStore, standby: string, checksums: boolean): StandbyResult {
  const messages: string[] = [];
  let equal = 0;
  let different = 0;
  let missing = 0;
  const theirs = Buffer.alloc(pageSize);
  let path = '';
  let file: number | undefined;
  store.forEach((spc, db, rel, fork, block, stored) => {
    if (fork === 1) return;
    const page = checksums ? withChecksum(stored, block) : stored;
    const segment = Math.floor(block / segmentBlocks);
    const wanted = join(directory(standby, spc, db), `${rel}${forkSuffixes[fork]}${segment > 0 ? `.${segment}` : ''}`);
    if (wanted !== path) {
      if (file !== undefined) closeSync(file);
      path = wanted;
      file = existsSync(path) ? openSync(path, 'r') : undefined;
    }
    if (file === undefined || readSync(file, theirs, 0, pageSize, (block % segmentBlocks) * pageSize) !== pageSize) {
      missing++;
      if (missing <= 5) messages.push(`standby: no ${wanted} block ${block}`);
    } else if (page.equals(theirs)) {
      equal++;
    } else {
      different++;
      let at = 0;
      while (page[at] === theirs[at]) at++;
      if (different <= 5)
        messages.push(
          `standby: ${wanted} block ${block} differs from byte ${at}: ${page.toString('hex', at, at + 16)} is ours, ${theirs.toString('hex', at, at + 16)} PostgreSQL's`,
        );
    }
  });
  if (file !== undefined) closeSync(file);
  return {equal, different, missing, messages};
}

function directory(standby: string, spc: number, db: number): string {
  if (spc === 1664) return join(standby, 'global');
  if (spc === 1663) return join(standby, 'base', String(db));
  const tablespace = join(standby, 'pg_tblspc', String(spc));
  const version = existsSync(tablespace)
    ? readdirSync(tablespace).find((name) => name.startsWith('PG_15_'))
    : undefined;
  return join(tablespace, version ?? 'none', String(db));
}
