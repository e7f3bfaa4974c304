/** Who is it? SCRAM over TCP, a cleartext password inside TLS for WebSocket, HTTP and clients that cannot name their endpoint. */
import type {Random} from '#runtime/random.ts';
import type {ByteReader} from '#proxy/byte-reader.ts';
import type {Access, ControlClient} from '#proxy/control-client.ts';
import {ProxyError, proxyErrors} from '#proxy/errors.ts';
import {type FailureThrottle, ipAllowed} from '#proxy/limits.ts';
import {authentication, messageBytesMax} from '#proxy/messages.ts';
import {splitPooler} from '#proxy/route.ts';
import {ScramError, type ScramKeys, ScramServer, keysFromPassword, mockVerifier} from '#proxy/scram.ts';

export interface LoginContext {
  readonly control: ControlClient;
  readonly throttle: FailureThrottle;
  /** Decides the answers to unknown roles; the same for the life of the process. */
  readonly mockSecret: Buffer;
  readonly random: Random;
}

export interface LoggedIn {
  readonly access: Access;
  readonly keys: ScramKeys;
}

/** Where the dialogue goes. */
export interface LoginPeer {
  readonly reader: ByteReader;
  readonly write: (bytes: Buffer) => void;
  readonly clientIp: string;
  /** The channel binding of its TLS connection, if it has one. */
  readonly endPointHash: Buffer | undefined;
}

const passwordBytesMax = 2048;

/** May this address try at all? Throws ProxyError. */
async function admit(
  endpoint: string | undefined,
  user: string,
  clientIp: string,
  context: LoginContext,
): Promise<Access> {
  const access = await context.control.access(endpoint, user);
  if (!ipAllowed(clientIp, access.allowedIps)) throw proxyErrors.ipRefused(clientIp);
  if (context.throttle.blocked(`${access.endpointId} ${clientIp}`)) throw proxyErrors.throttled();
  return access;
}

/** Checks a password that came in the clear (inside TLS). Throws ProxyError. */
export async function loginWithPassword(
  endpoint: string | undefined,
  user: string,
  password: string,
  clientIp: string,
  context: LoginContext,
): Promise<LoggedIn> {
  let access = await admit(endpoint, user, clientIp, context);
  const check = (): ReturnType<typeof keysFromPassword> =>
    keysFromPassword(access.verifier ?? mockVerifier(context.mockSecret, `${access.endpointId}/${user}`), password);
  let keys = await check();
  if ((keys === undefined || access.verifier === undefined) && context.control.doubt(endpoint, user)) {
    access = await admit(endpoint, user, clientIp, context);
    keys = await check();
  }
  if (keys === undefined || access.verifier === undefined) {
    context.throttle.failed(`${access.endpointId} ${clientIp}`);
    throw proxyErrors.wrongPassword(user);
  }
  return {access, keys};
}

/** The SCRAM dialogue; the client has its final message but not AuthenticationOk when this resolves. Throws ProxyError. */
export async function loginWithScram(
  endpoint: string | undefined,
  user: string,
  peer: LoginPeer,
  context: LoginContext,
): Promise<LoggedIn> {
  const access = await admit(endpoint, user, peer.clientIp, context);
  const verifier = access.verifier ?? mockVerifier(context.mockSecret, `${access.endpointId}/${user}`);
  const scram = new ScramServer(verifier, context.random, peer.endPointHash);
  peer.write(authentication.sasl(scram.mechanisms));
  let outcome: ReturnType<ScramServer['final']>;
  try {
    const initial = await readSaslInitial(peer.reader);
    peer.write(authentication.saslContinue(scram.first(initial.mechanism, initial.data)));
    const {type, body} = await peer.reader.readMessage(messageBytesMax);
    if (type !== 'p') throw new ScramError(`expected a SASL response, got ${JSON.stringify(type)}`);
    outcome = scram.final(body.toString('utf8'));
  } catch (error) {
    if (error instanceof ScramError) throw proxyErrors.protocol(error.message);
    throw error;
  }
  if (outcome === undefined || access.verifier === undefined) {
    context.control.doubt(endpoint, user); // this dialogue has shown the old salt; the client's next try sees the new one
    context.throttle.failed(`${access.endpointId} ${peer.clientIp}`);
    throw proxyErrors.wrongPassword(user);
  }
  peer.write(authentication.saslFinal(outcome.serverFinal));
  return {access, keys: outcome.keys};
}

/** Asks for the password in the clear. A pipelining client has sent it already. */
export async function askPassword(peer: LoginPeer): Promise<string> {
  peer.write(authentication.cleartext());
  const {type, body} = await peer.reader.readMessage(passwordBytesMax);
  if (type !== 'p' || body.at(-1) !== 0) throw proxyErrors.protocol('expected a password message');
  return body.toString('utf8', 0, body.length - 1);
}

/** `endpoint=ID;PASSWORD` or `endpoint=ID$PASSWORD`, for clients without SNI and options. The id ends at the first of the two. */
export function splitPassword(text: string): {endpoint: string; pooled: boolean; password: string} | undefined {
  const match = /^(?:endpoint|project)=([A-Za-z0-9-]{1,60})[;$](.*)$/s.exec(text);
  return match ? {...splitPooler(match[1]!), password: match[2]!} : undefined;
}

/** True when the client named no endpoint and there is not just one: it may still name it in its password. */
export function isUnnamed(error: unknown): boolean {
  return error instanceof ProxyError && error.message === proxyErrors.noEndpoint().message;
}

async function readSaslInitial(reader: ByteReader): Promise<{mechanism: string; data: string}> {
  const {type, body} = await reader.readMessage(messageBytesMax);
  const end = body.indexOf(0);
  if (type !== 'p' || end < 0 || body.length < end + 5) throw new ScramError('expected a SASL initial response');
  const length = body.readInt32BE(end + 1);
  if (length !== body.length - end - 5) throw new ScramError('SASL initial response of the wrong length');
  return {mechanism: body.toString('latin1', 0, end), data: body.toString('utf8', end + 5)};
}
