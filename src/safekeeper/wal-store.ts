/**
 * A timeline's WAL on one safekeeper's disk: segment files named as PostgreSQL names them, byte for byte what the compute
 * wrote. Bytes before the timeline's start are not here (the first file has a hole).
 *
 * Small writes go into space that was filled with zeros ahead of time, so that fdatasync has no file size to record.
 * What `open` leaves behind is what `truncate` leaves behind: zeros, or nothing, after the end. So no byte of an older
 * incarnation of the log can ever follow what is written next (invariant 15).
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {parseSegmentFileName, segmentFileName, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {assert} from '#runtime/assert.ts';
import type {Disk, DiskFile} from '#runtime/disk.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {type RecordBoundary, feedAcrossTerms} from '#safekeeper/record-boundary.ts';
import type {TermHistory} from '#wire/safekeeper.ts';

/** Zeros written ahead of small appends. */
const aheadBytes = 256 * 1024;
/** Appends from this size on are bulk: preparing space for them would double the writing. */
const bulkBytes = 64 * 1024;
const scanChunkBytes = 128 * 1024;
const zeros = Buffer.alloc(aheadBytes);

export class WalLostError extends Error {}

export interface WalStoreOptions {
  readonly disk: Disk;
  /** Exists, and holds nothing but this timeline's segments and control file. */
  readonly directory: string;
  /** WAL before is not here (any more). */
  readonly startLsn: Lsn;
  readonly segmentSize?: number;
}

interface Segment {
  readonly number: number;
  readonly file: DiskFile;
  /** Bytes that exist in the file, zeros ahead included. */
  size: number;
}

export class WalStore {
  readonly #disk: Disk;
  readonly #directory: string;
  #startLsn: Lsn;
  readonly #segmentSize: number;
  /** Open files by segment number; the one written to and a few that readers use. */
  readonly #open = new Map<number, Segment>();
  #dirty = new Set<DiskFile>();
  /** While an fsync is under way no file may be closed: its number could be given to another. */
  #syncing = false;
  #toClose: DiskFile[] = [];

  constructor(options: WalStoreOptions) {
    this.#disk = options.disk;
    this.#directory = options.directory;
    this.#startLsn = options.startLsn;
    this.#segmentSize = options.segmentSize ?? walSegmentSizeDefault;
  }

  /**
   * Finds the end of WAL after a start: the last whole record from `commitLsn` on. Everything behind it is made zeros.
   * All of it is durable when this returns: what a killed process left in the page cache would be gone after a power cut.
   * Throws WalLostError when committed WAL is missing, or WAL below `markLsn` is, up to where this node had promised to have it
   * (flush-mark.ts); nothing is changed then.
   */
  recover(commitLsn: Lsn, history: TermHistory, boundary: RecordBoundary, markLsn?: Lsn): Lsn {
    if (commitLsn > this.#startLsn) {
      const last = this.#number((commitLsn - 1) as Lsn);
      const size = this.#disk.stat(this.#path(last))?.size ?? 0;
      if (last * this.#segmentSize + size < commitLsn)
        throw new WalLostError(
          `committed WAL up to ${formatLsn(commitLsn)} should be in ${this.#path(last)}, which has ${size} bytes; this safekeeper has lost WAL and must be replaced, do not start it again`,
        );
    }
    boundary.reset(commitLsn);
    let at = commitLsn;
    let reason = 'it ends there';
    try {
      for (;;) {
        const bytes = this.read(at, scanChunkBytes);
        if (bytes.length === 0) break;
        feedAcrossTerms(boundary, history, at, bytes);
        at = (at + bytes.length) as Lsn;
      }
    } catch (error) {
      reason = (error as Error).message;
    }
    const {endLsn} = boundary;
    if (markLsn !== undefined && endLsn < markLsn)
      throw new WalLostError(
        `WAL in ${this.#directory} that was durable up to ${formatLsn(markLsn)} cannot be read behind ${formatLsn(endLsn)} (${reason}): its disk is damaged; this safekeeper has lost WAL that it acknowledged and must be replaced, do not start it again`,
      );
    // What does not decode behind that was never acknowledged: a torn tail.
    this.#removeBelow(this.#startLsn);
    this.#cut(endLsn);
    for (const n of this.#segmentsOnDisk()) if (n >= this.#number(commitLsn)) this.#segment(n, false)!.file.syncNow();
    return endLsn;
  }

  /** Into the page cache. Positions are checked by the acceptor: the next byte follows the last. */
  write(lsn: Lsn, bytes: Buffer): void {
    let done = 0;
    while (done < bytes.length) {
      const at = (lsn + done) as Lsn;
      const offset = at % this.#segmentSize;
      const count = Math.min(bytes.length - done, this.#segmentSize - offset);
      const segment = this.#segment(this.#number(at), true)!;
      const part = done === 0 && count === bytes.length ? bytes : bytes.subarray(done, done + count);
      this.#dirty.add(segment.file);
      let end = offset + count;
      try {
        if (end > segment.size && bytes.length < bulkBytes) {
          const ahead = Math.min(aheadBytes, this.#segmentSize - end);
          segment.file.writev([part, zeros.subarray(0, ahead)], offset);
          end += ahead;
        } else {
          segment.file.write(part, offset);
        }
      } catch (error) {
        // A part may have found room: the next cut must know of it.
        segment.size = segment.file.size();
        throw error;
      }
      if (end > segment.size) segment.size = end;
      done += count;
    }
  }

  /** The files written to since the last call. fsync all of them, then call endSync. */
  beginSync(): readonly DiskFile[] {
    assert(!this.#syncing, 'one fsync of a timeline at a time');
    this.#syncing = true;
    const files = [...this.#dirty];
    this.#dirty = new Set();
    return files;
  }

  endSync(): void {
    this.#syncing = false;
    for (const file of this.#toClose) file.close();
    this.#toClose = [];
  }

  /** Drops everything from `lsn` on; durable when it returns. */
  truncate(lsn: Lsn): void {
    this.#cut(lsn);
  }

  /**
   * Up to `lengthMax` bytes from `lsn` on, fewer at the end of a segment, none where no file is. May return zeros that were
   * written ahead: the caller knows where WAL ends.
   */
  read(lsn: Lsn, lengthMax: number): Buffer {
    if (lsn < this.#startLsn) return Buffer.alloc(0);
    const segment = this.#segment(this.#number(lsn), false);
    if (segment === undefined) return Buffer.alloc(0);
    const offset = lsn % this.#segmentSize;
    const length = Math.min(lengthMax, segment.size - offset);
    if (length <= 0) return Buffer.alloc(0);
    const bytes = Buffer.allocUnsafe(length);
    const count = segment.file.read(bytes, offset);
    return count === length ? bytes : bytes.subarray(0, count);
  }

  /**
   * Removes the segments that end at or before `belowLsn`; with `all`, also the one it lies in: it is the end of WAL, and
   * the next byte begins a new file with a hole. Reads below give nothing from now on.
   */
  drop(belowLsn: Lsn, all: boolean): void {
    assert(belowLsn >= this.#startLsn, 'WAL that was dropped does not come back');
    this.#startLsn = belowLsn;
    this.#removeBelow(all ? (((this.#number(belowLsn) + 1) * this.#segmentSize) as Lsn) : belowLsn);
  }

  /** Bytes of WAL files on the disk, zeros ahead included, holes not counted. */
  get localBytes(): number {
    let bytes = 0;
    for (const n of this.#segmentsOnDisk()) {
      const from = Math.max(0, this.#startLsn - n * this.#segmentSize);
      bytes += Math.max(0, (this.#disk.stat(this.#path(n))?.size ?? 0) - from);
    }
    return bytes;
  }

  #removeBelow(lsn: Lsn): void {
    const old = this.#segmentsOnDisk().filter((n) => (n + 1) * this.#segmentSize <= lsn);
    for (const n of old) {
      const segment = this.#open.get(n);
      if (segment !== undefined) {
        this.#dirty.delete(segment.file);
        this.#close(n);
      }
      this.#disk.remove(this.#path(n));
    }
    if (old.length > 0) this.#disk.syncDirectory(this.#directory);
  }

  close(): void {
    for (const number of this.#open.keys()) this.#close(number);
  }

  #cut(lsn: Lsn): void {
    const number = this.#number(lsn);
    const later = this.#segmentsOnDisk().filter((n) => n > number);
    for (const n of later.reverse()) {
      const segment = this.#open.get(n);
      if (segment !== undefined) {
        this.#dirty.delete(segment.file);
        this.#close(n);
      }
      failpoint('safekeeper.cut-remove.before');
      this.#disk.remove(this.#path(n));
      failpoint('safekeeper.cut-remove.after');
    }
    if (later.length > 0) {
      this.#disk.syncDirectory(this.#directory);
      failpoint('safekeeper.cut-directory-sync.after');
    }
    const segment = this.#segment(number, false);
    if (segment === undefined) return;
    const offset = lsn % this.#segmentSize;
    const buffer = Buffer.allocUnsafe(64 * 1024);
    let changed = this.#dirty.has(segment.file);
    for (let at = offset; at < segment.size;) {
      const count = segment.file.read(buffer.subarray(0, Math.min(buffer.length, segment.size - at)), at);
      if (count === 0) break;
      if (!zeros.subarray(0, count).equals(buffer.subarray(0, count))) {
        failpoint('safekeeper.cut-zeros.before');
        segment.file.write(zeros.subarray(0, count), at);
        failpoint('safekeeper.cut-zeros.after');
        changed = true;
      }
      at += count;
    }
    if (!changed) return;
    failpoint('safekeeper.cut-sync.before');
    segment.file.syncNow();
    failpoint('safekeeper.cut-sync.after');
    if (!this.#syncing) this.#dirty.delete(segment.file);
  }

  #segment(number: number, create: boolean): Segment | undefined {
    const known = this.#open.get(number);
    if (known !== undefined) return known;
    const path = this.#path(number);
    const exists = this.#disk.exists(path);
    if (!exists && !create) return undefined;
    if (this.#open.size >= 8)
      for (const n of [...this.#open.keys()].slice(0, 4)) if (!this.#dirty.has(this.#open.get(n)!.file)) this.#close(n);
    if (!exists) failpoint('safekeeper.segment-create.before');
    const file = this.#disk.open(path, create ? 'create' : 'write');
    if (!exists) {
      failpoint('safekeeper.segment-create.after');
      this.#disk.syncDirectory(this.#directory);
      failpoint('safekeeper.segment-directory-sync.after');
    }
    const segment = {number, file, size: file.size()};
    this.#open.set(number, segment);
    return segment;
  }

  #close(number: number): void {
    const segment = this.#open.get(number)!;
    this.#open.delete(number);
    if (this.#syncing) this.#toClose.push(segment.file);
    else segment.file.close();
  }

  #segmentsOnDisk(): number[] {
    return this.#disk
      .list(this.#directory)
      .map((name) => parseSegmentFileName(name, this.#segmentSize)?.segment)
      .filter((n) => n !== undefined)
      .sort((a, b) => a - b);
  }

  #number(lsn: Lsn): number {
    return Math.floor(lsn / this.#segmentSize);
  }

  #path(number: number): string {
    return `${this.#directory}/${segmentFileName(1, number, this.#segmentSize)}`;
  }
}
