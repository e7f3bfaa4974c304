/**
 * Which layers no read can reach any more, and where an image would set more of them free. Pure: it sees descriptions and
 * the points that must stay readable.
 *
 * Readable are all LSNs from the cutoff on and the held points below it (branch points, leases). A layer is needed by a
 * read at r when it starts at or below r, unless complete images cover all its keys at LSNs from its end to r: then every
 * read at r ends at one of them. It is enough to look at the lowest readable r that is not below the layer's start: what
 * covers the layer there covers it for all higher ones.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {LayerDescription} from './index-object.ts';
import {effectiveFirstKey} from './layer-map.ts';

/** `points`: the held points and the cutoff, ascending. */
export function planGc(layers: readonly LayerDescription[], points: readonly Lsn[]): LayerDescription[] {
  const removable: LayerDescription[] = [];
  const imagesAt = new Map<Lsn, LayerDescription[]>();
  for (const layer of layers) {
    const point = points.find((p) => p >= layer.startLsn);
    // A layer that holds anything above the point (or the image itself) is needed there or later.
    if (point === undefined || layer.endLsn > point + 1) continue;
    let images = imagesAt.get(point);
    if (images === undefined) {
      images = completeUntil(layers, point);
      imagesAt.set(point, images);
    }
    // An image does not replace itself: it takes a newer one.
    const lowest = layer.complete ? layer.startLsn + 1 : layer.endLsn - 1;
    if (covered(layer, images, lowest)) removable.push(layer);
  }
  return removable;
}

/** By first key. */
function completeUntil(layers: readonly LayerDescription[], point: Lsn): LayerDescription[] {
  return layers
    .filter((image) => image.complete && image.startLsn <= point)
    .sort((x, y) => (effectiveFirstKey(x) < effectiveFirstKey(y) ? -1 : 1));
}

/** Whether the images (by first key) at `lowest` or above cover all keys of the layer. */
function covered(layer: LayerDescription, images: readonly LayerDescription[], lowest: number): boolean {
  let from = effectiveFirstKey(layer);
  for (const image of images) {
    if (image.startLsn < lowest) continue;
    const first = effectiveFirstKey(image);
    if (first > from) return false;
    if (image.lastKey < from) continue;
    if (image.lastKey >= layer.lastKey) return true;
    from = nextKey(image.lastKey);
  }
  return false;
}

function nextKey(hex: string): string {
  return (BigInt(`0x${hex}`) + 1n).toString(16).padStart(hex.length, '0');
}

/**
 * The point at which images of everything should be made, so that layers below it can go: the first one where they are
 * `garbageRatio` of what the images will weigh. Call it with what planGc leaves.
 */
export function planSweep(
  layers: readonly LayerDescription[],
  points: readonly Lsn[],
  garbageRatio: number,
  logicalSizeBytes: number,
): Lsn | undefined {
  let below = -1;
  for (const point of points) {
    const inside = layers.filter(
      (layer) => layer.kind === 'delta' && layer.startLsn > below && layer.endLsn <= point + 1,
    );
    const garbage = inside.reduce((sum, layer) => sum + layer.size, 0);
    const images = completeUntil(layers, point);
    // Those that newer ones have taken the place of are there for earlier points.
    const newest = images.reduce(
      (sum, image) => (covered(image, images, image.startLsn + 1) ? sum : sum + image.size),
      0,
    );
    // Before the first image: pages of a database compress to about a quarter.
    const cost = images.length > 0 ? newest : logicalSizeBytes / 4;
    if (garbage > 0 && garbage >= cost * garbageRatio) return point;
    below = point;
  }
  return undefined;
}
