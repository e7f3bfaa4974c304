/**
 * Which nodes take what is new, or the place of one that is gone. Safekeepers of a timeline: one per availability zone as far as
 * that goes. Pageservers: the one with the fewest shards, and one in another zone that keeps itself ready to take over.
 */
import {type Attachment, attachmentOf} from '#control/attachments.ts';
import type {PageserverNode, SafekeeperNode} from '#control/config.ts';
import {allNodes, readSafekeeperSet} from '#control/safekeeper-set.ts';
import {inStorage} from '#control/store/in-storage.ts';
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
  const rows = await store.selectFrom('branches').select('safekeepers').where(inStorage).execute();
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

export interface ShardPlace {
  readonly pageserverId: number;
  /** Absent: there is no other pageserver. */
  readonly secondaryId?: number;
}

/** Shards that each pageserver holds, and keeps ready. */
export interface PageserverLoad {
  readonly attached: number;
  readonly secondary: number;
}

/**
 * Places for `count` shards. Retired nodes, and those of `avoid`, are not chosen. Empty: there is no node.
 */
export function placeShards(options: {
  readonly nodes: readonly PageserverNode[];
  readonly count?: number;
  readonly avoid?: readonly number[];
  /** By node id. */
  readonly load?: ReadonlyMap<number, PageserverLoad>;
}): ShardPlace[] {
  const {nodes, count = 1, avoid = [], load = new Map<number, PageserverLoad>()} = options;
  const counts = new Map(nodes.map(({nodeId}) => [nodeId, {attached: 0, secondary: 0, ...load.get(nodeId)}]));
  const usable = nodes.filter((n) => n.retired !== true && !avoid.includes(n.nodeId));
  const places: ShardPlace[] = [];
  for (let i = 0; i < count; i++) {
    const [primary] = usable.toSorted(
      (a, b) => counts.get(a.nodeId)!.attached - counts.get(b.nodeId)!.attached || a.nodeId - b.nodeId,
    );
    if (primary === undefined) break;
    counts.get(primary.nodeId)!.attached++;
    const secondary = placeSecondary({nodes, of: primary.nodeId, avoid, load: counts});
    if (secondary !== undefined) counts.get(secondary)!.secondary++;
    places.push({pageserverId: primary.nodeId, ...(secondary === undefined ? {} : {secondaryId: secondary})});
  }
  return places;
}

/** Who keeps itself ready for a shard that is held by `of`: in another zone when there is one, there the one with least to do. */
export function placeSecondary(options: {
  readonly nodes: readonly PageserverNode[];
  readonly of: number;
  readonly avoid?: readonly number[];
  readonly load?: ReadonlyMap<number, PageserverLoad>;
}): number | undefined {
  const {nodes, of, avoid = [], load} = options;
  const zoneOf = (nodeId: number): string => nodes.find((n) => n.nodeId === nodeId)?.zone ?? `node ${nodeId}`;
  const duties = ({nodeId}: PageserverNode): number =>
    (load?.get(nodeId)?.attached ?? 0) + (load?.get(nodeId)?.secondary ?? 0);
  const [best] = nodes
    .filter((n) => n.nodeId !== of && n.retired !== true && !avoid.includes(n.nodeId))
    .toSorted(
      (a, b) =>
        Number(zoneOf(a.nodeId) === zoneOf(of)) - Number(zoneOf(b.nodeId) === zoneOf(of)) ||
        duties(a) - duties(b) ||
        a.nodeId - b.nodeId,
    );
  return best?.nodeId;
}

export async function pageserverLoad(store: Store | StoreTransaction): Promise<Map<number, PageserverLoad>> {
  return loadOf((await store.selectFrom('attachments').selectAll().execute()).map(attachmentOf));
}

export function loadOf(shards: readonly Attachment[]): Map<number, PageserverLoad> {
  const load = new Map<number, {attached: number; secondary: number}>();
  const at = (nodeId: number): {attached: number; secondary: number} => {
    const known = load.get(nodeId) ?? {attached: 0, secondary: 0};
    load.set(nodeId, known);
    return known;
  };
  for (const {pageserverId, secondaryId} of shards) {
    at(pageserverId).attached++;
    if (secondaryId !== undefined) at(secondaryId).secondary++;
  }
  return load;
}
