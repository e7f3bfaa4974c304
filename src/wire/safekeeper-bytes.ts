/** Little-endian reader and writer of the rare safekeeper messages. The hot ones (append and its answer) have fixed offsets. */
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';

/** A frame that does not decode. The receiver closes the connection; nothing of the frame has taken effect. */
export class WireError extends Error {}

export class ByteWriter {
  #buffer = Buffer.alloc(256);
  #length = 0;

  u8(value: number): this {
    const at = this.#grow(1); // first: it may replace the buffer
    this.#buffer.writeUInt8(value, at);
    return this;
  }

  u32(value: number): this {
    const at = this.#grow(4);
    this.#buffer.writeUInt32LE(value, at);
    return this;
  }

  /** A whole number up to 2^53 in eight bytes. */
  u64(value: number): this {
    const at = this.#grow(8);
    writeLsn64(this.#buffer, at, value as Lsn);
    return this;
  }

  /** u32 length in bytes, then UTF-8. */
  text(value: string): this {
    const bytes = Buffer.from(value, 'utf8');
    this.u32(bytes.length);
    const at = this.#grow(bytes.length);
    bytes.copy(this.#buffer, at);
    return this;
  }

  finish(): Buffer {
    return this.#buffer.subarray(0, this.#length);
  }

  #grow(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.alloc(Math.max(this.#length, this.#buffer.length * 2));
      this.#buffer.copy(larger, 0, 0, at);
      this.#buffer = larger;
    }
    return at;
  }
}

export class ByteReader {
  readonly #bytes: Buffer;
  readonly #what: string;
  #at = 0;

  constructor(bytes: Buffer, what: string) {
    this.#bytes = bytes;
    this.#what = what;
  }

  u8(): number {
    return this.#bytes.readUInt8(this.#take(1));
  }

  u32(): number {
    return this.#bytes.readUInt32LE(this.#take(4));
  }

  u64(): number {
    const at = this.#take(8);
    try {
      return readLsn64(this.#bytes, at);
    } catch {
      throw new WireError(`${this.#what}: number at byte ${at} is above 2^53`);
    }
  }

  lsn(): Lsn {
    return this.u64() as Lsn;
  }

  text(bytesMax: number): string {
    const length = this.u32();
    if (length > bytesMax)
      throw new WireError(`${this.#what}: text of ${length} bytes, at most ${bytesMax} are allowed`);
    const at = this.#take(length);
    return this.#bytes.toString('utf8', at, at + length);
  }

  /** A list's length; each entry needs at least `entryBytes`, so a lie about the length allocates nothing. */
  count(entryBytes: number): number {
    const count = this.u32();
    if (count * entryBytes > this.#bytes.length - this.#at)
      throw new WireError(`${this.#what}: ${count} entries do not fit the frame`);
    return count;
  }

  end(): void {
    if (this.#at !== this.#bytes.length)
      throw new WireError(`${this.#what}: ${this.#bytes.length - this.#at} bytes too many`);
  }

  #take(count: number): number {
    const at = this.#at;
    if (count > this.#bytes.length - at)
      throw new WireError(`${this.#what}: ends at byte ${this.#bytes.length}, ${count} more were expected at ${at}`);
    this.#at += count;
    return at;
  }
}
