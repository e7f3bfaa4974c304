/**
 * The proposer's connection to one safekeeper: made again and again until it is closed for good.
 *
 * To a safekeeper that lags behind the quorum WAL leaves as one frame for each answer: commits do not wait for it, and a frame
 * costs both processes more CPU than its bytes do. To the spare (spare.ts) it leaves when the driver says.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import {type FrameConnection, connectFrames, sendJson} from '#runtime/net.ts';
import {
  type AcceptorMessage,
  type Member,
  type ProposerMessage,
  type SafekeeperHello,
  decodeAcceptorMessage,
  encodeProposerMessage,
  frameHello,
  frameRefused,
  frameWelcome,
  parseRefusal,
} from '#wire/safekeeper.ts';

const reconnectMs = 1000;
/** The first attempt after a connection that had stood for a while: a reset must not cost a second of commits. */
const reconnectFirstMs = 20;
const steadyMs = 3000;
/** Before the election there is nothing to wait for but safekeepers. */
const reconnectEarlyMs = 200;
/** The proposer asks for a sign of life every second. */
const silenceMs = 10_000;
const waitingBytesMax = 64 * 1024;

type Append = Extract<ProposerMessage, {kind: 'append'}>;

interface WaitingAppend {
  /** Where it begins, and the newest of everything else. */
  message: Append;
  readonly sinceMs: number;
  readonly parts: Buffer[];
  bytes: number;
}

const noBytes = Buffer.alloc(0);

export interface SafekeeperLinkOptions {
  readonly member: Member;
  readonly tenantId: string;
  readonly timelineId: string;
  readonly token: () => string;
  readonly clock: Clock;
  readonly hurry: () => boolean;
  readonly onConnected: () => void;
  readonly onDisconnected: () => void;
  readonly onMessage: (message: AcceptorMessage) => void;
  /** Where a quorum is. */
  readonly quorumLsn: () => Lsn;
  /** Commits do not wait for this one. */
  readonly isSpare: () => boolean;
  /** WAL begins to wait: it leaves with the next answer (not to the spare), or by sendWaiting. */
  readonly onWaiting: () => void;
  /** Why there is no connection; `code` is a RefusalCode, or 'unreachable'. Repeated at each attempt. */
  readonly onTrouble: (code: string, message: string) => void;
}

export class SafekeeperLink {
  readonly #options: SafekeeperLinkOptions;
  /** Greeted; undefined while connecting. */
  #connection: FrameConnection | undefined;
  #connecting: FrameConnection | undefined;
  #timer: Timer | undefined;
  /** Attempts since a connection last stood for a while. */
  #failures = 0;
  #lastHeardMs = 0;
  #closed = false;
  /** How far this safekeeper has answered, and what was sent last. */
  #syncedLsn = 0;
  #sentLsn = 0;
  #waiting: WaitingAppend | undefined;

  constructor(options: SafekeeperLinkOptions) {
    this.#options = options;
    void this.#connect();
  }

  get member(): Member {
    return this.#options.member;
  }

  send(message: ProposerMessage): void {
    if (this.#connection === undefined) return;
    if (message.kind === 'append' && this.#wait(message)) return;
    this.sendWaiting();
    const frame = encodeProposerMessage(message);
    this.#connection.sendNow(frame.type, ...frame.parts);
    if (message.kind === 'append') this.#sentLsn = message.beginLsn + message.bytes.length;
  }

  get waitingSinceMs(): number | undefined {
    return this.#waiting?.sinceMs;
  }

  /** Where what waits begins. */
  get waitingLsn(): Lsn | undefined {
    return this.#waiting?.message.beginLsn;
  }

  get syncedLsn(): Lsn {
    return this.#syncedLsn as Lsn;
  }

  /** Closes this connection; the next one is made after the usual pause. */
  reset(reason: string): void {
    this.#options.onTrouble('reset', reason);
    (this.#connection ?? this.#connecting)?.destroy();
  }

  /** Once a second. */
  checkSilence(): void {
    if (this.#connection !== undefined && this.#options.clock.monotonicMs() - this.#lastHeardMs > silenceMs)
      this.reset(`safekeeper ${this.member.nodeId} has been silent for ${silenceMs / 1000} s`);
  }

  /** For good, after what is queued was sent. */
  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.sendWaiting();
    this.#connection?.close();
    this.#connecting?.destroy();
  }

  /** True: it leaves with what is waiting. */
  #wait(message: Append): boolean {
    const waiting = this.#waiting;
    if (waiting === undefined) {
      const {isSpare, quorumLsn} = this.#options;
      const mayWait = isSpare() || (this.#syncedLsn < this.#sentLsn && this.#syncedLsn < quorumLsn());
      if (!mayWait || message.bytes.length === 0 || message.bytes.length >= waitingBytesMax) return false;
      const sinceMs = this.#options.clock.monotonicMs();
      this.#waiting = {message, sinceMs, parts: [message.bytes], bytes: message.bytes.length};
      this.#options.onWaiting();
      return true;
    }
    const {generation, term, beginLsn, wantsReply} = waiting.message;
    if (
      generation !== message.generation ||
      term !== message.term ||
      beginLsn + waiting.bytes !== message.beginLsn ||
      waiting.bytes + message.bytes.length > waitingBytesMax
    )
      return false;
    if (message.bytes.length > 0) waiting.parts.push(message.bytes);
    waiting.bytes += message.bytes.length;
    waiting.message = {...message, beginLsn, wantsReply: wantsReply || message.wantsReply};
    return true;
  }

  /** What waits leaves now. */
  sendWaiting(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    this.#waiting = undefined;
    const {type, parts} = encodeProposerMessage({...waiting.message, bytes: noBytes});
    this.#connection?.sendNow(type, ...parts, ...waiting.parts);
    this.#sentLsn = waiting.message.beginLsn + waiting.bytes;
  }

  #received(message: AcceptorMessage): void {
    if (message.kind === 'append-response') this.#syncedLsn = message.syncedLsn;
    this.#options.onMessage(message);
    if (this.#syncedLsn >= this.#sentLsn && !this.#options.isSpare()) this.sendWaiting();
  }

  async #connect(): Promise<void> {
    const {member, tenantId, timelineId, clock, onTrouble} = this.#options;
    let connection: FrameConnection;
    try {
      connection = await connectFrames({host: member.host, port: member.port});
    } catch (error) {
      onTrouble(
        'unreachable',
        `safekeeper ${member.nodeId}: ${error instanceof Error ? error.message : String(error)}`,
      );
      this.#again();
      return;
    }
    if (this.#closed) {
      connection.destroy();
      return;
    }
    this.#connecting = connection;
    let connectedAtMs = 0;
    const deadline = clock.setTimer(silenceMs, () => connection.destroy());
    connection.onFrame = (type, payload) => {
      this.#lastHeardMs = clock.monotonicMs();
      if (type === frameRefused) {
        const refusal = parseRefusal(payload);
        onTrouble(refusal.code, `safekeeper ${member.nodeId} refused: ${refusal.message}`);
        connection.destroy();
        return;
      }
      if (this.#connection === connection) {
        try {
          this.#received(decodeAcceptorMessage(type, payload));
        } catch (error) {
          this.reset(`safekeeper ${member.nodeId}: ${error instanceof Error ? error.message : String(error)}`);
        }
      } else if (type === frameWelcome) {
        deadline.cancel();
        this.#connecting = undefined;
        this.#connection = connection;
        connectedAtMs = clock.monotonicMs();
        this.#options.onConnected();
      } else {
        onTrouble('bad-request', `safekeeper ${member.nodeId} answered hello with a frame of type ${type}`);
        connection.destroy();
      }
    };
    connection.onClose = () => {
      deadline.cancel();
      this.#connecting = undefined;
      if (this.#connection === connection) {
        this.#connection = undefined;
        this.#waiting = undefined;
        this.#syncedLsn = 0;
        this.#sentLsn = 0;
        if (clock.monotonicMs() - connectedAtMs > steadyMs) this.#failures = 0;
        if (!this.#closed) this.#options.onDisconnected();
      }
      this.#again();
    };
    sendJson(connection, frameHello, {
      token: this.#options.token(),
      service: 'proposer',
      tenantId,
      timelineId,
    } satisfies SafekeeperHello);
  }

  #again(): void {
    if (this.#closed) return;
    const most = this.#options.hurry() ? reconnectEarlyMs : reconnectMs;
    const pauseMs = Math.min(reconnectFirstMs * 2 ** this.#failures, most);
    if (pauseMs < most) this.#failures++;
    this.#timer = this.#options.clock.setTimer(pauseMs, () => void this.#connect());
  }
}
