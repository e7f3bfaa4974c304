/**
 * Frames over TCP or a unix socket, little endian:
 *
 *   u32 length of the payload · u8 type · u16 check of these two · u32 CRC-32C of the payload, seeded with the check · payload
 *
 * TCP's own sum lets one in 65,536 damaged segments pass. A frame that is not what was sent ends the connection: whoever
 * asked tries again on a new one, and no wrong byte is ever believed. The check of length and type finds a damaged length
 * before anybody waits for bytes that never come. The first frame of a connection is a JSON hello; see wire/.
 */
import * as net from 'node:net';
import {crc32c} from '#runtime/crc.ts';

export type Address = {readonly host: string; readonly port: number} | {readonly path: string};

/** A peer that announces more is broken or hostile and is cut off. */
const frameBytesMax = 64 * 1024 * 1024;
const sendBufferBytesHigh = 1024 * 1024;
const headerBytes = 11;

/** 16 bits that change when any bit of length or type does. */
function headerCheck(length: number, type: number): number {
  let h = Math.imul(length ^ (type << 24) ^ 0x50_61_67_6f, 0x9e37_79b1);
  h = Math.imul(h ^ (h >>> 15), 0x85eb_ca77);
  return (h ^ (h >>> 16)) & 0xffff;
}

export class FrameError extends Error {}

export interface FrameConnection {
  readonly peer: string;
  /** Queues one frame. False: more than 1 MiB waits; go on after onDrain. */
  send(type: number, ...parts: readonly Buffer[]): boolean;
  /** The payload is a stable slice: it may be kept. */
  onFrame: (type: number, payload: Buffer) => void;
  /** Called once, with the reason when it was not an orderly end. */
  onClose: (error?: Error) => void;
  onDrain: () => void;
  pause(): void;
  resume(): void;
  readonly bufferedBytes: number;
  /** Ends after what is queued. */
  close(): void;
  destroy(): void;
}

class SocketConnection implements FrameConnection {
  readonly peer: string;
  onFrame: (type: number, payload: Buffer) => void = () => {};
  onClose: (error?: Error) => void = () => {};
  onDrain: () => void = () => {};
  readonly #socket: net.Socket;
  /** Bytes of a frame that has not arrived whole. */
  #parts: Buffer[] = [];
  #have = 0;
  #need = headerBytes;
  #error: Error | undefined;
  #corked = false;

  constructor(socket: net.Socket, peer: string) {
    this.#socket = socket;
    this.peer = peer;
    if (socket.remoteAddress !== undefined) socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('drain', () => this.onDrain());
    socket.on('error', (error) => (this.#error ??= error));
    socket.on('close', () => this.onClose(this.#error));
  }

  get bufferedBytes(): number {
    return this.#socket.writableLength;
  }

  send(type: number, ...parts: readonly Buffer[]): boolean {
    if (this.#socket.destroyed) return false;
    let length = 0;
    for (const part of parts) length += part.length;
    const check = headerCheck(length, type);
    if (!this.#corked) {
      // All frames of one turn of the event loop leave in one system call.
      this.#corked = true;
      this.#socket.cork();
      process.nextTick(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    const small = length <= 4096;
    const header = Buffer.allocUnsafe(small ? headerBytes + length : headerBytes);
    header.writeUInt32LE(length, 0);
    header[4] = type;
    header.writeUInt16LE(check, 5);
    if (small) {
      let at = headerBytes;
      for (const part of parts) at += part.copy(header, at);
      header.writeUInt32LE(crc32c(header.subarray(headerBytes), check), 7);
      this.#socket.write(header);
    } else {
      let sum = check;
      for (const part of parts) sum = crc32c(part, sum);
      header.writeUInt32LE(sum, 7);
      this.#socket.write(header);
      for (const part of parts) if (part.length > 0) this.#socket.write(part);
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

  #receive(chunk: Buffer): void {
    let buffer = chunk;
    if (this.#have > 0) {
      this.#parts.push(chunk);
      this.#have += chunk.length;
      if (this.#have < this.#need) return;
      buffer = Buffer.concat(this.#parts, this.#have);
      this.#parts = [];
      this.#have = 0;
    }
    let at = 0;
    this.#need = headerBytes;
    while (buffer.length - at >= headerBytes) {
      const length = buffer.readUInt32LE(at);
      const type = buffer[at + 4]!;
      const check = buffer.readUInt16LE(at + 5);
      if (check !== headerCheck(length, type)) {
        this.#fail(`the header of a frame from ${this.peer} was damaged on the way, or is none of ours; closing`);
        return;
      }
      if (length > frameBytesMax) {
        this.#fail(`peer ${this.peer} announced a frame of ${length} bytes; closing`);
        return;
      }
      if (buffer.length - at < headerBytes + length) {
        this.#need = headerBytes + length;
        break;
      }
      const payload = buffer.subarray(at + headerBytes, at + headerBytes + length);
      if (buffer.readUInt32LE(at + 7) !== crc32c(payload, check)) {
        this.#fail(`a frame of type ${type} and ${length} bytes from ${this.peer} was damaged on the way; closing`);
        return;
      }
      at += headerBytes + length;
      this.onFrame(type, payload);
      if (this.#socket.destroyed) return;
    }
    if (at < buffer.length) {
      this.#parts = [buffer.subarray(at)];
      this.#have = buffer.length - at;
    }
  }

  #fail(message: string): void {
    this.#error = new FrameError(message);
    this.#socket.destroy();
  }
}

function describe(address: Address): string {
  return 'path' in address ? address.path : `${address.host}:${address.port}`;
}

/** Rejects with an Error that names the address when no connection is made within `timeoutMs` (default 5 s). */
export function connectFrames(address: Address, timeoutMs = 5000): Promise<FrameConnection> {
  return new Promise((resolve, reject) => {
    const socket = net.connect('path' in address ? {path: address.path} : {host: address.host, port: address.port});
    const timer = setTimeout(() => socket.destroy(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
    const fail = (error: Error): void => {
      clearTimeout(timer);
      reject(new Error(`cannot connect to ${describe(address)}: ${error.message}`, {cause: error}));
    };
    socket.once('error', fail);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', fail);
      resolve(new SocketConnection(socket, describe(address)));
    });
  });
}

export interface Listener {
  readonly port: number;
  /** Stops listening and destroys open connections. */
  close(): Promise<void>;
}

export function listenFrames(address: Address, onConnection: (c: FrameConnection) => void): Promise<Listener> {
  return listenSockets(address, (socket) =>
    onConnection(
      new SocketConnection(
        socket,
        socket.remoteAddress === undefined ? 'unix' : `${socket.remoteAddress}:${socket.remotePort}`,
      ),
    ),
  );
}

/** Raw sockets, for protocols that are not ours (the Postgres protocol, the hydration socket). */
export function listenSockets(address: Address, onSocket: (socket: net.Socket) => void): Promise<Listener> {
  const open = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    open.add(socket);
    socket.on('close', () => open.delete(socket));
    onSocket(socket);
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
