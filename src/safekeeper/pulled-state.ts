/** What a new member begins with when it has copied a peer's WAL (POST pull, wire/membership.ts). */
import type {Lsn} from '#postgres/lsn.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import {commonPoint, cutHistory} from '#safekeeper/term-history.ts';
import type {Membership} from '#wire/safekeeper.ts';

/** A peer's acceptor at one moment. */
export interface PeerSnapshot {
  readonly state: AcceptorState;
  /** Durable there. `state.commitLsn` may lag behind what the peer knows; it is a lower bound. */
  readonly flushLsn: Lsn;
}

/**
 * The control file of the copy. `before` and `after` are the donor's snapshots from before and after copying WAL
 * [before.state.localStartLsn, before.flushLsn). Undefined = the donor's log has changed below that meanwhile (it was
 * truncated, or trimmed), the copy is worthless and has to be begun anew.
 *
 * The copy promises whatever the donor promised: a term as high. `membership` does not contain the node, so it counts for
 * nothing before the control plane says so.
 */
export function pulledState(
  before: PeerSnapshot,
  after: PeerSnapshot,
  membership: Membership,
): AcceptorState | undefined {
  const {flushLsn} = before;
  const history = cutHistory(before.state.history, flushLsn);
  const common = commonPoint(history, after.state.history, after.flushLsn);
  if (common.kind === 'none' || common.lsn < flushLsn) return undefined;
  if (after.state.localStartLsn > before.state.localStartLsn) return undefined;
  return {
    ...before.state,
    history,
    membership,
    term: Math.max(before.state.term, after.state.term),
    commitLsn: Math.min(Math.max(before.state.commitLsn, before.state.startLsn), flushLsn) as Lsn,
  };
}
