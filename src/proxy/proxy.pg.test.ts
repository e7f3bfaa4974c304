/** The proxy before a stock Postgres, with a control plane that answers from a table. Clients: psql, node-postgres, raw sockets. */
import assert from 'node:assert/strict';
import {type ChildProcess, execFile, spawn} from 'node:child_process';
import {mkdtempSync, rmSync} from 'node:fs';
import {connect} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {promisify} from 'node:util';
import pg from 'pg';
import {systemClock} from '#runtime/clock.ts';
import {startHttpServer} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {TokenVerifier, generateKeys} from '#wire/auth.ts';
import {runProxy} from '#proxy/server.ts';
import {PostgresCluster} from '../../test/postgres-cluster.ts';

const run = promisify(execFile);
const dir = mkdtempSync(join(tmpdir(), 'pagoda-proxy-'));
const password = 'pa;ss$word "\u00e9';
let cluster: PostgresCluster;
let control: {port: number; close(): Promise<void>};
let proxy: {port: number; stop(): Promise<void>};
let wakes = 0;
const children: ChildProcess[] = [];

before(async () => {
  cluster = await PostgresCluster.create({
    settings: {password_encryption: 'scram-sha-256'},
    initdbArgs: ['--auth-host=scram-sha-256'],
  });
  await cluster.query(`create role owner login password ${pg.escapeLiteral(password)}`);
  await cluster.query('create database app owner owner');
  const [row] = await cluster.query("select rolpassword from pg_authid where rolname = 'owner'");
  const verifier = String((row as {rolpassword: string}).rolpassword);
  const keysDir = join(dir, 'keys');
  await generateKeys(keysDir);
  const tokens = await TokenVerifier.load(keysDir, 'control', systemClock);
  control = await startHttpServer({
    host: '127.0.0.1',
    port: 0,
    log: silentLog,
    authenticate: (token) => tokens.verify(token),
    routes: [
      {
        method: 'GET',
        path: '/internal/v1/endpoint_access',
        handler: async ({query}) =>
          query.get('endpoint') === 'ep-one'
            ? {
                status: 200,
                json: {
                  endpointId: 'ep-one',
                  ...(query.get('role') === 'owner' && {scramVerifier: verifier}),
                  allowedIps: [],
                },
              }
            : {status: 404, json: {code: 'not_found', message: 'no such endpoint'}},
      },
      {
        method: 'POST',
        path: '/internal/v1/endpoints/:id/wake',
        handler: async () => {
          wakes++;
          return {status: 200, json: {host: '127.0.0.1', port: cluster.port}};
        },
      },
    ],
  });
  proxy = await runProxy({
    host: '127.0.0.1',
    port: 0,
    keysDir,
    dataDir: join(dir, 'proxy'),
    domain: 'db.test',
    controlUrl: `http://127.0.0.1:${control.port}`,
  });
});

after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await proxy?.stop();
  await control?.close();
  await cluster?.[Symbol.asyncDispose]();
  rmSync(dir, {recursive: true, force: true});
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

const base = (): string => `host=localhost hostaddr=127.0.0.1 port=${proxy.port} user=owner dbname=app`;

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
    port: proxy.port,
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
  const child = spawn('psql', ['-Xc', 'select pg_sleep(30)', `${base()} sslmode=require options=endpoint=ep-one`], {
    env: {...process.env, PGPASSWORD: password},
  });
  children.push(child);
  let stderr = '';
  child.stderr.on('data', (d: Buffer) => (stderr += d.toString()));
  const exited = new Promise((resolve) => child.on('close', resolve));
  for (let i = 0; i < 100; i++) {
    const rows = await cluster.query(
      "select 1 from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'",
    );
    if (rows.length > 0) break;
    await systemClock.sleep(20);
  }
  const guess = Buffer.alloc(16);
  guess.writeUInt32BE(16, 0);
  guess.writeUInt32BE(80877102, 4);
  const socket = connect(proxy.port, '127.0.0.1');
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
    const socket = connect(proxy.port, '127.0.0.1');
    let got = '';
    socket.on('data', (d) => (got += d.toString('latin1')));
    socket.on('error', () => {});
    socket.on('close', () => resolve(got));
    socket.write(bytes);
  });
}

test('hostile startup packets are refused and nothing reaches Postgres', async () => {
  const before = wakes;
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
  assert.equal(wakes, before);
});
