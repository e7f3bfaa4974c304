/** Reads exact counts of bytes from a socket before it is handed on. Never holds more than it was asked for and one chunk. */
import type {Stream} from '#runtime/net.ts';

export class ByteReader {
  readonly #socket: Stream;
  #buffered: Buffer = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  #ended: Error | undefined;
  readonly #onData = (chunk: Buffer): void => {
    this.#buffered = this.#buffered.length === 0 ? chunk : Buffer.concat([this.#buffered, chunk]);
    this.#socket.pause();
    this.#wake?.();
  };
  readonly #onEnd = (): void => {
    this.#ended ??= new Error('the peer closed the connection');
    this.#wake?.();
  };
  readonly #onError = (error: Error): void => {
    this.#ended ??= error;
    this.#wake?.();
  };

  constructor(socket: Stream) {
    this.#socket = socket;
    socket.on('data', this.#onData);
    socket.on('end', this.#onEnd);
    socket.on('close', this.#onEnd);
    socket.on('error', this.#onError);
    socket.pause();
  }

  /** Bytes that have arrived and were not taken. */
  get waiting(): number {
    return this.#buffered.length;
  }

  /** Looks at the first byte without taking it. */
  async peek(): Promise<number> {
    await this.#fill(1);
    return this.#buffered[0]!;
  }

  /** Rejects when the peer closes first. */
  async read(count: number): Promise<Buffer> {
    await this.#fill(count);
    const out = this.#buffered.subarray(0, count);
    this.#buffered = this.#buffered.subarray(count);
    return out;
  }

  /** One typed message of the Postgres protocol. Rejects above `bytesMax`. */
  async readMessage(bytesMax: number): Promise<{type: string; body: Buffer}> {
    const head = await this.read(5);
    const length = head.readUInt32BE(1);
    if (length < 4 || length > bytesMax)
      throw new Error(`message ${JSON.stringify(head.toString('latin1', 0, 1))} of ${length} bytes`);
    return {type: head.toString('latin1', 0, 1), body: await this.read(length - 4)};
  }

  /** Stops listening and gives back what was read too far; the socket stays paused. */
  release(): Buffer {
    this.#socket.off('data', this.#onData);
    this.#socket.off('end', this.#onEnd);
    this.#socket.off('close', this.#onEnd);
    this.#socket.off('error', this.#onError);
    const rest = this.#buffered;
    this.#buffered = Buffer.alloc(0);
    return rest;
  }

  async #fill(count: number): Promise<void> {
    while (this.#buffered.length < count) {
      if (this.#ended) throw this.#ended;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.#socket.resume();
      });
      this.#wake = undefined;
    }
  }
}
