import assert from 'node:assert/strict';
import {test} from 'node:test';
import {Locations} from '#compute/locations.ts';
import {PageSource} from '#compute/page-source.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {createLog, silentLog} from '#runtime/log.ts';
import {startHttpServer} from '#runtime/http.ts';
import {type FrameConnection, listenFrames, sendJson} from '#runtime/net.ts';
import type {ComputeSpec} from '#wire/compute-spec.ts';
import {decodePageRequest, encodePageError, encodeRelSizeAnswer, pageFrame} from '#wire/pages.ts';

const rel = {spcNode: 1663, dbNode: 5, relNode: 16384, fork: 0} as const;

async function withPageserver(
  onHello: (connection: FrameConnection, attempt: number) => void,
  body: (pages: PageSource) => Promise<void>,
): Promise<void> {
  let attempts = 0;
  const listener = await listenFrames({host: '127.0.0.1', port: 0}, (connection) => {
    connection.onFrame = (type, payload) => {
      if (type === pageFrame.hello) {
        onHello(connection, ++attempts);
        return;
      }
      const {requestId} = decodePageRequest(type, payload);
      connection.send(pageFrame.relSizeAnswer, encodeRelSizeAnswer(requestId, 42));
    };
  });
  const spec = {
    tenantId: 'a'.repeat(32),
    timelineId: 'b'.repeat(32),
    pageserver: {host: '127.0.0.1', port: listener.port},
  } as unknown as ComputeSpec;
  const shared = {
    spec,
    token: () => 'token',
    clock: systemClock,
    log: createLog({component: 'test', level: 'error'}),
  };
  const pages = new PageSource({...shared, locations: new Locations(shared), lsn: 0x1000 as Lsn});
  try {
    await body(pages);
  } finally {
    pages.stop();
    await listener.close();
  }
}

test('a pageserver that does not know the tenant yet is asked again, and is believed when it does', async () => {
  await withPageserver(
    (connection, attempt) => {
      if (attempt > 2) sendJson(connection, pageFrame.welcome, {});
      else {
        sendJson(connection, pageFrame.refused, {code: 'not-found', message: 'tenant is not attached'});
        connection.close();
      }
    },
    async (pages) => assert.equal(await pages.relSize(rel), 42),
  );
});

test('a tenant that has moved is followed: told so, refused, or left without an answer', async () => {
  const asked: string[] = [];
  const serve = async (
    name: string,
    onRequest: (connection: FrameConnection, requestId: number) => void,
  ): Promise<{port: number; close(): Promise<void>}> =>
    listenFrames({host: '127.0.0.1', port: 0}, (connection) => {
      connection.onFrame = (type, payload) => {
        if (type === pageFrame.hello) return sendJson(connection, pageFrame.welcome, {});
        asked.push(name);
        onRequest(connection, decodePageRequest(type, payload).requestId);
      };
    });
  const left = await serve('left', (connection, requestId) =>
    connection.send(pageFrame.error, encodePageError(requestId, 'not-attached', 'it is elsewhere')),
  );
  const stopped = await serve('stopped', () => {});
  const holder = await serve('holder', (connection, requestId) =>
    connection.send(pageFrame.relSizeAnswer, encodeRelSizeAnswer(requestId, 42)),
  );
  const shardId = 'a'.repeat(32);
  const at = (port: number): object => ({shardId, host: '127.0.0.1', port, httpPort: 1});
  let says = holder.port;
  const control = await startHttpServer({
    host: '127.0.0.1',
    port: 0,
    log: silentLog,
    authenticate: async () => undefined,
    routes: [{method: 'GET', path: '/locations', handler: async () => ({status: 200, json: {shards: [at(says)]}})}],
  });
  const open = (port: number): PageSource => {
    const shared = {
      spec: {
        timelineId: 'b'.repeat(32),
        shards: [at(port)],
        locationsUrl: `http://127.0.0.1:${control.port}/locations`,
      } as unknown as ComputeSpec,
      token: () => 'token',
      clock: systemClock,
      log: silentLog,
    };
    return new PageSource({...shared, locations: new Locations(shared), lsn: 0x1000 as Lsn});
  };
  const closed = 1;
  for (const from of [left.port, stopped.port, closed]) {
    const pages = open(from);
    assert.equal(await pages.relSize(rel), 42);
    pages.stop();
  }
  assert.deepEqual(asked, ['left', 'holder', 'stopped', 'holder', 'holder']);
  // The control plane may be the last to know.
  says = left.port;
  const pages = open(left.port);
  const answer = pages.relSize(rel);
  await systemClock.sleep(400);
  says = holder.port;
  assert.equal(await answer, 42);
  pages.stop();
  for (const server of [left, stopped, holder, control]) await server.close();
});
