/** A safekeeper that is down keeps nobody from making projects and branches, and gets what it missed. */
import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {call, FakeWorld, startControl, type TestControl} from '#control/test-world.ts';

async function operationsLeft(control: TestControl): Promise<{kind: string; status: string}[]> {
  return await control.store
    .selectFrom('operations')
    .select(['kind', 'status'])
    .where('status', '!=', 'finished')
    .execute();
}

const holders = (world: FakeWorld): number[] =>
  [...world.walTimelines.keys()].map((key) => Number(key.split('/')[0])).sort((a, b) => a - b);

async function until(what: () => Promise<boolean>): Promise<void> {
  for (let waited = 0; waited < 120_000; waited += 20) {
    if (await what()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail('it does not come about');
}

async function projectWithoutThird(t: {after(fn: () => Promise<void>): void}): Promise<[TestControl, FakeWorld]> {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  world.broken.add('safekeeper-3');
  const {json} = await call(control, 'POST', '/projects', {project: {name: 'p'}});
  assert.equal((json as unknown as {branch: {current_state: string}}).branch.current_state, 'ready');
  assert.deepEqual(holders(world), [1, 2]);
  assert.deepEqual(
    (await operationsLeft(control)).map((o) => o.kind),
    ['complete_timeline'],
  );
  return [control, world];
}

test('a project is made while a safekeeper is down; it gets the timeline when it is back', async (t) => {
  const [control, world] = await projectWithoutThird(t);
  world.broken.clear();
  await until(async () => (await operationsLeft(control)).length === 0);
  assert.deepEqual(holders(world), [1, 2, 3]);
});

test('a timeline that is gone is not waited for', async (t) => {
  const [control, world] = await projectWithoutThird(t);
  await control.store.updateTable('branches').set({deleted_at: 1}).execute();
  await until(async () => (await operationsLeft(control))[0]?.status === 'skipped');
  world.broken.clear();
  assert.deepEqual(holders(world), [1, 2]);
});

test('a member that has been replaced meanwhile is not waited for; one that stayed in is', async (t) => {
  const [control] = await projectWithoutThird(t);
  await control.store
    .updateTable('branches')
    .set({safekeepers: JSON.stringify({generation: 3, members: [1, 2, 4], newMembers: []})})
    .execute();
  await until(async () => (await operationsLeft(control)).length === 0);

  const [other, otherWorld] = await projectWithoutThird(t);
  await other.store
    .updateTable('branches')
    .set({safekeepers: JSON.stringify({generation: 3, members: [1, 3, 4], newMembers: []})})
    .execute();
  otherWorld.broken.clear();
  await until(async () => (await operationsLeft(other)).length === 0);
  assert.deepEqual(holders(otherWorld), [1, 2, 3]);
});
