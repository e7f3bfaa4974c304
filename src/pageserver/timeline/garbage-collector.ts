/**
 * Gives up history behind the restore window of one timeline: where the window begins, and that nothing is looked up for the
 * thousands of branches that rest. Which layers go is decided in gc-plan.ts.
 */
import {failpoint} from '#runtime/failpoint.ts';
import type {Lsn} from '#postgres/lsn.ts';
import type {Compactor} from './compaction.ts';
import type {Retention} from './index-object.ts';
import {heldPoints} from './kept-history.ts';
import type {TimelineState} from './state.ts';
import {lsnAtTime} from './time-lookup.ts';

export class GarbageCollector {
  readonly #state: TimelineState;
  readonly #compactor: Compactor;
  readonly #attachedMs: number;
  /** No commit lies in the restore window. */
  #windowIsEmpty = false;
  /** As of the last collection, when it found that there is nothing more to do before one of these changes. */
  #collected: {readonly lastRecordLsn: Lsn; readonly retention: Retention; readonly held: number} | undefined;

  constructor(state: TimelineState, compactor: Compactor) {
    this.#state = state;
    this.#compactor = compactor;
    this.#attachedMs = state.context.clock.monotonicMs();
  }

  /** See Timeline.collectGarbage. The timeline is readable at its end. */
  async collect(isStopped: () => boolean): Promise<void> {
    const state = this.#state;
    const {clock, limits} = state.context;
    if (clock.monotonicMs() - this.#attachedMs < limits.leaseMsMax) return;
    // It forgets leases that ended, also of a branch that has nothing to collect.
    const {length: held} = heldPoints(state, state.lastRecordLsn);
    if (state.layers.count === 0) return;
    const {lastRecordLsn, retention} = state;
    const done = this.#collected;
    if (done?.lastRecordLsn === lastRecordLsn && done.retention === retention && done.held === held) return;
    const cutoff = await this.#windowStart();
    if (isStopped() || state.lifecycle !== 'active') return;
    failpoint('pageserver.gc.before');
    // In one turn: from now on nobody reads below, and the next index says so together with the layers it is without.
    if (cutoff > state.gcCutoffLsn) state.gcCutoffLsn = cutoff;
    const idle = this.#compactor.collect(state.gcCutoffLsn);
    // The cutoff cannot move before something is written: nothing lies between it and the end but what is always kept.
    if (idle && this.#windowIsEmpty) this.#collected = {lastRecordLsn, retention, held};
  }

  async #windowStart(): Promise<Lsn> {
    const state = this.#state;
    const {windowSeconds, windowBytes} = state.retention;
    const found = await lsnAtTime(state, (state.context.clock.nowMs() - windowSeconds * 1000) * 1000);
    const byTime = found.kind === 'present' || found.kind === 'future' ? found.lsn : state.initialLsn;
    const byBytes = windowBytes === 0 ? byTime : state.lastRecordLsn - windowBytes;
    const end = state.diskConsistentLsn - 1;
    this.#windowIsEmpty = found.kind !== 'present' && found.kind !== 'past';
    return Math.max(state.initialLsn, Math.min(byTime, byBytes, end)) as Lsn;
  }
}
