/** Majorities of a membership; while it is joint, of both sets. */
import type {Lsn} from '#postgres/lsn.ts';
import {invalidLsn} from '#postgres/lsn.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';

/** True when a majority of the members (and of the new ones, when there are any) is in the set. */
export function isQuorum(membership: Membership, has: (nodeId: number) => boolean): boolean {
  return (
    majority(membership.members, has) && (membership.newMembers.length === 0 || majority(membership.newMembers, has))
  );
}

/** The highest LSN that a quorum has reached; 0 when none has reached any. */
export function quorumLsn(membership: Membership, reached: (nodeId: number) => Lsn): Lsn {
  const first = majorityLsn(membership.members, reached);
  if (membership.newMembers.length === 0) return first;
  return Math.min(first, majorityLsn(membership.newMembers, reached)) as Lsn;
}

function majority(members: readonly Member[], has: (nodeId: number) => boolean): boolean {
  let count = 0;
  for (const member of members) if (has(member.nodeId)) count++;
  return count * 2 > members.length;
}

function majorityLsn(members: readonly Member[], reached: (nodeId: number) => Lsn): Lsn {
  if (members.length === 0) return invalidLsn;
  const sorted = members.map((member) => reached(member.nodeId)).sort((a, b) => b - a);
  return sorted[Math.floor(members.length / 2)]!;
}
