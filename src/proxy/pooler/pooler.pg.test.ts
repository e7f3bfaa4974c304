/** `-pooler` names before a stock Postgres: what clients see is what a direct connection shows, with few servers. */
import assert from 'node:assert/strict';
import {execFile, spawn} from 'node:child_process';
import {existsSync} from 'node:fs';
import {type Socket, connect} from 'node:net';
import {after, before, test} from 'node:test';
import {promisify} from 'node:util';
import pg from 'pg';
import postgres from 'postgres';
import {systemClock} from '#runtime/clock.ts';
import {SeededRandom} from '#runtime/random.ts';
import {type FrontDoor, openFrontDoor, password} from '../../../test/front-door.ts';
import {decodeErrorFields, encodeMessage, encodeStartup} from '#proxy/messages.ts';

const run = promisify(execFile);
let door: FrontDoor;

before(async () => {
  door = await openFrontDoor();
});
after(() => door?.close());

const conninfo = (pooled: boolean): string =>
  `host=ep-one${pooled ? '-pooler' : ''}.db.test hostaddr=127.0.0.1 port=${door.port} user=owner dbname=app sslmode=require`;
const environment = {...process.env, PGPASSWORD: password};

async function psql(pooled: boolean, sql: string, ...more: string[]): Promise<string> {
  try {
    const args = ['-XAt', '-v', 'VERBOSITY=terse', ...more, '-c', sql, conninfo(pooled)];
    return (await run('psql', args, {env: environment})).stdout.trim();
  } catch (error) {
    return (error as {stderr: string}).stderr.trim();
  }
}

function client(options: pg.ClientConfig = {}): pg.Client {
  const made = new pg.Client({
    host: '127.0.0.1',
    port: door.port,
    user: 'owner',
    database: 'app',
    password,
    options: 'endpoint=ep-one-pooler',
    ssl: {rejectUnauthorized: false},
    ...options,
  });
  made.on('error', () => {});
  return made;
}

const servers = async (): Promise<number> =>
  (await door.cluster.query("select 1 from pg_stat_activity where usename = 'owner'")).length;

test('300 clients that are idle between transactions share a few servers', async (t) => {
  const clients = Array.from({length: 300}, () => client());
  t.after(() => Promise.all(clients.map((c) => c.end())));
  for (let i = 0; i < clients.length; i += 50) await Promise.all(clients.slice(i, i + 50).map((c) => c.connect()));
  const before = await servers();
  assert.ok(before < 20, `${before} servers for clients that did nothing yet`);
  for (const c of clients) assert.equal((await c.query('select 1 as one')).rows[0].one, 1);
  assert.ok((await servers()) <= Math.max(before, 2));
});

test('a transaction stays at one server; what it sets is gone from the next', async (t) => {
  const [a, b] = [client(), client()];
  t.after(() => Promise.all([a.end(), b.end()]));
  await Promise.all([a.connect(), b.connect()]);
  const pid = async (c: pg.Client): Promise<number> => (await c.query('select pg_backend_pid() as pid')).rows[0].pid;
  await a.query('begin');
  const [inA, inB] = [await pid(a), await pid(b)];
  assert.notEqual(inA, inB);
  assert.equal(await pid(a), inA);
  await a.query('set local work_mem = 77');
  await a.query("set statement_timeout = '9s'");
  await a.query('commit');
  await b.query('listen something');
  for (const c of [a, b, a, b])
    assert.deepEqual((await c.query("select current_setting('statement_timeout') as s")).rows, [{s: '0'}]);
  assert.equal((await b.query('select count(*)::int as n from pg_listening_channels()')).rows[0].n, 0);
});

test('names and time zones follow their client from server to server', async (t) => {
  const clients = ['Europe/Paris', 'asia/tokyo', 'UTC'].map((zone, i) => {
    const c = client({application_name: `app ${i}`, options: 'endpoint=ep-one-pooler'});
    return {c, zone, i};
  });
  t.after(() => Promise.all(clients.map(({c}) => c.end())));
  for (const {c, zone} of clients) {
    await c.connect();
    await c.query(`set timezone = '${zone}'`);
  }
  for (const {c, zone, i} of [...clients, ...clients.toReversed()]) {
    const {rows} = await c.query("select current_setting('timezone') as z, current_setting('application_name') as a");
    assert.deepEqual([rows[0].z.toLowerCase(), rows[0].a], [zone.toLowerCase(), `app ${i}`]);
  }
  // A spelling that Postgres knows under another one, at startup; and one that it does not know.
  assert.equal(
    (
      await run('psql', ['-XAtc', 'show timezone', conninfo(true)], {env: {...environment, PGTZ: 'europe/PARIS'}})
    ).stdout
      .trim()
      .toLowerCase(),
    'europe/paris',
  );
  await assert.rejects(
    run('psql', ['-XAtc', 'select 1', conninfo(true)], {env: {...environment, PGTZ: 'Nowhere/None'}}),
    /invalid value for parameter "timezone": "Nowhere\/None"/i,
  );
});

test('startup parameters that cannot follow are refused by name', async () => {
  assert.match(
    (await psql(true, 'select 1').then(() =>
      run('psql', ['-XAtc', 'select 1', `${conninfo(true)} options='-c work_mem=5MB'`], {env: environment}).catch(
        (e: {stderr: string}) => e.stderr,
      ),
    )) as string,
    /unsupported startup parameter: options/,
  );
});

test('prepared statements: pgbench in each mode, more clients than servers have to be', async () => {
  const args = (more: string[]): string[] => [...more, conninfo(true)];
  await run('pgbench', args(['-i', '-q', '-s', '1']), {env: environment});
  for (const mode of ['simple', 'extended', 'prepared']) {
    const {stdout} = await run('pgbench', args(['-n', '-M', mode, '-c', '12', '-t', '25']), {env: environment});
    assert.match(stdout, /transactions actually processed: 300\/300/, mode);
  }
});

test('postgres.js: pipelines, prepared statements, a transaction, COPY, an error in the middle', async () => {
  const sql = postgres({
    host: '127.0.0.1',
    port: door.port,
    user: 'owner',
    database: 'app',
    password,
    ssl: {rejectUnauthorized: false},
    connection: {application_name: 'js'},
    max: 6,
    // It sends `options` in no case: the endpoint comes in front of the password.
    pass: () => `endpoint=ep-one-pooler;${password}`,
    onnotice: () => {},
  } as postgres.Options<Record<string, never>>);
  try {
    await sql`create table if not exists js (n int primary key, t text)`;
    await Promise.all(Array.from({length: 200}, (_, n) => sql`insert into js values (${n}, ${`row ${n}`})`));
    const outcomes = await Promise.allSettled([
      sql`insert into js values (1000, 'new')`,
      sql`insert into js values (1, 'taken')`,
      sql`select count(*)::int as n from js where n < ${200}`,
    ]);
    assert.deepEqual(
      outcomes.map((o) => o.status),
      ['fulfilled', 'rejected', 'fulfilled'],
    );
    await sql.begin(async (tx) => {
      await tx`update js set t = 'changed' where n < 10`;
      assert.equal((await tx`select count(*)::int as n from js where t = 'changed'`)[0]!['n'], 10);
    });
    const out = await sql`copy js to stdout`.readable();
    let bytes = 0;
    for await (const chunk of out) bytes += (chunk as Buffer).length;
    assert.ok(bytes > 2000);
    const into = await sql`copy js (n, t) from stdin`.writable();
    into.end('2000\tcopied\n2001\ttoo\n');
    await new Promise((resolve, reject) => into.on('finish', resolve).on('error', reject));
    assert.equal((await sql`select count(*)::int as n from js where n >= 2000`)[0]!['n'], 2);
  } finally {
    await sql.end();
  }
});

test('psql: COPY both ways, an error in COPY data, large rows, Ctrl-C', async () => {
  await psql(true, 'create table if not exists cp (n int, t text)');
  const child = spawn('psql', ['-Xq', '-c', 'copy cp from stdin', conninfo(true)], {env: environment});
  for (let i = 0; i < 20_000; i++) child.stdin.write(`${i}\t${'x'.repeat(100)}\n`);
  child.stdin.end();
  assert.equal(await new Promise((resolve) => child.on('close', resolve)), 0);
  assert.equal(await psql(true, 'select count(*), sum(length(t)) from cp'), '20000|2000000');
  assert.match(await psql(true, "\\copy cp from program 'echo not a number'"), /invalid input syntax/);
  assert.equal(await psql(true, "select length(repeat('y', 30000000))"), '30000000');
  assert.equal(
    (await run('psql', ['-XAtc', "select repeat('z', 5000000)", conninfo(true)], {env: environment, maxBuffer: 1e8}))
      .stdout.length,
    5_000_001,
  );
  const sleeper = spawn('psql', ['-Xc', 'select pg_sleep(600)', conninfo(true)], {env: environment});
  let stderr = '';
  sleeper.stderr.on('data', (d: Buffer) => (stderr += d.toString()));
  const ended = new Promise((resolve) => sleeper.on('close', resolve));
  for (let i = 0; i < 6000; i++) {
    const query = "select 1 from pg_stat_activity where query like 'select pg_sleep(600)%' and state = 'active'";
    if ((await door.cluster.query(query)).length > 0) break;
    await systemClock.sleep(20);
  }
  sleeper.kill('SIGINT');
  await ended;
  assert.match(stderr, /canceling statement due to user request/);
});

test('a client that leaves in a transaction leaves nothing behind; a server that dies takes its client only', async () => {
  await psql(true, 'create table if not exists gone (n int)');
  const [a, b] = [client(), client()];
  await a.connect();
  await b.connect();
  await a.query('begin');
  await a.query('insert into gone values (1)');
  (a as unknown as {connection: {stream: Socket}}).connection.stream.destroy();
  for (let i = 0; i < 6000; i++) {
    if ((await door.cluster.query("select 1 from pg_stat_activity where state like 'idle in%'")).length === 0) break;
    await systemClock.sleep(20);
  }
  assert.equal((await b.query('select count(*)::int as n from gone')).rows[0].n, 0);
  const idle = client();
  await idle.connect();
  await idle.query('select 1');
  const failed = assert.rejects(b.query('select pg_sleep(600)'), /terminating connection due to administrator command/);
  const sleeping = "select 1 from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'";
  for (let i = 0; i < 6000 && (await door.cluster.query(sleeping)).length === 0; i++) await systemClock.sleep(20);
  const ended = await door.cluster.query(
    "select pid, pg_terminate_backend(pid) from pg_stat_activity where usename = 'owner'",
  );
  await failed;
  // A backend is out of the list before its socket closes.
  for (let i = 0; i < 6000 && ended.some(({pid}) => existsSync(`/proc/${String(pid)}`)); i++)
    await systemClock.sleep(20);
  await systemClock.sleep(100); // and that has been read
  assert.equal((await idle.query('select 2 as two')).rows[0].two, 2, 'a client without a server notices nothing');
  await idle.end();
});

/** The protocol spoken by hand: messages out, messages in. */
class RawClient {
  readonly #socket: Socket;
  #bytes = Buffer.alloc(0);
  #wake = (): void => {};

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk]);
      this.#wake();
    });
    socket.on('error', () => {});
    socket.on('close', () => this.#wake());
  }

  static async open(pooled: boolean): Promise<RawClient> {
    const raw = new RawClient(connect(door.port, '127.0.0.1'));
    const user = {user: 'owner', database: 'app'};
    raw.#socket.write(encodeStartup(Object.entries(user)));
    // No endpoint named: asked for the password in the clear, which may name it.
    assert.equal((await raw.next())!.type, 'R');
    raw.send('p', Buffer.from(`endpoint=ep-one${pooled ? '-pooler' : ''};${password}\0`));
    await raw.untilReady();
    return raw;
  }

  send(type: string, ...parts: Buffer[]): void {
    this.#socket.write(encodeMessage(type, ...parts));
  }

  async next(): Promise<{type: string; body: Buffer} | undefined> {
    for (;;) {
      const length = this.#bytes.length >= 5 ? this.#bytes.readUInt32BE(1) + 1 : Infinity;
      if (this.#bytes.length >= length) {
        const message = this.#bytes.subarray(0, length);
        this.#bytes = this.#bytes.subarray(length);
        return {type: message.toString('latin1', 0, 1), body: message.subarray(5)};
      }
      if (this.#socket.destroyed) return undefined;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** What is said up to the next ReadyForQuery, in a form in which two servers' answers compare. */
  async untilReady(): Promise<string[]> {
    const said: string[] = [];
    for (;;) {
      const message = await this.next();
      if (message === undefined) return [...said, 'closed'];
      const {type, body} = message;
      const fields = type === 'E' ? decodeErrorFields(body) : undefined;
      // A pooled statement has another name at the server; ParameterStatus may come of the pool's own doing.
      const text = fields
        ? `${fields.get('C')} ${fields
            .get('M')!
            .replace(/"pagoda_\d+"/, '"s"')
            .replace(/"s[123]"/, '"s"')}`
        : body.toString('latin1');
      if (type !== 'S') said.push(`${type} ${text}`);
      if (type === 'Z') return said;
    }
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** One batch of the protocol up to its end; `random` decides. */
function batch(random: SeededRandom, table: string): [string, Buffer][] {
  const pick = <T>(from: readonly T[]): T => from[random.uint32() % from.length]!;
  const name = (): string => pick(['s1', 's2', 's3', '']);
  const portal = (): string => pick(['', 'p1']);
  const texts = [
    'select 1 as one',
    'select $1::int + 1 as more',
    `insert into ${table} values ($1::int)`,
    `select count(*) from ${table}`,
    'select 1/0',
    'not sql at all',
    'begin',
    'commit',
    'rollback',
    `set local work_mem = '1MB'`,
    'select generate_series(1, 5)',
    '',
  ];
  if (random.uint32() % 4 === 0) {
    const sql = pick([
      ...texts.filter((x) => !x.includes('$1')),
      'select 1; select 2',
      'begin; select 3',
      'savepoint x',
      'rollback to x',
      'deallocate all',
      'discard all',
    ]);
    return [['Q', Buffer.from(`${sql}\0`)]];
  }
  const messages: [string, Buffer][] = [];
  const parameter = Buffer.from([0, 0, 0, 1, 0, 0, 0, 1, 0x37, 0, 0]); // one parameter, "7", as text; results as text
  const none = Buffer.from([0, 0, 0, 0, 0, 0]);
  for (let i = 1 + (random.uint32() % 6); i > 0; i--) {
    const kind = random.uint32() % 8;
    if (kind <= 2) messages.push(['P', Buffer.concat([Buffer.from(`${name()}\0${pick(texts)}\0`), Buffer.alloc(2)])]);
    else if (kind <= 4)
      messages.push(['B', Buffer.concat([Buffer.from(`${portal()}\0${name()}\0`), pick([parameter, none])])]);
    else if (kind === 5) messages.push(['D', Buffer.from(pick([`S${name()}\0`, `P${portal()}\0`]))]);
    else if (kind === 6) messages.push(['C', Buffer.from(pick([`S${name()}\0`, `P${portal()}\0`]))]);
    messages.push(
      ...(kind === 4 || kind === 7
        ? [
            ['E', Buffer.concat([Buffer.from(`${portal()}\0`), Buffer.from([0, 0, 0, pick([0, 2])])])] as [
              string,
              Buffer,
            ],
          ]
        : []),
    );
  }
  return [...messages, ['S', Buffer.alloc(0)]];
}

test('random dialogues of several clients in turns: word for word as a direct connection', async (t) => {
  const pairs = await Promise.all(
    [1, 2, 3].map(async (n) => {
      await psql(
        false,
        `drop table if exists own_${n}, twin_${n}; create table own_${n} (n int); create table twin_${n} (n int)`,
      );
      return {n, pooled: await RawClient.open(true), direct: await RawClient.open(false)};
    }),
  );
  t.after(() => {
    for (const {pooled, direct} of pairs) {
      pooled.close();
      direct.close();
    }
  });
  let errors = 0;
  let compared = 0;
  const lastStatus: (string | undefined)[] = [];
  for (let seed = 1; seed <= Number(process.env['PAGODA_BATCHES'] ?? 1500); seed++) {
    const {n, pooled, direct} = pairs[seed % 3]!;
    // The same dialogue for both: only the table has another name, of the same length.
    for (const [type, body] of batch(new SeededRandom(seed), `own_${n}`)) pooled.send(type, body);
    for (const [type, body] of batch(new SeededRandom(seed), `own_${n}`)) direct.send(type, body);
    const late = systemClock.setTimer(240_000, () => {
      pooled.close(); // then it has said `closed`
      direct.close();
    });
    const [a, b] = await Promise.all([pooled.untilReady(), direct.untilReady()]);
    late.cancel();
    // Rows of the shared table are written by both. In a transaction that has failed already, a statement that this server
    // does not know yet is refused for that before anything else may be wrong with its use.
    const failed = lastStatus[n] === 'Z E';
    const comparable = (said: string[]): string[] =>
      failed ? said.slice(-1) : said.map((s) => (s.startsWith('D ') ? 'D' : s));
    lastStatus[n] = b.at(-1);
    assert.deepEqual(comparable(a), comparable(b), `batch ${seed} of client ${n}`);
    compared += a.length;
    errors += a.filter((s) => s.startsWith('E ')).length;
  }
  t.diagnostic(`${compared} messages equal, ${errors} of them errors`);
  assert.ok(errors > 100 && compared > 3000);
});
