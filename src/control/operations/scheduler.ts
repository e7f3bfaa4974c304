/**
 * Which operations may run now: a pure core (no clock, no database).
 *
 * Every operation holds locks (`branch:…`, `endpoint:…`, `project:…`) from its submission until it has ended. Operations that
 * share a lock run one after the other in order of submission; others run side by side, at most `runningMax` at once.
 *
 * Invariants:
 *  1. Two running operations share no lock.
 *  2. A running operation shares no lock with an unfinished one of lower seq.
 *  3. Nobody starves: the unfinished operation of lowest seq runs, or runningMax others do.
 */
import {assert} from '#runtime/assert.ts';

export interface ScheduledOperation {
  readonly id: string;
  /** Order of submission. */
  readonly seq: number;
  readonly locks: readonly string[];
}

export class OperationScheduler {
  readonly #runningMax: number;
  /** Ordered by seq. */
  #unfinished: ScheduledOperation[] = [];
  readonly #running = new Set<string>();

  constructor(runningMax = 8) {
    this.#runningMax = runningMax;
  }

  get unfinishedCount(): number {
    return this.#unfinished.length;
  }

  knows(id: string): boolean {
    return this.#unfinished.some((operation) => operation.id === id);
  }

  /** Takes operations in; answers which ones start now. One that is known already is ignored. */
  submit(operations: readonly ScheduledOperation[]): string[] {
    for (const operation of operations) if (!this.knows(operation.id)) this.#unfinished.push(operation);
    this.#unfinished.sort((a, b) => a.seq - b.seq);
    return this.#startable();
  }

  /** The operation has ended, well or badly; answers which ones start now. */
  finish(id: string): string[] {
    assert(this.#running.delete(id), `operation ${id} ended without running`);
    this.#unfinished = this.#unfinished.filter((operation) => operation.id !== id);
    return this.#startable();
  }

  #startable(): string[] {
    const held = new Set<string>();
    const starting: string[] = [];
    for (const operation of this.#unfinished) {
      const free = operation.locks.every((lock) => !held.has(lock));
      if (this.#running.has(operation.id))
        assert(free, `operation ${operation.id} runs beside one that holds its lock`);
      else if (free && this.#running.size < this.#runningMax) {
        this.#running.add(operation.id);
        starting.push(operation.id);
      }
      for (const lock of operation.locks) held.add(lock);
    }
    return starting;
  }
}
