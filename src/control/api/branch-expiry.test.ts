import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {systemClock} from '#runtime/clock.ts';
import {call, FakeWorld, startControl} from '#control/test-world.ts';
import {sweepExpiredBranches} from './branch-expiry.ts';

test('a branch goes when its time has come, not before; one whose children go soon waits for them, others live on without it', async () => {
  let nowMs = systemClock.nowMs();
  const clock = {...systemClock, nowMs: () => nowMs};
  const world = new FakeWorld();
  await using control = await startControl(world, {clock});
  const made = (await call(control, 'POST', '/projects', {project: {}})).json as unknown as {project: {id: string}};
  const path = `/projects/${made.project.id}/branches`;
  const add = async (name: string, inMs: number | undefined, parent?: string): Promise<string> => {
    nowMs++;
    const expiresAt = inMs === undefined ? {} : {expires_at: new Date(nowMs + inMs).toISOString()};
    const branch = {name, ...expiresAt, ...(parent === undefined ? {} : {parent_id: parent})};
    const {status, json} = await call(control, 'POST', path, {branch, endpoints: [{type: 'read_write'}]});
    assert.equal(status, 201);
    return (json as unknown as {branch: {id: string}}).branch.id;
  };
  await add('soon', 60_000);
  const parent = await add('parent', 60_000);
  await add('child', 300_000, parent);
  await add('never', undefined, await add('gone', 60_000));
  const names = async (): Promise<string[]> =>
    ((await call(control, 'GET', path)).json as unknown as {branches: {name: string}[]}).branches
      .map((b) => b.name)
      .toSorted();
  const refused = new Map<string, number>();
  await sweepExpiredBranches(control.context, refused);
  assert.deepEqual(await names(), ['child', 'gone', 'main', 'never', 'parent', 'soon']);
  nowMs += 61_000;
  await sweepExpiredBranches(control.context, refused);
  assert.deepEqual(await names(), ['child', 'main', 'never', 'parent']);
  const {branches} = (await call(control, 'GET', path)).json as unknown as {branches: Record<string, unknown>[]};
  const never = branches.find((b) => b['name'] === 'never')!;
  assert.equal('parent_id' in never || 'parent_lsn' in never, false, JSON.stringify(never));
  nowMs += 300_000;
  await sweepExpiredBranches(control.context, refused);
  await sweepExpiredBranches(control.context, refused);
  assert.deepEqual(await names(), ['main', 'never'], 'the child first, then its parent');
  assert.equal(world.timelines.size, 2);
  assert.equal(world.computes.size, 2);
});

test('a snapshot is no branch that anybody sees, holds its branch, and goes when its time has come', async (t) => {
  let nowMs = systemClock.nowMs();
  const control = await startControl(new FakeWorld(), {clock: {...systemClock, nowMs: () => nowMs}});
  t.after(() => control.stop());
  const {project} = (await call(control, 'POST', '/projects', {project: {name: 'p'}})).json as unknown as {
    project: {id: string};
  };
  const base = `/projects/${project.id}`;
  const {branch} = (await call(control, 'POST', `${base}/branches`, {branch: {name: 'kid'}})).json as unknown as {
    branch: {id: string};
  };
  const expires = new Date(nowMs + 60_000).toISOString();
  const made = await call(control, 'POST', `${base}/branches/${branch.id}/snapshot?name=s&expires_at=${expires}`);
  assert.equal(made.status, 200, JSON.stringify(made.json));
  const {branches} = (await call(control, 'GET', `${base}/branches`)).json as unknown as {branches: {name: string}[]};
  assert.deepEqual(branches.map((b) => b.name).toSorted(), ['kid', 'main']);
  const refused = await call(control, 'DELETE', `${base}/branches/${branch.id}`);
  assert.match(String((refused.json as {message?: string}).message), /has snapshots/);
  nowMs += 61_000;
  await sweepExpiredBranches(control.context, new Map());
  const {snapshots} = (await call(control, 'GET', `${base}/snapshots`)).json as unknown as {snapshots: unknown[]};
  assert.deepEqual(snapshots, []);
  assert.equal((await call(control, 'DELETE', `${base}/branches/${branch.id}`)).status, 200);
});
