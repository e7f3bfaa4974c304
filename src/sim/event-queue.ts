/** Virtual time: events run in order of (time, order of scheduling). Nothing else decides what happens next. */
interface Event {
  readonly atMs: number;
  readonly sequence: number;
  readonly run: () => void;
}

export class EventQueue {
  #heap: Event[] = [];
  #sequence = 0;
  #nowMs = 0;
  #count = 0;

  get nowMs(): number {
    return this.#nowMs;
  }
  /** Events that have run. */
  get count(): number {
    return this.#count;
  }

  after(delayMs: number, run: () => void): void {
    this.at(this.#nowMs + delayMs, run);
  }

  at(atMs: number, run: () => void): void {
    const heap = this.#heap;
    const event = {atMs: Math.max(atMs, this.#nowMs), sequence: this.#sequence++, run};
    let i = heap.length;
    heap.push(event);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(event, heap[parent]!)) break;
      heap[i] = heap[parent]!;
      i = parent;
    }
    heap[i] = event;
  }

  /** Runs the next event if it is due by `untilMs`; false when there is none. */
  runNext(untilMs: number): boolean {
    const heap = this.#heap;
    const first = heap[0];
    if (first === undefined || first.atMs > untilMs) {
      this.#nowMs = Math.max(this.#nowMs, untilMs);
      return false;
    }
    const last = heap.pop()!;
    if (heap.length > 0) {
      let i = 0;
      for (;;) {
        let child = 2 * i + 1;
        if (child >= heap.length) break;
        if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
        if (!before(heap[child]!, last)) break;
        heap[i] = heap[child]!;
        i = child;
      }
      heap[i] = last;
    }
    this.#nowMs = first.atMs;
    this.#count++;
    first.run();
    return true;
  }
}

function before(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.sequence < b.sequence);
}
