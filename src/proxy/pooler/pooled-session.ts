/**
 * A client of a `-pooler` name: it has a server for the length of a transaction, and none in between. So thousands of idle
 * clients cost the compute nothing, and a compute that is suspended does not cut them off.
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Stream} from '#runtime/net.ts';
import type {CancelRegistry} from '#proxy/cancel.ts';
import {ComputeRefused} from '#proxy/compute-login.ts';
import {ProxyError, proxyErrors} from '#proxy/errors.ts';
import {authentication, encodeBackendKey, encodeErrorResponse, encodeMessage} from '#proxy/messages.ts';
import {Dialogue, setStatements, wantedFromClient} from '#proxy/pooler/dialogue.ts';
import {type MessageSink, MessageSplitter, MessageTooLong} from '#proxy/pooler/message-splitter.ts';
import {Pool, serversPerPoolMax} from '#proxy/pooler/pool.ts';
import {OwnQueryFailed, type ServerConnection, type ServerUser} from '#proxy/pooler/server-connection.ts';
import {ClientMemory, trackedParameters} from '#proxy/pooler/statements.ts';
import type {Reached} from '#proxy/reach-compute.ts';

/** Of a message that must be held whole (a query text, the parameters of one execution). */
const wholeBytesMax = 64 * 1024 * 1024;

/** What else a client may send; of these every piece is passed on. */
const passedFromClient = 'QFd';

/** All pools of this proxy, by endpoint, role and database. */
export class Pools {
  readonly #clock: Clock;
  readonly #pools = new Map<string, Pool>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** `connect` becomes the pool's way in: its keys are the newest that were proven right. */
  get(key: readonly string[], connect: () => Promise<Reached>): Pool {
    const name = JSON.stringify(key);
    for (const [other, pool] of this.#pools) if (pool.empty && other !== name) this.#pools.delete(other);
    let pool = this.#pools.get(name);
    if (pool === undefined) {
      pool = new Pool({connect, clock: this.#clock, serversMax: serversPerPoolMax});
      this.#pools.set(name, pool);
    }
    pool.connect = connect;
    return pool;
  }

  closeAll(): void {
    for (const pool of this.#pools.values()) pool.close();
    this.#pools.clear();
  }
}

/** Startup parameters of a pooled client. Throws ProxyError for one that could not follow it from server to server. */
function followingParameters(startup: ReadonlyMap<string, string>): Map<string, string> {
  const following = new Map<string, string>();
  for (const [name, value] of startup) {
    const tracked = trackedParameters.get(name.toLowerCase());
    if (tracked !== undefined) following.set(tracked, value);
    // extra_float_digits: every JDBC driver sends it, and the default of today's servers is what it wants.
    else if (!['user', 'database', 'extra_float_digits'].includes(name)) throw proxyErrors.notPooled(name);
  }
  const encoding = following.get('client_encoding');
  if (encoding !== undefined && /^'?utf-?8'?$/i.test(encoding)) following.set('client_encoding', 'UTF8');
  return following;
}

/** Serves an authenticated client to its end. Rejects with ProxyError or ComputeRefused when its session cannot begin. */
export async function servePooled(
  client: {stream: Stream; early: () => Buffer; clientIp: string; parameters: ReadonlyMap<string, string>},
  pool: Pool,
  context: {cancels: CancelRegistry; log: Log},
): Promise<void> {
  const memory = new ClientMemory();
  const wanted = followingParameters(client.parameters);
  const parameters = await welcome(pool, wanted);
  for (const name of wanted.keys()) memory.parameters.set(name, parameters.get(name)!);
  if (client.stream.destroyed) return;
  const session = new PooledSession(client.stream, memory, pool, context.log);
  const registered = context.cancels.register({clientIp: client.clientIp, target: () => session.cancelTarget});
  client.stream.on('close', () => {
    registered.release();
    session.clientGone();
  });
  const statuses = [...parameters].map(([name, value]) => encodeMessage('S', Buffer.from(`${name}\0${value}\0`)));
  const ready = encodeMessage('Z', Buffer.from('I'));
  client.stream.write(Buffer.concat([authentication.ok(), ...statuses, encodeBackendKey(registered.key), ready]));
  session.begin(client.early());
}

/** What the client is told about its session. A server is asked only for values that Postgres may know under another spelling. */
async function welcome(pool: Pool, wanted: ReadonlyMap<string, string>): Promise<Map<string, string>> {
  const parameters = await pool.parameters();
  const asIs = ([name, value]: readonly [string, string]): boolean =>
    parameters.get(name) === value || (name === 'application_name' && /^[\x20-\x7e]{0,63}$/.test(value));
  if ([...wanted].every(asIs)) return new Map([...parameters, ...wanted]);
  const server = await pool.acquire();
  try {
    server.memory.leftover = 'settings';
    await server.query(setStatements(wanted));
    return new Map(server.memory.parameters);
  } catch (error) {
    if (error instanceof OwnQueryFailed) throw new ComputeRefused('22023', error.message, error.response);
    throw error;
  } finally {
    pool.release(server);
  }
}

class PooledSession {
  readonly #stream: Stream;
  readonly #memory: ClientMemory;
  readonly #pool: Pool;
  readonly #log: Log;
  readonly #splitter = new MessageSplitter(wantedFromClient, wholeBytesMax);
  #link: {readonly server: ServerConnection; readonly dialogue: Dialogue} | undefined;
  /** Messages that wait for a server; undefined when none is awaited. At most a chunk's: meanwhile nothing is read. */
  #waiting: ((dialogue: Dialogue) => void)[] | undefined;
  #over = false;

  readonly #fromClient: MessageSink = {
    whole: (type, message, body) => {
      if (type === 'X') this.clientGone();
      else this.#deliver((dialogue) => dialogue.fromClient(type, message, body), type);
    },
    piece: (type, bytes, first) => {
      if (!passedFromClient.includes(type)) throw new Error(`message of unknown type ${JSON.stringify(type)}`);
      this.#deliver((dialogue) => dialogue.pieceFromClient(type, bytes, first), type);
    },
  };

  readonly #fromServer: ServerUser = {
    whole: (type, message, body) => this.#link?.dialogue.fromServer(type, message, body),
    piece: (_type, bytes) => this.#link?.dialogue.pieceFromServer(bytes),
    chunkEnd: () => {
      const link = this.#link;
      if (link === undefined) return;
      this.#flush();
      this.#unlinkIfFinished();
      if (this.#link !== undefined && this.#stream.writableNeedDrain) link.server.socket.pause();
    },
    serverGone: () => {
      this.#link = undefined;
      this.#end(encodeErrorResponse('FATAL', '08006', 'the connection to the compute ended', 'Connect again.'));
    },
  };

  constructor(stream: Stream, memory: ClientMemory, pool: Pool, log: Log) {
    this.#stream = stream;
    this.#memory = memory;
    this.#pool = pool;
    this.#log = log;
  }

  get cancelTarget(): ServerConnection['cancelTarget'] | undefined {
    return this.#link?.server.cancelTarget;
  }

  begin(early: Buffer): void {
    this.#stream.on('data', (chunk: Buffer) => this.#data(chunk));
    this.#stream.on('drain', () => this.#link?.server.socket.resume());
    this.#stream.on('end', () => this.clientGone());
    if (early.length > 0) this.#data(early);
    if (this.#waiting === undefined) this.#stream.resume();
  }

  /** The client left: in the middle of a transaction its server is of no use to others. */
  clientGone(): void {
    this.#end(Buffer.alloc(0));
  }

  #data(chunk: Buffer): void {
    if (this.#over) return;
    try {
      this.#splitter.feed(chunk, this.#fromClient);
    } catch (error) {
      this.#log.debug('a pooled client is cut off', {error});
      const hint = 'Without -pooler in the host name there is no such limit.';
      const {message} = error as Error;
      this.#end(
        error instanceof MessageTooLong
          ? encodeErrorResponse('FATAL', '54000', message, hint)
          : proxyErrors.protocol(message).encode(),
      );
      return;
    }
    this.#flush();
    this.#unlinkIfFinished();
  }

  #deliver(message: (dialogue: Dialogue) => void, type: string): void {
    if (this.#over) return;
    // Postgres ignores them here (PostgresMain), and no server is needed for that.
    if (this.#waiting === undefined && this.#link === undefined && 'cdfH'.includes(type)) return;
    if (this.#waiting !== undefined) this.#waiting.push(message);
    else if (this.#link === undefined) {
      this.#waiting = [message];
      this.#stream.pause();
      this.#pool.acquire().then(
        (server) => this.#linkTo(server),
        (error: Error) =>
          this.#end(
            error instanceof ComputeRefused
              ? error.response
              : (error instanceof ProxyError ? error : proxyErrors.pool(error.message)).encode(),
          ),
      );
    } else {
      const {socket} = this.#link.server;
      if (socket.writableCorked === 0) socket.cork();
      message(this.#link.dialogue);
    }
  }

  #linkTo(server: ServerConnection): void {
    if (this.#over) {
      this.#pool.release(server);
      return;
    }
    server.use(this.#fromServer);
    server.socket.cork();
    const dialogue = new Dialogue({
      client: this.#memory,
      server: server.memory,
      names: this.#pool.names,
      toClient: (bytes) => {
        if (this.#stream.writableCorked === 0) this.#stream.cork();
        this.#stream.write(bytes);
      },
      toServer: (bytes) => void server.socket.write(bytes),
    });
    this.#link = {server, dialogue};
    server.socket.on('drain', this.#resumeClient);
    const waiting = this.#waiting ?? [];
    this.#waiting = undefined;
    try {
      for (const message of waiting) message(dialogue);
    } catch (error) {
      this.#end(proxyErrors.protocol((error as Error).message).encode());
      return;
    }
    this.#stream.resume();
    this.#flush();
    this.#unlinkIfFinished();
  }

  /** What a chunk has caused goes out in one piece. */
  #flush(): void {
    const socket = this.#link?.server.socket;
    if (socket !== undefined && socket.writableCorked > 0) socket.uncork();
    if (this.#stream.writableCorked > 0) this.#stream.uncork();
    if (socket?.writableNeedDrain === true) this.#stream.pause();
  }

  /** Never in the middle of a message: a COPY may have failed while its data is on the way, and the server reads on to its end. */
  #unlinkIfFinished(): void {
    if (this.#link === undefined || !this.#link.dialogue.finished || this.#splitter.inMessage) return;
    const {server} = this.#link;
    this.#link = undefined;
    server.socket.off('drain', this.#resumeClient);
    this.#pool.release(server);
  }

  readonly #resumeClient = (): void => void this.#stream.resume();

  #end(lastWords: Buffer): void {
    if (this.#over) return;
    this.#over = true;
    const link = this.#link;
    this.#link = undefined;
    if (link !== undefined) {
      link.server.socket.off('drain', this.#resumeClient);
      link.server.use(undefined);
      link.server.close();
    }
    if (this.#stream.writableCorked > 0) this.#stream.uncork();
    if (lastWords.length > 0) this.#stream.end(lastWords);
    else this.#stream.end();
  }
}
