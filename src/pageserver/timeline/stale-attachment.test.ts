/**
 * A pageserver is stopped in the middle of its upkeep, replaced, and wakes: wherever it was, what it goes on to send deletes nothing
 * that is still needed. The real classes, stopped before each of their requests in turn.
 */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import fc from 'fast-check';
import {FailingObjectStore} from '#objectstore/failing-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import type {GenerationValidator} from '../generation-validator.ts';
import {HotBlocksPublisher, parseHotBlocksKey} from '../secondary/hot-blocks.ts';
import {decodeIndex, indexObjectKey, layerName, newestIndex, timelinePrefix} from './index-object.ts';
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
import {sweepOrphans} from './orphans.ts';
import type {PageserverContext} from './state.ts';
import {Tenant} from './tenant.ts';

const {tenantId, firstTimeline} = testIds;
const childId = 'b'.repeat(32);
const importedId = 'c'.repeat(32);
const imported = {spcNode: 1663, dbNode: 100, relNode: 2000, fork: 0} as const;
const importedBlocks = 12;
const changes = fc.sample(arbitraryChange, {seed: 81, numRuns: 200});

/** The process of one pageserver: from its nth request on it stands still, until it is woken. */
class Process {
  /** Those that change or decide something, as they were sent. */
  readonly requests: string[] = [];
  stopsBefore = Infinity;
  readonly stopped = Promise.withResolvers<void>();
  readonly context: PageserverContext;
  readonly validator: GenerationValidator;
  readonly publisher: HotBlocksPublisher;
  /** Objects that it deleted. */
  readonly deleted: string[] = [];
  #tenant: Tenant | undefined;
  #isLetGo = false;
  readonly #wake = Promise.withResolvers<void>();
  #isStopped = false;
  #isAwake = false;

  constructor(store: ObjectStore, validator: GenerationValidator) {
    const inner = new FailingObjectStore(store);
    const held: ObjectStore = {
      put: (...args) => this.#send('put', () => inner.put(...args)),
      get: (...args) => this.#send('read', () => inner.get(...args)),
      getRange: (...args) => this.#send('read', () => inner.getRange(...args)),
      head: (...args) => this.#send('read', () => inner.head(...args)),
      list: (...args) => this.#send('list', () => inner.list(...args)),
      delete: (keys) =>
        this.#send('delete', () => {
          this.deleted.push(...keys);
          return inner.delete(keys);
        }),
    };
    const compaction = {
      l0Threshold: 2,
      l0BatchMax: 3,
      runsPerLevel: 2,
      targetBytes: 2000,
      imageDepth: 2,
      imageVisits: 0,
      garbageRatio: 0.001,
      readAheadBytes: 1,
      l0SlowAt: 1000,
      imageBytesPerIngested: 100,
    };
    // A cache for one block: what is not in the store is missed.
    this.context = testContext(held, {layerBytes: 40_000, leaseMsMax: 0, compaction}, 10_000);
    this.validator = {
      validate: async (...args) => {
        const isLatest = await this.#send('validate', () => validator.validate(...args));
        if (!isLatest) void this.#letGo();
        return isLatest;
      },
    };
    this.publisher = new HotBlocksPublisher(this.context);
  }

  async attach(generation: number): Promise<this> {
    this.#tenant = await Tenant.attach(this.context, this.validator, tenantId, generation);
    return this;
  }

  get tenant(): Tenant {
    assert.ok(this.#tenant !== undefined && !this.#isLetGo, 'it does not hold the tenant any more');
    return this.#tenant;
  }

  /** As Pageserver.isLatest does it. */
  async #letGo(): Promise<void> {
    this.#isLetGo = true;
    await this.#tenant?.detach();
  }

  wake(): void {
    this.#isAwake = true;
    this.#wake.resolve();
  }

  stop(): void {
    for (const timeline of this.#tenant?.timelines() ?? []) timeline.stop();
  }

  async #send<T>(what: string, request: () => Promise<T>): Promise<T> {
    if (what !== 'read') this.requests.push(what);
    if (this.requests.length > this.stopsBefore && !this.#isAwake) {
      this.#isStopped = true;
      this.stopped.resolve();
    }
    if (this.#isStopped) await this.#wake.promise;
    return request();
  }
}

class Story {
  readonly store = new MemoryObjectStore();
  readonly root: ModelBranch = {id: firstTimeline, ancestor: undefined, log: []};
  child!: ModelBranch;
  readonly imports: boolean;
  generation = 1;
  #lsn = importLsn as number;

  constructor(imports: boolean) {
    this.imports = imports;
  }

  /** WAL as the safekeepers have it: whoever is attached takes it in from where it is. */
  grow(branch: ModelBranch, records: number): void {
    for (let i = 0; i < records; i++) {
      const change = changes[(this.#lsn / 8) % changes.length]!;
      const at = lsn((this.#lsn += 8));
      branch.log.push({lsn: at, change, world: applyToWorld(worldAt(branch, tip(branch)), change, at)});
    }
  }

  async ingest({tenant}: Process, branch: ModelBranch): Promise<void> {
    const timeline = tenant.timeline(branch.id);
    const writer = await timeline.writer();
    for (const record of branch.log.filter((r) => r.lsn > timeline.lastRecordLsn)) {
      if (record.lsn % 16 === 0) writer.commitTime(1, record.lsn);
      await applyToWriter(writer, record.change, record.lsn, () => timeline.waitForRoom());
      if (record.lsn % 64 === 0) writer.freeze();
    }
  }

  /** What a pageserver deletes in, and what goes before. Each part fails by itself, as in production. */
  async upkeep(process: Process): Promise<void> {
    const attempt = (work: (tenant: Tenant) => Promise<unknown>): Promise<unknown> =>
      Promise.resolve()
        .then(() => work(process.tenant))
        .catch(() => {});
    for (const branch of [this.root, this.child])
      await attempt(async (tenant) => {
        this.grow(branch, 12);
        await this.ingest(process, branch);
        const timeline = tenant.timeline(branch.id);
        await timeline.checkpoint();
        for (let i = 0; i < 20 && (await timeline.compactionStep()); i++);
        await timeline.collectGarbage();
        await timeline.checkpoint();
      });
    for (let i = 0; i < 2; i++) await attempt((tenant) => sweepOrphans(process.context, tenant));
    await attempt((tenant) => process.publisher.publish(tenant));
    await attempt((tenant) => tenant.archive(childId, tenant.timeline(childId).lastRecordLsn));
    await attempt((tenant) => sweepOrphans(process.context, tenant));
    await attempt((tenant) => tenant.wake(childId));
    if (this.imports) await attempt(importAgain);
  }

  /** Generation 1 until now: layers of several levels, a branch, an import that has failed, and what a crash has left. */
  async begin(process: Process): Promise<void> {
    const {tenant} = process;
    const timeline = await createRoot(tenant);
    await timeline.setRetention({windowSeconds: 0, windowBytes: 80});
    this.grow(this.root, 20);
    await this.ingest(process, this.root);
    this.child = {id: childId, ancestor: {branch: this.root, lsn: tip(this.root)}, log: []};
    await tenant.createBranch(childId, firstTimeline, this.child.ancestor!.lsn);
    this.grow(this.root, 10);
    await this.ingest(process, this.root);
    await timeline.checkpoint();
    if (this.imports) await assert.rejects(importInto(tenant, true), /no more/);
    await process.publisher.publish(tenant);
    const stray = layerName('delta', lsn(8), lsn(16), 77, 1);
    await this.store.put(timelinePrefix(tenantId, firstTimeline) + stray, Buffer.from('x'));
  }

  /** Nothing that the next attachment would load is missing, and it reads what the model says. */
  async check(): Promise<void> {
    const keys = [...this.store.objects.keys()];
    const timelines = [firstTimeline, childId, ...(this.imports ? [importedId] : [])];
    for (const timelineId of timelines) {
      const prefix = timelinePrefix(tenantId, timelineId);
      const at = newestIndex(keys.filter((key) => key.startsWith(prefix)));
      assert.ok(at !== undefined, `an index of timeline ${timelineId} is there`);
      assert.ok(timelineId === importedId || at.generation === this.generation, 'who holds it now has written');
      const key = indexObjectKey(tenantId, timelineId, at.generation, at.sequence);
      const {layers} = decodeIndex(this.store.objects.get(key)!, {tenantId, timelineId, ...at});
      for (const {name} of layers) assert.ok(this.store.objects.has(prefix + name), `${prefix}${name} is there`);
    }
    const next = await this.takeOver();
    for (const branch of [this.root, this.child]) {
      const timeline = next.tenant.timeline(branch.id);
      await this.ingest(next, branch);
      for (const at of [tip(branch), Math.max(timeline.state.gcCutoffLsn, tip(branch) - 40) as Lsn])
        await compare(timeline, branch, at);
    }
    if (this.imports) {
      const pages = await next.tenant.timeline(importedId).getRelPages(imported, 0, importedBlocks, importLsn);
      pages.forEach((page, block) => assert.ok(page.equals(Buffer.alloc(8192, block + 1)), `imported block ${block}`));
    }
    next.stop();
  }

  /** The control plane attaches the tenant elsewhere. */
  takeOver(): Promise<Process> {
    const validator = {validate: async (_: string, generation: number) => generation === this.generation};
    this.generation++;
    return new Process(this.store, validator).attach(this.generation);
  }
}

/** As the management API does it for the control plane, which asks until it is done. */
async function importAgain(tenant: Tenant): Promise<void> {
  const {lifecycle} = (await tenant.createEmpty(importedId, 15)).state;
  if (lifecycle === 'active') return;
  if (lifecycle !== 'creating') await tenant.recreateEmpty(importedId);
  await importInto(tenant, false);
}

async function importInto(tenant: Tenant, fails: boolean): Promise<void> {
  const timeline = await tenant.createEmpty(importedId, 15);
  await timeline.import(async (writer) => {
    const {spcNode, dbNode, relNode, fork} = imported;
    writer.createDatabase(spcNode, dbNode, true, importLsn);
    writer.createRelation(spcNode, dbNode, relNode, fork, importLsn);
    writer.setRelationSize(spcNode, dbNode, relNode, fork, importedBlocks, importLsn);
    for (let block = 0; block < importedBlocks; block++) {
      writer.relationPageImage(spcNode, dbNode, relNode, fork, block, importLsn, Buffer.alloc(8192, block + 1));
      if (writer.importStep()) await timeline.waitForRoom();
      if (fails && block === 8) {
        await timeline.waitForRoom();
        throw new Error('the compute has no more');
      }
    }
    return {lsn: importLsn, systemId: '7'};
  });
}

/**
 * Stopped before its nth request of the upkeep, if there is one, and woken when its successor is there, or (`isLate`) has been at work
 * for a while; `obeys`: it is told that it is not the latest. Answers what it sent, from the nth on.
 */
async function tell(n: number, {isLate = true, obeys = true, imports = true} = {}): Promise<string[]> {
  const story = new Story(imports);
  const validator = {validate: async (_: string, generation: number) => generation === story.generation || !obeys};
  const stale = new Process(story.store, validator);
  let now: Process | undefined;
  try {
    await stale.attach(1);
    await story.begin(stale);
    stale.requests.length = 0;
    stale.stopsBefore = n;
    const work = story.upkeep(stale);
    await Promise.race([stale.stopped.promise, work]);
    now = await story.takeOver();
    if (isLate) await story.upkeep(now);
    const hints = [...story.store.objects.keys()].filter((key) => parseHotBlocksKey(key)?.generation === 2);
    stale.wake();
    await work;
    await story.upkeep(stale);
    assert.equal(hints.length, isLate ? 1 : 0);
    for (const key of hints) assert.ok(story.store.objects.has(key), 'the hint of who holds it now is there');
    await story.upkeep(now);
    await story.check();
    return stale.requests.slice(n);
  } finally {
    stale.wake();
    stale.stop();
    now?.stop();
  }
}

/** One in so many requests, others each night. */
const stride = 4;

test('wherever a pageserver was stopped and replaced, it deletes nothing that is needed when it wakes', async () => {
  const sent = new Set<string>();
  let n = Number(process.env['PAGODA_PROPERTY_SEED'] ?? 0) % stride;
  for (let isLate = true; ; n += stride, isLate = !isLate) {
    const rest = await tell(n, {isLate});
    if (rest.length === 0) break;
    sent.add(rest[0]!);
  }
  assert.ok(n > 80, `${n} requests`);
  assert.deepEqual([...sent].sort(), ['delete', 'list', 'put', 'validate'], 'stopped before each kind');
});

test('the check can fail: one that is never told that it was replaced does harm', async () => {
  for (const n of [10, 60, 110])
    await assert.rejects(tell(n, {isLate: false, obeys: false, imports: false}), /delta-[^ ]* is there/);
});
