/** One history, told to an unsharded timeline and to every shard: together the shards hold what the one does, at every LSN. */
import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {shardIdsOf, shardOfBlock} from '#wire/shard.ts';
import {alwaysValid} from '../generation-validator.ts';
import {
  type Change,
  applyToWriter,
  arbitraryChange,
  createRoot,
  importLsn,
  tagOf,
  testContext,
  testIds,
} from './model.testing.ts';
import {Tenant} from './tenant.ts';
import {TimelineError} from './timeline-reader.ts';
import type {Timeline} from './timeline.ts';

const {tenantId, firstTimeline} = testIds;

/** So that ten blocks of the model lie in five stripes. */
const blocksApart = 1000;

function stretched(change: Change): Change {
  if (change.kind === 'write' || change.kind === 'patch') return {...change, block: change.block * blocksApart};
  return change.kind === 'resize' ? {...change, blocks: change.blocks * blocksApart} : change;
}

type Step =
  | {readonly kind: 'change'; readonly change: Change}
  | {readonly kind: 'freeze' | 'restart'; readonly shard: number};

const arbitraryStep: fc.Arbitrary<Step> = fc.oneof(
  {weight: 20, arbitrary: fc.record({kind: fc.constant('change' as const), change: arbitraryChange})},
  {
    weight: 2,
    arbitrary: fc.record({kind: fc.constantFrom('freeze' as const, 'restart' as const), shard: fc.nat({max: 3})}),
  },
);

async function apply(timeline: Timeline, change: Change, at: Lsn): Promise<void> {
  await applyToWriter(await timeline.writer(), change, at, () => timeline.waitForRoom());
  await timeline.waitForRoom();
}

/** Blocks that a change may have touched, and what is beside them. */
function interestingBlocks(size: number): number[] {
  const blocks = new Set<number>();
  for (let at = 0; at <= size; at += blocksApart)
    for (const block of [at - 1, at, at + 1]) if (block >= 0 && block < size) blocks.add(block);
  return [...blocks];
}

async function compare(whole: Timeline, shards: readonly Timeline[], at: Lsn): Promise<void> {
  const first = shards[0]!;
  for (const shard of shards) assert.deepEqual(await shard.listDatabases(at), await whole.listDatabases(at));
  for (const database of [0, 1])
    for (let relation = 0; relation < 5; relation++) {
      const tag = tagOf(database, relation);
      const size = await whole.relSize(tag, at);
      for (const shard of shards) assert.equal(await shard.relSize(tag, at), size, `size of ${relation} at ${at}`);
      for (const block of interestingBlocks(size ?? 0)) {
        const owner = shardOfBlock(shards.length, tag, block);
        const [expected] = await whole.getRelPages(tag, block, 1, at);
        const [real] = await shards[owner]!.getRelPages(tag, block, 1, at);
        assert.ok(real!.equals(expected!), `database ${database} relation ${relation} block ${block} at ${at}`);
        const other = shards[(owner + 1) % shards.length]!;
        const refusal = await other.getRelPages(tag, block, 1, at).catch((error: unknown) => error);
        assert.ok(refusal instanceof TimelineError && refusal.code === 'wrong-shard');
        assert.match(refusal.message, new RegExp(shards[owner]!.tenantId));
      }
    }
  const pages = await whole.slruPages(0, at);
  assert.deepEqual(await first.slruPages(0, at), pages);
  const expected = await whole.getSlruPages(0, pages, at);
  (await first.getSlruPages(0, pages, at)).forEach((page, i) => assert.ok(page.equals(expected[i]!)));
  for (const shard of shards.slice(1)) assert.deepEqual(await shard.slruPages(0, at), []);
}

test('the shards of a tenant hold together what an unsharded timeline holds, at every LSN', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(arbitraryStep, {minLength: 1, maxLength: 40}),
      fc.integer({min: 2, max: 4}),
      fc.constantFrom(30_000, 1 << 20),
      async (steps, count, layerBytes) => {
        const store = new MemoryObjectStore();
        const attach = (id: string): Promise<Tenant> =>
          Tenant.attach(testContext(store, {layerBytes}), alwaysValid, id, 1);
        const ids = [tenantId, ...shardIdsOf(tenantId, count)];
        const timelines = await Promise.all(ids.map(async (id) => createRoot(await attach(id))));
        const log: {at: Lsn; change: Change}[] = [];
        for (const step of steps) {
          const number = step.kind === 'change' ? 0 : 1 + (step.shard % count);
          if (step.kind === 'change') {
            const at = lsn(importLsn + (log.length + 1) * 8);
            const change = stretched(step.change);
            log.push({at, change});
            await Promise.all(timelines.map((timeline) => apply(timeline, change, at)));
          } else if (step.kind === 'freeze') await timelines[number]!.checkpoint();
          else {
            timelines[number]!.stop();
            const again = (await attach(ids[number]!)).timeline(firstTimeline);
            for (const {at, change} of log) if (at > again.lastRecordLsn) await apply(again, change, at);
            timelines[number] = again;
          }
        }
        const [whole, ...shards] = timelines as [Timeline, ...Timeline[]];
        for (const {at} of log) await compare(whole, shards, at);
        // Also those to which the last changes meant nothing.
        for (const timeline of timelines) {
          await timeline.checkpoint();
          assert.equal(timeline.remoteConsistentLsn, whole.lastRecordLsn);
          timeline.stop();
        }
      },
    ),
    {numRuns: 15, endOnFailure: true},
  );
});

test('WAL that means nothing to a shard is saved without a layer, and a restart goes on behind it', async () => {
  const store = new MemoryObjectStore();
  const [, second] = shardIdsOf(tenantId, 2);
  const limits = {layerBytes: 1000};
  const timeline = await createRoot(await Tenant.attach(testContext(store, limits), alwaysValid, second!, 1));
  const writer = await timeline.writer();
  const layers = timeline.state.layers.count;
  // Three times the size of a layer, and nothing of it is kept here.
  for (let at = importLsn + 8; at <= importLsn + 4000; at += 8) writer.endRecord(lsn(at));
  assert.equal(timeline.diskConsistentLsn, importLsn + 3008);
  assert.equal(timeline.state.layers.count, layers);
  await timeline.checkpoint();
  assert.equal(timeline.remoteConsistentLsn, importLsn + 4000);
  timeline.stop();
  const again = await Tenant.attach(testContext(store, limits), alwaysValid, second!, 2);
  assert.equal(again.timeline(firstTimeline).lastRecordLsn, importLsn + 4000);
  again.timeline(firstTimeline).stop();
});
