/** A commit that was acknowledged is on the synchronous standby, whatever the session set or cancelled. */
import assert from 'node:assert/strict';
import {type ChildProcess, spawn} from 'node:child_process';
import * as path from 'node:path';
import {after, before, test} from 'node:test';
import {Cluster, Compute, binaries, buildExtension, freshDirectory, postgresUser, rows, sleep} from './cluster.ts';

let base: Cluster;
let compute: Compute;

before(async () => {
  buildExtension();
  base = await Cluster.initialise();
  await base.start();
  await base.query('create table ledger (id int primary key)');
  await base.stop();
  compute = await Compute.on(base);
  await compute.start({
    settings: {synchronous_standby_names: 'pagoda', synchronous_commit: 'on', wal_sender_timeout: '5s'},
  });
});

after(async () => {
  await compute.discard();
  await base.discard();
});

/** pg_receivewal stands for the proposer: acknowledges what it has flushed. */
function startStandby(): ChildProcess {
  const args = [
    '-h',
    '127.0.0.1',
    '-p',
    String(compute.port),
    '-U',
    'postgres',
    '-D',
    freshDirectory('wal'),
    '--synchronous',
    '--no-loop',
  ];
  return spawn(path.join(binaries, 'pg_receivewal'), args, {
    stdio: 'ignore',
    env: {...process.env, PGAPPNAME: 'pagoda'},
    ...postgresUser,
  });
}

async function stopped(child: ChildProcess): Promise<void> {
  const gone = new Promise((done) => child.once('exit', done));
  child.kill('SIGKILL');
  await gone;
  // The walsender notices, and the standby counts no longer.
  while ((await compute.query('select count(*) from pg_stat_replication'))[0] !== '0') await sleep(20);
}

/** True when the promise is still open after a while. */
async function waits(promise: Promise<unknown>): Promise<boolean> {
  const settled = promise.then(
    () => false,
    () => false,
  );
  return Promise.race([settled, sleep(700).then(() => true)]);
}

const weakenings: readonly (readonly [name: string, before: readonly string[]])[] = [
  ['nothing', []],
  ['SET', ['set synchronous_commit = off']],
  ['SET local', [`set synchronous_commit = 'local'`]],
  ['SET remote_write', ['set synchronous_commit = remote_write']],
  ['SET LOCAL in a transaction', ['begin', 'set local synchronous_commit = off']],
  ['ALTER ROLE', ['alter role weak set synchronous_commit = off']],
  ['ALTER DATABASE', ['alter database postgres set synchronous_commit = off']],
  ['PGOPTIONS', []],
  ['function SET', ['select weak_insert($1)']],
];

for (const [i, [name, statements]] of weakenings.entries()) {
  test(`no acknowledgement without the standby: ${name}`, async () => {
    let standby = startStandby();
    await compute.query([
      `do $$ begin if not exists (select from pg_roles where rolname = 'weak') then create role weak superuser login; end if; end $$`,
      `create or replace function weak_insert(n int) returns void language plpgsql set synchronous_commit = off as $$ begin insert into ledger values (n); end $$`,
    ]);
    const setup = await compute.connect();
    if (name.startsWith('ALTER')) await rows(setup, statements[0]!);
    await setup.end();
    await stopped(standby);

    const client = await compute.connect('postgres', {
      user: 'weak',
      ...(name === 'PGOPTIONS' ? {options: '-c synchronous_commit=off'} : {}),
    });
    if (!name.startsWith('ALTER') && name !== 'function SET') for (const sql of statements) await rows(client, sql);
    if (['SET', 'SET LOCAL in a transaction', 'ALTER ROLE', 'ALTER DATABASE', 'PGOPTIONS'].includes(name))
      assert.deepEqual(await rows(client, 'show synchronous_commit'), ['off'], 'the user sees what was set');
    const commit = name.includes('transaction')
      ? rows(client, `insert into ledger values (${i})`).then(() => rows(client, 'commit'))
      : rows(client, name === 'function SET' ? `select weak_insert(${i})` : `insert into ledger values (${i})`);
    assert.ok(await waits(commit), 'the commit was acknowledged without the standby');
    standby = startStandby();
    await commit;
    await client.end();
    assert.deepEqual(await compute.query(`select count(*) from ledger where id = ${i}`), ['1']);
    await compute.query(['alter role weak reset all', 'alter database postgres reset all']);
    await stopped(standby);
  });
}

test('a cancel during the wait warns, and the wait goes on; PREPARE and COMMIT PREPARED too', async () => {
  const statements = [
    `insert into ledger values (100)`,
    `begin; insert into ledger values (101); prepare transaction 'p'`,
    `commit prepared 'p'`,
  ];
  for (const sql of statements) {
    const client = await compute.connect();
    const warnings: string[] = [];
    client.on('notice', (notice) => warnings.push(notice.message ?? ''));
    const [pid] = await rows(client, 'select pg_backend_pid()');
    const commit = rows(client, sql);
    assert.ok(await waits(commit), sql);
    for (let i = 0; i < 3; i++) {
      process.kill(Number(pid), 'SIGINT');
      assert.ok(await waits(commit), `a cancel acknowledged: ${sql}`);
    }
    for (let waited = 0; warnings.length === 0 && waited < 60_000; waited += 50) await sleep(50);
    assert.ok(warnings.length > 0);
    const standby = startStandby();
    await commit;
    await client.end();
    await stopped(standby);
  }
  const standby = startStandby();
  assert.deepEqual(await compute.query('select id from ledger where id >= 100 order by id'), ['100', '101']);
  await stopped(standby);
});

test('termination during the wait breaks the connection without an acknowledgement', async () => {
  const client = await compute.connect();
  const [pid] = await rows(client, 'select pg_backend_pid()');
  const commit = rows(client, 'insert into ledger values (200)');
  assert.ok(await waits(commit));
  process.kill(Number(pid), 'SIGTERM');
  await assert.rejects(commit, /terminat|Connection/i);
});

test('reading waits for nobody', async () => {
  assert.deepEqual(await compute.query('select count(*) > 0 from ledger'), ['t']);
});
