/** Who waits until a timeline has ingested up to an LSN. */
import type {Timer} from '#runtime/clock.ts';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {TimelineState} from './state.ts';
import {TimelineError} from './timeline-reader.ts';

interface LsnWaiter {
  readonly lsn: Lsn;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  readonly timer: Timer;
}

export class LsnWaiters {
  readonly #state: TimelineState;
  #waiters: LsnWaiter[] = [];

  constructor(state: TimelineState) {
    this.#state = state;
  }

  /** Resolves when lastRecordLsn has reached `lsn`. TimelineError 'lsn-timeout' after `timeoutMs` or when ingest stops. */
  wait(lsn: Lsn, timeoutMs: number): Promise<void> {
    const {context, name, ingestError} = this.#state;
    if (ingestError !== undefined) return Promise.reject(this.#stoppedAt(lsn, ingestError));
    return new Promise<void>((resolve, reject) => {
      const timer = context.clock.setTimer(timeoutMs, () => {
        this.#waiters = this.#waiters.filter((w) => w !== waiter);
        reject(
          new TimelineError(
            'lsn-timeout',
            `${name}: LSN ${formatLsn(lsn)} was waited for ${timeoutMs} ms, ingest has reached ${formatLsn(this.#state.lastRecordLsn)}; ` +
              (this.#state.walError ??
                'look at the safekeepers of the timeline and at the ingest lag of this pageserver'),
          ),
        );
      });
      const waiter = {lsn, resolve, reject, timer};
      this.#waiters.push(waiter);
    });
  }

  /** lastRecordLsn has grown. */
  advanced(): void {
    if (this.#waiters.length === 0) return;
    const reached = this.#state.lastRecordLsn;
    this.#end((waiter) => (waiter.lsn <= reached ? 'resolve' : undefined));
  }

  /** Ingest cannot go on. */
  ingestStopped(reason: string): void {
    this.#end((waiter) => this.#stoppedAt(waiter.lsn, reason));
  }

  /** The timeline goes. */
  stop(): void {
    this.#end(() => new TimelineError('unavailable', `${this.#state.name}: the timeline is being stopped`));
  }

  #end(outcome: (waiter: LsnWaiter) => 'resolve' | Error | undefined): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      const how = outcome(waiter);
      if (how === undefined) {
        this.#waiters.push(waiter);
        continue;
      }
      waiter.timer.cancel();
      if (how === 'resolve') waiter.resolve();
      else waiter.reject(how);
    }
  }

  #stoppedAt(lsn: Lsn, reason: string): TimelineError {
    return new TimelineError(
      'lsn-timeout',
      `${this.#state.name}: LSN ${formatLsn(lsn)} will not be reached: ingest stopped at ${formatLsn(this.#state.lastRecordLsn)}: ${reason}`,
    );
  }
}
