/**
 * SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677; binding tls-server-end-point, RFC 5929), both ends. The proxy
 * knows only the role's verifier. From a client's proof it learns the ClientKey of this login, which is enough to log in at
 * the compute with the same verifier: no password is ever needed.
 */
import {equalConstantTime, hmacSha256, pbkdf2Sha256, sha256} from '#runtime/crypto.ts';
import type {Random} from '#runtime/random.ts';

export interface ScramVerifier {
  readonly iterations: number;
  readonly salt: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

/** What a finished login leaves: enough to log in elsewhere under the same verifier. */
export interface ScramKeys {
  readonly clientKey: Buffer;
  readonly serverKey: Buffer;
}

export class ScramError extends Error {}

/** `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, as in pg_authid.rolpassword; undefined when it is not that. */
export function parseVerifier(text: string): ScramVerifier | undefined {
  const match = /^SCRAM-SHA-256\$(\d{1,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)$/.exec(text);
  if (!match) return undefined;
  const verifier = {
    iterations: Number(match[1]),
    salt: Buffer.from(match[2]!, 'base64'),
    storedKey: Buffer.from(match[3]!, 'base64'),
    serverKey: Buffer.from(match[4]!, 'base64'),
  };
  return verifier.storedKey.length === 32 && verifier.serverKey.length === 32 && verifier.iterations >= 1
    ? verifier
    : undefined;
}

/** A verifier for a role that does not exist: the dialogue looks the same each time, and no password fits. */
export function mockVerifier(secret: Buffer, name: string): ScramVerifier {
  const salt = hmacSha256(secret, Buffer.from(name)).subarray(0, 16);
  return {
    iterations: 4096,
    salt,
    storedKey: hmacSha256(secret, Buffer.concat([salt, Buffer.from('stored')])),
    serverKey: hmacSha256(secret, salt),
  };
}

/** The keys of a password under this verifier; undefined when it is not the password. */
export async function keysFromPassword(verifier: ScramVerifier, password: string): Promise<ScramKeys | undefined> {
  const salted = await pbkdf2Sha256(Buffer.from(saslPrepare(password)), verifier.salt, verifier.iterations);
  const clientKey = hmacSha256(salted, Buffer.from('Client Key'));
  return equalConstantTime(sha256(clientKey), verifier.storedKey)
    ? {clientKey, serverKey: verifier.serverKey}
    : undefined;
}

/** SASLprep (RFC 4013) as far as it changes a password: spaces, invisible characters, compatibility forms. */
function saslPrepare(password: string): string {
  return password
    .replaceAll(/[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]/g, ' ')
    .replaceAll(/\u00ad|\u034f|\u1806|[\u180b-\u180d]|\u200c|\u200d|\u2060|[\ufe00-\ufe0f]|\ufeff/g, '')
    .normalize('NFKC');
}

export const scramPlain = 'SCRAM-SHA-256';
export const scramPlus = 'SCRAM-SHA-256-PLUS';

/** The server's side of one login. */
export class ScramServer {
  readonly #verifier: ScramVerifier;
  readonly #nonce: string;
  readonly #endPointHash: Buffer | undefined;
  #mechanism = '';
  #gs2Header = '';
  #clientFirstBare = '';
  #serverFirst = '';
  #fullNonce = '';

  /** `endPointHash`: the binding of this TLS connection; without it PLUS is not offered. */
  constructor(verifier: ScramVerifier, random: Random, endPointHash: Buffer | undefined) {
    this.#verifier = verifier;
    this.#nonce = random.bytes(18).toString('base64');
    this.#endPointHash = endPointHash;
  }

  get mechanisms(): readonly string[] {
    return this.#endPointHash === undefined ? [scramPlain] : [scramPlus, scramPlain];
  }

  /** Takes client-first, gives server-first. Throws ScramError on a malformed or downgraded message. */
  first(mechanism: string, message: string): string {
    const match = /^(n|y|p=([^,]*)),([^,]*),(.*)$/s.exec(message);
    if (!match || !this.mechanisms.includes(mechanism))
      throw new ScramError('malformed SCRAM message or unknown mechanism');
    const [, flag, binding, authzid, bare] = match as unknown as [string, string, string | undefined, string, string];
    if (authzid !== '') throw new ScramError('authorization identities are not supported');
    if (mechanism === scramPlus ? binding !== 'tls-server-end-point' : binding !== undefined)
      throw new ScramError('the channel binding does not fit the mechanism');
    // The client says that it could bind and believes we cannot, but we offered it: somebody in between took it out.
    if (flag === 'y' && this.#endPointHash !== undefined)
      throw new ScramError('channel binding was removed on the way');
    const nonce = /^n=[^,]*,r=([\x21-\x2b\x2d-\x7e]+)(,.*)?$/s.exec(bare)?.[1];
    if (nonce === undefined) throw new ScramError('malformed SCRAM message');
    this.#mechanism = mechanism;
    this.#gs2Header = `${flag},${authzid},`;
    this.#clientFirstBare = bare;
    this.#fullNonce = nonce + this.#nonce;
    this.#serverFirst = `r=${this.#fullNonce},s=${this.#verifier.salt.toString('base64')},i=${this.#verifier.iterations}`;
    return this.#serverFirst;
  }

  /** Takes client-final. Undefined: the password is wrong. Throws ScramError on a malformed message or a wrong binding. */
  final(message: string): {serverFinal: string; keys: ScramKeys} | undefined {
    const match = /^(c=([A-Za-z0-9+/=]+),r=([^,]+)(?:,[^,]*)*?),p=([A-Za-z0-9+/=]+)$/s.exec(message);
    if (!match) throw new ScramError('malformed SCRAM message');
    const [, withoutProof, binding, nonce, proofText] = match as unknown as [string, string, string, string, string];
    if (nonce !== this.#fullNonce) throw new ScramError('the SCRAM nonce does not match');
    const expected = Buffer.concat([
      Buffer.from(this.#gs2Header),
      this.#mechanism === scramPlus ? this.#endPointHash! : Buffer.alloc(0),
    ]);
    if (!equalConstantTime(Buffer.from(binding, 'base64'), expected))
      throw new ScramError('the SCRAM channel binding does not match');
    const proof = Buffer.from(proofText, 'base64');
    if (proof.length !== 32) throw new ScramError('malformed SCRAM proof');
    const authMessage = Buffer.from(`${this.#clientFirstBare},${this.#serverFirst},${withoutProof}`);
    const signature = hmacSha256(this.#verifier.storedKey, authMessage);
    const clientKey = Buffer.alloc(32);
    for (let i = 0; i < 32; i++) clientKey[i] = proof[i]! ^ signature[i]!;
    if (!equalConstantTime(sha256(clientKey), this.#verifier.storedKey)) return undefined;
    const serverSignature = hmacSha256(this.#verifier.serverKey, authMessage);
    return {
      serverFinal: `v=${serverSignature.toString('base64')}`,
      keys: {clientKey, serverKey: this.#verifier.serverKey},
    };
  }
}

/** The client's side of one login at a compute, with keys instead of a password. */
export class ScramClient {
  readonly #keys: ScramKeys;
  readonly #nonce: string;
  #expectedSignature: Buffer = Buffer.alloc(0);

  constructor(keys: ScramKeys, random: Random) {
    this.#keys = keys;
    this.#nonce = random.bytes(18).toString('base64');
  }

  first(): string {
    return `n,,n=,r=${this.#nonce}`;
  }

  /** Throws ScramError when the server's nonce does not extend ours. */
  final(serverFirst: string): string {
    const nonce = /^r=([^,]+),s=([^,]+),i=(\d+)/.exec(serverFirst)?.[1];
    if (nonce === undefined || !nonce.startsWith(this.#nonce))
      throw new ScramError('the compute sent a malformed SCRAM message');
    const withoutProof = `c=biws,r=${nonce}`;
    const authMessage = Buffer.from(`n=,r=${this.#nonce},${serverFirst},${withoutProof}`);
    const signature = hmacSha256(sha256(this.#keys.clientKey), authMessage);
    const proof = Buffer.alloc(32);
    for (let i = 0; i < 32; i++) proof[i] = this.#keys.clientKey[i]! ^ signature[i]!;
    this.#expectedSignature = hmacSha256(this.#keys.serverKey, authMessage);
    return `${withoutProof},p=${proof.toString('base64')}`;
  }

  /** True when the compute proved that it has the same verifier. */
  verify(serverFinal: string): boolean {
    const signature = /^v=([A-Za-z0-9+/=]+)$/.exec(serverFinal)?.[1];
    return signature !== undefined && equalConstantTime(Buffer.from(signature, 'base64'), this.#expectedSignature);
  }
}
