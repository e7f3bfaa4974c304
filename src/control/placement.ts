/** Which safekeepers take a new timeline, or the place of one that is gone: one per availability zone as far as that goes. */
import type {SafekeeperNode} from '#control/config.ts';
import {allNodes, readSafekeeperSet} from '#control/safekeeper-set.ts';
import type {Store, StoreTransaction} from '#control/store/schema.ts';

/** A commit waits for two of them. */
export const safekeepersPerTimeline = 3;

/**
 * Adds nodes to `kept` until there are `count`: each in a zone that has the fewest of them, there the one with the fewest
 * timelines, then the lowest id. Retired nodes, and those of `avoid`, are not chosen. Fewer when there are not enough.
 */
export function placeSafekeepers(options: {
  readonly nodes: readonly SafekeeperNode[];
  readonly count?: number;
  readonly kept?: readonly number[];
  readonly avoid?: readonly number[];
  /** Timelines by node id. */
  readonly load?: ReadonlyMap<number, number>;
}): number[] {
  const {nodes, count = safekeepersPerTimeline, kept = [], avoid = [], load} = options;
  // A node that names no zone is one of its own: nothing is known of what it shares with others.
  const zoneOf = (nodeId: number): string => nodes.find((n) => n.nodeId === nodeId)?.zone ?? `node ${nodeId}`;
  const chosen = [...kept];
  while (chosen.length < count) {
    const perZone = new Map<string, number>();
    for (const id of chosen) perZone.set(zoneOf(id), (perZone.get(zoneOf(id)) ?? 0) + 1);
    const [best] = nodes
      .filter((n) => n.retired !== true && !chosen.includes(n.nodeId) && !avoid.includes(n.nodeId))
      .map(({nodeId}) => ({nodeId, zone: perZone.get(zoneOf(nodeId)) ?? 0, load: load?.get(nodeId) ?? 0}))
      .sort((a, b) => a.zone - b.zone || a.load - b.load || a.nodeId - b.nodeId);
    if (best === undefined) break;
    chosen.push(best.nodeId);
  }
  return chosen.sort((a, b) => a - b);
}

/** Timelines of each safekeeper. */
export async function safekeeperLoad(store: Store | StoreTransaction): Promise<Map<number, number>> {
  const rows = await store.selectFrom('branches').select('safekeepers').where('deleted_at', 'is', null).execute();
  const load = new Map<number, number>();
  for (const row of rows)
    for (const id of allNodes(readSafekeeperSet(row.safekeepers))) load.set(id, (load.get(id) ?? 0) + 1);
  return load;
}

/** The value of branches.safekeepers for a timeline that is made now. */
export async function placeNewTimeline(
  store: Store | StoreTransaction,
  nodes: readonly SafekeeperNode[],
): Promise<string> {
  const active = nodes.filter((n) => n.retired !== true);
  const load = active.length > safekeepersPerTimeline ? await safekeeperLoad(store) : new Map<number, number>();
  return JSON.stringify(placeSafekeepers({nodes, load}));
}
