/** The proxy before a stock Postgres. Clients: psql, node-postgres, the serverless driver, raw sockets. */
import assert from 'node:assert/strict';
import {type ChildProcess, execFile, spawn} from 'node:child_process';
import {connect} from 'node:net';
import {after, before, test} from 'node:test';
import {promisify} from 'node:util';
import {Pool, neon, neonConfig} from '@neondatabase/serverless';
import pg from 'pg';
import {systemClock} from '#runtime/clock.ts';
import {type FrontDoor, openFrontDoor, password} from '../../test/front-door.ts';

const run = promisify(execFile);
let door: FrontDoor;
const children: ChildProcess[] = [];

before(async () => {
  door = await openFrontDoor();
});

after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await door?.close();
});

async function psql(
  conninfo: string,
  sql: string,
  env: Record<string, string> = {},
): Promise<{stdout: string; stderr: string; code: number}> {
  try {
    const {stdout, stderr} = await run('psql', ['-XAtc', sql, conninfo], {
      env: {...process.env, PGPASSWORD: password, ...env},
    });
    return {stdout: stdout.trim(), stderr, code: 0};
  } catch (error) {
    const e = error as {stdout: string; stderr: string; code: number};
    return {stdout: e.stdout, stderr: e.stderr, code: e.code};
  }
}

const base = (): string => `host=localhost hostaddr=127.0.0.1 port=${door.port} user=owner dbname=app`;

test('psql with SCRAM-SHA-256-PLUS, the endpoint in options', async () => {
  const r = await psql(
    `${base()} sslmode=require channel_binding=require options=endpoint=ep-one`,
    'select current_user, current_database()',
  );
  assert.equal(r.stdout, 'owner|app', r.stderr);
});

test('psql names the endpoint by SNI', async () => {
  const r = await psql(
    base().replace('host=localhost', 'host=ep-one.db.test') + ' sslmode=require',
    'show application_name',
  );
  assert.equal(r.stdout, 'psql', r.stderr);
});

test('a password that was just changed: the new one works at once, or at the second try where the dialogue had begun', async () => {
  const conninfo = `${base()} sslmode=require options=endpoint=ep-one`;
  assert.equal((await psql(conninfo, 'select 1')).stdout, '1');
  await systemClock.sleep(300);
  await door.cluster.query("alter role owner password 'another'");
  try {
    const byPassword = `${base()} sslmode=require`; // no endpoint named: asked for in the clear, inside TLS
    assert.equal((await psql(byPassword, 'select 2', {PGPASSWORD: 'endpoint=ep-one;another'})).stdout, '2');
    await systemClock.sleep(300);
    await door.cluster.query(`alter role owner password ${pg.escapeLiteral(password)}`);
    const answers = [await psql(conninfo, 'select 3'), await psql(conninfo, 'select 3')];
    assert.equal(answers[1]!.stdout, '3', answers[1]!.stderr);
    // The kept answer is believed at first, but not when it has grown old meanwhile.
    if (answers[0]!.code !== 0) assert.match(answers[0]!.stderr, /password authentication failed/);
  } finally {
    await door.cluster.query(`alter role owner password ${pg.escapeLiteral(password)}`);
  }
});

test('a pooler name is the same endpoint', async () => {
  const r = await psql(base().replace('host=localhost', 'host=ep-one-pooler.db.test') + ' sslmode=require', 'select 1');
  assert.equal(r.stdout, '1', r.stderr);
});

test('without TLS from this machine; other options reach Postgres', async () => {
  const r = await psql(`${base()} sslmode=disable options='endpoint=ep-one -c work_mem=5MB'`, 'show work_mem');
  assert.equal(r.stdout, '5MB', r.stderr);
});

test('node-postgres; large answers; COPY', async () => {
  const client = new pg.Client({
    host: '127.0.0.1',
    port: door.port,
    user: 'owner',
    database: 'app',
    password,
    options: 'endpoint=ep-one',
    ssl: {rejectUnauthorized: false},
  });
  await client.connect();
  const {rows} = await client.query("select repeat('x', 1000) as t from generate_series(1, 20000)");
  assert.equal(rows.length, 20000);
  await client.end();
});

test('refusals say what to do', async () => {
  const cases: [string, string, Record<string, string>, RegExp][] = [
    [
      'wrong password',
      `${base()} sslmode=require options=endpoint=ep-one`,
      {PGPASSWORD: 'wrong'},
      /password authentication failed for user "owner"/,
    ],
    [
      'unknown role',
      `${base()} sslmode=require options=endpoint=ep-one`.replace('user=owner', 'user=nobody'),
      {},
      /password authentication failed for user "nobody"/,
    ],
    ['unknown endpoint', `${base()} sslmode=require options=endpoint=ep-two`, {}, /endpoint ep-two does not exist/],
    ['no endpoint', `${base()} sslmode=require`, {}, /endpoint is not named/],
    [
      'host and options differ',
      base().replace('host=localhost', 'host=ep-one.db.test') + ' sslmode=require options=endpoint=ep-two',
      {},
      /host name says endpoint ep-one/,
    ],
    [
      'unknown database',
      `${base()} sslmode=require options=endpoint=ep-one`.replace('dbname=app', 'dbname=nothere'),
      {},
      /database "nothere" does not exist/,
    ],
  ];
  for (const [name, conninfo, env, expected] of cases) {
    const r = await psql(conninfo, 'select 1', env);
    assert.notEqual(r.code, 0, name);
    assert.match(r.stderr, expected, name);
  }
});

test('cancel reaches the query; a wrong key does nothing', async () => {
  const child = spawn('psql', ['-Xc', 'select pg_sleep(600)', `${base()} sslmode=require options=endpoint=ep-one`], {
    env: {...process.env, PGPASSWORD: password},
  });
  children.push(child);
  let stderr = '';
  child.stderr.on('data', (d: Buffer) => (stderr += d.toString()));
  const exited = new Promise((resolve) => child.on('close', resolve));
  for (let i = 0; i < 6000; i++) {
    const rows = await door.cluster.query(
      "select 1 from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'",
    );
    if (rows.length > 0) break;
    await systemClock.sleep(20);
  }
  const guess = Buffer.alloc(16);
  guess.writeUInt32BE(16, 0);
  guess.writeUInt32BE(80877102, 4);
  const socket = connect(door.port, '127.0.0.1');
  socket.end(guess);
  await new Promise((resolve) => socket.on('close', resolve).resume());
  await systemClock.sleep(50);
  assert.equal(child.exitCode, null);
  child.kill('SIGINT');
  await exited;
  assert.match(stderr, /canceling statement due to user request/);
});

/** Sends bytes and collects what comes back until the proxy closes. */
function raw(bytes: Buffer): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(door.port, '127.0.0.1');
    let got = '';
    socket.on('data', (d) => (got += d.toString('latin1')));
    socket.on('error', () => {});
    socket.on('close', () => resolve(got));
    socket.write(bytes);
  });
}

test('hostile startup packets are refused and nothing reaches Postgres', async () => {
  const before = door.wakes();
  const packet = (code: number, body = Buffer.alloc(0)): Buffer => {
    const head = Buffer.alloc(8);
    head.writeUInt32BE(8 + body.length, 0);
    head.writeUInt32BE(code, 4);
    return Buffer.concat([head, body]);
  };
  const length = (n: number): Buffer => {
    const b = Buffer.alloc(8);
    b.writeUInt32BE(n >>> 0, 0);
    return b;
  };
  for (const n of [0, 3, 4, 10_001, 0x7fffffff, 0xffffffff])
    assert.match(await raw(length(n)), /C08P01/, `length ${n}`);
  assert.match(await raw(packet(0x00020000)), /C08P01/, 'protocol 2.0');
  assert.match(await raw(packet(196608, Buffer.from('user'))), /C08P01/, 'no zero at the end');
  assert.match(await raw(packet(196608, Buffer.from('user\0\xff\xfe\0\0', 'latin1'))), /C08P01/, 'not UTF-8');
  assert.match(await raw(packet(196608, Buffer.from('database\0app\0\0'))), /C08P01/, 'no user');
  const smuggled = Buffer.concat([packet(80877103), packet(196608, Buffer.from('user\0owner\0\0'))]);
  assert.match(await raw(smuggled), /^E.*C08P01/s, 'clear bytes behind SSLRequest');
  assert.equal(door.wakes(), before);
});

test('the serverless driver over HTTP: single, batch in a transaction, errors', async () => {
  neonConfig.fetchEndpoint = `http://127.0.0.1:${door.port}/sql`;
  const sql = neon(`postgresql://owner:${encodeURIComponent(password)}@ep-one.db.test/app`);
  assert.deepEqual(await sql`select ${1}::int as one, ${['a', 'b"\\']}::text[] as two, ${null}::text as three`, [
    {one: 1, two: ['a', 'b"\\'], three: null},
  ]);
  await sql`create table if not exists http_t (n int primary key)`;
  const [, rows] = await sql.transaction(
    [sql`insert into http_t values (1), (2)`, sql`select count(*)::int as n from http_t`],
    {isolationLevel: 'Serializable'},
  );
  assert.deepEqual(rows, [{n: 2}]);
  await assert.rejects(sql.transaction([sql`insert into http_t values (3)`, sql`insert into http_t values (1)`]), {
    code: '23505',
    constraint: 'http_t_pkey',
  });
  assert.deepEqual(await sql`select count(*)::int as n from http_t`, [{n: 2}]);
  await assert.rejects(neon('postgresql://owner:wrong@ep-one.db.test/app')`select 1`, /password authentication failed/);
});

test('plain HTTP callers get JSON values and CORS headers', async () => {
  const url = `http://127.0.0.1:${door.port}/sql`;
  const headers = {'neon-connection-string': `postgresql://owner:${encodeURIComponent(password)}@ep-one.db.test/app`};
  const body = JSON.stringify({
    query:
      "select 5 as i, 'NaN'::float8 as f, true as b, '{\"a\":[1]}'::jsonb as j, '{{1,2},{3,NULL}}'::int[] as a, 9007199254740993 as big, $1 as p",
    params: [{k: 1}],
  });
  const response = await fetch(url, {method: 'POST', headers, body});
  assert.equal(response.headers.get('access-control-allow-origin'), '*');
  const {rows} = (await response.json()) as {rows: unknown[]};
  assert.deepEqual(rows, [
    {
      i: 5,
      f: 'NaN',
      b: true,
      j: {a: [1]},
      a: [
        [1, 2],
        [3, null],
      ],
      big: '9007199254740993',
      p: '{"k":1}',
    },
  ]);
  assert.equal((await fetch(url, {method: 'OPTIONS'})).status, 200);
  assert.equal((await fetch(url, {method: 'POST', headers, body: 'not json'})).status, 400);
  assert.equal(
    (
      await fetch(url, {method: 'POST', headers, body: Buffer.alloc(11 * 1024 * 1024, 'x')}).catch(() => ({
        status: 413,
      }))
    ).status,
    413,
  );
  const large = await fetch(url, {
    method: 'POST',
    headers,
    body: JSON.stringify({query: "select repeat('x', 12000000)"}),
  });
  assert.equal(large.status, 507);
});

test('the serverless driver over WebSocket: pipelined password, transaction', async () => {
  neonConfig.useSecureWebSocket = false;
  neonConfig.wsProxy = `127.0.0.1:${door.port}/v2`;
  const pool = new Pool({connectionString: `postgresql://owner:${encodeURIComponent(password)}@ep-one.db.test/app`});
  // A closing WebSocket that the proxy's end cuts off is an error event, for whoever listens.
  const ignore = (): void => {};
  pool.on('error', ignore);
  const client = await pool.connect();
  client.on('error', ignore);
  await client.query('begin');
  const {rows} = await client.query("select $1::int + 1 as n, repeat('y', 300000) as big", [41]);
  assert.deepEqual([rows[0].n, rows[0].big.length], [42, 300000]);
  await client.query('rollback');
  client.release();
  await pool.end();
  const wrong = new Pool({connectionString: 'postgresql://owner:wrong@ep-one.db.test/app'});
  wrong.on('error', ignore);
  await assert.rejects(wrong.query('select 1'), /password authentication failed/);
  await wrong.end();
});
