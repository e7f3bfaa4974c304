/**
 * What hostile or broken clients send, by surface, and what they get: an error of ours or of Postgres, or a closed
 * connection; never a crash, a server that stays taken, or memory that stays held.
 */
// Expected answers are bytes of the protocol.
/* oxlint-disable no-control-regex */
import assert from 'node:assert/strict';
import {type Socket, connect} from 'node:net';
import {after, before, test} from 'node:test';
import {connect as connectTls} from 'node:tls';
import pg from 'pg';
import WebSocket from 'ws';
import {systemClock} from '#runtime/clock.ts';
import {SeededRandom} from '#runtime/random.ts';
import {collectGarbage} from '../../bench/collect-garbage.ts';
import {type FrontDoor, openFrontDoor, password} from '../../test/front-door.ts';
import {wrongCancelsMax} from '#proxy/limits.ts';
import {encodeMessage, encodeStartup} from '#proxy/messages.ts';

let door: FrontDoor;
before(async () => {
  door = await openFrontDoor();
});
after(() => door?.close());

const sslRequest = startupPacket(80877103);
const gssRequest = startupPacket(80877104);
const startup = (parameters: Record<string, string> = {}): Buffer =>
  encodeStartup(Object.entries({user: 'owner', database: 'app', options: 'endpoint=ep-one', ...parameters}));

function startupPacket(code: number, body: Buffer | string = ''): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(8 + Buffer.byteLength(body), 0);
  head.writeUInt32BE(code >>> 0, 4);
  return Buffer.concat([head, Buffer.from(body)]);
}

function lengthOnly(length: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32BE(length >>> 0, 0);
  return bytes;
}

/** What comes back until the other side closes. */
function untilClosed(socket: Socket, send: Buffer | string = ''): Promise<string> {
  return new Promise((resolve) => {
    let got = '';
    socket.on('data', (d: Buffer) => (got += d.toString('latin1')));
    socket.on('error', () => {});
    socket.on('close', () => resolve(got));
    if (send.length > 0) socket.write(send);
  });
}
const raw = (bytes: Buffer | string): Promise<string> => untilClosed(connect(door.port, '127.0.0.1'), bytes);

function client(options: pg.ClientConfig = {}): pg.Client {
  const made = new pg.Client({
    host: '127.0.0.1',
    port: door.port,
    user: 'owner',
    database: 'app',
    password,
    options: 'endpoint=ep-one',
    ...options,
  });
  made.on('error', () => {});
  return made;
}
const streamOf = (c: pg.Client): Socket => (c as unknown as {connection: {stream: Socket}}).connection.stream;
const backends = async (where = ''): Promise<number> =>
  (await door.cluster.query(`select 1 from pg_stat_activity where usename = 'owner' ${where}`)).length;

async function eventually(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (let i = 0; i < 4800; i++) {
    if (await holds()) return;
    await systemClock.sleep(25);
  }
  assert.fail(`never: ${what}`);
}

const silences: [string, Buffer | string][] = [
  ['one byte', '\0'],
  ['half a TLS hello', Buffer.from([0x16, 3, 1, 2, 0, 1, 0])],
  ['half a startup packet', startup().subarray(0, 20)],
  ['a startup and no password', startup()],
  ['half an HTTP head', 'POST /sql HTTP/1.1\r\nhost: x\r\n'],
];

test('silence ends after 15 s', {concurrency: true}, async (t) => {
  await Promise.all(
    silences.map(([name, bytes]) =>
      t.test(name, async () => {
        const started = performance.now();
        await raw(bytes);
        const seconds = (performance.now() - started) / 1000;
        assert.ok(seconds > 10 && seconds < 60, `${seconds} s`);
      }),
    ),
  );
});

const startups: [string, Buffer, RegExp][] = [
  ...[0, 3, 4, 7, 10_001, 0x7fffffff, 0x80000000, 0xffffffff].map((n): [string, Buffer, RegExp] => [
    `length ${n}`,
    lengthOnly(n),
    /C08P01/,
  ]),
  ['protocol 2.0', startupPacket(0x20000), /C08P01/],
  ['protocol 4.0', startupPacket(0x40000, 'user\0owner\0\0'), /C08P01/],
  ['no zero', startupPacket(196608, 'user'), /C08P01/],
  ['no last zero', startupPacket(196608, 'user\0owner\0'), /C08P01/],
  ['a name without a value', startupPacket(196608, 'user\0'), /C08P01/],
  ['bytes behind the end', startupPacket(196608, 'user\0owner\0\0more'), /C08P01/],
  ['no user', startupPacket(196608, 'database\0app\0\0'), /C08P01/],
  ['an empty user', startupPacket(196608, 'user\0\0database\0app\0\0'), /C08P01/],
  ['a user of 9,000 bytes', startup({user: 'u'.repeat(9000)}).subarray(0), /SCRAM-SHA-256/],
  ['a user of 64 KB', startup({user: 'u'.repeat(65536)}), /C08P01/],
  ['not UTF-8', startupPacket(196608, Buffer.from('user\0\xff\xfe\0\0', 'latin1')), /C08P01/],
  ['1,000 parameters', startup(Object.fromEntries(Array.from({length: 1000}, (_, i) => [`p${i}`, '']))), /C08P01/],
  ['an endpoint that is a path', startup({options: 'endpoint=../../ep-one'}), /C08004.*may hold only/s],
  ['an endpoint of somebody else', startup({options: 'endpoint=ep-two'}), /C08004/],
  ['no endpoint', startup({options: ''}), /^R\0\0\0\x08\0\0\0\x03/],
  ['GSS twice', Buffer.concat([gssRequest, gssRequest]), /^NE.*C08P01/s],
  ['GSS a thousand times', Buffer.concat(Array.from({length: 1000}, () => gssRequest)), /^NE.*C08P01/s],
  ['clear bytes behind SSLRequest', Buffer.concat([sslRequest, startup()]), /^E.*C08P01/s],
  ['SSLRequest a thousand times', Buffer.concat(Array.from({length: 1000}, () => sslRequest)), /^E.*C08P01/s],
  [
    'a TLS hello of garbage',
    Buffer.concat([Buffer.from([0x16, 3, 1, 0, 100]), Buffer.alloc(100, 0xee)]),
    /^(\x15.*)?$/s,
  ],
  ['a cancel request too short', startupPacket(80877102, '1234'), /C08P01/],
  ['a cancel request too long', startupPacket(80877102, Buffer.alloc(300)), /C08P01/],
];

test('startup: refused, and nothing reaches Postgres', async (t) => {
  const wakes = door.wakes();
  for (const [name, bytes, expected] of startups)
    await t.test(name, async () => {
      const socket = connect(door.port, '127.0.0.1');
      const got = untilClosed(socket, bytes);
      // Those that were let on to the password are left there.
      if (!expected.source.includes('C08') && !expected.source.includes('x15')) {
        await eventually('an answer', async () => socket.bytesRead > 8);
        socket.destroy();
      }
      assert.match(await got, expected);
    });
  assert.equal(door.wakes(), wakes);
  assert.equal(await backends(), 0);
});

test('a newer protocol and unknown protocol options are negotiated', async () => {
  for (const [bytes, expected] of [
    [startupPacket(0x3003f, startup().subarray(8)), /^v\0\0\0\x0c\0\0\0\0\0\0\0\0R/],
    [startup({'_pq_.new': '1'}), /^v.*_pq_\.new\0R/s],
  ] as const) {
    const socket = connect(door.port, '127.0.0.1');
    const got = untilClosed(socket, bytes);
    await eventually('an answer', async () => socket.bytesRead > 20);
    socket.destroy();
    assert.match(await got, expected);
  }
});

test('TLS from the first byte: only with ALPN; a name in SNI that is none', async () => {
  const start = (options: {ALPNProtocols?: string[]; servername?: string}, parameters = {}): Promise<string> =>
    untilClosed(
      connectTls({host: '127.0.0.1', port: door.port, rejectUnauthorized: false, ...options}),
      encodeStartup(Object.entries({user: 'nobody', database: 'app', ...parameters})),
    );
  const named = {options: 'endpoint=ep-one'};
  assert.match(await start({}, named), /C08P01.*ALPN/s);
  assert.match(await start({ALPNProtocols: ['http/1.1']}, named), /C08P01.*ALPN/s);
  assert.doesNotMatch(await start({ALPNProtocols: ['smtp']}, named), /R\0/);
  for (const servername of ['..%2fep-one.db.test', 'a.ep-one.db.test', 'ep-one.db.test.evil', '.db.test']) {
    const socket = connectTls({
      host: '127.0.0.1',
      port: door.port,
      rejectUnauthorized: false,
      servername,
      ALPNProtocols: ['postgresql'],
    });
    const got = untilClosed(socket, encodeStartup(Object.entries({user: 'owner', database: 'app'})));
    await eventually('asked for a password', async () => socket.bytesRead > 0 && socket.readableFlowing === true);
    socket.write(encodeMessage('p', Buffer.from(`${password}\0`)));
    assert.match(await got, /C08004/, servername);
  }
});

test('options of the session are for Postgres to judge, by the role', async () => {
  await assert.rejects(client({options: 'endpoint=ep-one -c session_preload_libraries=evil'}).connect(), {
    code: '42501',
  });
  await assert.rejects(
    client({options: 'endpoint=ep-one -c role=postgres'}).connect(),
    /permission denied|does not exist/,
  );
  const walSender = client({...({replication: 'database'} as pg.ClientConfig)});
  await assert.rejects(walSender.connect(), {code: '42501'});
});

/** A login by hand: what the client says first and last; `%n` becomes the whole nonce, `%s` the server's first message. */
async function sasl(initial: Buffer, final = ''): Promise<string> {
  const socket = connect(door.port, {host: '127.0.0.1'}.host);
  const got = untilClosed(socket, startup());
  await eventually('a list of mechanisms', async () => socket.bytesRead > 20);
  let all = '';
  socket.on('data', (d: Buffer) => {
    all += d.toString('latin1');
    const nonce = /r=([^,]+),s=/.exec(all)?.[1];
    if (nonce !== undefined && final !== '') {
      socket.write(encodeMessage('p', Buffer.from(final.replace('%n', nonce))));
      all = '';
    }
  });
  socket.write(initial);
  return got;
}
function saslInitial(mechanism: string, data: string, length = data.length): Buffer {
  const size = Buffer.alloc(4);
  size.writeInt32BE(length);
  return encodeMessage('p', Buffer.from(`${mechanism}\0`), size, Buffer.from(data));
}
const plain = saslInitial('SCRAM-SHA-256', 'n,,n=,r=abc');
const zeros = Buffer.alloc(32).toString('base64');
const dialogues: [string, Buffer, string, RegExp][] = [
  ['an unknown mechanism', saslInitial('SCRAM-MD5', 'n,,n=,r=abc'), '', /C08P01/],
  ['PLUS without TLS', saslInitial('SCRAM-SHA-256-PLUS', 'p=tls-server-end-point,,n=,r=abc'), '', /C08P01/],
  ['an identity to act for', saslInitial('SCRAM-SHA-256', 'n,a=postgres,n=,r=abc'), '', /C08P01/],
  ['a length that is not so', saslInitial('SCRAM-SHA-256', 'n,,n=,r=abc', 2 ** 31 - 1), '', /C08P01/],
  ['a length of -1', saslInitial('SCRAM-SHA-256', 'n,,n=,r=abc', -1), '', /C08P01/],
  ['no nonce', saslInitial('SCRAM-SHA-256', 'n,,n=,r='), '', /C08P01/],
  ['a message that is not SASL', encodeMessage('Q', Buffer.from('select 1\0')), '', /C08P01/],
  ['a message of 65 KB', lengthOnly(0).fill('p', 0, 1), '', /^R.*$/s],
  ['the nonce not extended', plain, `c=biws,r=abc,p=${zeros}`, /C08P01/],
  ['a channel binding that was not said', plain, `c=cD10bHM=,r=%n,p=${zeros}`, /C08P01/],
  ['a proof too short', plain, 'c=biws,r=%n,p=AAAA', /C08P01/],
  ['a proof of zeros', plain, `c=biws,r=%n,p=${zeros}`, /C28P01/],
  ['no proof', plain, 'c=biws,r=%n', /C08P01/],
];

test('SCRAM fails closed', async (t) => {
  const wakes = door.wakes();
  for (const [name, initial, final, expected] of dialogues)
    await t.test(name, async () => {
      const got = await sasl(initial, final);
      assert.match(got, expected);
      assert.doesNotMatch(got, /R\0\0\0\x08\0\0\0\0/, 'AuthenticationOk');
    });
  assert.equal(door.wakes(), wakes);
});

test('wrong passwords: after twenty from an address no more are looked at', async () => {
  // From another address: a whole minute long nobody from there comes in.
  const wrong = async (): Promise<string> => {
    const socket = connect({port: door.port, host: '127.0.0.1', localAddress: '127.0.0.2'});
    const got = untilClosed(socket, startup());
    let all = '';
    socket.on('data', (d: Buffer) => {
      all += d.toString('latin1');
      const nonce = /r=([^,]+),s=/.exec(all)?.[1];
      if (nonce !== undefined) socket.write(encodeMessage('p', Buffer.from(`c=biws,r=${nonce},p=${zeros}`)));
      else if (all.includes('SCRAM-SHA-256')) socket.write(plain);
    });
    return got;
  };
  for (let i = 0; i < 20; i++) assert.match(await wrong(), /C28P01/);
  for (let i = 0; i < 200; i++) assert.match(await wrong(), /^E.*C53300/s);
  const other = client();
  await other.connect();
  await other.end();
});

const afterLogin: [string, Buffer, RegExp][] = [
  ['a length of 0', Buffer.from([0x51, 0, 0, 0, 0]), /08P01|closed|terminated/],
  ['a length of 3', Buffer.from([0x51, 0, 0, 0, 3]), /08P01|closed|terminated/],
  ['a length that wraps', Buffer.from([0x51, 0xff, 0xff, 0xff, 0xff]), /08P01|closed|terminated/],
  ['a Parse of 2 GB', Buffer.from([0x50, 0x7f, 0xff, 0xff, 0xff]), /08P01|closed|terminated/],
  ['an unknown type', encodeMessage('z', Buffer.from('what')), /08P01/],
  ['a startup packet', startup(), /08P01/],
  ['a second password', encodeMessage('p', Buffer.from('secret\0')), /08P01|closed|terminated/],
];
const refusedByPostgres: [string, Buffer, RegExp][] = [
  ['a Query without its zero', encodeMessage('Q', Buffer.from('select 1')), /08P01/],
  ['a Describe of nothing', Buffer.concat([encodeMessage('D', Buffer.from('X\0')), encodeMessage('S')]), /08P01/],
  [
    'a Bind of a statement that is not there',
    Buffer.concat([encodeMessage('B', Buffer.from('\0none\0\0\0\0\0\0\0')), encodeMessage('S')]),
    /26000/,
  ],
  [
    'a Bind that says 65,535 parameters',
    Buffer.concat([
      encodeMessage('P', Buffer.from('\0select 1\0\0\0')),
      encodeMessage('B', Buffer.from([0, 0, 0, 0, 0xff, 0xff, 0, 0])),
      encodeMessage('S'),
    ]),
    /08P01/,
  ],
];
/** Ends the session, in the pooler and in Postgres alike (there some are an ERROR only). */
const nameWithoutEnd: [string, Buffer, RegExp][] = [
  [
    'a Parse whose name has no end',
    Buffer.concat([encodeMessage('P', Buffer.from('name')), encodeMessage('S')]),
    /08P01/,
  ],
  [
    'a Bind whose name has no end',
    Buffer.concat([encodeMessage('B', Buffer.from('name')), encodeMessage('S')]),
    /08P01/,
  ],
  ['an empty Close', Buffer.concat([encodeMessage('C'), encodeMessage('S')]), /08P01/],
];

for (const pooled of [false, true]) {
  const options = `endpoint=ep-one${pooled ? '-pooler' : ''}`;
  test(`after login, ${pooled ? 'pooled' : 'direct'}: malformed messages end their client only`, async (t) => {
    const bystander = client({options});
    await bystander.connect();
    await bystander.query('select 1');
    t.after(() => bystander.end());
    const before = await backends();
    for (const inside of [false, true])
      for (const [name, bytes, expected] of [...afterLogin, ...refusedByPostgres, ...nameWithoutEnd])
        await t.test(`${name}${inside ? ', in a transaction' : ''}`, async () => {
          const c = client({options});
          await c.connect();
          if (inside) await c.query('begin');
          const stream = streamOf(c);
          stream.removeAllListeners('data');
          let text = '';
          let ended = false;
          const complaints: string[] = [];
          stream.on('error', (error) => complaints.push(error.message));
          stream.on('data', (d: Buffer) => (text += d.toString('latin1')));
          void untilClosed(stream, bytes).then(() => (ended = true));
          // Postgres takes a length it cannot believe as the end of the connection.
          await eventually('an answer', async () => ended || expected.test(text));
          stream.destroy();
          if (!(expected.source.includes('closed') && text === ''))
            assert.match(
              text,
              expected,
              `${JSON.stringify(text)}, ${complaints.join(', ')}; Postgres: ${door.cluster.log.slice(-1000)}`,
            );
          assert.equal((await bystander.query('select 1 as one')).rows[0].one, 1);
          await eventually('its server is free', async () => (await backends("and state like '%transaction%'")) === 0);
        });
    await eventually('no server is left over', async () => (await backends()) <= before + 1);
  });

  test(`after login, ${pooled ? 'pooled' : 'direct'}: data for no COPY is ignored and takes no server`, async (t) => {
    const c = client({options});
    await c.connect();
    t.after(() => c.end());
    await c.query('select 1');
    const flood = Buffer.concat(Array.from({length: 200}, () => encodeMessage('d', Buffer.alloc(8000, 'x'))));
    streamOf(c).write(
      Buffer.concat([flood, encodeMessage('c'), encodeMessage('f', Buffer.from('no\0')), encodeMessage('H')]),
    );
    assert.equal((await c.query('select 2 as two')).rows[0].two, 2);
    if (!pooled) return;
    const others = Array.from({length: 5}, () => client({options}));
    for (const other of others) await other.connect();
    for (const other of others) await other.query('select 1');
    const before = await backends();
    for (const other of others) streamOf(other).write(flood);
    for (const other of others) streamOf(other).write(encodeMessage('H'));
    for (let i = 0; i < 10; i++) await c.query('select 1');
    assert.ok((await backends()) <= before);
    await Promise.all(others.map((other) => other.end()));
  });

  test(`after login, ${pooled ? 'pooled' : 'direct'}: a COPY that fails while its data is on the way`, async (t) => {
    const c = client({options});
    const other = client({options});
    await c.connect();
    await other.connect();
    t.after(() => Promise.all([c.end(), other.end()]));
    await c.query('create table if not exists copied (n int)');
    // node-postgres by itself ends a COPY that it was not asked to feed.
    (c as unknown as {connection: {sendCopyFail: () => void}}).connection.sendCopyFail = () => {};
    for (let round = 0; round < 5; round++) {
      const failed = assert.rejects(c.query('copy copied from stdin'), {code: '22P02'});
      const stream = streamOf(c);
      await new Promise((resolve) => stream.once('data', resolve));
      stream.write(encodeMessage('d', Buffer.from('nonsense\n')));
      // Half a message is there when the server gives up; the rest must not go to whoever comes next.
      const message = encodeMessage('d', Buffer.alloc(60_000, encodeMessage('Q', Buffer.from('select 1/0\0'))));
      stream.write(message.subarray(0, 30_000));
      await systemClock.sleep(50);
      const [answer] = await Promise.all([other.query('select 3 as three'), systemClock.sleep(20)]);
      assert.equal(answer.rows[0].three, 3);
      stream.write(message.subarray(30_000));
      stream.write(encodeMessage('c'));
      await failed;
      assert.equal((await c.query('select 4 as four')).rows[0].four, 4);
      assert.equal((await other.query('select 5 as five')).rows[0].five, 5);
    }
  });
}

test('cancel: guesses, another address, a key whose session ended: no effect and no answer', async () => {
  const victim = client();
  await victim.connect();
  const {processID, secretKey} = victim as unknown as {processID: number; secretKey: number};
  const key = Buffer.alloc(8);
  key.writeInt32BE(processID, 0);
  key.writeInt32BE(secretKey, 4);
  const cancel = (bytes: Buffer, localAddress = '127.0.0.1'): Promise<string> =>
    untilClosed(connect({port: door.port, host: '127.0.0.1', localAddress}), startupPacket(80877102, bytes));
  const running = victim.query('select pg_sleep(1), 1 as one');
  const random = new SeededRandom(1);
  for (let i = 0; i < 300; i++) assert.equal(await cancel(random.bytes(8)), '');
  assert.equal(await cancel(key, '127.0.0.3'), '');
  assert.equal((await running).rows[0].one, 1);
  const cancelled = assert.rejects(victim.query('select pg_sleep(600)'), {code: '57014'});
  await eventually('the query runs', async () => (await backends("and state = 'active'")) === 1);
  assert.equal(await cancel(key), '');
  await cancelled;
  await victim.end();
  const next = client();
  await next.connect();
  const undisturbed = next.query('select pg_sleep(0.3), 2 as two');
  for (let i = 0; i < 20; i++) assert.equal(await cancel(key), '');
  assert.equal((await undisturbed).rows[0].two, 2);
  await next.end();

  // From an address that guesses, the right key is not looked at either; from others it is.
  const guesser = client();
  await guesser.connect();
  const guessed = guesser as unknown as {processID: number; secretKey: number};
  key.writeInt32BE(guessed.processID, 0);
  key.writeInt32BE(guessed.secretKey, 4);
  const long = guesser.query('select pg_sleep(1), 3 as three');
  for (let i = 0; i < wrongCancelsMax; i += 100)
    await Promise.all(Array.from({length: 100}, () => cancel(random.bytes(8))));
  assert.equal(await cancel(key), '');
  assert.equal((await long).rows[0].three, 3);
  await guesser.end();
});

const connectionString = (): string => `postgresql://owner:${encodeURIComponent(password)}@ep-one.db.test/app`;
test('HTTP: what is wrong is a 4xx', async (t) => {
  const url = `http://127.0.0.1:${door.port}/sql`;
  const headers = {'neon-connection-string': connectionString()};
  const cases: [string, RequestInit & {path?: string}, number][] = [
    ['not JSON', {body: 'no'}, 400],
    ['null', {body: 'null'}, 400],
    ['a number for a query', {body: '{"query": 5}'}, 400],
    ['parameters that are no list', {body: '{"query": "select 1", "params": {"a": 1}}'}, 400],
    ['JSON nested 100,000 deep', {body: '['.repeat(100_000)}, 400],
    [
      'a parameter nested 100,000 deep',
      {body: `{"query": "select $1", "params": [${'['.repeat(100_000)}${']'.repeat(100_000)}]}`},
      400,
    ],
    ['a batch of 100,000', {body: JSON.stringify({queries: Array.from({length: 100_000}, () => ({query: ''}))})}, 400],
    [
      'a wrong password',
      {
        body: '{"query": "select 1"}',
        headers: {'neon-connection-string': connectionString().replace('owner:', 'owner:x')},
      },
      400,
    ],
    ['no connection string', {body: '{"query": "select 1"}', headers: {}}, 400],
    [
      'a connection string that is none',
      {body: '{"query": "select 1"}', headers: {'neon-connection-string': 'http://[::'}},
      400,
    ],
    [
      'an isolation level that is SQL',
      {body: '{"queries": []}', headers: {...headers, 'neon-batch-isolation-level': 'Serializable; drop table x'}},
      400,
    ],
    ['another path', {path: '/sql/../../etc/passwd', body: '{}'}, 400],
    ['GET', {method: 'GET'}, 405],
    ['DELETE', {method: 'DELETE'}, 405],
  ];
  for (const [name, {path, ...init}, status] of cases)
    await t.test(name, async () => {
      const response = await fetch(path === undefined ? url : new URL(path, url), {method: 'POST', headers, ...init});
      const body = await response.text();
      assert.equal(response.status, status, body);
      assert.doesNotMatch(body, /\bat .*\.ts:|node:internal/, 'no stack trace');
    });
  const head = `POST /sql HTTP/1.1\r\nhost: x\r\nneon-connection-string: ${connectionString()}\r\n`;
  for (const [name, request] of [
    ['a length that is no number', `${head}content-length: many\r\n\r\n`],
    ['a negative length', `${head}content-length: -1\r\n\r\n`],
    ['two lengths', `${head}content-length: 2\r\ncontent-length: 3\r\n\r\n{}`],
    ['length and chunks (smuggling)', `${head}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n`],
    ['a header of 1 MB', `${head}x: ${'y'.repeat(1 << 20)}\r\n\r\n`],
    ['a method that is none', 'XYZZY / HTTP/1.1\r\n\r\n'],
    ['a bare line end in a header', `${head}a: b\rc: d\r\n\r\n`],
  ] as const)
    await t.test(name, async () => assert.match(await raw(request), /^(HTTP\/1\.1 4\d\d |$)/));
  await t.test('100 MB from somebody unknown are not read', async () => {
    const socket = connect(door.port, '127.0.0.1');
    const got = untilClosed(socket, 'POST /sql HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n');
    const chunk = Buffer.alloc(1 << 16, 'x');
    const push = setInterval(() => {
      if (!socket.destroyed && !socket.writableNeedDrain) socket.write(chunk);
    }, 1);
    try {
      assert.match(await got, /^HTTP\/1\.1 400 /);
    } finally {
      clearInterval(push);
    }
  });
});

test('WebSocket: frames that are not a session', async (t) => {
  const open = async (): Promise<{socket: WebSocket; end: Promise<string>}> => {
    const socket = new WebSocket(`ws://127.0.0.1:${door.port}/v2`, {headers: {host: 'ep-one.db.test'}});
    let got = '';
    socket.on('message', (d: Buffer) => (got += d.toString('latin1')));
    socket.on('error', () => {});
    const end = new Promise<string>((resolve) => socket.on('close', () => resolve(got)));
    await new Promise((resolve) => socket.once('open', resolve));
    return {socket, end};
  };
  const cases: [string, Buffer | string, RegExp][] = [
    ['text', 'hello, is anybody there?', /C08P01/],
    ['TLS inside', sslRequest, /C08P01/],
    ['a cancel request', startupPacket(80877102, Buffer.alloc(8)), /C08P01/],
    ['a length of 2 GB', lengthOnly(0x7fffffff), /C08P01/],
    ['a frame of 1 MB before the login', Buffer.alloc(1 << 20), /^$/],
    ['a wrong password', Buffer.concat([startup(), encodeMessage('p', Buffer.from('wrong\0'))]), /C28P01/],
    ['no password but a query', Buffer.concat([startup(), encodeMessage('Q', Buffer.from('select 1\0'))]), /C08P01/],
  ];
  for (const [name, bytes, expected] of cases)
    await t.test(name, async () => {
      const {socket, end} = await open();
      socket.send(bytes);
      assert.match(await end, expected);
    });
  await t.test('a frame with a reserved bit', async () => {
    const head =
      'GET /v2 HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n';
    assert.match(
      await raw(Buffer.concat([Buffer.from(head), Buffer.from([0xf2, 0x80, 0, 0, 0, 0])])),
      /^HTTP\/1.1 101/,
    );
  });
  await t.test('an upgrade without a key', async () => {
    assert.match(
      await raw('GET /v2 HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n'),
      /^HTTP\/1.1 4/,
    );
  });
});

test('3,000 silent connections keep nobody out and hold little', async () => {
  const silent: Socket[] = [];
  collectGarbage();
  const before = process.memoryUsage().rss;
  try {
    for (let i = 0; i < 3000; i += 100)
      await Promise.all(
        Array.from({length: 100}, async () => {
          const socket = connect(door.port, '127.0.0.1');
          silent.push(socket);
          socket.on('error', () => {});
          await new Promise((resolve) => socket.once('connect', resolve));
          socket.write('\0');
        }),
      );
    await eventually(
      'the oldest went',
      async () => silent.filter((s) => s.closed).length >= 1000 || !silent[0]!.resume(),
    );
    const started = performance.now();
    const c = client();
    await c.connect();
    await c.query('select 1');
    const ms = performance.now() - started;
    const silentStill = silent.filter((s) => !s.closed).length;
    await c.end();
    // It has not waited until their 15 s were over; on a busy machine only that some are left says so.
    assert.ok(ms < 10_000 || silentStill > 0, `${ms} ms`);
    // Both ends of each connection are in this process.
    const each = (process.memoryUsage().rss - before) / 3000;
    assert.ok(each < 100 * 1024, `${each} bytes each`);
  } finally {
    for (const socket of silent) socket.destroy();
  }
});

test('thousands of bad connections leave no memory behind', async () => {
  const bad = [
    startupPacket(0x20000),
    lengthOnly(3),
    startup({user: ''}),
    startupPacket(80877102, Buffer.alloc(8, 7)),
    Buffer.concat([sslRequest, sslRequest]),
    Buffer.from([0x16, 3, 1, 0, 4, 1, 2, 3, 4]),
    Buffer.from('XYZZY\r\n\r\n'),
  ];
  const burst = async (n: number): Promise<number> => {
    for (let i = 0; i < n; i += 100)
      await Promise.all(Array.from({length: 100}, (_, j) => raw(bad[(i + j) % bad.length]!)));
    await systemClock.sleep(100);
    collectGarbage();
    return process.memoryUsage().heapUsed;
  };
  // What leaks does so each time; what the collector or the machine has left over does not.
  let before = await burst(1000);
  const grown: number[] = [];
  for (let round = 0; round < 3; round++) {
    const now = await burst(3000);
    if (now - before < 1 << 20) return;
    grown.push(now - before);
    before = now;
  }
  assert.fail(`the heap grew by ${grown.join(', ')} bytes in 3,000 connections each`);
});
