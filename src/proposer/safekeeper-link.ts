/**
 * The proposer's connection to one safekeeper: made again and again until it is closed for good.
 *
 * While WAL is on its way to the safekeeper's disk, newer WAL waits here, and leaves as one frame when that is there, or after two milliseconds:
 * the safekeeper could not make it durable any earlier, and a frame costs both processes more CPU than its bytes do.
 */
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
/** A network with long ways gains more by a second frame under way than by a larger first one. */
const holdMsMax = 2;
const holdBytesMax = 32 * 1024;
/** Small pieces of WAL on their way at once: one that is being synced, one that waits for its turn. */
const inFlightMax = 2;

type Append = Extract<ProposerMessage, {kind: 'append'}>;

interface HeldAppend {
  /** Where it begins, and the newest of everything else. */
  message: Append;
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
  /** Ends of the pieces of WAL that are on their way to its disk, oldest first. */
  #inFlight: number[] = [];
  /** What is held has waited long enough. */
  #due = false;
  #held: HeldAppend | undefined;
  #holdTimer: Timer | undefined;

  constructor(options: SafekeeperLinkOptions) {
    this.#options = options;
    void this.#connect();
  }

  get member(): Member {
    return this.#options.member;
  }

  send(message: ProposerMessage): void {
    if (this.#connection === undefined) return;
    if (message.kind === 'append' && this.#hold(message)) return;
    this.#release();
    const frame = encodeProposerMessage(message);
    this.#connection.send(frame.type, ...frame.parts);
    if (message.kind === 'append' && message.bytes.length > 0)
      this.#inFlight.push(message.beginLsn + message.bytes.length);
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
    this.#connection?.close();
    this.#connecting?.destroy();
  }

  /** True: it leaves with what is held. */
  #hold(message: Append): boolean {
    const held = this.#held;
    if (held === undefined) {
      if (this.#inFlight.length === 0 || message.bytes.length === 0 || message.bytes.length >= holdBytesMax)
        return false;
      this.#held = {message, parts: [message.bytes], bytes: message.bytes.length};
      this.#due = false;
      this.#holdTimer = this.#options.clock.setTimer(holdMsMax, () => {
        this.#due = true;
        if (this.#inFlight.length < inFlightMax) this.#release();
      });
      return true;
    }
    const {generation, term, beginLsn, wantsReply} = held.message;
    if (
      generation !== message.generation ||
      term !== message.term ||
      beginLsn + held.bytes !== message.beginLsn ||
      held.bytes + message.bytes.length > holdBytesMax
    )
      return false;
    if (message.bytes.length > 0) held.parts.push(message.bytes);
    held.bytes += message.bytes.length;
    held.message = {...message, beginLsn, wantsReply: wantsReply || message.wantsReply};
    return true;
  }

  #release(): void {
    const held = this.#held;
    if (held === undefined) return;
    this.#held = undefined;
    this.#holdTimer?.cancel();
    const {type, parts} = encodeProposerMessage({...held.message, bytes: noBytes});
    this.#connection?.send(type, ...parts, ...held.parts);
    this.#inFlight.push(held.message.beginLsn + held.bytes);
  }

  #received(message: AcceptorMessage): void {
    if (message.kind === 'append-response') {
      const {syncedLsn} = message;
      while (this.#inFlight.length > 0 && this.#inFlight[0]! <= syncedLsn) this.#inFlight.shift();
      // After the answer has been looked at, what is sent knows the newest commit LSN.
      this.#options.onMessage(message);
      if (this.#inFlight.length === 0 || (this.#due && this.#inFlight.length < inFlightMax)) this.#release();
    } else {
      if (message.kind === 'elected-response') this.#inFlight = [];
      this.#options.onMessage(message);
    }
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
        this.#held = undefined;
        this.#holdTimer?.cancel();
        this.#inFlight = [];
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
