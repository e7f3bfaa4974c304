/**
 * Which safekeepers a commit does not need. A quorum gets WAL at once; those beyond it, in reserve, get the same WAL some
 * milliseconds later in larger pieces, which costs a third of the CPU. When the quorum is late, one of the reserve takes the
 * place of whoever is furthest behind.
 */
import type {PeerStatus} from '#proposer/proposer.ts';
import {isQuorum} from '#proposer/quorum.ts';
import type {Membership} from '#wire/safekeeper.ts';

/**
 * The nodes in reserve now. `before`: those in reserve until now, which others are preferred to. `late`: the one in reserve that
 * is to help; then who is furthest behind gives way.
 */
export function chooseReserve(
  membership: Membership,
  peers: readonly PeerStatus[],
  before: ReadonlySet<number>,
  late?: number,
): ReadonlySet<number> {
  const rank = ({nodeId}: PeerStatus): number => (nodeId === late ? 0 : before.has(nodeId) ? 2 : 1);
  const streaming = peers
    .filter((peer) => peer.phase === 'streaming')
    .sort((a, b) => rank(a) - rank(b) || (late === undefined ? 0 : b.flushLsn - a.flushLsn));
  const needed = new Set<number>();
  const isEnough = (): boolean => isQuorum(membership, (nodeId) => needed.has(nodeId));
  for (const {nodeId} of streaming) {
    if (isEnough()) break;
    needed.add(nodeId);
  }
  if (!isEnough()) return new Set();
  return new Set(streaming.map(({nodeId}) => nodeId).filter((nodeId) => !needed.has(nodeId)));
}
