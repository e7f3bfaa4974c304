/** The tools for people: psql, import, export, doctor, reset. Their results are judged by stock PostgreSQL. */
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {promisify} from 'node:util';
import {Pagoda, libpqEnvironment} from '../pagoda.ts';
import {postgresBinDir} from '../postgres-cluster.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '..', '..');
const dir = mkdtempSync(join(tmpdir(), 'pagoda-tools-'));
let pagoda: Pagoda;

before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
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

const dump = async (env: NodeJS.ProcessEnv, ...args: string[]): Promise<string> =>
  (await run(join(postgresBinDir, 'pg_dump'), ['--no-owner', '--no-acl', ...args], {env, maxBuffer: 1 << 28})).stdout;

test('import of a dump, psql, and psql at a point of the past', async () => {
  const script = join(dir, 'dump.sql');
  writeFileSync(
    script,
    'create table people (id int primary key, name text);\ncopy people from stdin;\n1\tAda\n2\tGrace\n\\.\ncreate index on people (name);\n',
  );
  assert.match((await tool('import', script)).stdout, /is restored/);
  const read = await tool('psql', '--', '-XAtc', 'select string_agg(name, $$,$$ order by id) from people');
  assert.equal(read.stdout.trim(), 'Ada,Grace', read.stderr);
  const [row] = await pagoda.query('select pg_current_wal_flush_lsn()::text as lsn');
  await pagoda.query("insert into people values (3, 'Edsger')");
  const past = await tool('psql', '--at', String(row!['lsn']), '--', '-XAtc', 'select count(*) from people');
  assert.equal(past.stdout.trim(), '2', past.stderr);
  const custom = join(dir, 'dump.pgc');
  await dump(libpqEnvironment(pagoda.status.databaseUrl), '-Fc', '-f', custom, '-t', 'people');
  await pagoda.query('drop table people');
  const restored = await tool('import', custom);
  assert.equal(restored.code, 0, restored.stderr);
  assert.equal((await pagoda.query('select count(*)::int as n from people'))[0]!['n'], 3);
  // A script that fails half way leaves nothing.
  writeFileSync(script, 'create table half (n int);\nselect 1/0;\n');
  const failed = await tool('import', script);
  assert.notEqual(failed.code, 0);
  assert.match(failed.stderr, /division by zero/);
  assert.equal((await pagoda.query("select to_regclass('half') as t"))[0]!['t'], null);
});

test('export: stock PostgreSQL starts from the directory, at the LSN asked for, whole', async (t) => {
  await pagoda.query('create table big as select n, md5(n::text) as t from generate_series(1, 60000) n');
  await pagoda.query('create index on big using gin (string_to_array(t, $$a$$))');
  await pagoda.query('create sequence s');
  await pagoda.query("select nextval('s') from generate_series(1, 10)");
  const [row] = await pagoda.query('select pg_current_wal_flush_lsn()::text as lsn');
  const expected = await dump(libpqEnvironment(pagoda.status.databaseUrl));
  await pagoda.query('delete from big where n % 2 = 0');
  const out = join(dir, 'exported');
  const exported = await tool('export', '--at', String(row!['lsn']), '--out', out);
  assert.equal(exported.code, 0, exported.stderr);
  await run('chmod', ['711', dir]);

  const ctl = (...args: string[]): Promise<unknown> =>
    run('setpriv', [
      '--reuid=postgres',
      '--regid=postgres',
      '--clear-groups',
      join(postgresBinDir, 'pg_ctl'),
      '-D',
      out,
      ...args,
    ]);
  const socket = mkdtempSync('/tmp/pagoda-export-');
  await run('chown', ['postgres', socket]);
  const options = `-k ${socket} -c listen_addresses='' -c port=5432`;
  const start = (): Promise<unknown> => ctl('-w', '-t', '300', '-l', join(out, 'server.log'), '-o', options, 'start');
  await start();
  t.after(async () => {
    await ctl('-m', 'immediate', 'stop').catch(() => {});
    rmSync(socket, {recursive: true, force: true});
  });
  const asOwner = (command: string, ...args: string[]): Promise<{stdout: string}> =>
    run(
      'setpriv',
      [
        '--reuid=postgres',
        '--regid=postgres',
        '--clear-groups',
        join(postgresBinDir, command),
        '-h',
        socket,
        '-U',
        'pagoda_admin',
        ...args,
      ],
      {maxBuffer: 1 << 28},
    );
  const got = (await asOwner('pg_dump', '--no-owner', '--no-acl', 'neondb')).stdout;
  // pg_dump puts a random word around its script. A sequence stands where its WAL says, up to 32 values ahead, as after a crash.
  const plain = (script: string): string => script.replace(/^(\\(un)?restrict|SELECT pg_catalog\.setval).*$/gm, '');
  assert.ok(plain(got) === plain(expected), 'the dump of the exported directory is the dump of the branch');
  await asOwner('pg_amcheck', '--all', '--heapallindexed', '--parent-check', '--install-missing');
  assert.ok(Number((await asOwner('psql', '-Atc', "select nextval('s')", 'neondb')).stdout) > 10);
  // It is a server like any other: it takes writes and survives its own restart.
  await asOwner('psql', '-qc', 'insert into big values (0, $$new$$)', 'neondb');
  await ctl('-w', '-m', 'immediate', 'stop');
  await start();
  assert.equal((await asOwner('psql', '-Atc', 'select count(*) from big', 'neondb')).stdout.trim(), '60001');
  assert.match((await tool('export', '--out', out)).stderr, /is not empty/);
});

test('doctor finds nothing, and then what is broken', async () => {
  const well = await tool('doctor');
  assert.equal(well.code, 0, well.stdout + well.stderr);
  assert.match(well.stdout, /ok {5} pageserver: 1 tenants/);
  await run('chmod', ['644', join(pagoda.dir, 'keys', 'control.key.pem')]);
  const ill = await tool('doctor');
  assert.equal(ill.code, 1);
  assert.match(ill.stdout, /WRONG +keys: open to others: .*control\.key\.pem/);
  await run('chmod', ['600', join(pagoda.dir, 'keys', 'control.key.pem')]);
});

test('reset asks first, stops what runs and leaves an empty directory; no other directory is touched', async () => {
  const stranger = await run(join(root, 'scripts', 'node'), ['src/cli/main.ts', 'reset', '--yes', '--data', dir], {
    cwd: root,
  }).catch((error: {stderr: string}) => error);
  assert.match(stranger.stderr, /is no data directory of Pagoda; nothing was deleted/);
  assert.ok(existsSync(join(dir, 'exported')));
  assert.match((await tool('reset', '--yes')).stdout, /is empty/);
  assert.deepEqual(readdirSync(pagoda.dir), []);
});
