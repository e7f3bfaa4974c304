import assert from 'node:assert/strict';
import {test} from 'node:test';
import {type RelTag, blockSize, formatRel} from '#postgres/relation.ts';
import {systemClock} from '#runtime/clock.ts';
import type {HydrationSource} from '#wire/hydration.ts';
import {WarmSource} from '#compute/warm-source.ts';

const catalogue: RelTag = {spcNode: 1663, dbNode: 5, relNode: 1259, fork: 0};
const table: RelTag = {spcNode: 1663, dbNode: 5, relNode: 20_000, fork: 0};

/** Every page says which it is; a fork has 40 blocks. Reading of `broken` fails. */
function storage(broken?: RelTag): {source: HydrationSource; asked: string[]} {
  const asked: string[] = [];
  const source: HydrationSource = {
    relSize: async (rel) => {
      asked.push(`size ${formatRel(rel)}`);
      return rel.fork === 0 ? 40 : undefined;
    },
    getPages: async (rel, block, count) => {
      asked.push(`${formatRel(rel)} ${block}+${count}`);
      if (broken && rel.relNode === broken.relNode) throw new Error('broken');
      const many = Math.min(count, 40 - block);
      const bytes = Buffer.alloc(many * blockSize);
      for (let i = 0; i < many; i++) bytes.write(`${formatRel(rel)} ${block + i}`, i * blockSize);
      // Who has released it must not look at it any more.
      return {bytes, release: () => void bytes.fill(0xff)};
    },
    listDb: async () => [],
    dbSize: async () => 0,
  };
  return {source, asked};
}

function name(bytes: Buffer, page = 0): string {
  return bytes.toString('latin1', page * blockSize, page * blockSize + 40).replace(/\0.*/s, '');
}

test('what was read ahead is not asked for again, in runs, the catalogue first; the rest is', async () => {
  const {source, asked} = storage();
  const warm = new WarmSource(source, systemClock);
  warm.warm([
    {rel: table, block: 7},
    {rel: catalogue, block: 4},
    {rel: catalogue, block: 3},
    {rel: catalogue, block: 9},
  ]);
  await new Promise(setImmediate);
  const before = asked.length;
  assert.deepEqual(
    asked.filter((a) => !a.startsWith('size')),
    [`${formatRel(catalogue)} 3+2`, `${formatRel(catalogue)} 9+1`, `${formatRel(table)} 7+1`],
  );
  const run = await warm.getPages(catalogue, 3, 2);
  assert.deepEqual([name(run.bytes), name(run.bytes, 1)], [`${formatRel(catalogue)} 3`, `${formatRel(catalogue)} 4`]);
  assert.equal(name((await warm.getPages(catalogue, 9, 1)).bytes), `${formatRel(catalogue)} 9`);
  assert.equal(await warm.relSize(catalogue), 40);
  assert.equal(await warm.relSize({...catalogue, fork: 2}), undefined);
  assert.equal(asked.length, before);
  // A run of which a page is missing comes from storage, whole.
  const mixed = await warm.getPages(catalogue, 2, 3);
  assert.deepEqual(
    [0, 1, 2].map((i) => name(mixed.bytes, i)),
    [2, 3, 4].map((i) => `${formatRel(catalogue)} ${i}`),
  );
  assert.equal(asked.at(-1), `${formatRel(catalogue)} 2+3`);
  warm.stop();
  await warm.getPages(catalogue, 9, 1);
  assert.equal(asked.at(-1), `${formatRel(catalogue)} 9+1`, 'let go of');
});

test('blocks that are gone, and failures, are for who asks', async () => {
  const {source, asked} = storage(table);
  const warm = new WarmSource(source, systemClock);
  warm.warm([
    {rel: table, block: 1},
    {rel: catalogue, block: 39},
    {rel: catalogue, block: 40},
  ]);
  await assert.rejects(warm.getPages(table, 1, 1), /broken/);
  assert.equal(asked.filter((a) => a === `${formatRel(table)} 1+1`).length, 2, 'asked again');
  assert.equal(name((await warm.getPages(catalogue, 39, 1)).bytes), `${formatRel(catalogue)} 39`);
  warm.stop();
});
