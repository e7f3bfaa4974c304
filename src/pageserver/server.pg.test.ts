/**
 * The pageserver process against a stock server's WAL: import over HTTP, stream from (fake) safekeepers that break, tiny
 * layers and caches, restarts with nothing but the object store. Every page at several LSNs must equal what plain
 * interpretation and redo in memory give (test/memory-timeline.ts, itself compared with stock recovery by ingest.pg.test.ts).
 */
import {createHash} from 'node:crypto';
import {after} from 'node:test';
import assert from 'node:assert/strict';
import {mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {MemoryTimeline} from '../../test/memory-timeline.ts';
import {type TestStore, onTestStores} from '../../test/objectstore/stores.ts';
import {PostgresCluster} from '../../test/postgres-cluster.ts';
import type {ObjectStoreConfig} from '#objectstore/open.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import {type Lsn, formatLsn, lsn, parseLsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import {PagesClient} from '#wire/pages.ts';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {endOfCheckpointRecord, importDataDirectory} from '#pageserver/ingest/import.ts';
import {Interpreter} from '#pageserver/ingest/interpret.ts';
import type {PageserverConfig} from '#pageserver/config.ts';
import {type RunningPageserver, runPageserver} from '#pageserver/server.ts';
import {WalFilesSafekeeper, readWal} from '#pageserver/wal-source.testing.ts';

const tenantId = 'f'.repeat(32);
const root = '1'.repeat(32);
const child = '2'.repeat(32);

/** Plain interpretation in memory, up to any LSN. */
class Oracle {
  readonly timeline = new MemoryTimeline();
  readonly #interpreter: Interpreter;
  readonly #reader: WalReader;
  readonly #record = new WalRecord();
  #pushed: number;
  reached: Lsn;
  readonly #walDir: string;

  private constructor(walDir: string, start: Lsn, timeline: MemoryTimeline) {
    this.#walDir = walDir;
    this.timeline = timeline;
    this.#interpreter = new Interpreter(timeline, timeline, CheckpointState.decode(timeline.checkpoint!));
    this.#reader = new WalReader({startLsn: start});
    this.#pushed = start;
    this.reached = start;
  }

  static async import(dataDir: string): Promise<Oracle> {
    const timeline = new MemoryTimeline();
    timeline.importing = true;
    const imported = await importDataDirectory({source: tarDataDirectory(systemDisk, dataDir), sink: timeline});
    timeline.importing = false;
    return new Oracle(join(dataDir, 'pg_wal'), imported.lsn, timeline);
  }

  /** Goes on to the first record end at or behind `until`. */
  advance(until: Lsn): Lsn {
    while (this.reached < until) {
      if (!this.#reader.next(this.#record)) {
        assert.equal(this.#reader.failure, undefined);
        const length = Math.min(8192, walSegmentSizeDefault - (this.#pushed % walSegmentSizeDefault));
        this.#reader.push(readWal(this.#walDir, lsn(this.#pushed), length));
        this.#pushed += length;
        continue;
      }
      const outcome = this.#interpreter.interpret(this.#record);
      assert.equal(outcome.kind, 'applied');
      this.reached = this.#record.endLsn;
    }
    return this.reached;
  }
}

class Harness {
  readonly dir = mkdtempSync(join(tmpdir(), 'pagoda-pageserver-'));
  readonly keysDir = join(this.dir, 'keys');
  readonly #objectStore: ObjectStoreConfig;
  issuer!: TokenIssuer;
  server!: RunningPageserver;
  starts = 0;

  constructor(objectStore: ObjectStoreConfig) {
    this.#objectStore = objectStore;
    after(() => rmSync(this.dir, {recursive: true, force: true}));
  }

  async start(changes: Partial<PageserverConfig> = {}): Promise<void> {
    await generateKeys(this.keysDir);
    this.issuer = await TokenIssuer.load(this.keysDir, 'control', systemClock);
    this.server = await runPageserver(
      {
        nodeId: 1,
        host: '127.0.0.1',
        port: 0,
        httpPort: 0,
        dataDir: join(this.dir, `local-${this.starts++}`),
        keysDir: this.keysDir,
        objectStore: this.#objectStore,
        blockCacheBytes: 2 * 1024 * 1024,
        // Compaction and GC at work all the time.
        limits: {
          layerBytes: 1024 * 1024,
          relationSizesMax: 40,
          gcPeriodMs: 200,
          leaseMsMax: 500,
          compaction: {
            l0Threshold: 2,
            l0BatchMax: 4,
            runsPerLevel: 2,
            targetBytes: 300_000,
            imageDepth: 2,
            imageVisits: 1,
            garbageRatio: 0.001,
          },
        },
        ...changes,
      },
      {log: silentLog},
    );
  }

  async call(method: string, path: string, body?: unknown): Promise<Record<string, unknown>> {
    const {status, json} = await requestJson({
      method,
      url: `http://127.0.0.1:${this.server.httpPort}/v1/tenant/${tenantId}${path}`,
      token: await this.issuer.sign({aud: 'pageserver', scope: 'node'}),
      ...(body === undefined ? {} : {body}),
    });
    assert.ok(status < 300, `${method} ${path}: ${status} ${JSON.stringify(json)}`);
    return json as Record<string, unknown>;
  }

  async import(timelineId: string, dataDir: string): Promise<Lsn> {
    const response = await requestStream({
      method: 'POST',
      url: `http://127.0.0.1:${this.server.httpPort}/v1/tenant/${tenantId}/timeline/${timelineId}/import`,
      token: await this.issuer.sign({aud: 'pageserver', scope: 'node'}),
      body: tarDataDirectory(systemDisk, dataDir),
    });
    const parts: Buffer[] = [];
    for await (const part of response.body) parts.push(part);
    const text = Buffer.concat(parts).toString();
    assert.equal(response.status, 200, text);
    return parseLsn((JSON.parse(text) as {lsn: string}).lsn);
  }

  async pages(timelineId: string): Promise<PagesClient> {
    const token = await this.issuer.sign({aud: 'pageserver', scope: 'tenant', tenant: tenantId, timeline: timelineId});
    return PagesClient.connect({host: '127.0.0.1', port: this.server.port}, token, tenantId, timelineId);
  }
}

async function compare(harness: Harness, timelineId: string, oracle: MemoryTimeline, at: Lsn): Promise<number> {
  const client = await harness.pages(timelineId);
  const read = {requestLsn: at};
  let pages = 0;
  const perDatabase = new Map<number, Map<string, number>>();
  for (const fork of oracle.forks.values()) {
    const {rel, size} = fork;
    if (size < 0) {
      assert.equal(await client.relSize(rel, read), undefined);
      continue;
    }
    const inDatabase = perDatabase.get(rel.dbNode) ?? new Map<string, number>();
    perDatabase.set(rel.dbNode, inDatabase.set(`${rel.spcNode}/${rel.relNode}.${rel.fork}`, size));
    const answers = [];
    for (let block = 0; block < size; block += 64) answers.push(client.getPages(rel, block, 64, read));
    const real = (await Promise.all(answers)).flat();
    assert.equal(real.length, size, `${JSON.stringify(rel)} at ${formatLsn(at)}`);
    for (let block = 0; block < size; block++) {
      const expected = oracle.page(fork, block);
      if (!real[block]!.equals(expected))
        assert.fail(
          `${JSON.stringify(rel)} block ${block} at ${formatLsn(at)} differs at byte ${expected.findIndex((b, i) => b !== real[block]![i])}`,
        );
      pages++;
    }
  }
  for (const [dbNode, expected] of perDatabase) {
    const listed = await client.listDb(0, dbNode, read);
    assert.deepEqual(
      new Map(listed.map(({rel, blocks}) => [`${rel.spcNode}/${rel.relNode}.${rel.fork}`, blocks])),
      expected,
    );
    assert.equal(await client.dbSize(dbNode, read), [...expected.values()].reduce((sum, n) => sum + n, 0) * 8192);
  }
  client.close();
  return pages;
}

async function until(what: string, done: () => Promise<boolean>): Promise<void> {
  const deadline = systemClock.monotonicMs() + 480_000;
  while (!(await done())) {
    assert.ok(systemClock.monotonicMs() < deadline, `${what} did not happen in eight minutes`);
    await systemClock.sleep(50);
  }
}

onTestStores('a stock server, replayed through the whole pageserver', async (objects) => {
  await using cluster = await PostgresCluster.create({
    settings: {
      full_page_writes: 'off',
      wal_keep_size: '4GB',
      max_wal_size: '4GB',
      checkpoint_timeout: '1d',
      wal_level: 'logical',
    },
  });
  await cluster.pgbench(['-i', '-q', '-s', '2']);
  await cluster.query('create table t (id int primary key, v text)');
  await cluster.stop('fast');
  const oracle = await Oracle.import(cluster.dataDir);
  const start = oracle.reached;

  const harness = new Harness(objects.config);
  await harness.start();
  await harness.call('PUT', '', {generation: 1});
  await harness.call('POST', '/timeline', {timelineId: root, pgVersion: 15, mode: {kind: 'import'}});
  assert.equal(await harness.import(root, cluster.dataDir), start);
  assert.ok((await compare(harness, root, oracle.timeline, start)) > 3000);

  await cluster.start();
  await cluster.pgbench(['-n', '-c', '4', '-t', '300']);
  await cluster.query("insert into t select g, repeat('a', g % 500) from generate_series(1, 20000) g");
  await cluster.query("create index on t using gin (string_to_array(v, 'b')); create index on t using hash (id)");
  await cluster.query('delete from t where id > 3000');
  await cluster.query('vacuum t'); // truncates
  await cluster.query("insert into t select g, repeat('b', 50) from generate_series(3001, 9000) g");
  const half = parseLsn(String((await cluster.query('select pg_current_wal_insert_lsn()::text as l'))[0]!['l']));
  const halfTime = String(
    (
      await cluster.query(
        'select to_char(clock_timestamp() at time zone \'UTC\', \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\') as t',
      )
    )[0]!['t'],
  );
  await cluster.query('create database copied template template1 strategy file_copy');
  await cluster.query('create database gone strategy file_copy');
  await cluster.query('drop database gone');
  await cluster.query('truncate pgbench_history');
  await cluster.pgbench(['-n', '-c', '4', '-t', '200']);
  await cluster.query("update t set v = v || 'c' where id % 3 = 0");
  await cluster.query('vacuum full pg_class');
  await cluster.stop('fast');
  const control = parseControlFile(readFileSync(join(cluster.dataDir, 'global/pg_control')));
  const walDir = join(cluster.dataDir, 'pg_wal');

  // Three safekeepers: one breaks its connections, one sends a damaged byte, one is right.
  let commitLsn = half;
  const cutting = await WalFilesSafekeeper.start({
    walDir,
    commitLsn: () => commitLsn,
    cutAfterBytes: 700_000,
    chunkBytes: 7777,
  });
  const damaged = await WalFilesSafekeeper.start({
    walDir,
    commitLsn: () => commitLsn,
    damage: lsn(start + 1_000_000),
  });
  const good = await WalFilesSafekeeper.start({walDir, commitLsn: () => commitLsn, chunkBytes: 100_001});
  const nodes = [damaged, cutting, good].map((s, i) => ({nodeId: i + 1, host: '127.0.0.1', port: s.port}));
  await harness.call('PUT', `/timeline/${root}/safekeepers`, {safekeepers: nodes});
  const reached = async (timelineId: string): Promise<Lsn> =>
    parseLsn(String((await harness.call('GET', `/timeline/${timelineId}`))['lastRecordLsn']));
  await until('ingest of the first half', async () => (await reached(root)) >= half - 8192);
  assert.ok(cutting.connections + damaged.connections > 0);

  // A restart without anything local; the generation rises; the index knows the safekeepers.
  await harness.server.stop();
  await harness.start();
  await harness.call('PUT', '', {generation: 2});
  const end = endOfCheckpointRecord(control.checkPointLsn);
  commitLsn = end;
  await until('ingest of the second half', async () => (await reached(root)) === end);

  const atHalf = oracle.advance(half);
  const pagesAtHalf = await compare(harness, root, oracle.timeline, atHalf);
  assert.ok(pagesAtHalf > 3000);
  // A branch in the past: the same pages, whatever its parent did since.
  await harness.call('POST', '/timeline', {
    timelineId: child,
    pgVersion: 15,
    mode: {kind: 'branch', ancestorTimelineId: root, ancestorLsn: formatLsn(atHalf)},
  });
  assert.equal(await compare(harness, child, oracle.timeline, atHalf), pagesAtHalf);
  const byTime = await harness.call('GET', `/timeline/${root}/lsn_by_timestamp?timestamp=${halfTime}`);
  assert.equal(byTime['kind'], 'present');
  assert.ok(parseLsn(String(byTime['lsn'])) <= half && parseLsn(String(byTime['lsn'])) > start);

  const last = oracle.advance(end);
  assert.ok((await compare(harness, root, oracle.timeline, last)) > 3000);
  await harness.call('POST', `/timeline/${root}/checkpoint`);
  await until('feedback of the safekeeper', async () =>
    [cutting, damaged, good].some((s) => s.feedback?.remoteConsistentLsn === last),
  );

  // Everything again, from the object store alone, without any safekeeper.
  await Promise.all([cutting, damaged, good].map((s) => s.stop()));
  await harness.server.stop();
  await harness.start({blockCacheBytes: 64 * 1024 * 1024});
  await harness.call('PUT', '', {generation: 3});
  assert.equal(await reached(root), last);
  assert.ok((await compare(harness, root, oracle.timeline, last)) > 3000);
  await sanityOfBasebackup(harness, last);

  // The restore window shrinks to nothing: what lies behind it goes, but for the branch in the past.
  const childPages = await digest(harness, child, atHalf);
  // None spans much of the history that was kept until now: nearly all of them lie on one side of the branch.
  const left = await bytesLeftBehind(objects, [atHalf, last]);
  assert.ok(left > 500_000, `${left} bytes that the restore window has kept`);
  await harness.call('PUT', `/timeline/${root}/retention`, {windowSeconds: 0});
  const cutoff = async (): Promise<Lsn> =>
    parseLsn(String((await harness.call('GET', `/timeline/${root}`))['gcCutoffLsn']));
  await until('GC cutoff', async () => (await cutoff()) > half);
  const points = [atHalf, await cutoff()];
  await until('deltas that go', async () => (await bytesLeftBehind(objects, points)) < 50_000);
  await until('merging', async () => Number((await harness.call('GET', `/timeline/${root}`))['l0Layers']) < 2);
  const reader = await harness.pages(root);
  await assert.rejects(reader.listDb(0, 5, {requestLsn: lsn(atHalf + 8)}), {code: 'lsn-too-old'});
  await assert.rejects(reader.lease(lsn(atHalf + 8), 60), {code: 'lsn-too-old'});
  assert.equal(await reader.lease(last, 60), 500); // limits.leaseMsMax
  reader.close();
  assert.equal(await digest(harness, child, atHalf), childPages);
  assert.ok((await compare(harness, root, oracle.timeline, last)) > 3000);
  await harness.server.stop();
  // Nothing was put anywhere else.
  const top = new Set((await objects.store.list('')).map(({key}) => key.split('/')[0]));
  assert.deepEqual([...top], ['tenants']);
});

/** Of the root's deltas in the store, those that hold versions only for LSNs between two of the points that can be read (ascending). */
async function bytesLeftBehind(objects: TestStore, points: readonly Lsn[]): Promise<number> {
  let bytes = 0;
  for (const {key, size} of await objects.store.list(`tenants/${tenantId}/timelines/${root}/delta-`)) {
    const [, start, end] = key.split('/').at(-1)!.split('-');
    const point = points.find((at) => at >= parseInt(start!, 16));
    if (point !== undefined && parseInt(end!, 16) <= point + 1) bytes += size;
  }
  return bytes;
}

/** All pages of the branch's databases at `at`, summed up. */
async function digest(harness: Harness, timelineId: string, at: Lsn): Promise<string> {
  const client = await harness.pages(timelineId);
  const hash = createHash('sha256');
  for (const {rel, blocks} of await client.listDb(0, 5, {requestLsn: at})) {
    hash.update(`${rel.spcNode}/${rel.relNode}.${rel.fork}:${blocks}`);
    for (let block = 0; block < blocks; block += 64)
      for (const page of await client.getPages(rel, block, 64, {requestLsn: at})) hash.update(page);
  }
  client.close();
  return hash.digest('hex');
}

async function sanityOfBasebackup(harness: Harness, at: Lsn): Promise<void> {
  const response = await requestStream({
    method: 'GET',
    url: `http://127.0.0.1:${harness.server.httpPort}/v1/tenant/${tenantId}/timeline/${root}/basebackup?lsn=${encodeURIComponent(formatLsn(at))}`,
    token: await harness.issuer.sign({aud: 'pageserver', scope: 'tenant', tenant: tenantId, timeline: root}),
  });
  assert.equal(response.status, 200);
  assert.equal(response.headers['x-pagoda-lsn'], formatLsn(at));
  let bytes = 0;
  for await (const part of response.body) bytes += part.length;
  assert.ok(bytes > 100_000);
}
