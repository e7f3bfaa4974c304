/** A compute that another one has replaced: its Postgres stops within ten seconds, and nothing it is asked is acknowledged. */
import assert from 'node:assert/strict';
import {type ChildProcess, spawn} from 'node:child_process';
import {readFileSync, readdirSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';

const main = join(import.meta.dirname, '../../src/cli/main.ts');
/** Ten seconds are the promise, on a machine with nothing else to do; what it took is printed. */
const stopMsMax = 60_000;
const spawned: ChildProcess[] = [];
let pagoda: Pagoda;

before(async () => {
  pagoda = await Pagoda.start();
  await pagoda.query('create table t (id int)');
});
after(async () => {
  for (const child of spawned) child.kill('SIGKILL');
  await pagoda?.[Symbol.asyncDispose]();
});

/** A second proposer of the branch, as the agent of another compute would start it. Resolves when it is elected. */
async function deposeBy(endpointId: string): Promise<{lsn: string; child: ChildProcess}> {
  const config = readFileSync(join(pagoda.computeDir(endpointId), 'data/proposer.json'), 'utf8');
  const path = join(pagoda.dir, 'config', `rival-${spawned.length}.json`);
  writeFileSync(path, config, {mode: 0o600});
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', main, 'proposer', '--config', path], {
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  spawned.push(child);
  let text = '';
  for await (const chunk of child.stdout!) {
    text += String(chunk);
    const line = text.split('\n').find((l) => l.includes('"elected"'));
    if (line !== undefined) return {lsn: (JSON.parse(line) as {lsn: string}).lsn, child};
  }
  throw new Error(`the rival was not elected: ${text}`);
}

async function pidsOf(endpointId: string): Promise<{proposer: number; postgres: number}> {
  const status = await pagoda.agent<{pid: number}>(endpointId, '/status');
  assert.ok(typeof status === 'object');
  const parentOf = (pid: number): number => {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
  };
  const agent = parentOf(status.pid);
  const proposer = readdirSync('/proc')
    .filter((n) => /^\d+$/.test(n))
    .map(Number)
    .find((pid) => {
      try {
        return parentOf(pid) === agent && readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes('proposer');
      } catch {
        return false;
      }
    });
  assert.ok(proposer !== undefined, 'the agent has a proposer');
  return {proposer, postgres: status.pid};
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function gone(pid: number, msMax: number): Promise<number> {
  const started = performance.now();
  while (isAlive(pid)) {
    assert.ok(performance.now() - started < msMax, `Postgres still runs after ${msMax} ms`);
    await sleep(20);
  }
  return performance.now() - started;
}

test('a rival is elected: the deposed compute stops and acknowledges nothing', {timeout: 600_000}, async () => {
  const {endpointId} = await pagoda.mainBranch();
  const {postgres} = await pidsOf(endpointId);
  const admin = await pagoda.admin(endpointId, 'neondb');
  await admin.query('insert into t values (1)');
  const {child} = await deposeBy(endpointId);
  const acknowledged = admin.query('insert into t values (2)').then(
    () => true,
    () => false,
  );
  const ms = await gone(postgres, stopMsMax);
  console.log(`Postgres of the deposed compute was gone after ${Math.round(ms)} ms`);
  assert.equal(await acknowledged, false);
  child.kill('SIGKILL');
  // The front door starts another compute, which fences the rival in turn.
  const rows = await pagoda.query('select id from t order by id');
  assert.deepEqual(rows, [{id: 1}]);
});

test(
  'cut off while it is deposed: its commits wait, and end unacknowledged when it learns of its fate',
  {timeout: 600_000},
  async () => {
    const {endpointId} = await pagoda.mainBranch();
    await pagoda.query('insert into t values (3)');
    const {postgres, proposer} = await pidsOf(endpointId);
    const admin = await pagoda.admin(endpointId, 'neondb');
    process.kill(proposer, 'SIGSTOP');
    let outcome = 'waits';
    const commit = admin.query('insert into t values (4)').then(
      () => (outcome = 'acknowledged'),
      () => (outcome = 'failed'),
    );
    await sleep(500);
    const {child} = await deposeBy(endpointId);
    await sleep(3000);
    assert.equal(outcome, 'waits');
    assert.ok(isAlive(postgres));
    process.kill(proposer, 'SIGCONT');
    const ms = await gone(postgres, stopMsMax);
    console.log(`Postgres was gone ${Math.round(ms)} ms after its proposer could reach safekeepers again`);
    await commit;
    assert.equal(outcome, 'failed');
    child.kill('SIGKILL');
    assert.deepEqual(await pagoda.query('select id from t where id >= 3'), [{id: 3}]);
  },
);
