/** Time comes in as an argument everywhere; only this file reads the machine's clocks. */
export interface Timer {
  cancel(): void;
}

export interface Clock {
  /** Wall clock, milliseconds since 1970. May jump; never used for ordering. */
  nowMs(): number;
  /** Never goes back; for timeouts and durations. */
  monotonicMs(): number;
  setTimer(delayMs: number, fn: () => void): Timer;
  sleep(delayMs: number): Promise<void>;
}

export const systemClock: Clock = {
  nowMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  setTimer(delayMs, fn) {
    const handle = setTimeout(fn, delayMs);
    return {cancel: () => clearTimeout(handle)};
  },
  sleep: (delayMs) => new Promise((resolve) => void setTimeout(resolve, delayMs)),
};
