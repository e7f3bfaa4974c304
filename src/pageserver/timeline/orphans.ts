/**
 * Objects that no index names: what a crash between an upload and its index has left, or a deletion that failed.
 *
 * A layer object is an orphan when it carries this attachment's generation or an older one, is in no index of the tenant, neither
 * the next one nor the last durable one, and is not being written now: layers are put into the index by the process that writes
 * them, under its own generation. And its timeline must have an index of this generation, from before the objects were listed: until
 * then whoever comes next would load an index of an older one, which an attachment that does not know that it is over may still
 * be writing, with layers that are nowhere else (src/sim/generation-model.ts). Where there is none, the sweep has one saved, and
 * judges the next time. An index object, or the mark of an archived timeline beside it, is an
 * orphan when a later index was loaded, or validated.
 * The generation is validated after the list was made and before anything is deleted: a pageserver that was replaced
 * meanwhile deletes nothing. Objects of a higher generation are not ours to judge.
 */
import {ObjectStoreError} from '#objectstore/object-store.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {archivedFromIndex, archivedMarkKey, parseArchivedMarkKey} from './archived.ts';
import {
  type TimelineIndex,
  decodeIndex,
  encodeIndex,
  indexObjectKey,
  layerGeneration,
  newestIndex,
  parseIndexObjectKey,
  tenantPrefix,
  timelinePrefix,
} from './index-object.ts';
import type {PageserverContext} from './state.ts';
import type {Tenant} from './tenant.ts';
import type {Timeline} from './timeline.ts';

/** Of one request. */
const deleteMax = 1000;

/** Answers how many objects were deleted. */
export async function sweepOrphans(context: PageserverContext, tenant: Tenant): Promise<number> {
  const {tenantId, generation} = tenant;
  // Written but not in an index yet: taken before and after the list, so that nothing that moves between is missed.
  const writing = tenant.timelines().flatMap((timeline) => [...timeline.state.writing]);
  const claimed = new Set(tenant.timelines().filter(({safeIndex}) => safeIndex?.generation === generation));
  const asleep = new Set(tenant.archivedTimelines().map((archived) => archived.timelineId));
  const prefix = `${tenantPrefix(tenantId)}timelines/`;
  const listed = await context.store.list(prefix);
  /** Timelines whose layers are all in `known`. */
  const judged = new Set<string>();
  const known = new Set<string>(writing);
  const indexes = new Map<string, {generation: number; sequence: number}>();
  const unclaimed: Timeline[] = [];
  for (const timeline of tenant.timelines()) {
    if (claimed.has(timeline)) judged.add(timeline.timelineId);
    else unclaimed.push(timeline);
    for (const name of timeline.state.writing) known.add(name);
    for (const key of timeline.neededObjects()) known.add(key);
    const safe = timeline.safeIndex;
    if (safe !== undefined) indexes.set(timeline.timelineId, safe);
  }
  const timelineOf = (key: string): string => key.slice(prefix.length, key.indexOf('/', prefix.length));
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
    if (newest.generation < generation) {
      await claim(context, index, generation);
      continue;
    }
    for (const layer of index.layers) known.add(timelinePrefix(tenantId, layer.timelineId ?? timelineId) + layer.name);
    judged.add(timelineId);
  }
  const keys = listed.map(({key}) => key);
  // One that nothing was written to since it was attached has no index of this generation yet.
  for (const timeline of unclaimed) {
    const {timelineId} = timeline;
    const own = (byTimeline.get(timelineId) ?? []).map(({key}) => key);
    const suspects = orphansAmong({keys: own, generation, prefix, known, judged: new Set([timelineId]), indexes});
    if (suspects.some((key) => layerGeneration(key) !== undefined)) await timeline.saveIndex();
  }
  const orphans = orphansAmong({keys, generation, prefix, known, judged, indexes});
  if (orphans.length === 0) return 0;
  if (!(await tenant.validate(generation))) return 0;
  failpoint('pageserver.sweep.before');
  for (let i = 0; i < orphans.length; i += deleteMax) await context.store.delete(orphans.slice(i, i + deleteMax));
  failpoint('pageserver.sweep.after');
  context.metrics.orphansDeleted.inc(orphans.length);
  return orphans.length;
}

/** The index of an archived timeline again, under this generation. */
async function claim(context: PageserverContext, index: TimelineIndex, generation: number): Promise<void> {
  const {tenantId, timelineId} = index;
  const at = {generation, sequence: index.sequence + 1};
  try {
    const key = indexObjectKey(tenantId, timelineId, at.generation, at.sequence);
    await context.store.put(key, encodeIndex({...index, ...at}), {ifNoneMatch: '*'});
    const {archivedAtMs} = index;
    if (archivedAtMs === undefined) return;
    const mark = archivedMarkKey(tenantId, at, archivedFromIndex(index, archivedAtMs));
    await context.store.put(mark, Buffer.alloc(0), {ifNoneMatch: '*'});
  } catch (error) {
    // It was woken meanwhile.
    if (!(error instanceof ObjectStoreError && error.code === 'exists')) throw error;
  }
}

/** Of the objects that were listed, those that nobody can need. Pure: see above for the rules. */
export function orphansAmong(options: {
  readonly keys: readonly string[];
  /** Of the attachment that judges. */
  readonly generation: number;
  /** Of the keys of all timelines; the timeline's id follows. */
  readonly prefix: string;
  /** Keys of layers that an index names, or that are being written. */
  readonly known: ReadonlySet<string>;
  /** Timelines whose layers are all in `known`. */
  readonly judged: ReadonlySet<string>;
  /** By timeline: the index that was loaded or validated last. */
  readonly indexes: ReadonlyMap<string, {readonly generation: number; readonly sequence: number}>;
}): string[] {
  const {keys, generation, prefix, known, judged, indexes} = options;
  const timelineOf = (key: string): string => key.slice(prefix.length, key.indexOf('/', prefix.length));
  const indexed = new Set(keys.filter((key) => parseIndexObjectKey(key) !== undefined).map(timelineOf));
  return keys.filter((key) => {
    const timelineId = timelineOf(key);
    // A mark goes as the index that it belongs to.
    const index = parseIndexObjectKey(key) ?? parseArchivedMarkKey(key)?.at;
    if (index === undefined) {
      const written = layerGeneration(key);
      // Of timelines that are here, and of those that were deleted (an index is the first object of a timeline and the last).
      const ours = judged.has(timelineId) || !indexed.has(timelineId);
      return written !== undefined && written <= generation && ours && !known.has(key);
    }
    const newest = indexes.get(timelineId);
    return (
      newest !== undefined &&
      (index.generation < newest.generation ||
        (index.generation === newest.generation && index.sequence < newest.sequence))
    );
  });
}
