/** For tests: a naive model of a timeline, and random histories that drive the model and the real thing alike. */
import fc from 'fast-check';
import {assert} from '#runtime/assert.ts';
import {systemRandom} from '#runtime/random.ts';
import {systemClock} from '#runtime/clock.ts';
import {silentLog} from '#runtime/log.ts';
import {encodePackedPages, unpackPages} from '#wire/packed-pages.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize} from '#postgres/relation.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {PagePatchBuilder} from '../ingest/page-patch.ts';
import {BlockCache} from '../layers/block-cache.ts';
import {RunMemory} from '../layers/layer-reader.ts';
import {PageserverMetrics} from '../metrics.ts';
import {MemoryBudget} from './memory-budget.ts';
import {type LimitChanges, type PageserverContext, limitsWith} from './state.ts';
import type {Tenant} from './tenant.ts';
import type {Timeline} from './timeline.ts';
import type {TimelineWriter} from './write-path.ts';

/** Of one answer after the other, as the page service has it. */
const runMemory = new RunMemory();

export function testContext(store: ObjectStore, limits: LimitChanges = {}, cacheBytes = 1 << 20): PageserverContext {
  return {
    clock: systemClock,
    random: systemRandom,
    store,
    cache: new BlockCache(cacheBytes),
    log: silentLog,
    metrics: new PageserverMetrics(),
    limits: limitsWith({
      layerBytes: 1 << 20,
      layerAgeMs: 3_600_000,
      frozenLayersMax: 3,
      relationSizesMax: 8,
      ...limits,
    }),
    memory: new MemoryBudget(64 << 20),
  };
}

/** One WAL record's worth of changes. */
export type Change =
  | {readonly kind: 'write'; readonly rel: number; readonly block: number; readonly fill: number}
  | {readonly kind: 'patch'; readonly rel: number; readonly block: number; readonly fill: number}
  | {readonly kind: 'resize'; readonly rel: number; readonly blocks: number}
  | {readonly kind: 'drop'; readonly rel: number}
  | {readonly kind: 'copy-database'; readonly from: number; readonly to: number}
  | {readonly kind: 'drop-database'; readonly database: number}
  | {readonly kind: 'slru'; readonly page: number; readonly fill: number; readonly how: 'image' | 'patch' | 'zero'}
  | {readonly kind: 'slru-drop'; readonly start: number; readonly count: number}
  | {readonly kind: 'commit'; readonly time: number};

const relations = 5;
const rel = fc.integer({min: 0, max: relations - 1});
const block = fc.integer({min: 0, max: 9});
const fill = fc.integer({min: 1, max: 255});

export const arbitraryChange: fc.Arbitrary<Change> = fc.oneof(
  {weight: 8, arbitrary: fc.record({kind: fc.constant('write' as const), rel, block, fill})},
  {weight: 8, arbitrary: fc.record({kind: fc.constant('patch' as const), rel, block, fill})},
  {weight: 3, arbitrary: fc.record({kind: fc.constant('resize' as const), rel, blocks: block})},
  {weight: 1, arbitrary: fc.record({kind: fc.constant('drop' as const), rel})},
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('copy-database' as const),
      from: fc.integer({min: 0, max: 1}),
      to: fc.integer({min: 0, max: 1}),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({kind: fc.constant('drop-database' as const), database: fc.integer({min: 0, max: 1})}),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('slru' as const),
      page: fc.integer({min: 0, max: 5}),
      fill,
      how: fc.constantFrom('image' as const, 'patch' as const, 'zero' as const),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('slru-drop' as const),
      start: fc.integer({min: 0, max: 5}),
      count: fc.integer({min: 1, max: 3}),
    }),
  },
  {weight: 3, arbitrary: fc.record({kind: fc.constant('commit' as const), time: fc.integer({min: 0, max: 50})})},
);

/** Relations 0–2 are in database 0, 3–4 in database 1 (by number of the relation; a copy keeps the number). */
export function tagOf(database: number, relation: number): RelTag {
  return {spcNode: 1663, dbNode: 100 + database, relNode: 1000 + relation, fork: relation % 2 === 0 ? 0 : 2};
}
const homeOf = (relation: number): number => (relation < 3 ? 0 : 1);

/** Everything that can be read, as plain data. */
export interface World {
  /** `database/relation` → pages; a page is its list of (offset, byte) writes over zeros, here simply its bytes. */
  readonly relations: Map<string, Buffer[]>;
  readonly slru: Map<number, Buffer>;
  readonly databases: Set<number>;
  readonly commits: {readonly lsn: Lsn; readonly time: number}[];
}

export function emptyWorld(): World {
  return {relations: new Map(), slru: new Map(), databases: new Set([0, 1]), commits: []};
}

export function cloneWorld(world: World): World {
  return {
    relations: new Map([...world.relations].map(([k, pages]) => [k, [...pages]])),
    slru: new Map(world.slru),
    databases: new Set(world.databases),
    commits: [...world.commits],
  };
}

const zero = Buffer.alloc(8192);
const patchOffset = (value: number): number => (value * 31) % 8000;

/** Applies a change to a copy of the world. Pages are never changed in place. */
export function applyToWorld(world: World, change: Change, at: Lsn): World {
  const next = cloneWorld(world);
  switch (change.kind) {
    case 'write':
    case 'patch': {
      const database = homeOf(change.rel);
      if (!next.databases.has(database)) return next;
      const id = `${database}/${change.rel}`;
      const pages = next.relations.get(id) ?? [];
      while (pages.length <= change.block) pages.push(zero);
      if (change.kind === 'write') pages[change.block] = Buffer.alloc(8192, change.fill);
      else {
        const page = Buffer.from(pages[change.block]!);
        page[patchOffset(change.fill)] = change.fill;
        pages[change.block] = page;
      }
      next.relations.set(id, pages);
      return next;
    }
    case 'resize': {
      const database = homeOf(change.rel);
      if (!next.databases.has(database)) return next;
      const id = `${database}/${change.rel}`;
      const pages = (next.relations.get(id) ?? []).slice(0, change.blocks);
      while (pages.length < change.blocks) pages.push(zero);
      next.relations.set(id, pages);
      return next;
    }
    case 'drop':
      next.relations.delete(`${homeOf(change.rel)}/${change.rel}`);
      return next;
    case 'copy-database': {
      if (change.from === change.to || !next.databases.has(change.from)) return next;
      for (const id of next.relations.keys()) if (id.startsWith(`${change.to}/`)) next.relations.delete(id);
      for (const [id, pages] of Array.from(next.relations))
        if (id.startsWith(`${change.from}/`)) next.relations.set(`${change.to}/${id.slice(2)}`, [...pages]);
      next.databases.add(change.to);
      return next;
    }
    case 'drop-database':
      for (const id of next.relations.keys()) if (id.startsWith(`${change.database}/`)) next.relations.delete(id);
      next.databases.delete(change.database);
      return next;
    case 'slru': {
      const before = next.slru.get(change.page) ?? zero;
      const page =
        change.how === 'patch' ? Buffer.from(before) : Buffer.alloc(8192, change.how === 'zero' ? 0 : change.fill);
      if (change.how === 'patch') page[patchOffset(change.fill)] = change.fill;
      next.slru.set(change.page, page);
      return next;
    }
    case 'slru-drop':
      for (let page = change.start; page < change.start + change.count; page++) next.slru.delete(page);
      return next;
    case 'commit':
      next.commits.push({lsn: at, time: change.time});
      return next;
  }
}

/** Gives the same change to a writer, as the interpreter and its driver would. */
export async function applyToWriter(
  writer: TimelineWriter,
  change: Change,
  at: Lsn,
  waitForRoom: () => Promise<void>,
): Promise<void> {
  const builder = new PagePatchBuilder();
  if (change.kind === 'write' || change.kind === 'patch' || change.kind === 'resize') {
    const database = homeOf(change.rel);
    if (writer.databaseExists(1663, 100 + database)) {
      const {spcNode, dbNode, relNode, fork} = tagOf(database, change.rel);
      let blocks = writer.relationSize(spcNode, dbNode, relNode, fork);
      if (blocks === -2) {
        await writer.loadRelations([{spcNode, dbNode, relNode, fork}]);
        blocks = writer.relationSize(spcNode, dbNode, relNode, fork);
      }
      if (change.kind === 'resize') {
        if (blocks === -1) writer.createRelation(spcNode, dbNode, relNode, fork, at);
        writer.setRelationSize(spcNode, dbNode, relNode, fork, change.blocks, at);
      } else {
        if (change.block >= blocks) {
          if (blocks === -1) writer.createRelation(spcNode, dbNode, relNode, fork, at);
          writer.setRelationSize(spcNode, dbNode, relNode, fork, change.block + 1, at);
        }
        if (change.kind === 'write')
          writer.relationPageImage(spcNode, dbNode, relNode, fork, change.block, at, Buffer.alloc(8192, change.fill));
        else {
          builder.set(patchOffset(change.fill), Buffer.from([change.fill]));
          writer.relationPagePatch(spcNode, dbNode, relNode, fork, change.block, at, builder.take());
        }
      }
    }
  } else if (change.kind === 'drop') {
    const {spcNode, dbNode, relNode} = tagOf(homeOf(change.rel), change.rel);
    writer.dropRelation(spcNode, dbNode, relNode, at);
  } else if (change.kind === 'copy-database') {
    if (change.from !== change.to && writer.databaseExists(1663, 100 + change.from)) {
      writer.copyDatabase(1663, 100 + change.from, 1663, 100 + change.to);
    }
  } else if (change.kind === 'drop-database') {
    writer.dropDatabase(1663, 100 + change.database);
  } else if (change.kind === 'slru') {
    if (change.how === 'image') writer.slruPageImage(0, change.page, at, Buffer.alloc(8192, change.fill));
    else if (change.how === 'zero') writer.slruPageZero(0, change.page, at);
    else {
      builder.set(patchOffset(change.fill), Buffer.from([change.fill]));
      writer.slruPagePatch(0, change.page, at, builder.take(), writer.slruPageExists(0, change.page));
    }
  } else if (change.kind === 'slru-drop') {
    writer.slruDropPages(0, change.start, change.start + change.count, at);
  } else {
    writer.commitTime(change.time, at);
  }
  if (writer.hasUnfinishedWork) await writer.finishRecord(at, waitForRoom);
  writer.endRecord(at);
}

export const testIds = {tenantId: '0123456789abcdef0123456789abcdef', firstTimeline: 'a'.repeat(32)};
export const importLsn: Lsn = lsn(0x1000);

/** A branch as the model has it: its own changes, and where it comes from. The safekeepers' part: it can be ingested again. */
export interface ModelBranch {
  readonly id: string;
  readonly ancestor: {readonly branch: ModelBranch; readonly lsn: Lsn} | undefined;
  readonly log: {readonly lsn: Lsn; readonly change: Change; readonly world: World}[];
}

export function worldAt(branch: ModelBranch, at: Lsn): World {
  const record = branch.log.findLast((r) => r.lsn <= at);
  if (record !== undefined) return record.world;
  return branch.ancestor === undefined
    ? emptyWorld()
    : worldAt(branch.ancestor.branch, at < branch.ancestor.lsn ? at : branch.ancestor.lsn);
}
export const tip = (branch: ModelBranch): Lsn => branch.log.at(-1)?.lsn ?? branch.ancestor?.lsn ?? importLsn;

/** Compares everything that can be read at `at`. */
export async function compare(timeline: Timeline, branch: ModelBranch, at: Lsn): Promise<void> {
  const world = worldAt(branch, at);
  const same = (real: unknown, expected: unknown, what: string): void =>
    assert(
      JSON.stringify(real) === JSON.stringify(expected),
      `${what} at ${at}: ${JSON.stringify(real)}, expected ${JSON.stringify(expected)}`,
    );
  for (let database = 0; database < 2; database++) {
    const expected = [...world.relations]
      .filter(([id]) => id.startsWith(`${database}/`))
      .map(([id, pages]) => [tagOf(database, Number(id.slice(2))).relNode, pages.length] as const)
      .sort((x, y) => x[0] - y[0]);
    const listed = await timeline.listRelations(1663, 100 + database, at);
    same(
      listed.map((e) => [e.rel.relNode, e.blocks]),
      expected,
      `relations of database ${database}`,
    );
    for (let relation = 0; relation < 5; relation++) {
      const tag = tagOf(database, relation);
      const pages = world.relations.get(`${database}/${relation}`);
      same(await timeline.relSize(tag, at), pages?.length, `size of ${database}/${relation}`);
      if (pages === undefined || pages.length === 0) {
        const code = await timeline.getRelPages(tag, 0, 1, at).catch((error: {code?: unknown}) => error.code);
        same(code, pages === undefined ? 'not-found' : 'beyond-end', `pages of ${database}/${relation}`);
        continue;
      }
      const real = await timeline.getRelPages(tag, 0, 64, at);
      same(real.length, pages.length, `pages of ${database}/${relation}`);
      for (let b = 0; b < pages.length; b++)
        assert(real[b]!.equals(pages[b]!), `database ${database} relation ${relation} block ${b} at ${at}`);
      const one = Math.floor(pages.length / 2);
      assert((await timeline.getRelPages(tag, one, 1, at))[0]!.equals(pages[one]!), `block ${one} alone at ${at}`);
      const into = Buffer.alloc(64 * blockSize, 0xaa);
      runMemory.reset();
      const segments = await timeline.getPackedRelPagesNow(tag, one, 64, at, into, runMemory);
      const [table, ...data] = encodePackedPages(segments);
      const packed = unpackPages(Buffer.concat([table!, ...data]), pages.length - one);
      assert(packed.equals(Buffer.concat(pages.slice(one))), `packed from block ${one} of ${relation} at ${at}`);
    }
  }
  const slru = [...world.slru.keys()].sort((x, y) => x - y);
  same(await timeline.slruPages(0, at), slru, 'SLRU pages');
  const slruPages = await timeline.getSlruPages(0, slru, at);
  slru.forEach((page, i) => assert(slruPages[i]!.equals(world.slru.get(page)!), `SLRU page ${page} at ${at}`));
  same(
    (await timeline.listDatabases(at)).map((d) => d.dbNode - 100),
    [...world.databases].sort((x, y) => x - y),
    'databases',
  );
}

export async function createRoot(tenant: Tenant): Promise<Timeline> {
  const timeline = await tenant.createEmpty(testIds.firstTimeline, 15);
  await timeline.import(async (writer) => {
    for (const database of emptyWorld().databases) writer.createDatabase(1663, 100 + database, true, importLsn);
    return {lsn: importLsn, systemId: '7'};
  });
  return timeline;
}
