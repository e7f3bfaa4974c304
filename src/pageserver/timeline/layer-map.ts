/**
 * The layer files of a timeline, and which of them a read of a key must look into, newest first. It works on the
 * descriptions of the index alone: no file is opened.
 *
 * A layer is a rectangle of keys × LSNs, and holds every version that the timeline has in it. Two kinds of rectangle:
 *  - a delta (also an image layer that is not complete: a part of an import): what was written in [startLsn, endLsn);
 *  - a complete image: whole values as of startLsn; a key of its range that is not in it does not exist there. Nothing older
 *    is ever needed.
 * For one key, deltas do not overlap in LSNs, except where a layer `continues` the one before it (a record so long that it
 * was split): it may share its first LSN with older layers.
 *
 * Structure: a segment tree over the boundaries of all layers. A layer hangs at O(log n) nodes, a key's layers at the
 * O(log n) nodes from its leaf to the root, at each in order of LSNs: a look-up is O(log² n) comparisons, a further layer
 * O(log n). Layers added since the tree was built are a short list beside it, those removed are marked; the tree is built
 * anew when either has grown, so that a change costs O(√n · log n) on average.
 */
import {assert} from '#runtime/assert.ts';
import type {LayerReader} from '../layers/layer-reader.ts';
import type {LayerDescription} from './index-object.ts';
import {type KeyPrefix, type KeyRange, compareKeyAt, keyAfter, keyBytes} from './key.ts';

/** A layer and its place. */
export interface PlacedLayer {
  readonly reader: LayerReader;
  readonly description: LayerDescription;
  /** First and last key (inclusive) for which this layer is used. */
  readonly firstKey: Buffer;
  readonly lastKey: Buffer;
  readonly startLsn: number;
  readonly endLsn: number;
  readonly run: number;
  readonly complete: boolean;
  /** First key, and the one after the last, as texts of 18 characters: quicker to compare than buffers. */
  start: string;
  end: string;
  dead: boolean;
}

/** Layers that are added or removed before the tree is built again: at least so many. */
const pendingMin = 16;

/** A stretch of keys, and the newest complete image of it. */
export interface ImageSegment {
  /** Keys from `start` (in) to `end` (out), encoded. */
  readonly start: Buffer;
  readonly end: Buffer;
  readonly image: LayerReader | undefined;
  /** LSN of the image, or -1. */
  readonly imageLsn: number;
}

/** What a read of many keys needs of a timeline's files. */
export interface RangePlan {
  /** In order of keys, without gaps. */
  readonly segments: readonly ImageSegment[];
  /** Deltas that hold something above the image of any segment they touch; oldest first. */
  readonly deltas: readonly PlacedLayer[];
}

export class LayerMap {
  readonly #layers = new Map<string, PlacedLayer>();
  #tree: Tree = emptyTree;
  /** Not in the tree yet, oldest first. */
  readonly #recent: PlacedLayer[] = [];
  /** In the tree, but removed. */
  #dead = 0;
  #bytes = 0;
  #l0Count = 0;
  #inBatch = false;
  /** Comparisons of keys and LSNs made by look-ups, for tests. */
  comparisons = 0;

  get count(): number {
    return this.#layers.size;
  }
  /** Of all layer objects. */
  get bytes(): number {
    return this.#bytes;
  }
  /** Delta layers that nobody has compacted yet. */
  get l0Count(): number {
    return this.#l0Count;
  }

  add(reader: LayerReader): void {
    const {description} = reader;
    assert(!this.#layers.has(description.name), 'a layer is added once');
    const layer: PlacedLayer = {
      reader,
      description,
      firstKey: Buffer.from(effectiveFirstKey(description), 'hex'),
      lastKey: Buffer.from(description.lastKey, 'hex'),
      startLsn: description.startLsn,
      endLsn: description.endLsn,
      run: description.run,
      complete: description.complete,
      start: '',
      end: '',
      dead: false,
    };
    layer.start = layer.firstKey.toString('latin1');
    layer.end = keyAfter(layer.lastKey).toString('latin1');
    this.#layers.set(description.name, layer);
    this.#bytes += description.size;
    if (isL0(description)) this.#l0Count++;
    if (this.#inBatch) {
      this.#recent.push(layer); // put in order by #settle()
      return;
    }
    let at = this.#recent.length;
    while (at > 0 && isNewer(this.#recent[at - 1]!, layer)) at--;
    this.#recent.splice(at, 0, layer);
    this.#settle();
  }

  /** Changes many layers; what looking them up needs is brought up to date once, at the end. */
  batch(changes: () => void): void {
    this.#inBatch = true;
    try {
      changes();
    } finally {
      this.#inBatch = false;
      this.#settle();
    }
  }

  /** The reader of the layer removed. */
  remove(name: string): LayerReader {
    const layer = this.#layers.get(name);
    assert(layer !== undefined, 'only a layer that is there is removed');
    this.#layers.delete(name);
    this.#bytes -= layer.description.size;
    if (isL0(layer.description)) this.#l0Count--;
    layer.dead = true;
    const at = this.#recent.indexOf(layer);
    if (at >= 0) this.#recent.splice(at, 1);
    else this.#dead++;
    this.#settle();
    return layer.reader;
  }

  /** The layer is used for fewer keys from now on. */
  narrow(description: LayerDescription): void {
    const reader = this.remove(description.name);
    reader.description = description;
    this.add(reader);
  }

  /** All, oldest first. */
  readers(): LayerReader[] {
    return this.#sorted().map((layer) => layer.reader);
  }

  descriptions(): LayerDescription[] {
    return [...this.#layers.values()].map((layer) => layer.description);
  }

  /** What a read of every key of the range below `belowLsn` has to look into. */
  plan(range: KeyRange, belowLsn: number): RangePlan {
    const touching = this.#sorted().filter(
      (layer) =>
        layer.startLsn < belowLsn && layer.firstKey.compare(range.end) < 0 && layer.lastKey.compare(range.start) >= 0,
    );
    // Newest image first: each takes what no newer one has taken. `open`: what is left, in order of keys.
    const open: {start: Buffer; end: Buffer}[] = [{start: range.start, end: range.end}];
    const segments: ImageSegment[] = [];
    for (const layer of touching.filter((l) => l.complete).sort((x, y) => y.startLsn - x.startLsn || y.run - x.run)) {
      const layerEnd = keyAfter(layer.lastKey);
      const at = firstEndingAfter(open, layer.firstKey);
      let until = at;
      const left: {start: Buffer; end: Buffer}[] = [];
      for (; until < open.length && open[until]!.start.compare(layerEnd) < 0; until++) {
        const gap = open[until]!;
        const start = larger(gap.start, layer.firstKey);
        const end = smaller(gap.end, layerEnd);
        if (gap.start.compare(start) < 0) left.push({start: gap.start, end: start});
        if (end.compare(gap.end) < 0) left.push({start: end, end: gap.end});
        segments.push({start, end, image: layer.reader, imageLsn: layer.startLsn});
      }
      open.splice(at, until - at, ...left);
    }
    for (const gap of open) segments.push({...gap, image: undefined, imageLsn: -1});
    segments.sort((x, y) => x.start.compare(y.start));
    const deltas = touching.filter(
      (layer) => !layer.complete && touched(segments, layer).some((segment) => layer.endLsn > segment.imageLsn + 1),
    );
    return {segments, deltas};
  }

  /** For LayerWalk. */
  startWalk(walk: LayerWalkState, p: KeyPrefix, e: number, belowLsn: number): void {
    let image: PlacedLayer | undefined;
    let count = 0;
    const tree = this.#tree;
    const leaf = this.#leaf(p, e);
    if (leaf >= 0)
      for (let at = leaf + tree.leaves; at >= 1; at >>= 1) {
        const node = tree.nodes[at];
        if (node === undefined) continue;
        const {deltas, images} = node;
        const found = this.#lastBelow(images, belowLsn);
        if (found >= 0 && (image === undefined || images[found]!.startLsn > image.startLsn)) image = images[found];
        const cursor = this.#lastBelow(deltas, belowLsn);
        if (cursor >= 0) {
          walk.lists[count] = deltas;
          walk.cursors[count++] = cursor;
        }
      }
    if (this.#recent.length > 0) {
      for (let i = this.#recent.length - 1; i >= 0; i--) {
        const layer = this.#recent[i]!;
        if (!layer.complete || layer.startLsn >= belowLsn) continue;
        if (image !== undefined && layer.startLsn < image.startLsn) continue;
        if (this.#covers(layer, p, e)) image = layer;
      }
      walk.lists[count] = this.#recent;
      walk.cursors[count++] = this.#recent.length - 1;
    }
    walk.count = count;
    walk.image = image;
  }

  /** The newest delta that may hold the key in [floorLsn, belowLsn), or undefined. */
  nextDelta(
    walk: LayerWalkState,
    p: KeyPrefix,
    e: number,
    belowLsn: number,
    floorLsn: number,
  ): PlacedLayer | undefined {
    let best: PlacedLayer | undefined;
    let bestList = -1;
    for (let i = 0; i < walk.count; i++) {
      const list = walk.lists[i]!;
      let at = walk.cursors[i]!;
      for (; at >= 0; at--) {
        const layer = list[at]!;
        this.comparisons++;
        if (layer.dead || layer.startLsn >= belowLsn || layer.complete) continue;
        if (list === this.#recent && !this.#covers(layer, p, e)) continue;
        break;
      }
      walk.cursors[i] = at;
      if (at < 0) continue;
      const layer = list[at]!;
      if (best === undefined || isNewer(layer, best)) {
        best = layer;
        bestList = i;
      }
    }
    if (best === undefined || best.endLsn <= floorLsn) return undefined;
    walk.cursors[bestList]!--;
    return best;
  }

  #covers(layer: PlacedLayer, p: KeyPrefix, e: number): boolean {
    this.comparisons += 2;
    return compareKeyAt(layer.firstKey, 0, p, e) <= 0 && compareKeyAt(layer.lastKey, 0, p, e) >= 0;
  }

  /** Index of the last of the list that starts below the LSN and is there still, or -1. */
  #lastBelow(list: readonly PlacedLayer[], belowLsn: number): number {
    let low = 0;
    let high = list.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      this.comparisons++;
      if (list[middle]!.startLsn < belowLsn) low = middle + 1;
      else high = middle;
    }
    let at = low - 1;
    while (at >= 0 && list[at]!.dead) at--;
    return at;
  }

  /** Number of the leaf whose keys contain the key, or -1. */
  #leaf(p: KeyPrefix, e: number): number {
    const {bounds, leaves} = this.#tree;
    let low = 0;
    let high = leaves + 1;
    if (leaves === 0) return -1;
    while (low < high) {
      const middle = (low + high) >>> 1;
      this.comparisons++;
      if (compareKeyAt(bounds, middle * keyBytes, p, e) <= 0) low = middle + 1;
      else high = middle;
    }
    return low >= 1 && low <= leaves ? low - 1 : -1;
  }

  #settle(): void {
    if (this.#inBatch) return;
    const limit = Math.max(pendingMin, Math.sqrt(this.#layers.size));
    if (this.#recent.length <= limit && this.#dead <= limit) {
      this.#recent.sort((x, y) => (isNewer(x, y) ? 1 : -1));
      return;
    }
    this.#tree = buildTree(this.#sorted());
    this.#recent.length = 0;
    this.#dead = 0;
  }

  #sorted(): PlacedLayer[] {
    return [...this.#layers.values()].sort((x, y) => (isNewer(x, y) ? 1 : -1));
  }
}

/** Scratch of one walk. */
export interface LayerWalkState {
  lists: (readonly PlacedLayer[])[];
  cursors: number[];
  count: number;
  image: PlacedLayer | undefined;
}

/**
 * Goes through the layers that make a key's value, newest first. One object serves all reads, one after the other:
 *
 *   walk.start(map, p, e, below);
 *   for (let reader = walk.next(); reader; reader = walk.next()) reader.find(pass, p, e, walk.belowLsn, walk.floorLsn, …)
 */
export class LayerWalk {
  /** Versions of the present layer from here on are not wanted: a newer layer has them. */
  belowLsn = 0;
  /** … and those below here are not either: an image has them. */
  floorLsn = 0;
  /** The present layer is a complete image: it is the last. */
  isImage = false;
  #map: LayerMap | undefined;
  #p: KeyPrefix | undefined;
  #e = 0;
  #nextBelow = 0;
  #ended = false;
  readonly #state: LayerWalkState = {lists: [], cursors: [], count: 0, image: undefined};

  start(map: LayerMap, p: KeyPrefix, e: number, belowLsn: number): void {
    this.#map = map;
    this.#p = p;
    this.#e = e;
    this.#ended = map.count === 0;
    this.isImage = false;
    this.#nextBelow = belowLsn;
    if (this.#ended) return;
    map.startWalk(this.#state, p, e, belowLsn);
    const {image} = this.#state;
    this.floorLsn = image === undefined ? 0 : image.startLsn + 1;
  }

  next(): LayerReader | undefined {
    if (this.#ended) return undefined;
    const state = this.#state;
    this.belowLsn = this.#nextBelow;
    const delta = this.#map!.nextDelta(state, this.#p!, this.#e, this.belowLsn, this.floorLsn);
    if (delta !== undefined) {
      const from = delta.description.continues ? delta.startLsn + 1 : delta.startLsn;
      if (from < this.#nextBelow) this.#nextBelow = from;
      return delta.reader;
    }
    this.#ended = true;
    if (state.image === undefined) return undefined;
    this.isImage = true;
    this.floorLsn = 0;
    this.belowLsn = state.image.endLsn;
    return state.image.reader;
  }
}

/** First key for which a layer is used: keys below `moving.from` have gone to a layer of the next level. */
export function effectiveFirstKey({firstKey, moving}: LayerDescription): string {
  return moving !== undefined && moving.from > firstKey ? moving.from : firstKey;
}

export function isL0({kind, level}: LayerDescription): boolean {
  return kind === 'delta' && level === 0;
}

/** Order of history: by end, then by start, then by run. */
export function isNewer(
  x: {endLsn: number; startLsn: number; run: number},
  y: {endLsn: number; startLsn: number; run: number},
): boolean {
  if (x.endLsn !== y.endLsn) return x.endLsn > y.endLsn;
  return x.startLsn !== y.startLsn ? x.startLsn > y.startLsn : x.run > y.run;
}

interface TreeNode {
  readonly deltas: PlacedLayer[];
  readonly images: PlacedLayer[];
}

interface Tree {
  /** leaves + 1 encoded keys, ascending: leaf i has the keys from bound i to bound i + 1. */
  readonly bounds: Buffer;
  readonly leaves: number;
  /** Node 1 is the root, leaf i is node leaves + i, the parent of n is n >> 1. */
  readonly nodes: readonly (TreeNode | undefined)[];
}

const emptyTree: Tree = {bounds: Buffer.alloc(0), leaves: 0, nodes: []};

/** `layers`: oldest first, so that the lists of every node are in order. */
function buildTree(layers: readonly PlacedLayer[]): Tree {
  if (layers.length === 0) return emptyTree;
  const keys = new Set<string>();
  for (const layer of layers) keys.add(layer.start).add(layer.end);
  const sorted = [...keys].sort();
  const position = new Map(sorted.map((key, i) => [key, i]));
  const leaves = sorted.length - 1;
  const nodes: (TreeNode | undefined)[] = Array.from({length: leaves * 2}, () => undefined);
  const put = (at: number, layer: PlacedLayer): void => {
    const node = (nodes[at] ??= {deltas: [], images: []});
    if (layer.complete) return void node.images.push(layer);
    const before = node.deltas.at(-1);
    assert(before === undefined || before.startLsn <= layer.startLsn, 'layers of a key are in order of LSNs');
    node.deltas.push(layer);
  };
  for (const layer of layers) {
    let low = position.get(layer.start)! + leaves;
    let high = position.get(layer.end)! + leaves;
    for (; low < high; low >>= 1, high >>= 1) {
      if ((low & 1) === 1) put(low++, layer);
      if ((high & 1) === 1) put(--high, layer);
    }
  }
  return {bounds: Buffer.from(sorted.join(''), 'latin1'), leaves, nodes};
}

/** The stretches that the layer's keys touch. */
export function touched<T extends {readonly start: Buffer; readonly end: Buffer}>(
  stretches: readonly T[],
  layer: {readonly firstKey: Buffer; readonly lastKey: Buffer},
): T[] {
  const from = firstEndingAfter(stretches, layer.firstKey);
  let until = from;
  while (until < stretches.length && stretches[until]!.start.compare(layer.lastKey) <= 0) until++;
  return stretches.slice(from, until);
}

/** Stretches are in order and do not overlap. */
function firstEndingAfter(stretches: readonly {readonly end: Buffer}[], key: Buffer): number {
  let low = 0;
  let high = stretches.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (stretches[middle]!.end.compare(key) <= 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

function larger(x: Buffer, y: Buffer): Buffer {
  return x.compare(y) >= 0 ? x : y;
}
function smaller(x: Buffer, y: Buffer): Buffer {
  return x.compare(y) <= 0 ? x : y;
}
