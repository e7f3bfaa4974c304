/** A safekeeper that is gone for good is replaced while commits go on; all of them lost, the branch comes back from the archive. */
import assert from 'node:assert/strict';
import {type ChildProcess, spawn} from 'node:child_process';
import {createServer} from 'node:net';
import {mkdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';
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
  rmSync(folder, {recursive: true, force: true});
  writeFileSync(folder, 'a file where the folder was');
  process.kill(pagoda.pidOf(`safekeeper-${nodeId}`), 'SIGKILL');
}

test('a safekeeper dies for good and is replaced under load: no failed commit', {timeout: 180_000}, async () => {
  const {branchId} = await pagoda.mainBranch();
  const ledger = new Ledger(pagoda);
  await ledger.create();
  ledger.start(4);
  await sleep(2000);
  await addSafekeeper(4);
  loseSafekeeper(3);
  await sleep(1000);
  const before = ledger.acknowledged.size;
  const said = await pagoda.cli('safekeepers', 'replace', '3', '--wait');
  assert.match(said, /safekeeper 4 takes the place of 3/);
  await sleep(2000);
  assert.ok(ledger.acknowledged.size > before, 'commits went on');
  await ledger.stop();
  assert.equal(ledger.unknown.size, 0, 'no commit failed');
  const wal = JSON.parse(await pagoda.cli('safekeepers', 'wal', branchId)) as {
    generation: number;
    members: {nodeId: number; generation?: number; commitLsn: string}[];
  };
  assert.equal(wal.generation, 3);
  assert.deepEqual(wal.members.map((m) => [m.nodeId, m.generation]).sort(), [
    [1, 3],
    [2, 3],
    [4, 3],
  ]);
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
