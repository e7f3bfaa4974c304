/**
 * Streams one timeline's WAL to one reader, as fast as it reads: what is not sent stays on disk, not in memory.
 * Committed WAL only; a proposer's recovery read gets WAL up to flushLsn while the safekeeper is in the proposer's term.
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
/** After this much in one go others get their turn. */
const burstChunks = 8;

export interface WalSenderOptions {
  readonly connection: FrameConnection;
  readonly acceptor: Acceptor;
  readonly wal: WalStore;
  readonly startLsn: Lsn;
  /** A recovery read under this term. */
  readonly term: number | undefined;
  readonly clock: Clock;
  readonly onFeedback: (feedback: WalFeedback) => void;
  readonly onClose: () => void;
}

export class WalSender {
  readonly #options: WalSenderOptions;
  #nextLsn: Lsn;
  /** The socket is full, or a continuation is scheduled. */
  #waiting = false;
  #closed = false;
  #sentSinceKeepalive = false;

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
    if (this.#waiting || this.#closed) return;
    const {acceptor, wal, connection, term, clock} = this.#options;
    if (term !== undefined && !acceptor.servesRecovery(term)) {
      this.refuse('stale-term', `the safekeeper is in term ${acceptor.term}, this recovery read is of term ${term}`);
      return;
    }
    const endLsn = term === undefined ? acceptor.commitLsn : acceptor.flushLsn;
    for (let chunks = 0; this.#nextLsn < endLsn; chunks++) {
      if (chunks === burstChunks) {
        this.#waiting = true;
        clock.setTimer(0, () => {
          this.#waiting = false;
          this.pump();
        });
        return;
      }
      const bytes = wal.read(this.#nextLsn, Math.min(chunkBytes, endLsn - this.#nextLsn));
      if (bytes.length === 0) {
        this.refuse(
          'wal-trimmed',
          `WAL at ${formatLsn(this.#nextLsn)} is not on this safekeeper, which has WAL up to ${formatLsn(endLsn)}; ask another one`,
        );
        return;
      }
      const frame = encodeReaderMessage({kind: 'wal', startLsn: this.#nextLsn, commitLsn: acceptor.commitLsn, bytes});
      this.#nextLsn = (this.#nextLsn + bytes.length) as Lsn;
      this.#sentSinceKeepalive = true;
      if (!connection.send(frame.type, ...frame.parts)) {
        this.#waiting = true;
        return;
      }
    }
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
