/**
 * What compaction does next for a timeline: pure functions over the descriptions of its layers. compaction.ts carries it out,
 * one step (one stretch of keys, one output layer) at a time; after each step everything is planned anew, so that there is
 * no job whose progress could be lost.
 *
 * In this order:
 *  1. parts of an import become complete image layers;
 *  2. level 0 (what ingest wrote, all keys) → level 1 (a stretch of keys each), when l0Threshold have gathered;
 *  3. `runsPerLevel` runs of level n → one run of level n + 1;
 *  4. images: at the horizon, when what they set free is worth it (gc-plan.ts); near the end of history, where a page is
 *     made of many records (a table just loaded), or reads have looked into many layers;
 *  5. once hardly any WAL comes any more: images of what is not an image alone (a table that was vacuumed after its load).
 *
 * Merge: the inputs cover one span of LSNs without gap. A step takes their keys from `moving.from` on, writes them to layers
 * of the next level, and notes in every input how far it got: layers stay rectangles that do not overlap.
 *
 * Bound of writing, for each byte of layers that ingest writes: 1 (level 0) + at most levelsMax (one for each level) +
 * imageBytesPerIngested (images near the end) + settledBytesPerIngested (images of what has settled) + 1 / garbageRatio
 * (images at the horizon).
 * Bound of reading: l0StopAt layers of level 0, runsPerLevel of each further level below levelsMax, one image.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {blockSize} from '#postgres/relation.ts';
import type {LayerDescription} from './index-object.ts';
import {type KeyRange, keyAfter, keyBefore, readKey, samePrefix} from './key.ts';
import type {ImageSegment, PlacedLayer, RangePlan} from './layer-map.ts';
import {effectiveFirstKey, isL0, touched} from './layer-map.ts';

export interface CompactionLimits {
  /** False: nothing is merged, no images are made. For tests. */
  readonly enabled: boolean;
  /** Layers of level 0 that start a merge. */
  readonly l0Threshold: number;
  /** Of which one merge takes at most so many. */
  readonly l0BatchMax: number;
  /** Runs of one level that are merged into one of the next. */
  readonly runsPerLevel: number;
  readonly levelsMax: number;
  /** Size of the layers it writes. */
  readonly targetBytes: number;
  /** Stored bytes that the inputs of a step hold in memory, together. */
  readonly readAheadBytes: number;
  /** An image pays where a page is made of so many records, by estimate; */
  readonly imageRecords: number;
  /** or where so many deltas lie above the last one … */
  readonly imageDepth: number;
  /** … and so many look-ups have gone through them since. */
  readonly imageVisits: number;
  /** Bytes that may be written as images near the end of history for each byte that ingest wrote. */
  readonly imageBytesPerIngested: number;
  /** Once a timeline has settled an image pays where a page is made of so many values, those below counted in; */
  readonly settledValues: number;
  /** and so many bytes may be written as such images for each byte that ingest wrote, beside the others. */
  readonly settledBytesPerIngested: number;
  /** Images at the horizon are made when they set free this share of their own size. */
  readonly garbageRatio: number;
  /** From so many layers of level 0 on ingest is slowed … */
  readonly l0SlowAt: number;
  /** … and from here on it stands still. */
  readonly l0StopAt: number;
}

export const defaultCompactionLimits: CompactionLimits = {
  enabled: true,
  l0Threshold: 8,
  l0BatchMax: 16,
  runsPerLevel: 4,
  levelsMax: 4,
  targetBytes: 32 * 1024 * 1024,
  readAheadBytes: 16 * 1024 * 1024,
  imageRecords: 16,
  imageDepth: 6,
  imageVisits: 1000,
  imageBytesPerIngested: 1.25,
  settledValues: 1.5,
  settledBytesPerIngested: 1,
  garbageRatio: 0.5,
  l0SlowAt: 24,
  l0StopAt: 48,
};

export interface MergePlan {
  readonly inputs: readonly LayerDescription[];
  /** Keys below have been merged already; 36 hex digits. */
  readonly from: string;
  /** Of the layers to be written. */
  readonly kind: 'delta' | 'image';
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly level: number;
  readonly run: number;
  readonly continues: boolean;
}

/** A table of a gigabyte lies in one layer of what a VACUUM has done to it: to a sixty-fourth of that it is known where. */
const slicesMax = 64;
const firstKeyOfAll = '0'.repeat(36);

/** The next merge, or undefined. `historyBytes`: LSNs from the GC cutoff to the end. */
export function planMerge(
  layers: readonly LayerDescription[],
  limits: CompactionLimits,
  historyBytes: number,
): MergePlan | undefined {
  const parts = layers.filter((layer) => layer.kind === 'image' && !layer.complete);
  if (parts.length > 0) return merge('image', parts, 0);
  const l0 = layers.filter(isL0);
  const moving = l0.filter((layer) => layer.moving !== undefined);
  if (moving.length > 0) return merge('delta', moving, 0);
  if (l0.length >= limits.l0Threshold) return merge('delta', byHistory(l0).slice(0, limits.l0BatchMax), 0);
  for (let level = 1; level < limits.levelsMax; level++) {
    const ofLevel = layers.filter((layer) => layer.kind === 'delta' && layer.level === level);
    const stopped = ofLevel.filter((layer) => layer.moving !== undefined);
    if (stopped.length > 0) return merge('delta', stopped, level);
    const runs = [...new Set(ofLevel.map((layer) => layer.run))].sort((x, y) => x - y);
    if (runs.length < limits.runsPerLevel) continue;
    const oldest = new Set(runs.slice(0, limits.runsPerLevel));
    const plan = merge(
      'delta',
      ofLevel.filter((layer) => oldest.has(layer.run)),
      level,
    );
    // A layer goes when history has left it behind altogether: none may span much of what is kept.
    if (plan.endLsn - plan.startLsn <= historyBytes / 4 || level === 1) return plan;
  }
  return undefined;
}

function merge(kind: 'delta' | 'image', layers: readonly LayerDescription[], level: number): MergePlan {
  const inputs = byHistory(layers);
  const startLsn = inputs.reduce(
    (least, layer) => (layer.startLsn < least ? layer.startLsn : least),
    inputs[0]!.startLsn,
  );
  const endLsn = inputs.reduce((most, layer) => (layer.endLsn > most ? layer.endLsn : most), inputs[0]!.endLsn);
  const moving = inputs[0]!.moving;
  return {
    inputs,
    from: moving?.from ?? firstKeyOfAll,
    kind,
    startLsn,
    endLsn,
    level: level + 1,
    run: moving?.run ?? inputs.reduce((most, layer) => Math.max(most, layer.run), 0),
    continues: inputs.every((layer) => layer.startLsn > startLsn || layer.continues),
  };
}

/** What becomes of the inputs of a merge when their keys up to `lastKey` (inclusive, hex; undefined: all) are in other layers. */
export function inputsAfter(
  plan: MergePlan,
  nextKey: string | undefined,
): {removed: LayerDescription[]; narrowed: LayerDescription[]} {
  const removed: LayerDescription[] = [];
  const narrowed: LayerDescription[] = [];
  for (const input of plan.inputs) {
    if (nextKey === undefined || input.lastKey < nextKey) removed.push(input);
    else narrowed.push({...input, moving: {from: nextKey, run: plan.run}});
  }
  return {removed, narrowed};
}

function byHistory(layers: readonly LayerDescription[]): LayerDescription[] {
  return [...layers].sort((x, y) => x.run - y.run || (effectiveFirstKey(x) < effectiveFirstKey(y) ? -1 : 1));
}

/** Keys between two boundaries of layers, and what a read there costs. */
interface Stretch {
  readonly start: Buffer;
  readonly end: Buffer;
  readonly segment: ImageSegment;
  /** Deltas above the image, and look-ups in them since the last image. */
  depth: number;
  visits: number;
  /** In those deltas, by estimate: versions, and different keys. */
  versions: number;
  keys: number;
}

/** Keys of which an image is to be made. */
export interface ImagePlan extends KeyRange {
  /** In the store, by estimate: pages of a database compress to about a quarter. */
  readonly bytes: number;
}

/** What planImage() has to know of the timeline. */
export interface ImageContext {
  /** Pages that an ancestor may have of the keys. */
  readonly inheritedPages: number;
  /** Of the tenant: a shard has a part of each relation's blocks. */
  readonly shards: number;
  /** Hardly any WAL comes: not what a read costs counts, but that a page be an image alone. */
  readonly settled: boolean;
}

/**
 * The keys near the end of history for which an image pays most; one image layer of them is written, from the first key as
 * far as it reaches. `plan`: of the keys looked at.
 *
 * Layers say how many versions of how many keys they hold, not of which. Merged layers are narrow, all of about one size: so
 * their boundaries cut the keys into stretches where much has changed and where little has. What a wide layer holds is
 * thought to be spread evenly over the stretches that it touches.
 */
export function planImage(
  plan: RangePlan,
  limits: CompactionLimits,
  {inheritedPages, shards, settled}: ImageContext,
): ImagePlan | undefined {
  const stretches = cutIntoStretches(plan);
  const pagesIn = (stretch: Stretch): number => estimatePages(stretch, inheritedPages, shards);
  const recordsPerPage = (stretch: Stretch): number => stretch.versions / Math.max(1, pagesIn(stretch));
  for (const layer of plan.deltas) {
    const {versions, keys = versions} = layer.description;
    const over = touched(stretches, layer);
    for (const stretch of over) {
      const lsnsAbove = layer.endLsn - (stretch.segment.imageLsn + 1);
      if (lsnsAbove <= 0) continue;
      const here = (versions * Math.min(1, lsnsAbove / (layer.endLsn - layer.startLsn))) / over.length;
      stretch.depth++;
      stretch.visits += layer.reader.visits;
      stretch.versions += here;
      stretch.keys = Math.max(stretch.keys, Math.min(here, keys / over.length));
    }
  }
  const pays = (stretch: Stretch): boolean => {
    const {depth, visits} = stretch;
    if (depth === 0) return false;
    if (settled) {
      const below = stretch.segment.image !== undefined || inheritedPages > 0 ? 1 : 0;
      return recordsPerPage(stretch) + below >= limits.settledValues;
    }
    if (depth >= limits.imageDepth && visits >= limits.imageVisits) return true;
    return recordsPerPage(stretch) >= limits.imageRecords;
  };
  let best: ImagePlan | undefined;
  let bestValue = 0;
  for (let i = 0; i < stretches.length; i++) {
    if (!pays(stretches[i]!)) continue;
    // Neighbours that pay too go into the same layer, as far as it reaches, and others while it would be a small one.
    const {start} = stretches[i]!;
    let {end} = stretches[i]!;
    let value = 0;
    let pages = 0;
    for (; i < stretches.length && pays(stretches[i]!); i++) {
      const stretch = stretches[i]!;
      end = stretch.end;
      pages += pagesIn(stretch);
      value = Math.max(value, recordsPerPage(stretch) + stretch.depth);
    }
    for (let j = i; j < stretches.length && pages * blockSize < limits.targetBytes / 2; j++) {
      end = stretches[j]!.end;
      pages += pagesIn(stretches[j]!);
    }
    if (value <= bestValue) continue;
    best = {start, end, bytes: (pages * blockSize) / 4};
    bestValue = value;
  }
  return best;
}

function cutIntoStretches({segments, deltas}: RangePlan): Stretch[] {
  const cuts = new Map<string, Buffer>();
  const add = (key: Buffer): void => void cuts.set(key.toString('latin1'), key);
  // Layers of level 0 have all keys, but for the first and last few.
  for (const layer of deltas) if (!isL0(layer.description)) boundsOf(layer).forEach(add);
  for (const {start} of segments) add(start);
  const bounds = [...cuts.values()].sort((x, y) => x.compare(y));
  const stretches: Stretch[] = [];
  let next = bounds.findIndex((key) => key.equals(segments[0]!.start));
  for (const segment of segments)
    for (let {start} = segment; start.compare(segment.end) < 0;) {
      const bound = bounds[++next];
      const end = bound === undefined || bound.compare(segment.end) > 0 ? segment.end : bound;
      stretches.push({start, end, segment, depth: 0, visits: 0, versions: 0, keys: 0});
      start = end;
    }
  return stretches;
}

function boundsOf({firstKey, lastKey}: PlacedLayer): Buffer[] {
  return [firstKey, keyAfter(lastKey)];
}

/** At least those of the deltas; others are in the image, or the ancestor's, and no more than lie between the two keys. */
function estimatePages({start, end, segment, keys}: Stretch, inheritedPages: number, shards: number): number {
  const below = segment.image === undefined ? inheritedPages : (segment.image.description.keys ?? inheritedPages);
  const first = readKey(start, 0);
  const last = readKey(end, 0);
  return Math.max(keys, samePrefix(first.prefix, last.prefix) ? Math.min(below, (last.e - first.e) / shards) : below);
}

/**
 * A delta in slices of about as many versions each, so that planImage() sees where they are. `firstKeys`: of its index blocks
 * (LayerReader.outline).
 */
export function slices(layer: PlacedLayer, firstKeys: readonly Buffer[]): PlacedLayer[] {
  const step = Math.max(1, Math.ceil(firstKeys.length / slicesMax));
  const found: PlacedLayer[] = [];
  for (let i = 0; i < firstKeys.length; i += step) {
    const end = firstKeys[i + step];
    const firstKey = i === 0 || firstKeys[i]!.compare(layer.firstKey) < 0 ? layer.firstKey : firstKeys[i]!;
    const lastKey = end === undefined ? layer.lastKey : keyBefore(end);
    // What was merged already, or a key that fills more than one block.
    if (firstKey.compare(lastKey) > 0) continue;
    const share = Math.min(step, firstKeys.length - i) / firstKeys.length;
    const {versions, keys = versions} = layer.description;
    const description = {...layer.description, level: 1, versions: versions * share, keys: keys * share};
    found.push({...layer, description, firstKey, lastKey});
  }
  return found;
}
