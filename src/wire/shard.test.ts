import assert from 'node:assert/strict';
import {test} from 'node:test';
import {type RelTag} from '#postgres/relation.ts';
import {
  formatShardId,
  parseShardId,
  shardIdsOf,
  shardOfBlock,
  stripeBlocks,
  tenantOfShardId,
  unsharded,
} from './shard.ts';

const tenant = '0123456789abcdef0123456789abcdef';

function rel(relNode: number, fork: RelTag['fork'] = 0): RelTag {
  return {spcNode: 1663, dbNode: 5, relNode, fork};
}

test('a shard id is written and read back', () => {
  assert.equal(formatShardId({tenantId: tenant, number: 0, count: 1}), tenant);
  assert.equal(formatShardId({tenantId: tenant, number: 11, count: 16}), `${tenant}-0b10`);
  assert.deepEqual(parseShardId(tenant), unsharded(tenant));
  assert.deepEqual(parseShardId(`${tenant}-0b10`), {tenantId: tenant, number: 11, count: 16, stripeBlocks});
  assert.equal(tenantOfShardId(`${tenant}-0204`), tenant);
  assert.deepEqual(shardIdsOf(tenant, 1), [tenant]);
  assert.deepEqual(shardIdsOf(tenant, 3), [`${tenant}-0003`, `${tenant}-0103`, `${tenant}-0203`]);
});

test('what is no shard id is refused, one id has one form', () => {
  const bad = ['', tenant.slice(1), tenant.toUpperCase(), `${tenant}-`, `${tenant}-0001`, `${tenant}-0000`];
  for (const text of [...bad, `${tenant}-0404`, `${tenant}-00ff`, `${tenant}-0G04`, `${tenant}-0004/x`, `${tenant}\n`])
    assert.throws(() => parseShardId(text), /is no shard id/, JSON.stringify(text));
});

test('stripes lie together and are spread evenly', () => {
  for (const count of [2, 3, 4, 8, 16]) {
    const stripes = new Array<number>(count).fill(0);
    const small = new Array<number>(count).fill(0);
    for (let s = 0; s < 6400; s++) {
      const first = shardOfBlock(count, rel(16384), s * stripeBlocks);
      assert.equal(shardOfBlock(count, rel(16384), (s + 1) * stripeBlocks - 1), first);
      stripes[first]!++;
      small[shardOfBlock(count, rel(16384 + s), 0)]!++;
    }
    for (const held of [...stripes, ...small]) {
      const fair = 6400 / count;
      assert.ok(Math.abs(held - fair) < 5 * Math.sqrt(fair), `${count} shards: one holds ${held}, fair is ${fair}`);
    }
  }
});

test('the largest block and relation have a shard; one shard holds everything', () => {
  const shard = shardOfBlock(128, rel(0xffffffff), 0xfffffffe);
  assert.ok(Number.isInteger(shard) && shard >= 0 && shard < 128);
  assert.equal(shardOfBlock(1, rel(0xffffffff), 0xfffffffe), 0);
});

test('other forks are with shard 0; a copy of a relation in another database lies where the relation lies', () => {
  const copy: RelTag = {spcNode: 1700, dbNode: 99, relNode: 20000, fork: 0};
  for (let block = 0; block < 100 * stripeBlocks; block += 777) {
    for (const fork of [1, 2, 3] as const) assert.equal(shardOfBlock(7, rel(20000, fork), block), 0);
    assert.equal(shardOfBlock(7, copy, block), shardOfBlock(7, rel(20000), block));
  }
});
