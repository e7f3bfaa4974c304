/** How many processors a cell took: gaps of a machine with more to do than it can are the machine's. */
import {loadavg} from 'node:os';
import {processesOf} from '../processes.ts';
import type {Cell} from './cell.ts';

const everyMs = 2000;

export class CpuMeter {
  readonly #cell: Cell;
  readonly #seconds = new Map<string, number>();
  readonly #last = new Map<number, number>();
  readonly #loads: number[] = [];
  #timer: NodeJS.Timeout | undefined;
  #ownAtStart = process.cpuUsage();
  #startedMs = 0;

  constructor(cell: Cell) {
    this.#cell = cell;
  }

  start(): void {
    this.#ownAtStart = process.cpuUsage();
    this.#startedMs = performance.now();
    this.#sample();
    this.#seconds.clear();
    this.#timer = setInterval(() => this.#sample(), everyMs);
  }

  /** What Pagoda, the object store, and this process with clients and links took on average; and the machine's load. */
  stop(): string {
    clearInterval(this.#timer);
    this.#sample();
    const seconds = (performance.now() - this.#startedMs) / 1000;
    const own = process.cpuUsage(this.#ownAtStart);
    const [pagoda, store] = this.#cell.folders;
    const cores = (s: number): string => (s / seconds).toFixed(2);
    const parts = [
      `Pagoda ${cores(this.#seconds.get(pagoda!) ?? 0)}`,
      ...(store === undefined ? [] : [`object store ${cores(this.#seconds.get(store) ?? 0)}`]),
      `clients and links ${cores((own.user + own.system) / 1e6)}`,
    ];
    const load = this.#loads.reduce((a, b) => a + b, 0) / this.#loads.length;
    return `${parts.join(', ')} cores; load of the machine ${load.toFixed(1)}`;
  }

  /** What ended since the last sample is counted up to that one. */
  #sample(): void {
    this.#loads.push(loadavg()[0]!);
    for (const folder of this.#cell.folders)
      for (const {pid, cpuSeconds} of processesOf(folder)) {
        const more = cpuSeconds - (this.#last.get(pid) ?? 0);
        this.#last.set(pid, cpuSeconds);
        this.#seconds.set(folder, (this.#seconds.get(folder) ?? 0) + Math.max(0, more));
      }
  }
}
