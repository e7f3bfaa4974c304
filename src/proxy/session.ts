/**
 * One client connection:
 *   first byte (TLS? HTTP?) → startup packets → which endpoint → login → wake → login at the compute with the client's
 *   keys → bytes flow both ways untouched.
 * No client byte reaches Postgres before authentication (invariant 39).
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Socket, Stream} from '#runtime/net.ts';
import {type TlsIdentity, acceptTls} from '#runtime/tls.ts';
import {ByteReader} from '#proxy/byte-reader.ts';
import type {CancelRegistry} from '#proxy/cancel.ts';
import {ComputeRefused} from '#proxy/compute-login.ts';
import {ProxyError, proxyErrors} from '#proxy/errors.ts';
import {authenticationMsMax} from '#proxy/limits.ts';
import {
  type LoggedIn,
  type LoginContext,
  type LoginPeer,
  askPassword,
  isUnnamed,
  loginWithPassword,
  loginWithScram,
  splitPassword,
} from '#proxy/login.ts';
import {
  authentication,
  decodeStartup,
  encodeBackendKey,
  encodeNegotiateProtocol,
  startupBytesMax,
} from '#proxy/messages.ts';
import {type Pools, servePooled} from '#proxy/pooler/pooled-session.ts';
import {type Reached, reachCompute} from '#proxy/reach-compute.ts';
import {type Route, routeOf} from '#proxy/route.ts';
import type {Traffic} from '#proxy/traffic.ts';

export interface SessionContext extends LoginContext {
  readonly identity: TlsIdentity;
  readonly domains: readonly string[];
  readonly requireTls: 'always' | 'remote';
  readonly cancels: CancelRegistry;
  readonly traffic: Traffic;
  readonly pools: Pools;
  readonly clock: Clock;
  readonly log: Log;
  /** Takes over a connection that speaks HTTP. */
  readonly acceptHttp: (socket: Socket, first: Buffer) => void;
}

const tlsHandshakeByte = 0x16;

/** Serves a TCP connection to its end. Never rejects. `onAuthenticated` is called once it needs no more patience. */
export async function serveClient(raw: Socket, context: SessionContext, onAuthenticated: () => void): Promise<void> {
  const clientIp = raw.remoteAddress ?? 'unix';
  raw.on('error', () => {}); // every failure also closes the socket, and is seen there
  raw.setNoDelay(true);
  let stream: Socket = raw;
  const deadline = limitTime(() => stream, context);
  try {
    const opened = await openSession(raw, clientIp, context, (s) => (stream = s));
    if (opened === 'cancelled') stream.end();
    else if (opened !== 'http') {
      await startSession(opened, 'scram', context, () => {
        deadline.cancel();
        onAuthenticated();
      });
    }
    onAuthenticated();
  } catch (error) {
    refuse(stream, error, context.log);
  } finally {
    deadline.cancel();
  }
}

/** Serves the Postgres protocol inside a WebSocket; TLS, where there is any, is outside. The endpoint: options, `host`, or password. */
export async function serveWebSocket(
  stream: Stream,
  host: string | undefined,
  clientIp: string,
  context: SessionContext,
  onAuthenticated: () => void,
): Promise<void> {
  stream.on('error', () => {});
  const deadline = limitTime(() => stream, context);
  try {
    const reader = new ByteReader(stream);
    const packet = decodeStartup(await readStartupPacket(reader));
    if (packet.kind === 'malformed') throw proxyErrors.protocol(packet.why);
    if (packet.kind !== 'startup') throw proxyErrors.protocol('only a startup message is expected inside a WebSocket');
    const opened: Opened = {stream, reader, clientIp, parameters: packet.parameters, serverName: host, overTls: false};
    await startSession(opened, 'password', context, () => {
      deadline.cancel();
      onAuthenticated();
    });
  } catch (error) {
    refuse(stream, error, context.log);
  } finally {
    deadline.cancel();
  }
}

/** A client that dawdles before it is authenticated is told so and cut off. */
function limitTime(stream: () => Stream, context: SessionContext): {cancel: () => void} {
  return context.clock.setTimer(authenticationMsMax, () => {
    const late = stream();
    late.write(proxyErrors.timeout().encode(), () => late.destroy());
    context.clock.setTimer(1000, () => late.destroy());
  });
}

interface Opened {
  readonly stream: Stream;
  readonly reader: ByteReader;
  readonly clientIp: string;
  readonly parameters: ReadonlyMap<string, string>;
  readonly serverName: string | undefined;
  readonly overTls: boolean;
}

async function readStartupPacket(reader: ByteReader): Promise<Buffer> {
  const length = (await reader.read(4)).readUInt32BE(0);
  if (length < 8 || length > startupBytesMax) throw proxyErrors.protocol(`startup packet of ${length} bytes`);
  return reader.read(length - 4);
}

/** Up to the startup message, through TLS where the client asks for it. */
async function openSession(
  raw: Socket,
  clientIp: string,
  context: SessionContext,
  onSocket: (socket: Socket) => void,
): Promise<Opened | 'cancelled' | 'http'> {
  let socket = raw;
  let reader = new ByteReader(socket);
  let serverName: string | undefined;
  let overTls = false;
  let alpnProtocol: string | undefined;
  const startTls = async (first: Buffer | undefined): Promise<void> => {
    const peer = await acceptTls(socket, context.identity, first);
    socket = peer.socket;
    socket.on('error', () => {});
    onSocket(socket);
    ({serverName, alpnProtocol} = peer);
    overTls = true;
    reader = new ByteReader(socket);
  };
  const allowed = context.requireTls !== 'always' && isLoopback(clientIp);
  const directTls = (await reader.peek()) === tlsHandshakeByte;
  if (directTls) await startTls(reader.release());
  if (isHttp(await reader.peek())) {
    if (!overTls && !allowed) throw new Error('HTTP without TLS');
    context.acceptHttp(socket, reader.release());
    return 'http';
  }
  // Without the word of both ends that this is Postgres, a browser's request could be passed off as a session (ALPACA).
  if (directTls && alpnProtocol !== 'postgresql')
    throw proxyErrors.protocol('TLS from the first byte needs the ALPN protocol "postgresql"');
  let gssAsked = false;
  for (;;) {
    const packet = decodeStartup(await readStartupPacket(reader));
    switch (packet.kind) {
      case 'malformed':
        throw proxyErrors.protocol(packet.why);
      case 'cancel':
        context.cancels.cancel(packet.key, clientIp);
        return 'cancelled';
      case 'gss':
        if (gssAsked) throw proxyErrors.protocol('GSS encryption asked for twice');
        gssAsked = true;
        socket.write('N');
        break;
      case 'ssl': {
        if (overTls) throw proxyErrors.protocol('TLS asked for inside TLS');
        // Clear bytes behind the request would be taken for the inside of the TLS stream (CVE-2021-23214).
        if (reader.waiting > 0) throw proxyErrors.protocol('bytes sent before the answer to SSLRequest');
        reader.release();
        socket.write('S');
        await startTls(undefined);
        break;
      }
      case 'startup': {
        if (!overTls && !allowed) throw proxyErrors.insecure();
        const unknown = [...packet.parameters.keys()].filter((name) => name.startsWith('_pq_.'));
        if (packet.minor > 0 || unknown.length > 0) socket.write(encodeNegotiateProtocol(unknown));
        return {stream: socket, reader, clientIp, parameters: packet.parameters, serverName, overTls};
      }
    }
  }
}

/** The first letter of a method. No startup packet begins so: its length would be above a gigabyte. */
function isHttp(byte: number): boolean {
  return byte >= 0x41 && byte <= 0x5a;
}

function isLoopback(ip: string): boolean {
  return ip === 'unix' || ip === '::1' || ip.replace(/^::ffff:/i, '').startsWith('127.');
}

async function startSession(
  opened: Opened,
  method: 'scram' | 'password',
  context: SessionContext,
  authenticated: () => void,
): Promise<void> {
  const {parameters} = opened;
  const user = parameters.get('user');
  if (user === undefined || user === '') throw proxyErrors.protocol('the startup message names no user');
  const route = routeOf(parameters.get('options'), opened.serverName, context.domains);
  const peer: LoginPeer = {
    reader: opened.reader,
    write: (bytes) => void opened.stream.write(bytes),
    clientIp: opened.clientIp,
    endPointHash: opened.overTls ? context.identity.endPointHash : undefined,
  };
  const {access, keys, pooled} = await login(method, route, user, peer, context);
  authenticated();
  const startup = forwardedParameters(parameters, route);
  // Only now: who it is decides whether a compute at that point is made.
  const endpointId =
    route.point === undefined ? access.endpointId : await context.control.pointInTime(access.endpointId, route.point);
  // AuthenticationOk waits for the compute: it may still refuse (no such database), and the client must see that error.
  if (pooled) {
    const database = startup.get('database') ?? user;
    const own = new Map([
      ['user', user],
      ['database', database],
    ]);
    const pool = context.pools.get([endpointId, user, database], () =>
      reachCompute(endpointId, own, keys, context, 'tell'),
    );
    const {stream, reader, clientIp} = opened;
    await servePooled({stream, early: () => reader.release(), clientIp, parameters: startup}, pool, context);
  } else join(opened, await reachCompute(endpointId, startup, keys, context), context);
}

async function login(
  method: 'scram' | 'password',
  route: Route,
  user: string,
  peer: LoginPeer,
  context: SessionContext,
): Promise<LoggedIn & {pooled: boolean}> {
  const {pooled} = route;
  if (method === 'scram') {
    try {
      return {...(await loginWithScram(route.endpoint, user, peer, context)), pooled};
    } catch (error) {
      if (route.endpoint !== undefined || !isUnnamed(error)) throw error;
    }
  }
  const password = await askPassword(peer);
  const named = route.endpoint === undefined ? splitPassword(password) : undefined;
  if (named === undefined && method === 'scram') throw proxyErrors.noEndpoint();
  const loggedIn = await loginWithPassword(
    named?.endpoint ?? route.endpoint,
    user,
    named?.password ?? password,
    peer.clientIp,
    context,
  );
  return {...loggedIn, pooled: named?.pooled ?? pooled};
}

/** Everything the client asked for but what was meant for the proxy. `replication` is passed on: Postgres decides by the role. */
function forwardedParameters(parameters: ReadonlyMap<string, string>, route: Route): Map<string, string> {
  const out = new Map([...parameters].filter(([name]) => !name.startsWith('_pq_.')));
  out.delete('options');
  if (route.options !== undefined) out.set('options', route.options);
  return out;
}

/** From here on bytes flow untouched, with back-pressure, until one side ends. */
function join(opened: Opened, compute: Reached, context: SessionContext): void {
  const client = opened.stream;
  const {socket, cancelKey, greeting, rest} = compute.session;
  const registered = context.cancels.register({
    clientIp: opened.clientIp,
    target: () => ({address: compute.address, key: cancelKey}),
  });
  client.write(Buffer.concat([authentication.ok(), greeting, encodeBackendKey(registered.key), rest]));
  const early = opened.reader.release();
  if (early.length > 0) socket.write(early);
  socket.on('error', () => {});
  const end = (): void => {
    registered.release();
    client.destroy();
    socket.destroy();
  };
  client.on('close', end);
  socket.on('close', () => {
    registered.release();
    client.end(); // what Postgres said last still reaches the client
  });
  relay(client, socket);
  relay(socket, client);
  if (client.destroyed) end();
}

/** Passes on what comes, no faster than it is taken. `pipe` does the same at a higher price per chunk. */
function relay(from: Stream, to: Stream): void {
  from.on('data', (chunk: Buffer) => {
    if (!to.write(chunk)) from.pause();
  });
  to.on('drain', () => from.resume());
  from.on('end', () => to.end());
  from.resume();
}

function refuse(stream: Stream, error: unknown, log: Log): void {
  if (error instanceof ComputeRefused) stream.end(error.response);
  else if (error instanceof ProxyError) {
    log.info('refused a connection', {sqlState: error.sqlState, reason: error.message});
    stream.end(error.encode());
  } else {
    // The client left, or sent what cannot be understood.
    log.debug('connection ended before it was authenticated', {error});
    stream.destroy();
  }
}
