/**
 * When each transaction committed: what turns a time into an LSN.
 *
 * Commits are gathered in chunks of at most 256; a chunk is one blob under a key of kind 80 that names its first commit:
 *   u16 count | i64 runningMax before the chunk | count × {u64 lsn, i64 time}          times in µs since 1970, LE
 * `runningMax` is the latest commit time of all commits before the chunk. It never falls, so that the search is a binary
 * one even when the writer's clock went back. "At time T" means what recovery_target_time means to Postgres: everything
 * before the first commit that is later than T.
 */
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';

export const commitsPerChunk = 256;
const headBytes = 10;
const entryBytes = 16;

export interface CommitChunk {
  readonly runningMaxBefore: number;
  readonly lsns: readonly Lsn[];
  readonly times: readonly number[];
}

/** The commits that are not yet in a chunk of storage. */
export class CommitTail {
  #runningMaxBefore: number;
  #runningMax: number;
  #lsns: Lsn[] = [];
  #times: number[] = [];

  /** `runningMax`: of all commits before. */
  constructor(runningMax: number) {
    this.#runningMaxBefore = runningMax;
    this.#runningMax = runningMax;
  }

  get count(): number {
    return this.#lsns.length;
  }
  get firstLsn(): Lsn | undefined {
    return this.#lsns[0];
  }
  get runningMax(): number {
    return this.#runningMax;
  }

  add(time: number, lsn: Lsn): void {
    this.#lsns.push(lsn);
    this.#times.push(time);
    if (time > this.#runningMax) this.#runningMax = time;
  }

  chunk(): CommitChunk {
    return {runningMaxBefore: this.#runningMaxBefore, lsns: this.#lsns, times: this.#times};
  }

  /** The gathered commits, encoded; the tail is empty afterwards. */
  take(): Buffer {
    const encoded = encodeCommitChunk(this.chunk());
    this.#runningMaxBefore = this.#runningMax;
    this.#lsns = [];
    this.#times = [];
    return encoded;
  }
}

export function encodeCommitChunk(chunk: CommitChunk): Buffer {
  const count = chunk.lsns.length;
  const b = Buffer.alloc(headBytes + count * entryBytes);
  b.writeUInt16LE(count, 0);
  writeInt64(b, 2, chunk.runningMaxBefore);
  for (let i = 0; i < count; i++) {
    writeLsn64(b, headBytes + i * entryBytes, chunk.lsns[i]!);
    writeInt64(b, headBytes + i * entryBytes + 8, chunk.times[i]!);
  }
  return b;
}

/** Throws RangeError when the value is malformed. */
export function decodeCommitChunk(b: Buffer): CommitChunk {
  const count = b.length >= headBytes ? b.readUInt16LE(0) : -1;
  if (b.length !== headBytes + count * entryBytes) throw new RangeError(`commit times value of ${b.length} bytes`);
  const lsns: Lsn[] = [];
  const times: number[] = [];
  for (let at = headBytes; at < b.length; at += entryBytes) {
    lsns.push(readLsn64(b, at));
    times.push(readInt64(b, at + 8));
  }
  return {runningMaxBefore: readInt64(b, 2), lsns, times};
}

/** The latest commit time of a chunk and everything before it. */
export function runningMaxAfter(chunk: CommitChunk): number {
  return chunk.times.reduce((max, time) => Math.max(max, time), chunk.runningMaxBefore);
}

// Times are within ±2^53 µs (285 years): a signed high word and an unsigned low word.
function writeInt64(b: Buffer, at: number, value: number): void {
  const high = Math.floor(value / 4294967296);
  b.writeUInt32LE(value - high * 4294967296, at);
  b.writeInt32LE(high, at + 4);
}
function readInt64(b: Buffer, at: number): number {
  return b.readInt32LE(at + 4) * 4294967296 + b.readUInt32LE(at);
}
