/** Carries out what the Archiver of one timeline decides: objects, control file, files. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';
import {crc32c} from '#runtime/crc.ts';
import {shortPageHeaderSize, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {failpoint} from '#runtime/failpoint.ts';
import type {Log} from '#runtime/log.ts';
import {type WalArchive, WalArchiveError, walFooterBytes} from '#objectstore/wal-archive.ts';
import type {Acceptor} from '#safekeeper/acceptor.ts';
import {
  type ArchivePiece,
  Archiver,
  type ArchiverInput,
  type ArchiverOptions,
  type ArchiverOutput,
  type ArchivePeer,
} from '#safekeeper/archiver.ts';
import type {SafekeeperMetrics} from '#safekeeper/metrics.ts';
import {WalRecordBoundary, feedAcrossTerms} from '#safekeeper/record-boundary.ts';
import {firstRecordStart, prevFieldLsn, readPrevField} from '#safekeeper/record-start.ts';
import type {TimelineStorage} from '#safekeeper/timeline-storage.ts';
import {WalLostError} from '#safekeeper/wal-store.ts';

const readBytes = 1024 * 1024;
/** After a failure nothing is tried for so long. */
const retryMs = 5000;

/** How long things rest, for tests; see ArchiverOptions. */
export type ArchiveTimes = Pick<ArchiverOptions, 'partialAfterMs' | 'partialEveryMs' | 'evictAfterMs' | 'takeOverMs'>;

/** Objects that are made or looked for at once, all timelines together. */
export class ArchiveSlots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }
}

export interface TimelineArchiveOptions {
  readonly archive: WalArchive;
  readonly slots: ArchiveSlots;
  readonly times: ArchiveTimes;
  readonly acceptor: Acceptor;
  readonly storage: TimelineStorage;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SafekeeperMetrics;
  /** Makes both durable; false: that failed, and the timeline with it. */
  readonly record: (archivedLsn: Lsn, localStartLsn: Lsn) => boolean;
}

export interface ArchiveCircumstances {
  readonly peers: readonly ArchivePeer[];
  /** The highest of what this node and its peers know. */
  readonly remoteConsistentLsn: Lsn;
  readonly readersLsn: Lsn | undefined;
  readonly busy: boolean;
  readonly commitStillSinceMs: number;
}

export class TimelineArchive {
  readonly #options: TimelineArchiveOptions;
  readonly #archiver: Archiver;
  #working = false;
  #lastWork: Promise<void> = Promise.resolve();
  #closed = false;
  #notBeforeMs = 0;
  #error: string | undefined;
  #manifestTerm = -1;
  /** What a checked piece that ends at `endLsn` had of the record across its end; by then it may have left the disk. */
  #across: {readonly endLsn: Lsn; readonly bytes: Buffer} | undefined;

  constructor(options: TimelineArchiveOptions) {
    this.#options = options;
    this.#archiver = new Archiver({
      nodeId: options.acceptor.nodeId,
      timelineId: options.acceptor.state.timelineId,
      ...options.times,
    });
  }

  /** An object is being put or looked for. */
  get isWorking(): boolean {
    return this.#working;
  }
  /** Why the last try failed; undefined: it did not. */
  get error(): string | undefined {
    return this.#error;
  }

  tick(now: ArchiveCircumstances): void {
    const {acceptor, clock} = this.#options;
    const nowMs = clock.monotonicMs();
    if (this.#working || this.#closed || nowMs < this.#notBeforeMs) return;
    const {state} = acceptor;
    this.#step({
      kind: 'tick',
      view: {
        ...now,
        nowMs,
        startLsn: state.startLsn,
        localStartLsn: state.localStartLsn,
        archivedLsn: state.archivedLsn,
        commitLsn: acceptor.commitLsn,
        writeLsn: acceptor.writeLsn,
        history: state.history,
      },
    });
  }

  /** Resolves when nothing is put any more. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#lastWork;
  }

  #step(input: ArchiverInput): void {
    for (const output of this.#archiver.step(input)) if (!this.#carryOut(output)) return;
  }

  /** False: what follows must not be carried out. */
  #carryOut(output: ArchiverOutput): boolean {
    const {acceptor, storage, log} = this.#options;
    switch (output.kind) {
      case 'record':
        failpoint('safekeeper.archive-record.before');
        if (!this.#options.record(output.archivedLsn, output.localStartLsn)) return false;
        failpoint('safekeeper.archive-record.after');
        return true;
      case 'drop':
        failpoint('safekeeper.drop.before');
        try {
          storage.drop(output.belowLsn, output.belowLsn === acceptor.writeLsn);
        } catch (error) {
          // They are below localStartLsn: the next start removes them.
          log.warn('WAL that is archived could not be removed from the disk', {error: String(error)});
        }
        failpoint('safekeeper.drop.after');
        return true;
      case 'archive':
        this.#work(output.piece, true);
        return true;
      case 'verify':
        this.#work(output.piece, false);
        return true;
      case 'forget-parts':
        this.#options.archive.forgetParts().catch((error: unknown) => {
          log.warn('old parts of the WAL archive could not be removed', {error: String(error)});
        });
        return true;
    }
  }

  #work(piece: ArchivePiece, byUs: boolean): void {
    const {slots, clock, log, metrics} = this.#options;
    this.#working = true;
    this.#lastWork = slots
      .run(async () => (this.#closed ? false : byUs ? await this.#put(piece) : await this.#find(piece)))
      .then(
        (found) => {
          this.#working = false;
          if (this.#closed) return;
          this.#error = undefined;
          if (found) {
            if (byUs) metrics.archivedBytes.inc(piece.endLsn - piece.startLsn);
            this.#step({kind: 'found', piece, byUs});
          } else {
            this.#notBeforeMs = clock.monotonicMs() + 1000;
            this.#step({kind: 'not-found', piece});
          }
        },
        (error: unknown) => {
          this.#working = false;
          if (this.#closed) return;
          this.#error = error instanceof Error ? error.message : String(error);
          this.#notBeforeMs = clock.monotonicMs() + retryMs;
          metrics.archiveFailures.inc();
          const say = error instanceof WalArchiveError || error instanceof WalLostError ? 'error' : 'warn';
          log[say]('WAL is not archived; it stays on the disk', {upTo: formatLsn(piece.endLsn), error: this.#error});
          this.#step({kind: 'not-found', piece});
        },
      );
  }

  async #put(piece: ArchivePiece): Promise<boolean> {
    const {archive, acceptor} = this.#options;
    const {state} = acceptor;
    const history = state.history.filter((entry) => entry.lsn < piece.endLsn || entry.lsn === state.startLsn);
    const {term} = history.at(-1)!;
    if (term !== this.#manifestTerm) {
      failpoint('safekeeper.archive-manifest.before');
      await archive.putManifest({
        tenantId: state.tenantId,
        timelineId: state.timelineId,
        systemId: state.systemId,
        pgVersion: state.pgVersion,
        startLsn: state.startLsn,
        history,
      });
      failpoint('safekeeper.archive-manifest.after');
      this.#manifestTerm = term;
    }
    const object = await this.#readChecked(piece);
    failpoint('safekeeper.archive-put.before');
    await archive.put(piece, object);
    failpoint('safekeeper.archive-put.after');
    return true;
  }

  /** Compares with what is on this disk, when all of it is. */
  async #find(piece: ArchivePiece): Promise<boolean> {
    const {archive, acceptor} = this.#options;
    let crc: number | undefined;
    if (piece.startLsn >= acceptor.state.localStartLsn) {
      crc = 0;
      for await (const part of this.#read(piece.startLsn, piece.endLsn)) crc = crc32c(part, crc);
    }
    return await archive.verify(piece, crc);
  }

  /**
   * The bytes of a piece, and room for the footer. Every record of which a byte lies in it decodes, also one that begins before
   * or ends behind: rot of this disk must not become the archive's. Throws WalLostError.
   */
  async #readChecked(piece: ArchivePiece): Promise<Buffer> {
    const {acceptor} = this.#options;
    const {history} = acceptor.state;
    const object = Buffer.allocUnsafeSlow(piece.endLsn - piece.startLsn + walFooterBytes);
    const boundary = new WalRecordBoundary();
    const across = this.#across?.endLsn === piece.startLsn ? this.#across.bytes : undefined;
    let at =
      across === undefined ? await this.#recordStartBefore(piece.startLsn) : ((piece.startLsn - across.length) as Lsn);
    boundary.reset(at);
    const feed = (part: Buffer): void => {
      try {
        feedAcrossTerms(boundary, history, at, part);
      } catch (error) {
        throw damaged((error as Error).message);
      }
      at = (at + part.length) as Lsn;
    };
    if (across !== undefined) feed(across);
    for await (const part of this.#read(at, piece.startLsn)) feed(part);
    for await (const part of this.#read(piece.startLsn, piece.endLsn)) {
      part.copy(object, at - piece.startLsn);
      feed(part);
    }
    const lastEndLsn = boundary.endLsn;
    for (let chunk = 64 * 1024; boundary.endLsn < piece.endLsn; chunk *= 2) {
      if (at >= acceptor.commitLsn)
        throw damaged(`the record behind ${formatLsn(boundary.endLsn)} is longer than what is committed`);
      for await (const part of this.#read(at, Math.min(at + chunk, acceptor.commitLsn) as Lsn)) feed(part);
    }
    this.#across =
      lastEndLsn < piece.startLsn
        ? undefined
        : {
            endLsn: piece.endLsn,
            bytes: Buffer.from(object.subarray(lastEndLsn - piece.startLsn, piece.endLsn - piece.startLsn)),
          };
    return object;
  }

  /**
   * Where a record starts, at `lsn` or before: `lsn` itself, or the record across it, which the next one names as the one
   * before; or the first one of a segment further back; or the start of the timeline, which begins where a record does.
   */
  async #recordStartBefore(lsn: Lsn): Promise<Lsn> {
    const {acceptor} = this.#options;
    const {startLsn, history} = acceptor.state;
    for (let at = lsn; at > startLsn; at = (at - walSegmentSizeDefault) as Lsn) {
      const first = firstRecordStart(await this.#readAll(at, shortPageHeaderSize), at, walSegmentSizeDefault);
      if (first === undefined) continue;
      if (first <= lsn) return first;
      const field = prevFieldLsn(first);
      // The first record of a term names nothing that is here.
      if (field + 8 > acceptor.commitLsn || history.some((entry) => entry.lsn === first)) continue;
      const before = readPrevField(await this.#readAll(field, 8));
      if (before < startLsn || before >= lsn) throw damaged(`the record at ${formatLsn(first)} follows none`);
      return before;
    }
    return startLsn;
  }

  async #readAll(lsn: Lsn, length: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for await (const part of this.#read(lsn, (lsn + length) as Lsn)) parts.push(part);
    return Buffer.concat(parts);
  }

  /** WAL from the disk, and what is no longer there from an object that has it. */
  async *#read(startLsn: Lsn, endLsn: Lsn): AsyncGenerator<Buffer> {
    const {archive, acceptor, storage, clock} = this.#options;
    const {localStartLsn} = acceptor.state;
    for (let at = startLsn; at < endLsn;) {
      const local = at >= localStartLsn;
      const wanted = Math.min(readBytes, (local ? endLsn : Math.min(localStartLsn, endLsn)) - at);
      const bytes = local ? storage.wal.read(at, wanted) : await archive.read(at, wanted);
      if (this.#closed) throw new Error('the timeline is closed');
      if (bytes.length === 0)
        throw new Error(`WAL at ${formatLsn(at)} is ${local ? 'not on this disk' : 'not in the archive'}`);
      yield bytes;
      at = (at + bytes.length) as Lsn;
      await clock.sleep(0); // appends come first
    }
  }
}

function damaged(reason: string): WalLostError {
  return new WalLostError(
    `committed WAL on this disk does not decode (${reason}); it is not archived from here. Replace this safekeeper`,
  );
}
