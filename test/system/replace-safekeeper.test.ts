/** A safekeeper that is gone for good is replaced while commits go on. All of them lost: lost-disks.test.ts. */
import assert from 'node:assert/strict';
import type {ChildProcess} from 'node:child_process';
import {readdirSync, renameSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';
import {until} from '../until.ts';
import {Ledger} from './ledger.ts';
import {addSafekeeper} from './safekeeper-process.ts';

let pagoda: Pagoda;
const spawned: ChildProcess[] = [];

before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  for (const child of spawned) child.kill('SIGKILL');
  await pagoda?.[Symbol.asyncDispose]();
});

/** Never comes back: the process is killed, and what the supervisor starts again finds a folder that it cannot use. */
function loseSafekeeper(nodeId: number): void {
  const folder = join(pagoda.dir, `safekeeper-${nodeId}`);
  rmSync(folder, {recursive: true, force: true, maxRetries: 10, retryDelay: 20});
  writeFileSync(folder, 'a file where the folder was');
  process.kill(pagoda.pidOf(`safekeeper-${nodeId}`), 'SIGKILL');
}

test('a safekeeper dies for good and is replaced under load: no failed commit', {timeout: 850_000}, async () => {
  const {branchId} = await pagoda.mainBranch();
  const ledger = new Ledger(pagoda);
  await ledger.create();
  ledger.start(4);
  await until('commits', () => ledger.acknowledged.size > 100);
  spawned.push(await addSafekeeper(pagoda, 4));
  loseSafekeeper(3);
  await sleep(1000);
  const before = ledger.acknowledged.size;
  const said = await pagoda.cli('safekeepers', 'replace', '3', '--wait');
  assert.match(said, /safekeeper 4 takes the place of 3/);
  await until('commits went on', () => ledger.acknowledged.size > before + 20);
  await ledger.stop();
  assert.equal(ledger.unknown.size, 0, 'no commit failed');
  const wal = JSON.parse(await pagoda.cli('safekeepers', 'wal', branchId)) as {
    generation: number;
    members: {nodeId: number; generation?: number; commitLsn: string}[];
  };
  assert.equal(wal.generation, 3);
  assert.deepEqual(
    wal.members.map((m) => [m.nodeId, m.generation]).sort((a, b) => a[0]! - b[0]!),
    [
      [1, 3],
      [2, 3],
      [4, 3],
    ],
  );
  // The new one counts: without another of the old ones, a commit still has its quorum.
  process.kill(pagoda.pidOf('safekeeper-2'), 'SIGSTOP');
  try {
    await pagoda.query('create table proof (id int)');
  } finally {
    process.kill(pagoda.pidOf('safekeeper-2'), 'SIGCONT');
  }
  const {lost, invented} = await ledger.compare();
  console.log(
    `${ledger.acknowledged.size} commits, ${before} before the replacement; longest gap ${Math.round(ledger.longestGapMs)} ms`,
  );
  assert.deepEqual({lost, invented}, {lost: [], invented: []});
});

test(
  'the control plane is killed again and again during a replacement: it goes on where it was',
  {timeout: 850_000},
  async () => {
    const {branchId} = await pagoda.mainBranch();
    spawned.push(await addSafekeeper(pagoda, 5));
    const ledger = new Ledger(pagoda);
    await pagoda.query('truncate ledger');
    ledger.start(2);
    await pagoda.cli('safekeepers', 'replace', '4', '--to', '5', '--branch', branchId);
    for (let kill = 0; kill < 3; kill++) {
      await pagoda.kill('control');
      await sleep(1500 + kill * 300);
    }
    const wal = async (): Promise<{generation: number; members: {nodeId: number; generation?: number}[]}> =>
      JSON.parse(await pagoda.cli('safekeepers', 'wal', branchId)) as never;
    for (let attempt = 0; ; attempt++) {
      const {generation, members} = await wal().catch(() => ({generation: 0, members: []}));
      if (generation === 5) {
        assert.deepEqual(
          members.map((m) => [m.nodeId, m.generation]).sort((a, b) => a[0]! - b[0]!),
          [
            [1, 5],
            [2, 5],
            [5, 5],
          ],
        );
        break;
      }
      assert.ok(attempt < 600, `the replacement did not end: generation ${generation}`);
      await sleep(500);
    }
    await ledger.stop();
    assert.equal(ledger.unknown.size, 0, 'no commit failed');
    const {lost, invented} = await ledger.compare();
    assert.deepEqual({lost, invented}, {lost: [], invented: []});
  },
);

test(
  'a branch is deleted while one of its safekeepers is down: nobody waits, and its files go when it is back',
  {timeout: 850_000},
  async () => {
    const branches = `/projects/${pagoda.status.projectId}/branches`;
    const {branch} = await pagoda.api<{branch: {id: string}}>('POST', branches, {});
    await pagoda.settled();
    const {timelineId, members} = JSON.parse(await pagoda.cli('safekeepers', 'wal', branch.id)) as {
      timelineId: string;
      members: {nodeId: number}[];
    };
    // The supervisor starts it again and again, and it does not find its folder.
    const {nodeId} = members.find(({nodeId}) => nodeId <= 2)!;
    const folder = join(pagoda.dir, `safekeeper-${nodeId}`);
    const files = (): string[] =>
      readdirSync(folder, {recursive: true, encoding: 'utf8'}).filter(
        (name) => name.includes(`${timelineId}/`) && !name.includes('deleted'),
      );
    assert.ok(files().length > 0, 'it has the branch');
    renameSync(folder, `${folder}.away`);
    writeFileSync(folder, 'a file where the folder was');
    process.kill(pagoda.pidOf(`safekeeper-${nodeId}`), 'SIGKILL');
    const {operations} = await pagoda.api<{operations: {id: string; status: string}[]}>(
      'DELETE',
      `${branches}/${branch.id}?hard_delete=true`,
    );
    assert.deepEqual(
      operations.map(({status}) => status),
      ['finished'],
    );
    rmSync(folder);
    renameSync(`${folder}.away`, folder);
    assert.ok(files().length > 0, 'it still has the branch');
    for (let attempt = 0; files().length > 0; attempt++) {
      assert.ok(attempt < 180, `it keeps ${files().join(', ')}`);
      await sleep(1000);
    }
  },
);
