import {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {after, before, test} from 'node:test';
import assert from 'node:assert/strict';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {lsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {connectFrames} from '#runtime/net.ts';
import {type SignOptions, TokenIssuer, generateKeys} from '#wire/auth.ts';
import {PagesClient, pageFrame} from '#wire/pages.ts';
import {alwaysValid} from './generation-validator.ts';
import {parseTimestamp} from './management.ts';
import {type RunningPageserver, runPageserver} from './server.ts';
import {importLsn, tagOf, testContext, testIds} from './timeline/model.testing.ts';
import {Tenant} from './timeline/tenant.ts';
import type {TimelineError} from './timeline/timeline-reader.ts';

const {tenantId, firstTimeline} = testIds;
const child = 'c'.repeat(32);
const dir = mkdtempSync(join(tmpdir(), 'pagoda-pageserver-unit-'));
const keysDir = join(dir, 'keys');
const tag = tagOf(0, 0);
const store = new MemoryObjectStore();
let server: RunningPageserver;
let control: TokenIssuer;

/** A timeline with one relation of 10 blocks; block 3 has a record that no redo function can apply. */
async function prepare(): Promise<void> {
  const tenant = await Tenant.attach(testContext(store), alwaysValid, tenantId, 1);
  const timeline = await tenant.createEmpty(firstTimeline, 15);
  await timeline.import(async (writer) => {
    writer.createDatabase(1663, 100, true, importLsn);
    return {lsn: importLsn, systemId: '7'};
  });
  const writer = await timeline.writer();
  await writer.loadRelations([tag]);
  const {spcNode, dbNode, relNode, fork} = tag;
  writer.createRelation(spcNode, dbNode, relNode, fork, lsn(0x2000));
  writer.setRelationSize(spcNode, dbNode, relNode, fork, 10, lsn(0x2000));
  for (let block = 0; block < 5; block++)
    writer.relationPageImage(spcNode, dbNode, relNode, fork, block, lsn(0x2000), Buffer.alloc(8192, block + 1));
  writer.endRecord(lsn(0x2000));
  const bad = new WalRecord();
  bad.bytes = Buffer.alloc(40, 0xee);
  bad.totalLength = 40;
  bad.endLsn = lsn(0x2100);
  writer.relationPageRecord(bad, Object.assign(new BlockRef(), tag, {inUse: true, blockNumber: 3}), true);
  writer.endRecord(lsn(0x2100));
  await timeline.checkpoint();
  timeline.stop();
}

const token = (options: Partial<SignOptions> = {}): Promise<string> =>
  control.sign({aud: 'pageserver', scope: 'node', ...options});

async function call(
  method: string,
  path: string,
  body?: unknown,
  as?: string,
): Promise<{status: number; json: unknown}> {
  return requestJson({
    method,
    url: `http://127.0.0.1:${server.httpPort}${path}`,
    token: as ?? (await token()),
    ...(body === undefined ? {} : {body}),
  });
}

before(async () => {
  await generateKeys(keysDir);
  control = await TokenIssuer.load(keysDir, 'control', systemClock);
  await prepare();
  server = await runPageserver(
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
});
after(async () => {
  await server.stop();
  rmSync(dir, {recursive: true, force: true});
});

const connect = async (as?: string): Promise<PagesClient> =>
  PagesClient.connect({host: '127.0.0.1', port: server.port}, as ?? (await token()), tenantId, firstTimeline);

test('the door of the page service: token, tenant, timeline', async () => {
  const tenantToken = (tenant: string, timeline?: string): Promise<string> =>
    token({scope: 'tenant', tenant, ...(timeline === undefined ? {} : {timeline})});
  await assert.rejects(connect('no token'), /token/);
  await assert.rejects(connect(await control.sign({aud: 'safekeeper', scope: 'node'})), /safekeeper/);
  await assert.rejects(connect(await tenantToken('e'.repeat(32))), /another tenant/);
  await assert.rejects(connect(await tenantToken(tenantId, child)), /another timeline/);
  await assert.rejects(
    PagesClient.connect({host: '127.0.0.1', port: server.port}, await token(), tenantId, 'd'.repeat(32)),
    {code: 'not-found'},
  );
  (await connect(await tenantToken(tenantId, firstTimeline))).close();
  // Bytes that are no hello.
  const hostile = await connectFrames({host: '127.0.0.1', port: server.port});
  const closed = new Promise<void>((resolve) => (hostile.onClose = () => resolve()));
  hostile.send(pageFrame.getPages, Buffer.alloc(44, 0xff));
  await closed;
});

test('pages, sizes and errors of a timeline that was attached from the object store', async () => {
  const client = await connect();
  const at = {requestLsn: lsn(0x2100)};
  const pages = await client.getPages(tag, 4, 64, at);
  assert.equal(pages.length, 6);
  assert.ok(pages[0]!.equals(Buffer.alloc(8192, 5)));
  assert.ok(pages[1]!.equals(Buffer.alloc(8192)));
  assert.equal(await client.relSize(tag, at), 10);
  assert.equal(await client.relExists(tag, at), true);
  assert.equal(await client.relSize(tag, {requestLsn: lsn(0x1800)}), undefined);
  assert.equal(await client.dbSize(100, at), 81_920);
  assert.deepEqual(await client.listDb(1663, 100, at), [{rel: tag, blocks: 10}]);
  assert.deepEqual(await client.listDb(0, 5, at), []);
  await assert.rejects(client.getPages(tag, 10, 1, at), {code: 'beyond-end'});
  await assert.rejects(client.getPages({...tag, relNode: 1}, 0, 1, at), {code: 'not-found'});
  await assert.rejects(client.getPages(tag, 0, 1, {requestLsn: lsn(0x800)}), {code: 'lsn-too-old'});
  // Not modified since what is there: no need to wait for the newer LSN.
  assert.equal(
    (await client.getPages(tag, 0, 1, {requestLsn: lsn(0x9000), notModifiedSinceLsn: lsn(0x2100)})).length,
    1,
  );
  client.close();
});

test('a record that cannot be applied makes an error for its page, and for no other', async () => {
  const client = await connect();
  const at = {requestLsn: lsn(0x2100)};
  await assert.rejects(client.getPages(tag, 3, 1, at), (error: TimelineError) => {
    assert.equal(error.code, 'redo-failed');
    assert.match(error.message, new RegExp(`${tenantId}.*${firstTimeline}.*1663/100/1000 block 3.*0/2100`));
    return true;
  });
  assert.equal((await client.getPages(tag, 3, 1, {requestLsn: lsn(0x2000)}))[0]![0], 4);
  assert.equal((await client.getPages(tag, 0, 3, at)).length, 3);
  client.close();
});

test('management: generations, creation, bad imports, deletion, metrics', async () => {
  const path = `/v1/tenant/${tenantId}`;
  assert.equal((await call('GET', `${path}/timeline/${firstTimeline}`, undefined, 'bad')).status, 401);
  const foreign = await token({scope: 'tenant', tenant: 'e'.repeat(32)});
  assert.equal((await call('GET', `${path}/timeline/${firstTimeline}`, undefined, foreign)).status, 403);
  const own = await token({scope: 'tenant', tenant: tenantId, timeline: firstTimeline});
  assert.equal((await call('GET', `${path}/timeline/${firstTimeline}`, undefined, own)).status, 200);
  assert.equal((await call('POST', `${path}/timeline/${firstTimeline}/checkpoint`, undefined, own)).status, 403);

  assert.equal((await call('PUT', path, {generation: 2})).status, 200);
  assert.equal((await call('PUT', path, {generation: 1})).status, 409);
  assert.equal((await call('PUT', path, {generation: 'x'})).status, 400);
  assert.equal((await call('GET', `/v1/tenant/${'e'.repeat(32)}/timeline/${child}`)).status, 421);
  assert.equal((await call('GET', `/v1/tenant/nonsense/timeline/${child}`)).status, 400);

  const branch = {
    timelineId: child,
    pgVersion: 15,
    mode: {kind: 'branch', ancestorTimelineId: firstTimeline, ancestorLsn: '0/2000'},
  };
  assert.equal((await call('POST', `${path}/timeline`, branch)).status, 201);
  assert.equal((await call('POST', `${path}/timeline`, branch)).status, 201); // again: the same
  assert.equal(
    (await call('POST', `${path}/timeline`, {...branch, mode: {...branch.mode, ancestorLsn: '0/2100'}})).status,
    400,
  );
  assert.equal((await call('POST', `${path}/timeline`, {...branch, timelineId: 'x'})).status, 400);
  const info = (await call('GET', `${path}/timeline/${child}`)).json as Record<string, unknown>;
  assert.equal(info['ancestorLsn'], '0/2000');
  assert.equal(info['lastRecordLsn'], '0/2000');
  assert.equal(info['logicalSizeBytes'], 81_920);
  assert.equal((await call('DELETE', `${path}/timeline/${firstTimeline}`)).status, 409); // it has a child
  assert.equal((await call('PUT', `${path}/timeline/${child}/safekeepers`, {safekeepers: [{nodeId: 1}]})).status, 400);
  assert.equal((await call('DELETE', `${path}/timeline/${child}`)).status, 200);
  assert.equal((await call('GET', `${path}/timeline/${child}`)).status, 404);

  const empty = 'd'.repeat(32);
  assert.equal(
    (await call('POST', `${path}/timeline`, {timelineId: empty, pgVersion: 15, mode: {kind: 'import'}})).status,
    201,
  );
  for (let i = 0; i < 2; i++) {
    const response = await requestStream({
      method: 'POST',
      url: `http://127.0.0.1:${server.httpPort}${path}/timeline/${empty}/import`,
      token: await token(),
      body: [Buffer.alloc(1024, 'x')],
    });
    for await (const _ of response.body);
    assert.equal(response.status, 400); // and it can be tried again
  }
  assert.equal((await call('DELETE', `${path}/timeline/${empty}`)).status, 200);
  const metrics = await requestStream({
    method: 'GET',
    url: `http://127.0.0.1:${server.httpPort}/metrics`,
    token: await token(),
  });
  let text = '';
  for await (const part of metrics.body) text += part.toString();
  assert.match(text, /^pagoda_getpage_pages_total [1-9]/m);
  assert.match(text, /^pagoda_getpage_layers_per_read_count [1-9]/m);
});

test('times with microseconds and zones', () => {
  assert.equal(parseTimestamp('1970-01-01T00:00:01.000002Z'), 1_000_002);
  assert.equal(parseTimestamp('2026-11-23T02:00:00+01:00'), Date.UTC(2026, 10, 23, 1) * 1000);
  assert.equal(parseTimestamp('2024-02-29 12:34:56.7-0130'), Date.UTC(2024, 1, 29, 14, 4, 56, 700) * 1000);
  for (const text of [
    '',
    'now',
    '2026-02-29T00:00:00Z',
    '2026-01-01T00:00:00',
    '2026-13-01T00:00:00Z',
    '2026-01-01T24:00:00Z',
  ])
    assert.equal(parseTimestamp(text), undefined, text);
  for (let day = -200_000; day < 200_000; day += 317) {
    const date = new Date(day * 86_400_000);
    if (date.getUTCFullYear() < 1000) continue;
    assert.equal(parseTimestamp(date.toISOString()), day * 86_400_000_000);
  }
});
