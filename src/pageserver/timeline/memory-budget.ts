/**
 * Memory of layers that are not in the object store yet, over all timelines of the process. When it is used up, the timeline
 * with the largest open layer freezes it, and so on until the rest fits; what is frozen goes to the object store and frees its
 * memory. Ingest of whoever has something to write waits meanwhile.
 */
import type {TimelineState} from './state.ts';

export class MemoryBudget {
  readonly bytesMax: number;
  readonly #open = new Map<TimelineState, number>();
  #openBytes = 0;
  #frozenBytes = 0;
  #waiters: (() => void)[] = [];

  constructor(bytesMax: number) {
    this.bytesMax = bytesMax;
  }

  /** Held by open and frozen layers. */
  get bytes(): number {
    return this.#openBytes + this.#frozenBytes;
  }
  get isFull(): boolean {
    return this.bytes >= this.bytesMax;
  }

  /** The open layer of a timeline has this size now; 0: it has none. */
  setOpen(state: TimelineState, bytes: number): void {
    const before = this.#open.get(state) ?? 0;
    if (before === bytes) return;
    this.#openBytes += bytes - before;
    if (bytes === 0) this.#open.delete(state);
    else this.#open.set(state, bytes);
    if (bytes > before && this.isFull) this.#makeRoom();
    else this.#wake();
  }

  /** A layer was frozen (positive) or is not needed in memory any more (negative). */
  addFrozen(bytes: number): void {
    this.#frozenBytes += bytes;
    this.#wake();
  }

  /** Resolves when there is room, or `stopped()`. */
  room(stopped: () => boolean): Promise<void> {
    if (!this.isFull || stopped()) return Promise.resolve();
    return new Promise<void>((resolve) => this.#waiters.push(resolve)).then(() => this.room(stopped));
  }

  /** Lets everybody who waits look again. */
  wakeAll(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }

  /** Half of the memory at most stays in open layers: freezing one at a time would make each new one tiny. */
  #makeRoom(): void {
    const largestFirst = [...this.#open].sort((x, y) => y[1] - x[1]);
    for (const [state] of largestFirst) {
      if (this.#openBytes <= this.bytesMax / 2) return;
      state.freezeOpen();
    }
  }

  #wake(): void {
    if (this.#waiters.length > 0 && !this.isFull) this.wakeAll();
  }
}
