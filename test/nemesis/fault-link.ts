/**
 * A TCP link between two roles that can be made bad: delayed, slow, mute in one direction or both, cut, or with flipped bits.
 * Bytes that are held are not lost (a partition is bridged by TCP's retransmission); `healThenReset` loses them.
 */
import {type Server, type Socket, connect, createServer} from 'node:net';
import type {SeededRandom} from '#runtime/random.ts';

export interface LinkFault {
  /** Each chunk waits this long, and up to `jitterMs` more; order is kept. */
  readonly delayMs?: number;
  readonly jitterMs?: number;
  /** Bytes of this direction stay here until the link is healed. `up` = from who connects to who listens. */
  readonly hold?: 'up' | 'down' | 'both';
  /** One in so many chunks gets a flipped bit. */
  readonly corruptOneIn?: number;
  /** Bytes per second and connection. */
  readonly bandwidth?: number;
  /** Only connections whose hello names this service (proposer, reader, …). */
  readonly service?: string;
}

const bufferedMax = 4 * 1024 * 1024;

export class FaultLink {
  readonly name: string;
  readonly port: number;
  /** Bits flipped so far. */
  corrupted = 0;
  readonly #server: Server;
  readonly #random: SeededRandom;
  readonly #pipes = new Set<Pipe>();
  #fault: LinkFault | undefined;

  static async start(options: {
    readonly name: string;
    readonly host: string;
    readonly port: number;
    readonly target: {readonly host: string; readonly port: number};
    readonly random: SeededRandom;
  }): Promise<FaultLink> {
    const server = createServer({allowHalfOpen: true});
    const link = new FaultLink(options.name, server, options.port, options.random);
    server.on('connection', (client) => link.#accept(client, options.target));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(options.port, options.host, resolve);
    });
    return link;
  }

  private constructor(name: string, server: Server, port: number, random: SeededRandom) {
    this.name = name;
    this.#server = server;
    this.port = port;
    this.#random = random;
  }

  get fault(): LinkFault | undefined {
    return this.#fault;
  }

  set(fault: LinkFault): void {
    this.#fault = fault;
  }

  heal(): void {
    this.#fault = undefined;
    for (const pipe of this.#pipes) pipe.release();
  }

  /** As a partition that lasted too long for TCP: what was held is lost. */
  healThenReset(): void {
    this.#fault = undefined;
    this.reset();
  }

  /** RST on every connection, also in the middle of a message. */
  reset(): void {
    for (const pipe of this.#pipes) pipe.reset();
  }

  async close(): Promise<void> {
    this.reset();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #accept(client: Socket, target: {readonly host: string; readonly port: number}): void {
    const server = connect({host: target.host, port: target.port, allowHalfOpen: true});
    client.setNoDelay(true);
    server.setNoDelay(true);
    const service: {name: string | undefined} = {name: undefined};
    const effective = (): LinkFault | undefined => {
      const fault = this.#fault;
      return fault?.service === undefined || fault.service === service.name ? fault : undefined;
    };
    const up = new Pipe('up', client, server, effective, this.#random, () => this.corrupted++);
    const down = new Pipe('down', server, client, effective, this.#random, () => this.corrupted++);
    up.onFirst = (chunk) => {
      service.name = /"service":"([a-z]+)"/.exec(chunk.subarray(0, 4096).toString('latin1'))?.[1];
    };
    for (const pipe of [up, down]) this.#pipes.add(pipe);
    const end = (): void => {
      for (const pipe of [up, down]) {
        pipe.stop();
        this.#pipes.delete(pipe);
      }
    };
    const over = (self: Socket, other: Socket) => (): void => {
      // Both have ended, or one was cut: the other side must learn of it unless the link is mute.
      const fault = effective();
      if (fault?.hold === undefined) {
        other.destroy();
        end();
      } else if (other.destroyed) end();
      self.destroy();
    };
    client.on('error', () => {});
    server.on('error', () => {});
    client.on('close', over(client, server));
    server.on('close', over(server, client));
  }
}

/** One direction of one connection. */
class Pipe {
  onFirst: ((chunk: Buffer) => void) | undefined;
  readonly #direction: 'up' | 'down';
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #fault: () => LinkFault | undefined;
  readonly #random: SeededRandom;
  readonly #onCorrupt: () => void;
  /** An empty chunk is the end of the stream. */
  #queue: {chunk: Buffer; dueMs: number}[] = [];
  #bytes = 0;
  #lastDueMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(
    direction: 'up' | 'down',
    from: Socket,
    to: Socket,
    fault: () => LinkFault | undefined,
    random: SeededRandom,
    onCorrupt: () => void,
  ) {
    this.#direction = direction;
    this.#from = from;
    this.#to = to;
    this.#fault = fault;
    this.#random = random;
    this.#onCorrupt = onCorrupt;
    from.on('data', (chunk: Buffer) => this.#take(chunk));
    from.on('end', () => this.#take(Buffer.alloc(0)));
    to.on('drain', () => {
      if (this.#bytes < bufferedMax) from.resume();
    });
  }

  release(): void {
    for (const entry of this.#queue) entry.dueMs = 0;
    this.#lastDueMs = 0;
    this.#pump();
  }

  reset(): void {
    this.#from.resetAndDestroy();
    this.#to.resetAndDestroy();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#queue = [];
  }

  #take(chunk: Buffer): void {
    if (this.#stopped) return;
    this.onFirst?.(chunk);
    this.onFirst = undefined;
    const fault = this.#fault();
    let bytes = chunk;
    if (fault?.corruptOneIn !== undefined && chunk.length > 0 && this.#random.uint32() % fault.corruptOneIn === 0) {
      bytes = Buffer.from(chunk);
      bytes[this.#random.uint32() % bytes.length]! ^= 1 << (this.#random.uint32() & 7);
      this.#onCorrupt();
    }
    if (fault === undefined && this.#queue.length === 0) {
      this.#forward(bytes);
      return;
    }
    const jitter = fault?.jitterMs === undefined ? 0 : this.#random.float() * fault.jitterMs;
    const slow = fault?.bandwidth === undefined ? 0 : (chunk.length / fault.bandwidth) * 1000;
    const now = performance.now();
    this.#lastDueMs = Math.max(now + (fault?.delayMs ?? 0) + jitter, this.#lastDueMs) + slow;
    this.#queue.push({chunk: bytes, dueMs: this.#lastDueMs});
    this.#bytes += bytes.length;
    if (this.#bytes >= bufferedMax) this.#from.pause();
    this.#pump();
  }

  #pump(): void {
    if (this.#stopped) return;
    clearTimeout(this.#timer);
    const hold = this.#fault()?.hold;
    if (hold === 'both' || hold === this.#direction) return;
    const now = performance.now();
    while (this.#queue.length > 0 && this.#queue[0]!.dueMs <= now) {
      const {chunk} = this.#queue.shift()!;
      this.#bytes -= chunk.length;
      this.#forward(chunk);
    }
    const next = this.#queue[0];
    if (next !== undefined) this.#timer = setTimeout(() => this.#pump(), next.dueMs - now);
    else if (!this.#to.writableNeedDrain) this.#from.resume();
  }

  #forward(chunk: Buffer): void {
    if (this.#to.destroyed) return;
    if (chunk.length === 0) this.#to.end();
    else if (!this.#to.write(chunk)) this.#from.pause();
  }
}
