/** Carries out the acceptor's storage outputs for one timeline. The same class runs on a real disk and on a simulated one. */
import type {Lsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';
import type {Disk, DiskFile} from '#runtime/disk.ts';
import {failpoint} from '#runtime/failpoint.ts';
import type {AcceptorOutput, AcceptorState} from '#safekeeper/acceptor.ts';
import {FlushMark, readFlushMark} from '#safekeeper/flush-mark.ts';
import type {DiskReserve} from '#safekeeper/disk-reserve.ts';
import {controlFileName, decodeControlFile, encodeControlFile} from '#safekeeper/control-file.ts';
import type {RecordBoundary} from '#safekeeper/record-boundary.ts';
import {WalStore} from '#safekeeper/wal-store.ts';
import type {Membership} from '#wire/safekeeper.ts';

export interface TimelineStorageOptions {
  readonly disk: Disk;
  readonly directory: string;
  /** Whose files are expected there. */
  readonly tenantId: string;
  readonly timelineId: string;
  readonly segmentSize?: number;
  /** Shared by all timelines of a disk; without one a full disk needs help from outside. */
  readonly reserve?: DiskReserve;
}

export interface NewTimeline {
  readonly tenantId: string;
  readonly timelineId: string;
  /** Empty = the first proposer says it. */
  readonly systemId: string;
  /** 0 = the first proposer says it. */
  readonly pgVersion: number;
  readonly startLsn: Lsn;
  readonly membership: Membership;
}

/** The state of a timeline that has no WAL of its own yet. */
export function initialState(timeline: NewTimeline): AcceptorState {
  return {
    ...timeline,
    term: 0,
    history: [{term: 0, lsn: timeline.startLsn}],
    commitLsn: timeline.startLsn,
    remoteConsistentLsn: 0 as Lsn,
    archivedLsn: timeline.startLsn,
    localStartLsn: timeline.startLsn,
  };
}

export class TimelineStorage {
  readonly wal: WalStore;
  /** As found at start. */
  readonly state: AcceptorState;
  readonly flushLsn: Lsn;
  readonly #disk: Disk;
  readonly #directory: string;
  readonly #reserve: DiskReserve | undefined;
  readonly #mark: FlushMark;

  /** Makes a timeline durable. Its parent directory exists. */
  static create(options: Pick<TimelineStorageOptions, 'disk' | 'directory'>, state: AcceptorState): void {
    failpoint('safekeeper.create.before');
    options.disk.makeDirectory(options.directory);
    failpoint('safekeeper.create-directory.after');
    options.disk.writeFileAtomic(`${options.directory}/${controlFileName}`, encodeControlFile(state));
    failpoint('safekeeper.create-control-file.after');
    options.disk.syncDirectory(parent(options.directory));
    failpoint('safekeeper.create.after');
  }

  static exists(options: Pick<TimelineStorageOptions, 'disk' | 'directory'>): boolean {
    return options.disk.exists(`${options.directory}/${controlFileName}`);
  }

  /** Throws ControlFileError, WalLostError, or the disk's error. */
  static open(options: TimelineStorageOptions, boundary: RecordBoundary): TimelineStorage {
    return new TimelineStorage(options, boundary);
  }

  private constructor(options: TimelineStorageOptions, boundary: RecordBoundary) {
    this.#disk = options.disk;
    this.#directory = options.directory;
    this.#reserve = options.reserve;
    const path = `${options.directory}/${controlFileName}`;
    // Its last replacement may have been cut short after the rename: what we read must not be undone by a power cut.
    options.disk.syncDirectory(options.directory);
    this.state = decodeControlFile(options.disk.readFile(path), path, options);
    this.wal = new WalStore({...options, startLsn: this.state.localStartLsn});
    const markLsn = readFlushMark(options);
    this.flushLsn = this.wal.recover(this.state.commitLsn, this.state.history, boundary, markLsn);
    this.#mark = new FlushMark(options, markLsn);
    // Votes will promise it.
    if (this.flushLsn > this.state.commitLsn) this.#mark.raise(this.flushLsn);
    // All of it had been archived; a crash came before the last file was removed.
    const {localStartLsn, startLsn} = this.state;
    if (localStartLsn > startLsn && localStartLsn === this.flushLsn) this.wal.drop(this.flushLsn, true);
  }

  /** Durable as far as AcceptorOutput demands it when this returns. Throws the disk's error. */
  apply(output: Extract<AcceptorOutput, {kind: 'write' | 'mark' | 'truncate' | 'save'}>): void {
    switch (output.kind) {
      case 'write':
        this.#reserve?.check();
        failpoint('safekeeper.write.before');
        this.wal.write(output.lsn, output.bytes);
        failpoint('safekeeper.write.after');
        break;
      case 'mark':
        failpoint('safekeeper.mark.before');
        this.#mark.raise(output.lsn);
        failpoint('safekeeper.mark.after');
        break;
      case 'truncate':
        failpoint('safekeeper.truncate.before');
        this.#mark.lower(output.lsn);
        failpoint('safekeeper.mark-lower.after');
        this.wal.truncate(output.lsn);
        failpoint('safekeeper.truncate.after');
        break;
      case 'save':
        failpoint('safekeeper.save.before');
        this.#save(encodeControlFile(output.state));
        failpoint('safekeeper.save.after');
        break;
    }
  }

  #save(bytes: Buffer): void {
    const path = `${this.#directory}/${controlFileName}`;
    const replace = (): void => this.#disk.writeFileAtomic(path, bytes);
    try {
      replace();
    } catch (error) {
      if (!isDiskFull(error) || this.#reserve === undefined) throw error;
      this.#reserve.lend(replace);
    }
  }

  beginSync(): readonly DiskFile[] {
    return this.wal.beginSync();
  }

  endSync(): void {
    this.wal.endSync();
  }

  /** Removes WAL below localStartLsn that the control file no longer claims; with `all`, what is left of it too. */
  drop(belowLsn: Lsn, all: boolean): void {
    this.wal.drop(belowLsn, all);
  }

  close(): void {
    this.#mark.close();
    this.wal.close();
  }
}

export function isDiskFull(error: unknown): boolean {
  const {code} = error as {code?: string};
  return code === 'ENOSPC' || code === 'EDQUOT';
}

function parent(path: string): string {
  const slash = path.lastIndexOf('/');
  assert(slash > 0, `a timeline's directory is an absolute path: ${path}`);
  return path.slice(0, slash);
}
