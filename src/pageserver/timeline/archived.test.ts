import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {lsn} from '#postgres/lsn.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {alwaysValid} from '../generation-validator.ts';
import {
  type ModelBranch,
  applyToWorld,
  applyToWriter,
  arbitraryChange,
  compare,
  createRoot,
  importLsn,
  testContext,
  testIds,
  tip,
  worldAt,
} from './model.testing.ts';
import type {PageserverContext} from './state.ts';
import {timelinePrefix} from './index-object.ts';
import {sweepOrphans} from './orphans.ts';
import {Secondary} from '../secondary/secondary.ts';
import {Tenant} from './tenant.ts';
import {TimelineError} from './timeline-reader.ts';
import type {Timeline} from './timeline.ts';

const {tenantId, firstTimeline} = testIds;
const limits = {
  layerBytes: 40_000,
  gcPeriodMs: 60_000,
  leaseMsMax: 0,
  compaction: {l0Threshold: 2, garbageRatio: 0.001},
};

/** Notes which indexes are read. */
class IndexReads extends MemoryObjectStore {
  readonly read: string[] = [];
  override async get(key: string): Promise<Buffer> {
    if (key.includes('/index-')) this.read.push(key.split('/')[3]!);
    return super.get(key);
  }
}

/** Fails the next put of an index. */
class IndexFailsOnce extends MemoryObjectStore {
  crash = false;
  override async put(...args: Parameters<MemoryObjectStore['put']>): Promise<void> {
    if (this.crash && args[0].includes('/index-')) return new Promise(() => {});
    return super.put(...args);
  }
}

const code = (wanted: string) => (error: unknown) => error instanceof TimelineError && error.code === wanted;

test('archived branches read as before, whatever is compacted, collected, archived and restarted in between', async () => {
  const step = fc.oneof(
    {weight: 30, arbitrary: fc.record({kind: fc.constant('change' as const), at: fc.nat(3), change: arbitraryChange})},
    {weight: 3, arbitrary: fc.record({kind: fc.constant('branch' as const), at: fc.nat(3), back: fc.nat(10)})},
    {weight: 6, arbitrary: fc.record({kind: fc.constant('archive' as const), at: fc.nat(3)})},
    {weight: 2, arbitrary: fc.record({kind: fc.constant('crash' as const), at: fc.nat(3)})},
    {weight: 3, arbitrary: fc.record({kind: fc.constant('collect' as const)})},
    {weight: 2, arbitrary: fc.record({kind: fc.constant('restart' as const)})},
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, {minLength: 10, maxLength: 100}), async (steps) => {
      const store = new IndexFailsOnce();
      let generation = 1;
      const context = (): PageserverContext => testContext(store, limits);
      let tenant = await Tenant.attach(context(), alwaysValid, tenantId, generation);
      await createRoot(tenant);
      const branches: ModelBranch[] = [{id: firstTimeline, ancestor: undefined, log: []}];
      let clock = importLsn as number;
      const restart = async (): Promise<void> => {
        for (const timeline of tenant.timelines()) timeline.stop();
        store.crash = false;
        tenant = await Tenant.attach(context(), alwaysValid, tenantId, ++generation);
      };
      /** Wakes it; the safekeepers give again what the store has not. */
      const awake = async (branch: ModelBranch): Promise<Timeline> => {
        if (branch.ancestor !== undefined) await awake(branch.ancestor.branch);
        const timeline = await tenant.wake(branch.id);
        for (const record of branch.log)
          if (record.lsn > timeline.lastRecordLsn)
            await applyToWriter(await timeline.writer(), record.change, record.lsn, () => timeline.waitForRoom());
        return timeline;
      };
      const hasAwakeChild = (branch: ModelBranch): boolean =>
        branches.some((b) => b.ancestor?.branch === branch && tenant.archivedTimeline(b.id) === undefined);
      for (const s of steps) {
        const branch = branches['at' in s ? s.at % branches.length : 0]!;
        if (s.kind === 'change') {
          const at = lsn((clock += 8));
          await awake(branch);
          branch.log.push({lsn: at, change: s.change, world: applyToWorld(worldAt(branch, tip(branch)), s.change, at)});
          await awake(branch);
        } else if (s.kind === 'branch') {
          if (branches.length === 4) continue;
          await awake(branch);
          const at = lsn(Math.max(branch.ancestor?.lsn ?? importLsn, tip(branch) - s.back * 8));
          const id = String(branches.length).repeat(32);
          try {
            await tenant.createBranch(id, branch.id, at);
            branches.push({id, ancestor: {branch, lsn: at}, log: []});
          } catch (error) {
            assert.ok(code('lsn-too-old')(error), String(error));
          }
        } else if (s.kind === 'archive') {
          if (tenant.archivedTimeline(branch.id) !== undefined) continue;
          await awake(branch);
          const archive = tenant.archive(branch.id, tip(branch));
          if (hasAwakeChild(branch)) await assert.rejects(archive, code('conflict'));
          else {
            await archive;
            assert.equal(tenant.has(branch.id), false);
            assert.throws(() => tenant.timeline(branch.id), code('unavailable'));
          }
        } else if (s.kind === 'crash') {
          // In the middle of archiving or waking: the index that says so never arrives.
          store.crash = true;
          const isArchived = tenant.archivedTimeline(branch.id) !== undefined;
          (isArchived ? tenant.wake(branch.id) : tenant.archive(branch.id, lsn(0))).catch(() => {});
          await new Promise((resolve) => setTimeout(resolve, 3));
          await restart();
        } else if (s.kind === 'collect') {
          for (const timeline of tenant.timelines()) {
            await collectEverything(timeline);
          }
        } else await restart();
      }
      for (const branch of branches) {
        await awake(branch);
        await compare(tenant.timeline(branch.id), branch, tip(branch));
      }
      for (const branch of branches.toReversed()) {
        // Asleep or awake, it can be deleted, and nothing of it stays.
        if (branch.log.length % 2 === 0) await tenant.archive(branch.id, tip(branch));
        await tenant.deleteTimeline(branch.id);
        assert.deepEqual(await store.list(`tenants/${tenantId}/timelines/${branch.id}/`), []);
      }
    }),
    {numRuns: Number(process.env['PAGODA_TEST_RUNS'] ?? 60)},
  );
});

/** All history that nobody holds goes: images in its place, then what lies below them. */
async function collectEverything(timeline: Timeline): Promise<void> {
  await timeline.setRetention({windowSeconds: 0, windowBytes: 0});
  await timeline.checkpoint();
  for (let round = 0; round < 3; round++) {
    await timeline.collectGarbage();
    while (await timeline.compactionStep());
  }
}

test('a parent keeps for an archived child what it would keep for one that is awake, also when both were archived', async () => {
  const store = new MemoryObjectStore();
  let tenant = await Tenant.attach(testContext(store, limits), alwaysValid, tenantId, 1);
  await createRoot(tenant);
  const root: ModelBranch = {id: firstTimeline, ancestor: undefined, log: []};
  let clock = importLsn as number;
  const fill = async (): Promise<void> => {
    const timeline = tenant.timeline(firstTimeline);
    for (const change of fc.sample(arbitraryChange, {numRuns: 40, seed: clock})) {
      const at = lsn((clock += 8));
      root.log.push({lsn: at, change, world: applyToWorld(worldAt(root, tip(root)), change, at)});
      await applyToWriter(await timeline.writer(), change, at, () => timeline.waitForRoom());
    }
  };
  await fill();
  const child: ModelBranch = {id: 'c'.repeat(32), ancestor: {branch: root, lsn: tip(root)}, log: []};
  await tenant.createBranch(child.id, firstTimeline, tip(root));
  await tenant.archive(child.id, tip(root));
  for (const how of ['attached', 'woken'] as const) {
    if (how === 'attached') {
      for (const timeline of tenant.timelines()) timeline.stop();
      await tenant.detach();
      tenant = await Tenant.attach(testContext(store, limits), alwaysValid, tenantId, 2);
    } else {
      await tenant.archive(firstTimeline, tip(root));
      await tenant.wake(firstTimeline);
    }
    for (const record of root.log)
      if (record.lsn > tenant.timeline(firstTimeline).lastRecordLsn)
        await applyToWriter(await tenant.timeline(firstTimeline).writer(), record.change, record.lsn, async () => {});
    await fill();
    await collectEverything(tenant.timeline(firstTimeline));
    assert.ok(tenant.timeline(firstTimeline).info().gcCutoffLsn > child.ancestor!.lsn);
    assert.deepEqual([...tenant.timeline(firstTimeline).state.branchPoints], [[child.id, child.ancestor!.lsn]], how);
    await tenant.wake(child.id);
    await compare(tenant.timeline(child.id), child, child.ancestor!.lsn);
    await tenant.archive(child.id, child.ancestor!.lsn);
  }
  for (const timeline of tenant.timelines()) timeline.stop();
});

test('what is archived leaves nothing but a line in memory; many callers wake it once; branching waits for that', async () => {
  const store = new MemoryObjectStore();
  const tenant = await Tenant.attach(testContext(store, limits), alwaysValid, tenantId, 1);
  const gone: string[] = [];
  tenant.onGone = (timeline) => gone.push(timeline.timelineId);
  await createRoot(tenant);
  const child = 'c'.repeat(32);
  await tenant.createBranch(child, firstTimeline, undefined);
  const written = lsn(importLsn + 8);
  const change = {kind: 'write', rel: 0, block: 0, fill: 1} as const;
  await applyToWriter(await tenant.timeline(child).writer(), change, written, async () => {});
  await tenant.archive(child, written);
  // Its end is in the object store, not only at the safekeepers.
  assert.equal((await tenant.archivedIndex(child)).diskConsistentLsn, written);
  await tenant.archive(firstTimeline, importLsn);
  assert.deepEqual(gone, [child, firstTimeline]);
  assert.equal(tenant.timelines().length, 0);
  // What an interrupted step of compaction left there goes without waking it; what the index names stays.
  const prefix = timelinePrefix(tenantId, child);
  const before = [...store.objects.keys()].filter((key) => key.startsWith(prefix));
  const stray = `${prefix}delta-${'0'.repeat(16)}-${'1'.repeat(16)}-00000001-00000001`;
  await store.put(stray, Buffer.from('x'));
  const oldIndexes = before.filter((key) => key.includes('/index-')).length - 1;
  assert.equal(await sweepOrphans(testContext(store, limits), tenant), 1 + oldIndexes);
  assert.equal(store.objects.has(stray), false);
  assert.equal(await sweepOrphans(testContext(store, limits), tenant), 0);
  await assert.rejects(tenant.createBranch('d'.repeat(32), firstTimeline, undefined), code('unavailable'));
  await assert.rejects(tenant.deleteTimeline(firstTimeline), code('conflict'));
  const active: string[] = [];
  tenant.onActive = (timeline) => active.push(timeline.timelineId);
  const timelines = await Promise.all([tenant.wake(child), tenant.wake(firstTimeline), tenant.wake(child)]);
  assert.equal(timelines[0], timelines[2]);
  assert.equal(timelines[0]?.ancestor, timelines[1]);
  assert.deepEqual(active, [firstTimeline, child]);
  assert.deepEqual([...tenant.timeline(firstTimeline).state.branchPoints.keys()], [child]);
  await assert.rejects(tenant.wake('e'.repeat(32)), code('not-found'));
});

test('an attachment reads the indexes of what is awake only; marks of what was woken since mean nothing, and go', async (context) => {
  const store = new IndexReads();
  const open: Tenant[] = [];
  const attach = async (generation: number): Promise<Tenant> => {
    for (const timeline of open.at(-1)?.timelines() ?? []) timeline.stop();
    store.read.length = 0;
    const tenant = await Tenant.attach(testContext(store, limits), alwaysValid, tenantId, generation);
    open.push(tenant);
    return tenant;
  };
  context.after(() => open.forEach((tenant) => tenant.timelines().forEach((timeline) => timeline.stop())));
  let tenant = await attach(1);
  await createRoot(tenant);
  const child = (n: number): string => n.toString(16).padStart(32, '0');
  for (let n = 1; n <= 20; n++) {
    await tenant.createBranch(child(n), n <= 10 ? firstTimeline : child(n - 10), undefined);
  }
  for (let n = 20; n >= 1; n--) await tenant.archive(child(n), importLsn);
  const before = tenant.archivedTimelines();
  const held = [...tenant.timeline(firstTimeline).state.branchPoints];

  tenant = await attach(2);
  assert.deepEqual(store.read, [firstTimeline], 'twenty archived branches cost no read');
  assert.deepEqual(new Set(tenant.archivedTimelines()), new Set(before));
  assert.deepEqual(new Map(tenant.timeline(firstTimeline).state.branchPoints), new Map(held));

  // Neither does a pageserver that keeps itself ready read them.
  const secondary = new Secondary(testContext(store, limits), tenantId, false);
  const round = async (): Promise<string[]> => {
    store.read.length = 0;
    await secondary.round();
    assert.equal(secondary.timelines, 21);
    return store.read.toSorted();
  };
  assert.deepEqual(await round(), [firstTimeline]);
  assert.deepEqual(await round(), []);

  // Woken: its mark and its parent's stay behind.
  await tenant.wake(child(11));
  assert.deepEqual(await round(), [child(1), child(11)]);
  tenant = await attach(3);
  assert.deepEqual(store.read.sort(), [child(1), child(11), firstTimeline].sort());
  assert.deepEqual(tenant.timelines().length, 3);
  const marks = (): string[] => [...store.objects.keys()].filter((key) => key.includes('/archived-'));
  assert.equal(marks().length, 20);
  await sweepOrphans(testContext(store, limits), tenant);
  assert.equal(marks().length, 18);

  // The parent's index did not get as far as saying that it is awake: the child that needs it decides.
  await tenant.archive(child(11), importLsn);
  await tenant.archive(child(1), importLsn);
  tenant = await attach(4);
  const awake = [...store.objects.keys()].filter((key) => key.includes(`/${child(1)}/`));
  const asleep = new Map(awake.map((key) => [key, store.objects.get(key)!]));
  await tenant.wake(child(11));
  for (const key of store.objects.keys()) if (key.includes(`/${child(1)}/`)) store.objects.delete(key);
  for (const [key, bytes] of asleep) store.objects.set(key, bytes);
  tenant = await attach(5);
  assert.equal(tenant.has(child(1)), true);
  assert.equal(tenant.archivedTimeline(child(1)), undefined);

  // Without a mark the index tells.
  for (const key of marks()) store.objects.delete(key);
  tenant = await attach(6);
  assert.equal(tenant.archivedTimelines().length, 18);
  assert.equal(store.read.length, 21);
});
