/** A real safekeeper on a disk that fails. */
import assert from 'node:assert/strict';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {type TestContext, test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {type Disk, type DiskFile, systemDisk} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {connectFrames, sendJson} from '#runtime/net.ts';
import {runSafekeeper} from '#safekeeper/server.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import {
  type AcceptorMessage,
  type ProposerMessage,
  decodeAcceptorMessage,
  encodeProposerMessage,
  frameHello,
  frameRefused,
  frameWelcome,
  parseRefusal,
} from '#wire/safekeeper.ts';

const tenantId = '1'.repeat(32);
const timelineId = '2'.repeat(32);
const startLsn = 0x1000100 as Lsn;
/** The beginning of a record of 4096 bytes: WAL as far as anybody can tell. */
const someWal = Buffer.from([0, 16, 0, 0, 0, 0, 0, 0]);
const history = [
  {term: 0, lsn: startLsn},
  {term: 1, lsn: startLsn},
];

interface Faults {
  sync: boolean;
  space: boolean;
}

function failingDisk(faults: Faults): Disk {
  const wrap = (file: DiskFile): DiskFile => ({
    size: () => file.size(),
    read: (buffer, position) => file.read(buffer, position),
    write: (buffer, position) => {
      if (faults.space) throw Object.assign(new Error('no space'), {code: 'ENOSPC'});
      file.write(buffer, position);
    },
    writev: (buffers, position) => {
      if (faults.space) throw Object.assign(new Error('no space'), {code: 'ENOSPC'});
      file.writev(buffers, position);
    },
    sync: async () => {
      if (faults.sync) throw new Error('EIO');
      await file.sync();
    },
    syncNow: () => file.syncNow(),
    truncate: (size) => file.truncate(size),
    close: () => file.close(),
  });
  return {
    ...systemDisk,
    open: (path, mode) => wrap(systemDisk.open(path, mode)),
    writeFileAtomic: (path, bytes, mode) => {
      if (faults.space) throw Object.assign(new Error('no space'), {code: 'ENOSPC'});
      systemDisk.writeFileAtomic(path, bytes, mode);
    },
  };
}

async function safekeeper(t: TestContext, faults: Faults) {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-disk-'));
  await generateKeys(join(dir, 'keys'));
  const failures: Error[] = [];
  const running = await runSafekeeper(
    {nodeId: 1, dataDir: join(dir, 'data'), host: '127.0.0.1', port: 0, httpPort: 0, keysDir: join(dir, 'keys')},
    {disk: failingDisk(faults), log: silentLog, onDiskFailure: (error) => failures.push(error)},
  );
  t.after(async () => {
    await running.stop();
    rmSync(dir, {recursive: true, force: true});
  });
  const issuer = await TokenIssuer.load(join(dir, 'keys'), 'control', systemClock);
  const token = await issuer.sign({aud: 'safekeeper', scope: 'node'});
  const created = await requestJson({
    method: 'POST',
    url: `http://127.0.0.1:${running.httpPort}/v1/tenant/${tenantId}/timeline`,
    token,
    body: {timelineId, startLsn: '0/1000100', members: [{nodeId: 1, host: '127.0.0.1', port: running.port}]},
  });
  assert.equal(created.status, 201);

  const connect = async () => {
    const connection = await connectFrames({host: '127.0.0.1', port: running.port});
    const heard: (AcceptorMessage | {readonly kind: 'refused'; readonly code: string} | {readonly kind: 'welcome'})[] =
      [];
    let closed = false;
    connection.onFrame = (type, payload) => {
      if (type === frameWelcome) heard.push({kind: 'welcome'});
      else if (type === frameRefused) heard.push({kind: 'refused', code: parseRefusal(payload).code});
      else heard.push(decodeAcceptorMessage(type, payload));
    };
    connection.onClose = () => (closed = true);
    sendJson(connection, frameHello, {token, service: 'proposer', tenantId, timelineId});
    const next = async () => {
      for (let i = 0; i < 6000 && heard.length === 0; i++) await sleep(10);
      const message = heard.shift();
      assert.ok(message !== undefined, 'no answer within a minute');
      return message;
    };
    assert.equal((await next()).kind, 'welcome');
    return {
      heard,
      next,
      isClosed: () => closed,
      say: (message: ProposerMessage) => {
        const frame = encodeProposerMessage(message);
        connection.send(frame.type, ...frame.parts);
      },
      close: () => connection.destroy(),
    };
  };
  return {failures, connect};
}

const append = (beginLsn: Lsn): ProposerMessage => ({
  kind: 'append',
  generation: 1,
  term: 1,
  beginLsn,
  commitLsn: startLsn,
  wantsReply: false,
  bytes: someWal,
});

test('a failed fsync stops the node, and nothing is acknowledged', {timeout: 300_000}, async (t) => {
  const faults: Faults = {sync: false, space: false};
  const {failures, connect} = await safekeeper(t, faults);
  const proposer = await connect();
  proposer.say({kind: 'vote-request', generation: 1, term: 1});
  assert.equal((await proposer.next()).kind, 'vote-response');
  proposer.say({kind: 'elected', generation: 1, term: 1, history});
  assert.equal((await proposer.next()).kind, 'elected-response');
  faults.sync = true;
  proposer.say(append(startLsn));
  for (let i = 0; i < 6000 && failures.length === 0; i++) await sleep(10);
  assert.match(failures[0]!.message, new RegExp(`tenant ${tenantId} timeline ${timelineId}: EIO`));
  faults.sync = false;
  proposer.say({
    kind: 'append',
    generation: 1,
    term: 1,
    beginLsn: startLsn,
    commitLsn: startLsn,
    wantsReply: true,
    bytes: Buffer.alloc(0),
  });
  await sleep(100);
  assert.deepEqual(proposer.heard, []);
  proposer.close();
});

test(
  'a full disk refuses WAL and promises nothing; with space again everything goes on',
  {timeout: 300_000},
  async (t) => {
    const faults: Faults = {sync: false, space: false};
    const {failures, connect} = await safekeeper(t, faults);
    const first = await connect();
    first.say({kind: 'vote-request', generation: 1, term: 1});
    assert.equal((await first.next()).kind, 'vote-response');
    first.say({kind: 'elected', generation: 1, term: 1, history});
    assert.equal((await first.next()).kind, 'elected-response');
    faults.space = true;
    first.say(append(startLsn));
    assert.deepEqual(await first.next(), {kind: 'refused', code: 'disk-full'});

    // A vote cannot be saved either: no answer, and the promise is not made.
    const second = await connect();
    second.say({kind: 'vote-request', generation: 1, term: 9});
    for (let i = 0; i < 6000 && !second.isClosed(); i++) await sleep(10);
    assert.deepEqual(second.heard, []);

    faults.space = false;
    const third = await connect();
    third.say({kind: 'elected', generation: 1, term: 1, history});
    const answer = await third.next();
    assert.ok(answer.kind === 'elected-response' && answer.term === 1 && answer.startLsn === startLsn);
    third.say(append(startLsn));
    const acknowledged = await third.next();
    assert.ok(
      acknowledged.kind === 'append-response' &&
        acknowledged.syncedLsn === startLsn + someWal.length &&
        acknowledged.flushLsn === startLsn,
    );
    assert.deepEqual(failures, []);
    third.close();
  },
);
