import {randomBytes} from 'node:crypto';

/** Randomness comes in as an argument, so that a simulation is decided by its seed. */
export interface Random {
  bytes(count: number): Buffer;
  uint32(): number;
  /** In [0, 1). */
  float(): number;
}

/** The machine's cryptographic source. */
export const systemRandom: Random = {
  bytes: (count) => randomBytes(count),
  uint32: () => randomBytes(4).readUInt32LE(0),
  float: () => randomBytes(4).readUInt32LE(0) / 4294967296,
};

/** sfc32: small, fast, the same sequence for the same seed on every machine. Not for secrets. */
export class SeededRandom implements Random {
  #a: number;
  #b: number;
  #c: number;
  #d = 1;

  constructor(seed: number) {
    this.#a = seed | 0;
    this.#b = (seed / 4294967296) | 0;
    this.#c = 0x9e3779b9;
    for (let i = 0; i < 15; i++) this.uint32();
  }

  uint32(): number {
    const t = (((this.#a + this.#b) | 0) + this.#d) | 0;
    this.#d = (this.#d + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (this.#c << 21) | (this.#c >>> 11);
    this.#c = (this.#c + t) | 0;
    return t >>> 0;
  }

  float(): number {
    return this.uint32() / 4294967296;
  }

  bytes(count: number): Buffer {
    const out = Buffer.alloc(count);
    for (let i = 0; i < count; i++) out[i] = this.uint32() >>> 24;
    return out;
  }
}

/** A fresh tenant or timeline id: 32 lowercase hex digits. */
export function newId(random: Random): string {
  return random.bytes(16).toString('hex');
}
