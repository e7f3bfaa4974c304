/** An attachment that does not know that it is over still writes; the sweep of its successor spares what an index may be read for. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {lsn} from '#postgres/lsn.ts';
import type {GenerationValidator} from '../generation-validator.ts';
import {decodeIndex, indexObjectKey, newestIndex, timelinePrefix} from './index-object.ts';
import {applyToWriter, createRoot, importLsn, testContext, testIds} from './model.testing.ts';
import {sweepOrphans} from './orphans.ts';
import {Tenant} from './tenant.ts';

const {tenantId, firstTimeline} = testIds;

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 10_000 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
}

for (const isArchived of [false, true])
  test(`a branch that is ${isArchived ? 'archived' : 'awake and idle'} can be attached again after any sweep`, async (context) => {
    const store = new MemoryObjectStore();
    let newest = 1;
    /** The old attachment gets no answer from here on. */
    let isCutOff = false;
    const validator: GenerationValidator = {
      validate: (_tenant, generation) =>
        isCutOff && generation === 1 ? new Promise(() => {}) : Promise.resolve(generation === newest),
    };
    const limits = {layerBytes: 40_000};
    const open: Tenant[] = [];
    const attach = async (): Promise<Tenant> => {
      const tenant = await Tenant.attach(testContext(store, limits), validator, tenantId, newest);
      open.push(tenant);
      return tenant;
    };
    context.after(() => open.forEach((tenant) => tenant.timelines().forEach((timeline) => timeline.stop())));
    const prefix = timelinePrefix(tenantId, firstTimeline);
    const indexAt = (): {generation: number; sequence: number} =>
      newestIndex([...store.objects.keys()].filter((key) => key.startsWith(prefix)))!;
    /** What the next attachment would load: nothing of it is missing. */
    const checkIndex = (): number => {
      const at = indexAt();
      const bytes = store.objects.get(indexObjectKey(tenantId, firstTimeline, at.generation, at.sequence))!;
      const {layers} = decodeIndex(bytes, {tenantId, timelineId: firstTimeline, ...at});
      for (const {name} of layers) assert.ok(store.objects.has(prefix + name), `${name} is there`);
      return layers.length;
    };

    const old = await attach();
    await createRoot(old);
    await old.timeline(firstTimeline).checkpoint();
    if (isArchived) await old.archive(firstTimeline, importLsn);
    const layersBefore = checkIndex();
    isCutOff = true;
    // It is woken as its successor looks: the index that says so is stored a moment later.
    const listed = new Map(store.objects);
    if (isArchived) void old.wake(firstTimeline);
    await until(() => !isArchived || old.has(firstTimeline));
    const late = [...store.objects].filter(([key]) => !listed.has(key));
    for (const [key] of late) store.objects.delete(key);
    newest = 2;
    const now = await attach();
    for (const [key, bytes] of late) store.objects.set(key, bytes);
    // The old one has not heard of it: it writes a layer, and an index that names it.
    const before = indexAt().sequence;
    const writer = await old.timeline(firstTimeline).writer();
    await applyToWriter(writer, {kind: 'write', rel: 0, block: 0, fill: 1}, lsn(importLsn + 8), async () => {});
    writer.freeze();
    await until(() => indexAt().sequence > before);
    assert.equal(checkIndex(), layersBefore + 1, 'the old attachment had its index stored');
    assert.equal(indexAt().generation, 1);

    await sweepOrphans(testContext(store, limits), now);
    checkIndex();
    const left = store.objects.size;
    assert.ok((await sweepOrphans(testContext(store, limits), now)) > 0, 'what the old one wrote goes in the end');
    assert.ok(store.objects.size < left);
    checkIndex();
    assert.equal(indexAt().generation, 2);
    newest = 3;
    const next = await attach();
    await next.wake(firstTimeline);
    checkIndex();
  });
