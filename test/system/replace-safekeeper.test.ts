/** A safekeeper that is gone for good is replaced while commits go on; all of them lost, the branch comes back from the archive. */
import assert from 'node:assert/strict';
import {type ChildProcess, spawn} from 'node:child_process';
import {createServer} from 'node:net';
import {mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';
import {until} from '../until.ts';
import {Ledger} from './ledger.ts';

let pagoda: Pagoda;
const spawned: ChildProcess[] = [];

before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  for (const child of spawned) child.kill('SIGKILL');
  await pagoda?.[Symbol.asyncDispose]();
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const {port} = server.address() as {port: number};
  await new Promise<void>((resolve) => void server.close(() => resolve()));
  return port;
}

/** Another safekeeper beside those of `pagoda up`, known to the control plane. */
async function addSafekeeper(nodeId: number): Promise<void> {
  const like = JSON.parse(readFileSync(join(pagoda.dir, 'config', 'safekeeper-1.json'), 'utf8')) as Record<
    string,
    unknown
  >;
  const config = {
    ...like,
    nodeId,
    port: await freePort(),
    httpPort: await freePort(),
    dataDir: join(pagoda.dir, `safekeeper-${nodeId}`),
  };
  mkdirSync(config.dataDir, {recursive: true});
  const path = join(pagoda.dir, 'config', `safekeeper-${nodeId}.json`);
  writeFileSync(path, JSON.stringify(config), {mode: 0o600});
  const child = spawn(
    process.execPath,
    [
      '--disable-warning=ExperimentalWarning',
      join(import.meta.dirname, '../../src/cli/main.ts'),
      'safekeeper',
      '--config',
      path,
    ],
    {stdio: ['ignore', 'pipe', 'ignore']},
  );
  spawned.push(child);
  await new Promise<void>((resolve) => child.stdout!.once('data', () => resolve()));
  await pagoda.cli(
    'safekeepers',
    'add',
    String(nodeId),
    '--port',
    String(config.port),
    '--http-port',
    String(config.httpPort),
    '--zone',
    'z',
  );
}

/** Never comes back: the process is killed, and what the supervisor starts again finds a folder that it cannot use. */
function loseSafekeeper(nodeId: number): void {
  const folder = join(pagoda.dir, `safekeeper-${nodeId}`);
  rmSync(folder, {recursive: true, force: true, maxRetries: 10, retryDelay: 20});
  writeFileSync(folder, 'a file where the folder was');
  process.kill(pagoda.pidOf(`safekeeper-${nodeId}`), 'SIGKILL');
}

/** Where the WAL of a timeline ends in the object store, as the names of its objects say (docs/formats/wal-archive.md). */
function endOfArchive(timelineId: string): string {
  const root = join(pagoda.dir, 'objects', 'wal');
  const names = readdirSync(root)
    .filter((tenant) => readdirSync(join(root, tenant)).includes(timelineId))
    .flatMap((tenant) => readdirSync(join(root, tenant, timelineId)));
  const ends = names.map((name) => /\.([0-9A-F]{16})\.[0-9A-F]{16}\.partial$/.exec(name)?.[1] ?? '');
  const last = ends.toSorted().at(-1)!;
  const hex = (digits: string): string => Number.parseInt(digits, 16).toString(16).toUpperCase();
  return `${hex(last.slice(0, 8))}/${hex(last.slice(8))}`;
}

test('a safekeeper dies for good and is replaced under load: no failed commit', {timeout: 850_000}, async () => {
  const {branchId} = await pagoda.mainBranch();
  const ledger = new Ledger(pagoda);
  await ledger.create();
  ledger.start(4);
  await until('commits', () => ledger.acknowledged.size > 100);
  await addSafekeeper(4);
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
    await addSafekeeper(5);
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

test(
  'all safekeepers lose their disks: the branch comes back up to the last archived record, and it is said where',
  {timeout: 850_000},
  async () => {
    const {branchId, endpointId} = await pagoda.mainBranch();
    const [before] = await pagoda.query('select count(*)::int as n from ledger');
    await pagoda.suspend(endpointId);
    interface Wal {
      readonly timelineId: string;
      readonly members: {commitLsn?: string; archivedLsn?: string; hasTimeline?: boolean}[];
      readonly archive: {restoreLsn: string} | null;
    }
    const wal = async (): Promise<Wal> => JSON.parse(await pagoda.cli('safekeepers', 'wal', branchId)) as Wal;
    let archived: Wal;
    for (let attempt = 0; ; attempt++) {
      archived = await wal();
      const committed = archived.members
        .map((m) => m.commitLsn ?? '')
        .sort((a, b) => a.localeCompare(b))
        .at(-1);
      if (archived.archive?.restoreLsn === committed) break;
      assert.ok(attempt < 500, `not archived: ${JSON.stringify(archived)}`);
      await sleep(1000);
    }
    // 1 and 2 are started again by the supervisor, 5 stays away.
    spawned.at(-1)!.kill('SIGKILL');
    for (const nodeId of [1, 2]) {
      // Moved away first: the one that is started again must not find a file of it.
      const folder = join(pagoda.dir, `safekeeper-${nodeId}`);
      renameSync(folder, `${folder}.lost`);
      process.kill(pagoda.pidOf(`safekeeper-${nodeId}`), 'SIGKILL');
    }
    await addSafekeeper(6);
    for (let attempt = 0; (await wal()).members.filter((m) => m.hasTimeline === false).length < 2; attempt++) {
      assert.ok(attempt < 600, 'the safekeepers are back, without the branch');
      await sleep(500);
    }
    const said = await pagoda.cli('safekeepers', 'restore', branchId, '--members', '1,2,6', '--wait');
    assert.ok(said.includes(`up to ${archived.archive!.restoreLsn}`), said);
    assert.match(said, new RegExp(`goes on at ${archived.archive!.restoreLsn}`));
    await pagoda.resume(endpointId);
    const [now] = await pagoda.query('select count(*)::int as n from ledger');
    assert.deepEqual(now, before);
    await pagoda.query('insert into ledger values (-1)');

    // What the API says of it, and what the object store holds.
    const project = `/projects/${pagoda.status.projectId}`;
    const {operations} = await pagoda.api<{operations: {branch_id: string; restored_lsn?: string}[]}>(
      'GET',
      `${project}/operations?limit=400`,
    );
    assert.deepEqual(
      operations.filter((o) => o.restored_lsn !== undefined).map((o) => [o.branch_id, o.restored_lsn]),
      [[branchId, archived.archive!.restoreLsn]],
    );
    await pagoda.suspend(endpointId);
    for (let attempt = 0; ; attempt++) {
      const {branch} = await pagoda.api<{branch: {wal_restored_lsn?: string; wal_archived_lsn?: string}}>(
        'GET',
        `${project}/branches/${branchId}`,
      );
      assert.equal(branch.wal_restored_lsn, archived.archive!.restoreLsn);
      const {members} = await wal();
      const committed = members.map((m) => m.commitLsn!);
      // What was written after the restore arrives there too.
      if (branch.wal_archived_lsn !== undefined && committed.every((lsn) => lsn === branch.wal_archived_lsn)) {
        assert.equal(branch.wal_archived_lsn, endOfArchive((await wal()).timelineId));
        break;
      }
      assert.ok(attempt < 120, `not archived: ${JSON.stringify({branch, members})}`);
      await sleep(1000);
    }
  },
);
