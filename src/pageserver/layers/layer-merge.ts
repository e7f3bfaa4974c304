/** The versions of several layers in order of (key, LSN), older input first at the same LSN. Memory: that of the cursors. */
import {keyBytes} from '#pageserver/timeline/key.ts';
import type {LayerCursor} from './layer-cursor.ts';

export class LayerMerge {
  /** A heap by (key, LSN, rank). */
  readonly #heap: {readonly cursor: LayerCursor; readonly rank: number}[] = [];

  /** `cursors`: oldest first. */
  static async start(cursors: readonly LayerCursor[]): Promise<LayerMerge> {
    const merge = new LayerMerge();
    // Together: each of them asks the object store some times, one after the other.
    const there = await Promise.all(cursors.map((cursor) => cursor.start()));
    for (const [rank, cursor] of cursors.entries()) {
      if (!there[rank]) continue;
      merge.#heap.push({cursor, rank});
      merge.#up(merge.#heap.length - 1);
    }
    return merge;
  }

  /** The cursor that stands at the first version not yet taken, or undefined at the end. */
  get first(): LayerCursor | undefined {
    return this.#heap[0]?.cursor;
  }

  get heldBytes(): number {
    return this.#heap.reduce((sum, {cursor}) => sum + cursor.heldBytes, 0);
  }

  /** Takes the first version. A promise when a block has to be read. */
  advance(): void | Promise<void> {
    const moved = this.#heap[0]!.cursor.next();
    if (typeof moved === 'boolean') this.#settle(moved);
    else return moved.then((there) => this.#settle(there));
  }

  #settle(there: boolean): void {
    if (!there) {
      const last = this.#heap.pop()!;
      if (this.#heap.length === 0) return;
      this.#heap[0] = last;
    }
    this.#down();
  }

  #less(x: number, y: number): boolean {
    const a = this.#heap[x]!;
    const b = this.#heap[y]!;
    const order = a.cursor.keyBuffer.compare(
      b.cursor.keyBuffer,
      b.cursor.keyOffset,
      b.cursor.keyOffset + keyBytes,
      a.cursor.keyOffset,
      a.cursor.keyOffset + keyBytes,
    );
    if (order !== 0) return order < 0;
    const lsns = a.cursor.lsn - b.cursor.lsn;
    return lsns !== 0 ? lsns < 0 : a.rank < b.rank;
  }

  #up(from: number): void {
    for (let child = from; child > 0;) {
      const parent = (child - 1) >>> 1;
      if (!this.#less(child, parent)) return;
      this.#swap(child, parent);
      child = parent;
    }
  }

  #down(): void {
    for (let parent = 0; ;) {
      let least = parent;
      for (let child = parent * 2 + 1; child <= parent * 2 + 2 && child < this.#heap.length; child++)
        if (this.#less(child, least)) least = child;
      if (least === parent) return;
      this.#swap(least, parent);
      parent = least;
    }
  }

  #swap(x: number, y: number): void {
    const kept = this.#heap[x]!;
    this.#heap[x] = this.#heap[y]!;
    this.#heap[y] = kept;
  }
}
