/** Changing a branch's safekeepers, with storage that only remembers what was asked of it. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {systemClock} from '#runtime/clock.ts';
import {silentLog} from '#runtime/log.ts';
import type {Lsn} from '#control/lsn.ts';
import {buildSpec} from '#control/operations/compute-plans.ts';
import {readSafekeeperSet, writeSafekeeperSet} from '#control/safekeeper-set.ts';
import {SafekeeperFarewells} from '#control/safekeeper-farewells.ts';
import {FakeWorld, call, importLsn, startControl, type TestControl} from '#control/test-world.ts';

async function projectWithBranch(
  control: TestControl,
): Promise<{projectId: string; branchId: string; timeline: string}> {
  await call(control, 'POST', '/projects', {project: {name: 'p'}});
  const branch = await control.store.selectFrom('branches').selectAll().executeTakeFirstOrThrow();
  return {projectId: branch.project_id, branchId: branch.id, timeline: branch.timeline_id};
}

async function submit(
  control: TestControl,
  kind: 'replace_safekeeper' | 'restore_from_archive',
  where: {projectId: string; branchId: string},
  state: Record<string, unknown>,
): Promise<string> {
  const [id] = await control.store
    .transaction()
    .execute((trx) =>
      control.runner.submit(trx, [{...where, action: kind, kind, locks: [`safekeepers:${where.branchId}`], state}]),
    );
  await control.runner.kick();
  return id!;
}

async function operation(
  control: TestControl,
  id: string,
): Promise<{status: string; error: string | null; state: Record<string, unknown>}> {
  const row = await control.store.selectFrom('operations').selectAll().where('id', '=', id).executeTakeFirstOrThrow();
  return {status: row.status, error: row.error, state: JSON.parse(row.state) as Record<string, unknown>};
}

test('a dead safekeeper is replaced: the others and the new one have the new generation, it is not waited for', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  world.broken.add('safekeeper-3');
  const id = await submit(control, 'replace_safekeeper', where, {remove: [3], add: [4]});
  await control.runner.wait([id], 20_000);
  const {status, state} = await operation(control, id);
  assert.equal(status, 'finished');
  assert.deepEqual(state['unreached'], [3]);
  const row = await control.store.selectFrom('branches').selectAll().executeTakeFirstOrThrow();
  assert.deepEqual(readSafekeeperSet(row.safekeepers), {generation: 3, members: [1, 2, 4], newMembers: []});
  for (const nodeId of [1, 2, 4]) assert.equal(world.walTimelines.get(`${nodeId}/${where.timeline}`)!.generation, 3);
  // Once more: the next change begins where this one ended, and a compute is told the new list.
  const back = await submit(control, 'replace_safekeeper', where, {remove: [1], add: [3]});
  world.broken.delete('safekeeper-3');
  await control.runner.wait([back], 20_000);
  const after = await control.store.selectFrom('branches').selectAll().executeTakeFirstOrThrow();
  assert.deepEqual(readSafekeeperSet(after.safekeepers), {generation: 5, members: [2, 4, 3], newMembers: []});
  assert.equal(world.walTimelines.has(`1/${where.timeline}`), false);
});

test('a node that has become a member while another change was under way is not counted twice: as many stay members', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  const [first, second] = [
    await submit(control, 'replace_safekeeper', where, {remove: [3], add: [4]}),
    await submit(control, 'replace_safekeeper', where, {remove: [1], add: [4]}),
  ];
  await control.runner.wait([first, second], 20_000);
  assert.match((await operation(control, second)).error!, /1, 2, 4 by now: without 1 and with 4 they would be 2/);
  const row = await control.store.selectFrom('branches').selectAll().executeTakeFirstOrThrow();
  assert.deepEqual(readSafekeeperSet(row.safekeepers), {generation: 3, members: [1, 2, 4], newMembers: []});
});

test('who was down when it was replaced loses its files when it is back, unless it is a member again', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  const {store, runner} = control;
  const farewells = new SafekeeperFarewells({store, runner, storage: world, clock: systemClock, log: silentLog});
  const has = (nodeId: number): boolean => world.walTimelines.has(`${nodeId}/${where.timeline}`);
  world.broken.add('safekeeper-3');
  const id = await submit(control, 'replace_safekeeper', where, {remove: [3], add: [4]});
  await runner.wait([id], 20_000);
  await farewells.sweep();
  assert.ok(has(3), 'it is down');
  world.broken.clear();
  await farewells.sweep();
  assert.ok(!has(3), 'it is back');
  assert.deepEqual((await operation(control, id)).state['unreached'], []);
  // 4 is down when it leaves, and becomes a member again before anybody looks.
  world.broken.add('safekeeper-4');
  await runner.wait([await submit(control, 'replace_safekeeper', where, {remove: [4], add: [3]})], 20_000);
  world.broken.clear();
  await runner.wait([await submit(control, 'replace_safekeeper', where, {remove: [1], add: [4]})], 20_000);
  await farewells.sweep();
  assert.ok(has(4) && !has(1), 'a member keeps what it has');
  // The branch is deleted while one that has left is down.
  world.broken.add('safekeeper-2');
  await runner.wait([await submit(control, 'replace_safekeeper', where, {remove: [2], add: [1]})], 20_000);
  world.broken.clear();
  await store.updateTable('branches').set({deleted_at: 1}).execute();
  await farewells.sweep();
  assert.ok(!has(2), 'nothing of a deleted branch is left');
});

test('a deleted branch that can still come back moves like any other, and its archive stays', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  const {store, runner} = control;
  await store.updateTable('branches').set({deleted_at: 1, purge_at: 9e12}).execute();
  world.broken.add('safekeeper-3');
  const id = await submit(control, 'replace_safekeeper', where, {remove: [3], add: [4]});
  await runner.wait([id], 20_000);
  assert.equal((await operation(control, id)).status, 'finished');
  assert.ok(world.walTimelines.has(`4/${where.timeline}`));
  world.broken.clear();
  await new SafekeeperFarewells({store, runner, storage: world, clock: systemClock, log: silentLog}).sweep();
  assert.ok(!world.walTimelines.has(`3/${where.timeline}`), 'the replaced one has lost its files');
  assert.deepEqual([...world.archivesDeleted], []);
});

test('without a majority it waits, says for what, and goes on when there is one', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  world.broken.add('safekeeper-3');
  world.broken.add('safekeeper-2');
  const id = await submit(control, 'replace_safekeeper', where, {remove: [3], add: [4]});
  await control.runner.wait([id], 4000);
  const waiting = await operation(control, id);
  assert.equal(waiting.status, 'running');
  assert.match(waiting.error ?? '', /waiting for a majority of safekeeper 1, safekeeper 2, safekeeper 3/);
  world.broken.delete('safekeeper-2');
  await control.runner.wait([id], 20_000);
  assert.equal((await operation(control, id)).status, 'finished');
});

test('a branch that is deleted meanwhile ends the change, and no copy is left', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  world.broken.add('safekeeper-2');
  world.broken.add('safekeeper-3');
  const id = await submit(control, 'replace_safekeeper', where, {remove: [3], add: [4]});
  await control.runner.wait([id], 500);
  world.broken.clear();
  await control.store.updateTable('branches').set({deleted_at: 1}).execute();
  await control.runner.wait([id], 20_000);
  const {status} = await operation(control, id);
  assert.ok(status === 'skipped' || status === 'finished', status);
  if (status === 'skipped') assert.equal(world.walTimelines.has(`4/${where.timeline}`), false);
});

test('a branch that is deleted when its change is nearly over: the change ends, and the new member keeps nothing', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  world.broken.add('setSafekeepers');
  const id = await submit(control, 'replace_safekeeper', where, {remove: [3], add: [4]});
  await control.runner.wait([id], 500);
  assert.ok(world.walTimelines.has(`4/${where.timeline}`));
  // The deletion had read who the members are before the change was saved. One of the new ones is down.
  world.timelines.delete(where.timeline);
  for (const nodeId of [1, 2, 3]) world.walTimelines.delete(`${nodeId}/${where.timeline}`);
  await control.store.updateTable('branches').set({deleted_at: 1}).execute();
  world.broken.add('safekeeper-4');
  await control.runner.wait([id], 20_000);
  assert.equal((await operation(control, id)).status, 'skipped');
  world.broken.clear();
  const {store, runner} = control;
  await new SafekeeperFarewells({store, runner, storage: world, clock: systemClock, log: silentLog}).sweep();
  assert.equal(world.walTimelines.has(`4/${where.timeline}`), false);
});

test('a deletion that finds the safekeepers changed at its end goes to the new ones too', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const {projectId, timeline} = await projectWithBranch(control);
  const made = await call(control, 'POST', `/projects/${projectId}/branches`, {branch: {}});
  const {id} = (made.json as unknown as {branch: {id: string}}).branch;
  const row = await control.store.selectFrom('branches').selectAll().where('id', '=', id).executeTakeFirstOrThrow();
  assert.notEqual(row.timeline_id, timeline);
  const real = world.safekeeper.bind(world);
  world.safekeeper = (nodeId) => ({
    ...real(nodeId),
    deleteTimeline: async (tenantId, timelineId) => {
      const first = world.walTimelines.has(`1/${timelineId}`);
      await real(nodeId).deleteTimeline(tenantId, timelineId);
      if (!first) return;
      world.walTimelines.delete(`1/${timelineId}`);
      world.walTimelines.set(`4/${timelineId}`, {startLsn: importLsn, commitLsn: importLsn, flushLsn: importLsn});
      const safekeepers = writeSafekeeperSet({generation: 3, members: [1, 2, 4], newMembers: []});
      await control.store.updateTable('branches').set({safekeepers}).where('id', '=', id).execute();
    },
  });
  const {operations} = (await call(control, 'DELETE', `/projects/${projectId}/branches/${id}?hard_delete=true`))
    .json as unknown as {operations: {id: string}[]};
  const ids = operations.map((o) => o.id);
  await control.runner.wait(ids, 20_000);
  for (const one of ids) assert.equal((await operation(control, one)).status, 'finished');
  assert.equal(world.walTimelines.has(`4/${row.timeline_id}`), false);
});

test('all disks lost: the branch comes back from the archive, and the operation says where it goes on', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const where = await projectWithBranch(control);
  world.archived = (importLsn + 0x500) as Lsn;
  const refused = await submit(control, 'restore_from_archive', where, {members: [1, 2, 3]});
  await control.runner.wait([refused], 10_000);
  assert.match((await operation(control, refused)).error ?? '', /still has timeline/);
  world.walTimelines.clear();
  const id = await submit(control, 'restore_from_archive', where, {members: [1, 2, 4]});
  await control.runner.wait([id], 10_000);
  const {status, state} = await operation(control, id);
  assert.equal(status, 'finished');
  assert.equal(state['lsn'], world.archived);
  const row = await control.store.selectFrom('branches').selectAll().executeTakeFirstOrThrow();
  assert.deepEqual(readSafekeeperSet(row.safekeepers).members, [1, 2, 4]);
  const endpoint = await control.store.selectFrom('endpoints').selectAll().executeTakeFirstOrThrow();
  const {spec} = await buildSpec(
    {
      store: control.store,
      storage: world,
      mintComputeToken: async () => 't',
      tokenRefreshUrl: '',
      locationsUrl: () => '',
    } as never,
    endpoint,
  );
  assert.equal(spec.safekeeperGeneration, 11);
});
