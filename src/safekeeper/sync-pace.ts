/**
 * Whether an fsync is waited for on the event loop, or in another thread. On a fast disk, with one timeline that writes, the
 * way to the other thread and back costs more than the fsync, and there is nothing else to do meanwhile. With several
 * writers, a slow disk, or a bulk load, the event loop must stay free: what arrives meanwhile shares the next sync.
 */

/** More than this is a bulk load. */
const smallBytes = 32 * 1024;
/** Mean duration below which waiting is cheaper than asking another thread. */
const fastMs = 2;
/** One that took longer than this sends all of the next second to the other thread. */
const slowMs = 20;
const slowForMs = 1000;
/** Another timeline that asked within this time counts as a writer. */
const aloneMs = 100;
/** Weight of the newest duration in the mean. */
const newest = 1 / 16;

export class SyncPace {
  /** Nothing is fast before it was seen to be. */
  #meanMs = 2 * fastMs;
  #slowUntilMs = 0;
  #writer: object | undefined;
  #otherAtMs = -aloneMs;

  /** `writer` identifies the timeline that is about to sync `bytes`. */
  mayWait(writer: object, bytes: number, nowMs: number): boolean {
    if (this.#writer !== writer) {
      if (this.#writer !== undefined) this.#otherAtMs = nowMs;
      this.#writer = writer;
    }
    return (
      bytes <= smallBytes && this.#meanMs < fastMs && nowMs >= this.#slowUntilMs && nowMs - this.#otherAtMs >= aloneMs
    );
  }

  /** Every sync, waited for or not. */
  took(ms: number, nowMs: number): void {
    this.#meanMs += (ms - this.#meanMs) * newest;
    if (ms > slowMs) this.#slowUntilMs = nowMs + slowForMs;
  }
}
