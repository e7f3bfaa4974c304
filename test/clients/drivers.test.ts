/**
 * Drivers and tools as people use them, unmodified, through the front door of a running Pagoda. The tests of this file
 * follow one another on the same installation.
 */
import assert from 'node:assert/strict';
import {execFile, spawn} from 'node:child_process';
import {mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {neon, neonConfig, Pool} from '@neondatabase/serverless';
import {sql} from 'drizzle-orm';
import {drizzle as drizzleHttp} from 'drizzle-orm/neon-http';
import {drizzle as drizzleWebSocket} from 'drizzle-orm/neon-serverless';
import {drizzle as drizzlePostgres} from 'drizzle-orm/node-postgres';
import {integer, pgTable, text} from 'drizzle-orm/pg-core';
import pg from 'pg';
import postgres from 'postgres';
import {clientConfig, Pagoda} from '../pagoda.ts';
import {until} from '../until.ts';

let pagoda: Pagoda;
/** As the API prints it: `ep-….localhost:port`, sslmode=require, channel_binding=require. */
let uri: string;
let endpointId: string;
let folder: string;
before(async () => {
  pagoda = await Pagoda.start();
  ({uri, endpointId} = await pagoda.mainBranch());
  folder = mkdtempSync(join(tmpdir(), 'pagoda-drivers-'));
  // docs/quickstart.md, for the driver on localhost.
  neonConfig.fetchEndpoint = `http://127.0.0.1:${pagoda.status.ports.proxy}/sql`;
  neonConfig.useSecureWebSocket = false;
  neonConfig.wsProxy = `127.0.0.1:${pagoda.status.ports.proxy}/v2`;
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
  if (folder !== undefined) rmSync(folder, {recursive: true, force: true});
});

interface Finished {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program of PostgreSQL's, with the connection string as libpq takes it. */
function tool(command: string, args: readonly string[], input = ''): Promise<Finished> {
  return new Promise((resolve) => {
    const child = execFile(
      command,
      [...args],
      // Where the machine's resolver does not know `*.localhost`; the name still goes into SNI.
      {env: {PATH: process.env['PATH'], HOME: folder, PGHOSTADDR: '127.0.0.1'}, maxBuffer: 1 << 26},
      (error, stdout, stderr) => resolve({code: error === null ? 0 : Number(error.code ?? 1), stdout, stderr}),
    );
    child.stdin?.end(input);
  });
}
async function succeed(command: string, args: readonly string[], input?: string): Promise<string> {
  const {code, stdout, stderr} = await tool(command, args, input);
  assert.equal(code, 0, `${command} ${args.join(' ')}\n${stdout}\n${stderr}`);
  return stdout;
}
const onDatabase = (name: string): string => uri.replace('/neondb?', `/${name}?`);
const psql = (statement: string, to = uri): Promise<string> =>
  succeed('psql', ['-X', '-At', '-v', 'ON_ERROR_STOP=1', '-d', to, '-c', statement]);

test('psql: SCRAM with channel binding over TLS, found by SNI, by options and by the password', async () => {
  assert.match(uri, /sslmode=require&channel_binding=require$/);
  assert.equal((await psql('select current_user')).trim(), 'neondb_owner');
  const url = new URL(uri);
  const byOptions = `postgresql://${url.username}:${url.password}@localhost:${url.port}/neondb?sslmode=require&channel_binding=require&options=endpoint%3D${endpointId}`;
  assert.equal((await psql('select 1', byOptions)).trim(), '1');
  const byPassword = `postgresql://${url.username}:${encodeURIComponent(`endpoint=${endpointId};${url.password}`)}@localhost:${url.port}/neondb?sslmode=require&sslsni=0`;
  // Two endpoints, so that the front door cannot guess.
  await pagoda.branch({name: 'other'});
  assert.equal((await psql('select 2', byPassword)).trim(), '2');
  const wrong = await tool('psql', ['-d', uri.replace(/:npg_\w+@/, ':wrong@'), '-c', 'select 1']);
  assert.match(wrong.stderr, /password authentication failed for user "neondb_owner"/);
  const unknown = await tool('psql', ['-d', uri.replace(endpointId, 'ep-not-there-a1234567'), '-c', 'select 1']);
  assert.match(unknown.stderr, /endpoint ep-not-there-a1234567 does not exist/);
  const missing = await tool('psql', ['-d', onDatabase('nothing'), '-c', 'select 1']);
  assert.match(missing.stderr, /database "nothing" does not exist/);
});

test('@neondatabase/serverless over HTTP: a query, types, a batch, errors', async () => {
  const query = neon(uri);
  await query`create table http (id int primary key, name text, at timestamptz, tags text[], data jsonb)`;
  const at = new Date('2024-02-29T12:34:56.789Z');
  await query`insert into http values (${1}, ${'one'}, ${at}, ${['a', 'b "c"']}, ${{deep: [1, null]}})`;
  const [row] = await query`select * from http where id = ${1}`;
  assert.deepEqual({...row}, {id: 1, name: 'one', at, tags: ['a', 'b "c"'], data: {deep: [1, null]}});
  const results = await query.transaction(
    [query`insert into http values (2, 'two')`, query`select count(*)::int as n from http`],
    {isolationLevel: 'Serializable'},
  );
  assert.deepEqual(results[1], [{n: 2}]);
  await assert.rejects(
    query.transaction([query`insert into http values (3, 'three')`, query`insert into http values (1, 'again')`]),
    (error: {code?: string; constraint?: string}) => error.code === '23505' && error.constraint === 'http_pkey',
  );
  assert.deepEqual(await query`select count(*)::int as n from http`, [{n: 2}], 'a failed batch leaves nothing');
  const full = neon(uri, {fullResults: true, arrayMode: true});
  const {fields, rows, rowCount, command} = await full`select id, name from http order by id`;
  assert.deepEqual(
    [fields.map((f) => f.name), rows, rowCount, command],
    [
      ['id', 'name'],
      [
        [1, 'one'],
        [2, 'two'],
      ],
      2,
      'SELECT',
    ],
  );
  await assert.rejects(neon(uri.replace(/:npg_\w+@/, ':wrong@'))`select 1`, /password authentication failed/);
});

test('@neondatabase/serverless over WebSocket: pool, transaction, many at once', async () => {
  const pool = new Pool({connectionString: uri, max: 5});
  try {
    const client = await pool.connect();
    await client.query('begin');
    await client.query('create table ws (n int)');
    await client.query('insert into ws select generate_series(1, $1::int)', [1000]);
    await client.query('savepoint s');
    await assert.rejects(client.query('select 1 / 0'), {code: '22012'});
    await client.query('rollback to s');
    await client.query('commit');
    client.release();
    const answers = await Promise.all(
      Array.from({length: 20}, (_, i) => pool.query('select count(*)::int + $1::int as n from ws', [i])),
    );
    assert.deepEqual(
      answers.map((a) => (a.rows[0] as {n: number}).n),
      Array.from({length: 20}, (_, i) => 1000 + i),
    );
    const big = await pool.query<{t: string}>("select repeat('x', 3000000) as t");
    assert.equal(big.rows[0]!.t.length, 3_000_000);
  } finally {
    await pool.end();
  }
});

const words = pgTable('words', {id: integer().primaryKey(), word: text().notNull()});

test('drizzle over HTTP, WebSocket and node-postgres', async () => {
  const http = drizzleHttp(neon(uri));
  await http.execute(sql`create table words (id int primary key, word text not null)`);
  assert.deepEqual(await http.insert(words).values({id: 1, word: 'one'}).returning(), [{id: 1, word: 'one'}]);
  await http.batch([
    http.insert(words).values({id: 2, word: 'two'}),
    http.insert(words).values({id: 3, word: 'three'}),
  ]);

  const pool = new Pool({connectionString: uri});
  const socket = drizzleWebSocket({client: pool});
  await socket.transaction(async (tx) => {
    await tx.insert(words).values({id: 4, word: 'four'});
    assert.equal((await tx.select().from(words)).length, 4);
  });
  await assert.rejects(
    socket.transaction(async (tx) => {
      await tx.insert(words).values({id: 5, word: 'five'});
      tx.rollback();
    }),
  );
  await pool.end();

  const postgres = new pg.Pool(clientConfig(uri));
  const rows = await drizzlePostgres({client: postgres}).select().from(words).orderBy(words.id);
  await postgres.end();
  assert.deepEqual(
    rows.map((r) => r.word),
    ['one', 'two', 'three', 'four'],
  );
});

test('node-postgres: prepared statements, LISTEN and NOTIFY across sessions, cancel', async () => {
  const listener = await pagoda.connect(uri);
  const speaker = await pagoda.connect(uri);
  const heard = new Promise<pg.Notification>((resolve) => listener.once('notification', resolve));
  await listener.query('listen news');
  await speaker.query("select pg_notify('news', 'a message')");
  assert.equal((await heard).payload, 'a message');
  for (let i = 0; i < 3; i++) {
    const {rows} = await speaker.query<{n: number}>({name: 'add', text: 'select $1::int + 1 as n', values: [i]});
    assert.equal(rows[0]!.n, i + 1);
  }
  const sleeping = listener.query('select pg_sleep(600)');
  const active =
    "select count(*)::int as n from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'";
  await until('it sleeps', async () => (await speaker.query<{n: number}>(active)).rows[0]!.n === 1);
  cancel(listener);
  await assert.rejects(sleeping, {code: '57014'});
  assert.equal((await listener.query<{one: number}>('select 1 as one')).rows[0]!.one, 1, 'the session goes on');
  await Promise.all([listener.end(), speaker.end()]);

  /** What libpq's PQcancel does: a connection of its own, with the key that the server gave. */
  function cancel(client: pg.Client): void {
    const {processID, secretKey} = client as unknown as {processID: number; secretKey: number};
    const canceller = new pg.Client(clientConfig(uri)) as unknown as {
      connection: {
        connect(port: number, host: string): void;
        cancel(pid: number, key: number): void;
        on(e: string, f: () => void): void;
      };
      host: string;
      port: number;
    };
    const {connection} = canceller;
    connection.on('error', () => {});
    connection.on('sslconnect', () => connection.cancel(processID, secretKey));
    connection.on('connect', () => connection.cancel(processID, secretKey));
    connection.connect(pagoda.status.ports.proxy, '127.0.0.1');
  }
});

test('psql: Ctrl-C cancels the query, COPY goes both ways', async () => {
  const child = spawn('psql', ['-X', '-d', uri, '-c', 'select pg_sleep(600) as from_psql'], {
    env: {PATH: process.env['PATH'], PGHOSTADDR: '127.0.0.1'},
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  child.stderr.on('data', (d: Buffer) => (said += d.toString()));
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  for (;;) {
    const n = await psql(
      "select count(*) from pg_stat_activity where query like '%from_psql' and query not like '%count%' and state = 'active'",
    );
    if (n.trim() === '1') break;
    await sleep(100);
  }
  child.kill('SIGINT');
  await ended;
  assert.match(said, /canceling statement due to user request/);

  const lines = Array.from({length: 50_000}, (_, i) => `${i}\tline ${i}\n`).join('');
  await psql('create table copied (n int, words text)');
  await succeed('psql', ['-X', '-d', uri, '-c', 'copy copied from stdin'], lines);
  assert.equal(await psql('copy (select * from copied order by n) to stdout'), lines);
  const failed = await tool('psql', ['-X', '-d', uri, '-c', 'copy copied from stdin'], '1\tone\nnonsense\ttwo\n');
  assert.match(failed.stderr, /invalid input syntax for type integer: "nonsense"/);
});

test('pgbench through the front door: simple, prepared and a new connection for each transaction', async () => {
  await succeed('pgbench', ['-i', '-q', '-s', '1', '-d', uri]);
  const base = ['-n', '-c', '4', '-j', '2', uri];
  await succeed('pgbench', ['-t', '50', ...base]);
  await succeed('pgbench', ['-t', '200', '-S', '-M', 'prepared', ...base]);
  await succeed('pgbench', ['-t', '5', '-S', '-C', ...base]);
  const equal = await psql(
    'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)',
  );
  assert.equal(equal.trim(), 't|200');
});

test('pg_dump and pg_restore: a database goes out and comes in again, the same', async () => {
  await psql(
    "create view v as select id, word from words; create index on copied (n); comment on table words is 'some'",
  );
  const archive = join(folder, 'dump');
  await succeed('pg_dump', ['-Fc', '-f', archive, '-d', uri]);
  await pagoda.api(
    'POST',
    `/projects/${pagoda.status.projectId}/branches/${(await pagoda.mainBranch()).branchId}/databases`,
    {
      database: {name: 'again', owner_name: 'neondb_owner'},
    },
  );
  const target = onDatabase('again');
  await succeed('pg_restore', ['--no-owner', '-j', '2', '-d', target, archive]);
  const dump = async (of: string): Promise<string> =>
    (await succeed('pg_dump', ['-d', of])).replaceAll(/^\\(un)?restrict .*$/gm, '');
  assert.equal(await dump(target), await dump(uri));
  assert.ok(readFileSync(archive).subarray(0, 5).toString() === 'PGDMP');
});

test('200 clients at once wake a suspended endpoint: all are served by one compute, which starts once', async () => {
  await pagoda.suspend(endpointId);
  const starts = async (): Promise<number> =>
    (
      await pagoda.api<{operations: {action: string; endpoint_id?: string}[]}>(
        'GET',
        `/projects/${pagoda.status.projectId}/operations?limit=400`,
      )
    ).operations.filter((o) => o.action === 'start_compute' && o.endpoint_id === endpointId).length;
  const earlier = await starts();
  const answers = await Promise.all(
    Array.from({length: 200}, async (_, i) => {
      const [row] = await pagoda.query(`select ${i} as i, pg_postmaster_start_time()::text as started`, uri);
      return row!;
    }),
  );
  assert.deepEqual(
    answers.map((a) => a['i']),
    Array.from({length: 200}, (_, i) => i),
  );
  assert.equal(new Set(answers.map((a) => a['started'])).size, 1);
  assert.equal(await starts(), earlier + 1);
});

for (const pooled of [false, true])
  test(`${pooled ? 'pooled' : 'direct'}: psql and node-postgres bind SCRAM to the channel; postgres.js, pgbench`, async () => {
    const to = pooled ? uri.replace(endpointId, `${endpointId}-pooler`) : uri;
    assert.match(to, /channel_binding=require/);
    assert.equal((await psql('select current_user', to)).trim(), 'neondb_owner');

    const bound = new pg.Client({...clientConfig(to), enableChannelBinding: true});
    await bound.connect();
    const {saslSession} = bound as unknown as {saslSession: unknown};
    assert.equal(saslSession, null, 'the login is over');
    for (let i = 0; i < 3; i++)
      assert.deepEqual((await bound.query({name: 'sum', text: 'select $1::int + 1 as n', values: [i]})).rows, [
        {n: i + 1},
      ]);
    await bound.end();

    const url = new URL(to);
    const query = postgres({
      host: url.hostname,
      port: Number(url.port),
      user: url.username,
      password: decodeURIComponent(url.password),
      database: 'neondb',
      ssl: {rejectUnauthorized: false, servername: url.hostname},
      max: 4,
      onnotice: () => {},
    });
    try {
      await query`create table if not exists by_postgres_js (n int)`;
      await query.begin(async (tx) => {
        await tx`insert into by_postgres_js select generate_series(1, ${100}::int)`;
        await tx`delete from by_postgres_js where n > ${10}`;
      });
      const counts = await Promise.all(
        Array.from({length: 12}, (_, i) => query`select count(*)::int + ${i}::int as n from by_postgres_js`),
      );
      assert.deepEqual(
        counts.map(([row]) => row!['n'] as number),
        Array.from({length: 12}, (_, i) => 10 + i),
      );
      await query`drop table by_postgres_js`;
    } finally {
      await query.end();
    }

    await succeed('pgbench', ['-i', '-q', '-s', '1', '-d', to]);
    for (const mode of ['simple', 'extended', 'prepared'])
      await succeed('pgbench', ['-n', '-t', '50', '-c', '4', '-j', '2', '-M', mode, to]);
    const equal =
      'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)';
    assert.equal((await psql(equal, to)).trim(), 't|600');
  });

test('1,000 pooled clients that are idle: all answer, Postgres has a few backends for them', async (t) => {
  const to = uri.replace(endpointId, `${endpointId}-pooler`);
  const proxyMemory = (): number =>
    Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pagoda.pidOf('proxy')}/status`, 'utf8'))![1]) * 1024;
  const backends = async (): Promise<number> =>
    Number(
      await psql(
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and usename = current_user",
      ),
    );
  await psql('select 1', to);
  const before = {memory: proxyMemory(), backends: await backends()};
  const clients: pg.Client[] = [];
  t.after(() => Promise.all(clients.map((client) => client.end())));
  for (let i = 0; i < 1000; i += 50)
    clients.push(...(await Promise.all(Array.from({length: 50}, () => pagoda.connect(to)))));
  for (const round of [1, 2]) {
    const answers: number[] = [];
    for (let i = 0; i < clients.length; i += 20)
      answers.push(
        ...(await Promise.all(
          clients
            .slice(i, i + 20)
            .map(async (client, j) => (await client.query<{n: number}>('select $1::int as n', [i + j])).rows[0]!.n),
        )),
      );
    assert.deepEqual(
      answers,
      Array.from({length: 1000}, (_, i) => i),
      `round ${round}`,
    );
  }
  const each = (proxyMemory() - before.memory) / 1000;
  const more = (await backends()) - before.backends;
  t.diagnostic(`${Math.round(each / 1024)} KB of proxy memory per TLS client, ${more} backends more`);
  assert.ok(more <= 25, `${more} backends more`);
  assert.ok(each < 200 * 1024, `${each} bytes of proxy memory per client`);
});

test('the control plane hangs: what runs goes on, and new connections to it are served', async () => {
  await psql('create table meanwhile (n int)');
  const session = await pagoda.connect(uri);
  // What the front door knows about an endpoint it has just let somebody into is fresh for some seconds; let it grow old.
  await sleep(6_000);
  const control = pagoda.pidOf('control');
  process.kill(control, 'SIGSTOP');
  try {
    await session.query('insert into meanwhile values (1)');
    await psql('insert into meanwhile values (2)');
    assert.deepEqual(await neon(uri)`select count(*)::int as n from meanwhile`, [{n: 2}]);
    const many = await Promise.all(
      Array.from({length: 10}, () => pagoda.query('insert into meanwhile values (3) returning n', uri)),
    );
    assert.equal(many.length, 10);
  } finally {
    process.kill(control, 'SIGCONT');
  }
  assert.equal((await psql('select count(*) from meanwhile')).trim(), '12');
  await session.end();
  await pagoda.suspend(endpointId);
  assert.equal((await psql('select count(*) from meanwhile')).trim(), '12', 'and it can do its work again');
});
