/**
 * The neon CLI from npm, unmodified, against a running Pagoda: every command by what it prints and by what it does, seen
 * through SQL. The tests of this file follow one another on the same installation.
 */
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';
import {until} from '../until.ts';

const program = join(import.meta.dirname, '../../node_modules/neon/dist/cli.js');

let pagoda: Pagoda;
/** Where `neon` is called: its `.neon` and `.env.local` land here. */
let folder: string;
before(async () => {
  pagoda = await Pagoda.start();
  folder = mkdtempSync(join(tmpdir(), 'pagoda-neon-cli-'));
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
  if (folder !== undefined) rmSync(folder, {recursive: true, force: true});
});

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function call(args: readonly string[]): Promise<Outcome> {
  const home = join(folder, 'home');
  mkdirSync(home, {recursive: true});
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [program, '--no-analytics', ...args],
      {
        cwd: folder,
        env: {
          PATH: process.env['PATH'],
          HOME: home,
          CI: '1',
          NEON_API_HOST: pagoda.status.apiUrl,
          NEON_API_KEY: pagoda.status.apiKey,
          NEON_CONFIG_DIR: join(folder, 'config'),
          // Where the machine's resolver does not know `*.localhost`, psql still finds the way; the name goes into SNI.
          PGHOSTADDR: '127.0.0.1',
        },
      },
      (error, stdout, stderr) => resolve({code: error === null ? 0 : Number(error.code ?? 1), stdout, stderr}),
    );
  });
}

/** Standard output; fails with what the CLI said when it did not end well. */
async function neon(...args: readonly string[]): Promise<string> {
  const {code, stdout, stderr} = await call(args);
  assert.equal(code, 0, `neon ${args.join(' ')}: ${code}\n${stdout}\n${stderr}`);
  return stdout;
}
/** With -o json. */
async function neonJson<T>(...args: readonly string[]): Promise<T> {
  return JSON.parse(await neon(...args, '-o', 'json')) as T;
}
/** Must fail; answers what it complains of. */
async function neonFails(...args: readonly string[]): Promise<string> {
  const {code, stdout, stderr} = await call(args);
  assert.notEqual(code, 0, `neon ${args.join(' ')} was expected to fail, but: ${stdout}`);
  return stderr;
}

interface BranchView {
  readonly id: string;
  readonly name: string;
  readonly parent_id?: string;
  readonly parent_lsn?: string;
  readonly default: boolean;
  readonly current_state: string;
  readonly expires_at?: string;
  readonly last_reset_at?: string;
}

const branches = async (): Promise<Map<string, BranchView>> =>
  new Map((await neonJson<BranchView[]>('branches', 'list')).map((b) => [b.name, b]));
const uriOf = async (branch: string, ...args: readonly string[]): Promise<string> =>
  (await neon('connection-string', branch, ...args)).trim();
const known = new Map<string, string>();
/** The one value that a query answers on a branch, by the connection string that the CLI printed for it the first time. */
async function ask(branch: string, sql: string): Promise<unknown> {
  const uri = known.get(branch) ?? (await uriOf(branch, '--role-name', 'neondb_owner'));
  known.set(branch, uri);
  const [row] = await pagoda.query(sql, uri);
  return row === undefined ? undefined : Object.values(row)[0];
}
const count = (branch: string): Promise<unknown> => ask(branch, 'select count(*)::int from t');

test('me, orgs list', async () => {
  const me = await neonJson<{login: string; email: string}>('me');
  assert.equal(me.login, 'admin');
  assert.match(await neon('me'), /admin@localhost/);
  const orgs = await neonJson<{id: string}[]>('orgs', 'list');
  assert.equal(orgs.length, 1);
  assert.match(await neon('orgs', 'list'), new RegExp(orgs[0]!.id));
});

test('projects list, create, get, update, delete', async () => {
  const list = async (): Promise<string[]> =>
    (await neonJson<{projects: {name: string}[]}>('projects', 'list')).projects.map((p) => p.name).toSorted();
  assert.deepEqual(await list(), ['first']);
  const made = await neonJson<{
    project: {id: string; name: string; pg_version: number};
    connection_uris: {connection_uri: string}[];
  }>('projects', 'create', '--name', 'second', '--database', 'shop', '--role', 'keeper', '--cu', '0.5-2');
  assert.deepEqual([made.project.name, made.project.pg_version], ['second', 15]);
  const uri = made.connection_uris[0]!.connection_uri;
  const [row] = await pagoda.query('select current_user as u, current_database() as d', uri);
  assert.deepEqual({...row}, {u: 'keeper', d: 'shop'});
  assert.deepEqual(await list(), ['first', 'second']);
  assert.match(await neonFails('branches', 'list'), /Multiple projects found/);
  await neon('projects', 'update', made.project.id, '--name', 'renamed');
  const got = await neonJson<{name: string}>('projects', 'get', made.project.id);
  assert.equal(got.name, 'renamed');
  await pagoda.query('create table kept as select 42 as n', uri);
  await neon('projects', 'delete', made.project.id);
  assert.deepEqual(await list(), ['first']);
  await assert.rejects(pagoda.query('select 1', uri), /does not exist/);
  assert.match(await neon('projects', 'list', '--recoverable-only'), new RegExp(made.project.id));
  await neon('projects', 'recover', made.project.id);
  assert.deepEqual(await list(), ['first', 'renamed']);
  assert.deepEqual(await pagoda.query('select n from kept', uri), [{n: 42}]);
  await neon('projects', 'delete', made.project.id);
  assert.match(await neonFails('projects', 'get', made.project.id), /not found/);
});

test('connection-string: plain and pooled both connect; extended shows its parts; a point in the past is read as it was', async () => {
  const plain = await uriOf('main');
  assert.match(
    plain,
    /^postgresql:\/\/neondb_owner:npg_\w+@ep-[\w-]+\.localhost:\d+\/neondb\?sslmode=require&channel_binding=require$/,
  );
  assert.deepEqual(await pagoda.query('select 1 as one', plain).then((r) => ({...r[0]})), {one: 1});
  const pooled = await uriOf('main', '--pooled');
  assert.match(pooled, /@ep-[\w-]+-pooler\.localhost:/);
  assert.deepEqual(await pagoda.query('select 2 as two', pooled).then((r) => ({...r[0]})), {two: 2});
  const extended = await neonJson<{host: string; role: string; database: string}>('cs', 'main', '--extended');
  assert.deepEqual([extended.role, extended.database], ['neondb_owner', 'neondb']);
  assert.ok(plain.includes(extended.host));
  assert.match(await uriOf('main', '--prisma'), /connect_timeout=/);
  assert.doesNotMatch(await uriOf('main', '--ssl', 'omit'), /sslmode/);
  await pagoda.query('create table was (i int); insert into was values (1)', plain);
  const [point] = await pagoda.query(
    'select pg_current_wal_flush_lsn()::text as lsn, clock_timestamp() as time',
    plain,
  );
  await sleep(50);
  await pagoda.query('drop table was', plain);
  const past = await uriOf(`main@${String(point!['lsn'])}`);
  assert.match(past, /@br-[\w-]+\.localhost:.*options=neon_lsn%3A/);
  assert.deepEqual(await pagoda.query('select i from was', past), [{i: 1}]);
  const then = await uriOf(`main@${(point!['time'] as Date).toISOString()}`);
  assert.match(then, /options=neon_timestamp%3A/);
  assert.deepEqual(await pagoda.query('select i from was', then), [{i: 1}]);
  await assert.rejects(pagoda.query('insert into was values (2)', past), /read-only/);
  await assert.rejects(pagoda.query('select 1', await uriOf('main@7F/0')), /no such point/);
  assert.equal((await branches()).size, 1, 'no branch was made for it');
});

test('psql, the one of the system and the built-in one, over TLS with channel binding', async () => {
  await neon('psql', '--', '-c', 'create table t (n int primary key); insert into t select generate_series(1, 10)');
  assert.match(await neon('psql', 'main', '--', '-c', 'select 1 as one'), /one\s+-+\s+1\s+\(1 row\)/);
  assert.equal((await neon('psql', 'main', '--', '-Atc', 'select count(*) from t')).trim(), '10');
  assert.match(await neonFails('psql', 'main', '--', '-c', 'select nonsense'), /column "nonsense" does not exist/);
  assert.match(
    await neon('psql', '--fallback', 'main', '--', '-c', 'select 41 + 1 as answer'),
    /answer\s+-+\s+42\s+\(1 row\)/,
  );
});

test('branches create from now, an LSN, a time and a named parent; list, get', async () => {
  const [point] = await pagoda.query(
    'select pg_current_wal_flush_lsn()::text as lsn, clock_timestamp() as time',
    await uriOf('main'),
  );
  const lsn = String(point!['lsn']);
  const time = (point!['time'] as Date).toISOString();
  await sleep(50);
  await ask('main', 'insert into t select generate_series(11, 15)');
  const made = await neonJson<{
    branch: BranchView;
    endpoints: {id: string; current_state: string}[];
    connection_uris: {connection_uri: string}[];
  }>('branches', 'create', '--name', 'now', '--suspend-timeout', '600');
  assert.equal(made.branch.current_state, 'ready');
  assert.equal(made.endpoints[0]!.current_state, 'active');
  const [row] = await pagoda.query('select count(*)::int as n from t', made.connection_uris[0]!.connection_uri);
  assert.equal(row!['n'], 15);

  const atLsn = await neonJson<{branch: BranchView}>('branches', 'create', '--name', 'at-lsn', '--parent', lsn);
  assert.ok(atLsn.branch.parent_lsn !== undefined);
  assert.equal(await count('at-lsn'), 10);
  await neon('branches', 'create', '--name', 'at-time', '--parent', time);
  assert.equal(await count('at-time'), 10);
  await ask('now', 'insert into t values (1000)');
  await neon('branches', 'create', '--name', 'grandchild', '--parent', 'now');
  assert.equal(await count('grandchild'), 16);
  assert.equal(await count('main'), 15, 'nothing crosses over');

  const shown = await branches();
  assert.deepEqual([...shown.keys()].toSorted(), ['at-lsn', 'at-time', 'grandchild', 'main', 'now']);
  assert.equal(shown.get('grandchild')!.parent_id, shown.get('now')!.id);
  assert.match(await neon('branches', 'list'), /\[default\] main/);
  const got = await neonJson<BranchView>('branches', 'get', 'at-lsn');
  assert.equal(got.id, shown.get('at-lsn')!.id);
  assert.match(await neonFails('branches', 'create', '--name', 'now'), /already exists/);
  assert.match(await neonFails('branches', 'create', '--name', 'future', '--parent', 'FF/0'), /beyond the end/);
  assert.match(await neonFails('branches', 'get', 'nowhere'), /not found/i);
});

test('branches rename, delete, and a branch without compute that gets one', async () => {
  await neon('branches', 'rename', 'at-time', 'renamed');
  assert.equal(await count('renamed'), 10);
  const uri = await uriOf('renamed');
  await neon('branches', 'delete', 'renamed');
  assert.equal((await branches()).has('renamed'), false);
  await assert.rejects(pagoda.query('select 1', uri), /does not exist/);
  // The CLI has no command for it yet; the API has.
  const path = `/projects/${pagoda.status.projectId}/branches`;
  const deleted = await pagoda.api<{branches: BranchView[]}>('GET', `${path}?include_deleted=true`);
  await pagoda.api('POST', `${path}/${deleted.branches.find((b) => b.name === 'renamed')!.id}/recover`);
  assert.deepEqual(await pagoda.query('select count(*)::int as n from t', uri), [{n: 10}]);
  await neon('branches', 'delete', 'renamed');
  assert.match(await neonFails('branches', 'delete', 'now'), /child branches/);
  assert.match(await neonFails('branches', 'delete', 'main'), /default branch/);

  const bare = await neonJson<{endpoints?: unknown[]}>('branches', 'create', '--name', 'bare', '--no-compute');
  assert.equal(bare.endpoints?.length ?? 0, 0);
  assert.match(await neonFails('connection-string', 'bare'), /endpoint/i);
  await neon('branches', 'add-compute', 'bare', '--type', 'read_write', '--cu', '1');
  assert.equal(await count('bare'), 15);
  const replica = await neonJson<{endpoint?: {host: string}; host?: string}>(
    'branches',
    'add-compute',
    'bare',
    '--type',
    'read_only',
  );
  const host = replica.endpoint?.host ?? replica.host ?? '';
  const readOnly = new URL(await uriOf('bare'));
  readOnly.host = host;
  assert.deepEqual(await pagoda.query('select count(*)::int as n from t', readOnly.href), [{n: 15}]);
  await assert.rejects(pagoda.query('delete from t', readOnly.href), /read-only/);
  assert.equal(await count('bare'), 15, 'the connection string stays that of the writer');
});

test('branches set-default: main becomes an ordinary branch, and back', async () => {
  await neon('branches', 'set-default', 'now');
  let shown = await branches();
  assert.deepEqual([shown.get('now')!.default, shown.get('main')!.default], [true, false]);
  assert.equal(
    (await neon('psql', '--', '-Atc', 'select count(*) from t')).trim(),
    '16',
    'psql without a name goes there',
  );
  await neon('branches', 'set-default', 'main');
  shown = await branches();
  assert.deepEqual([shown.get('now')!.default, shown.get('main')!.default], [false, true]);
});

test('branches set-expiration: the branch goes when its time has come; taken back, it stays', async () => {
  // The CLI may take seconds to say it.
  const soon = (): string => new Date(Date.now() + 15_000).toISOString();
  await neon('branches', 'create', '--name', 'short', '--expires-at', new Date(Date.now() + 3_600_000).toISOString());
  await neon('branches', 'create', '--name', 'kept', '--no-compute');
  await neon('branches', 'set-expiration', 'kept', '--expires-at', new Date(Date.now() + 3_600_000).toISOString());
  assert.ok((await neonJson<BranchView>('branches', 'get', 'kept')).expires_at !== undefined);
  await neon('branches', 'set-expiration', 'kept');
  assert.equal((await neonJson<BranchView>('branches', 'get', 'kept')).expires_at, undefined);
  const uri = await uriOf('short');
  await neon('branches', 'set-expiration', 'short', '--expires-at', soon());
  while ((await branches()).has('short')) await sleep(500);
  await assert.rejects(pagoda.query('select 1', uri), /does not exist/);
  assert.ok((await branches()).has('kept'));
  assert.match(
    await neonFails(
      'branches',
      'set-expiration',
      'main',
      '--expires-at',
      new Date(Date.now() + 3_600_000).toISOString(),
    ),
    /cannot expire/,
  );
});

test('branches reset: the parent of now takes the place of what was changed', async () => {
  await ask('at-lsn', 'delete from t; create table only_here ()');
  await ask('main', 'insert into t values (500)');
  const uri = await uriOf('at-lsn');
  const reset = await neonJson<BranchView>('branches', 'reset', 'at-lsn', '--parent');
  assert.ok(reset.last_reset_at !== undefined);
  assert.equal(await uriOf('at-lsn'), uri, 'the connection string stays');
  assert.equal(await count('at-lsn'), 16);
  assert.equal(await ask('at-lsn', "select to_regclass('only_here')"), null);
  await pagoda.query('insert into t values (501)', uri);
  assert.equal(await count('main'), 16);

  await pagoda.query('truncate t', uri);
  await neon('branches', 'reset', 'at-lsn', '--parent', '--preserve-under-name', 'before-reset');
  assert.equal(await count('at-lsn'), 16);
  await neon('branches', 'add-compute', 'before-reset', '--type', 'read_write');
  assert.equal(await count('before-reset'), 0, 'the old state is a branch of its own');
});

test('branches restore: to an LSN of its own, to another branch, to the parent; children stay with the old state', async () => {
  const lsn = String(await ask('main', 'select pg_current_wal_flush_lsn()::text'));
  await ask('main', 'drop table t; create table mistake ()');
  assert.match(await neonFails('branches', 'restore', 'main', `^self@${lsn}`), /preserve/);
  const restored = await neon('branches', 'restore', 'main', `^self@${lsn}`, '--preserve-under-name', 'oops');
  assert.match(restored, /oops/, 'the CLI shows the backup branch');
  assert.equal(await count('main'), 16);
  assert.equal(await ask('main', "select to_regclass('mistake')"), null);
  const shown = await branches();
  assert.equal(shown.get('main')!.parent_id, shown.get('oops')!.id);
  assert.equal(shown.get('main')!.default, true);
  assert.equal(shown.get('now')!.parent_id, shown.get('oops')!.id);
  assert.equal(await count('now'), 16, 'a child does not notice');
  await neon('branches', 'add-compute', 'oops', '--type', 'read_write');
  assert.equal(await ask('oops', "select to_regclass('mistake')::text"), 'mistake');

  await ask('grandchild', 'insert into t select generate_series(2000, 2009)');
  await neon('branches', 'restore', 'bare', 'grandchild');
  assert.equal(await count('bare'), 26);
  await ask('bare', 'truncate t');
  await neon('branches', 'restore', 'bare', '^parent');
  assert.equal(await count('bare'), 26);
  assert.match(await neonFails('branches', 'restore', 'grandchild', '^parent'), /child branches/);
  // The restored main is written to, suspended and woken like any other.
  await ask('main', 'insert into t values (7777)');
  await pagoda.suspend((await pagoda.mainBranch()).endpointId);
  assert.equal(await count('main'), 17);
});

test('branches schema-diff', async () => {
  assert.doesNotMatch(await neon('branches', 'schema-diff', 'main', 'bare'), /^[+-][^+-]/m, 'equal schemas');
  await ask('bare', 'create table extra (id int primary key, words text)');
  const diff = await neon('branches', 'schema-diff', 'main', 'bare');
  assert.match(diff, /^\+CREATE TABLE public\.extra \($/m);
  assert.doesNotMatch(diff, /^-[^-]/m);
  const lsn = String(await ask('bare', 'select pg_current_wal_flush_lsn()::text'));
  await ask('bare', 'alter table extra add column more int');
  const sincePoint = await neon('branches', 'schema-diff', 'bare', `^self@${lsn}`);
  assert.match(sincePoint, /^- +more integer$/m);
});

test('databases and roles: list, create, delete, in the running compute too', async () => {
  const databases = async (): Promise<string[]> =>
    (await neonJson<{name: string}[]>('databases', 'list', '--branch', 'main')).map((d) => d.name).toSorted();
  const roles = async (): Promise<string[]> =>
    (await neonJson<{name: string}[]>('roles', 'list', '--branch', 'main')).map((r) => r.name).toSorted();
  const role = await neonJson<{name: string; password: string}>('roles', 'create', '--name', 'ann', '--branch', 'main');
  assert.equal(role.name, 'ann');
  assert.deepEqual(await roles(), ['ann', 'neondb_owner']);
  await neon('databases', 'create', '--name', 'books', '--owner-name', 'ann', '--branch', 'main');
  assert.deepEqual(await databases(), ['books', 'neondb']);
  const uri = await uriOf('main', '--role-name', 'ann', '--database-name', 'books');
  assert.ok(uri.includes(`ann:${role.password}@`));
  const [row] = await pagoda.query('create table own (); select current_user as u, current_database() as d', uri);
  assert.deepEqual({...row}, {u: 'ann', d: 'books'});
  await neon('databases', 'delete', 'books', '--branch', 'main');
  assert.deepEqual(await databases(), ['neondb']);
  assert.equal(await ask('main', "select count(*)::int from pg_database where datname = 'books'"), 0);
  await neon('roles', 'delete', 'ann', '--branch', 'main');
  assert.deepEqual(await roles(), ['neondb_owner']);
  assert.equal(await ask('main', "select count(*)::int from pg_roles where rolname = 'ann'"), 0);
  await assert.rejects(pagoda.query('select 1', uri), /password authentication failed/);
});

test('operations list', async () => {
  let operations: {action: string; status: string}[] = [];
  await until('all are over', async () => {
    operations = await neonJson('operations', 'list');
    return operations.every(({status}) => status !== 'running' && status !== 'scheduling');
  });
  assert.ok(operations.length > 5);
  assert.deepEqual([...new Set(operations.map((o) => o.status))], ['finished']);
  assert.match(await neon('operations', 'list'), /start_compute\s+finished/);
});

test('ip-allow: an address that is not listed is kept out', async () => {
  await neon('ip-allow', 'add', '10.0.0.1');
  await assert.rejects(async () => {
    // The proxy may believe an older answer for some seconds.
    for (;;) {
      await ask('main', 'select 1');
      await sleep(500);
    }
  }, /list of allowed addresses/);
  await neon('ip-allow', 'reset');
  for (;;) {
    if ((await ask('main', 'select 1 as one').catch(() => undefined)) === 1) break;
    await sleep(500);
  }
});

test('api-keys, and the raw call', async () => {
  const made = await neonJson<{id: number; key: string}>('api-keys', 'create', '--name', 'for a script');
  assert.match(made.key, /^napi_/);
  const answer = await fetch(`${pagoda.status.apiUrl}/users/me`, {headers: {authorization: `Bearer ${made.key}`}});
  assert.equal(answer.status, 200);
  assert.match(await neon('api-keys', 'list'), /for a script/);
  assert.match(await neon('api', '/users/me'), /admin@localhost/);
});

test('set-context, link, status, env pull', async () => {
  const context = (): Record<string, string> =>
    JSON.parse(readFileSync(join(folder, '.neon'), 'utf8')) as Record<string, string>;
  await neon('set-context', '--project-id', pagoda.status.projectId);
  assert.equal(context()['projectId'], pagoda.status.projectId);
  rmSync(join(folder, '.neon'));
  await neon('link', '-y', '--project-id', pagoda.status.projectId);
  assert.deepEqual([context()['projectId'], context()['branch']], [pagoda.status.projectId, 'main']);
  assert.ok(existsSync(join(folder, '.env.local')), 'link pulls the variables');
  rmSync(join(folder, '.env.local'));
  const status = await neonJson<{project: {id: string}; branch: {name: string}}>('status');
  assert.deepEqual([status.project.id, status.branch.name], [pagoda.status.projectId, 'main']);
  assert.equal((await neon('status', '--current-branch')).trim(), 'main');
  await neon('env', 'pull');
  const variables = new Map(
    readFileSync(join(folder, '.env.local'), 'utf8')
      .split('\n')
      .map((line) => /^(\w+)="?([^"]*)"?$/.exec(line))
      .filter((m) => m !== null)
      .map((m) => [m[1]!, m[2]!]),
  );
  assert.equal(variables.get('NEON_BRANCH'), 'main');
  for (const name of ['DATABASE_URL', 'DATABASE_URL_UNPOOLED']) {
    const [row] = await pagoda.query('select count(*)::int as n from t', variables.get(name)!);
    assert.equal(row!['n'], 17, name);
  }
  await neon('checkout', 'bare', '--no-env-pull');
  assert.equal(context()['branch'], 'bare');
  assert.equal((await neon('psql', '--', '-Atc', "select to_regclass('extra')")).trim(), 'extra');
});

test('snapshots create, list and restore', async () => {
  await neon('psql', 'main', '--', '-c', 'create table at_snapshot as select 42 as n');
  await neon('snapshots', 'create', '--branch', 'main', '--name', 'kept');
  await neon('psql', 'main', '--', '-c', 'drop table at_snapshot');
  const list = await neon('snapshots', 'list');
  assert.match(list, /kept/);
  const id = /snap-[\w-]+/.exec(list)?.[0] ?? '';
  await neon('snapshots', 'restore', id, '--name', 'recovered');
  assert.equal(await ask('recovered', 'select n from at_snapshot'), 42);
  assert.equal(await ask('main', "select to_regclass('at_snapshot')"), null);
  assert.ok((await branches()).has('recovered'));
});

test('branches create --schema-only: every table and no row, owned and granted as at the parent', async () => {
  await ask(
    'main',
    `create role clerk; grant clerk to current_user; create extension if not exists citext;
     create schema shop authorization clerk; create type shop.size as enum ('s', 'l');
     create table shop.orders (id serial primary key, size shop.size, name citext, check (length(name) > 0));
     alter table shop.orders owner to clerk; insert into shop.orders (name) values ('a'), ('b');
     grant select on shop.orders to public; alter default privileges in schema shop grant select on tables to clerk;
     create view shop.big as select * from shop.orders where size = 'l';
     create function shop.twice(int) returns int language sql immutable security definer as 'select $1 * 2';
     create table uses (i int check (shop.twice(i) > 0))`,
  );
  await neon('databases', 'create', '--name', 'other', '--owner-name', 'neondb_owner');
  const made = await neonJson<{branch: BranchView & {init_source?: string}}>(
    'branches',
    'create',
    '--name',
    'empty',
    '--schema-only',
  );
  assert.deepEqual([made.branch.init_source, made.branch.parent_id], ['schema-only', undefined]);
  known.set('empty', await uriOf('empty', '--role-name', 'neondb_owner', '--database-name', 'neondb'));
  assert.equal(await ask('main', 'select count(*)::int from shop.orders'), 2);
  assert.equal(await ask('empty', 'select count(*)::int from shop.orders'), 0);
  assert.equal(await ask('empty', "insert into shop.orders (size, name) values ('s', 'first') returning id"), 1);
  assert.equal(
    await ask('empty', "select tableowner::text from pg_tables where tablename = 'orders'"),
    'clerk',
    'who owns what is kept',
  );
  assert.equal(
    await ask(
      'empty',
      "select string_agg(rolname, ',') from pg_roles where rolname like 'pagoda%' and rolname <> 'pagoda_admin'",
    ),
    'pagoda_superuser',
    'the helpers of the copy are gone',
  );
  const schema = async (branch: string, database: string): Promise<string> =>
    (
      await pagoda.api<{sql: string}>(
        'GET',
        `/projects/${pagoda.status.projectId}/branches/${(await branches()).get(branch)!.id}/schema?db_name=${database}`,
      )
    ).sql;
  assert.equal(await schema('empty', 'neondb'), await schema('main', 'neondb'));
  assert.equal(await schema('empty', 'other'), await schema('main', 'other'));
});
