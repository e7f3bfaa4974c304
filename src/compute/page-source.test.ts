import assert from 'node:assert/strict';
import {test} from 'node:test';
import {PageSource} from '#compute/page-source.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {createLog} from '#runtime/log.ts';
import {type FrameConnection, listenFrames, sendJson} from '#runtime/net.ts';
import type {ComputeSpec} from '#wire/compute-spec.ts';
import {decodePageRequest, encodeRelSizeAnswer, pageFrame} from '#wire/pages.ts';

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
  const pages = new PageSource({
    spec,
    token: () => 'token',
    lsn: 0x1000 as Lsn,
    clock: systemClock,
    log: createLog({component: 'test', level: 'error'}),
  });
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
