/** Bounds-checked reading of a record's main data. */
import type {WalRecord} from '#postgres/wal/record.ts';

/** Main data too short for what it announces: the interpreter turns it into an IngestError. */
export class RecordDataError extends Error {}

/** A cursor over the main data; one object is reused. */
export class RecordData {
  #bytes: Buffer = Buffer.alloc(0);
  #at = 0;
  #end = 0;

  open(record: WalRecord): void {
    this.#bytes = record.bytes;
    this.#at = record.mainDataOffset;
    this.#end = record.mainDataOffset + record.mainDataLength;
  }

  get remaining(): number {
    return this.#end - this.#at;
  }

  u8(): number {
    return this.#bytes[this.#advance(1)]!;
  }

  u16(): number {
    return this.#bytes.readUInt16LE(this.#advance(2));
  }

  u32(): number {
    return this.#bytes.readUInt32LE(this.#advance(4));
  }

  u64(): bigint {
    return this.#bytes.readBigUInt64LE(this.#advance(8));
  }

  /** A view. */
  bytes(count: number): Buffer {
    const at = this.#advance(count);
    return this.#bytes.subarray(at, at + count);
  }

  skip(count: number): void {
    this.#advance(count);
  }

  /** Up to a NUL byte, which is passed over. A view. */
  cString(): Buffer {
    const end = this.#bytes.indexOf(0, this.#at);
    if (end < 0 || end >= this.#end) throw new RecordDataError('text without end in the main data');
    const text = this.#bytes.subarray(this.#at, end);
    this.#at = end + 1;
    return text;
  }

  #advance(count: number): number {
    const at = this.#at;
    if (count < 0 || this.#end - at < count)
      throw new RecordDataError(`main data ends ${count - (this.#end - at)} bytes too early`);
    this.#at = at + count;
    return at;
  }
}
