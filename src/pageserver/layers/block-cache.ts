/**
 * Blocks of layer files in memory: verified, decompressed, bounded in bytes over all timelines of the process.
 *
 * A hit is synchronous: one Map lookup by offset in the layer's own map. Eviction is CLOCK: a hand goes round the ring of
 * blocks; a block used since the last round gets another one.
 */
import {assert} from '#runtime/assert.ts';

/** Owner of cached blocks; the reader of one layer. */
export interface BlockOwner {
  /** Offset in the object → block. */
  readonly blocks: Map<number, CachedBlock>;
}

export interface CachedBlock {
  readonly owner: BlockOwner;
  readonly offset: number;
  readonly raw: Buffer;
  used: boolean;
}

/** Bookkeeping around a block. */
const blockOverheadBytes = 200;

export class BlockCache {
  readonly #bytesMax: number;
  readonly #ring: CachedBlock[] = [];
  #hand = 0;
  #bytes = 0;
  hits = 0;
  misses = 0;
  evictions = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get bytes(): number {
    return this.#bytes;
  }
  get blockCount(): number {
    return this.#ring.length;
  }

  find(owner: BlockOwner, offset: number): Buffer | undefined {
    const block = owner.blocks.get(offset);
    if (block === undefined) {
      this.misses++;
      return undefined;
    }
    this.hits++;
    block.used = true;
    return block.raw;
  }

  insert(owner: BlockOwner, offset: number, raw: Buffer): void {
    if (owner.blocks.has(offset)) return;
    const bytes = raw.length + blockOverheadBytes;
    if (bytes > this.#bytesMax) return;
    while (this.#bytes + bytes > this.#bytesMax) this.#evictOne();
    const block = {owner, offset, raw, used: false};
    owner.blocks.set(offset, block);
    this.#ring.push(block);
    this.#bytes += bytes;
  }

  /** Forgets the blocks of a layer that is gone. */
  forget(owner: BlockOwner): void {
    if (owner.blocks.size === 0) return;
    let kept = 0;
    for (const block of this.#ring) {
      if (block.owner === owner) this.#bytes -= block.raw.length + blockOverheadBytes;
      else this.#ring[kept++] = block;
    }
    this.#ring.length = kept;
    this.#hand = 0;
    owner.blocks.clear();
  }

  #evictOne(): void {
    assert(this.#ring.length > 0, 'bytes are counted for blocks in the ring only');
    for (;;) {
      if (this.#hand >= this.#ring.length) this.#hand = 0;
      const block = this.#ring[this.#hand]!;
      if (block.used) {
        block.used = false;
        this.#hand++;
        continue;
      }
      const last = this.#ring.pop()!;
      if (last !== block) this.#ring[this.#hand] = last;
      block.owner.blocks.delete(block.offset);
      this.#bytes -= block.raw.length + blockOverheadBytes;
      this.evictions++;
      return;
    }
  }
}
