/** One connection to a compute that clients of a pool share in turns. */
import {decodeErrorFields, decodeParameterStatus, encodeMessage} from '#proxy/messages.ts';
import {wantedFromServer} from '#proxy/pooler/dialogue.ts';
import {type MessageSink, MessageSplitter} from '#proxy/pooler/message-splitter.ts';
import {ServerMemory} from '#proxy/pooler/statements.ts';
import type {Reached} from '#proxy/reach-compute.ts';

/** Whose turn it is. */
export interface ServerUser extends MessageSink {
  /** A chunk of the server has been told in full. */
  chunkEnd(): void;
  /** The connection is gone. */
  serverGone(): void;
}

/** An error in our own statements; `message` as Postgres said it. */
export class OwnQueryFailed extends Error {
  readonly response: Buffer;
  constructor(body: Buffer) {
    super(decodeErrorFields(body).get('M') ?? 'unknown error');
    this.response = encodeMessage('E', body);
  }
}

const wholeBytesMax = 0x4000_0000;
/** Everything DISCARD ALL does but for prepared statements and plans: those are what a pool is for. */
const forgetSettings =
  'close all; set session authorization default; reset all; unlisten *; select pg_advisory_unlock_all(); discard temp; discard sequences';

export class ServerConnection {
  readonly memory = new ServerMemory();
  readonly #reached: Reached;
  readonly #splitter = new MessageSplitter(wantedFromServer, wholeBytesMax);
  readonly #onGone: () => void;
  #user: ServerUser | undefined;
  #gone = false;

  /** `onGone` is called once, when it can serve nobody any more. */
  constructor(reached: Reached, onGone: () => void) {
    this.#reached = reached;
    this.#onGone = onGone;
    this.#splitter.feed(reached.session.greeting, {
      whole: (type, _message, body) => {
        if (type === 'S') this.#reported(body);
      },
      piece: () => {},
    });
    const {socket} = reached.session;
    socket.on('data', (chunk: Buffer) => this.#data(chunk));
    socket.on('error', () => {});
    socket.on('close', () => this.close());
    socket.resume();
    if (socket.destroyed) this.close();
  }

  get gone(): boolean {
    return this.#gone;
  }

  get socket(): Reached['session']['socket'] {
    return this.#reached.session.socket;
  }

  /** Where a cancel goes, and what it must say. */
  get cancelTarget(): {address: Reached['address']; key: Buffer} {
    return {address: this.#reached.address, key: this.#reached.session.cancelKey};
  }

  use(user: ServerUser | undefined): void {
    this.#user = user;
  }

  /** Our own statements, while nobody uses it. Rejects with OwnQueryFailed (usable again) or when the connection ends. */
  query(sql: string): Promise<void> {
    return new Promise((resolve, reject) => {
      let failed: OwnQueryFailed | undefined;
      this.#user = {
        whole: (type, _message, body) => {
          if (type === 'S') this.#reported(body);
          else if (type === 'E') failed ??= new OwnQueryFailed(body);
          else if (type === 'Z') {
            this.#user = undefined;
            if (failed === undefined) resolve();
            else reject(failed);
          }
        },
        piece: () => {},
        chunkEnd: () => {},
        serverGone: () => reject(failed ?? new Error('the connection to the compute ended')),
      };
      this.socket.write(encodeMessage('Q', Buffer.from(`${sql}\0`)));
    });
  }

  /** Removes what its last user left in the session. Rejects when the connection cannot be used any more. */
  async clean(): Promise<void> {
    const {memory} = this;
    if (memory.leftover === 'nothing') return;
    await this.query(forgetSettings);
    if (memory.leftover === 'statements') {
      await this.query('deallocate all');
      memory.prepared.clear();
    }
    memory.unnamed = undefined;
    memory.leftover = 'nothing';
  }

  close(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.socket.end(encodeMessage('X'));
    this.socket.destroySoon();
    const user = this.#user;
    this.#user = undefined;
    user?.serverGone();
    this.#onGone();
  }

  #data(chunk: Buffer): void {
    if (this.#gone) return;
    const user = this.#user;
    try {
      this.#splitter.feed(
        chunk,
        user ?? {
          whole: (type, _message, body) => {
            // A setting of the whole compute changed; everything else that comes unasked is its farewell.
            if (type === 'S') this.#reported(body);
            else if (type !== 'A') this.close();
          },
          piece: (type) => {
            if (type !== 'N') this.close();
          },
        },
      );
    } catch {
      this.close(); // what it says is not the protocol
      return;
    }
    user?.chunkEnd();
  }

  #reported(body: Buffer): void {
    this.memory.parameters.set(...decodeParameterStatus(body));
  }
}
