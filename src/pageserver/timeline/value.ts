/**
 * What storage keeps for a key at an LSN. In memory layers and in layer files a value has the same bytes, so that writing
 * a layer copies and never converts:
 *   u8 kind | u8 flags | u8 blockId (records) | u8 0 | u32 LE payload length | payload
 */
import type {Lsn} from '#postgres/lsn.ts';

export const valueHeaderBytes = 8;

export const valueKind = {
  /** The whole value: 8192 bytes of a page, or the bytes of a metadata key. */
  image: 0,
  /** A whole WAL record; the page is its block `blockId`; redo at read time. */
  record: 1,
  /** ingest/page-patch.ts. */
  patch: 2,
  /** A page of zeros. */
  zero: 3,
  /** The key does not exist from here on. */
  tombstone: 4,
} as const;

/** Nothing older is needed to build the key at this LSN: reading stops here. Also a bit of the layer index. */
export const flagStartsHistory = 1;
/** Records: wal_log_hints or data checksums were on in the writer (RedoEnvironment.walLogHints). */
export const flagWalLogHints = 2;

export interface Value {
  readonly lsn: Lsn;
  readonly kind: number;
  readonly flags: number;
  readonly blockId: number;
  /** A view of a cache or a memory layer: read only. */
  readonly payload: Buffer;
}

/**
 * A value where it lies. The payload is made a Buffer only when somebody asks for it: a page is often rebuilt from a hundred
 * records, and a view of each costs as much as its redo.
 */
export class StoredValue implements Value {
  readonly lsn: Lsn;
  readonly kind: number;
  readonly flags: number;
  readonly blockId: number;
  readonly bytes: Buffer;
  readonly start: number;
  readonly length: number;

  constructor(lsn: Lsn, kind: number, flags: number, blockId: number, bytes: Buffer, start: number, length: number) {
    this.lsn = lsn;
    this.kind = kind;
    this.flags = flags;
    this.blockId = blockId;
    this.bytes = bytes;
    this.start = start;
    this.length = length;
  }

  get payload(): Buffer {
    return this.bytes.subarray(this.start, this.start + this.length);
  }
}

/** The value at `offset` of a data block or arena. Throws RangeError when it does not lie inside. */
export function readValue(from: Buffer, offset: number, lsn: Lsn): StoredValue {
  const start = offset + valueHeaderBytes;
  const length =
    start > from.length
      ? 0
      : (from[offset + 4]! | (from[offset + 5]! << 8) | (from[offset + 6]! << 16) | (from[offset + 7]! << 24)) >>> 0;
  if (start + length > from.length)
    throw new RangeError(`value at ${offset} of ${length} bytes leaves its block of ${from.length}`);
  return new StoredValue(lsn, from[offset]!, from[offset + 1]!, from[offset + 2]!, from, start, length);
}
