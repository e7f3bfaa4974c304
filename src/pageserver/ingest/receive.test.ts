/** Ingest of a timeline stops at what it cannot read, and of no other; it does not wait for a safekeeper that says nothing. */
import {after, test} from 'node:test';
import assert from 'node:assert/strict';
import {mkdirSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {ControlFile, controlFileDataSize} from '#postgres/control-file.ts';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {segmentFileName, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {WalWriter, mainDataBody} from '#postgres/wal/writer.ts';
import {type Clock, systemClock} from '#runtime/clock.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import {PagesClient} from '#wire/pages.ts';
import {alwaysValid} from '#pageserver/generation-validator.ts';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {runPageserver} from '#pageserver/server.ts';
import {importLsn, tagOf, testContext, testIds} from '#pageserver/timeline/model.testing.ts';
import {TimelineIngest} from '#pageserver/ingest/receive.ts';
import {Tenant} from '#pageserver/timeline/tenant.ts';
import type {Timeline} from '#pageserver/timeline/timeline.ts';
import {WalFilesSafekeeper} from '#pageserver/wal-source.testing.ts';

const {tenantId} = testIds;
const broken = 'a'.repeat(32);
const healthy = 'b'.repeat(32);
const systemId = 7n;
const dir = mkdtempSync(join(tmpdir(), 'pagoda-ingest-stopped-'));
after(() => rmSync(dir, {recursive: true, force: true}));

/** Commits; where `badAt` says so, a record of a custom resource manager. */
function writeWal(name: string, commits: number, badAt: number): {walDir: string; endLsn: Lsn; badLsn: Lsn} {
  const writer = new WalWriter({startLsn: importLsn, systemId});
  let badLsn = importLsn;
  for (let i = 0; i < commits; i++) {
    if (i === badAt) {
      badLsn = writer.position;
      writer.append({rmid: 200, info: 0, body: mainDataBody(Buffer.alloc(8))});
    }
    writer.append({rmid: rmgr.transaction, info: 0, xid: 1000 + i, body: mainDataBody(Buffer.alloc(8))});
  }
  const segment = Buffer.alloc(walSegmentSizeDefault);
  writer.take().copy(segment, importLsn);
  const walDir = join(dir, name);
  mkdirSync(walDir);
  writeFileSync(join(walDir, segmentFileName(1, 0)), segment);
  return {walDir, endLsn: writer.position, badLsn};
}

/** One page at importLsn. */
async function importPage(tenant: Tenant, timelineId: string): Promise<Timeline> {
  const tag = tagOf(0, 0);
  const checkpoint = new CheckpointState(new ControlFile(Buffer.alloc(controlFileDataSize))).encode();
  const timeline = await tenant.createEmpty(timelineId, 15);
  await timeline.import(async (writer) => {
    const {spcNode, dbNode, relNode, fork} = tag;
    writer.createDatabase(spcNode, dbNode, true, importLsn);
    writer.createRelation(spcNode, dbNode, relNode, fork, importLsn);
    writer.setRelationSize(spcNode, dbNode, relNode, fork, 1, importLsn);
    writer.relationPageImage(spcNode, dbNode, relNode, fork, 0, importLsn, Buffer.alloc(8192, 1));
    writer.putCheckpointState(checkpoint, importLsn);
    return {lsn: importLsn, systemId: String(systemId)};
  });
  return timeline;
}

function ingestOf(timeline: Timeline, clock: Clock = systemClock): TimelineIngest {
  return new TimelineIngest({
    timeline,
    token: () => Promise.resolve('none'),
    clock,
    log: silentLog,
    metrics: testContext(new MemoryObjectStore()).metrics,
    firstWords: {free: 10},
  });
}

test('a bad record is seen in the timeline and in the metrics; pages before it are served, and other timelines go on', async () => {
  const store = new MemoryObjectStore();
  const keysDir = join(dir, 'keys');
  await generateKeys(keysDir);
  const issuer = await TokenIssuer.load(keysDir, 'control', systemClock);
  const tag = tagOf(0, 0);
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  for (const timelineId of [broken, healthy]) {
    const timeline = await importPage(tenant, timelineId);
    await timeline.checkpoint();
    timeline.stop();
  }
  const server = await runPageserver(
    {
      nodeId: 1,
      host: '127.0.0.1',
      port: 0,
      httpPort: 0,
      dataDir: dir,
      keysDir,
      objectStore: {kind: 'folder', root: dir},
    },
    {log: silentLog, store},
  );
  const wal = {[broken]: writeWal('broken', 500, 300), [healthy]: writeWal('healthy', 500, -1)};
  const safekeepers: WalFilesSafekeeper[] = [];
  const token = await issuer.sign({aud: 'pageserver', scope: 'node'});
  const base = `http://127.0.0.1:${server.httpPort}`;
  const call = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
    const url = `${base}/v1/tenant/${tenantId}/timeline/${path}`;
    const {status, json} = await requestJson({method, url, token, ...(body === undefined ? {} : {body})});
    assert.ok(status < 300, `${method} ${path}: ${status} ${JSON.stringify(json)}`);
    return json as Record<string, unknown>;
  };
  try {
    for (const timelineId of [broken, healthy]) {
      const {walDir, endLsn} = wal[timelineId]!;
      const safekeeper = await WalFilesSafekeeper.start({walDir, commitLsn: () => endLsn, chunkBytes: 777});
      safekeepers.push(safekeeper);
      const address = {nodeId: 1, host: '127.0.0.1', port: safekeeper.port};
      await call('PUT', `${timelineId}/safekeepers`, {safekeepers: [address]});
    }
    for (let i = 0; ; i++) {
      const [a, b] = [await call('GET', broken), await call('GET', healthy)];
      if (a['ingestError'] !== undefined && b['lastRecordLsn'] === formatLsn(wal[healthy]!.endLsn)) {
        assert.match(String(a['ingestError']), /resource manager 200/);
        assert.match(String(a['ingestError']), new RegExp(formatLsn(wal[broken]!.badLsn)));
        assert.equal(a['lastRecordLsn'], formatLsn(wal[broken]!.badLsn));
        assert.equal(b['ingestError'], undefined);
        break;
      }
      assert.ok(i < 6000, `broken: ${JSON.stringify(a)}, healthy: ${JSON.stringify(b)}`);
      await systemClock.sleep(50);
    }
    const client = await PagesClient.connect({host: '127.0.0.1', port: server.port}, token, tenantId, broken);
    const [page] = await client.getPages(tag, 0, 1, {requestLsn: wal[broken]!.badLsn});
    assert.ok(page!.equals(Buffer.alloc(8192, 1)));
    await assert.rejects(client.getPages(tag, 0, 1, {requestLsn: wal[broken]!.endLsn}), /resource manager 200/);
    client.close();
    const metrics = await requestStream({method: 'GET', url: `${base}/metrics`, token});
    let text = '';
    for await (const part of metrics.body) text += part.toString();
    assert.match(text, /^pagoda_ingest_stopped_timelines 1$/m);
  } finally {
    await Promise.all(safekeepers.map((safekeeper) => safekeeper.stop()));
    await server.stop();
  }
});

test('WAL that a reader waits for is asked of another safekeeper when the present one says nothing', async () => {
  const tenant = await Tenant.attach(testContext(new MemoryObjectStore()), alwaysValid, tenantId, 1);
  const timeline = await importPage(tenant, healthy);
  const {walDir, endLsn} = writeWal('mute', 100, -1);
  const [mute, good] = [
    await WalFilesSafekeeper.start({walDir, commitLsn: () => importLsn}),
    await WalFilesSafekeeper.start({walDir, commitLsn: () => endLsn}),
  ];
  const ingest = ingestOf(timeline);
  try {
    ingest.setSafekeepers([mute, good].map(({port}, i) => ({nodeId: i + 1, host: '127.0.0.1', port})));
    while (mute.connections === 0) await systemClock.sleep(5);
    assert.equal(good.connections, 0, 'the first was asked first');
    const started = systemClock.monotonicMs();
    await timeline.waitForLsn(endLsn);
    const ms = systemClock.monotonicMs() - started;
    assert.ok(ms < 4500, `waited for ${Math.round(ms)} ms`); // silence is noticed after five seconds anyway
  } finally {
    ingest.stop();
    timeline.stop();
    await Promise.all([mute.stop(), good.stop()]);
  }
});

test('while no safekeeper gives WAL the timeline and those who wait for it say why; when one does, it goes on', async () => {
  const tenant = await Tenant.attach(testContext(new MemoryObjectStore()), alwaysValid, tenantId, 1);
  const timeline = await importPage(tenant, healthy);
  const {walDir, endLsn} = writeWal('trimmed', 100, -1);
  let refusal: string | undefined = 'WAL at 0/1234 is not on this safekeeper';
  const safekeeper = await WalFilesSafekeeper.start({walDir, commitLsn: () => endLsn, refusal: () => refusal});
  const ingest = ingestOf(timeline);
  try {
    ingest.setSafekeepers([{nodeId: 7, host: '127.0.0.1', port: safekeeper.port}]);
    while (timeline.info().walError === undefined) await systemClock.sleep(5);
    assert.match(
      timeline.info().walError!,
      /no safekeeper gives WAL: 7 said: .*WAL at 0\/1234 is not on this safekeeper/,
    );
    await assert.rejects(timeline.waitForLsn(endLsn, 50), /WAL at 0\/1234 is not on this safekeeper/);
    refusal = undefined;
    await timeline.waitForLsn(endLsn);
    assert.equal(timeline.info().walError, undefined);
  } finally {
    ingest.stop();
    timeline.stop();
    await safekeeper.stop();
  }
});

test('a safekeeper hears what is durable before a connection that rests is let go', async () => {
  const tenant = await Tenant.attach(testContext(new MemoryObjectStore()), alwaysValid, tenantId, 1);
  const timeline = await importPage(tenant, healthy);
  const {walDir, endLsn} = writeWal('quiet', 100, -1);
  const safekeeper = await WalFilesSafekeeper.start({walDir, commitLsn: () => endLsn});
  let aheadMs = 0;
  const ingest = (): TimelineIngest => {
    const made = ingestOf(timeline, {...systemClock, monotonicMs: () => systemClock.monotonicMs() + aheadMs});
    made.setSafekeepers([{nodeId: 1, host: '127.0.0.1', port: safekeeper.port}]);
    return made;
  };
  const first = ingest();
  await timeline.waitForLsn(endLsn);
  first.stop();
  // No WAL comes on this one: it is let go as soon as everything is durable.
  const second = ingest();
  try {
    while (safekeeper.connections < 2) await systemClock.sleep(5);
    safekeeper.feedback = undefined;
    const heard = (): Lsn | undefined => safekeeper.feedback?.remoteConsistentLsn;
    while (heard() === undefined) await systemClock.sleep(5);
    aheadMs += 4000;
    await timeline.checkpoint();
    const deadline = systemClock.monotonicMs() + 60_000;
    while (heard() !== endLsn) {
      assert.ok(systemClock.monotonicMs() < deadline, 'it does not hear of it');
      await systemClock.sleep(20);
    }
  } finally {
    second.stop();
    timeline.stop();
    await safekeeper.stop();
  }
});
