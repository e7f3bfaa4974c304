/** Role passwords: how they are made, kept, and turned into what a compute gets. */
import {hmacSha256, pbkdf2Sha256, seal, sha256, unseal} from '#runtime/crypto.ts';
import type {Random} from '#runtime/random.ts';

/** PostgreSQL's SCRAM_DEFAULT_ITERATIONS. */
const iterations = 4096;
const saltBytes = 16;
const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';
const passwordLength = 24;

/** `npg_` and 24 letters and digits: 142 bits, and nothing that needs quoting in a URL or a shell. */
export function makePassword(random: Random): string {
  let password = 'npg_';
  while (password.length < 4 + passwordLength) {
    const byte = random.bytes(1)[0]!;
    // 248 = 4 × 62: a byte above would make some letters likelier than others.
    if (byte < 248) password += alphabet[byte % alphabet.length];
  }
  return password;
}

/**
 * What pg_authid stores: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (RFC 5803 form; the server's side is
 * scram-common.c). The password must be ASCII, as ours are: SASLprep then changes nothing.
 */
export async function makeScramVerifier(password: string, random: Random): Promise<string> {
  const salt = random.bytes(saltBytes);
  const salted = await pbkdf2Sha256(Buffer.from(password), salt, iterations);
  const storedKey = sha256(hmacSha256(salted, Buffer.from('Client Key')));
  const serverKey = hmacSha256(salted, Buffer.from('Server Key'));
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${storedKey.toString('base64')}:${serverKey.toString('base64')}`;
}

/** Keeps passwords retrievable (reveal_password) without storing them in the clear. */
export class PasswordVault {
  readonly #key: Buffer;

  /** 32 bytes. */
  constructor(installKey: Buffer) {
    if (installKey.length !== 32) throw new Error('the install key must have 32 bytes (64 hex digits)');
    this.#key = installKey;
  }

  seal(password: string, branchId: string, role: string): string {
    return seal(this.#key, Buffer.from(password), context(branchId, role)).toString('base64');
  }

  /** Throws when the install key is not the one of then. */
  open(sealed: string, branchId: string, role: string): string {
    try {
      return unseal(this.#key, Buffer.from(sealed, 'base64'), context(branchId, role)).toString('utf8');
    } catch (error) {
      throw new Error(
        `the password of role ${role} cannot be decrypted: the install key is not the one it was stored with. Reset the password`,
        {cause: error},
      );
    }
  }
}

/** A sealed password copied to another row does not open there. */
function context(branchId: string, role: string): string {
  return `role-password ${branchId} ${role}`;
}
