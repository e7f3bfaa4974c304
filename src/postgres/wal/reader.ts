/**
 * Incremental WAL reader: raw WAL bytes in, in chunks split anywhere; records out (access/transam/xlogreader.c
 * XLogDecodeNextRecord, ValidXLogRecordHeader, ValidXLogRecord, XLogReaderValidatePageHeader).
 *
 * A record that lies inside one page of one chunk is handed out where it lies in that chunk (so the caller must not write
 * into a pushed chunk while it uses records of it); every other record is put together in a new buffer. Each byte of a chunk
 * is consumed once: in place, or copied.
 *
 *   const reader = new WalReader({startLsn});
 *   reader.push(chunk);
 *   while (reader.next(record)) use(record);
 *   if (reader.failure) …   // the end of valid WAL: position and reason
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {WalDecodeError, type WalRecord, decodeRecordAt, recordHeaderSize} from '#postgres/wal/record.ts';
import {endOfCheckedRun, recordCrc, runRecordBytesMin} from '#postgres/wal/record-crc.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {
  longPageHeaderSize,
  pageFirstIsContrecord,
  pageFirstIsOverwriteContrecord,
  pageFlagsAll,
  pageLongHeader,
  shortPageHeaderSize,
  walPageMagic,
  walPageSize,
  walSegmentSizeDefault,
} from '#postgres/wal/segment.ts';

export interface WalReaderOptions {
  /** Position of the first byte that will be pushed: the start of a record, or of the page whose header precedes it. */
  readonly startLsn: Lsn;
  /** When given, long page headers must carry it. */
  readonly systemId?: bigint;
  readonly segmentSize?: number;
  /** When given, xl_prev of the first record must equal it; else it must only lie before the record. */
  readonly previousLsn?: Lsn;
}

/** Why reading ended: WAL is valid up to `position` and cannot be read beyond. */
export interface WalReadFailure {
  readonly position: Lsn;
  readonly reason: string;
}

/** xl_tot_len beyond this is taken for garbage (the server's own limit is below: palloc's 1 GiB). */
const recordLengthMax = 1024 * 1024 * 1024;
const rmgrBuiltinMax = 21;
const rmgrCustomMin = 128;
const opcodeCheckpointShutdown = 0x00;
const opcodeSwitch = 0x40;
const opcodeOverwriteContrecord = 0xd0;
const empty = Buffer.alloc(0);

export class WalReader {
  readonly #segmentSize: number;
  readonly #systemId: bigint | undefined;

  #chunk: Buffer = empty;
  /** Position of the chunk's first byte. */
  #chunkLsn: number;
  /** Next byte of the chunk. */
  #at = 0;
  /** The checksums of the chunk's records that end up to here are known to be right. */
  #checkedUntil = 0;
  /** Offset of that byte within its WAL page. */
  #pageOffset: number;
  readonly #queue: Buffer[] = [];
  /** Bytes to pass over: alignment padding, or the rest of a segment after XLOG_SWITCH. */
  #skip = 0;

  readonly #header = Buffer.alloc(longPageHeaderSize);
  #headerLength = 0;
  #timeline = 0;

  /** The record being put together; its length is in #needed once 4 bytes are there. */
  #assembling = false;
  #assembly: Buffer = empty;
  #assembled = 0;
  #needed = 0;

  /** What #take found: the record is #recordLength bytes of #recordBytes from #recordStart on. */
  #recordBytes: Buffer = empty;
  #recordStart = 0;
  #recordLength = 0;
  #recordLsn = 0;
  #endLsn: number;
  #previousLsn: number;
  #previousKnown: boolean;
  #overwrittenLsn = 0;
  #failure: WalReadFailure | undefined;

  constructor(options: WalReaderOptions) {
    this.#segmentSize = options.segmentSize ?? walSegmentSizeDefault;
    this.#systemId = options.systemId;
    this.#chunkLsn = options.startLsn;
    this.#pageOffset = options.startLsn % walPageSize;
    this.#endLsn = options.startLsn;
    this.#previousKnown = options.previousLsn !== undefined;
    this.#previousLsn = options.previousLsn ?? 0;
    // Records start at multiples of 8; a position in between is the unrounded end of one.
    this.#skip = -this.#pageOffset & 7;
    const headerSize = options.startLsn % this.#segmentSize < walPageSize ? longPageHeaderSize : shortPageHeaderSize;
    if (this.#pageOffset > 0 && this.#pageOffset < headerSize)
      this.#fail(options.startLsn, 'the start position lies inside a page header');
  }

  /** Position of the next byte that push() expects. */
  get pushLsn(): Lsn {
    let position = this.#chunkLsn + this.#chunk.length;
    for (const chunk of this.#queue) position += chunk.length;
    return position as Lsn;
  }

  /** End (EndRecPtr) of the last record that was handed out; at first, startLsn. What comes next starts here. */
  get lastRecordEndLsn(): Lsn {
    return this.#endLsn as Lsn;
  }

  /** Start of the last record that was handed out (what the next record's xl_prev must be), or 0. */
  get lastRecordStartLsn(): Lsn {
    return this.#previousLsn as Lsn;
  }

  /** Set once WAL turned out not to be readable any further; next() then answers false for ever. */
  get failure(): WalReadFailure | undefined {
    return this.#failure;
  }

  /** Adds the bytes that follow what was pushed before. */
  push(chunk: Buffer): void {
    if (chunk.length > 0) this.#queue.push(chunk);
  }

  /**
   * Decodes the next record. False: all pushed bytes are used up, or `failure` is set. `into.bytes` and all views of it stay
   * valid as long as the pushed chunk is not overwritten.
   */
  next(into: WalRecord): boolean {
    if (!this.#take()) return false;
    try {
      const start = this.#recordStart;
      const length = this.#recordLength;
      decodeRecordAt(this.#recordBytes, start, length, this.#previousLsn as Lsn, this.#endLsn as Lsn, into);
    } catch (error) {
      if (!(error instanceof WalDecodeError)) throw error;
      this.#fail(this.#previousLsn, error.message);
      return false;
    }
    if (into.rmid === rmgr.xlog && (into.info & 0xf0) === opcodeOverwriteContrecord) return this.#checkOverwrite(into);
    return true;
  }

  /** Like next() without decoding blocks: only lastRecordStartLsn and lastRecordEndLsn move on. */
  skip(): boolean {
    return this.#take();
  }

  /** Finds the next whole, valid record. */
  #take(): boolean {
    while (this.#failure === undefined) {
      const chunk = this.#chunk;
      const at = this.#at;
      const left = chunk.length - at;
      if (left === 0) {
        if (!this.#nextChunk()) return false;
        continue;
      }
      if (this.#skip > 0) {
        this.#advance(this.#skip < left ? this.#skip : left, true);
        continue;
      }
      if (this.#pageOffset === 0 || this.#headerLength > 0) {
        this.#takePageHeader();
        continue;
      }
      const pageLeft = walPageSize - this.#pageOffset;
      if (!this.#assembling) {
        this.#recordLsn = this.#chunkLsn + at;
        if (left >= 4) {
          const total = (chunk[at]! | (chunk[at + 1]! << 8) | (chunk[at + 2]! << 16) | (chunk[at + 3]! << 24)) >>> 0;
          if (total < recordHeaderSize || total > recordLengthMax) {
            this.#fail(this.#recordLsn, `invalid record length ${total}`);
            break;
          }
          if (total <= pageLeft && total <= left) {
            if (!this.#checkHeader(chunk, at)) break;
            if (at >= this.#checkedUntil && total >= runRecordBytesMin)
              this.#checkedUntil = endOfCheckedRun(chunk, at, at + (left < pageLeft ? left : pageLeft));
            if (at + total > this.#checkedUntil && !this.#checkCrc(chunk, at, total)) break;
            this.#at = at + total;
            this.#pageOffset = (this.#pageOffset + total) & (walPageSize - 1);
            this.#finish(chunk, at, total);
            return true;
          }
          this.#needed = total;
          if (this.#assembly.length < total) this.#assembly = Buffer.allocUnsafe(Math.min(total, 4 * walPageSize));
        } else {
          this.#needed = 0;
        }
        this.#assembling = true;
        this.#assembled = 0;
      }
      if (this.#assemble(left < pageLeft ? left : pageLeft)) return true;
    }
    return false;
  }

  /** Adds up to `available` bytes of the chunk to the record being put together; answers whether it is whole. */
  #assemble(available: number): boolean {
    const before = this.#assembled;
    const wanted = (this.#needed === 0 ? 4 : this.#needed) - before;
    const count = wanted < available ? wanted : available;
    if (this.#assembly.length < before + count) {
      const larger = Buffer.allocUnsafe(
        Math.min(Math.max(before + count, this.#assembly.length * 2, 4 * walPageSize), this.#needed || 64),
      );
      this.#assembly.copy(larger, 0, 0, before);
      this.#assembly = larger;
    }
    this.#chunk.copy(this.#assembly, before, this.#at, this.#at + count);
    this.#assembled = before + count;
    this.#advance(count, false);
    if (this.#needed === 0) {
      if (this.#assembled < 4) return false;
      const total = this.#assembly.readUInt32LE(0);
      if (total < recordHeaderSize || total > recordLengthMax) {
        this.#fail(this.#recordLsn, `invalid record length ${total}`);
        return false;
      }
      this.#needed = total;
      return false;
    }
    if (before < recordHeaderSize && this.#assembled >= recordHeaderSize && !this.#checkHeader(this.#assembly, 0))
      return false;
    if (this.#assembled < this.#needed) return false;
    const bytes = this.#assembly;
    if (!this.#checkCrc(bytes, 0, this.#needed)) return false;
    this.#assembly = empty; // it belongs to the record now
    this.#assembling = false;
    this.#finish(bytes, 0, this.#needed);
    return true;
  }

  #finish(bytes: Buffer, start: number, length: number): void {
    this.#recordBytes = bytes;
    this.#recordStart = start;
    this.#recordLength = length;
    const position = this.#chunkLsn + this.#at;
    const padding = -this.#pageOffset & 7;
    this.#skip = padding;
    this.#endLsn = position + padding;
    this.#previousLsn = this.#recordLsn;
    this.#previousKnown = true;
    if (bytes[start + 17] === rmgr.xlog && (bytes[start + 16]! & 0xf0) === opcodeSwitch) {
      // The switch record owns the rest of its segment.
      this.#endLsn = Math.ceil(this.#endLsn / this.#segmentSize) * this.#segmentSize;
      this.#skip = this.#endLsn - position;
    }
  }

  #checkHeader(bytes: Buffer, at: number): boolean {
    const rmid = bytes[at + 17]!;
    if (rmid > rmgrBuiltinMax && rmid < rmgrCustomMin) {
      this.#fail(this.#recordLsn, `invalid resource manager ${rmid}`);
      return false;
    }
    const previous =
      ((bytes[at + 8]! | (bytes[at + 9]! << 8) | (bytes[at + 10]! << 16) | (bytes[at + 11]! << 24)) >>> 0) +
      ((bytes[at + 12]! | (bytes[at + 13]! << 8) | (bytes[at + 14]! << 16) | (bytes[at + 15]! << 24)) >>> 0) *
        4294967296;
    if (
      this.#previousKnown
        ? previous !== this.#previousLsn && !isSynthesisedCheckpoint(bytes, at, previous)
        : previous >= this.#recordLsn
    ) {
      this.#fail(
        this.#recordLsn,
        `xl_prev is ${formatLsn(previous as Lsn)}${this.#previousKnown ? `, expected ${formatLsn(this.#previousLsn as Lsn)}` : ''}`,
      );
      return false;
    }
    return true;
  }

  #checkCrc(bytes: Buffer, at: number, total: number): boolean {
    const sum = recordCrc(bytes, at, at + total);
    const stored = (bytes[at + 20]! | (bytes[at + 21]! << 8) | (bytes[at + 22]! << 16) | (bytes[at + 23]! << 24)) >>> 0;
    if (sum === stored) return true;
    this.#fail(this.#recordLsn, `checksum ${sum.toString(16)}, the record says ${stored.toString(16)}`);
    return false;
  }

  #takePageHeader(): void {
    const left = this.#chunk.length - this.#at;
    if (this.#headerLength === 0 && left >= longPageHeaderSize) {
      const size = (this.#chunk[this.#at + 2]! & pageLongHeader) !== 0 ? longPageHeaderSize : shortPageHeaderSize;
      const pageLsn = this.#chunkLsn + this.#at;
      const start = this.#at;
      this.#advance(size, false);
      this.#usePageHeader(this.#chunk, start, pageLsn);
      return;
    }
    // Near the end of a chunk: gather it, first the short form, which says whether it is the long one.
    const wanted =
      this.#headerLength < shortPageHeaderSize || (this.#header[2]! & pageLongHeader) === 0
        ? shortPageHeaderSize
        : longPageHeaderSize;
    const count = Math.min(left, wanted - this.#headerLength);
    this.#chunk.copy(this.#header, this.#headerLength, this.#at, this.#at + count);
    this.#headerLength += count;
    this.#advance(count, false);
    if (this.#headerLength < wanted) return;
    if (wanted === shortPageHeaderSize && (this.#header[2]! & pageLongHeader) !== 0) return;
    this.#headerLength = 0;
    this.#usePageHeader(this.#header, 0, this.#chunkLsn + this.#at - wanted);
  }

  #usePageHeader(bytes: Buffer, at: number, pageLsn: number): void {
    const info = bytes.readUInt16LE(at + 2);
    const reason = this.#pageHeaderProblem(bytes, at, pageLsn, info);
    if (reason !== undefined) {
      this.#fail(this.#assembling ? this.#recordLsn : pageLsn, `page at ${formatLsn(pageLsn as Lsn)}: ${reason}`);
      return;
    }
    if (!this.#assembling) {
      if ((info & pageFirstIsContrecord) !== 0)
        this.#fail(pageLsn, `page at ${formatLsn(pageLsn as Lsn)}: it continues a record that does not start before`);
      return;
    }
    if ((info & pageFirstIsOverwriteContrecord) !== 0) {
      // The writer crashed inside the record and gave it up; reading goes on with the OVERWRITE_CONTRECORD record here.
      this.#overwrittenLsn = this.#recordLsn;
      this.#assembling = false;
      return;
    }
    const remaining = bytes.readUInt32LE(at + 16);
    if ((info & pageFirstIsContrecord) === 0)
      this.#fail(this.#recordLsn, `page at ${formatLsn(pageLsn as Lsn)}: the record is not continued`);
    else if (remaining === 0 || remaining !== this.#needed - this.#assembled)
      this.#fail(
        this.#recordLsn,
        `page at ${formatLsn(pageLsn as Lsn)}: ${remaining} bytes of the record remain, expected ${this.#needed - this.#assembled}`,
      );
  }

  #pageHeaderProblem(bytes: Buffer, at: number, pageLsn: number, info: number): string | undefined {
    const magic = bytes.readUInt16LE(at);
    if (magic !== walPageMagic) return `magic number ${magic.toString(16)}, expected ${walPageMagic.toString(16)}`;
    if ((info & ~pageFlagsAll) !== 0) return `unknown info bits ${info.toString(16)}`;
    if ((info & pageLongHeader) !== 0) {
      const systemId = bytes.readBigUInt64LE(at + 24);
      if (this.#systemId !== undefined && systemId !== this.#systemId)
        return `WAL of database system ${systemId}, expected ${this.#systemId}`;
      const segmentSize = bytes.readUInt32LE(at + 32);
      if (segmentSize !== this.#segmentSize) return `segment size ${segmentSize}, expected ${this.#segmentSize}`;
      const pageSize = bytes.readUInt32LE(at + 36);
      if (pageSize !== walPageSize) return `WAL block size ${pageSize}, expected ${walPageSize}`;
    } else if (pageLsn % this.#segmentSize === 0) {
      return 'the first page of a segment has no long header';
    }
    const address = bytes.readUInt32LE(at + 8) + bytes.readUInt32LE(at + 12) * 4294967296;
    if (address !== pageLsn) return `page address ${formatLsn(address as Lsn)}`;
    const timeline = bytes.readUInt32LE(at + 4);
    if (timeline < this.#timeline) return `timeline ${timeline} after ${this.#timeline}`;
    this.#timeline = timeline;
    return undefined;
  }

  /** VerifyOverwriteContrecord (xlogrecovery.c): the record must name the one that was given up. */
  #checkOverwrite(record: WalRecord): boolean {
    const named =
      record.mainDataLength >= 8
        ? record.bytes.readUInt32LE(record.mainDataOffset) +
          record.bytes.readUInt32LE(record.mainDataOffset + 4) * 4294967296
        : 0;
    // Reading may have begun after the record that was given up; then there is nothing to compare.
    if (this.#overwrittenLsn === 0 || named === this.#overwrittenLsn) {
      this.#overwrittenLsn = 0;
      return true;
    }
    this.#fail(
      this.#previousLsn,
      `OVERWRITE_CONTRECORD names ${formatLsn(named as Lsn)}, the record given up is at ${formatLsn(this.#overwrittenLsn as Lsn)}`,
    );
    return false;
  }

  #advance(count: number, skipped: boolean): void {
    this.#at += count;
    this.#pageOffset = (this.#pageOffset + count) & (walPageSize - 1);
    if (skipped) this.#skip -= count;
  }

  #nextChunk(): boolean {
    const next = this.#queue.shift();
    if (next === undefined) return false;
    this.#chunkLsn += this.#chunk.length;
    this.#chunk = next;
    this.#at = 0;
    this.#checkedUntil = 0;
    return true;
  }

  #fail(position: number, reason: string): void {
    this.#failure = {position: position as Lsn, reason};
  }
}

/**
 * A compute's first record (checkpoint-segment.ts) has xl_prev 0 when whoever made it did not know the record before. No
 * record of Postgres has that, but the first one after initdb.
 */
function isSynthesisedCheckpoint(bytes: Buffer, at: number, previous: number): boolean {
  return previous === 0 && bytes[at + 17] === rmgr.xlog && (bytes[at + 16]! & 0xf0) === opcodeCheckpointShutdown;
}
