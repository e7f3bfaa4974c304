/** The safekeepers of a branch's timeline, as the column branches.safekeepers keeps them: node ids, without addresses. */
import type {SafekeeperNode} from '#control/config.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';

export interface SafekeeperSet {
  /** Of the membership (wire/membership.ts). */
  readonly generation: number;
  readonly members: readonly number[];
  /** Not empty while a change is under way that a compute has to know of. */
  readonly newMembers: readonly number[];
}

/** A plain list of node ids is what a new timeline has: generation 1. */
export function readSafekeeperSet(text: string): SafekeeperSet {
  const value = JSON.parse(text) as SafekeeperSet | readonly number[];
  return 'generation' in value ? value : {generation: 1, members: value, newMembers: []};
}

export function writeSafekeeperSet(set: SafekeeperSet): string {
  return set.generation === 1 && set.newMembers.length === 0 ? JSON.stringify(set.members) : JSON.stringify(set);
}

export function setOf({generation, members, newMembers}: Membership): SafekeeperSet {
  const ids = (list: readonly Member[]): number[] => list.map((m) => m.nodeId);
  return {generation, members: ids(members), newMembers: ids(newMembers)};
}

/** With addresses. Throws when a node is not known any more. */
export function membershipOf(set: SafekeeperSet, nodes: readonly SafekeeperNode[]): Membership {
  const members = (ids: readonly number[]): Member[] => ids.map((id) => memberOf(nodes, id));
  return {generation: set.generation, members: members(set.members), newMembers: members(set.newMembers)};
}

export function memberOf(nodes: readonly SafekeeperNode[], nodeId: number): Member {
  const node = nodes.find((n) => n.nodeId === nodeId);
  if (node === undefined) throw new Error(`the control plane knows no safekeeper ${nodeId}`);
  return {nodeId, host: node.host, port: node.port};
}

/** Every node that may hold something of the timeline. */
export function allNodes({members, newMembers}: SafekeeperSet): number[] {
  return [...new Set([...members, ...newMembers])];
}
