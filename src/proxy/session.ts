/**
 * One client connection:
 *   startup packets (TLS, cancel) → which endpoint → SCRAM against the role's verifier → wake → login at the compute with
 *   the client's keys → bytes flow both ways untouched.
 * No client byte reaches Postgres before authentication (invariant 39).
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Socket} from '#runtime/net.ts';
import type {Random} from '#runtime/random.ts';
import {type TlsIdentity, acceptTls} from '#runtime/tls.ts';
import {ByteReader} from '#proxy/byte-reader.ts';
import type {CancelRegistry} from '#proxy/cancel.ts';
import {ComputeRefused, type ComputeSession, ComputeUnreachable, loginAtCompute} from '#proxy/compute-login.ts';
import type {Access, ComputeAddress, ControlClient} from '#proxy/control-client.ts';
import {ProxyError, proxyErrors} from '#proxy/errors.ts';
import {type FailureThrottle, authenticationMsMax, ipAllowed} from '#proxy/limits.ts';
import {
  authentication,
  decodeStartup,
  encodeBackendKey,
  encodeNegotiateProtocol,
  messageBytesMax,
  startupBytesMax,
} from '#proxy/messages.ts';
import {type Route, routeOf} from '#proxy/route.ts';
import {ScramError, type ScramKeys, ScramServer, mockVerifier} from '#proxy/scram.ts';

export interface SessionContext {
  readonly identity: TlsIdentity;
  readonly domains: readonly string[];
  readonly requireTls: 'always' | 'remote';
  readonly control: ControlClient;
  readonly cancels: CancelRegistry;
  readonly throttle: FailureThrottle;
  /** Decides the answers to unknown roles; the same for the life of the process. */
  readonly mockSecret: Buffer;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

const tlsHandshakeByte = 0x16;
const computeLoginMsMax = 30_000;
const loginAttemptsMax = 40;
const retryMs = 100;

/** Serves the connection to its end. Never rejects. `onAuthenticated` is called once, before bytes flow. */
export async function serveClient(raw: Socket, context: SessionContext, onAuthenticated: () => void): Promise<void> {
  const clientIp = raw.remoteAddress ?? 'unix';
  raw.on('error', () => {}); // every failure also closes the socket, and is seen there
  raw.setNoDelay(true);
  let socket = raw;
  const deadline = context.clock.setTimer(authenticationMsMax, () => {
    socket.write(proxyErrors.timeout().encode(), () => socket.destroy());
    context.clock.setTimer(1000, () => raw.destroy());
  });
  try {
    const opened = await openSession(raw, clientIp, context, (s) => (socket = s));
    if (opened === undefined) {
      deadline.cancel();
      socket.end();
      return;
    }
    const {access, keys, startup} = await authenticate(opened, clientIp, context);
    deadline.cancel();
    onAuthenticated();
    const {session, address} = await reachCompute(access, startup, keys, context);
    join(opened, session, address, clientIp, context);
  } catch (error) {
    deadline.cancel();
    refuse(socket, error, context.log);
  }
}

interface Opened {
  readonly socket: Socket;
  readonly reader: ByteReader;
  readonly parameters: ReadonlyMap<string, string>;
  readonly serverName: string | undefined;
  readonly overTls: boolean;
}

/** Up to the startup message. Undefined: the connection was a cancel request. */
async function openSession(
  raw: Socket,
  clientIp: string,
  context: SessionContext,
  onSocket: (socket: Socket) => void,
): Promise<Opened | undefined> {
  let socket = raw;
  let reader = new ByteReader(socket);
  let serverName: string | undefined;
  let overTls = false;
  const startTls = async (first: Buffer | undefined): Promise<void> => {
    const peer = await acceptTls(socket, context.identity, first);
    socket = peer.socket;
    socket.on('error', () => {});
    onSocket(socket);
    serverName = peer.serverName;
    overTls = true;
    reader = new ByteReader(socket);
  };
  if ((await reader.peek()) === tlsHandshakeByte) await startTls(reader.release());
  // At most a GSS request, a TLS request and the startup itself.
  for (let packets = 0; packets < 4; packets++) {
    const length = (await reader.read(4)).readUInt32BE(0);
    if (length < 8 || length > startupBytesMax) throw proxyErrors.protocol(`startup packet of ${length} bytes`);
    const packet = decodeStartup(await reader.read(length - 4));
    switch (packet.kind) {
      case 'malformed':
        throw proxyErrors.protocol(packet.why);
      case 'cancel':
        context.cancels.cancel(packet.key, clientIp);
        return undefined;
      case 'gss':
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
        if (!overTls && (context.requireTls === 'always' || !isLoopback(clientIp))) throw proxyErrors.insecure();
        const unknown = [...packet.parameters.keys()].filter((name) => name.startsWith('_pq_.'));
        if (packet.minor > 0 || unknown.length > 0) socket.write(encodeNegotiateProtocol(unknown));
        return {socket, reader, parameters: packet.parameters, serverName, overTls};
      }
    }
  }
  throw proxyErrors.protocol('too many requests before the startup message');
}

function isLoopback(ip: string): boolean {
  return ip === 'unix' || ip === '::1' || ip.replace(/^::ffff:/i, '').startsWith('127.');
}

async function authenticate(
  opened: Opened,
  clientIp: string,
  context: SessionContext,
): Promise<{access: Access; keys: ScramKeys; startup: ReadonlyMap<string, string>}> {
  const {socket, reader, parameters} = opened;
  const user = parameters.get('user');
  if (user === undefined || user === '') throw proxyErrors.protocol('the startup message names no user');
  const route = routeOf(parameters.get('options'), opened.serverName, context.domains);
  const access = await context.control.access(route.endpoint, user);
  if (!ipAllowed(clientIp, access.allowedIps)) throw proxyErrors.ipRefused(clientIp);
  const throttleKey = `${access.endpointId} ${clientIp}`;
  if (context.throttle.blocked(throttleKey)) throw proxyErrors.throttled();

  const verifier = access.verifier ?? mockVerifier(context.mockSecret, `${access.endpointId}/${user}`);
  const scram = new ScramServer(verifier, context.random, opened.overTls ? context.identity.endPointHash : undefined);
  socket.write(authentication.sasl(scram.mechanisms));
  let outcome: ReturnType<ScramServer['final']>;
  try {
    const initial = await readSaslInitial(reader);
    socket.write(authentication.saslContinue(scram.first(initial.mechanism, initial.data)));
    const {type, body} = await reader.readMessage(messageBytesMax);
    if (type !== 'p') throw new ScramError(`expected a SASL response, got ${JSON.stringify(type)}`);
    outcome = scram.final(body.toString('utf8'));
  } catch (error) {
    if (error instanceof ScramError) throw proxyErrors.protocol(error.message);
    throw error;
  }
  if (outcome === undefined || access.verifier === undefined) {
    context.throttle.failed(throttleKey);
    throw proxyErrors.wrongPassword(user);
  }
  // Not AuthenticationOk yet: the compute may still refuse (no such database), and then the client must see that error.
  socket.write(authentication.saslFinal(outcome.serverFinal));
  return {access, keys: outcome.keys, startup: forwardedParameters(parameters, route)};
}

async function readSaslInitial(reader: ByteReader): Promise<{mechanism: string; data: string}> {
  const {type, body} = await reader.readMessage(messageBytesMax);
  const end = body.indexOf(0);
  if (type !== 'p' || end < 0 || body.length < end + 5) throw new ScramError('expected a SASL initial response');
  const length = body.readInt32BE(end + 1);
  if (length !== body.length - end - 5) throw new ScramError('SASL initial response of the wrong length');
  return {mechanism: body.toString('latin1', 0, end), data: body.toString('utf8', end + 5)};
}

/** Everything the client asked for but what was meant for the proxy. `replication` is passed on: Postgres decides by the role. */
function forwardedParameters(parameters: ReadonlyMap<string, string>, route: Route): Map<string, string> {
  const out = new Map([...parameters].filter(([name]) => !name.startsWith('_pq_.')));
  out.delete('options');
  if (route.options !== undefined) out.set('options', route.options);
  return out;
}

/** Wakes the compute when needed and logs in; goes on while it is being started or moved. */
async function reachCompute(
  access: Access,
  startup: ReadonlyMap<string, string>,
  keys: ScramKeys,
  context: SessionContext,
): Promise<{session: ComputeSession; address: ComputeAddress}> {
  const {control, clock, random, log} = context;
  const {endpointId} = access;
  for (let attempt = 0; ; attempt++) {
    const kept = attempt === 0 ? control.lastAddress(endpointId) : undefined;
    const address = kept ?? (await control.wake(endpointId));
    let fail: (error: Error) => void = () => {};
    const deadline = new Promise<never>((_resolve, reject) => (fail = reject));
    deadline.catch(() => {});
    const timer = clock.setTimer(computeLoginMsMax, () =>
      fail(new Error(`no answer within ${computeLoginMsMax / 1000} s`)),
    );
    try {
      return {session: await loginAtCompute({address, parameters: startup, keys, random, deadline}), address};
    } catch (error) {
      // 57P03: starting up or shutting down. 28P01 at a kept address: another compute may have the port now.
      const again =
        error instanceof ComputeUnreachable ||
        (error instanceof ComputeRefused &&
          (error.sqlState === '57P03' || (error.sqlState === '28P01' && kept !== undefined)));
      if (!again || attempt >= loginAttemptsMax)
        throw error instanceof ComputeUnreachable ? proxyErrors.unreachable(endpointId) : error;
      control.forget(endpointId);
      log.debug('the compute is not there yet', {endpoint: endpointId, error});
      if (kept === undefined) await clock.sleep(retryMs);
    } finally {
      timer.cancel();
    }
  }
}

/** From here on bytes flow untouched, with back-pressure, until one side ends. */
function join(
  opened: Opened,
  compute: ComputeSession,
  address: ComputeAddress,
  clientIp: string,
  context: SessionContext,
): void {
  const client = opened.socket;
  const registered = context.cancels.register({address, key: compute.cancelKey, clientIp});
  client.write(Buffer.concat([authentication.ok(), compute.greeting, encodeBackendKey(registered.key), compute.rest]));
  const early = opened.reader.release();
  if (early.length > 0) compute.socket.write(early);
  compute.socket.on('error', () => {});
  const end = (): void => {
    registered.release();
    client.destroy();
    compute.socket.destroy();
  };
  client.on('close', end);
  compute.socket.on('close', () => {
    registered.release();
    client.end(); // what Postgres said last still reaches the client
  });
  client.pipe(compute.socket);
  compute.socket.pipe(client);
  if (client.destroyed) end();
}

function refuse(socket: Socket, error: unknown, log: Log): void {
  if (error instanceof ComputeRefused) socket.end(error.response);
  else if (error instanceof ProxyError) {
    log.info('refused a connection', {sqlState: error.sqlState, reason: error.message});
    socket.end(error.encode());
  } else {
    // The client left, or sent what cannot be understood.
    log.debug('connection ended before it was authenticated', {error});
    socket.destroy();
  }
}
