/**
 * WAL of the simulated computes: records of 8-byte multiples, `u32 length | u32 crc32c of the rest | u32 term | u32 number |
 * payload`. Each term's own bytes are kept, so that the content of any log can be told from its term history.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {crc32c} from '#runtime/crc.ts';
import type {Random} from '#runtime/random.ts';
import type {RecordBoundary} from '#safekeeper/record-boundary.ts';
import type {TermHistory} from '#wire/safekeeper.ts';

const headerBytes = 16;
const recordBytesMax = 4096;

export function makeRecord(term: number, number: number, payloadBytes: number, random: Random): Buffer {
  const length = (headerBytes + payloadBytes + 7) & ~7;
  const record = Buffer.alloc(length);
  record.writeUInt32LE(length, 0);
  record.writeUInt32LE(term, 8);
  record.writeUInt32LE(number, 12);
  for (let at = headerBytes; at < length; at += 4) record.writeUInt32LE(random.uint32(), at);
  record.writeUInt32LE(crc32c(record.subarray(8)), 4);
  return record;
}

/** Finds the ends of such records. */
export class SimRecordBoundary implements RecordBoundary {
  #endLsn = 0 as Lsn;
  #partial: Buffer = Buffer.alloc(0);
  readonly #checksums: boolean;

  /** `checksums` false: a seeded bug, records are believed as they are. */
  constructor(checksums = true) {
    this.#checksums = checksums;
  }

  get endLsn(): Lsn {
    return this.#endLsn;
  }

  reset(at: Lsn): void {
    this.#endLsn = at;
    this.#partial = Buffer.alloc(0);
  }

  feed(bytes: Buffer): Lsn {
    const all = this.#partial.length === 0 ? bytes : Buffer.concat([this.#partial, bytes]);
    let at = 0;
    while (all.length - at >= 4) {
      const length = all.readUInt32LE(at);
      if (length < headerBytes || length > recordBytesMax || length % 8 !== 0)
        throw new Error(`record of ${length} bytes at ${formatLsn(this.#endLsn)}`);
      if (all.length - at < length) break;
      if (this.#checksums && crc32c(all.subarray(at + 8, at + length)) !== all.readUInt32LE(at + 4))
        throw new Error(`checksum of the record at ${formatLsn(this.#endLsn)}`);
      at += length;
      this.#endLsn = (this.#endLsn + length) as Lsn;
    }
    this.#partial = all.subarray(at);
    return this.#endLsn;
  }
}

/** What each term's compute wrote. */
export class TermLogs {
  readonly #logs = new Map<number, {readonly startLsn: Lsn; bytes: Buffer; length: number}>();

  start(term: number, startLsn: Lsn): void {
    this.#logs.set(term, {startLsn, bytes: Buffer.alloc(1024), length: 0});
  }

  append(term: number, bytes: Buffer): void {
    const log = this.#logs.get(term)!;
    if (log.length + bytes.length > log.bytes.length)
      log.bytes = Buffer.concat([log.bytes], (log.length + bytes.length) * 2);
    bytes.copy(log.bytes, log.length);
    log.length += bytes.length;
  }

  /** The bytes [startLsn, endLsn) of the log with this history. Throws when the history claims bytes nobody wrote. */
  content(history: TermHistory, startLsn: Lsn, endLsn: Lsn): Buffer {
    const parts: Buffer[] = [];
    for (let i = 0; i < history.length; i++) {
      const from = Math.max(history[i]!.lsn, startLsn);
      const to = Math.min(history[i + 1]?.lsn ?? Infinity, endLsn);
      if (from >= to) continue;
      const log = this.#logs.get(history[i]!.term);
      if (log === undefined || to > log.startLsn + log.length)
        throw new Error(`nobody wrote WAL up to ${formatLsn(to as Lsn)} in term ${history[i]!.term}`);
      parts.push(log.bytes.subarray(from - log.startLsn, to - log.startLsn));
    }
    return Buffer.concat(parts);
  }
}
