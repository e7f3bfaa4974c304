/** Local disks are lost: of computes and pageservers, which keep nothing; of all safekeepers, and the branch comes back from the archive. */
import assert from 'node:assert/strict';
import {renameSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import type {TestContext} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {onTestStores} from '../objectstore/stores.ts';
import {Pagoda} from '../pagoda.ts';
import {killEverythingUnderLoad} from './kill-everything.ts';
import {addSafekeeper} from './safekeeper-process.ts';

onTestStores('local disks are lost, and nothing with them', async (store, t) => {
  await using pagoda = await Pagoda.start({objectStore: store.url});
  await t.test('kill -9 of every process under pgbench, local disks of computes and pageserver lost', () =>
    killEverythingUnderLoad(pagoda, () => {
      for (const d of ['computes', 'pageserver']) rmSync(join(pagoda.dir, d), {recursive: true, force: true});
    }),
  );
  await t.test(
    'all safekeepers lose their disks: up to the last archived record all comes back, and it is said where',
    (t) => loseSafekeepers(pagoda, store.ofInstallation(pagoda.dir), t),
  );
});

async function loseSafekeepers(pagoda: Pagoda, objects: ObjectStore, t: TestContext): Promise<void> {
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
  // The supervisor starts them again, but one that finds a file where its folder was; another takes its place.
  for (const nodeId of [1, 2, 3]) {
    // Moved away first: the one that is started again must not find a file of it.
    const folder = join(pagoda.dir, `safekeeper-${nodeId}`);
    renameSync(folder, `${folder}.lost`);
    if (nodeId === 3) writeFileSync(folder, '');
    process.kill(pagoda.pidOf(`safekeeper-${nodeId}`), 'SIGKILL');
  }
  const sixth = await addSafekeeper(pagoda, 6);
  t.after(() => sixth.kill('SIGKILL'));
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
      assert.equal(branch.wal_archived_lsn, await endOfArchive(objects, (await wal()).timelineId));
      break;
    }
    assert.ok(attempt < 120, `not archived: ${JSON.stringify({branch, members})}`);
    await sleep(1000);
  }
}

/** Where the WAL of a timeline ends in the object store, as the names of its objects say (docs/formats/wal-archive.md). */
async function endOfArchive(objects: ObjectStore, timelineId: string): Promise<string> {
  const names = (await objects.list('wal/')).map(({key}) => key).filter((key) => key.split('/')[2] === timelineId);
  const ends = names.map((name) => /\.([0-9A-F]{16})\.[0-9A-F]{16}\.partial$/.exec(name)?.[1] ?? '');
  const last = ends.toSorted().at(-1)!;
  const hex = (digits: string): string => Number.parseInt(digits, 16).toString(16).toUpperCase();
  return `${hex(last.slice(0, 8))}/${hex(last.slice(8))}`;
}
