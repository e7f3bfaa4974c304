/**
 * A timeline that is being copied from a peer, beside the place where it will be: what is there is whole or not there.
 * Pure of time and network: the shell (or the simulator) brings the bytes. Steps: constructor, write() up to endLsn, fsync of
 * beginSync()'s files, complete() with a second look at the donor (wire/membership.ts POST pull).
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';
import type {DiskFile} from '#runtime/disk.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {controlFileName, encodeControlFile} from '#safekeeper/control-file.ts';
import {type PeerSnapshot, pulledState} from '#safekeeper/pulled-state.ts';
import {type RecordBoundary, feedAcrossTerms} from '#safekeeper/record-boundary.ts';
import {TimelineStorage, type TimelineStorageOptions} from '#safekeeper/timeline-storage.ts';
import {WalStore} from '#safekeeper/wal-store.ts';
import type {Membership} from '#wire/safekeeper.ts';

export class TimelineCopyError extends Error {}

export class TimelineCopy {
  readonly #options: TimelineStorageOptions;
  readonly #staging: string;
  readonly #donor: PeerSnapshot;
  readonly #wal: WalStore;
  readonly #boundary: RecordBoundary;
  /** Records are checked from the first place on where one is known to start: where a term starts. */
  readonly #checkFromLsn: Lsn;
  #nextLsn: Lsn;

  /** `options.directory` is where the timeline will be; nothing is there. What an earlier try left behind is removed. */
  constructor(options: TimelineStorageOptions, donor: PeerSnapshot, boundary: RecordBoundary) {
    this.#options = options;
    this.#donor = donor;
    this.#staging = `${options.directory}.copy`;
    options.disk.remove(this.#staging);
    options.disk.makeDirectory(this.#staging);
    this.#nextLsn = donor.state.localStartLsn;
    const known = [...donor.state.history.map((entry) => entry.lsn), donor.state.commitLsn];
    this.#checkFromLsn = Math.min(...known.filter((lsn) => lsn >= this.#nextLsn), donor.flushLsn) as Lsn;
    this.#boundary = boundary;
    boundary.reset(this.#checkFromLsn);
    this.#wal = new WalStore({...options, directory: this.#staging, startLsn: this.#nextLsn});
  }

  /** The next byte wanted of the donor; all are there when it is endLsn. */
  get nextLsn(): Lsn {
    return this.#nextLsn;
  }
  get endLsn(): Lsn {
    return this.#donor.flushLsn;
  }

  /** Throws TimelineCopyError when a record is damaged, and the disk's error. */
  write(lsn: Lsn, bytes: Buffer): void {
    assert(lsn === this.#nextLsn && lsn + bytes.length <= this.endLsn, 'a copy is written in order, to its end');
    const skip = Math.max(0, this.#checkFromLsn - lsn);
    if (skip < bytes.length) {
      try {
        feedAcrossTerms(this.#boundary, this.#donor.state.history, (lsn + skip) as Lsn, bytes.subarray(skip));
      } catch (error) {
        throw new TimelineCopyError(
          `${(error as Error).message}: that peer has truncated its log meanwhile, or its disk is damaged; copy again, or from another`,
          {cause: error},
        );
      }
    }
    this.#wal.write(lsn, bytes);
    this.#nextLsn = (lsn + bytes.length) as Lsn;
  }

  /** fsync all of them before complete(). */
  beginSync(): readonly DiskFile[] {
    return this.#wal.beginSync();
  }
  endSync(): void {
    this.#wal.endSync();
  }

  /**
   * `after`: the donor now. True: the timeline is durable in its place. False: the donor's log has changed under the copy,
   * begin anew. Throws TimelineCopyError when what was copied is no WAL (a damaged donor), and the disk's error.
   */
  complete(after: PeerSnapshot, membership: Membership): boolean {
    assert(this.#nextLsn === this.endLsn, 'a copy is complete when all bytes are there');
    this.#wal.endSync();
    this.#wal.close();
    const {disk, directory} = this.#options;
    const state = pulledState(this.#donor, after, membership);
    if (state === undefined) {
      this.abandon();
      return false;
    }
    disk.writeFileAtomic(`${this.#staging}/${controlFileName}`, encodeControlFile(state));
    const found = TimelineStorage.open({...this.#options, directory: this.#staging}, this.#boundary);
    found.close();
    if (found.flushLsn !== this.endLsn) {
      this.abandon();
      throw new TimelineCopyError(
        `WAL copied from a peer ends at ${formatLsn(found.flushLsn)} instead of ${formatLsn(this.endLsn)}: that peer's disk is damaged, copy from another`,
      );
    }
    failpoint('safekeeper.pull-rename.before');
    disk.rename(this.#staging, directory);
    failpoint('safekeeper.pull-rename.after');
    disk.syncDirectory(directory.slice(0, directory.lastIndexOf('/')));
    return true;
  }

  abandon(): void {
    this.#wal.close();
    this.#options.disk.remove(this.#staging);
  }
}
