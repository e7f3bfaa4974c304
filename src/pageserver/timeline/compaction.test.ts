import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {type Clock, systemClock} from '#runtime/clock.ts';
import {SeededRandom} from '#runtime/random.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {FailingObjectStore} from '#objectstore/failing-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {alwaysValid} from '../generation-validator.ts';
import {decodeIndex, parseIndexObjectKey, timelinePrefix} from './index-object.ts';
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
import {sweepOrphans} from './orphans.ts';
import type {LimitChanges, PageserverContext} from './state.ts';
import {Tenant} from './tenant.ts';
import type {Timeline} from './timeline.ts';

const {tenantId, firstTimeline} = testIds;
const leaseMsMax = 1_000_000;

type Step =
  | {readonly kind: 'change'; readonly branch: number; readonly change: Change}
  | {readonly kind: 'freeze' | 'checkpoint' | 'settle' | 'gc' | 'release'; readonly branch: number}
  | {readonly kind: 'compact'; readonly branch: number; readonly steps: number}
  | {readonly kind: 'read' | 'branch' | 'lease'; readonly branch: number; readonly back: number}
  | {readonly kind: 'window'; readonly branch: number; readonly records: number}
  | {readonly kind: 'detach'; readonly branch: number; readonly steps: number}
  | {readonly kind: 'sweep'}
  /** The process dies; `steps` ≥ 0: in the middle of compaction, after so many operations of the object store. */
  | {readonly kind: 'restart'; readonly branch: number; readonly operations: number};

const branch = fc.integer({min: 0, max: 3});
const back = fc.integer({min: 0, max: 30});
const arbitraryStep: fc.Arbitrary<Step> = fc.oneof(
  {weight: 40, arbitrary: fc.record({kind: fc.constant('change' as const), branch, change: arbitraryChange})},
  {weight: 12, arbitrary: fc.record({kind: fc.constantFrom('freeze' as const, 'checkpoint' as const), branch})},
  {weight: 4, arbitrary: fc.record({kind: fc.constant('settle' as const), branch})},
  {
    weight: 12,
    arbitrary: fc.record({kind: fc.constant('compact' as const), branch, steps: fc.integer({min: 1, max: 9})}),
  },
  {weight: 5, arbitrary: fc.record({kind: fc.constant('gc' as const), branch})},
  {weight: 1, arbitrary: fc.record({kind: fc.constant('release' as const), branch})},
  {weight: 5, arbitrary: fc.record({kind: fc.constantFrom('read' as const, 'branch' as const), branch, back})},
  {weight: 2, arbitrary: fc.record({kind: fc.constant('lease' as const), branch, back})},
  {
    weight: 2,
    arbitrary: fc.record({kind: fc.constant('window' as const), branch, records: fc.integer({min: 0, max: 60})}),
  },
  {
    weight: 2,
    arbitrary: fc.record({kind: fc.constant('detach' as const), branch, steps: fc.integer({min: 1, max: 9})}),
  },
  {weight: 1, arbitrary: fc.record({kind: fc.constant('sweep' as const)})},
  {
    weight: 2,
    arbitrary: fc.record({kind: fc.constant('restart' as const), branch, operations: fc.integer({min: -1, max: 6})}),
  },
);

const settings: readonly LimitChanges[] = [
  {compaction: {l0Threshold: 2, l0BatchMax: 3, runsPerLevel: 2, targetBytes: 600, imageDepth: 2, imageVisits: 0}},
  {compaction: {l0Threshold: 1, l0BatchMax: 8, runsPerLevel: 2, targetBytes: 1, imageDepth: 1, imageVisits: 0}},
  {compaction: {l0Threshold: 3, l0BatchMax: 4, runsPerLevel: 3, targetBytes: 5000, imageDepth: 3, imageVisits: 3}},
  {compaction: {l0Threshold: 2, levelsMax: 1, runsPerLevel: 2, targetBytes: 300, imageDepth: 99}},
  {compaction: {l0Threshold: 2, l0BatchMax: 4, runsPerLevel: 2, targetBytes: 400, imageDepth: 99, imageRecords: 1}},
].map((limits) => ({
  ...limits,
  leaseMsMax,
  compaction: {
    garbageRatio: 0.001,
    readAheadBytes: 1,
    l0SlowAt: 1000,
    imageBytesPerIngested: 100,
    settledBytesPerIngested: 100,
    settledValues: 1,
    ...limits.compaction,
  },
}));

/** Time that the test can move on. */
class TestClock implements Clock {
  #movedMs = 0;
  nowMs = (): number => systemClock.nowMs();
  monotonicMs = (): number => systemClock.monotonicMs() + this.#movedMs;
  setTimer = systemClock.setTimer.bind(systemClock);
  sleep = systemClock.sleep.bind(systemClock);
  move(ms: number): void {
    this.#movedMs += ms;
  }
}

/** The whole thing, and what the model knows of it. */
class World {
  readonly store = new MemoryObjectStore();
  readonly branches: ModelBranch[] = [{id: firstTimeline, ancestor: undefined, log: []}];
  /** Branches that were detached from where they come from. */
  readonly detached = new Set<ModelBranch>();
  /** LSNs of each branch that are under a lease. */
  readonly leases = new Map<ModelBranch, Set<Lsn>>();
  readonly #limits: LimitChanges;
  readonly #cacheBytes: number;
  readonly clock = new TestClock();
  failing: FailingObjectStore;
  context: PageserverContext;
  tenant!: Tenant;
  generation = 1;
  #lsn = importLsn as number;

  constructor(limits: LimitChanges, cacheBytes: number) {
    this.#limits = limits;
    this.#cacheBytes = cacheBytes;
    this.failing = new FailingObjectStore(this.store);
    this.context = this.#context();
  }

  #context(): PageserverContext {
    return {...testContext(this.failing, this.#limits, this.#cacheBytes), clock: this.clock};
  }

  async start(): Promise<void> {
    this.tenant = await Tenant.attach(this.context, alwaysValid, tenantId, this.generation);
    const root = await createRoot(this.tenant);
    await root.setRetention({windowSeconds: 0, windowBytes: 160});
    this.clock.move(leaseMsMax);
  }

  branch(number: number): ModelBranch {
    return this.branches[number % this.branches.length]!;
  }
  timeline(of: ModelBranch): Timeline {
    return this.tenant.timeline(of.id);
  }

  childrenOf(of: ModelBranch): ModelBranch[] {
    return this.branches.filter((child) => child.ancestor?.branch === of && !this.detached.has(child));
  }

  /** Detaches the branch in so many steps; true: it is. */
  async detach(of: ModelBranch, steps: number): Promise<boolean> {
    if (of.ancestor === undefined) return true;
    const held = [...(this.leases.get(of) ?? [])].some((at) => at < of.ancestor!.lsn);
    if (held && !this.detached.has(of)) {
      await assert.rejects(this.tenant.detachStep(of.id), {code: 'conflict'});
      return false;
    }
    for (let i = 0; i < steps; i++)
      if (await this.tenant.detachStep(of.id)) {
        this.detached.add(of);
        assert.equal(this.timeline(of).info().ancestorTimelineId, undefined);
        return true;
      }
    return false;
  }

  /** Whether the model says that the branch can be read at `at`. */
  isKept(of: ModelBranch, at: Lsn): boolean {
    const held =
      this.leases.get(of)?.has(at) === true || this.childrenOf(of).some((child) => child.ancestor!.lsn === at);
    if (at < this.timeline(of).state.gcCutoffLsn && !held) return false;
    if (of.ancestor === undefined || at >= of.ancestor.lsn) return true;
    if (this.detached.has(of)) return false;
    return this.isKept(of.ancestor.branch, at);
  }

  async change(of: ModelBranch, change: Change): Promise<void> {
    const at = lsn((this.#lsn += 8));
    of.log.push({lsn: at, change, world: applyToWorld(worldAt(of, tip(of)), change, at)});
    await this.#ingest(of, at, change);
  }

  async #ingest(of: ModelBranch, at: Lsn, change: Change): Promise<void> {
    const timeline = this.timeline(of);
    const writer = await timeline.writer();
    // Without commits there is no restore window to speak of.
    if (at % 16 === 0) writer.commitTime(1, at);
    await applyToWriter(writer, change, at, () => timeline.waitForRoom());
    await timeline.waitForRoom();
  }

  async check(of: ModelBranch, at: Lsn): Promise<void> {
    const timeline = this.timeline(of);
    if (this.isKept(of, at)) return compare(timeline, of, at);
    await assert.rejects(timeline.relSize(tagOf(0, 0), at), {code: 'lsn-too-old'});
    await assert.rejects(this.tenant.createBranch('e'.repeat(32), of.id, at), {code: 'lsn-too-old'});
  }

  async checkAll(of: ModelBranch): Promise<void> {
    const points = new Set<Lsn>([importLsn, of.ancestor?.lsn ?? importLsn, tip(of)]);
    for (const at of this.leases.get(of) ?? []) points.add(at);
    for (const record of of.log) points.add(record.lsn);
    for (const at of points) await this.check(of, at);
  }

  /** The process dies after so many operations of the object store, of which the last may or may not have been done. */
  async restart(): Promise<void> {
    for (const timeline of this.tenant.timelines()) timeline.stop();
    this.failing = new FailingObjectStore(this.store);
    this.context = this.#context();
    this.checkIndexes();
    this.tenant = await Tenant.attach(this.context, alwaysValid, tenantId, ++this.generation);
    for (const of of this.branches) {
      const timeline = this.timeline(of);
      if (of.ancestor !== undefined && timeline.ancestor === undefined) this.detached.add(of);
      const from = timeline.lastRecordLsn;
      for (const record of of.log) if (record.lsn > from) await this.#ingest(of, record.lsn, record.change);
    }
    // Whoever holds a lease renews it before GC begins.
    this.clock.move(leaseMsMax / 2);
    for (const [of, points] of this.leases)
      for (const at of points) assert.equal(await this.timeline(of).lease(at, leaseMsMax), leaseMsMax);
    this.clock.move(leaseMsMax / 2);
  }

  /** Every layer that the newest index of each timeline names is there, whole. */
  checkIndexes(): Set<string> {
    const named = new Set<string>();
    for (const of of this.branches) {
      const prefix = timelinePrefix(tenantId, of.id);
      const key = [...this.store.objects.keys()]
        .filter((k) => k.startsWith(`${prefix}index-`))
        .sort()
        .at(-1);
      assert.ok(key !== undefined, `${of.id} has an index`);
      const at = parseIndexObjectKey(key)!;
      named.add(key);
      for (const layer of decodeIndex(this.store.objects.get(key)!, {tenantId, timelineId: of.id, ...at}).layers) {
        named.add(prefix + layer.name);
        assert.equal(this.store.objects.get(prefix + layer.name)?.length, layer.size, `${layer.name} is in the store`);
      }
    }
    return named;
  }
}

async function run(world: World, step: Step): Promise<void> {
  if (step.kind === 'sweep') {
    await sweepOrphans(world.context, world.tenant);
    return;
  }
  const of = world.branch(step.branch);
  const timeline = world.timeline(of);
  const behind = (records: number): Lsn => lsn(Math.max(importLsn, tip(of) - records * 8));
  switch (step.kind) {
    case 'change':
      return world.change(of, step.change);
    case 'freeze':
      return (await timeline.writer()).freeze();
    case 'checkpoint':
      return timeline.checkpoint();
    case 'settle':
      timeline.lookWhetherSettled();
      return timeline.lookWhetherSettled();
    case 'release':
      timeline.onRelease = () => true; // nobody keeps a writer
      timeline.releaseIdle();
      return;
    case 'compact':
      for (let i = 0; i < step.steps; i++) if (!(await timeline.compactionStep())) return;
      return;
    case 'gc':
      return timeline.collectGarbage();
    case 'read':
      return world.check(of, behind(step.back));
    case 'window':
      return timeline.setRetention({windowSeconds: 0, windowBytes: step.records * 8});
    case 'lease': {
      const at = behind(step.back);
      if (!world.isKept(of, at)) return assert.rejects(timeline.lease(at, 1000), {code: 'lsn-too-old'});
      assert.equal(await timeline.lease(at, leaseMsMax * 2), leaseMsMax);
      for (let owner = of; ; owner = owner.ancestor.branch) {
        world.leases.set(owner, (world.leases.get(owner) ?? new Set()).add(at));
        if (owner.ancestor === undefined || at > owner.ancestor.lsn || world.detached.has(owner)) return;
      }
    }
    case 'branch': {
      if (world.branches.length === 4) return;
      const at = lsn(Math.max(of.ancestor?.lsn ?? importLsn, behind(step.back)));
      if (!world.isKept(of, at)) return;
      const id = String(world.branches.length).repeat(32);
      await world.tenant.createBranch(id, of.id, at);
      world.branches.push({id, ancestor: {branch: of, lsn: at}, log: []});
      return;
    }
    case 'detach':
      return void (await world.detach(of, step.steps));
    case 'restart': {
      if (step.operations >= 0) {
        let left = step.operations;
        world.failing.decide = (operation) =>
          left-- > 0 ? undefined : operation === 'put' && left % 2 === 0 ? 'after' : 'before';
        await timeline.compactionStep().catch(() => false);
        await timeline.collectGarbage().catch(() => {});
        void world.detach(of, 2).catch(() => false); // waits for the store, until the process is dead
        await systemClock.sleep(2);
      }
      return world.restart();
    }
  }
}

/** To go back to a case: PAGODA_TEST_SEED and PAGODA_TEST_PATH, as fast-check prints them. */
function seed(): {seed?: number; path?: string} {
  const {PAGODA_TEST_SEED: number, PAGODA_TEST_PATH: path} = process.env;
  return {...(number === undefined ? {} : {seed: Number(number)}), ...(path === undefined ? {} : {path})};
}

test('any history reads like the naive model at every LSN that is kept, whatever is merged, made into images, collected, and wherever the process dies', async () => {
  const counts = {collected: 0, steps: 0, detached: 0, deleted: 0};
  await fc.assert(
    fc.asyncProperty(
      fc.array(arbitraryStep, {minLength: 20, maxLength: 160}),
      fc.constantFrom(...settings),
      fc.constantFrom(8_000, 40_000),
      fc.constantFrom(40_000, 1 << 22),
      async (steps, limits, layerBytes, cacheBytes) => {
        const world = new World({...limits, layerBytes}, cacheBytes);
        try {
          await world.start();
          for (const step of steps) await run(world, step);
          for (const of of world.branches) {
            const timeline = world.timeline(of);
            await timeline.checkpoint();
            for (let i = 0; i < 200 && (await timeline.compactionStep()); i++);
            await timeline.collectGarbage();
            for (let i = 0; i < 200 && (await timeline.compactionStep()); i++);
            await timeline.collectGarbage();
            await timeline.checkpoint();
            await world.checkAll(of);
          }
          // Every branch that can leaves its ancestor; then those that nobody needs go, and a restart finds the rest.
          for (const of of world.branches) if (await world.detach(of, 200)) await world.checkAll(of);
          for (const of of world.branches.toReversed())
            if (world.childrenOf(of).length === 0 && !world.detached.has(of)) {
              await world.tenant.deleteTimeline(of.id);
              world.branches.splice(world.branches.indexOf(of), 1);
              world.leases.delete(of);
              counts.deleted++;
            }
          counts.collected += world.context.metrics.layersCollected.value();
          counts.steps += world.context.metrics.compactionSteps.value();
          await world.restart();
          for (const of of world.branches) {
            await world.timeline(of).collectGarbage();
            await world.checkAll(of);
          }
          counts.detached += world.detached.size;
          await systemClock.sleep(5); // sizes of branches from the past are set right in the background
          for (const timeline of world.tenant.timelines()) await timeline.checkpoint();
          // Nothing is left over: every object is named by an index that is read. A branch that nothing was written to since the
          // restart gets an index of its own from the first sweep, and is judged by the second.
          await sweepOrphans(world.context, world.tenant);
          await systemClock.sleep(0);
          await sweepOrphans(world.context, world.tenant);
          const named = world.checkIndexes();
          assert.deepEqual(
            [...world.store.objects.keys()].filter((key) => !named.has(key)),
            [],
          );
        } finally {
          for (const timeline of world.tenant.timelines()) timeline.stop();
        }
      },
    ),
    {numRuns: Number(process.env['PAGODA_TEST_RUNS'] ?? 60), ...seed()},
  );
  assert.ok(
    Object.values(counts).every((count) => count > 0),
    JSON.stringify(counts),
  );
});

test('an import of many parts becomes complete images, and reads as before at every step', async (context) => {
  const store = new MemoryObjectStore();
  const limits = {layerBytes: 60_000, relationSizesMax: 100, compaction: {l0Threshold: 2, targetBytes: 40_000}};
  const tenant = await Tenant.attach(testContext(store, limits), alwaysValid, tenantId, 1);
  const timeline = await tenant.createEmpty(firstTimeline, 15);
  context.after(() => timeline.stop());
  const random = new SeededRandom(5);
  const contents = Array.from({length: 50}, () => random.bytes(8192));
  const page = (block: number): Buffer => contents[block]!;
  await timeline.import(async (writer) => {
    for (let rel = 0; rel < 3; rel++) {
      writer.createRelation(1663, 100, 1000 + rel, 0, importLsn);
      writer.setRelationSize(1663, 100, 1000 + rel, 0, 40, importLsn);
      for (let block = rel; block < 40; block++) {
        writer.relationPageImage(1663, 100, 1000 + rel, 0, block, importLsn, page(block + rel));
        if (writer.importStep()) await timeline.waitForRoom();
      }
    }
    return {lsn: importLsn, systemId: '7'};
  });
  const {layers} = timeline.state;
  const parts = (): number => layers.descriptions().filter((layer) => layer.kind === 'image' && !layer.complete).length;
  const check = async (): Promise<void> => {
    for (let rel = 0; rel < 3; rel++) {
      const pages = await timeline.getRelPages(
        {spcNode: 1663, dbNode: 100, relNode: 1000 + rel, fork: 0},
        0,
        64,
        importLsn,
      );
      assert.equal(pages.length, 40);
      pages.forEach((p, block) =>
        assert.ok(p.equals(block < rel ? Buffer.alloc(8192) : page(block + rel)), `relation ${rel} block ${block}`),
      );
    }
  };
  assert.ok(parts() > 5, `${parts()} parts`);
  await check();
  let steps = 0;
  for (; await timeline.compactionStep(); steps++) await check();
  assert.ok(steps > 1 && parts() === 0, `${steps} steps, ${parts()} parts are left`);
  assert.ok(layers.descriptions().every((layer) => layer.complete));
  await check();
});

test('an image of a branch waits until its ancestor has put into layers what the branch reads of it', async (context) => {
  const compaction = {l0Threshold: 100, imageDepth: 1, imageVisits: 0, imageBytesPerIngested: 100};
  const store = new MemoryObjectStore();
  const tenant = await Tenant.attach(testContext(store, {compaction}), alwaysValid, tenantId, 1);
  context.after(() => tenant.timelines().forEach((timeline) => timeline.stop()));
  const root = await createRoot(tenant);
  const write = async (timeline: Timeline, rel: number, at: number): Promise<void> => {
    const room = (): Promise<void> => timeline.waitForRoom();
    await applyToWriter(await timeline.writer(), {kind: 'write', rel, block: 0, fill: 7}, lsn(at), room);
  };
  await write(root, 0, 0x1010);
  const child = await tenant.createBranch('b'.repeat(32), root.timelineId, lsn(0x1010));
  await write(child, 1, 0x1020);
  await write(child, 1, 0x1030);
  await child.checkpoint();
  await child.getRelPages(tagOf(0, 1), 0, 1, lsn(0x1028)); // a visit: the image is worth it
  assert.equal(await child.compactionStep(), false, 'the ancestor has 0/1010 in memory only');
  await root.checkpoint();
  assert.equal(await child.compactionStep(), true);
  assert.ok(child.state.layers.descriptions().some((layer) => layer.complete));
  for (const rel of [0, 1]) assert.equal((await child.getRelPages(tagOf(0, rel), 0, 1, lsn(0x1030)))[0]![5], 7);
});

test('an image that would have nothing in it is planned once, not for ever', async (context) => {
  const store = new MemoryObjectStore();
  const compaction = {imageBytesPerIngested: 100};
  const tenant = await Tenant.attach(testContext(store, {compaction}), alwaysValid, tenantId, 1);
  const timeline = await tenant.createEmpty(testIds.firstTimeline, 15);
  context.after(() => timeline.stop());
  await timeline.import(async (writer) => {
    const {spcNode, dbNode, relNode, fork} = tagOf(1, 4);
    for (let block = 0; block < 300; block++)
      writer.relationPageImage(spcNode, dbNode, relNode, fork, block, importLsn, Buffer.alloc(8192, 3));
    for (const database of [100, 101]) writer.createDatabase(1663, database, true, importLsn);
    return {lsn: importLsn, systemId: '7'};
  });
  const writer = await timeline.writer();
  // A page before the imported keys changes often. Behind them is only the newest chunk of commit times, which no image has.
  for (let i = 1; i <= 300; i++)
    await applyToWriter(writer, {kind: 'patch', rel: 0, block: 0, fill: 1 + (i % 200)}, lsn(importLsn + i * 8), () =>
      timeline.waitForRoom(),
    );
  await applyToWriter(writer, {kind: 'commit', time: 1}, lsn(importLsn + 301 * 8), () => timeline.waitForRoom());
  await timeline.checkpoint();
  let steps = 0;
  while (steps < 100 && (await timeline.compactionStep())) steps++;
  assert.ok(steps > 0 && steps < 100, `${steps} steps`);
});
