/**
 * Makes WAL: lays records out over pages with headers and continuations, as xlog.c CopyXLogRecordToWAL does. The product
 * writes one kind of record with it (the synthesised checkpoint, checkpoint-segment.ts); tests and the simulator write any.
 */
import {assert} from '#runtime/assert.ts';
import {type Lsn, lsn, writeLsn64} from '#postgres/lsn.ts';
import {recordCrc} from '#postgres/wal/record-crc.ts';
import {recordHeaderSize} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {
  longPageHeaderSize,
  pageFirstIsContrecord,
  walPageHeaderSize,
  walPageSize,
  walSegmentSizeDefault,
  writeWalPageHeader,
} from '#postgres/wal/segment.ts';

export interface WalWriterOptions {
  /** A multiple of 8 outside page headers; at a page start the header is written first. */
  readonly startLsn: Lsn;
  readonly systemId: bigint;
  readonly timeline?: number;
  readonly segmentSize?: number;
  /** xl_prev of the first record. Default 0. */
  readonly previousLsn?: Lsn;
}

export interface NewRecord {
  readonly rmid: number;
  readonly info: number;
  readonly xid?: number;
  /** Everything after the record header: block headers, data headers, payload (see mainDataBody). */
  readonly body: Buffer;
}

/** Body of a record that has main data only. */
export function mainDataBody(data: Buffer): Buffer {
  if (data.length === 0) return data;
  if (data.length < 256) return Buffer.concat([Buffer.from([255, data.length]), data]);
  const header = Buffer.alloc(5);
  header[0] = 254;
  header.writeUInt32LE(data.length, 1);
  return Buffer.concat([header, data]);
}

/** A whole record with its checksum. */
export function encodeRecord(record: NewRecord, previousLsn: Lsn): Buffer {
  const bytes = Buffer.alloc(recordHeaderSize + record.body.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(record.xid ?? 0, 4);
  writeLsn64(bytes, 8, previousLsn);
  bytes[16] = record.info;
  bytes[17] = record.rmid;
  record.body.copy(bytes, recordHeaderSize);
  bytes.writeUInt32LE(recordCrc(bytes, 0, bytes.length), 20);
  return bytes;
}

export class WalWriter {
  readonly #options: WalWriterOptions;
  readonly #segmentSize: number;
  readonly #pieces: Buffer[] = [];
  #position: number;
  #previousLsn: Lsn;

  constructor(options: WalWriterOptions) {
    this.#options = options;
    this.#segmentSize = options.segmentSize ?? walSegmentSizeDefault;
    this.#position = options.startLsn;
    this.#previousLsn = options.previousLsn ?? (0 as Lsn);
    const pageOffset = options.startLsn % walPageSize;
    const headerSize =
      options.startLsn % this.#segmentSize < walPageSize
        ? longPageHeaderSize
        : walPageHeaderSize(lsn(1), this.#segmentSize);
    assert(
      pageOffset % 8 === 0 && (pageOffset === 0 || pageOffset >= headerSize),
      'WAL is written from a record boundary on',
    );
  }

  /** Where the next byte goes: the end of the last record. */
  get position(): Lsn {
    return this.#position as Lsn;
  }

  /** Start of the last record: what the next one names as xl_prev. */
  get previousLsn(): Lsn {
    return this.#previousLsn;
  }

  /** Appends a record; answers where it starts and its end (EndRecPtr). */
  append(record: NewRecord): {readonly startLsn: Lsn; readonly endLsn: Lsn} {
    if (this.#position % walPageSize === 0) this.#pageHeader(0);
    const startLsn = this.#position as Lsn;
    const bytes = encodeRecord(record, this.#previousLsn);
    let written = 0;
    while (written < bytes.length) {
      if (this.#position % walPageSize === 0) this.#pageHeader(bytes.length - written);
      const count = Math.min(bytes.length - written, walPageSize - (this.#position % walPageSize));
      this.#put(bytes.subarray(written, written + count));
      written += count;
    }
    this.#put(Buffer.alloc(-bytes.length & 7));
    this.#previousLsn = startLsn;
    if (record.rmid === rmgr.xlog && (record.info & 0xf0) === 0x40) this.#fillSegment();
    return {startLsn, endLsn: this.#position as Lsn};
  }

  /** Appends the first `length` bytes of a record only, as a crash of the writer leaves them. The next append goes on behind. */
  appendTorn(record: NewRecord, length: number): void {
    const whole = encodeRecord(record, this.#previousLsn);
    if (this.#position % walPageSize === 0) this.#pageHeader(0);
    let written = 0;
    while (written < length) {
      if (this.#position % walPageSize === 0) this.#pageHeader(whole.length - written);
      const count = Math.min(length - written, walPageSize - (this.#position % walPageSize));
      this.#put(whole.subarray(written, written + count));
      written += count;
    }
  }

  /** Starts a page with the given flags; only at a page start. */
  startPage(info: number): void {
    assert(this.#position % walPageSize === 0, 'at a page start');
    this.#pageHeader(0, info);
  }

  /** The bytes made since the last call. */
  take(): Buffer {
    return Buffer.concat(this.#pieces.splice(0));
  }

  #fillSegment(): void {
    while (this.#position % this.#segmentSize !== 0) {
      if (this.#position % walPageSize === 0) this.#pageHeader(0);
      this.#put(Buffer.alloc(walPageSize - (this.#position % walPageSize)));
    }
  }

  #pageHeader(remainingLength: number, info = remainingLength > 0 ? pageFirstIsContrecord : 0): void {
    const header = Buffer.alloc(longPageHeaderSize);
    const size = writeWalPageHeader(header, 0, {
      pageLsn: this.#position as Lsn,
      timeline: this.#options.timeline ?? 1,
      info,
      remainingLength,
      systemId: this.#options.systemId,
      segmentSize: this.#segmentSize,
    });
    this.#put(header.subarray(0, size));
  }

  #put(bytes: Buffer): void {
    this.#pieces.push(bytes);
    this.#position += bytes.length;
  }
}
