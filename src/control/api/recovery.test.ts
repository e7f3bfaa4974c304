/** Deleted projects and branches, until their time is over, against storage that only remembers. */
import {strict as assert} from 'node:assert';
import {afterEach, beforeEach, test} from 'node:test';
import {discardDeleted, goneForMs} from '#control/compute-leftovers.ts';
import {sweepDeleted} from '#control/purge.ts';
import {SafekeeperFarewells} from '#control/safekeeper-farewells.ts';
import {type Answer, call, FakeWorld, startControl, type TestControl, hasFailed} from '#control/test-world.ts';
import {systemClock} from '#runtime/clock.ts';
import {silentLog} from '#runtime/log.ts';

const day = 86_400_000;
let nowMs: number;
let world: FakeWorld;
let control: TestControl;
let project: string;
let main: string;

beforeEach(async () => {
  nowMs = 1_800_000_000_000;
  world = new FakeWorld();
  control = await startControl(world, {
    clock: {...systemClock, nowMs: () => nowMs},
    recoverySeconds: 7 * 86_400,
  });
  const {json} = await call(control, 'POST', '/projects', {project: {name: 'p'}});
  const made = json as unknown as {project: {id: string}; branch: {id: string}};
  project = made.project.id;
  main = made.branch.id;
});
afterEach(() => control.stop());

interface Shown {
  readonly id: string;
  readonly name: string;
  readonly parent_id?: string;
  readonly expires_at?: string;
  readonly recovery?: {readonly recoverable_until: string; readonly deletion_method: string};
}

async function makeBranch(body: Record<string, unknown>): Promise<string> {
  const {status, json} = await call(control, 'POST', `/projects/${project}/branches`, {
    branch: body,
    endpoints: [{type: 'read_write'}],
  });
  assert.equal(status, 201, JSON.stringify(json));
  return (json as unknown as {branch: {id: string}}).branch.id;
}
async function shown(query = ''): Promise<Map<string, Shown>> {
  const {json} = await call(control, 'GET', `/projects/${project}/branches${query}`);
  return new Map((json as unknown as {branches: Shown[]}).branches.map((b) => [b.name, b]));
}
const remove = (id: string, query = ''): Promise<Answer> =>
  call(control, 'DELETE', `/projects/${project}/branches/${id}${query}`);
const recover = (id: string): Promise<Answer> => call(control, 'POST', `/projects/${project}/branches/${id}/recover`);
async function sweep(): Promise<void> {
  await sweepDeleted({store: control.store, runner: control.runner, clock: control.context.clock, log: silentLog});
  const left = await control.store
    .selectFrom('operations')
    .select('id')
    .where('status', 'in', ['scheduling', 'running'])
    .execute();
  await control.runner.wait(
    left.map(({id}) => id),
    10_000,
  );
}
const endpointsOf = async (branch: string): Promise<{id: string; current_state: string}[]> =>
  (
    (await call(control, 'GET', `/projects/${project}/branches/${branch}/endpoints`)).json as unknown as {
      endpoints: {id: string; current_state: string}[];
    }
  ).endpoints;

test('a deleted branch comes back with its endpoint, idle, and does not expire any more', async () => {
  const id = await makeBranch({name: 'b', expires_at: new Date(nowMs + day).toISOString()});
  const [endpoint] = await endpointsOf(id);
  const timelines = world.timelines.size;
  assert.equal((await remove(id)).status, 200);
  assert.equal(world.computes.size, 1, 'its compute is stopped');
  assert.equal(world.timelines.size, timelines, 'its storage stays');
  assert.equal((await shown()).has('b'), false);
  const {recovery} = (await shown('?include_deleted=true')).get('b')!;
  assert.deepEqual(recovery && [recovery.recoverable_until, recovery.deletion_method], [
    new Date(nowMs + 7 * day).toISOString(),
    'user',
  ]);
  assert.equal((await call(control, 'GET', `/projects/${project}/branches/${id}`)).status, 404);

  nowMs += 6 * day;
  await sweep();
  const {status, json} = await recover(id);
  assert.equal(status, 200, JSON.stringify(json));
  const answer = json as unknown as {branch: Shown; endpoints: {id: string; current_state: string}[]};
  assert.equal(answer.branch.expires_at, undefined);
  assert.deepEqual(
    answer.endpoints.map((e) => [e.id, e.current_state]),
    [[endpoint!.id, 'idle']],
  );
  assert.equal((await call(control, 'POST', `/projects/${project}/endpoints/${endpoint!.id}/start`)).status, 200);
  assert.equal(world.computes.size, 2);
  nowMs += 30 * day;
  await sweep();
  assert.equal((await shown()).has('b'), true, 'it lives');
  assert.equal((await recover(id)).status, 404, 'it is not deleted');
});

test('after its time a branch leaves storage, and cannot come back; hard_delete does not wait', async () => {
  const [late, hard] = [await makeBranch({name: 'late'}), await makeBranch({name: 'hard'})];
  const all = world.timelines.size;
  await remove(late);
  await remove(hard, '?hard_delete=true');
  assert.equal(world.timelines.size, all - 1);
  assert.equal((await recover(hard)).status, 404);
  nowMs += 7 * day;
  assert.equal((await recover(late)).status, 404, 'its time is over');
  await sweep();
  assert.equal(world.timelines.size, all - 2);
  assert.equal((await shown('?include_deleted=true')).size, 1);
  // One that is deleted already can be deleted for good.
  const again = await makeBranch({name: 'again'});
  await remove(again);
  assert.equal((await remove(again)).status, 404);
  assert.equal((await remove(again, '?hard_delete=true')).status, 200);
  assert.equal(world.timelines.size, all - 2);
  const {count} = await control.store
    .selectFrom('branches')
    .select((e) => e.fn.countAll<number>().as('count'))
    .where('purge_at', 'is not', null)
    .executeTakeFirstOrThrow();
  assert.equal(count, 0);
});

test('a branch whose name is taken waits for the other one to be renamed', async () => {
  const id = await makeBranch({name: 'b'});
  await remove(id);
  const other = await makeBranch({name: 'b'});
  const {status, json} = await recover(id);
  assert.equal(status, 409, JSON.stringify(json));
  await call(control, 'PATCH', `/projects/${project}/branches/${other}`, {branch: {name: 'c'}});
  assert.equal((await recover(id)).status, 200);
});

test('storage of a parent stays while a deleted child can come back; then it lives without the parent', async () => {
  const parent = await makeBranch({name: 'parent'});
  const child = await makeBranch({name: 'child', parent_id: parent});
  await remove(child);
  nowMs += day;
  assert.equal((await remove(parent, '?hard_delete=true')).status, 200);
  assert.equal(world.timelines.size, 3, 'the child still needs the parent');
  assert.equal((await recover(parent)).status, 404);
  await sweep();
  assert.equal(world.timelines.size, 3);
  const {status, json} = await recover(child);
  assert.equal(status, 200, JSON.stringify(json));
  await sweep();
  await sweep();
  assert.equal(world.timelines.size, 2, 'the parent has gone');
  assert.equal((await shown()).get('child')!.parent_id, undefined);
  assert.ok(world.detached.size === 1);
});

test('the old state of a branch that was reset stays while a deleted child of it can come back', async () => {
  const b = await makeBranch({name: 'b'});
  const child = await makeBranch({name: 'child', parent_id: b});
  await remove(child);
  const answer = await call(control, 'POST', `/projects/${project}/branches/${b}/restore`, {source_branch_id: main});
  assert.equal(answer.status, 200, JSON.stringify(answer.json));
  assert.equal(world.timelines.size, 4, 'main, b, its old state and the child');
  nowMs += 7 * day;
  await sweep();
  await sweep();
  assert.equal(world.timelines.size, 2);
});

test('a deleted project comes back with its branches, endpoints and snapshots; what was deleted before stays deleted', async () => {
  const b = await makeBranch({name: 'b'});
  const before = await makeBranch({name: 'before'});
  await remove(before);
  await call(control, 'POST', `/projects/${project}/branches/${b}/snapshot?name=s`);
  const names = [...(await shown()).keys()].toSorted();
  const timelines = world.timelines.size;
  nowMs += day;
  assert.equal((await call(control, 'DELETE', `/projects/${project}`)).status, 200);
  assert.equal(world.computes.size, 0);
  assert.equal(world.timelines.size, timelines);
  assert.equal((await call(control, 'GET', `/projects/${project}`)).status, 404);
  const listed = (query: string): Promise<{projects: {id: string; recoverable_until?: string}[]}> =>
    call(control, 'GET', `/projects${query}`).then(({json}) => json as never);
  assert.deepEqual((await listed('')).projects, []);
  const [found] = (await listed('?recoverable=true')).projects;
  assert.deepEqual(
    [found?.id, found?.recoverable_until?.slice(0, 10)],
    [project, new Date(nowMs + 7 * day).toISOString().slice(0, 10)],
  );
  // Nobody else's key finds it.
  assert.equal((await call(control, 'POST', `/projects/${project}/recover`, undefined, null)).status, 401);
  assert.equal((await call(control, 'POST', '/projects/no-such-12345678/recover')).status, 404);

  const {status, json} = await call(control, 'POST', `/projects/${project}/recover`);
  assert.equal(status, 200, JSON.stringify(json));
  const answer = json as unknown as {project: {id: string}; branches: Shown[]};
  assert.equal(answer.project.id, project);
  assert.deepEqual(answer.branches.map(({name}) => name).toSorted(), names);
  assert.deepEqual([...(await shown()).keys()].toSorted(), names);
  const {snapshots} = (await call(control, 'GET', `/projects/${project}/snapshots`)).json as unknown as {
    snapshots: unknown[];
  };
  assert.equal(snapshots.length, 1);
  const [endpoint] = await endpointsOf(main);
  assert.equal((await call(control, 'POST', `/projects/${project}/endpoints/${endpoint!.id}/start`)).status, 200);
  assert.equal((await call(control, 'POST', `/projects/${project}/recover`)).status, 404, 'it is not deleted');

  // Deleted again, and not recovered.
  await call(control, 'DELETE', `/projects/${project}`);
  nowMs += 7 * day;
  assert.equal((await call(control, 'POST', `/projects/${project}/recover`)).status, 404);
  await sweep();
  assert.equal(world.timelines.size, 0);
  assert.equal(world.tenants.size, 0);
  assert.equal(world.walTimelines.size, 0);
});

test('what computes leave goes when their endpoint is gone, and stays while it can come back', async () => {
  const [b, d] = [await makeBranch({name: 'b'}), await makeBranch({name: 'd'})];
  const [ofMain] = await endpointsOf(main);
  const [ofB] = await endpointsOf(b);
  const [ofD] = await endpointsOf(d);
  const discard = (): Promise<void> =>
    discardDeleted({
      store: control.store,
      runner: control.runner,
      launcher: world.launcher,
      clock: control.context.clock,
      log: silentLog,
    });
  await call(control, 'DELETE', `/projects/${project}/endpoints/${ofD!.id}`);
  await remove(b);
  await discard();
  assert.equal(world.leftovers.size, 3, 'a proxy may still know the ports');
  nowMs += goneForMs;
  await discard();
  assert.deepEqual([...world.leftovers].toSorted(), [ofMain!.id, ofB!.id].toSorted());
  nowMs += 7 * day;
  await sweep();
  await discard();
  assert.deepEqual([...world.leftovers], [ofMain!.id]);
  // Nobody knows of the computes of a schema-only branch.
  const {status} = await call(control, 'POST', `/projects/${project}/branches`, {branch: {init_source: 'schema-only'}});
  assert.equal(status, 201);
  assert.deepEqual([...world.leftovers], [ofMain!.id]);
});

test('a deletion does not wait for a safekeeper that is down; it is told when it is back', async () => {
  const id = await makeBranch({name: 'b'});
  const {timeline_id: timeline} = await control.store
    .selectFrom('branches')
    .select('timeline_id')
    .where('id', '=', id)
    .executeTakeFirstOrThrow();
  const holders = (): string[] => [...world.walTimelines.keys()].filter((key) => key.endsWith(timeline));
  world.broken.add('safekeeper-2');
  const {json} = await remove(id, '?hard_delete=true');
  const {operations} = json as unknown as {operations: {status: string}[]};
  assert.deepEqual(
    operations.map(({status}) => status),
    ['finished'],
  );
  assert.deepEqual(holders(), [`2/${timeline}`]);
  const farewells = new SafekeeperFarewells({
    store: control.store,
    runner: control.runner,
    storage: world,
    clock: control.context.clock,
    log: silentLog,
  });
  await farewells.sweep();
  assert.deepEqual(holders(), [`2/${timeline}`], 'it is still down');
  world.broken.clear();
  await farewells.sweep();
  assert.deepEqual(holders(), []);
  assert.deepEqual(await control.store.selectFrom('safekeeper_debts').selectAll().execute(), []);

  // Without a majority nothing is over: the timeline could come back to life.
  world.broken.add('safekeeper-2').add('safekeeper-3');
  const other = await makeBranchLater();
  const deleting = remove(other, '?hard_delete=true');
  let operation: {id: string} | undefined;
  while (operation === undefined)
    operation = await control.store
      .selectFrom('operations')
      .select('id')
      .where('branch_id', '=', other)
      .where('kind', '=', 'delete_branch')
      .executeTakeFirst();
  await hasFailed(control, operation.id);
  world.broken.clear();
  const {operations: after} = (await deleting).json as unknown as {operations: {status: string}[]};
  assert.equal(after[0]!.status, 'finished');
});

/** While only one safekeeper is there a branch cannot be made: it is made before. */
async function makeBranchLater(): Promise<string> {
  const broken = [...world.broken];
  world.broken.clear();
  const id = await makeBranch({name: 'later'});
  for (const name of broken) world.broken.add(name);
  return id;
}
