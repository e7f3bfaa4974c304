import assert from 'node:assert/strict';
import {copyFileSync, mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {type Clock, systemClock} from '#runtime/clock.ts';
import {nextGeneration} from '#control/generations.ts';
import {openStore} from '#control/store/open.ts';
import {FakeWorld, call, startControl} from '#control/test-world.ts';

test('a pageserver that re-attaches while a project is made has a newer generation: the project is made all the same', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  let raised = 0;
  world.beforeAttach = async (tenantId) => {
    if (raised++ > 0) return;
    await control.store
      .updateTable('attachments')
      .set({generation: 4_000_000_000})
      .where('tenant_id', '=', tenantId)
      .execute();
    world.tenants.set(tenantId, 4_000_000_000);
  };
  const {status, json} = await call(control, 'POST', '/projects', {project: {name: 'x'}});
  assert.equal(status, 201, JSON.stringify(json));
  assert.deepEqual([...world.tenants.values()], [4_000_000_000]);
});

test('a pageserver dies as it throws away what a failed import has left: the timeline is gone, and the project is made all the same', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  let lost = 0;
  world.beforeImport = (timelineId) => {
    if (lost++ > 0) return;
    world.timelines.delete(timelineId);
    throw new Error('the pageserver has died');
  };
  const {status, json} = await call(control, 'POST', '/projects', {project: {name: 'x'}});
  assert.equal(status, 201, JSON.stringify(json));
  assert.deepEqual([lost, [...world.timelines.values()].map(({imports}) => imports)], [2, [1]]);
});

test('a control plane that was restored from an old backup never gives out a generation again', async (t) => {
  const world = new FakeWorld();
  const dir = mkdtempSync(join(tmpdir(), 'control-'));
  t.after(() => rmSync(dir, {recursive: true, force: true}));
  const database = join(dir, 'control.sqlite');
  let control = await startControl(world, {database});
  const {project} = (await call(control, 'POST', '/projects', {project: {name: 'p'}})).json as unknown as {
    project: {id: string};
  };
  const {tenant_id: tenant} = await control.store
    .selectFrom('projects')
    .select('tenant_id')
    .where('id', '=', project.id)
    .executeTakeFirstOrThrow();
  const {key} = control;
  await control.store.destroy();
  copyFileSync(database, `${database}.backup`);

  // After the backup pageservers come and go, each with a new generation; time passes.
  const seen = new Set<number>([world.tenants.get(tenant)!]);
  let now = systemClock.nowMs();
  const clock: Clock = {...systemClock, nowMs: () => now};
  for (let i = 0; i < 5; i++) {
    now += 7000;
    const held = world.tenants.get(tenant)!;
    const generation = nextGeneration(held, clock);
    assert.ok(!seen.has(generation));
    seen.add(generation);
    world.tenants.set(tenant, generation);
  }

  now += 60_000;
  copyFileSync(`${database}.backup`, database);
  control = await startControl(world, {store: await openStore(database), key, clock});
  t.after(() => control.stop());
  // What it remembers is older than what the pageserver has: it takes the lead again instead of failing for ever.
  const made = await call(control, 'POST', `/projects/${project.id}/branches`, {branch: {name: 'kid'}});
  assert.equal(made.status, 201);
  const where = (
    await call(
      control,
      'DELETE',
      `/projects/${project.id}/branches/${(made.json as unknown as {branch: {id: string}}).branch.id}`,
    )
  ).status;
  assert.equal(where, 200);
  assert.ok(!seen.has(world.tenants.get(tenant)!), 'a number that nobody had');
  assert.ok(world.tenants.get(tenant)! > Math.max(...seen));
});

test('a branch or project that cannot be made leaves nothing in storage', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  const {project} = (await call(control, 'POST', '/projects', {project: {name: 'p'}})).json as unknown as {
    project: {id: string};
  };
  const before = [...world.timelines.keys()];
  const settled = async (): Promise<void> => {
    for (;;) {
      const open = await control.store
        .selectFrom('operations')
        .select('id')
        .where('status', 'in', ['scheduling', 'running'])
        .execute();
      if (open.length === 0) return;
      await systemClock.sleep(20);
    }
  };
  world.refused.add('safekeeper-3');
  const {status} = await call(control, 'POST', `/projects/${project.id}/branches`, {branch: {name: 'kid'}});
  assert.equal(status, 422);
  await settled();
  assert.deepEqual([...world.timelines.keys()], before, 'the pageserver has forgotten the timeline');
  assert.deepEqual(
    [...world.walTimelines.keys()].filter((key) => !before.some((id) => key.endsWith(id))),
    [],
    'and the safekeepers',
  );
  await call(control, 'POST', '/projects', {project: {name: 'second'}});
  await settled();
  assert.deepEqual([...world.timelines.keys()], before);
  assert.equal(world.tenants.size, 1, 'the tenant is gone too');
  world.refused.clear();
  assert.equal((await call(control, 'POST', `/projects/${project.id}/branches`, {branch: {name: 'kid'}})).status, 201);
});
