/** The proposer's connection to one safekeeper: made again and again until it is closed for good. */
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
/** Before the election there is nothing to wait for but safekeepers. */
const reconnectEarlyMs = 200;
/** The proposer asks for a sign of life every second. */
const silenceMs = 10_000;

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
  #lastHeardMs = 0;
  #closed = false;

  constructor(options: SafekeeperLinkOptions) {
    this.#options = options;
    void this.#connect();
  }

  get member(): Member {
    return this.#options.member;
  }

  send(message: ProposerMessage): void {
    if (this.#connection === undefined) return;
    const frame = encodeProposerMessage(message);
    this.#connection.send(frame.type, ...frame.parts);
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
          this.#options.onMessage(decodeAcceptorMessage(type, payload));
        } catch (error) {
          this.reset(`safekeeper ${member.nodeId}: ${error instanceof Error ? error.message : String(error)}`);
        }
      } else if (type === frameWelcome) {
        deadline.cancel();
        this.#connecting = undefined;
        this.#connection = connection;
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
    this.#timer = this.#options.clock.setTimer(
      this.#options.hurry() ? reconnectEarlyMs : reconnectMs,
      () => void this.#connect(),
    );
  }
}
