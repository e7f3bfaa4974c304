import {strict as assert} from 'node:assert';
import {createHmac} from 'node:crypto';
import {
  chmodSync,
  cpSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import type {Clock} from '#runtime/clock.ts';
import {AuthError, generateKeys, requireNode, requireTenant, TokenIssuer, TokenVerifier} from './auth.ts';

let keysDir = '';
let nowMs = 1_700_000_000_000;
let monotonic = 0;
const clock: Clock = {
  nowMs: () => nowMs,
  monotonicMs: () => monotonic,
  setTimer: () => ({cancel() {}}),
  sleep: () => Promise.resolve(),
};
const tenant = 'a'.repeat(32);
const timeline = 'b'.repeat(32);

before(async () => {
  keysDir = mkdtempSync(join(tmpdir(), 'pagoda-auth-'));
  await generateKeys(keysDir);
});
after(() => rmSync(keysDir, {recursive: true}));

function refusedWith(code: string): (error: unknown) => boolean {
  return (error) => error instanceof AuthError && error.code === code;
}

test('a token opens the door that it names', async () => {
  const issuer = await TokenIssuer.load(keysDir, 'control', clock);
  const verifier = await TokenVerifier.load(keysDir, 'pageserver', clock);
  const token = await issuer.sign({aud: ['pageserver', 'safekeeper'], scope: 'tenant', tenant, timeline});
  const claims = await verifier.verify(token);
  assert.deepEqual(claims, {
    iss: 'control',
    aud: ['pageserver', 'safekeeper'],
    scope: 'tenant',
    tenant,
    timeline,
    iat: 1_700_000_000,
    exp: 1_700_003_600,
  });
  requireTenant(claims, [], tenant, timeline);
  assert.throws(() => requireTenant(claims, [], 'c'.repeat(32), timeline), refusedWith('token_scope'));
  assert.throws(() => requireTenant(claims, [], tenant, 'c'.repeat(32)), refusedWith('token_scope'));
  assert.throws(() => requireTenant(claims, [], tenant), refusedWith('token_scope'));
  assert.throws(() => requireNode(claims, 'control'), refusedWith('token_scope'));
});

test('of internal peers only the roles that a door names come in', async () => {
  const issuer = await TokenIssuer.load(keysDir, 'proxy', clock);
  const verifier = await TokenVerifier.load(keysDir, 'pageserver', clock);
  const claims = await verifier.verify(await issuer.sign({aud: 'pageserver', scope: 'node'}));
  requireTenant(claims, ['control', 'proxy'], tenant, timeline);
  assert.throws(() => requireTenant(claims, ['control'], tenant, timeline), refusedWith('token_scope'));
  assert.throws(() => requireTenant(claims, [], tenant, timeline), refusedWith('token_scope'));
  assert.throws(() => requireNode(claims), refusedWith('token_scope'));
});

test('it does not open another one, nor for ever', async () => {
  const issuer = await TokenIssuer.load(keysDir, 'safekeeper', clock);
  const verifier = await TokenVerifier.load(keysDir, 'broker', clock);
  const elsewhere = await TokenVerifier.load(keysDir, 'control', clock);
  const token = await issuer.sign({aud: 'broker', scope: 'node', ttlSeconds: 60});
  requireNode(await verifier.verify(token), 'safekeeper');
  await assert.rejects(elsewhere.verify(token), refusedWith('token_audience'));
  nowMs += 60_000;
  await assert.rejects(verifier.verify(token), refusedWith('token_expired'));
  assert.notEqual(await issuer.sign({aud: 'broker', scope: 'node', ttlSeconds: 60}), token);
});

test('only control signs for a tenant', async () => {
  const issuer = await TokenIssuer.load(keysDir, 'proxy', clock);
  const verifier = await TokenVerifier.load(keysDir, 'pageserver', clock);
  await assert.rejects(
    verifier.verify(await issuer.sign({aud: 'pageserver', scope: 'tenant', tenant})),
    refusedWith('token_scope'),
  );
});

test('forged tokens', async () => {
  const verifier = await TokenVerifier.load(keysDir, 'pageserver', clock);
  const issuer = await TokenIssuer.load(keysDir, 'control', clock);
  const good = await issuer.sign({aud: 'pageserver', scope: 'node'});
  const [header, payload, signature] = good.split('.') as [string, string, string];
  const base64 = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  const kid = (JSON.parse(Buffer.from(header, 'base64url').toString()) as {kid: string}).kid;

  const none = `${base64({alg: 'none', kid})}.${payload}.`;
  const hsHeader = base64({alg: 'HS256', typ: 'JWT', kid});
  const publicKey = readFileSync(join(keysDir, 'control.pub.pem'));
  const hs256 = `${hsHeader}.${payload}.${createHmac('sha256', publicKey).update(`${hsHeader}.${payload}`).digest('base64url')}`;
  const longer = `${header}.${base64({...JSON.parse(Buffer.from(payload, 'base64url').toString()), exp: 9e9})}.${signature}`;
  for (const forged of [none, hs256, longer, 'x', '..', `${good}x`, 'a'.repeat(5000), good.slice(0, -2)])
    await assert.rejects(
      verifier.verify(forged),
      (e) => e instanceof AuthError && ['token_untrusted', 'token_malformed'].includes(e.code),
      forged.slice(0, 40),
    );
  await assert.rejects(verifier.verify(undefined), refusedWith('token_missing'));
  assert.equal((await verifier.verify(good)).iss, 'control');
});

test('keys are private files, and a readable or linked one is refused', async () => {
  const own = mkdtempSync(join(tmpdir(), 'pagoda-auth-'));
  try {
    cpSync(keysDir, own, {recursive: true});
    const path = join(own, 'control.key.pem');
    assert.equal(statSync(join(keysDir, 'control.key.pem')).mode & 0o777, 0o600);
    chmodSync(path, 0o644);
    await assert.rejects(TokenIssuer.load(own, 'control', clock), /chmod 600/);
    unlinkSync(path);
    symlinkSync(join(keysDir, 'control.key.pem'), path);
    await assert.rejects(TokenIssuer.load(own, 'control', clock), /regular file/);
  } finally {
    rmSync(own, {recursive: true});
  }
});

test('a key that is added later is found without a restart', async () => {
  const own = mkdtempSync(join(tmpdir(), 'pagoda-auth-'));
  try {
    await generateKeys(own, ['control']);
    const verifier = await TokenVerifier.load(own, 'pageserver', clock);
    await generateKeys(own, ['control', 'broker']);
    const token = await (await TokenIssuer.load(own, 'broker', clock)).sign({aud: 'pageserver', scope: 'node'});
    await assert.rejects(verifier.verify(token), refusedWith('token_untrusted'));
    monotonic += 2000;
    assert.equal((await verifier.verify(token)).iss, 'broker');
    writeFileSync(join(own, 'proxy.pub.pem'), 'nonsense');
    await assert.rejects(TokenVerifier.load(own, 'pageserver', clock), /proxy\.pub\.pem/);
  } finally {
    rmSync(own, {recursive: true});
  }
});
