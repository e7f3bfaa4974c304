/**
 * The reading end of a safekeeper's WAL stream. Pageservers read committed WAL with it; a proposer, with its term, reads
 * up to flushLsn to bring other safekeepers up.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type FrameConnection, answerWithin, connectFrames, sendJson} from '#runtime/net.ts';
import {
  type Refusal,
  type SafekeeperHello,
  type WalFeedback,
  decodeReaderMessage,
  encodeFeedback,
  frameHello,
  frameRefused,
  frameWelcome,
  parseRefusal,
} from '#wire/safekeeper.ts';
import type {ShardReporter} from '#wire/shard-feedback.ts';

const welcomeMsMax = 3000;

export interface WalStreamOptions {
  readonly address: {readonly host: string; readonly port: number};
  readonly token: string;
  readonly tenantId: string;
  readonly timelineId: string;
  /** The first byte wanted. Later than the commit LSN is fine: the stream waits. */
  readonly startLsn: Lsn;
  /** Recovery read of a proposer: up to flushLsn for as long as the safekeeper is in this term. */
  readonly term?: number;
  /** A safekeeper that copies the timeline: up to flushLsn, whatever the term. */
  readonly copy?: boolean;
  /** A pageserver: who it is for the sake of feedback. */
  readonly shard?: ShardReporter;
  readonly connectTimeoutMs?: number;
  /** Contiguous from startLsn. `commitLsn` may be ahead of what this chunk holds. The buffer may be kept. */
  readonly onWal: (startLsn: Lsn, bytes: Buffer, commitLsn: Lsn) => void;
  /** About once a second when there is no WAL to send; 10 s without any call mean that the safekeeper is gone. */
  readonly onKeepalive: (commitLsn: Lsn) => void;
  /** Once, when the stream has ended; no reason = we closed it. Reconnect from where you are, to any safekeeper. */
  readonly onClose: (reason?: Error) => void;
}

/** The safekeeper said no, and why. `code` is one of RefusalCode. */
export class WalStreamRefused extends Error {
  readonly code: string;
  constructor(refusal: Refusal, peer: string) {
    super(`safekeeper ${peer} refused: ${refusal.message}`);
    this.code = refusal.code;
  }
}

export class WalStreamClient {
  readonly #connection: FrameConnection;
  #nextLsn: Lsn;
  #closedByUs = false;

  /** Throws WalStreamRefused, or the connection's error. */
  static async connect(options: WalStreamOptions): Promise<WalStreamClient> {
    const connection = await connectFrames(options.address, options.connectTimeoutMs ?? 5000);
    const hello: SafekeeperHello = {
      token: options.token,
      service: 'wal',
      tenantId: options.tenantId,
      timelineId: options.timelineId,
      startLsn: formatLsn(options.startLsn),
      ...(options.term === undefined ? {} : {term: options.term}),
      ...(options.copy === true ? {copy: true} : {}),
      ...(options.shard === undefined ? {} : {shard: options.shard}),
    };
    const answered = answerWithin(connection, welcomeMsMax);
    return await new Promise<WalStreamClient>((resolve, reject) => {
      connection.onClose = (error) => {
        answered();
        reject(error ?? new Error(`safekeeper ${connection.peer} closed the connection before it answered`));
      };
      connection.onFrame = (type, payload) => {
        if (type === frameRefused) {
          reject(new WalStreamRefused(parseRefusal(payload), connection.peer));
          connection.destroy();
        } else if (type === frameWelcome) {
          answered();
          resolve(new WalStreamClient(connection, options));
        } else {
          reject(new Error(`safekeeper ${connection.peer} answered hello with a frame of type ${type}`));
          connection.destroy();
        }
      };
      sendJson(connection, frameHello, hello);
    });
  }

  private constructor(connection: FrameConnection, options: WalStreamOptions) {
    this.#connection = connection;
    this.#nextLsn = options.startLsn;
    let reason: Error | undefined;
    connection.onFrame = (type, payload) => {
      try {
        if (type === frameRefused) throw new WalStreamRefused(parseRefusal(payload), connection.peer);
        const message = decodeReaderMessage(type, payload);
        if (message.kind === 'keepalive') {
          options.onKeepalive(message.commitLsn);
          return;
        }
        if (message.startLsn !== this.#nextLsn)
          throw new Error(
            `safekeeper ${connection.peer} sent WAL at ${formatLsn(message.startLsn)}, expected ${formatLsn(this.#nextLsn)}`,
          );
        this.#nextLsn = (message.startLsn + message.bytes.length) as Lsn;
        options.onWal(message.startLsn, message.bytes, message.commitLsn);
      } catch (error) {
        reason = error instanceof Error ? error : new Error(String(error));
        connection.destroy();
      }
    };
    connection.onClose = (error) => {
      options.onClose(
        reason ??
          (this.#closedByUs ? undefined : (error ?? new Error(`safekeeper ${connection.peer} closed the WAL stream`))),
      );
    };
  }

  /** What comes after the last byte that onWal was given. */
  get nextLsn(): Lsn {
    return this.#nextLsn;
  }

  sendFeedback(feedback: WalFeedback): void {
    const frame = encodeFeedback(feedback);
    this.#connection.send(frame.type, ...frame.parts);
  }

  /** Stops reading the socket: the safekeeper then waits (it holds no copy of WAL for us in memory). */
  pause(): void {
    this.#connection.pause();
  }

  resume(): void {
    this.#connection.resume();
  }

  close(): void {
    this.#closedByUs = true;
    this.#connection.destroy();
  }
}
