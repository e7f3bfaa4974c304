/**
 * Cuts a stream of typed protocol messages (protocol.sgml: a letter, a length that counts itself, a body) at their borders.
 * Messages whose contents matter come whole; of the others, which may be large, every piece is passed on as it arrives.
 */
const headBytes = 5;

export interface MessageSink {
  /** A whole message, head included; `body` is its part behind the head. */
  whole(type: string, message: Buffer, body: Buffer): void;
  /** A part of a message whose type is not wanted whole; the `first` part begins with the head. */
  piece(type: string, bytes: Buffer, first: boolean): void;
}

export class MessageSplitter {
  readonly #wanted: ReadonlySet<string>;
  readonly #wholeBytesMax: number;
  /** Parts of what is not complete: a head, or a message that is wanted whole. */
  #parts: Buffer[] = [];
  #partsBytes = 0;
  /** Bytes at which `#parts` becomes something. */
  #needed = headBytes;
  /** Type of the message whose pieces are being passed on, and what is left of it. */
  #passing = '';
  #passingBytes = 0;

  /** `wanted`: types that come whole, up to `wholeBytesMax` bytes each. */
  constructor(wanted: string, wholeBytesMax: number) {
    this.#wanted = new Set(wanted);
    this.#wholeBytesMax = wholeBytesMax;
  }

  /** A part of a message has been passed on, and its rest is to come. */
  get inMessage(): boolean {
    return this.#passingBytes > 0;
  }

  /** Throws MessageTooLong or MalformedMessage; nothing can be read after that. */
  feed(chunk: Buffer, sink: MessageSink): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#passingBytes > 0) {
        const bytes = chunk.subarray(at, at + this.#passingBytes);
        this.#passingBytes -= bytes.length;
        at += bytes.length;
        sink.piece(this.#passing, bytes, false);
        continue;
      }
      const bytes = chunk.subarray(at, at + this.#needed - this.#partsBytes);
      at += bytes.length;
      this.#parts.push(bytes);
      this.#partsBytes += bytes.length;
      if (this.#partsBytes === this.#needed) this.#complete(sink);
    }
  }

  #complete(sink: MessageSink): void {
    const message = this.#parts.length === 1 ? this.#parts[0]! : Buffer.concat(this.#parts);
    const type = message.toString('latin1', 0, 1);
    const length = message.readUInt32BE(1) + 1;
    if (this.#needed === headBytes && length !== headBytes) {
      if (length < headBytes || length > 0x4000_0000) throw new MalformedMessage(type, length);
      if (this.#wanted.has(type)) {
        if (length > this.#wholeBytesMax) throw new MessageTooLong(type, length, this.#wholeBytesMax);
        this.#parts = [message];
        this.#needed = length;
        return;
      }
      this.#passing = type;
      this.#passingBytes = length - headBytes;
    }
    this.#parts = [];
    this.#partsBytes = 0;
    this.#needed = headBytes;
    if (this.#wanted.has(type)) sink.whole(type, message, message.subarray(headBytes));
    else sink.piece(type, message, true);
  }
}

export class MalformedMessage extends Error {
  constructor(type: string, length: number) {
    super(`message ${JSON.stringify(type)} of ${length} bytes`);
  }
}

export class MessageTooLong extends Error {
  constructor(type: string, length: number, max: number) {
    super(`message ${JSON.stringify(type)} of ${length} bytes; a pooled connection takes ${max}`);
  }
}
