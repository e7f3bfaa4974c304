import assert from 'node:assert/strict';
import {test} from 'node:test';
import fc from 'fast-check';
import {ShardedPageSource, type StoppableSource, splitByShard} from '#compute/sharded-page-source.ts';
import {type RelTag, blockSize} from '#postgres/relation.ts';
import {type PageRun, PageServiceError} from '#wire/pages.ts';
import {shardOfBlock, stripeBlocks} from '#wire/shard.ts';

const rel = (relNode: number): RelTag => ({spcNode: 1663, dbNode: 5, relNode, fork: 0});

/** Answers as the pageserver of one shard does, for relations of `size` blocks; a page begins with its block number. */
class FakeShard implements StoppableSource {
  readonly #shard: number;
  readonly #count: number;
  readonly #size: number;
  readonly log: {asked: number; released: number};
  constructor(shard: number, count: number, size: number, log: {asked: number; released: number}) {
    this.#shard = shard;
    this.#count = count;
    this.#size = size;
    this.log = log;
  }
  stop(): void {}
  relSize(): Promise<number | undefined> {
    return Promise.resolve(this.#shard === 0 ? this.#size : undefined);
  }
  listDb(): Promise<readonly []> {
    return this.#shard === 0 ? Promise.resolve([]) : Promise.reject(new Error('not here'));
  }
  dbSize(): Promise<number> {
    return this.#shard === 0 ? Promise.resolve(7) : Promise.reject(new Error('not here'));
  }
  async getPages(tag: RelTag, block: number, count: number): Promise<PageRun> {
    this.log.asked++;
    if (block >= this.#size) throw new PageServiceError('beyond-end', 'beyond the end');
    for (const b of [block, block + count - 1])
      if (shardOfBlock(this.#count, tag, b) !== this.#shard) throw new PageServiceError('wrong-shard', `block ${b}`);
    const bytes = Buffer.alloc(Math.min(count, this.#size - block) * blockSize);
    for (let at = 0; at < bytes.length; at += blockSize) bytes.writeUInt32LE(block + at / blockSize, at);
    return {bytes, release: () => void this.log.released++};
  }
}

test('a run of blocks comes from the shards that keep them, in order, up to where the relation ends', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({min: 2, max: 8}),
      fc.integer({min: 16384, max: 16500}),
      fc.integer({min: 1, max: 5}),
      fc.integer({min: -70, max: 70}),
      fc.integer({min: 1, max: 64}),
      fc.integer({min: -80, max: 80}),
      async (count, relNode, stripe, offset, wanted, sizeOffset) => {
        const block = stripe * stripeBlocks + offset;
        const size = stripe * stripeBlocks + sizeOffset;
        const log = {asked: 0, released: 0};
        const pages = new ShardedPageSource(
          Array.from({length: count}, (_, shard) => new FakeShard(shard, count, size, log)),
        );
        const answer = pages.getPages(rel(relNode), block, wanted);
        if (block >= size) {
          await assert.rejects(answer, (error) => error instanceof PageServiceError && error.code === 'beyond-end');
          return;
        }
        const run = await answer;
        const expected = Math.min(wanted, size - block);
        assert.equal(run.bytes.length, expected * blockSize);
        for (let i = 0; i < expected; i++) assert.equal(run.bytes.readUInt32LE(i * blockSize), block + i);
        const parts = splitByShard(count, rel(relNode), block, wanted);
        assert.equal(log.asked, parts.length);
        if (parts.length > 1) assert.ok(log.released > 0, 'what was copied is given back');
      },
    ),
    {numRuns: 300},
  );
});

test('an error of one shard is the answer', async () => {
  const log = {asked: 0, released: 0};
  const whole = new FakeShard(0, 1, 1_000_000, log);
  const lost: StoppableSource = Object.assign(Object.create(whole) as StoppableSource, {
    getPages: () => Promise.reject(new PageServiceError('corrupt', 'rot')),
  });
  const tag = rel(16390);
  let stripe = 1;
  while (shardOfBlock(2, tag, stripe * stripeBlocks - 1) === shardOfBlock(2, tag, stripe * stripeBlocks)) stripe++;
  const from = stripe * stripeBlocks - 3;
  const shards = [new FakeShard(0, 2, 1_000_000, log), new FakeShard(1, 2, 1_000_000, log)];
  shards[shardOfBlock(2, tag, stripe * stripeBlocks)] = lost as FakeShard;
  await assert.rejects(new ShardedPageSource(shards).getPages(tag, from, 6), /rot/);
  assert.equal(log.released, 1);
  assert.equal(await new ShardedPageSource(shards.with(0, whole)).dbSize(5), 7);
});
