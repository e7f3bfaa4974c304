/**
 * Frames over TCP or a unix socket, little endian:
 *
 *   u32 length of the payload · u8 type · u16 check of these two · u32 CRC-32 of the payload, seeded with the check · payload
 *
 * TCP's own sum lets one in 65,536 damaged segments pass. A frame that is not what was sent ends the connection: whoever
 * asked tries again on a new one, and no wrong byte is ever believed. The check of length and type finds a damaged length
 * before anybody waits for bytes that never come. The first frame of a connection is a JSON hello; see wire/.
 */
import * as net from 'node:net';
import {crc32} from '#runtime/crc.ts';

export type Address = {readonly host: string; readonly port: number} | {readonly path: string};

/** A peer that announces more is broken or hostile and is cut off. */
const frameBytesMax = 64 * 1024 * 1024;
const sendBufferBytesHigh = 1024 * 1024;
const headerBytes = 11;

/** 16 bits that change when any bit of length or type does; the constant is another one for each version of the format. */
function headerCheck(length: number, type: number): number {
  let h = Math.imul(length ^ (type << 24) ^ 0x50_61_67_32, 0x9e37_79b1);
  h = Math.imul(h ^ (h >>> 15), 0x85eb_ca77);
  return (h ^ (h >>> 16)) & 0xffff;
}

export class FrameError extends Error {}

export interface FrameConnection {
  readonly peer: string;
  /** Queues one frame. False: more than 1 MiB waits; go on after onDrain. */
  send(type: number, ...parts: readonly Buffer[]): boolean;
  /** Like send, for a frame that no other follows: it leaves now, not at the end of this turn of the event loop. */
  sendNow(type: number, ...parts: readonly Buffer[]): boolean;
  /** The payload is a stable slice: it may be kept. */
  onFrame: (type: number, payload: Buffer) => void;
  /** Called once, with the reason when it was not an orderly end. */
  onClose: (error?: Error) => void;
  onDrain: () => void;
  pause(): void;
  resume(): void;
  readonly bufferedBytes: number;
  /**
   * Like send, for large parts that are used again: `onSent` is called when the system has taken them, or never will; until
   * then they must not change.
   */
  sendThen(onSent: () => void, type: number, ...parts: readonly Buffer[]): boolean;
  /**
   * Gives the memory of a received payload back, to be used for a later one: nothing of it may be looked at any more. Worth
   * calling for payloads of hundreds of kilobytes; never necessary.
   */
  recycle(payload: Buffer): void;
  /** Ends after what is queued. */
  close(): void;
  destroy(): void;
}

/** Payloads of this size and more are read straight into memory of their own, and that memory may be recycled. */
const largeBytes = 64 * 1024;
/** Memory of large payloads kept for later ones, by a connection. */
const recycledMax = 8;
const readBytes = 64 * 1024;

/** What is read is looked at before anything else is read: connections share it, until a part of a frame must be kept. */
const sharedScratch = Buffer.allocUnsafeSlow(readBytes);

/**
 * The receiving end of a connection. Reads go into one buffer that is used again and again, or, for the rest of a large frame,
 * straight to where its payload will be. (Fresh memory for every 64 KiB, then copied together, cost more time in the garbage
 * collector than everything else that is done with a page.)
 */
class FrameReader {
  #scratch = sharedScratch;
  /** In scratch, which then is our own: [0, #have) is the beginning of a frame that is not whole. */
  #have = 0;
  /** A large frame whose payload is being read. */
  #payload: Buffer | undefined;
  #filled = 0;
  #type = 0;
  #check = 0;
  #sum = 0;
  readonly memory = new PayloadMemory();

  /** Where the next bytes go. */
  target(): Buffer {
    return this.#payload === undefined ? this.#scratch.subarray(this.#have) : this.#payload.subarray(this.#filled);
  }

  /** `bytes` have been read into target(). Throws FrameError. */
  advance(bytes: number, peer: string, onFrame: (type: number, payload: Buffer) => boolean): void {
    if (this.#payload !== undefined) {
      this.#filled += bytes;
      if (this.#filled < this.#payload.length) return;
      const payload = this.#payload;
      this.#payload = undefined;
      checkPayload(peer, this.#type, payload, this.#check, this.#sum);
      onFrame(this.#type, payload);
      return;
    }
    const end = this.#have + bytes;
    const scratch = this.#scratch;
    let at = 0;
    while (end - at >= headerBytes) {
      const length = scratch.readUInt32LE(at);
      const type = scratch[at + 4]!;
      const check = scratch.readUInt16LE(at + 5);
      checkHeader(peer, length, type, check);
      const sum = scratch.readUInt32LE(at + 7);
      const from = at + headerBytes;
      if (end - from < length && length >= largeBytes - headerBytes) {
        const payload = this.memory.take(length);
        this.#filled = scratch.copy(payload, 0, from, end);
        this.#payload = payload;
        this.#type = type;
        this.#check = check;
        this.#sum = sum;
        this.#have = 0;
        return;
      }
      if (end - from < length) break;
      const payload = Buffer.from(scratch.subarray(from, from + length));
      checkPayload(peer, type, payload, check, sum);
      at = from + length;
      if (!onFrame(type, payload)) return;
    }
    this.#have = end - at;
    if (this.#have > 0 && scratch === sharedScratch) this.#scratch = Buffer.allocUnsafeSlow(readBytes);
    if (at > 0 || scratch !== this.#scratch) scratch.copy(this.#scratch, 0, at, end);
  }
}

/** Memory for large payloads: fresh pages cost more than what is done with the bytes. */
class PayloadMemory {
  readonly #recycled: Buffer[] = [];

  recycle(payload: Buffer): void {
    const own = payload.byteOffset === 0 && payload.buffer.byteLength <= 2 * payload.length;
    if (payload.length >= largeBytes && own && this.#recycled.length < recycledMax) this.#recycled.push(payload);
  }

  take(length: number): Buffer {
    const at = this.#recycled.findIndex((b) => b.buffer.byteLength >= length && b.buffer.byteLength <= 2 * length);
    if (at < 0) return Buffer.allocUnsafeSlow(length);
    const [found] = this.#recycled.splice(at, 1);
    return Buffer.from(found!.buffer, 0, length);
  }
}

function checkHeader(peer: string, length: number, type: number, check: number): void {
  if (check !== headerCheck(length, type))
    throw new FrameError(
      `the header of a frame from ${peer} was damaged on the way, or is none of ours (or of another version); closing`,
    );
  if (length > frameBytesMax) throw new FrameError(`peer ${peer} announced a frame of ${length} bytes; closing`);
}

function checkPayload(peer: string, type: number, payload: Buffer, check: number, sum: number): void {
  if (sum !== crc32(payload, check))
    throw new FrameError(
      `a frame of type ${type} and ${payload.length} bytes from ${peer} was damaged on the way; closing`,
    );
}

class SocketConnection implements FrameConnection {
  readonly peer: string;
  onFrame: (type: number, payload: Buffer) => void = () => {};
  onClose: (error?: Error) => void = () => {};
  onDrain: () => void = () => {};
  readonly #socket: net.Socket;
  #error: Error | undefined;
  #corked = false;
  readonly #reader: FrameReader;

  /** `reader`: of a socket made with `onread`, whose reads go to `read()`. */
  constructor(socket: net.Socket, peer: string, reader: FrameReader) {
    this.#socket = socket;
    this.peer = peer;
    this.#reader = reader;
    if (socket.remoteAddress !== undefined) {
      socket.setNoDelay(true);
      // A machine that vanished says nothing: the kernel finds out within about 20 s (libuv probes every second, ten times).
      socket.setKeepAlive(true, 10_000);
    }
    socket.on('drain', () => this.onDrain());
    socket.on('error', (error) => (this.#error ??= error));
    socket.on('close', () => this.onClose(this.#error));
  }

  get bufferedBytes(): number {
    return this.#socket.writableLength;
  }

  /** So many bytes have been read into the reader's target. */
  read(bytes: number): void {
    try {
      this.#reader.advance(bytes, this.peer, (type, payload) => {
        this.onFrame(type, payload);
        return !this.#socket.destroyed;
      });
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      this.#fail(error.message);
    }
  }

  recycle(payload: Buffer): void {
    this.#reader.memory.recycle(payload);
  }

  sendThen(onSent: () => void, type: number, ...parts: readonly Buffer[]): boolean {
    if (this.#socket.destroyed) {
      onSent();
      return false;
    }
    return this.#write(type, parts, () => onSent());
  }

  send(type: number, ...parts: readonly Buffer[]): boolean {
    return this.#socket.destroyed ? false : this.#write(type, parts, undefined);
  }

  sendNow(type: number, ...parts: readonly Buffer[]): boolean {
    return this.#socket.destroyed ? false : this.#write(type, parts, undefined, false);
  }

  #write(type: number, parts: readonly Buffer[], onSent: (() => void) | undefined, cork = true): boolean {
    let length = 0;
    for (const part of parts) length += part.length;
    const check = headerCheck(length, type);
    const small = length <= 4096;
    if (!this.#corked && (cork || !small)) {
      // All frames of one turn of the event loop leave in one system call.
      this.#corked = true;
      this.#socket.cork();
      process.nextTick(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    const header = Buffer.allocUnsafe(small ? headerBytes + length : headerBytes);
    header.writeUInt32LE(length, 0);
    header[4] = type;
    header.writeUInt16LE(check, 5);
    if (small) {
      let at = headerBytes;
      for (const part of parts) at += part.copy(header, at);
      header.writeUInt32LE(crc32(header.subarray(headerBytes), check), 7);
      this.#socket.write(header, onSent);
    } else {
      let sum = check;
      for (const part of parts) sum = crc32(part, sum);
      header.writeUInt32LE(sum, 7);
      this.#socket.write(header);
      const last = parts.findLastIndex((part) => part.length > 0);
      for (let i = 0; i <= last; i++)
        if (parts[i]!.length > 0) this.#socket.write(parts[i]!, i === last ? onSent : undefined);
    }
    return this.#socket.writableLength < sendBufferBytesHigh;
  }

  pause(): void {
    this.#socket.pause();
  }
  resume(): void {
    this.#socket.resume();
  }
  close(): void {
    this.#socket.end();
  }
  destroy(): void {
    this.#socket.destroy();
  }

  #fail(message: string): void {
    this.#error = new FrameError(message);
    this.#socket.destroy();
  }
}

function describe(address: Address): string {
  return 'path' in address ? address.path.replace('\0', '@') : `${address.host}:${address.port}`;
}

/**
 * A listener on loopback also has a name among Linux's abstract unix sockets: like the port it belongs to the network namespace
 * and is gone with the process. A message costs half as much system time on that way.
 */
function shortWay(address: Address): Address | undefined {
  return process.platform === 'linux' && 'host' in address && address.host === '127.0.0.1'
    ? {path: `\0pagoda ${address.host}:${address.port}`}
    : undefined;
}

/** Rejects with an Error that names the address when no connection is made within `timeoutMs` (default 5 s). */
export async function connectFrames(address: Address, timeoutMs = 5000): Promise<FrameConnection> {
  const short = shortWay(address);
  if (short !== undefined) {
    try {
      return await connectOneWay(short, describe(address), timeoutMs);
    } catch (error) {
      // Nobody of ours listens there: maybe a forwarder does.
      if (((error as Error).cause as {code?: string} | undefined)?.code !== 'ECONNREFUSED') throw error;
    }
  }
  return await connectOneWay(address, describe(address), timeoutMs);
}

function connectOneWay(address: Address, name: string, timeoutMs: number): Promise<FrameConnection> {
  return new Promise((resolve, reject) => {
    const reading = new Reading();
    const {onread} = reading;
    const socket = net.connect(
      'path' in address ? {path: address.path, onread} : {host: address.host, port: address.port, onread},
    );
    const timer = setTimeout(() => socket.destroy(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
    const fail = (error: Error): void => {
      clearTimeout(timer);
      reject(new Error(`cannot connect to ${name}: ${error.message}`, {cause: error}));
    };
    socket.once('error', fail);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', fail);
      resolve(reading.begin(socket, name));
    });
  });
}

/** Reads of a socket, until and after there is a connection for them. */
class Reading {
  readonly #reader = new FrameReader();
  #connection: SocketConnection | undefined;

  readonly onread: net.OnReadOpts = {
    buffer: () => this.#reader.target(),
    callback: (bytes) => {
      this.#connection?.read(bytes);
      return true;
    },
  };

  begin(socket: net.Socket, peer: string): FrameConnection {
    this.#connection = new SocketConnection(socket, peer, this.#reader);
    return this.#connection;
  }
}

/**
 * The same connection as a socket that was made with `onread`: a server's sockets cannot be. Must be called as soon as the socket
 * was accepted, by a server with pauseOnConnect.
 */
function adopt(accepted: net.Socket, onread: net.OnReadOpts): net.Socket {
  const shell = accepted as unknown as {_handle: unknown};
  const options = {handle: shell._handle, onread} as unknown as net.SocketConstructorOpts;
  shell._handle = null;
  const socket = new net.Socket(options);
  accepted.destroy();
  return socket;
}

/**
 * Destroys the connection unless the returned function is called within `ms`: for the answer to a hello. A stopped process
 * still accepts connections (its kernel does), so a connection that was made proves nothing.
 */
export function answerWithin(connection: FrameConnection, ms: number): () => void {
  const timer = setTimeout(() => connection.destroy(), ms);
  return () => clearTimeout(timer);
}

export interface Listener {
  readonly port: number;
  /** Stops listening and destroys open connections. */
  close(): Promise<void>;
}

export async function listenFrames(address: Address, onConnection: (c: FrameConnection) => void): Promise<Listener> {
  const accept = (accepted: net.Socket): net.Socket => {
    const reading = new Reading();
    const socket = adopt(accepted, reading.onread);
    const {remoteAddress, remotePort} = socket;
    onConnection(
      reading.begin(socket, remoteAddress === undefined ? 'this machine' : `${remoteAddress}:${remotePort}`),
    );
    return socket;
  };
  const listener = await listen(address, true, accept);
  const short = shortWay('host' in address ? {host: address.host, port: listener.port} : address);
  if (short === undefined) return listener;
  try {
    const local = await listen(short, true, accept);
    return {port: listener.port, close: async () => void (await Promise.all([local.close(), listener.close()]))};
  } catch (error) {
    await listener.close();
    throw error;
  }
}

/** Raw sockets, for protocols that are not ours (the Postgres protocol, the hydration socket). */
export function listenSockets(address: Address, onSocket: (socket: net.Socket) => void): Promise<Listener> {
  return listen(address, false, (socket) => {
    onSocket(socket);
    return socket;
  });
}

/** `take` gives the socket that the connection goes on with. */
function listen(
  address: Address,
  pauseOnConnect: boolean,
  take: (accepted: net.Socket) => net.Socket,
): Promise<Listener> {
  const open = new Set<net.Socket>();
  const server = net.createServer({pauseOnConnect}, (accepted) => {
    const socket = take(accepted);
    open.add(socket);
    socket.on('close', () => open.delete(socket));
  });
  return new Promise((resolve, reject) => {
    server.once('error', (error) =>
      reject(new Error(`cannot listen on ${describe(address)}: ${error.message}`, {cause: error})),
    );
    const ready = (): void => {
      const bound = server.address();
      resolve({
        port: typeof bound === 'object' && bound !== null ? bound.port : 0,
        close: () =>
          new Promise((done) => {
            server.close(() => done());
            for (const socket of open) socket.destroy();
          }),
      });
    };
    if ('path' in address) server.listen({path: address.path}, ready);
    else server.listen({host: address.host, port: address.port}, ready);
  });
}

/** A loopback port that nobody listens on now. */
export async function freePort(host = '127.0.0.1'): Promise<number> {
  const listener = await listenSockets({host, port: 0}, (socket) => socket.destroy());
  await listener.close();
  return listener.port;
}

export function connectSocket(address: Address): net.Socket {
  return net.connect('path' in address ? {path: address.path} : {host: address.host, port: address.port});
}

/** A socket that reads into one piece of memory again and again: `onBytes` is given a view that is valid until it returns. */
export function connectReading(address: Address, bufferBytes: number, onBytes: (view: Buffer) => void): net.Socket {
  const buffer = Buffer.allocUnsafeSlow(bufferBytes);
  const onread: net.OnReadOpts = {
    buffer,
    callback(bytes) {
      onBytes(buffer.subarray(0, bytes));
      return true;
    },
  };
  return net.connect('path' in address ? {path: address.path, onread} : {...address, onread});
}

export type {Socket} from 'node:net';
/** What a socket and a WebSocket's bytes have in common. */
export type {Duplex as Stream} from 'node:stream';

export function sendJson(connection: FrameConnection, type: number, value: unknown): boolean {
  return connection.send(type, Buffer.from(JSON.stringify(value)));
}

/** Throws FrameError when the payload is not JSON. */
export function parseJsonFrame(payload: Buffer): unknown {
  try {
    return JSON.parse(payload.toString('utf8'));
  } catch {
    throw new FrameError('frame is not JSON');
  }
}
