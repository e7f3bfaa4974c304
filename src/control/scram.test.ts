import {strict as assert} from 'node:assert';
import {createHash, createHmac, pbkdf2Sync} from 'node:crypto';
import {test} from 'node:test';
import {SeededRandom} from '#runtime/random.ts';
import {makePassword, makeScramVerifier, PasswordVault} from './scram.ts';

test('a verifier is what the server derives from the password', async () => {
  const random = new SeededRandom(3);
  const password = makePassword(random);
  const verifier = await makeScramVerifier(password, random);
  const [, iterations, salt, stored, server] = /^SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)$/.exec(verifier)!;
  const salted = pbkdf2Sync(password, Buffer.from(salt!, 'base64'), Number(iterations), 32, 'sha256');
  const clientKey = createHmac('sha256', salted).update('Client Key').digest();
  assert.equal(stored, createHash('sha256').update(clientKey).digest('base64'));
  assert.equal(server, createHmac('sha256', salted).update('Server Key').digest('base64'));
});

test('a stored password opens only with its key, in its place', () => {
  const vault = new PasswordVault(Buffer.alloc(32, 1));
  const sealed = vault.seal('secret', 'br-1', 'alice');
  assert.equal(vault.open(sealed, 'br-1', 'alice'), 'secret');
  assert.throws(() => vault.open(sealed, 'br-2', 'alice'), /Reset the password/);
  assert.throws(() => new PasswordVault(Buffer.alloc(32, 2)).open(sealed, 'br-1', 'alice'));
  const flipped = Buffer.from(sealed, 'base64');
  flipped[flipped.length - 1]! ^= 1;
  assert.throws(() => vault.open(flipped.toString('base64'), 'br-1', 'alice'));
  assert.throws(() => new PasswordVault(Buffer.alloc(16)), /32 bytes/);
});
