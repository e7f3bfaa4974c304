import crc32Library from '@node-rs/crc32';

/** CRC-32 (IEEE 802.3), native: four times as fast as CRC-32C over large pieces, which the library adds up with less of the processor. */
export function crc32(bytes: Uint8Array, seed = 0): number {
  return crc32Library.crc32(bytes as Buffer, seed);
}

/** CRC-32C (Castagnoli), native. `seed` is the sum so far: crc32c(b, crc32c(a)) is the sum over a then b. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return crc32Library.crc32c(bytes as Buffer, seed);
}
