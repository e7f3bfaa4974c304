import crc32Library from '@node-rs/crc32';

/** CRC-32C (Castagnoli), native. `seed` is the sum so far: crc32c(b, crc32c(a)) is the sum over a then b. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return crc32Library.crc32c(bytes as Buffer, seed);
}
