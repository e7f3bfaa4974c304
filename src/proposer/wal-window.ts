/** The newest WAL of a compute, in memory, so that safekeepers that are nearly up to date need no other source. */
import type {Lsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';

interface Chunk {
  readonly lsn: Lsn;
  readonly bytes: Buffer;
}

export interface WalWindowSnapshot {
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly chunks: readonly Chunk[];
}

export class WalWindow {
  #chunks: Chunk[] = [];
  /** Index of the first chunk still held; the array is compacted now and then. */
  #first = 0;
  #startLsn: Lsn;
  #endLsn: Lsn;

  constructor(at: Lsn) {
    this.#startLsn = at;
    this.#endLsn = at;
  }

  static restore(s: WalWindowSnapshot): WalWindow {
    const window = new WalWindow(s.startLsn);
    window.#chunks = [...s.chunks];
    window.#endLsn = s.endLsn;
    return window;
  }

  snapshot(): WalWindowSnapshot {
    return {startLsn: this.#startLsn, endLsn: this.#endLsn, chunks: this.#chunks.slice(this.#first)};
  }

  get startLsn(): Lsn {
    return this.#startLsn;
  }
  get endLsn(): Lsn {
    return this.#endLsn;
  }
  get length(): number {
    return this.#endLsn - this.#startLsn;
  }

  push(lsn: Lsn, bytes: Buffer): void {
    assert(lsn === this.#endLsn, 'WAL comes without gaps');
    this.#chunks.push({lsn, bytes});
    this.#endLsn = (lsn + bytes.length) as Lsn;
  }

  /** The rest of the chunk that holds `lsn`; undefined at the end. `lsn` is not before startLsn. */
  at(lsn: Lsn): Buffer | undefined {
    assert(lsn >= this.#startLsn && lsn <= this.#endLsn, 'only WAL of the window can be read');
    if (lsn === this.#endLsn) return undefined;
    let low = this.#first;
    let high = this.#chunks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (this.#chunks[middle]!.lsn <= lsn) low = middle;
      else high = middle - 1;
    }
    const chunk = this.#chunks[low]!;
    return chunk.lsn === lsn ? chunk.bytes : chunk.bytes.subarray(lsn - chunk.lsn);
  }

  /** Lets go of whole chunks below `lsn` while more than `keepBytes` are held. */
  trim(lsn: Lsn, keepBytes: number): void {
    while (this.#first < this.#chunks.length && this.length > keepBytes) {
      const chunk = this.#chunks[this.#first]!;
      const endLsn = chunk.lsn + chunk.bytes.length;
      if (endLsn > lsn) break;
      this.#startLsn = endLsn as Lsn;
      this.#chunks[this.#first] = {lsn: chunk.lsn, bytes: nothing};
      this.#first++;
    }
    if (this.#first > 256 && this.#first * 2 > this.#chunks.length) {
      this.#chunks = this.#chunks.slice(this.#first);
      this.#first = 0;
    }
  }
}

const nothing = Buffer.alloc(0);
