/**
 * `pagoda import DIRECTORY`: a stock cluster becomes a project. What it was is judged by pg_dump and amcheck, who may do what by the
 * roles themselves.
 */
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {promisify} from 'node:util';
import pg from 'pg';
import {libpqEnvironment, Pagoda} from '../pagoda.ts';
import {PostgresCluster, postgresBinDir} from '../postgres-cluster.ts';
import {processesOf, signalAll} from '../processes.ts';
import {until} from '../until.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '..', '..');
const dir = mkdtempSync(join(tmpdir(), 'pagoda-import-'));
let pagoda: Pagoda;
let cluster: PostgresCluster;

before(async () => {
  // With data checksums, and a superuser who owns what people make before they know better.
  cluster = await PostgresCluster.create({initdbArgs: ['--data-checksums'], superuser: 'chief'});
  process.env['PAGODA_RECOVERY_SECONDS'] = '4';
  pagoda = await Pagoda.start();
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
  rmSync(dir, {recursive: true, force: true});
});

async function tool(...args: string[]): Promise<{code: number; stdout: string; stderr: string}> {
  const [command = '', ...rest] = args;
  const call = ['src/cli/main.ts', command, '--data', pagoda.dir, ...rest];
  try {
    const {stdout, stderr} = await run(join(root, 'scripts', 'node'), call, {cwd: root, maxBuffer: 1 << 26});
    return {code: 0, stdout, stderr};
  } catch (error) {
    const {code, stdout, stderr} = error as {code: number; stdout: string; stderr: string};
    return {code, stdout, stderr};
  }
}

/** Words around the script that differ in every dump are taken out. */
async function dump(env: NodeJS.ProcessEnv, ...args: string[]): Promise<string> {
  const {stdout} = await run(join(postgresBinDir, 'pg_dump'), args, {env, maxBuffer: 1 << 28});
  return stdout.replace(/^\\(un)?restrict.*$/gm, '');
}

/** Two dumps; of megabytes only the lines where they part are shown. */
function same(got: string, expected: string): void {
  if (got === expected) return;
  const [a, b] = [got.split('\n'), expected.split('\n')];
  const at = a.findIndex((line, i) => line !== b[i]);
  const shown = (lines: string[]): string[] => lines.slice(at - 3, at + 5).map((line) => line.slice(0, 200));
  assert.deepEqual(shown(a), shown(b), `the dumps differ from line ${at} on`);
}

const prepare = `
  create role app login password 'app secret' createrole;
  create role reader login password 'reader secret';
  create role deputy superuser login replication password 'deputy secret';
  create role old_style login;
  alter role chief password 'chief secret';
  alter role chief set work_mem = '7MB';
  grant pg_execute_server_program to app;
  grant reader to chief;
  grant set on parameter session_preload_libraries to app;
`;

let shopDump = '';
let chiefsDump = '';
let project = '';
/** What the tool says about roles without a password that can be kept. */
let resetLine = '';
/** Database name → connection string as the tool prints it, without a password. */
const printed = new Map<string, string>();
const as = (database: string, role: string, password: string): string => {
  const url = new URL(printed.get(database)!);
  url.username = role;
  url.password = password;
  return url.href;
};

test('what cannot be imported is refused with what to do, and nothing is made', async () => {
  assert.match((await tool('import', cluster.dataDir)).stderr, /a server runs on .*pg_ctl stop/);
  await cluster.query("set password_encryption = 'md5'; create role md5 login password 'md5'");
  await cluster.stop('immediate');
  rmSync(join(cluster.dataDir, 'postmaster.pid'), {force: true});
  assert.match((await tool('import', cluster.dataDir)).stderr, /was not shut down cleanly/);
  await cluster.start();
  assert.match((await tool('import', dir)).stderr, /is no data directory/);
  const other = mkdtempSync(join(dir, 'other-'));
  await run('mkdir', [join(other, 'global')]);
  writeFileSync(join(other, 'PG_VERSION'), '14\n');
  writeFileSync(join(other, 'global/pg_control'), '');
  assert.match((await tool('import', other)).stderr, /of PostgreSQL 14, and 15 .*pg_dump/);
  writeFileSync(join(other, 'PG_VERSION'), '15\n');
  assert.match((await tool('import', other)).stderr, /pg_control has only 0 bytes/);
  assert.match(
    (await tool('import', cluster.dataDir, '--branch', 'main')).stderr,
    /--branch does not go with a directory/,
  );
  const {projects} = await pagoda.api<{projects: unknown[]}>('GET', '/projects');
  assert.equal(projects.length, 1);
});

test('a cluster with several databases and roles is imported; dumps are the same, amcheck finds nothing', async () => {
  await cluster.query(prepare);
  await cluster.query('create database shop owner app');
  await cluster.query("create database chiefs encoding 'UTF8' template template0");
  await cluster.pgbench(['-i', '-s', '1', '-q', 'chiefs']);
  const shop = cluster.connectionString('shop');
  await pagoda.query(
    `set role app; create schema s; create table s.orders (id serial primary key, what text check (what <> ''));
     insert into s.orders (what) select md5(n::text) from generate_series(1, 20000) n;
     create index on s.orders (what); delete from s.orders where id % 7 = 0;
     create function s.f(int) returns int language sql immutable as 'select $1 + 1';
     grant usage on schema s to reader; grant select on s.orders to reader`,
    shop,
  );
  await pagoda.query(
    `create type mood as enum ('good', 'bad'); create domain posint as int check (value > 0);
     create table feelings (m mood, p posint, big text); create view happy as select * from feelings where m = 'good';
     create function spy() returns name language sql security definer as 'select current_user';
     create aggregate total(int) (sfunc = int4pl, stype = int);
     create statistics st on m, p from feelings; create materialized view mv as select 1 as one;
     create operator === (leftarg = int, rightarg = int, function = int4eq);
     create unlogged table scratch (i int); insert into scratch values (1);
     create extension pgcrypto; select lo_from_bytea(4242, 'large');
     create function on_ddl() returns event_trigger language plpgsql as 'begin end';
     create event trigger watch on ddl_command_end execute function on_ddl();
     insert into feelings values ('good', 1, repeat(md5('x'), 10000))`,
    cluster.connectionString('chiefs'),
  );
  await pagoda.query('truncate scratch', cluster.connectionString('chiefs')); // unlogged tables arrive empty
  await cluster.query('vacuum analyze');
  shopDump = await dump(process.env, '-d', shop);
  chiefsDump = await dump(process.env, '-d', cluster.connectionString('chiefs'));
  await cluster.stop('fast');
  const imported = await tool('import', cluster.dataDir, '--name', 'theirs');
  assert.equal(imported.code, 0, imported.stderr + pagoda.logTails());
  for (const [, name, uri] of imported.stdout.matchAll(/^ {2}(\w+): (\S+)$/gm)) printed.set(name!, uri!);
  assert.deepEqual([...printed.keys()], ['shop', 'chiefs'], imported.stdout);
  project = /is project (\S+)/.exec(imported.stdout)![1]!;
  resetLine = /^ {2}(neon api .*)$/m.exec(imported.stdout)![1]!;

  // By roles that are no superusers any more.
  const shopNow = await dump(libpqEnvironment(as('shop', 'app', 'app secret')));
  same(shopNow, shopDump);
  const chiefsNow = await dump(libpqEnvironment(as('chiefs', 'chief', 'chief secret')));
  const withoutTrigger = (text: string): string =>
    text.replace(/^(-- Name: .* Type: |ALTER |CREATE )EVENT TRIGGER.*\n( .*\n)*/gm, '').replace(/\n+/g, '\n');
  same(withoutTrigger(chiefsNow), withoutTrigger(chiefsDump));
  const [endpoint] = (await pagoda.api<{endpoints: {id: string}[]}>('GET', `/projects/${project}/endpoints`)).endpoints;
  await run(
    join(postgresBinDir, 'pg_amcheck'),
    ['--all', '--heapallindexed', '--parent-check', '--install-missing', '-U', 'pagoda_admin'],
    {
      env: {
        ...process.env,
        PGHOST: pagoda.computeSocket(endpoint!.id).host,
        PGPORT: String(pagoda.computeSocket(endpoint!.id).port),
      },
    },
  );
});

test('roles keep their passwords through the proxy, and nobody is a superuser', async () => {
  const ask = async (database: string, role: string, password: string, sql: string): Promise<unknown> =>
    Object.values((await pagoda.query(sql, as(database, role, password)))[0]!)[0];
  assert.equal(await ask('shop', 'reader', 'reader secret', 'select count(*)::int from s.orders'), 17143);
  await assert.rejects(ask('shop', 'reader', 'wrong', 'select 1'), /password authentication failed/);
  await assert.rejects(ask('shop', 'md5', 'md5', 'select 1'), /password authentication failed/);
  for (const [role, password] of [
    ['chief', 'chief secret'],
    ['deputy', 'deputy secret'],
    ['app', 'app secret'],
  ] as const) {
    assert.equal(await ask('shop', role, password, "select current_setting('is_superuser')"), 'off', role);
    await assert.rejects(
      ask('shop', role, password, "copy (select 1) to program 'true'"),
      /must be superuser|permission/,
    );
    await assert.rejects(ask('shop', role, password, 'set role pagoda_admin'), /permission denied/);
  }
  await assert.rejects(ask('shop', 'app', 'app secret', "set session_preload_libraries = 'x'"), /permission denied/);
  assert.equal(await ask('chiefs', 'chief', 'chief secret', 'show work_mem'), '7MB');
  assert.equal(await ask('chiefs', 'chief', 'chief secret', 'select spy()'), 'chief', 'not as the superuser any more');
  assert.equal(
    await ask(
      'chiefs',
      'chief',
      'chief secret',
      'create table new (i int); alter table feelings add column x int; select 1',
    ),
    1,
  );
  assert.equal(await ask('chiefs', 'chief', 'chief secret', "select pg_has_role('reader', 'member')"), true);
  const {branches} = await pagoda.api<{branches: {id: string}[]}>('GET', `/projects/${project}/branches`);
  const {roles} = await pagoda.api<{roles: {name: string}[]}>(
    'GET',
    `/projects/${project}/branches/${branches[0]!.id}/roles`,
  );
  assert.deepEqual(roles.map((r) => r.name).toSorted(), ['app', 'chief', 'deputy', 'md5', 'old_style', 'reader']);
});

test('a role whose password cannot be kept gets one by the line that import prints', async () => {
  const {stdout} = await run('/bin/sh', ['-c', resetLine.replace('ROLE', 'md5')], {
    env: {
      ...process.env,
      PATH: `${join(root, 'node_modules', '.bin')}:${process.env['PATH']}`,
      CI: '1',
      NEON_API_HOST: pagoda.status.apiUrl,
      NEON_API_KEY: pagoda.status.apiKey,
      NEON_CONFIG_DIR: join(dir, 'neon'),
    },
  });
  const {role} = JSON.parse(stdout) as {role: {name: string; password: string}};
  assert.equal(role.name, 'md5');
  await pagoda.settled(project);
  const login = async (): Promise<unknown> =>
    (await pagoda.query('select current_user::text as me', as('shop', 'md5', role.password)))[0]!['me'];
  // The proxy knows verifiers for five seconds.
  for (let attempt = 0; ; attempt++) {
    const me = await login().catch((error: unknown) => error);
    if (me === 'md5') break;
    assert.ok(attempt < 60, String(me));
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
});

test('the imported project is one like any other: it branches, sleeps, wakes and keeps what is written', async () => {
  const [endpoint] = (await pagoda.api<{endpoints: {id: string}[]}>('GET', `/projects/${project}/endpoints`)).endpoints;
  await pagoda.query("insert into feelings values ('bad', 2, 'written here')", as('chiefs', 'chief', 'chief secret'));
  await pagoda.suspend(endpoint!.id, project);
  const [row] = await pagoda.query('select count(*)::int as n from feelings', as('chiefs', 'chief', 'chief secret'));
  assert.equal(row!['n'], 2);
  const branch = await pagoda.api<{endpoints: {id: string}[]}>('POST', `/projects/${project}/branches`, {
    endpoints: [{type: 'read_write'}],
  });
  await pagoda.settled(project);
  const there = as('chiefs', 'chief', 'chief secret').replace(endpoint!.id, branch.endpoints[0]!.id);
  assert.equal((await pagoda.query('select count(*)::int as n from feelings', there))[0]!['n'], 2);
});

test('what was exported is imported again, through a kill before anything of it is committed: the same dump, the same passwords', async () => {
  await pagoda.query('create table t as select n, md5(n::text) from generate_series(1, 5000) n');
  const before = await dump(libpqEnvironment(pagoda.status.databaseUrl));
  const out = join(dir, 'exported');
  assert.equal((await tool('export', '--branch', (await pagoda.mainBranch()).branchId, '--out', out)).code, 0);
  const known = new Set(readdirSync(join(pagoda.dir, 'computes')));
  const importing = tool('import', out);
  const silenced = [2, 3].map((n) => pagoda.pidOf(`safekeeper-${n}`));
  try {
    let compute = '';
    let log = (): string => '';
    await until('its first compute is elected, and begins to change it in private', () => {
      const endpointId = readdirSync(join(pagoda.dir, 'computes')).find((id) => !known.has(id))!;
      compute = pagoda.computeDir(endpointId);
      log = () => readFileSync(join(pagoda.dir, 'logs', `compute-${endpointId}.log`), 'utf8');
      return log().includes('ready to accept connections');
    });
    signalAll(silenced, 'SIGSTOP');
    const inTime = !log().includes('database system is shut down');
    const waiting = async (): Promise<boolean> => {
      const port = Number(readFileSync(join(compute, 'port'), 'utf8'));
      const client = new pg.Client({host: join(compute, 'data/run'), port, user: 'pagoda_admin', database: 'postgres'});
      client.on('error', () => {});
      await client.connect();
      try {
        return (await client.query("select from pg_stat_activity where wait_event = 'SyncRep'")).rowCount === 1;
      } finally {
        await client.end();
      }
    };
    const running = (): boolean => log().includes('compute: running');
    await until('it waits for a quorum', async () => running() || (await waiting()));
    assert.ok(!inTime || !running(), 'called adopted although nobody else has what it changed');
    signalAll(
      processesOf(compute).map(({pid}) => pid),
      'SIGKILL',
    );
  } finally {
    signalAll(silenced, 'SIGCONT');
  }
  const imported = await importing;
  assert.equal(imported.code, 0, imported.stderr);
  const [, uri] = /^ {2}neondb: (\S+)$/m.exec(imported.stdout)!;
  const again = new URL(uri!);
  again.password = new URL(pagoda.status.databaseUrl).password;
  same(await dump(libpqEnvironment(again.href)), before);
});

/** Where there are files of this tenant or timeline. What safekeepers have deleted they remember by an empty one beside it. */
function placesOf(id: string): string[] {
  return everywhere.filter((place) =>
    readdirSync(join(pagoda.dir, place), {recursive: true, withFileTypes: true}).some(
      (entry) => entry.isFile() && join(entry.parentPath, entry.name).includes(id) && !entry.name.endsWith('.deleted'),
    ),
  );
}
const everywhere = ['objects', 'safekeeper-1', 'safekeeper-2', 'safekeeper-3'];

test('what was deleted leaves the object store and the safekeepers when its time is over', async () => {
  const {branches} = await pagoda.api<{branches: {id: string; default: boolean}[]}>(
    'GET',
    `/projects/${project}/branches`,
  );
  const child = branches.find((branch) => !branch.default)!;
  const config = join(pagoda.computeDir(await pagoda.endpointOf(child.id, project)), 'config.json');
  const {tenantId, timelineId} = (
    JSON.parse(readFileSync(config, 'utf8')) as {spec: {tenantId: string; timelineId: string}}
  ).spec;
  const isEverywhere = (id: string) => (): boolean => placesOf(id).length === everywhere.length;
  const isNowhere = (id: string) => (): boolean => placesOf(id).length === 0;
  await until('the branch is in storage', isEverywhere(timelineId));
  await pagoda.settled(project);
  await pagoda.api('DELETE', `/projects/${project}/branches/${child.id}`);
  await until('nothing of the branch is left', isNowhere(timelineId));
  await until('its project is untouched', isEverywhere(tenantId));
  // What has removed the branch has still to say so: meanwhile a change of the project is refused with 423.
  await pagoda.settled(project);
  await pagoda.api('DELETE', `/projects/${project}`);
  await until('nothing of the project is left', isNowhere(tenantId));
});
