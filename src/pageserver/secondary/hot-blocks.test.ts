/** Wherever publishing a list is cut short: the next one is there whole, and alone. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {FailingObjectStore, type Operation} from '#objectstore/failing-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {lsn} from '#postgres/lsn.ts';
import {alwaysValid} from '../generation-validator.ts';
import {applyToWriter, createRoot, importLsn, tagOf, testContext, testIds} from '../timeline/model.testing.ts';
import {Tenant} from '../timeline/tenant.ts';
import {HotBlocksPublisher, decodeHotBlocks, hotBlocksOf} from './hot-blocks.ts';

const {tenantId} = testIds;

test('a list that was not published is published with the next round, also when nothing has changed since', async () => {
  for (const operation of ['put', 'list', 'delete'] satisfies Operation[])
    for (const failure of ['before', 'after'] as const)
      for (const dies of [false, true]) {
        const memory = new MemoryObjectStore();
        const store = new FailingObjectStore(memory);
        const attach = async (generation: number): Promise<[Tenant, HotBlocksPublisher]> => {
          const context = testContext(store);
          return [await Tenant.attach(context, alwaysValid, tenantId, generation), new HotBlocksPublisher(context)];
        };
        let [tenant, publisher] = await attach(1);
        let written = importLsn as number;
        /** Blocks of a new layer become hot. */
        const heat = async (): Promise<void> => {
          const [timeline] = tenant.timelines();
          const at = lsn((written += 8));
          await applyToWriter(await timeline!.writer(), {kind: 'write', rel: 0, block: 0, fill: 1}, at, async () => {});
          await timeline!.checkpoint();
          await timeline!.getRelPages(tagOf(0, 0), 0, 1, at);
        };
        await createRoot(tenant);
        await heat();
        await publisher.publish(tenant);
        await heat();
        store.decide = (asked, key) => (asked === operation && key.includes('hot-blocks') ? failure : undefined);
        const what = `${operation} failed ${failure} its effect`;
        await assert.rejects(publisher.publish(tenant), {code: 'unavailable'}, what);
        store.decide = () => undefined;
        if (dies) {
          for (const timeline of tenant.timelines()) timeline.stop();
          [tenant, publisher] = await attach(2);
          await heat();
        } else if (operation !== 'put') await heat();
        await publisher.publish(tenant);
        const lists = [...memory.objects].filter(([key]) => key.includes('hot-blocks'));
        assert.deepEqual(
          lists.map(([key, bytes]) => decodeHotBlocks(key, bytes)),
          [hotBlocksOf(tenant)],
          what,
        );
        for (const timeline of tenant.timelines()) timeline.stop();
      }
});
