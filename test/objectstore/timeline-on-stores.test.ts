/**
 * The pageserver's timeline on real stores: one random history against the naive model, with freezes, checkpoints, a
 * branch and restarts, on a folder, on Ceph RGW, and on Ceph RGW behind faults with a local cache far too small.
 */
import assert from 'node:assert/strict';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import fc from 'fast-check';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import {SeededRandom, systemRandom} from '#runtime/random.ts';
import {CachingObjectStore, chunkBytes} from '#objectstore/caching-object-store.ts';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {openObjectStore} from '#objectstore/open.ts';
import {RetryingObjectStore} from '#objectstore/retrying-object-store.ts';
import {S3ObjectStore} from '#objectstore/s3-object-store.ts';
import {alwaysValid} from '#pageserver/generation-validator.ts';
import {scrubTenant} from '#pageserver/inspect/scrub.ts';
import {
  type Change,
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
} from '#pageserver/timeline/model.testing.ts';
import {HotBlocksPublisher} from '#pageserver/secondary/hot-blocks.ts';
import {Secondary} from '#pageserver/secondary/secondary.ts';
import {Tenant} from '#pageserver/timeline/tenant.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {FaultProxy, faults} from './fault-proxy.ts';
import {Rgw} from './rgw.ts';

const dir = mkdtempSync(join(tmpdir(), 'pagoda-timeline-'));
let rgw: Rgw;
let proxy: FaultProxy;
before(async () => {
  rgw = await Rgw.start();
  proxy = await FaultProxy.start(rgw.endpoint);
});
after(async () => {
  await proxy?.stop();
  await rgw?.stop();
  rmSync(dir, {recursive: true, force: true});
});

const deps = {clock: systemClock, random: systemRandom, disk: systemDisk, log: silentLog};
const stores: [string, () => Promise<ObjectStore>][] = [
  [
    'folder',
    async () =>
      new FolderObjectStore({root: join(dir, 'folder'), disk: systemDisk, random: systemRandom, nowMs: Date.now()}),
  ],
  ['s3', async () => openObjectStore(await rgw.bucket(), deps)],
  [
    's3 behind faults, with a local cache',
    async () => {
      proxy.slowMs = 20;
      proxy.random(
        5,
        5,
        faults.filter((fault) => fault !== 'hang'),
      );
      const bare = new S3ObjectStore(await rgw.bucket(proxy.endpoint), systemClock);
      const store = new RetryingObjectStore(bare, {
        clock: systemClock,
        random: new SeededRandom(2),
        triesMax: 12,
        firstDelayMs: 2,
      });
      const directory = join(dir, 'cache');
      return new CachingObjectStore(store, {disk: systemDisk, directory, bytesMax: 4 * chunkBytes, log: silentLog});
    },
  ],
];

for (const [name, make] of stores)
  test(`${name}: a random history reads like the model, across restarts`, async () => {
    const store = await make();
    const changes = fc.sample(arbitraryChange, {seed: 77, numRuns: 400});
    const random = new SeededRandom(78);
    let generation = 1;
    const context = () => testContext(store, {layerBytes: 60_000}, 50_000);
    let tenant = await Tenant.attach(context(), alwaysValid, testIds.tenantId, generation);
    await createRoot(tenant);
    const branches: ModelBranch[] = [{id: testIds.firstTimeline, ancestor: undefined, log: []}];
    let clock = importLsn as number;
    const ingest = async (branch: ModelBranch, at: Lsn, change: Change): Promise<void> => {
      const timeline = tenant.timeline(branch.id);
      await applyToWriter(await timeline.writer(), change, at, () => timeline.waitForRoom());
      await timeline.waitForRoom();
    };
    const compareSome = async (count: number): Promise<void> => {
      for (let i = 0; i < count; i++) {
        const branch = branches[random.uint32() % branches.length]!;
        const low = branch.ancestor?.lsn ?? importLsn;
        const at = lsn(low + (random.uint32() % (tip(branch) - low + 1)));
        await compare(tenant.timeline(branch.id), branch, at);
      }
    };
    for (const [i, change] of changes.entries()) {
      const branch = branches[i % branches.length]!;
      const at = lsn((clock += 8));
      branch.log.push({lsn: at, change, world: applyToWorld(worldAt(branch, tip(branch)), change, at)});
      await ingest(branch, at, change);
      if (i % 25 === 24) (await tenant.timeline(branch.id).writer()).freeze();
      if (i % 60 === 59) await tenant.timeline(branch.id).checkpoint();
      if (i === 150) {
        await tenant.createBranch('b'.repeat(32), testIds.firstTimeline, tip(branches[0]!));
        branches.push({id: 'b'.repeat(32), ancestor: {branch: branches[0]!, lsn: tip(branches[0]!)}, log: []});
      }
      if (i % 130 === 129) {
        for (const timeline of tenant.timelines()) timeline.stop();
        tenant = await Tenant.attach(context(), alwaysValid, testIds.tenantId, ++generation);
        for (const each of branches) {
          const from = tenant.timeline(each.id).lastRecordLsn;
          for (const record of each.log) if (record.lsn > from) await ingest(each, record.lsn, record.change);
        }
        await compareSome(8);
      }
    }
    for (const branch of branches) await tenant.timeline(branch.id).checkpoint();
    await compareSome(25);
    for (const timeline of tenant.timelines()) timeline.stop();
    proxy.decide = () => undefined;
    const {findings, layers} = await scrubTenant({store, tenantId: testIds.tenantId});
    assert.ok(layers > 5);
    assert.deepEqual(
      findings.filter(({kind}) => kind !== 'orphan'),
      [],
    );
    if (store instanceof CachingObjectStore) assert.ok(store.counts.hits > 0 && store.counts.misses > 0);
    assert.ok(proxy.requests === 0 || proxy.done.size > 3);
  });

test('s3: who takes over reads what was hot from its local disk', async () => {
  const bucket = await rgw.bucket();
  const cached = (name: string): CachingObjectStore =>
    new CachingObjectStore(openObjectStore(bucket, deps), {
      disk: systemDisk,
      directory: join(dir, name),
      bytesMax: 64 * chunkBytes,
      log: silentLog,
    });
  const [here, there] = [cached('here'), cached('there')];
  const first = testContext(here, {layerBytes: 60_000});
  const tenant = await Tenant.attach(first, alwaysValid, testIds.tenantId, 1);
  const timeline = await createRoot(tenant);
  const branch: ModelBranch = {id: testIds.firstTimeline, ancestor: undefined, log: []};
  for (const [i, change] of fc.sample(arbitraryChange, {seed: 79, numRuns: 120}).entries()) {
    const at = lsn(importLsn + 8 * (i + 1));
    branch.log.push({lsn: at, change, world: applyToWorld(worldAt(branch, tip(branch)), change, at)});
    await applyToWriter(await timeline.writer(), change, at, () => timeline.waitForRoom());
  }
  await timeline.checkpoint();
  const at = tip(branch);
  await compare(timeline, branch, at);
  await new HotBlocksPublisher(first).publish(tenant);

  const second = testContext(there, {layerBytes: 60_000});
  const secondary = new Secondary(second, testIds.tenantId, true);
  await secondary.round();
  assert.ok(secondary.isReady && secondary.fetchedBytes > 0, `${secondary.fetchedBytes} bytes fetched`);
  const {fetchedBytes} = secondary;
  await secondary.round();
  assert.equal(secondary.fetchedBytes, fetchedBytes, 'what is there is not fetched again');
  timeline.stop();
  const taken = await Tenant.attach(second, alwaysValid, testIds.tenantId, 2);
  const {hits, misses} = there.counts;
  await compare(taken.timeline(branch.id), branch, at);
  assert.ok(there.counts.hits > hits);
  assert.equal(there.counts.misses, misses, 'no read went to the object store');
  for (const each of taken.timelines()) each.stop();
});
