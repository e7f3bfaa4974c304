/**
 * Streams one timeline's WAL to one reader, as fast as it reads: what is not sent stays on disk, not in memory.
 * What is no longer on this disk comes from the archive. Committed WAL only; a proposer's recovery read gets WAL up to flushLsn while the safekeeper is in the proposer's term.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';
import {type FrameConnection, sendJson} from '#runtime/net.ts';
import type {Acceptor} from '#safekeeper/acceptor.ts';
import type {WalStore} from '#safekeeper/wal-store.ts';
import {
  type Refusal,
  type RefusalCode,
  type WalFeedback,
  decodeFeedback,
  encodeReaderMessage,
  frameRefused,
} from '#wire/safekeeper.ts';

const chunkBytes = 128 * 1024;
/** One request to the object store. */
const archiveChunkBytes = 1024 * 1024;
/** After this much in one go others get their turn. */
const burstChunks = 8;
/**
 * Readers of committed WAL get small amounts no more often than this: a wake-up costs them and us more than the WAL of ten
 * commits, and what they are for (new branches, pages of another compute) does not see the difference.
 */
const smallEveryMs = 10;
const smallBytes = 32 * 1024;

export interface WalSenderOptions {
  readonly connection: FrameConnection;
  readonly acceptor: Acceptor;
  readonly wal: WalStore;
  /** WAL below localStartLsn; none at its end. Undefined: there is no archive. */
  readonly archived: ((lsn: Lsn, lengthMax: number) => Promise<Buffer>) | undefined;
  readonly startLsn: Lsn;
  /** A recovery read under this term. */
  readonly term: number | undefined;
  /** Up to flushLsn, whatever the term. */
  readonly copy: boolean;
  readonly clock: Clock;
  readonly onFeedback: (feedback: WalFeedback) => void;
  readonly onClose: () => void;
}

export class WalSender {
  readonly #options: WalSenderOptions;
  #nextLsn: Lsn;
  /** The socket is full, or a continuation is scheduled. */
  #waiting = false;
  /** A piece of the archive is on its way. */
  #reading = false;
  #closed = false;
  #sentSinceKeepalive = false;
  #sentAtMs = 0;

  constructor(options: WalSenderOptions) {
    this.#options = options;
    this.#nextLsn = options.startLsn;
    const {connection} = options;
    connection.onDrain = () => {
      this.#waiting = false;
      this.pump();
    };
    connection.onClose = () => {
      this.#closed = true;
      options.onClose();
    };
    connection.onFrame = (type, payload) => {
      try {
        options.onFeedback(decodeFeedback(type, payload));
      } catch (error) {
        this.refuse('bad-request', error instanceof Error ? error.message : String(error));
      }
    };
  }

  get nextLsn(): Lsn {
    return this.#nextLsn;
  }

  /** Sends what there is; call it whenever commitLsn or flushLsn has advanced. */
  pump(): void {
    if (this.#waiting || this.#reading || this.#closed) return;
    const {acceptor, wal, term, clock} = this.#options;
    if (term !== undefined && !acceptor.servesRecovery(term)) {
      this.refuse('stale-term', `the safekeeper is in term ${acceptor.term}, this recovery read is of term ${term}`);
      return;
    }
    const endLsn = term === undefined && !this.#options.copy ? acceptor.commitLsn : acceptor.flushLsn;
    if (term === undefined && this.#nextLsn < endLsn && endLsn - this.#nextLsn < smallBytes) {
      const nowMs = clock.monotonicMs();
      const dueMs = this.#sentAtMs + smallEveryMs;
      if (nowMs < dueMs) {
        this.#pumpAfter(dueMs - nowMs);
        return;
      }
      this.#sentAtMs = nowMs;
    }
    for (let chunks = 0; this.#nextLsn < endLsn; chunks++) {
      if (this.#nextLsn < acceptor.state.localStartLsn && this.#options.archived !== undefined) {
        this.#sendArchived(this.#options.archived, acceptor.state.localStartLsn);
        return;
      }
      if (chunks === burstChunks) {
        this.#pumpAfter(0);
        return;
      }
      const bytes = wal.read(this.#nextLsn, Math.min(chunkBytes, endLsn - this.#nextLsn));
      if (bytes.length === 0) {
        this.refuse(
          'wal-trimmed',
          `WAL at ${formatLsn(this.#nextLsn)} is not on this safekeeper, which has WAL from ${formatLsn(acceptor.state.localStartLsn)} to ${formatLsn(endLsn)}; ask another one`,
        );
        return;
      }
      if (!this.#send(bytes)) {
        this.#waiting = true;
        return;
      }
    }
  }

  /** False: the socket is full; onDrain goes on. */
  #send(bytes: Buffer): boolean {
    const frame = encodeReaderMessage({
      kind: 'wal',
      startLsn: this.#nextLsn,
      commitLsn: this.#options.acceptor.commitLsn,
      bytes,
    });
    this.#nextLsn = (this.#nextLsn + bytes.length) as Lsn;
    this.#sentSinceKeepalive = true;
    return this.#options.connection.send(frame.type, ...frame.parts);
  }

  /** One piece from the archive, up to `endLsn`; then on from there. */
  #sendArchived(archived: NonNullable<WalSenderOptions['archived']>, endLsn: Lsn): void {
    this.#reading = true;
    archived(this.#nextLsn, Math.min(archiveChunkBytes, endLsn - this.#nextLsn)).then(
      (bytes) => {
        this.#reading = false;
        if (this.#closed) return;
        if (bytes.length === 0) {
          this.refuse(
            'wal-trimmed',
            `WAL at ${formatLsn(this.#nextLsn)} is neither on this safekeeper, which has WAL from ${formatLsn(endLsn)} on, nor in its archive`,
          );
          return;
        }
        this.#waiting = !this.#send(bytes);
        this.pump();
      },
      (error: unknown) => {
        const reason = error instanceof Error ? error.message : String(error);
        this.refuse('wal-trimmed', `WAL at ${formatLsn(this.#nextLsn)} cannot be read from the archive now: ${reason}`);
      },
    );
  }

  #pumpAfter(ms: number): void {
    this.#waiting = true;
    this.#options.clock.setTimer(ms, () => {
      this.#waiting = false;
      this.pump();
    });
  }

  /** Once a second: a sign of life when nothing else was one. */
  keepalive(): void {
    if (!this.#sentSinceKeepalive && !this.#waiting && !this.#closed) {
      const frame = encodeReaderMessage({kind: 'keepalive', commitLsn: this.#options.acceptor.commitLsn});
      this.#options.connection.send(frame.type, ...frame.parts);
    }
    this.#sentSinceKeepalive = false;
  }

  refuse(code: RefusalCode, message: string): void {
    if (this.#closed) return;
    this.#closed = true;
    sendJson(this.#options.connection, frameRefused, {code, message} satisfies Refusal);
    this.#options.connection.close();
  }
}
