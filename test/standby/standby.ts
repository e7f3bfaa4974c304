/**
 * A stock physical standby that replays exactly as much WAL as it is given: WAL files appear in its pg_wal up to an LSN, it
 * replays them and waits for more. One uninterrupted recovery goes from target to target, because a recovery that is started
 * anew replays records once more over newer pages, which clears bits of visibility maps that are set.
 *
 * All dirty pages reach the files by CHECKPOINT: on a standby that is a restartpoint, which happens only when a checkpoint
 * record was replayed since the last one (planWal() chooses targets so), and then writes everything, newer pages too.
 *
 * Its one session is in a database of its own whose catalogs were frozen, so that reading them sets no hint bits.
 */
import {execFileSync} from 'node:child_process';
import {
  chownSync,
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import type pg from 'pg';
import {type ControlFile, parseControlFile} from '#postgres/control-file.ts';
import {type Lsn, formatLsn, lsn, parseLsn} from '#postgres/lsn.ts';
import {segmentFileName, segmentNumber, segmentStart, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {PostgresCluster, runAs} from '../postgres-cluster.ts';

/** The database that the standby's session is in. The base must hold it, and every catalog of the base must be frozen. */
export const watchDatabase = 'standby_watch';
const replayTimeoutMs = 600_000;

export class Standby {
  readonly dataDir: string;
  readonly #cluster: PostgresCluster;
  readonly #client: pg.Client;
  readonly #walDir: string;
  #fedLsn: Lsn;

  private constructor(cluster: PostgresCluster, client: pg.Client, walDir: string, fedLsn: Lsn) {
    this.#cluster = cluster;
    this.dataDir = cluster.dataDir;
    this.#client = client;
    this.#walDir = walDir;
    this.#fedLsn = fedLsn;
  }

  /** `baseDir` is a cleanly stopped data directory whose WAL ends at `baseLsn`; `walDir` holds what follows; `dir` is made. */
  static async start(options: {
    readonly baseDir: string;
    readonly baseLsn: Lsn;
    readonly walDir: string;
    readonly dir: string;
    readonly settings: Readonly<Record<string, string | number | boolean>>;
  }): Promise<Standby> {
    const {baseDir, baseLsn, walDir, dir} = options;
    mkdirSync(dir, {recursive: true, mode: 0o755});
    const dataDir = join(dir, 'data');
    execFileSync('cp', ['-a', baseDir, dataDir]);
    const ownWal = join(dataDir, 'pg_wal');
    for (const name of readdirSync(ownWal)) rmSync(join(ownWal, name), {recursive: true});
    mkdirSync(join(ownWal, 'archive_status'));
    copyWal(walDir, ownWal, segmentStart(baseLsn), baseLsn);
    writeFileSync(join(dataDir, 'standby.signal'), '');
    const cluster = await PostgresCluster.create({
      dir,
      settings: {
        ...options.settings,
        hot_standby: 'on',
        // Replay waits for the session's short statements rather than to end it.
        max_standby_archive_delay: -1,
        max_standby_streaming_delay: -1,
        recovery_target_timeline: 'current',
        wal_retrieve_retry_interval: '50ms',
        log_min_messages: 'warning',
        wal_recycle: 'off',
        checkpoint_timeout: '1d',
        max_logical_replication_workers: 0,
      },
    });
    try {
      return new Standby(cluster, await cluster.connect(watchDatabase), walDir, baseLsn);
    } catch (error) {
      await cluster.stop('immediate');
      throw error;
    }
  }

  /** Replays everything below `target`, the end of a record, and writes all pages to the files. */
  async advance(target: Lsn): Promise<ControlFile> {
    copyWal(this.#walDir, join(this.dataDir, 'pg_wal'), this.#fedLsn, target);
    this.#fedLsn = target;
    const deadline = Date.now() + replayTimeoutMs;
    try {
      for (let replayed = await this.#replayed(); replayed !== target; replayed = await this.#replayed()) {
        if (replayed > target || Date.now() > deadline) throw new Error(`it has replayed to ${formatLsn(replayed)}`);
        await sleep(25);
      }
      await this.#client.query('checkpoint');
    } catch (error) {
      throw new Error(
        `the standby did not replay to ${formatLsn(target)}: ${(error as Error).message}\n${this.#cluster.log.slice(-3000)}`,
        {cause: error},
      );
    }
    return parseControlFile(readFileSync(join(this.dataDir, 'global/pg_control')));
  }

  async #replayed(): Promise<Lsn> {
    const {rows} = await this.#client.query<{lsn: string}>('select pg_last_wal_replay_lsn()::text as lsn');
    return parseLsn(rows[0]!.lsn);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client.end().catch(() => {});
    await this.#cluster.stop('immediate');
  }
}

/** Copies WAL bytes [from, to) into segment files of the same names, which are zeros elsewhere. */
function copyWal(fromDir: string, toDir: string, from: Lsn, to: Lsn): void {
  for (let at: number = from; at < to;) {
    const segment = segmentNumber(lsn(at));
    const end = Math.min(to, (segment + 1) * walSegmentSizeDefault);
    const name = segmentFileName(1, segment);
    const bytes = Buffer.alloc(end - at);
    const source = openSync(join(fromDir, name), 'r');
    readSync(source, bytes, 0, bytes.length, at % walSegmentSizeDefault);
    closeSync(source);
    const path = join(toDir, name);
    const isNew = at % walSegmentSizeDefault === 0;
    // The standby may look at any moment: a new file appears when it is whole.
    const written = isNew ? `${path}.new` : path;
    const target = openSync(written, isNew ? 'w' : 'r+', 0o600);
    ftruncateSync(target, walSegmentSizeDefault);
    writeSync(target, bytes, 0, bytes.length, at % walSegmentSizeDefault);
    closeSync(target);
    if (runAs.uid !== undefined) chownSync(written, runAs.uid, runAs.gid!);
    if (isNew) renameSync(written, path);
    at = end;
  }
}
