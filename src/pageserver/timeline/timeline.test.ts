import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {FailingObjectStore} from '#objectstore/failing-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {alwaysValid} from '../generation-validator.ts';
import {
  type Change,
  type ModelBranch,
  applyToWorld,
  applyToWriter,
  arbitraryChange,
  compare,
  createRoot,
  importLsn,
  tagOf,
  testContext,
  testIds,
  tip,
  worldAt,
} from './model.testing.ts';
import type {PageserverContext} from './state.ts';
import {Tenant} from './tenant.ts';
import {TimelineError} from './timeline-reader.ts';
import type {Timeline} from './timeline.ts';

const {tenantId, firstTimeline} = testIds;

type Step =
  | {readonly kind: 'change'; readonly branch: number; readonly change: Change}
  | {readonly kind: 'freeze'; readonly branch: number}
  | {readonly kind: 'checkpoint'; readonly branch: number}
  | {readonly kind: 'branch'; readonly from: number; readonly back: number}
  | {readonly kind: 'read'; readonly branch: number; readonly back: number}
  | {readonly kind: 'restart'};

const branchNumber = fc.integer({min: 0, max: 3});
const arbitraryStep: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 30,
    arbitrary: fc.record({kind: fc.constant('change' as const), branch: branchNumber, change: arbitraryChange}),
  },
  {weight: 3, arbitrary: fc.record({kind: fc.constant('freeze' as const), branch: branchNumber})},
  {weight: 1, arbitrary: fc.record({kind: fc.constant('checkpoint' as const), branch: branchNumber})},
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('branch' as const),
      from: branchNumber,
      back: fc.integer({min: 0, max: 20}),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('read' as const),
      branch: branchNumber,
      back: fc.integer({min: 0, max: 10}),
    }),
  },
  {weight: 1, arbitrary: fc.record({kind: fc.constant('restart' as const)})},
);

/** Puts take a while, so that frozen layers pile up. */
class SlowStore extends MemoryObjectStore {
  readonly #delayMs: number;
  constructor(delayMs: number) {
    super();
    this.#delayMs = delayMs;
  }
  override async put(...args: Parameters<MemoryObjectStore['put']>): Promise<void> {
    if (this.#delayMs > 0) await new Promise((resolve) => setTimeout(resolve, this.#delayMs));
    return super.put(...args);
  }
}

test('any history reads like the naive model, across branches, freezes, checkpoints and restarts', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(arbitraryStep, {minLength: 1, maxLength: 120}),
      fc.constantFrom(30_000, 100_000, 1 << 20),
      fc.constantFrom(40_000, 1 << 22),
      fc.constantFrom(0, 3),
      async (steps, layerBytes, cacheBytes, delayMs) => {
        const store = new SlowStore(delayMs);
        let generation = 1;
        const context = (): PageserverContext => testContext(store, {layerBytes}, cacheBytes);
        let tenant = await Tenant.attach(context(), alwaysValid, tenantId, generation);
        await createRoot(tenant);
        const branches: ModelBranch[] = [{id: firstTimeline, ancestor: undefined, log: []}];
        let clock = importLsn as number;
        const ingest = async (branch: ModelBranch, at: Lsn, change: Change): Promise<void> => {
          const timeline = tenant.timeline(branch.id);
          const writer = await timeline.writer();
          await applyToWriter(writer, change, at, () => timeline.waitForRoom());
          await timeline.waitForRoom();
        };
        for (const step of steps) {
          if (step.kind === 'change') {
            const branch = branches[step.branch % branches.length]!;
            const at = lsn((clock += 8));
            const world = applyToWorld(worldAt(branch, tip(branch)), step.change, at);
            branch.log.push({lsn: at, change: step.change, world});
            await ingest(branch, at, step.change);
          } else if (step.kind === 'freeze') {
            (await tenant.timeline(branches[step.branch % branches.length]!.id).writer()).freeze();
          } else if (step.kind === 'checkpoint') {
            const timeline = tenant.timeline(branches[step.branch % branches.length]!.id);
            await timeline.checkpoint();
            assert.equal(timeline.remoteConsistentLsn, timeline.diskConsistentLsn);
          } else if (step.kind === 'branch') {
            if (branches.length === 4) continue;
            const parent = branches[step.from % branches.length]!;
            const low = parent.ancestor?.lsn ?? importLsn;
            const at = lsn(Math.max(low, tip(parent) - step.back * 8));
            const id = String(branches.length).repeat(32);
            await tenant.createBranch(id, parent.id, at);
            branches.push({id, ancestor: {branch: parent, lsn: at}, log: []});
          } else if (step.kind === 'read') {
            const branch = branches[step.branch % branches.length]!;
            const low = branch.ancestor?.lsn ?? importLsn;
            await compare(tenant.timeline(branch.id), branch, lsn(Math.max(low, tip(branch) - step.back * 8)));
          } else {
            // The process dies: only the object store stays; the safekeepers give WAL again from what it had promised.
            for (const timeline of tenant.timelines()) timeline.stop();
            tenant = await Tenant.attach(context(), alwaysValid, tenantId, ++generation);
            for (const branch of branches) {
              const timeline = tenant.timeline(branch.id);
              const from = timeline.lastRecordLsn;
              for (const record of branch.log) if (record.lsn > from) await ingest(branch, record.lsn, record.change);
            }
          }
        }
        for (const branch of branches) {
          const timeline = tenant.timeline(branch.id);
          const low = branch.ancestor?.lsn ?? importLsn;
          const points = new Set<Lsn>([
            low,
            tip(branch),
            ...branch.log.filter((_, i) => i % 7 === 3).map((r) => r.lsn),
          ]);
          for (const at of points) await compare(timeline, branch, at);
        }
        for (const timeline of tenant.timelines()) timeline.stop();
      },
    ),
    {numRuns: Number(process.env['PAGODA_TEST_RUNS'] ?? 60)},
  );
});

test('a time becomes the LSN before the first later commit, also across branches and chunks', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({min: 1, max: 400}), {minLength: 0, maxLength: 700}),
      fc.array(fc.integer({min: 1, max: 400}), {minLength: 0, maxLength: 300}),
      fc.boolean(),
      async (parentTimes, childTimes, sorted) => {
        if (sorted) {
          parentTimes.sort((x, y) => x - y);
          childTimes = childTimes.map((t) => t + 400).sort((x, y) => x - y);
        }
        const store = new MemoryObjectStore();
        const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
        const root = await createRoot(tenant);
        let clock = importLsn as number;
        const commits: {lsn: number; time: number}[] = [];
        const put = async (timeline: Timeline, times: readonly number[]): Promise<void> => {
          const writer = await timeline.writer();
          for (const time of times) {
            const at = lsn((clock += 8));
            writer.commitTime(time, at);
            writer.endRecord(at);
            commits.push({lsn: at, time});
            if (time % 50 === 0) writer.freeze();
          }
        };
        await put(root, parentTimes);
        const child = await tenant.createBranch('b'.repeat(32), firstTimeline, undefined);
        await put(child, childTimes);
        await put(root, [500]); // not the child's
        const own = commits.slice(0, -1);
        for (const time of [0, 1, 50, 200, 399, 400, 401, 800, 900]) {
          const answer = await child.lsnAtTime(time);
          const later = own.findIndex((c) => c.time > time);
          const last = later === -1 ? own.at(-1) : own[later - 1];
          if (!sorted && childTimes.length > 0 && parentTimes.length > 0) continue; // a clock that jumps at a branch point
          if (own.length === 0) assert.equal(answer.kind, 'nodata');
          else if (last === undefined) assert.equal(answer.kind, 'past', `time ${time}`);
          else assert.equal(answer.lsn, last.lsn, `time ${time}`);
        }
        for (const timeline of tenant.timelines()) timeline.stop();
      },
    ),
    {numRuns: 30},
  );
});

test('a branch is one object; its parent can go on; both survive a restart from the object store alone', async () => {
  const store = new MemoryObjectStore();
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  const root = await createRoot(tenant);
  const writer = await root.writer();
  const tag = tagOf(0, 0);
  await writer.loadRelations([tag]);
  writer.createRelation(tag.spcNode, tag.dbNode, tag.relNode, tag.fork, lsn(0x2000));
  writer.setRelationSize(tag.spcNode, tag.dbNode, tag.relNode, tag.fork, 3, lsn(0x2000));
  writer.relationPageImage(tag.spcNode, tag.dbNode, tag.relNode, tag.fork, 1, lsn(0x2000), Buffer.alloc(8192, 1));
  writer.endRecord(lsn(0x2000));
  await root.checkpoint();
  const before = store.objects.size;
  const child = await tenant.createBranch('b'.repeat(32), firstTimeline, undefined);
  assert.equal(store.objects.size, before + 1);
  writer.relationPageImage(tag.spcNode, tag.dbNode, tag.relNode, tag.fork, 1, lsn(0x3000), Buffer.alloc(8192, 2));
  writer.endRecord(lsn(0x3000));
  await root.checkpoint();
  assert.equal((await child.getRelPages(tag, 0, 8, lsn(0x2000)))[1]![0], 1);
  assert.equal(child.info().logicalSizeBytes, 3 * 8192);
  for (const timeline of tenant.timelines()) timeline.stop();

  const again = await Tenant.attach(testContext(store), alwaysValid, tenantId, 2);
  const root2 = again.timeline(firstTimeline);
  assert.equal(root2.lastRecordLsn, 0x3000);
  assert.equal(root2.info().systemId, '7');
  assert.equal((await root2.getRelPages(tag, 1, 1, lsn(0x3000)))[0]![0], 2);
  assert.equal((await root2.getRelPages(tag, 1, 1, lsn(0x2000)))[0]![0], 1);
  assert.equal((await again.timeline('b'.repeat(32)).getRelPages(tag, 1, 1, lsn(0x2000)))[0]![0], 1);
  await assert.rejects(Tenant.attach(testContext(store), alwaysValid, tenantId, 0), /generation 1/);
  await assert.rejects(again.deleteTimeline(firstTimeline), /child/);
  await again.deleteTimeline('b'.repeat(32));
  await again.deleteTimeline(firstTimeline);
  assert.equal(store.objects.size, 0);
});

test('waiting for an LSN: reached, timed out, ingest stopped', async () => {
  const store = new MemoryObjectStore();
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  const root = await createRoot(tenant);
  const writer = await root.writer();
  const reached = root.waitForLsn(lsn(0x2000));
  writer.endRecord(lsn(0x2000));
  await reached;
  await assert.rejects(root.waitForLsn(lsn(0x3000), 20), (error: TimelineError) => {
    assert.equal(error.code, 'lsn-timeout');
    assert.match(error.message, /0\/3000.*0\/2000/);
    return true;
  });
  const stopped = root.waitForLsn(lsn(0x3000));
  root.ingestStopped('record of an unknown kind');
  await assert.rejects(stopped, /unknown kind/);
  await root.waitForLsn(lsn(0x2000));
  root.stop();
});

test('uploads: failures before and after the effect, then everything is there once', async () => {
  const memory = new MemoryObjectStore();
  let failing = 0;
  const store = new FailingObjectStore(memory, (operation) => {
    if (operation !== 'put' || failing <= 0) return undefined;
    return failing-- % 2 === 0 ? 'before' : 'after';
  });
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  const root = await createRoot(tenant);
  const writer = await root.writer();
  writer.slruPageImage(0, 3, lsn(0x2000), Buffer.alloc(8192, 9));
  writer.endRecord(lsn(0x2000));
  failing = 3;
  await root.checkpoint();
  assert.equal(root.remoteConsistentLsn, 0x2000);
  root.stop();
  const again = await Tenant.attach(testContext(memory), alwaysValid, tenantId, 1);
  assert.equal((await again.timeline(firstTimeline).getSlruPages(0, [3], lsn(0x2000)))[0]![0], 9);
});

test('a stale generation publishes nothing and deletes nothing', async () => {
  const store = new MemoryObjectStore();
  let valid = true;
  const validator = {validate: () => Promise.resolve(valid)};
  const tenant = await Tenant.attach(testContext(store), validator, tenantId, 1);
  const root = await createRoot(tenant);
  const writer = await root.writer();
  const remote = root.remoteConsistentLsn;
  const objects = new Set(store.objects.keys());
  valid = false;
  writer.slruPageImage(0, 3, lsn(0x2000), Buffer.alloc(8192, 9));
  writer.endRecord(lsn(0x2000));
  await assert.rejects(root.checkpoint(), /stale/);
  assert.equal(root.remoteConsistentLsn, remote);
  for (const key of objects) assert.ok(store.objects.has(key), `${key} is still there`);
  root.stop();
});

test('any flipped byte of a layer or index is found before it is served', async () => {
  const store = new MemoryObjectStore();
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  const root = await createRoot(tenant);
  const writer = await root.writer();
  const tag = tagOf(0, 0);
  await writer.loadRelations([tag]);
  writer.createRelation(tag.spcNode, tag.dbNode, tag.relNode, tag.fork, lsn(0x2000));
  writer.setRelationSize(tag.spcNode, tag.dbNode, tag.relNode, tag.fork, 20, lsn(0x2000));
  for (let block = 0; block < 20; block++) {
    const image = Buffer.alloc(8192, block + 1);
    for (let i = 0; i < 8192; i += 16) image.writeUInt32LE((i * 2654435761) >>> 0, i);
    writer.relationPageImage(tag.spcNode, tag.dbNode, tag.relNode, tag.fork, block, lsn(0x2000), image);
  }
  writer.endRecord(lsn(0x2000));
  await root.checkpoint();
  const expected = (await root.getRelPages(tag, 0, 20, lsn(0x2000))).map((page) => Buffer.from(page));
  root.stop();
  const pristine = new Map([...store.objects].map(([key, bytes]) => [key, Buffer.from(bytes)]));

  const readAll = async (): Promise<void> => {
    const again = await Tenant.attach(testContext(store), alwaysValid, tenantId, 2);
    const timeline = again.timeline(firstTimeline);
    try {
      const pages = await timeline.getRelPages(tag, 0, 20, lsn(0x2000));
      pages.forEach((page, i) => assert.ok(page.equals(expected[i]!), `block ${i}`));
      for (const reader of timeline.state.layers.readers()) await reader.verify();
    } finally {
      timeline.stop();
    }
  };
  await readAll();
  let position = 0;
  for (const [key, bytes] of pristine) {
    const step = Math.max(1, Math.floor(bytes.length / 150));
    for (let at = 0; at < bytes.length; at += step, position++) {
      const damaged = Buffer.from(bytes);
      damaged[at] = damaged[at]! ^ (1 << (position % 8));
      store.objects.set(key, damaged);
      await assert.rejects(readAll(), /damaged/, `${key} byte ${at}`);
      store.objects.set(key, bytes);
    }
    store.objects.set(key, bytes.subarray(0, bytes.length - 1));
    await assert.rejects(readAll(), /damaged/, `${key} cut`);
    store.objects.set(key, bytes);
  }
  const layers = [...pristine.keys()].filter((key) => !key.includes('index-'));
  assert.equal(layers.length, 2);
  store.objects.set(layers[0]!, pristine.get(layers[1]!)!);
  store.objects.set(layers[1]!, pristine.get(layers[0]!)!);
  await assert.rejects(readAll(), /damaged/, 'swapped objects');
});
