/**
 * Which LSNs of a timeline can be read. Everything from the GC cutoff on, and below it single points that somebody holds:
 * a branch that begins there, or a lease.
 *
 * A read that does not await sees one state; one that awaits is checked again at each attempt (read-path.ts).
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {TimelineState} from './state.ts';
import {TimelineError} from './timeline-reader.ts';

/** TimelineError 'lsn-too-old' when history at `at` is not kept. */
export function checkKept(state: TimelineState, at: Lsn): void {
  const problem = whyNotKept(state, at);
  if (problem !== undefined) throw new TimelineError('lsn-too-old', problem);
}

function whyNotKept(state: TimelineState, at: Lsn): string | undefined {
  if (at < state.gcCutoffLsn && !isHeld(state, at))
    return (
      `${state.describe(at)}: history before ${formatLsn(state.gcCutoffLsn)} is no longer kept ` +
      `(restore window ${state.retention.windowSeconds} s); read or branch at a later point, or lengthen the window for the future`
    );
  const {ancestor} = state;
  if (ancestor !== undefined) return at < ancestor.lsn ? whyNotKept(ancestor.state, at) : undefined;
  if (at >= state.initialLsn) return undefined;
  const begins = `${state.describe(at)}: history begins at ${formatLsn(state.initialLsn)}`;
  return state.detachedFrom === undefined
    ? begins
    : `${begins}, where the timeline branched from ${state.detachedFrom}: it was detached from it, and what came before stayed there`;
}

function isHeld(state: TimelineState, at: Lsn): boolean {
  if (state.leases.has(at)) return true;
  for (const lsn of state.branchPoints.values()) if (lsn === at) return true;
  return false;
}

/**
 * Keeps history at `at` readable for `ttlMs` at least; asking again prolongs it. Leases are in memory: after an attachment
 * GC gives holders limits.leaseMsMax to come back. Answers the milliseconds granted. TimelineError 'lsn-too-old'.
 */
export function lease(state: TimelineState, at: Lsn, ttlMs: number): number {
  checkKept(state, at);
  const {clock, limits} = state.context;
  const granted = Math.min(Math.max(ttlMs, 0), limits.leaseMsMax);
  const until = clock.monotonicMs() + granted;
  // What lies before the branch point is the ancestor's to keep; the timeline itself goes on being read there.
  for (let s: TimelineState | undefined = state; s !== undefined;) {
    s.leases.set(at, Math.max(s.leases.get(at) ?? 0, until));
    const {ancestor}: TimelineState = s;
    s = ancestor !== undefined && at <= ancestor.lsn ? ancestor.state : undefined;
  }
  return granted;
}

/** The earliest LSN of the timeline's own history that somebody may read, not later than what is in layers. */
export function firstReadable(state: TimelineState): Lsn {
  const points = heldPoints(state, state.gcCutoffLsn).filter((at) => at >= state.initialLsn);
  const first = points[0] ?? Math.max(state.gcCutoffLsn, state.initialLsn);
  // At the end of history a version may still come for an LSN that was reached already (putStatistics).
  return Math.max(state.initialLsn, Math.min(first, state.diskConsistentLsn - 1)) as Lsn;
}

/** WAL below is of no use to anybody: it is in layers, and the history that may be read begins later. */
export function walNeededFrom(state: TimelineState): Lsn {
  return Math.min(state.gcCutoffLsn, state.remoteConsistentLsn, ...state.leases.keys()) as Lsn;
}

/**
 * LSNs of the timeline's own history below the cutoff that must stay readable, ascending, without those that are doubled. Forgets
 * leases that ended.
 */
export function heldPoints(state: TimelineState, cutoff: Lsn): Lsn[] {
  const now = state.context.clock.monotonicMs();
  for (const [at, until] of state.leases) if (until <= now) state.leases.delete(at);
  const points = new Set<Lsn>([...state.leases.keys(), ...state.branchPoints.values()]);
  const first = state.ancestor?.lsn ?? 0;
  return [...points].filter((at) => at >= first && at < cutoff).sort((x, y) => x - y);
}
