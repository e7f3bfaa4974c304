/**
 * Who may call whom inside Pagoda.
 *
 * Every internal connection and request carries a token: a JWT signed with EdDSA (Ed25519) by the calling role's key.
 * The keys directory holds `<role>.key.pem` (PKCS#8, mode 0600) and `<role>.pub.pem` (SPKI) of each role; a service
 * reads its own private key and everybody's public keys.
 *
 *   header  {alg: 'EdDSA', typ: 'JWT', kid: '<role>.<12 hex of SHA-256 of the SPKI>'}
 *   claims  {iss, aud: [role…], scope: 'node' | 'tenant', tenant?, timeline?, iat, exp}
 *
 * Rules, all checked by `TokenVerifier.verify`:
 *  1. The algorithm is EdDSA, whatever the header says.
 *  2. The key is one of ours and belongs to the role that `iss` names.
 *  3. `aud` contains the role that verifies.
 *  4. `exp` has not passed and lies at most one hour after `iat`.
 *  5. Scope `tenant` names a tenant and is signed by control only; scope `node` is an internal peer and sees every tenant.
 * A compute holds no key: control mints its tokens, and the compute asks control for a fresh one in time.
 */
import {CompactSign, compactVerify, exportPKCS8, exportSPKI, generateKeyPair, importPKCS8, importSPKI} from 'jose';
import type {CryptoKey} from 'jose';
import {assert} from '#runtime/assert.ts';
import type {Clock} from '#runtime/clock.ts';
import {sha256} from '#runtime/crypto.ts';
import {joinPath, systemDisk} from '#runtime/disk.ts';
import type {Disk} from '#runtime/disk.ts';
import {HttpError} from '#runtime/http.ts';
import {readSecretFile} from '#runtime/secret-file.ts';

/** Roles that have a key of their own. */
export const keyRoles = ['broker', 'safekeeper', 'pageserver', 'control', 'proxy'] as const;
export type KeyRole = (typeof keyRoles)[number];
/** Everybody that can be called: `compute` is the agent's HTTP server. */
export type Audience = KeyRole | 'compute';

export interface Claims {
  /** The role that signed. */
  readonly iss: KeyRole;
  /** The roles that may be called with it. */
  readonly aud: readonly Audience[];
  readonly scope: 'node' | 'tenant';
  /** 32 hex digits; always there with scope `tenant`. */
  readonly tenant?: string;
  /** 32 hex digits; when there, only this timeline of the tenant may be touched. */
  readonly timeline?: string;
  /** Seconds since 1970. */
  readonly iat: number;
  readonly exp: number;
}

export type AuthErrorCode =
  | 'token_missing'
  | 'token_malformed'
  | 'token_untrusted'
  | 'token_expired'
  | 'token_audience'
  | 'token_scope';

/** The token does not open this door. The message never contains the token. */
export class AuthError extends Error {
  readonly code: AuthErrorCode;
  constructor(code: AuthErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

const lifetimeSecondsMax = 3600;
const lifetimeSecondsDefault = 3600;
/** Clocks of two machines may differ by this much. */
const clockSkewSeconds = 30;
const tokenBytesMax = 4096;
const idPattern = /^[0-9a-f]{32}$/;

/** Makes the key pairs that are missing; existing ones are left alone. */
export async function generateKeys(
  keysDir: string,
  roles: readonly KeyRole[] = keyRoles,
  disk: Disk = systemDisk,
): Promise<void> {
  disk.makeDirectory(keysDir);
  for (const role of roles) {
    const privatePath = joinPath(keysDir, `${role}.key.pem`);
    const publicPath = joinPath(keysDir, `${role}.pub.pem`);
    if (disk.exists(privatePath) && disk.exists(publicPath)) continue;
    const pair = await generateKeyPair('EdDSA', {crv: 'Ed25519', extractable: true});
    // The private key first: a public key alone would be trusted without anybody able to sign.
    disk.writeFileAtomic(privatePath, Buffer.from(await exportPKCS8(pair.privateKey)), 0o600);
    disk.writeFileAtomic(publicPath, Buffer.from(await exportSPKI(pair.publicKey)), 0o644);
  }
}

export interface SignOptions {
  /** One role or several, such as pageserver, safekeeper and control for a compute. */
  readonly aud: Audience | readonly Audience[];
  readonly scope: 'node' | 'tenant';
  readonly tenant?: string;
  readonly timeline?: string;
  /** At most (and by default) 3600. */
  readonly ttlSeconds?: number;
}

/** Signs tokens as one role. */
export class TokenIssuer {
  readonly role: KeyRole;
  readonly #key: CryptoKey;
  readonly #kid: string;
  readonly #clock: Clock;
  /** Tokens that have more than half their life left, by what they say. Bounded: emptied when it grows. */
  readonly #recent = new Map<string, {readonly token: string; readonly freshUntil: number}>();

  private constructor(role: KeyRole, key: CryptoKey, kid: string, clock: Clock) {
    this.role = role;
    this.#key = key;
    this.#kid = kid;
    this.#clock = clock;
  }

  /** Throws when the key is missing or can be read by others. */
  static async load(keysDir: string, role: KeyRole, clock: Clock): Promise<TokenIssuer> {
    const key = await importPKCS8(readSecretFile(joinPath(keysDir, `${role}.key.pem`)), 'EdDSA');
    const kid = keyId(role, systemDisk.readFile(joinPath(keysDir, `${role}.pub.pem`)).toString('utf8'));
    return new TokenIssuer(role, key, kid, clock);
  }

  /** A signed token. The same options may give the same token while more than half of its life is left. */
  async sign(options: SignOptions): Promise<string> {
    const ttl = options.ttlSeconds ?? lifetimeSecondsDefault;
    assert(ttl > 0 && ttl <= lifetimeSecondsMax, `a token lives at most ${lifetimeSecondsMax} s, not ${ttl}`);
    assert(
      options.scope === 'node' || idPattern.test(options.tenant ?? ''),
      'a token of scope tenant names a tenant (32 hex digits)',
    );
    const aud = typeof options.aud === 'string' ? [options.aud] : options.aud;
    const now = Math.floor(this.#clock.nowMs() / 1000);
    const cacheKey = JSON.stringify([aud, options.scope, options.tenant, options.timeline, ttl]);
    const known = this.#recent.get(cacheKey);
    if (known && now < known.freshUntil) return known.token;
    const claims: Claims = {
      iss: this.role,
      aud,
      scope: options.scope,
      ...(options.tenant === undefined ? {} : {tenant: options.tenant}),
      ...(options.timeline === undefined ? {} : {timeline: options.timeline}),
      iat: now,
      exp: now + ttl,
    };
    const token = await new CompactSign(Buffer.from(JSON.stringify(claims)))
      .setProtectedHeader({alg: 'EdDSA', typ: 'JWT', kid: this.#kid})
      .sign(this.#key);
    if (this.#recent.size >= 1000) this.#recent.clear();
    this.#recent.set(cacheKey, {token, freshUntil: now + ttl / 2});
    return token;
  }
}

interface TrustedKey {
  readonly role: KeyRole;
  readonly key: CryptoKey;
}

/** Checks tokens that name one audience. */
export class TokenVerifier {
  readonly #keysDir: string;
  readonly #audience: Audience;
  readonly #clock: Clock;
  #keys: ReadonlyMap<string, TrustedKey>;
  #loadedAtMs: number;

  private constructor(keysDir: string, audience: Audience, clock: Clock, keys: ReadonlyMap<string, TrustedKey>) {
    this.#keysDir = keysDir;
    this.#audience = audience;
    this.#clock = clock;
    this.#keys = keys;
    this.#loadedAtMs = clock.monotonicMs();
  }

  /** Reads every `*.pub.pem` of the directory. */
  static async load(keysDir: string, audience: Audience, clock: Clock): Promise<TokenVerifier> {
    return new TokenVerifier(keysDir, audience, clock, await loadPublicKeys(keysDir));
  }

  /** The claims of a good token; AuthError otherwise. */
  async verify(token: string | undefined): Promise<Claims> {
    if (token === undefined || token === '')
      throw new AuthError('token_missing', `the ${this.#audience} wants a token (Authorization: Bearer …)`);
    if (token.length > tokenBytesMax) throw new AuthError('token_malformed', 'the token is too long');
    let signer: TrustedKey | undefined;
    let payload: Uint8Array;
    try {
      const result = await compactVerify(
        token,
        async (header) => {
          signer = await this.#trustedKey(header.kid);
          return signer.key;
        },
        {algorithms: ['EdDSA']},
      );
      payload = result.payload;
    } catch (error) {
      if (error instanceof AuthError) throw error;
      throw new AuthError('token_untrusted', 'the token is malformed or its signature is wrong');
    }
    assert(signer !== undefined, 'a verified token has a signer');
    return this.#check(parseClaims(payload), signer.role);
  }

  #check(claims: Claims, signer: KeyRole): Claims {
    const now = this.#clock.nowMs() / 1000;
    if (claims.iss !== signer)
      throw new AuthError('token_untrusted', `the token says it is from ${claims.iss} but is signed by ${signer}`);
    if (!claims.aud.includes(this.#audience))
      throw new AuthError('token_audience', `the token is for ${claims.aud.join(', ')}, not for ${this.#audience}`);
    if (claims.exp <= now) throw new AuthError('token_expired', 'the token has expired');
    if (claims.iat > now + clockSkewSeconds)
      throw new AuthError('token_expired', 'the token is from the future: check the clocks of both machines');
    if (claims.exp - claims.iat > lifetimeSecondsMax)
      throw new AuthError('token_untrusted', 'the token lives longer than an hour');
    if (claims.scope === 'tenant' && signer !== 'control')
      throw new AuthError('token_scope', 'only control signs tokens of one tenant');
    return claims;
  }

  async #trustedKey(kid: string | undefined): Promise<TrustedKey> {
    const known = this.#keys.get(kid ?? '');
    if (known) return known;
    // A key that was added since: look again, but not for every forged token.
    const now = this.#clock.monotonicMs();
    if (now - this.#loadedAtMs > 1000) {
      this.#loadedAtMs = now;
      this.#keys = await loadPublicKeys(this.#keysDir);
      const added = this.#keys.get(kid ?? '');
      if (added) return added;
    }
    throw new AuthError('token_untrusted', 'the token is signed with a key that is not known here');
  }
}

/**
 * Throws AuthError unless these claims may touch the tenant (and the timeline, when one is named). Of internal peers only the roles that
 * `peers` names may: what a role has no business with, a stolen key of that role does not open.
 */
export function requireTenant(claims: Claims, peers: readonly KeyRole[], tenantId: string, timelineId?: string): void {
  if (claims.scope === 'node') return requireNode(claims, ...peers);
  if (claims.tenant !== tenantId) throw new AuthError('token_scope', 'the token is for another tenant');
  if (claims.timeline !== undefined && timelineId !== claims.timeline)
    throw new AuthError('token_scope', 'the token is for another timeline');
}

/** Throws AuthError unless the caller is an internal peer of one of these roles. */
export function requireNode(claims: Claims, ...roles: readonly KeyRole[]): void {
  if (claims.scope !== 'node') throw new AuthError('token_scope', 'a tenant may not do this');
  if (!roles.includes(claims.iss)) throw new AuthError('token_scope', `${claims.iss} may not do this`);
}

/** The `authenticate` of #runtime/http.ts: AuthErrors become 401, wrong scope 403. */
export function httpAuthenticator(verifier: TokenVerifier): (token: string | undefined) => Promise<Claims> {
  return async (token) => {
    try {
      return await verifier.verify(token);
    } catch (error) {
      throw asHttpError(error);
    }
  };
}

/** AuthError → HttpError; anything else comes back as it is. */
export function asHttpError(error: unknown): unknown {
  if (!(error instanceof AuthError)) return error;
  return new HttpError(
    error.code === 'token_scope' || error.code === 'token_audience' ? 403 : 401,
    error.code,
    error.message,
  );
}

function keyId(role: KeyRole, publicPem: string): string {
  return `${role}.${sha256(Buffer.from(publicPem.replaceAll(/\s/g, '')))
    .toString('hex')
    .slice(0, 12)}`;
}

/** Files are `<role>.pub.pem`, or `<role>.<anything>.pub.pem` while a key is being replaced. */
async function loadPublicKeys(keysDir: string): Promise<ReadonlyMap<string, TrustedKey>> {
  const keys = new Map<string, TrustedKey>();
  for (const name of systemDisk.list(keysDir)) {
    const role = /^([a-z]+)(?:\.[a-z0-9-]+)?\.pub\.pem$/.exec(name)?.[1];
    if (role === undefined || !isKeyRole(role)) continue;
    const pem = systemDisk.readFile(joinPath(keysDir, name)).toString('utf8');
    try {
      keys.set(keyId(role, pem), {role, key: await importSPKI(pem, 'EdDSA')});
    } catch (error) {
      throw new Error(
        `${joinPath(keysDir, name)} is not an Ed25519 public key in PEM form; delete it and its .key.pem to get new ones`,
        {cause: error},
      );
    }
  }
  if (keys.size === 0)
    throw new Error(`no public keys (*.pub.pem) in ${keysDir}: run \`pagoda up\` once, it makes them`);
  return keys;
}

function isKeyRole(text: string): text is KeyRole {
  return (keyRoles as readonly string[]).includes(text);
}

function parseClaims(payload: Uint8Array): Claims {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(payload).toString('utf8'));
  } catch {
    value = undefined;
  }
  const c = (value ?? {}) as Partial<Record<keyof Claims, unknown>>;
  const aud = typeof c.aud === 'string' ? [c.aud] : c.aud;
  const good =
    typeof c.iss === 'string' &&
    isKeyRole(c.iss) &&
    Array.isArray(aud) &&
    aud.every((a) => typeof a === 'string') &&
    (c.scope === 'node' || c.scope === 'tenant') &&
    (c.tenant === undefined || (typeof c.tenant === 'string' && idPattern.test(c.tenant))) &&
    (c.timeline === undefined || (typeof c.timeline === 'string' && idPattern.test(c.timeline))) &&
    (c.scope === 'node' || c.tenant !== undefined) &&
    Number.isSafeInteger(c.iat) &&
    Number.isSafeInteger(c.exp);
  if (!good) throw new AuthError('token_malformed', 'the token lacks a claim or has one of the wrong form');
  return {...(value as Claims), aud: aud as Audience[]};
}
