/**
 * LSN: a byte position in a branch's WAL. A plain number (safe to 2^53, eight pebibytes of WAL on a branch), branded so
 * that it cannot be mixed with block numbers or lengths (docs/design D7).
 */
export type Lsn = number & {readonly __brand: 'Lsn'};

export const invalidLsn = 0 as Lsn;
const twoPow32 = 4294967296;

/** Brands a number as an LSN. Throws a RangeError when it is not a whole number in 0 … 2^53. */
export function lsn(value: number): Lsn {
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`not an LSN: ${value}`);
  return value as Lsn;
}

/** Reads `HI/LO` in hex, as pg_lsn prints it. Throws a RangeError that quotes the text. */
export function parseLsn(text: string): Lsn {
  const match = /^([0-9a-fA-F]{1,8})\/([0-9a-fA-F]{1,8})$/.exec(text);
  if (!match)
    throw new RangeError(
      `not an LSN: ${JSON.stringify(text.slice(0, 40))} (expected HI/LO in hex, for example 0/16B3748)`,
    );
  return lsn(parseInt(match[1]!, 16) * twoPow32 + parseInt(match[2]!, 16));
}

/** `HI/LO`, upper hex without leading zeros, as pg_lsn prints it. */
export function formatLsn(value: Lsn): string {
  const low = value % twoPow32;
  return `${((value - low) / twoPow32).toString(16).toUpperCase()}/${low.toString(16).toUpperCase()}`;
}

/** 16 upper-hex digits: sorts as text; used in object names. */
export function lsnToHex(value: Lsn): string {
  return value.toString(16).toUpperCase().padStart(16, '0');
}

/** Page headers store an LSN as two u32, high word first (PageXLogRecPtr, storage/bufpage.h). */
export function readPageLsn(page: Uint8Array): Lsn {
  const b = page as Buffer;
  return (((b[0]! | (b[1]! << 8) | (b[2]! << 16) | (b[3]! << 24)) >>> 0) * twoPow32 +
    ((b[4]! | (b[5]! << 8) | (b[6]! << 16) | (b[7]! << 24)) >>> 0)) as Lsn;
}

export function writePageLsn(page: Uint8Array, value: Lsn): void {
  const low = value % twoPow32;
  const high = (value - low) / twoPow32;
  page[0] = high & 0xff;
  page[1] = (high >>> 8) & 0xff;
  page[2] = (high >>> 16) & 0xff;
  page[3] = (high >>> 24) & 0xff;
  page[4] = low & 0xff;
  page[5] = (low >>> 8) & 0xff;
  page[6] = (low >>> 16) & 0xff;
  page[7] = (low >>> 24) & 0xff;
}

/** u64 little-endian, as PostgreSQL stores XLogRecPtr in WAL and control files. Throws above 2^53. */
export function readLsn64(buffer: Buffer, offset: number): Lsn {
  return lsn(buffer.readUInt32LE(offset) + buffer.readUInt32LE(offset + 4) * twoPow32);
}

export function writeLsn64(buffer: Buffer, offset: number, value: Lsn): void {
  const low = value % twoPow32;
  buffer.writeUInt32LE(low, offset);
  buffer.writeUInt32LE((value - low) / twoPow32, offset + 4);
}
