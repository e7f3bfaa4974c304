/**
 * Objects that no index names: what a crash between an upload and its index has left, or a deletion that failed.
 *
 * A layer object is an orphan when it carries this attachment's generation or an older one, is in no index of the tenant, and
 * is not being written now: indexes of older generations are not read any more by anybody, and layers are put into the index
 * by the process that writes them, under its own generation. An index object, or the mark of an archived timeline beside it, is an
 * orphan when a later index was loaded, or validated.
 * The generation is validated after the list was made and before anything is deleted: a pageserver that was replaced
 * meanwhile deletes nothing. Objects of a higher generation are not ours to judge.
 */
import {parseArchivedMarkKey} from './archived.ts';
import {
  decodeIndex,
  indexObjectKey,
  layerGeneration,
  parseIndexObjectKey,
  tenantPrefix,
  timelinePrefix,
} from './index-object.ts';
import type {PageserverContext} from './state.ts';
import type {Tenant} from './tenant.ts';

/** Of one request. */
const deleteMax = 1000;

function newestIndex(keys: readonly string[]): {generation: number; sequence: number} | undefined {
  const positions = keys.map(parseIndexObjectKey).filter((at) => at !== undefined);
  return positions.sort((x, y) => x.generation - y.generation || x.sequence - y.sequence).at(-1);
}

/** Answers how many objects were deleted. */
export async function sweepOrphans(context: PageserverContext, tenant: Tenant): Promise<number> {
  const {tenantId, generation} = tenant;
  // Written but not in an index yet: taken before and after the list, so that nothing that moves between is missed.
  const writing = tenant.timelines().flatMap((timeline) => [...timeline.state.writing]);
  const asleep = new Set(tenant.archivedTimelines().map((archived) => archived.timelineId));
  const prefix = `${tenantPrefix(tenantId)}timelines/`;
  const listed = await context.store.list(prefix);
  /** Timelines whose layers are all in `known`. */
  const judged = new Set<string>();
  const known = new Set<string>(writing);
  const indexes = new Map<string, {generation: number; sequence: number}>();
  for (const timeline of tenant.timelines()) {
    judged.add(timeline.timelineId);
    for (const name of timeline.state.writing) known.add(name);
    for (const {name, owner} of timeline.layerObjects()) known.add(timelinePrefix(tenantId, owner) + name);
    const safe = timeline.safeIndex;
    if (safe !== undefined) indexes.set(timeline.timelineId, safe);
  }
  const timelineOf = (key: string): string => key.slice(prefix.length, key.indexOf('/', prefix.length));
  const indexed = new Set(
    listed.filter(({key}) => parseIndexObjectKey(key) !== undefined).map(({key}) => timelineOf(key)),
  );
  const byTimeline = Map.groupBy(listed, ({key}) => timelineOf(key));
  // What an archived timeline consists of is in its newest index; that is read only when there is more than the index knows of.
  for (const timelineId of asleep) {
    const objects = byTimeline.get(timelineId) ?? [];
    const newest = newestIndex(objects.map(({key}) => key));
    if (newest === undefined || newest.generation > generation || judged.has(timelineId)) continue;
    indexes.set(timelineId, newest);
    const others = objects.filter(({key}) => parseArchivedMarkKey(key) === undefined).length - 1;
    if (others <= (tenant.archivedTimeline(timelineId)?.layers ?? 0)) continue;
    const key = indexObjectKey(tenantId, timelineId, newest.generation, newest.sequence);
    const index = decodeIndex(await context.store.get(key), {tenantId, timelineId, ...newest});
    for (const layer of index.layers) known.add(timelinePrefix(tenantId, layer.timelineId ?? timelineId) + layer.name);
    judged.add(timelineId);
  }
  const orphans: string[] = [];
  for (const {key} of listed) {
    const timelineId = timelineOf(key);
    // A mark goes as the index that it belongs to.
    const index = parseIndexObjectKey(key) ?? parseArchivedMarkKey(key)?.at;
    if (index === undefined) {
      const written = layerGeneration(key);
      // Of timelines that are here, and of those that were deleted (an index is the first object of a timeline and the last).
      const ours = judged.has(timelineId) || !indexed.has(timelineId);
      if (written !== undefined && written <= generation && ours && !known.has(key)) orphans.push(key);
      continue;
    }
    const newest = indexes.get(timelineId);
    if (newest === undefined) continue;
    if (
      index.generation < newest.generation ||
      (index.generation === newest.generation && index.sequence < newest.sequence)
    )
      orphans.push(key);
  }
  if (orphans.length === 0) return 0;
  if (!(await tenant.validate(generation))) return 0;
  for (let i = 0; i < orphans.length; i += deleteMax) await context.store.delete(orphans.slice(i, i + deleteMax));
  context.metrics.orphansDeleted.inc(orphans.length);
  return orphans.length;
}
