/** Restore, reset and expiry of branches, against storage that only remembers. */
import {strict as assert} from 'node:assert';
import {afterEach, beforeEach, test} from 'node:test';
import {call, FakeWorld, startControl, type TestControl} from '#control/test-world.ts';

let world: FakeWorld;
let control: TestControl;
let project: string;
let main: string;

beforeEach(async () => {
  world = new FakeWorld();
  control = await startControl(world);
  const {json} = await call(control, 'POST', '/projects', {project: {}});
  const made = json as unknown as {project: {id: string}; branch: {id: string}};
  project = made.project.id;
  main = made.branch.id;
});
afterEach(() => control.stop());

interface Shown {
  readonly id: string;
  readonly name: string;
  readonly parent_id?: string;
  readonly parent_lsn?: string;
  readonly current_state: string;
  readonly last_reset_at?: string;
}

async function branches(): Promise<Map<string, Shown>> {
  const {json} = await call(control, 'GET', `/projects/${project}/branches`);
  return new Map((json as unknown as {branches: Shown[]}).branches.map((b) => [b.name, b]));
}
const timelineOf = async (branchId: string): Promise<string> =>
  (
    await control.store
      .selectFrom('branches')
      .select('timeline_id')
      .where('id', '=', branchId)
      .executeTakeFirstOrThrow()
  ).timeline_id;
async function makeBranch(body: Record<string, unknown>): Promise<string> {
  const {status, json} = await call(control, 'POST', `/projects/${project}/branches`, {
    branch: body,
    endpoints: [{type: 'read_write'}],
  });
  assert.equal(status, 201, JSON.stringify(json));
  return (json as unknown as {branch: {id: string}}).branch.id;
}
const restore = (branchId: string, body: Record<string, unknown>) =>
  call(control, 'POST', `/projects/${project}/branches/${branchId}/restore`, body);

test('a branch restored from itself keeps id and endpoint; its old timeline and its children go to the kept branch', async () => {
  const child = await makeBranch({name: 'child'});
  const old = await timelineOf(main);
  const starts = world.starts;
  const lsn = '0/1500000';
  const {status, json} = await restore(main, {source_branch_id: main, source_lsn: lsn, preserve_under_name: 'before'});
  assert.equal(status, 200, JSON.stringify(json));
  const answered = (json as unknown as {branch: Shown; operations: {status: string}[]}).branch;
  const now = await branches();
  const kept = now.get('before')!;
  assert.equal(answered.id, main);
  assert.equal(answered.parent_id, kept.id, 'the CLI shows the parent as the backup');
  assert.equal(answered.parent_lsn, lsn);
  assert.equal(answered.current_state, 'ready');
  assert.ok(answered.last_reset_at !== undefined);
  assert.equal(await timelineOf(kept.id), old);
  assert.equal(now.get('child')!.id, child);
  assert.equal(now.get('child')!.parent_id, kept.id);
  const created = world.timelines.get(await timelineOf(main))!;
  assert.deepEqual(created.mode, {kind: 'branch', ancestorTimelineId: old, ancestorLsn: 0x150_0000});
  assert.equal(created.safekeepers, 3);
  assert.equal(world.starts, starts + 1, 'the endpoint was stopped and runs again, on the new timeline');
  assert.ok([...world.computes.values()].some((c) => c.branchId === main && c.timelineId !== old));
  const password = async (id: string): Promise<unknown> =>
    (await call(control, 'GET', `/projects/${project}/branches/${id}/roles/neondb_owner/reveal_password`)).json;
  assert.deepEqual(await password(kept.id), await password(main));
});

test('a reset takes roles and databases of the parent, and drops the old timeline', async () => {
  const child = await makeBranch({name: 'child'});
  await call(control, 'POST', `/projects/${project}/branches/${main}/roles`, {role: {name: 'new_in_main'}});
  await call(control, 'POST', `/projects/${project}/branches/${child}/roles`, {role: {name: 'only_in_child'}});
  const old = await timelineOf(child);
  assert.equal((await restore(child, {source_branch_id: main})).status, 200);
  assert.equal(world.timelines.has(old), false);
  assert.equal(
    [...world.walTimelines.keys()].some((k) => k.endsWith(old)),
    false,
  );
  const {json} = await call(control, 'GET', `/projects/${project}/branches/${child}/roles`);
  assert.deepEqual((json as unknown as {roles: {name: string}[]}).roles.map((r) => r.name).toSorted(), [
    'neondb_owner',
    'new_in_main',
  ]);
  assert.deepEqual([...(await branches()).keys()].toSorted(), ['child', 'main']);
});

test('what cannot be restored says why and changes nothing', async () => {
  const child = await makeBranch({name: 'child'});
  const expected: [string, Record<string, unknown>, number][] = [
    [main, {source_branch_id: main}, 400],
    [main, {source_branch_id: main, source_lsn: '0/1500000'}, 422],
    [main, {source_branch_id: main, source_lsn: 'FF/0', preserve_under_name: 'x'}, 400],
    [main, {source_branch_id: main, source_lsn: '0/1500000', preserve_under_name: 'child'}, 409],
    [main, {source_branch_id: child}, 422],
    [child, {source_branch_id: 'br-none-none-12345678'}, 404],
    [child, {}, 400],
  ];
  const state = async (): Promise<unknown> =>
    [...(await branches()).values()].map((b) => [b.id, b.name, b.current_state, b.parent_id]);
  const before = await state();
  for (const [branch, body, status] of expected)
    assert.equal((await restore(branch, body)).status, status, JSON.stringify(body));
  assert.deepEqual(await state(), before);
  assert.equal((await restore(child, {source_branch_id: main})).status, 200);
});

test('a restore to a time that storage no longer knows fails and leaves the branch as it was', async () => {
  const child = await makeBranch({name: 'child'});
  const pageserver = world.pageserver();
  world.pageserver = () => ({...pageserver, lsnByTimestamp: async () => ({kind: 'past'})});
  const old = await timelineOf(child);
  const {status, json} = await restore(child, {
    source_branch_id: child,
    source_timestamp: '2020-01-01T00:00:00Z',
    preserve_under_name: 'before',
  });
  assert.equal(status, 422);
  assert.match((json as unknown as {message: string}).message, /history window/);
  assert.equal(await timelineOf(child), old);
  const now = await branches();
  assert.equal(now.get('child')!.current_state, 'ready');
  assert.equal(now.has('before'), false);
  assert.equal([...world.computes.values()].filter((c) => c.branchId === child).length, 1);
});
