/**
 * Internal management HTTP: a route table over node:http. (The public API v2 uses Fastify.)
 *
 * What goes over it is summed (CRC-32C, hexadecimal): `x-pagoda-head-sum` covers what else is said in the head, and
 * `x-pagoda-body-sum` the body, in the head when the body is known before, else behind it. Whoever finds a sum that does not
 * fit ends the connection: a basebackup with a flipped bit must not become a database. Without sums (curl) nothing is checked.
 */
import * as http from 'node:http';
import {crc32c} from '#runtime/crc.ts';
import type {Log} from '#runtime/log.ts';

export interface HttpRequest {
  readonly method: string;
  readonly path: string;
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly body: AsyncIterable<Buffer>;
  /** Reads and parses the body; HttpError 400 when it is not JSON, 413 above `bytesMax` (default 1 MiB). */
  json(bytesMax?: number): Promise<unknown>;
  /** What `authenticate` returned. */
  readonly claims: unknown;
}

export interface HttpResponse {
  readonly status: number;
  readonly json?: unknown;
  readonly body?: Buffer | AsyncIterable<Buffer>;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface Route {
  readonly method: string;
  /** `/v1/tenant/:tenant/timeline`: a segment that starts with a colon is a parameter. */
  readonly path: string;
  readonly handler: (request: HttpRequest) => Promise<HttpResponse>;
  /** Served without `authenticate` (liveness only). */
  readonly open?: boolean;
}

/** Answered as `{code, message}` with this status. */
export class HttpError extends Error {
  readonly status: number;
  readonly code: string;
  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export interface HttpServerOptions {
  readonly host: string;
  readonly port: number;
  readonly routes: readonly Route[];
  /** Returns the claims or throws (HttpError 401/403). Without it every route is open: loopback-only servers of one process. */
  readonly authenticate?: (token: string | undefined, request: {method: string; path: string}) => Promise<unknown>;
  readonly log: Log;
}

const headSum = 'x-pagoda-head-sum';
const bodySum = 'x-pagoda-body-sum';

export class DamagedMessageError extends Error {}

function sumOf(bytes: Buffer | string, seed = 0): string {
  return crc32c(Buffer.from(bytes as string), seed).toString(16);
}

function requestHead(method: string, path: string, authorization: string | undefined): string {
  return sumOf(`${method} ${path}\n${authorization ?? ''}`);
}

function responseHead(status: number, headers: Readonly<Record<string, unknown>>): string {
  const ours = Object.entries(headers)
    .map(([name, value]) => [name.toLowerCase(), String(value)] as const)
    .filter(([name]) => name.startsWith('x-pagoda-') && name !== headSum && name !== bodySum)
    .sort(([a], [b]) => (a < b ? -1 : 1));
  return sumOf(`${status}\n${ours.map(([name, value]) => `${name}: ${value}`).join('\n')}`);
}

/** The body of a message, and an error at its end when it is not what was sent. */
async function* checked(message: http.IncomingMessage): AsyncGenerator<Buffer> {
  let sum = 0;
  for await (const part of message as AsyncIterable<Buffer>) {
    sum = crc32c(part, sum);
    yield part;
  }
  const said = message.headers[bodySum] ?? message.trailers[bodySum];
  if (said === undefined && message.headers.trailer === undefined) return;
  if (said !== sum.toString(16)) {
    message.destroy();
    throw new DamagedMessageError('the body was damaged on the way');
  }
}

interface CompiledRoute {
  readonly route: Route;
  readonly segments: readonly string[];
}

function match(compiled: CompiledRoute, segments: readonly string[]): Record<string, string> | undefined {
  if (compiled.segments.length !== segments.length) return undefined;
  const params: Record<string, string> = {};
  for (let i = 0; i < segments.length; i++) {
    const want = compiled.segments[i]!;
    if (want.startsWith(':')) params[want.slice(1)] = segments[i]!;
    else if (want !== segments[i]) return undefined;
  }
  return params;
}

export function startHttpServer(options: HttpServerOptions): Promise<{port: number; close(): Promise<void>}> {
  const table = options.routes.map((route) => ({route, segments: route.path.split('/').slice(1)}));
  const server = http.createServer((req, res) => {
    void answer(options, table, req, res);
  });
  server.headersTimeout = 15_000;
  server.keepAliveTimeout = 60_000;
  server.requestTimeout = 0; // an import streams for as long as it needs
  return new Promise((resolve, reject) => {
    server.once('error', (error) =>
      reject(new Error(`cannot listen on ${options.host}:${options.port}: ${error.message}`, {cause: error})),
    );
    server.listen({host: options.host, port: options.port}, () => {
      const bound = server.address();
      resolve({
        port: typeof bound === 'object' && bound !== null ? bound.port : options.port,
        close: () =>
          new Promise((done) => {
            server.close(() => done());
            server.closeAllConnections();
          }),
      });
    });
  });
}

async function answer(
  options: HttpServerOptions,
  table: readonly CompiledRoute[],
  req: http.IncomingMessage,
  res: http.ServerResponse,
): Promise<void> {
  const method = req.method ?? 'GET';
  let path = '/';
  const said = req.headers[headSum];
  if (said !== undefined && said !== requestHead(method, req.url ?? '/', req.headers.authorization)) {
    options.log.warn('a request was damaged on the way; closing its connection');
    req.destroy();
    return;
  }
  try {
    const url = new URL(req.url ?? '/', 'http://localhost');
    path = url.pathname;
    const segments = path.split('/').slice(1).map(decodeSegment);
    let allowed = false;
    for (const compiled of table) {
      const params = match(compiled, segments);
      if (!params) continue;
      allowed = true;
      if (compiled.route.method !== method) continue;
      const claims =
        compiled.route.open || !options.authenticate
          ? undefined
          : await options.authenticate(bearer(req.headers.authorization), {method, path});
      const response = await compiled.route.handler({
        method,
        path,
        params,
        query: url.searchParams,
        headers: req.headers as Record<string, string | undefined>,
        body: checked(req),
        json: (bytesMax) => readJson(req, bytesMax ?? 1024 * 1024),
        claims,
      });
      await write(res, response);
      return;
    }
    throw allowed
      ? new HttpError(405, 'method_not_allowed', `${method} is not offered on ${path}`)
      : new HttpError(404, 'not_found', `no such route: ${method} ${path}`);
  } catch (error) {
    if (error instanceof DamagedMessageError) {
      options.log.warn(`${method} ${path}: ${error.message}; closing its connection`);
      res.destroy();
      return;
    }
    const known = error instanceof HttpError;
    if (!known) options.log.error(`${method} ${path} failed`, {error: String((error as Error).stack ?? error)});
    if (res.headersSent) {
      res.destroy();
      return;
    }
    const status = known ? error.status : 500;
    const body = {
      code: known ? error.code : 'internal',
      message: known ? error.message : `internal error: ${(error as Error).message}`,
    };
    res.writeHead(status, {'content-type': 'application/json'});
    res.end(JSON.stringify(body));
  }
}

function decodeSegment(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    throw new HttpError(400, 'bad_request', 'malformed percent-encoding in the path');
  }
}

function bearer(header: string | undefined): string | undefined {
  return header?.startsWith('Bearer ') ? header.slice(7) : undefined;
}

async function readJson(req: http.IncomingMessage, bytesMax: number): Promise<unknown> {
  const parts: Buffer[] = [];
  let total = 0;
  for await (const part of checked(req)) {
    total += part.length;
    if (total > bytesMax) throw new HttpError(413, 'too_large', `request body above ${bytesMax} bytes`);
    parts.push(part);
  }
  if (total === 0) return undefined;
  try {
    return JSON.parse(Buffer.concat(parts).toString('utf8'));
  } catch {
    throw new HttpError(400, 'bad_request', 'request body is not JSON');
  }
}

async function write(res: http.ServerResponse, response: HttpResponse): Promise<void> {
  const known =
    response.json !== undefined
      ? Buffer.from(JSON.stringify(response.json))
      : response.body === undefined || Buffer.isBuffer(response.body)
        ? (response.body ?? Buffer.alloc(0))
        : undefined;
  const headers: Record<string, string> = {
    ...(response.json === undefined ? {} : {'content-type': 'application/json'}),
    ...response.headers,
    ...(known === undefined ? {trailer: bodySum} : {[bodySum]: sumOf(known)}),
  };
  res.writeHead(response.status, {...headers, [headSum]: responseHead(response.status, headers)});
  if (known !== undefined) {
    res.end(known);
    return;
  }
  let sum = 0;
  for await (const part of response.body as AsyncIterable<Buffer>) {
    sum = crc32c(part, sum);
    if (!res.write(part)) await drained(res);
  }
  res.addTrailers({[bodySum]: sum.toString(16)});
  res.end();
}

/** Resolves when more may be written; rejects when the peer went away instead. */
function drained(stream: http.OutgoingMessage): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (): void => {
      stream.off('drain', done);
      stream.off('close', done);
      if (stream.destroyed) reject(new Error('the peer went away'));
      else resolve();
    };
    stream.on('drain', done);
    stream.on('close', done);
  });
}

export interface RequestOptions {
  readonly method: string;
  readonly url: string;
  readonly token?: string;
  readonly body?: unknown;
  readonly timeoutMs?: number;
}

const agent = new http.Agent({keepAlive: true, maxSockets: 64});

/** One JSON request. Rejects only when no answer came; the caller looks at `status`. */
export async function requestJson(options: RequestOptions): Promise<{status: number; json: unknown}> {
  const body = options.body === undefined ? undefined : Buffer.from(JSON.stringify(options.body));
  const response = await send(
    options,
    body === undefined ? [] : [body],
    body === undefined
      ? {[bodySum]: sumOf('')}
      : {'content-type': 'application/json', 'content-length': String(body.length), [bodySum]: sumOf(body)},
  );
  const parts: Buffer[] = [];
  for await (const part of checked(response)) parts.push(part);
  const text = Buffer.concat(parts).toString('utf8');
  let json: unknown;
  try {
    json = text === '' ? undefined : JSON.parse(text);
  } catch {
    json = {code: 'not_json', message: text.slice(0, 500)};
  }
  return {status: response.statusCode ?? 0, json};
}

/** One request with a streamed body and a streamed answer. */
export async function requestStream(
  options: Omit<RequestOptions, 'body'> & {readonly body?: AsyncIterable<Buffer> | Iterable<Buffer>},
): Promise<{status: number; headers: Readonly<Record<string, string | undefined>>; body: AsyncIterable<Buffer>}> {
  const response = await send(options, options.body ?? [], {trailer: bodySum, 'transfer-encoding': 'chunked'});
  return {
    status: response.statusCode ?? 0,
    headers: response.headers as Record<string, string | undefined>,
    body: checked(response),
  };
}

function send(
  options: Omit<RequestOptions, 'body'>,
  body: AsyncIterable<Buffer> | Iterable<Buffer>,
  headers: Record<string, string>,
): Promise<http.IncomingMessage> {
  return new Promise((resolve, reject) => {
    const authorization = options.token === undefined ? undefined : `Bearer ${options.token}`;
    const url = new URL(options.url);
    const request = http.request(url, {
      method: options.method,
      agent,
      headers: {
        ...headers,
        [headSum]: requestHead(options.method, url.pathname + url.search, authorization),
        ...(authorization === undefined ? {} : {authorization}),
      },
    });
    const fail = (error: NodeJS.ErrnoException): void => {
      // The server may close a connection that has been idle in the moment in which it is used again.
      const again = error.code === 'ECONNRESET' && request.reusedSocket && options.method !== 'POST';
      if (again && Array.isArray(body)) resolve(send(options, body as Buffer[], headers));
      else reject(new Error(`${options.method} ${options.url}: ${error.message}`, {cause: error}));
    };
    request.setTimeout(options.timeoutMs ?? 60_000, () =>
      request.destroy(new Error(`no answer within ${options.timeoutMs ?? 60_000} ms`)),
    );
    request.on('error', fail);
    request.on('response', (response) => {
      const said = response.headers[headSum];
      if (said === undefined || said === responseHead(response.statusCode ?? 0, response.headers)) resolve(response);
      else {
        response.destroy();
        fail(new DamagedMessageError('the answer was damaged on the way'));
      }
    });
    void (async () => {
      try {
        let sum = 0;
        for await (const part of body) {
          sum = crc32c(part, sum);
          if (!request.write(part)) await drained(request);
          if (request.destroyed) return;
        }
        if (headers['trailer'] !== undefined) request.addTrailers({[bodySum]: sum.toString(16)});
        request.end();
      } catch (error) {
        request.destroy(error as Error);
      }
    })();
  });
}
