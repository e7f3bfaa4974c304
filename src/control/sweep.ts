/** Work of the control plane's own clock: again and again, never twice at once. */
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';

export interface Sweep {
  /** Resolves when what is under way has ended. */
  stop(): Promise<void>;
}

/** `what` names it in the log when it fails; the next one comes all the same. */
export function startSweep(options: {
  readonly clock: Clock;
  readonly log: Log;
  readonly everyMs: number;
  readonly what: string;
  readonly sweep: () => Promise<void>;
}): Sweep {
  const {clock, log, everyMs, what, sweep} = options;
  let stopped = false;
  let timer: Timer | undefined;
  let sweeping = Promise.resolve();
  const again = (): void => {
    if (stopped) return;
    timer = clock.setTimer(everyMs, () => {
      sweeping = sweep()
        .catch((error: unknown) => log.error(`${what} failed`, {error}))
        .then(again);
    });
  };
  again();
  return {
    async stop() {
      stopped = true;
      timer?.cancel();
      await sweeping;
    },
  };
}
