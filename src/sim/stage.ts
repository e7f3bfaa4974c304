/** What every part of a simulated world shares: time, chance, the drawn faults, the checker, and the record of what happens. */
import type {Lsn} from '#postgres/lsn.ts';
import {SeededRandom} from '#runtime/random.ts';
import type {Checker} from '#sim/checker.ts';
import {EventQueue} from '#sim/event-queue.ts';
import {type Faults, drawFaults} from '#sim/faults.ts';
import type {Mutations} from '#sim/mutations.ts';

export const tenantId = 'a'.repeat(32);
export const timelineId = 'b'.repeat(32);
export const segmentSize = 4096;
/** In the middle of a segment. */
export const timelineStartLsn = 0x1800 as Lsn;

export interface StageOptions {
  readonly seed: number;
  readonly mutations: Mutations;
  readonly trace: ((line: string) => void) | undefined;
}

/** Codes of `mark`: a change of their meaning changes all hashes, nothing else. */
export const marks = {
  toNode: 1,
  toCompute: 2,
  restart: 3,
  crash: 4,
  elected: 5,
  committed: 6,
  truncate: 7,
  control: 8,
  object: 9,
  copy: 10,
  fault: 11,
} as const;

export class Stage {
  readonly random: SeededRandom;
  readonly queue = new EventQueue();
  readonly faults: Faults;
  readonly mutations: Mutations;
  readonly #trace: ((line: string) => void) | undefined;
  #hash = 0x811c9dc5;
  /** Set once by the world, before anything runs. */
  checker!: Checker;
  /** No new faults from now on. */
  healed = false;
  elections = 0;
  commits = 0;
  crashes = 0;
  changes = 0;
  objects = 0;

  constructor(options: StageOptions) {
    this.random = new SeededRandom(options.seed);
    this.faults = drawFaults(this.random);
    this.mutations = options.mutations;
    this.#trace = options.trace;
  }

  get hash(): number {
    return this.#hash >>> 0;
  }
  get nowMs(): number {
    return this.queue.nowMs;
  }
  get tracing(): boolean {
    return this.#trace !== undefined;
  }

  /** Everything that happens goes into the hash: the same seed gives the same hash. */
  mark(code: number, a: number, b = 0): void {
    let h = this.#hash;
    h = Math.imul(h ^ code, 0x01000193);
    h = Math.imul(h ^ (a | 0), 0x01000193) ^ (h >>> 15);
    h = Math.imul(h ^ (b | 0), 0x01000193) ^ (h >>> 13);
    this.#hash = Math.imul(h ^ Math.floor(this.queue.nowMs * 1000), 0x01000193);
  }

  /** A line of the trace; `line` is only called when there is one. */
  note(line: () => string): void {
    if (this.#trace !== undefined) this.#trace(`${this.queue.nowMs.toFixed(3)} ${line()}`);
  }

  latency(): number {
    const {latencyMs, slowMessage} = this.faults;
    const slow = slowMessage > 0 && !this.healed && this.random.float() < slowMessage;
    return latencyMs * (0.3 + this.random.float()) * (slow ? 30 : 1);
  }

  pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.random.float() * list.length)]!;
  }

  /** True with this probability, while there are faults. */
  happens(probability: number): boolean {
    return probability > 0 && !this.healed && this.random.float() < probability;
  }

  after(delayMs: number, run: () => void): void {
    this.queue.after(delayMs, run);
  }

  /** Again and again at random, until the world is healed. */
  repeat(meanMs: number, run: () => void): void {
    if (meanMs === 0) return;
    this.queue.after(this.random.float() * 2 * meanMs, () => {
      if (this.healed) return;
      run();
      this.repeat(meanMs, run);
    });
  }
}
