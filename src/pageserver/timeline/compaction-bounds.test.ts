/** What the docs promise of compaction: bytes written, memory held, layers a read looks into, back-pressure. */
import {test} from 'node:test';
import assert from 'node:assert/strict';
import {lsn} from '#postgres/lsn.ts';
import {SeededRandom} from '#runtime/random.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {PagePatchBuilder} from '../ingest/page-patch.ts';
import {alwaysValid} from '../generation-validator.ts';
import {defaultCompactionLimits} from './compaction-plan.ts';
import type {LayerDescription} from './index-object.ts';
import {relPagePrefix} from './key.ts';
import {LayerWalk} from './layer-map.ts';
import {createRoot, importLsn, testContext, testIds} from './model.testing.ts';
import {Tenant} from './tenant.ts';
import type {Timeline} from './timeline.ts';

const rel = {spcNode: 1663, dbNode: 100, relNode: 1000, fork: 0} as const;
const blocks = 300;
const layerBytes = 256 << 10;
const compaction = {
  ...defaultCompactionLimits,
  targetBytes: 128 << 10,
  readAheadBytes: 256 << 10,
  imageVisits: 0,
  l0SlowAt: 1000,
};

async function start(limits: object): Promise<{timeline: Timeline; store: MemoryObjectStore; at: {lsn: number}}> {
  const store = new MemoryObjectStore();
  const context = testContext(store, {layerBytes, leaseMsMax: 0, relationSizesMax: 100, ...limits});
  const tenant = await Tenant.attach(context, alwaysValid, testIds.tenantId, 1);
  const timeline = await createRoot(tenant);
  const writer = await timeline.writer();
  await writer.loadRelations([rel]);
  writer.createRelation(1663, 100, 1000, 0, lsn(importLsn + 8));
  writer.setRelationSize(1663, 100, 1000, 0, blocks, lsn(importLsn + 8));
  writer.endRecord(lsn(importLsn + 8));
  return {timeline, store, at: {lsn: importLsn + 8}};
}

/** Changes of random pages: most of them small patches, some whole pages; none compresses. */
async function ingest(timeline: Timeline, at: {lsn: number}, records: number, random: SeededRandom): Promise<void> {
  const writer = await timeline.writer();
  for (let i = 0; i < records; i++) {
    const end = lsn((at.lsn += 200));
    const block = random.uint32() % blocks;
    if (i % 8 === 0) writer.relationPageImage(1663, 100, 1000, 0, block, end, random.bytes(8192));
    else {
      const patch = new PagePatchBuilder();
      patch.set(random.uint32() % 8000, random.bytes(100));
      writer.relationPagePatch(1663, 100, 1000, 0, block, end, patch.take());
    }
    if (i % 50 === 0) writer.commitTime(1, end);
    writer.endRecord(end);
    if (!timeline.hasRoom) await timeline.waitForRoom();
  }
}

test('bytes written, memory held and layers per read stay below what is promised, with all of history or little', async (context) => {
  for (const windowBytes of [1 << 30, 100_000]) {
    const {timeline, store, at} = await start({compaction});
    context.after(() => timeline.stop());
    await timeline.setRetention({windowSeconds: 0, windowBytes});
    const {state} = timeline;
    const random = new SeededRandom(7);
    let deepest = 0;
    let storedMax = 0;
    for (let round = 0; round < 24; round++) {
      await ingest(timeline, at, 600, random);
      await timeline.checkpoint();
      await timeline.collectGarbage();
      while (await timeline.compactionStep());
      if (round % 3 === 0) await settle(timeline);
      await timeline.collectGarbage();
      const walk = new LayerWalk();
      for (let block = 0; block < blocks; block += 17) {
        let depth = 0;
        walk.start(state.layers, relPagePrefix(rel), block, state.lastRecordLsn + 1);
        while (walk.next() !== undefined) depth++;
        deepest = Math.max(deepest, depth);
      }
      storedMax = Math.max(storedMax, state.layers.bytes);
    }
    const written = state.context.metrics.compactionBytes.value() / state.ingestedLayerBytes;
    const held = timeline.compactionBytesHeldMax;
    const {levelsMax, imageBytesPerIngested, settledBytesPerIngested, garbageRatio, runsPerLevel, l0Threshold} =
      compaction;
    const writeBound = levelsMax + imageBytesPerIngested + settledBytesPerIngested + 1 / garbageRatio;
    // Inputs: a batch of level 0 and everything that lies under a made image.
    const inputs = 64;
    const heldBound = inputs * ((64 << 10) + (64 << 10) + (48 << 10)) + 2 * compaction.targetBytes;
    const depthBound = l0Threshold + runsPerLevel * levelsMax + 1;
    assert.ok(written < writeBound, `${written} bytes written for each ingested`);
    assert.ok(held < heldBound, `${held} bytes held`);
    assert.ok(deepest <= depthBound, `${deepest} layers for one page`);
    const objects = [...store.objects.values()].reduce((sum, bytes) => sum + bytes.length, 0);
    if (windowBytes === 100_000)
      assert.ok(state.layers.bytes < state.ingestedLayerBytes / 2, 'history that nobody can read is gone');
    console.log(
      `# window ${windowBytes}: ${(state.ingestedLayerBytes / 1e6).toFixed(1)} MB ingested; written for each byte ${written.toFixed(2)} (bound ${writeBound}), ` +
        `held ${(held / 1e6).toFixed(2)} MB (bound ${(heldBound / 1e6).toFixed(1)}), ${deepest} layers per page at most (bound ${depthBound}), ` +
        `${(storedMax / 1e6).toFixed(1)} MB stored at most, ${(objects / 1e6).toFixed(1)} MB in the end`,
    );
  }
});

test('a table just loaded row by row is read from images, within the bytes allowed; so it is after a restart in the middle', async (context) => {
  const {timeline, at, store} = await start({compaction});
  context.after(() => timeline.stop());
  const writer = await timeline.writer();
  const random = new SeededRandom(5);
  const rows: Buffer[] = [];
  for (let block = 0; block < blocks; block++)
    for (let i = 0; i < 60; i++) {
      const end = lsn((at.lsn += 150));
      const patch = new PagePatchBuilder();
      rows[block] = random.bytes(120);
      patch.set(24 + i * 130, rows[block]!);
      writer.relationPagePatch(1663, 100, 1000, 0, block, end, patch.take());
      writer.endRecord(end);
      if (!timeline.hasRoom) await timeline.waitForRoom();
    }
  await timeline.checkpoint();
  for (let i = 0; i < 3; i++) await timeline.compactionStep();
  timeline.stop();
  const tenant = await Tenant.attach(testContext(store, {layerBytes, compaction}), alwaysValid, testIds.tenantId, 2);
  const again = tenant.timeline(timeline.timelineId);
  context.after(() => again.stop());
  while (await again.compactionStep());
  const {redoRecords} = again.state.context.metrics;
  const imaged = again.state.layers
    .descriptions()
    .filter((layer) => layer.kind === 'image' && layer.startLsn > importLsn);
  const imageBytes = imaged.reduce((sum, layer) => sum + layer.size, 0);
  const allowed = again.state.ingestedLayerBytes * compaction.imageBytesPerIngested + compaction.targetBytes;
  assert.ok(imageBytes < allowed, `${imageBytes} bytes of images, ${allowed} allowed`);
  const before = redoRecords.value();
  const pages = await again.getRelPages(rel, 0, blocks, lsn(at.lsn));
  const replayed = redoRecords.value() - before;
  assert.equal(pages.length, blocks);
  for (const [block, page] of pages.entries())
    assert.ok(page.subarray(24 + 59 * 130, 24 + 59 * 130 + 120).equals(rows[block]!));
  assert.ok(replayed < blocks, `${replayed} records replayed for ${blocks} pages`);
  console.log(`# ${imaged.length} images, ${imageBytes} of ${allowed} bytes, ${replayed} records replayed`);
});

/** What the timer of a timeline does when no WAL has come for a while, and all that follows. */
async function settle(timeline: Timeline): Promise<void> {
  await timeline.checkpoint();
  timeline.lookWhetherSettled();
  timeline.lookWhetherSettled();
  while (await timeline.compactionStep());
}

/** One small change of each of these pages. */
async function touch(
  timeline: Timeline,
  at: {lsn: number},
  from: number,
  to: number,
  random: SeededRandom,
): Promise<void> {
  const writer = await timeline.writer();
  await writer.loadRelations([rel]);
  for (let block = from; block < to; block++) {
    const end = lsn((at.lsn += 200));
    const patch = new PagePatchBuilder();
    patch.set(random.uint32() % 8000, random.bytes(100));
    writer.relationPagePatch(1663, 100, 1000, 0, block, end, patch.take());
    writer.endRecord(end);
    if (!timeline.hasRoom) await timeline.waitForRoom();
  }
}

/** Records replayed to read all pages. */
async function replayed(timeline: Timeline, at: {lsn: number}): Promise<number> {
  const {redoRecords} = timeline.state.context.metrics;
  const before = redoRecords.value();
  assert.equal((await timeline.getRelPages(rel, 0, blocks, lsn(at.lsn))).length, blocks);
  return redoRecords.value() - before;
}

function madeImages(timeline: Timeline): LayerDescription[] {
  const {layers, initialLsn} = timeline.state;
  return layers.descriptions().filter((layer) => layer.kind === 'image' && layer.startLsn > initialLsn);
}

test('a loaded table that is touched once more becomes images alone when it settles; touched at every pause it costs what it brings, restarts or not', async (context) => {
  // What reads cost is the other tests'.
  const limits = {...compaction, imageDepth: 99};
  const {store, timeline: first, at} = await start({compaction: limits});
  let timeline = first;
  context.after(() => timeline.stop());
  const random = new SeededRandom(5);
  for (let row = 0; row < 60; row++) await touch(timeline, at, 0, blocks, random);
  await timeline.checkpoint();
  while (await timeline.compactionStep());
  const imageBytes = (): number => madeImages(timeline).reduce((sum, layer) => sum + layer.size, 0);
  const loaded = imageBytes();
  await touch(timeline, at, 200, 260, random);
  await settle(timeline);
  const part = imageBytes() - loaded;
  assert.ok(part > 0 && part < 110 * 8192, `${part} bytes of images where 60 of ${blocks} pages were touched`);

  await touch(timeline, at, 0, blocks, random);
  await timeline.checkpoint();
  while (await timeline.compactionStep());
  const dear = await replayed(timeline, at);
  assert.ok(dear >= blocks, `${dear} records to read ${blocks} pages before`);
  await settle(timeline);
  const left = await replayed(timeline, at);
  assert.ok(left <= 1, `${left} records to read ${blocks} pages after; the last may lie above the images`);

  let pauses = 0;
  let generation = 1;
  for (let round = 0; round < 40; round++) {
    await touch(timeline, at, 0, blocks, random);
    const before = madeImages(timeline).length;
    await settle(timeline);
    if (round < 10 && madeImages(timeline).length > before) pauses++;
    if (round % 10 !== 9) continue;
    timeline.stop();
    const again = await Tenant.attach(
      testContext(store, {layerBytes, compaction: limits}),
      alwaysValid,
      testIds.tenantId,
      ++generation,
    );
    timeline = again.timeline(timeline.timelineId);
  }
  const written = imageBytes();
  const {imageBytesPerIngested, settledBytesPerIngested, targetBytes} = compaction;
  const {ingestedLayerBytes} = timeline.state;
  const allowed = ingestedLayerBytes * (imageBytesPerIngested + settledBytesPerIngested) + targetBytes;
  console.log(
    `# ${dear} records before, ${left} after; images at ${pauses} of the first 10 pauses, ${written} of ${allowed} bytes`,
  );
  assert.ok(written < allowed, `${written} bytes of images, ${allowed} allowed`);
  assert.ok(pauses <= 5, `images at ${pauses} of the first 10 pauses`);
});

test('branches that settle cost nothing: what is inherited is not copied for a few changes, nor beyond what they bring', async (context) => {
  const store = new MemoryObjectStore();
  const limits = {layerBytes, leaseMsMax: 0, relationSizesMax: 100, compaction};
  const tenant = await Tenant.attach(testContext(store, limits), alwaysValid, testIds.tenantId, 1);
  context.after(() => tenant.timelines().forEach((timeline) => timeline.stop()));
  const root = await createRoot(tenant);
  const at = {lsn: importLsn + 8};
  const writer = await root.writer();
  await writer.loadRelations([rel]);
  writer.createRelation(1663, 100, 1000, 0, lsn(at.lsn));
  writer.setRelationSize(1663, 100, 1000, 0, blocks, lsn(at.lsn));
  writer.endRecord(lsn(at.lsn));
  const random = new SeededRandom(9);
  for (let row = 0; row < 20; row++) await touch(root, at, 0, blocks, random);
  await settle(root);
  const branch = async (number: number): Promise<{timeline: Timeline; at: {lsn: number}}> => {
    const timeline = await tenant.createBranch(String(number).repeat(32), root.timelineId, lsn(at.lsn));
    return {timeline, at: {lsn: at.lsn}};
  };
  for (let number = 1; number < 8; number++) {
    const child = await branch(number);
    const puts = store.objects.size;
    await settle(child.timeline);
    assert.equal(store.objects.size, puts, 'a branch that writes nothing has nothing made');
    await touch(child.timeline, child.at, number * 20, number * 20 + 20, random);
    await settle(child.timeline);
    assert.equal(madeImages(child.timeline).length, 0, 'nor one that changes a few pages');
  }
  const child = await branch(8);
  for (let round = 0; round < 12; round++) {
    await touch(child.timeline, child.at, 0, blocks, random);
    await settle(child.timeline);
  }
  const images = madeImages(child.timeline);
  const written = images.reduce((sum, layer) => sum + layer.size, 0);
  const {imageBytesPerIngested, settledBytesPerIngested, targetBytes} = compaction;
  const allowed =
    child.timeline.state.ingestedLayerBytes * (imageBytesPerIngested + settledBytesPerIngested) + targetBytes;
  console.log(`# a branch that changes all: ${written} of ${allowed} bytes in ${images.length} images`);
  assert.ok(written < allowed, `${written} bytes of images, ${allowed} allowed`);
});

test('one page that changes all the time does not have the whole table written as images', async (context) => {
  const {timeline, at} = await start({compaction});
  context.after(() => timeline.stop());
  const writer = await timeline.writer();
  const random = new SeededRandom(5);
  for (let block = 0; block < blocks; block++) {
    const end = lsn((at.lsn += 8200));
    writer.relationPageImage(1663, 100, 1000, 0, block, end, random.bytes(8192));
    writer.endRecord(end);
  }
  await timeline.checkpoint();
  while (await timeline.compactionStep());
  const patches = 6000;
  for (let i = 0; i < patches; i++) {
    const end = lsn((at.lsn += 200));
    const patch = new PagePatchBuilder();
    patch.set(random.uint32() % 8000, random.bytes(100));
    writer.relationPagePatch(1663, 100, 1000, 0, 77, end, patch.take());
    writer.endRecord(end);
    if (!timeline.hasRoom) await timeline.waitForRoom();
  }
  await timeline.checkpoint();
  while (await timeline.compactionStep());
  const imaged = timeline.state.layers
    .descriptions()
    .filter((layer) => layer.kind === 'image' && layer.startLsn > importLsn);
  const written = imaged.reduce((sum, layer) => sum + layer.size, 0);
  const {redoRecords} = timeline.state.context.metrics;
  const before = redoRecords.value();
  await timeline.getRelPages(rel, 77, 1, lsn(at.lsn));
  const replayed = redoRecords.value() - before;
  console.log(`# ${imaged.length} images of ${written} bytes; ${replayed} records replayed for the page`);
  assert.ok(written < (blocks * 8192) / 3, `${written} bytes of images for one page`);
  assert.ok(replayed < patches / 2, `${replayed} records replayed`);
});

test('ingest slows down with each layer that compaction is behind, and stands still at the limit', async (context) => {
  const {timeline, at} = await start({
    layerBytes: 40_000,
    compaction: {...compaction, l0Threshold: 100, l0SlowAt: 3, l0StopAt: 6},
  });
  context.after(() => timeline.stop());
  const {state} = timeline;
  const random = new SeededRandom(3);
  const writer = await timeline.writer();
  // How often ingest rested, not how long: a busy machine takes its own time.
  let rests = 0;
  const {clock} = state.context;
  const sleep = clock.sleep.bind(clock);
  context.mock.method(clock, 'sleep', (ms: number) => {
    if (ms === 100) rests++;
    return sleep(ms);
  });
  const freeze = async (): Promise<number> => {
    const end = lsn((at.lsn += 8));
    writer.relationPageImage(1663, 100, 1000, 0, 1, end, random.bytes(8192));
    writer.endRecord(end);
    writer.freeze();
    const before = rests;
    await timeline.waitForRoom();
    return rests - before;
  };
  const waits: number[] = [];
  for (let i = 0; i < 5; i++) {
    waits.push(await freeze());
    while (state.frozen.length > 0) await state.context.clock.sleep(1);
  }
  assert.ok(waits[0] === 0 && waits[1] === 0, `no wait below l0SlowAt: ${waits.join()}`);
  assert.ok(waits[4]! > 0 && waits[4]! > waits[2]!, `the further behind, the longer: ${waits.join()}`);
  while (state.layers.l0Count < 6) {
    await Promise.race([freeze(), state.context.clock.sleep(300)]);
    while (state.frozen.length > 0) await state.context.clock.sleep(1);
  }
  let through = false;
  void freeze().then(() => (through = true));
  await state.context.clock.sleep(1500);
  assert.ok(!through, 'ingest stands at l0StopAt');
  assert.equal(timeline.hasRoom, false);
});
