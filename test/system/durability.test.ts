/** Nothing that was acknowledged is lost: kill -9 of everything, of safekeepers, of Postgres. Lost disks: lost-disks.test.ts. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';
import {until} from '../until.ts';
import {killEverythingUnderLoad} from './kill-everything.ts';
import {Ledger} from './ledger.ts';

let pagoda: Pagoda;

before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
});

test('kill -9 of every process under pgbench: every acknowledged row is there', () =>
  killEverythingUnderLoad(pagoda, () => {}));

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
