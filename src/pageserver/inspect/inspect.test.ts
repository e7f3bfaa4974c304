import assert from 'node:assert/strict';
import {test} from 'node:test';
import {lsn} from '#postgres/lsn.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {alwaysValid} from '../generation-validator.ts';
import {createRoot, testContext, testIds, tagOf, applyToWriter} from '../timeline/model.testing.ts';
import {decodeIndex, encodeIndex, indexObjectKey, newestIndex, timelinePrefix} from '../timeline/index-object.ts';
import {Tenant} from '../timeline/tenant.ts';
import {layerPicture} from './layer-picture.ts';
import {scrubTenant} from './scrub.ts';
import {branchSizes, relationSizes} from './sizes.ts';
import {pageProblem} from './verify.ts';

const pause = async (): Promise<void> => {};

test('pages: new, whole, impossible', () => {
  const page = Buffer.alloc(8192);
  assert.equal(pageProblem(page), 'new');
  page.writeUInt16LE(28, 12);
  page.writeUInt16LE(8000, 14);
  page.writeUInt16LE(8192, 16);
  page.writeUInt16LE(8192 | 4, 18);
  assert.equal(pageProblem(page), undefined);
  page.writeUInt16LE(8100, 12);
  assert.match(pageProblem(page)!, /impossible header/);
  page.writeUInt16LE(28, 12);
  page.writeUInt16LE(8192 | 3, 18);
  assert.match(pageProblem(page)!, /version/);
});

test('scrub finds what is missing and what nobody names; sizes add up; the picture shows every layer', async () => {
  const store = new MemoryObjectStore();
  const {tenantId, firstTimeline} = testIds;
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  const timeline = await createRoot(tenant);
  const writer = await timeline.writer();
  for (let i = 0; i < 60; i++) {
    const change = {kind: 'write', rel: i % 2, block: i % 5, fill: 1 + i} as const;
    await applyToWriter(writer, change, lsn(0x2000 + i * 8), () => timeline.waitForRoom());
    if (i % 20 === 19) writer.freeze();
  }
  await timeline.checkpoint();

  const report = await scrubTenant({store, tenantId});
  assert.deepEqual(report.findings, []);
  assert.ok(report.layers >= 3);
  const sizes = branchSizes(timeline);
  assert.equal(sizes.storedBytes, report.bytes);
  const relations = await relationSizes(timeline, pause);
  const stored = relations.reduce((sum, {storedBytes}) => sum + storedBytes, 0);
  assert.ok(Math.abs(stored - sizes.storedBytes) <= relations.length, `${stored} of ${sizes.storedBytes}`);
  assert.ok(relations.some(({rel, versions}) => rel.relNode === tagOf(0, 0).relNode && versions >= 30));

  const layers = timeline.state.layers.descriptions();
  const {gcCutoffLsn, lastRecordLsn} = timeline.state;
  const held = [{lsn: lsn(0x2008), what: 'branch <x>'}];
  const svg = layerPicture({name: 'a & b', layers, gcCutoffLsn, lastRecordLsn, held});
  assert.equal([...svg.matchAll(/<title>/g)].length, layers.length);
  assert.ok(svg.includes('a &amp; b') && svg.includes('branch &lt;x&gt;') && !svg.includes('NaN'));

  const prefix = timelinePrefix(tenantId, firstTimeline);
  const gone = prefix + layers[0]!.name;
  // A damaged object is put back from what the local cache has of it.
  const whole = store.objects.get(gone)!;
  const rotten = Buffer.from(whole);
  rotten[100]! ^= 1;
  store.objects.set(gone, rotten);
  const repaired = await scrubTenant({store, tenantId, cached: async () => whole});
  assert.deepEqual(
    repaired.findings.map(({kind, repaired: mended}) => [kind, mended]),
    [['damaged', true]],
  );
  assert.deepEqual((await scrubTenant({store, tenantId})).findings, []);
  store.objects.delete(gone);
  const stray = `${prefix}delta-${'0'.repeat(16)}-${'1'.repeat(16)}-00000001-00000001`;
  await store.put(stray, Buffer.from('x'));
  const {findings} = await scrubTenant({store, tenantId});
  assert.deepEqual(findings.map(({kind, object}) => `${kind} ${object}`).sort(), [
    `dangling ${gone}`,
    `orphan ${stray}`,
  ]);
  timeline.stop();
});

/** Replaces its index before each answer to a read of an index, and drops the layers that the new one does without. */
class RestlessStore extends MemoryObjectStore {
  /** Reads of layers and indexes that find their object gone. */
  late = 0;
  replace = (): void => {};
  override async get(key: string): Promise<Buffer> {
    if (key !== this.#spared) this.replace();
    if (!this.objects.has(key)) this.late++;
    return super.get(key);
  }
  #spared: string | undefined;
  /** The first index that is read is there. */
  spare(key: string): void {
    this.#spared = key;
  }
}

test('scrub of a tenant whose layers and indexes are replaced all the time finds nothing missing', async () => {
  const store = new RestlessStore();
  const {tenantId, firstTimeline: timelineId} = testIds;
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  const timeline = await createRoot(tenant);
  const writer = await timeline.writer();
  for (let i = 0; i < 3; i++) {
    const change = {kind: 'write', rel: 0, block: i, fill: 1 + i} as const;
    await applyToWriter(writer, change, lsn(0x2000 + i * 8), () => timeline.waitForRoom());
    writer.freeze();
  }
  await timeline.checkpoint();
  timeline.stop();
  const keyOf = (at: {generation: number; sequence: number}): string =>
    indexObjectKey(tenantId, timelineId, at.generation, at.sequence);
  store.spare(keyOf(newestIndex([...store.objects.keys()])!));
  let replacements = 0;
  store.replace = () => {
    if (replacements++ === 4) store.replace = () => {};
    const at = newestIndex([...store.objects.keys()])!;
    const index = decodeIndex(store.objects.get(keyOf(at))!, {tenantId, timelineId, ...at});
    const next = {...index, sequence: at.sequence + 1, layers: index.layers.slice(1)};
    store.objects.set(keyOf(next), encodeIndex(next));
    for (const key of [keyOf(at), timelinePrefix(tenantId, timelineId) + index.layers[0]?.name])
      store.objects.delete(key);
  };
  assert.deepEqual((await scrubTenant({store, tenantId})).findings, []);
  assert.ok(store.late >= 3, `${store.late} reads came too late`);
});
