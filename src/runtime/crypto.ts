/** The few primitives that are used directly; signatures of tokens go through jose (#wire/auth.ts). */
import * as crypto from 'node:crypto';

export function sha256(bytes: Buffer): Buffer {
  return crypto.createHash('sha256').update(bytes).digest();
}

export function hmacSha256(key: Buffer, bytes: Buffer): Buffer {
  return crypto.createHmac('sha256', key).update(bytes).digest();
}

/** PBKDF2 with HMAC-SHA-256, 32 bytes: SCRAM's Hi(). Runs off the event loop. */
export function pbkdf2Sha256(password: Buffer, salt: Buffer, iterations: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    crypto.pbkdf2(password, salt, iterations, 32, 'sha256', (error, key) => {
      if (error) reject(error);
      else resolve(key);
    });
  });
}

/** Compares in a time that does not depend on where they differ. */
export function equalConstantTime(a: Buffer, b: Buffer): boolean {
  return a.length === b.length && crypto.timingSafeEqual(a, b);
}

const nonceBytes = 12;
const tagBytes = 16;

/** AES-256-GCM: nonce (12) ∥ tag (16) ∥ ciphertext. `context` is authenticated with it: the same bytes under another context do not open. */
export function seal(key: Buffer, plain: Buffer, context: string): Buffer {
  const nonce = crypto.randomBytes(nonceBytes);
  const cipher = crypto.createCipheriv('aes-256-gcm', key, nonce);
  cipher.setAAD(Buffer.from(context));
  const body = Buffer.concat([cipher.update(plain), cipher.final()]);
  return Buffer.concat([nonce, cipher.getAuthTag(), body]);
}

/** The reverse of `seal`; throws when key, context or bytes are not those of then. */
export function unseal(key: Buffer, sealed: Buffer, context: string): Buffer {
  const decipher = crypto.createDecipheriv('aes-256-gcm', key, sealed.subarray(0, nonceBytes), {
    authTagLength: tagBytes,
  });
  decipher.setAAD(Buffer.from(context));
  decipher.setAuthTag(sealed.subarray(nonceBytes, nonceBytes + tagBytes));
  return Buffer.concat([decipher.update(sealed.subarray(nonceBytes + tagBytes)), decipher.final()]);
}

/** A random UUID (version 4). */
export function newUuid(): string {
  return crypto.randomUUID();
}
