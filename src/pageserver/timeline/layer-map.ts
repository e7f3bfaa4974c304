/**
 * The layer files of a timeline, and in which order a read looks into them: newest first. For any one key the LSN ranges
 * of layers do not overlap (but for one LSN, where a long record was split over two layers: there the later upload is the
 * newer), so that the order by end is the order of history.
 */
import type {LayerReader} from '../layers/layer-reader.ts';
import {type KeyPrefix, type KeyRange, compareKeyAt} from './key.ts';

interface MappedLayer {
  readonly reader: LayerReader;
  readonly firstKey: Buffer;
  readonly lastKey: Buffer;
}

export class LayerMap {
  /** By (endLsn, startLsn, arrival). */
  readonly #layers: MappedLayer[] = [];

  get count(): number {
    return this.#layers.length;
  }

  add(reader: LayerReader): void {
    const {startLsn, endLsn, firstKey, lastKey} = reader.description;
    let at = this.#layers.length;
    while (at > 0) {
      const before = this.#layers[at - 1]!.reader.description;
      if (before.endLsn < endLsn || (before.endLsn === endLsn && before.startLsn <= startLsn)) break;
      at--;
    }
    this.#layers.splice(at, 0, {
      reader,
      firstKey: Buffer.from(firstKey, 'hex'),
      lastKey: Buffer.from(lastKey, 'hex'),
    });
  }

  /** All, oldest first. */
  readers(): LayerReader[] {
    return this.#layers.map((layer) => layer.reader);
  }

  /**
   * Index of the newest layer before `from` that may hold the key below `belowLsn`, or -1. Start with from = count; go on
   * with the index found.
   */
  next(from: number, p: KeyPrefix, e: number, belowLsn: number): number {
    for (let at = from - 1; at >= 0; at--) {
      const layer = this.#layers[at]!;
      if (layer.reader.description.startLsn >= belowLsn) continue;
      if (compareKeyAt(layer.firstKey, 0, p, e) <= 0 && compareKeyAt(layer.lastKey, 0, p, e) >= 0) return at;
    }
    return -1;
  }

  reader(at: number): LayerReader {
    return this.#layers[at]!.reader;
  }

  /** Layers that may hold keys of the range at or below `at`, newest first. */
  overlapping(range: KeyRange, at: number): LayerReader[] {
    return this.#layers
      .filter(
        (layer) =>
          layer.reader.description.startLsn <= at &&
          layer.firstKey.compare(range.end) < 0 &&
          layer.lastKey.compare(range.start) >= 0,
      )
      .map((layer) => layer.reader)
      .reverse();
  }
}
