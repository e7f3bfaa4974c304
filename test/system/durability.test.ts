/** Nothing that was acknowledged is lost: kill -9 of everything, lost local disks, lost safekeepers. */
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {rmSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import {Pagoda, libpqEnvironment} from '../pagoda.ts';
import {postgresBinDir} from '../postgres-cluster.ts';
import {until} from '../until.ts';
import {Ledger} from './ledger.ts';

const run = promisify(execFile);
/** The full measure of the acceptance: scale 10, eight clients, a minute. */
const long = process.env['PAGODA_LONG'] === '1';
let pagoda: Pagoda;

before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
});

const pgbench = (args: string[]): Promise<{stdout: string}> =>
  run('pgbench', args, {env: libpqEnvironment(pagoda.status.databaseUrl)});

async function amcheck(): Promise<string> {
  const {endpointId} = await pagoda.mainBranch();
  const admin = await pagoda.admin(endpointId, 'neondb'); // wakes nothing: it must run
  await admin.end();
  const {host, port} = pagoda.computeSocket(endpointId);
  try {
    await run(join(postgresBinDir, 'pg_amcheck'), [
      '-h',
      host,
      '-p',
      String(port),
      '-U',
      'pagoda_admin',
      '--all',
      '--heapallindexed',
      '--parent-check',
      '--install-missing',
    ]);
    return '';
  } catch (error) {
    const e = error as {stdout: string; stderr: string};
    return e.stdout + e.stderr;
  }
}

for (const disksLost of [false, true]) {
  test(`kill -9 of every process under pgbench${disksLost ? ', local disks of computes and pageserver lost' : ''}: every acknowledged row is there`, async () => {
    const ledger = new Ledger(pagoda);
    await pagoda.query('drop table if exists ledger');
    await ledger.create();
    await pgbench(['-i', '-q', '-s', long ? '10' : '2']);
    const load = pgbench(['-c', long ? '8' : '4', '-T', '600']).catch(() => {});
    ledger.start(4);
    await sleep(long ? 60_000 : 10_000);
    await until('commits', () => ledger.acknowledged.size > 100);
    await pagoda.crash();
    await ledger.stop();
    await load;
    assert.ok(ledger.unknown.size > 0, 'the crash came in the middle of commits');
    if (disksLost)
      for (const d of ['computes', 'pageserver']) rmSync(join(pagoda.dir, d), {recursive: true, force: true});
    const ms = await pagoda.up();
    const {rows, lost, invented} = await ledger.compare();
    console.log(
      `acknowledged ${ledger.acknowledged.size}, unknown ${ledger.unknown.size}, in the table ${rows}, lost ${lost.length}; banner after ${Math.round(ms)} ms`,
    );
    assert.deepEqual({lost, invented}, {lost: [], invented: []});
    const [sums] = await pagoda.query(
      'select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches) as equal',
    );
    assert.equal(sums!['equal'], true);
    assert.equal(await amcheck(), '');
  });
}

test('one safekeeper killed: no error; two: writes wait and reads go on; one back: writes continue', async () => {
  const ledger = new Ledger(pagoda);
  await pagoda.query('drop table if exists ledger');
  await ledger.create();
  ledger.start(4);
  await until('commits', () => ledger.acknowledged.size > 200);
  // SIGSTOP keeps the supervisor from starting it again, and is harder on the proposer than a closed socket.
  const [one, two] = [pagoda.pidOf('safekeeper-1'), pagoda.pidOf('safekeeper-2')];
  try {
    const before = ledger.acknowledged.size;
    process.kill(one, 'SIGKILL');
    await until('commits go on without it', () => ledger.acknowledged.size > before + 200);
    await until('it is started again', () => pagoda.pidOf('safekeeper-1') !== one);
    assert.deepEqual(ledger.errors, []);
    console.log(`one safekeeper killed: longest gap between commits ${Math.round(ledger.longestGapMs)} ms`);
    const stopped = [pagoda.pidOf('safekeeper-1'), two];
    for (const pid of stopped) process.kill(pid, 'SIGSTOP');
    await sleep(1000);
    const waiting = ledger.acknowledged.size;
    const [row] = await pagoda.query('select count(*)::int as n from ledger');
    assert.ok(Number(row!['n']) > 0, 'reads go on');
    await sleep(2000);
    assert.ok(ledger.acknowledged.size - waiting <= 4, 'writes wait without a quorum');
    process.kill(stopped[1]!, 'SIGCONT');
    await until('writes continue with a quorum', () => ledger.acknowledged.size > waiting + 20);
    process.kill(stopped[0]!, 'SIGCONT');
    await ledger.stop();
    const {lost, invented} = await ledger.compare();
    assert.deepEqual({lost, invented, errors: ledger.errors}, {lost: [], invented: [], errors: []});
  } finally {
    await ledger.stop();
  }
});

test('a crashed Postgres is started anew from storage', async () => {
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.query('create table before_crash as select generate_series(1, 1000) as n');
  const status = (await pagoda.agent<{pid: number; term: number}>(endpointId, '/status')) as {
    pid: number;
    term: number;
  };
  process.kill(status.pid, 'SIGKILL');
  const deadline = performance.now() + 240_000;
  for (;;) {
    try {
      const [row] = await pagoda.query('select count(*)::int as n from before_crash');
      assert.equal(row!['n'], 1000);
      break;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await sleep(100);
    }
  }
  const now = (await pagoda.agent<{term: number}>(endpointId, '/status')) as {term: number};
  assert.ok(now.term > status.term, 'a new election');
});
