/** Doors of real safekeepers and the broker, without Postgres. */
import assert from 'node:assert/strict';
import {setTimeout as sleep} from 'node:timers/promises';
import {test} from 'node:test';
import {parseLsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {connectFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';
import {TestCell} from '#sim/test-cell.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {BrokerSubscriber, type SafekeeperInfo} from '#wire/broker.ts';
import {frameHello} from '#wire/safekeeper.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';

test(
  'timelines are created explicitly, once, and never again after they were deleted',
  {timeout: 300_000},
  async () => {
    await using cell = await TestCell.create();
    await cell.createTimeline('0/1000028');
    assert.equal((await cell.status(1))['flushLsn'], '0/1000028');
    const token = await cell.issuer.sign({aud: 'safekeeper', scope: 'node'});
    const url = `http://127.0.0.1:${cell.httpPort(1)}/v1/tenant/${cell.tenantId}/timeline`;
    const create = async (startLsn: string): Promise<number> =>
      (
        await requestJson({
          method: 'POST',
          url,
          token,
          body: {timelineId: cell.timelineId, startLsn, members: cell.members},
        })
      ).status;
    assert.equal(await create('0/1000028'), 200);
    assert.equal(await create('0/2000028'), 409);
    assert.equal(await create('nonsense'), 400);
    const tenant = await cell.issuer.sign({aud: 'safekeeper', scope: 'tenant', tenant: cell.tenantId});
    assert.equal((await requestJson({method: 'DELETE', url: `${url}/${cell.timelineId}`, token: tenant})).status, 403);
    assert.equal((await requestJson({method: 'GET', url: `${url}/${cell.timelineId}`})).status, 401);
    assert.equal((await requestJson({method: 'DELETE', url: `${url}/${cell.timelineId}`, token})).status, 200);
    assert.equal((await requestJson({method: 'GET', url: `${url}/${cell.timelineId}`, token})).status, 404);
    assert.equal(await create('0/1000028'), 410);
  },
);

test(
  'a proposer is elected, the promise survives a restart, and the broker tells who has what',
  {timeout: 300_000},
  async () => {
    await using cell = await TestCell.create();
    await cell.createTimeline('0/1000028');
    const issuer = await TokenIssuer.load(cell.keysDir, 'pageserver', systemClock);
    const heard: SafekeeperInfo[] = [];
    const subscriber = new BrokerSubscriber(
      {
        address: {host: '127.0.0.1', port: cell.brokerPort},
        token: async () => await issuer.sign({aud: 'broker', scope: 'node'}),
        clock: systemClock,
        log: silentLog,
      },
      (info) => heard.push(info),
    );
    {
      using proposer = await cell.startProposer();
      assert.deepEqual(await proposer.event('elected'), {event: 'elected', term: 1, lsn: '0/1000028'});
      for (let i = 0; i < 2000 && new Set(heard.map((h) => h.nodeId)).size < 3; i++) await sleep(50);
    }
    subscriber.close();
    assert.deepEqual(
      [...new Set(heard.map((h) => h.nodeId))].sort((a, b) => a - b),
      [1, 2, 3],
    );
    assert.ok(heard.every((h) => h.timelineId === cell.timelineId && h.commitLsn === parseLsn('0/1000028')));
    for (const nodeId of [1, 2, 3]) await cell.stopSafekeeper(nodeId);
    for (const nodeId of [1, 2, 3]) await cell.startSafekeeper(nodeId);
    assert.equal((await cell.status(2))['term'], 1);
    using second = await cell.startProposer();
    assert.equal((await second.event('elected')).term, 2);
  },
);

test(
  'the wrong token, an unknown timeline, WAL of the ancestor, and bytes that are no protocol are refused',
  {timeout: 300_000},
  async () => {
    await using cell = await TestCell.create();
    await cell.createTimeline('0/1000028');
    const [first] = cell.members;
    const stream = async (changes: Partial<Parameters<typeof WalStreamClient.connect>[0]>): Promise<string> =>
      await new Promise((resolve) => {
        const done = (error?: Error): void =>
          resolve((error as {code?: string} | undefined)?.code ?? error?.message ?? 'ended');
        cell.issuer
          .sign({aud: 'safekeeper', scope: 'node'})
          .then(async (token) =>
            WalStreamClient.connect({
              address: first!,
              token,
              tenantId: cell.tenantId,
              timelineId: cell.timelineId,
              startLsn: parseLsn('0/1000028'),
              onWal: () => {},
              onKeepalive: () => done(),
              onClose: done,
              ...changes,
            }),
          )
          .catch(done);
      });
    assert.equal(await stream({}), 'ended');
    assert.equal(await stream({token: 'x.y.z'}), 'unauthorized');
    assert.equal(
      await stream({token: await cell.issuer.sign({aud: 'safekeeper', scope: 'tenant', tenant: 'f'.repeat(32)})}),
      'unauthorized',
    );
    assert.equal(await stream({token: await cell.issuer.sign({aud: 'pageserver', scope: 'node'})}), 'unauthorized');
    assert.equal(await stream({timelineId: 'f'.repeat(32)}), 'no-timeline');
    assert.equal(await stream({startLsn: parseLsn('0/1000020')}), 'bad-request');
    assert.equal(await stream({term: 5}), 'stale-term');

    const closes = async (send: (c: Awaited<ReturnType<typeof connectFrames>>) => void): Promise<string> => {
      const connection = await connectFrames({host: '127.0.0.1', port: first!.port});
      return await new Promise((resolve) => {
        let said = 'closed';
        connection.onFrame = (_type, payload) => (said = (parseJsonFrame(payload) as {code: string}).code);
        connection.onClose = () => resolve(said);
        send(connection);
      });
    };
    assert.equal(await closes((c) => c.send(99, Buffer.alloc(10))), 'bad-request');
    assert.equal(await closes((c) => sendJson(c, frameHello, null)), 'unauthorized');
    assert.equal(await closes((c) => c.send(frameHello, Buffer.from('{'))), 'bad-request');
  },
);
