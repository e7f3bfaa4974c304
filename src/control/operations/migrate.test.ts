import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Attachment} from '#control/attachments.ts';
import {readAttachments} from '#control/attachments.ts';
import {Failover, differences} from '#control/failover.ts';
import {migrationDraft} from '#control/operations/migrate-plan.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {call, FakeWorld, startControl, type TestControl} from '#control/test-world.ts';
import {systemClock} from '#runtime/clock.ts';
import {silentLog} from '#runtime/log.ts';

async function twoNodes(): Promise<{
  world: FakeWorld;
  control: TestControl;
  shard: () => Promise<Attachment>;
  projectId: string;
}> {
  const world = new FakeWorld();
  world.pageservers = [1, 2].map((nodeId) => ({nodeId, host: '127.0.0.1', port: nodeId, httpPort: 10 + nodeId}));
  const control = await startControl(world);
  const made = await call(control, 'POST', '/projects', {project: {name: 'p'}});
  const projectId = (made.json as unknown as {project: {id: string}}).project.id;
  const {tenant_id: tenantId} = await control.store
    .selectFrom('projects')
    .select('tenant_id')
    .where('id', '=', projectId)
    .executeTakeFirstOrThrow();
  return {world, control, projectId, shard: async () => (await readAttachments(control.store, tenantId))[0]!};
}

async function migrate(control: TestControl, projectId: string, shardId: string, to: number): Promise<string> {
  const [id] = await control.store
    .transaction()
    .execute((trx) => control.runner.submit(trx, [migrationDraft(projectId, {shardId, to})]));
  await control.runner.kick();
  await control.runner.wait([id!], 120_000);
  const {status} = await control.store
    .selectFrom('operations')
    .select('status')
    .where('id', '=', id!)
    .executeTakeFirstOrThrow();
  return status;
}

test('a new tenant is where fewest are, with another pageserver ready; a migration swaps the two', async (t) => {
  const {world, control, shard, projectId} = await twoNodes();
  t.after(() => control.stop());
  const before = await shard();
  assert.deepEqual([before.pageserverId, before.secondaryId], [1, 2]);
  await call(control, 'POST', '/projects', {project: {name: 'second'}});
  const rows = await control.store.selectFrom('attachments').selectAll().orderBy('pageserver_id').execute();
  assert.deepEqual(
    rows.map((row) => [row.pageserver_id, row.secondary_id]),
    [
      [1, 2],
      [2, 1],
    ],
  );

  assert.equal(await migrate(control, projectId, before.shardId, 2), 'finished');
  const after = await shard();
  assert.deepEqual([after.pageserverId, after.secondaryId], [2, 1]);
  assert.ok(after.generation > before.generation);
  assert.equal(world.places.get(`1/${after.shardId}`)?.mode, 'secondary');
  assert.deepEqual(world.places.get(`2/${after.shardId}`), {
    shardId: after.shardId,
    mode: 'attached',
    generation: after.generation,
  });
  assert.equal(await migrate(control, projectId, before.shardId, 2), 'skipped', 'it is there already');
});

test('a source that is gone does not hold a migration up', async (t) => {
  const {world, control, shard, projectId} = await twoNodes();
  t.after(() => control.stop());
  world.broken.add('saveTenant');
  const {shardId} = await shard();
  assert.equal(await migrate(control, projectId, shardId, 2), 'finished');
  assert.equal((await shard()).pageserverId, 2);
});

test('a change that is made while the tenant moves is made at the new place too', async (t) => {
  const {world, control, shard} = await twoNodes();
  t.after(() => control.stop());
  const {tenantId} = await shard();
  const asked: number[] = [];
  const pageserver = world.pageserver.bind(world);
  world.pageserver = (nodeId) => ({
    ...pageserver(nodeId),
    setRetention: async () => {
      asked.push(nodeId!);
      if (asked.length > 1) return;
      const {generation} = await shard();
      await control.store
        .updateTable('attachments')
        .set({pageserver_id: 2, generation: generation + 1})
        .where('tenant_id', '=', tenantId)
        .execute();
    },
  });
  await new TenantPages({store: control.store, storage: world}, tenantId).setRetention('t', 5);
  assert.deepEqual(asked, [1, 2]);
});

test('a dead pageserver: its shards go to who is ready, under new generations; it is told when it is back', async (t) => {
  const {world, control, shard} = await twoNodes();
  const failover = new Failover({
    store: control.store,
    storage: world,
    clock: systemClock,
    log: silentLog,
    limits: {tickMs: 200, deadAfterMs: 400, hungAfterMs: 600, graceMs: 2000},
  });
  t.after(async () => {
    await failover.stop();
    await control.stop();
  });
  const until = async (done: () => boolean | Promise<boolean>): Promise<void> => {
    const deadline = Date.now() + 120_000;
    while (!(await done())) {
      assert.ok(Date.now() < deadline, 'it did not happen within two minutes');
      await systemClock.sleep(10);
    }
  };
  failover.start();
  const before = await shard();
  await until(() => world.places.get(`2/${before.shardId}`)?.mode === 'secondary');

  world.broken.add('pageserver-1');
  await until(() => failover.isDead(1));
  await until(() => world.places.get(`2/${before.shardId}`)?.mode === 'attached');
  const after = await shard();
  assert.deepEqual([after.pageserverId, after.secondaryId], [2, 1]);
  assert.ok(after.generation > before.generation);

  // It was only stopped: it still believes it holds the tenant.
  assert.equal(world.places.get(`1/${before.shardId}`)?.mode, 'attached');
  world.broken.clear();
  await until(() => world.places.get(`1/${before.shardId}`)?.mode === 'secondary');
  assert.deepEqual(await shard(), after, 'nothing moves back by itself');

  // With nobody alive nothing is decided.
  world.broken.add('pageserver-1').add('pageserver-2');
  await until(() => failover.isDead(1) && failover.isDead(2));
  assert.deepEqual(await shard(), after);
});

test('what a node holds is compared with the table', () => {
  const row = (shardId: string, pageserverId: number, secondaryId: number, generation = 5): Attachment => ({
    tenantId: shardId,
    number: 0,
    count: 1,
    shardId,
    pageserverId,
    secondaryId,
    generation,
  });
  const rows = [row('mine', 1, 2), row('stale', 1, 2), row('lost', 1, 2), row('ready', 2, 1), row('left', 2, 1)];
  assert.deepEqual(
    differences(1, rows, [
      {shardId: 'mine', mode: 'attached', generation: 5},
      {shardId: 'stale', mode: 'attached', generation: 4},
      {shardId: 'ready', mode: 'secondary'},
      {shardId: 'left', mode: 'attached', generation: 4},
      {shardId: 'strange', mode: 'attached', generation: 9},
    ]),
    [
      {kind: 'attach', shardId: 'stale', generation: 5},
      {kind: 'attach', shardId: 'lost', generation: 5},
      {kind: 'keep-ready', shardId: 'left'},
      {kind: 'detach', shardId: 'strange'},
    ],
  );
});
