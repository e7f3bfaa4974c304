/**
 * A proxy between an S3 client and its server that does what networks and servers do on bad days, on command: refuses before
 * anything is done, does the work and loses the answer, answers slowly or never, answers 503, cuts or pads the body.
 */
import {type IncomingMessage, type ServerResponse, createServer, request} from 'node:http';
import type {Server} from 'node:http';
import type {AddressInfo} from 'node:net';
import {setTimeout as sleep} from 'node:timers/promises';

/**
 * `refuse`: the connection breaks before the server hears of it. `lost`: the server does it, the connection breaks without an
 * answer. `503`: SlowDown, nothing done. `500-done`: done, answered with InternalError. `slow`: done and answered after a
 * while. `hang`: done, no answer ever. `short`: the body ends early. `claim-short`: half of the body, and headers that say that
 * this is all. `late-cut`: the connection breaks in the middle of the request's body.
 */
export const faults = [
  'refuse',
  'lost',
  '503',
  '500-done',
  'slow',
  'hang',
  'short',
  'claim-short',
  'late-cut',
] as const;
export type Fault = (typeof faults)[number];

export class FaultProxy {
  readonly endpoint: string;
  /** What happens to a request: asked when its head has come. */
  decide: (method: string, path: string) => Fault | undefined = () => undefined;
  slowMs = 300;
  /** Requests seen, and faults done, by kind. */
  requests = 0;
  readonly done = new Map<Fault, number>();
  readonly #hanging = new Set<ServerResponse>();
  readonly #server: Server;
  readonly #target: URL;

  private constructor(server: Server, target: string) {
    this.#server = server;
    this.#target = new URL(target);
    const {address, port} = server.address() as AddressInfo;
    this.endpoint = `http://${address}:${port}`;
  }

  static async start(target: string, host = '127.0.0.1'): Promise<FaultProxy> {
    let proxy: FaultProxy | undefined;
    const server = createServer((req, res) => {
      proxy?.handle(req, res).catch(() => res.destroy());
    });
    await new Promise<void>((resolve) => server.listen(0, host, () => resolve()));
    proxy = new FaultProxy(server, target);
    return proxy;
  }

  /** A fault for one in `oneIn` requests, drawn from `kinds`; the same seed gives the same row of decisions. */
  random(seed: number, oneIn: number, kinds: readonly Fault[]): void {
    let state = seed >>> 0 || 1;
    const next = (): number => {
      state ^= state << 13;
      state >>>= 0;
      state ^= state >>> 17;
      state ^= state << 5;
      state >>>= 0;
      return state;
    };
    this.decide = () => (next() % oneIn === 0 ? kinds[next() % kinds.length] : undefined);
  }

  /** No more faults; who was left hanging hears at last that it was in vain. */
  heal(): void {
    this.decide = () => undefined;
    for (const res of this.#hanging) res.destroy();
    this.#hanging.clear();
  }

  async handle(req: IncomingMessage, res: ServerResponse): Promise<void> {
    this.requests++;
    const fault = this.decide(req.method ?? 'GET', req.url ?? '/');
    if (fault !== undefined) this.done.set(fault, (this.done.get(fault) ?? 0) + 1);
    if (fault === 'refuse') {
      req.socket.destroy();
      return;
    }
    if (fault === '503') {
      for await (const chunk of req) void chunk;
      res.writeHead(503, {'content-type': 'application/xml', connection: 'close'});
      res.end('<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>reduce your request rate</Message></Error>');
      return;
    }
    if (fault === 'late-cut') {
      for await (const chunk of req) {
        void chunk;
        break;
      }
      req.socket.destroy();
      return;
    }
    const answer = await this.#forward(req);
    const parts: Buffer[] = [];
    for await (const part of answer as AsyncIterable<Buffer>) parts.push(part);
    const body = Buffer.concat(parts);
    const status = answer.statusCode ?? 500;
    switch (fault) {
      case 'lost':
        res.destroy();
        return;
      case 'hang':
        this.#hanging.add(res);
        return;
      case '500-done':
        res.writeHead(500, {'content-type': 'application/xml'});
        res.end('<?xml version="1.0"?><Error><Code>InternalError</Code><Message>we are sorry</Message></Error>');
        return;
      case 'slow':
        await sleep(this.slowMs);
        break;
      case 'short':
        if (body.length > 1 && req.method === 'GET') {
          res.writeHead(status, answer.headers);
          res.write(body.subarray(0, body.length >> 1), () => res.destroy());
          return;
        }
        break;
      case 'claim-short':
        if (body.length > 1 && req.method === 'GET') {
          const half = body.subarray(0, body.length >> 1);
          res.writeHead(status, {...answer.headers, 'content-length': String(half.length)});
          res.end(half);
          return;
        }
        break;
      default:
    }
    res.writeHead(status, answer.headers);
    res.end(req.method === 'HEAD' ? undefined : body);
  }

  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  #forward(req: IncomingMessage): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      // The Host header stays as the client signed it.
      const out = request(
        {
          host: this.#target.hostname,
          port: this.#target.port,
          method: req.method,
          path: req.url,
          headers: req.headers,
        },
        resolve,
      );
      out.on('error', reject);
      req.pipe(out);
    });
  }
}
