/** HTTP and WebSocket on sockets that somebody else accepted: the proxy sniffs the protocol before it knows. */
import * as http from 'node:http';
import type {Socket} from 'node:net';
import type {Duplex} from 'node:stream';
import {WebSocketServer, createWebSocketStream} from 'ws';

export interface WebRequest {
  readonly method: string;
  /** Path and query, as sent. */
  readonly url: string;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly clientIp: string;
  /** The body; undefined when it is longer than `bytesMax`. */
  body(bytesMax: number): Promise<Buffer | undefined>;
}

export interface WebResponse {
  readonly status: number;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Buffer;
}

/** A peer may take this long for its headers, and this long to idle between requests. */
const headersMsMax = 15_000;
const requestMsMax = 60_000;
const keepAliveMs = 65_000;
const closingMs = 100;
/** Who is answered before all of its body was read may go on sending for so long, and is not read. */
const lingerMs = 1000;
const webSocketFrameBytesMax = 64 * 1024 * 1024;

/** Ends a WebSocket that sends more than this before the function that comes back is called. */
export type LimitBytes = (bytesMax: number) => () => void;

export class WebServer {
  readonly #http: http.Server;
  readonly #sockets = new Set<Socket>();
  readonly #webSockets: WebSocketServer;

  /** `onWebSocket` gets the bytes of its frames as a stream; it owns the stream. */
  constructor(options: {
    onRequest: (request: WebRequest) => Promise<WebResponse>;
    onWebSocket: (stream: Duplex, request: Omit<WebRequest, 'body'>, limit: LimitBytes) => void;
  }) {
    const webSockets = (this.#webSockets = new WebSocketServer({
      noServer: true,
      maxPayload: webSocketFrameBytesMax,
      perMessageDeflate: false,
    }));
    this.#http = http.createServer(
      {
        headersTimeout: headersMsMax,
        requestTimeout: requestMsMax,
        keepAliveTimeout: keepAliveMs,
        connectionsCheckingInterval: 1000,
      },
      (req, res) => {
        void answer(req, res, options.onRequest);
      },
    );
    this.#http.on('upgrade', (req, socket, head) => {
      webSockets.handleUpgrade(req, socket, head, (peer) => {
        const stream = createWebSocketStream(peer);
        options.onWebSocket(stream, describe(req), (bytesMax) => limitBytes(socket, bytesMax));
      });
    });
    // Node looks after its time limits from here on; this server never listens itself.
    this.#http.emit('listening');
  }

  /** Serves a connection; `first` is what was read of it already. */
  accept(socket: Socket, first: Buffer): void {
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
    if (first.length > 0) socket.unshift(first);
    this.#http.emit('connection', socket);
    socket.resume();
  }

  /** WebSockets are told that we go (1001); every connection ends a moment later at the latest. */
  async close(): Promise<void> {
    for (const peer of this.#webSockets.clients) peer.close(1001);
    if (this.#webSockets.clients.size > 0) await new Promise((resolve) => setTimeout(resolve, closingMs));
    for (const socket of this.#sockets) socket.destroy();
    this.#http.close();
  }
}

/** Below the frames: a frame is held until it is whole. */
function limitBytes(socket: Duplex, bytesMax: number): () => void {
  let left = bytesMax;
  const count = (chunk: Buffer): void => {
    left -= chunk.length;
    if (left < 0) socket.destroy();
  };
  socket.on('data', count);
  return () => void socket.off('data', count);
}

function describe(req: http.IncomingMessage): Omit<WebRequest, 'body'> {
  return {
    method: req.method ?? 'GET',
    url: req.url ?? '/',
    headers: req.headers as Record<string, string | undefined>,
    clientIp: req.socket.remoteAddress ?? 'unix',
  };
}

async function answer(
  req: http.IncomingMessage,
  res: http.ServerResponse,
  onRequest: (request: WebRequest) => Promise<WebResponse>,
): Promise<void> {
  const body = async (bytesMax: number): Promise<Buffer | undefined> => {
    const parts: Buffer[] = [];
    let total = 0;
    for await (const part of req as AsyncIterable<Buffer>) {
      total += part.length;
      if (total > bytesMax) return undefined;
      parts.push(part);
    }
    return Buffer.concat(parts);
  };
  try {
    const response = await onRequest({...describe(req), body});
    if (req.complete) {
      res.writeHead(response.status, {...response.headers});
      res.end(response.body);
    } else await answerEarly(req, res, response);
  } catch {
    res.destroy();
  }
}

/**
 * Of a body that was not read to its end nothing must be taken for the next request: the connection ends. Not at once: the reset that
 * follows what a closed socket still gets would take the answer away from a peer that has not read it yet.
 */
async function answerEarly(
  req: http.IncomingMessage,
  res: http.ServerResponse,
  {status, headers, body = ''}: WebResponse,
): Promise<void> {
  res.shouldKeepAlive = false;
  res.writeHead(status, {...headers, 'content-length': Buffer.byteLength(body)});
  res.write(body);
  req.resume();
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, lingerMs);
    for (const end of ['end', 'close'])
      req.once(end, () => {
        clearTimeout(timer);
        resolve();
      });
  });
  res.end();
}
