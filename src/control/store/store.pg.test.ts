/** The same control plane on PostgreSQL: one code path, the same results. */
import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {PostgresCluster} from '../../../test/postgres-cluster.ts';
import {call, FakeWorld, startControl, type TestControl} from '#control/test-world.ts';
import {addTransfer, sampleUsage} from '#control/usage.ts';
import {systemClock} from '#runtime/clock.ts';
import {silentLog} from '#runtime/log.ts';

test('projects, branches and roles on PostgreSQL, and a second start of the same database', async () => {
  await using cluster = await PostgresCluster.create({});
  const database = `postgres://postgres@127.0.0.1:${cluster.port}/postgres`;
  const world = new FakeWorld();
  const first = await startControl(world, {database});
  const made = await call(first, 'POST', '/projects', {project: {name: 'p'}});
  assert.equal(made.status, 201, JSON.stringify(made.json));
  const {project, branch, endpoints} = made.json as unknown as {
    project: {id: string};
    branch: {id: string};
    endpoints: {id: string}[];
  };
  const path = `/projects/${project.id}`;
  assert.equal(
    (await call(first, 'POST', `${path}/branches`, {branch: {name: 'b'}, endpoints: [{type: 'read_write'}]})).status,
    201,
  );
  assert.equal((await call(first, 'POST', `${path}/branches`, {branch: {name: 'b'}})).status, 409);
  assert.equal((await call(first, 'POST', `${path}/branches/${branch.id}/roles`, {role: {name: 'alice'}})).status, 201);
  assert.equal((await call(first, 'DELETE', `${path}/branches/${branch.id}/roles/alice`)).status, 200);
  assert.equal((await call(first, 'POST', `${path}/endpoints/${endpoints[0]!.id}/restart`)).status, 200);
  // What counts, and what changes sides.
  const usage = {store: first.store, storage: world, clock: systemClock, log: silentLog};
  await sampleUsage(usage);
  await addTransfer(first.store, Date.now(), {[endpoints[0]!.id]: 70});
  await addTransfer(first.store, Date.now(), {[endpoints[0]!.id]: 7});
  await sampleUsage(usage);
  const shown = (await call(first, 'GET', path)).json as unknown as {project: {data_transfer_bytes: number}};
  assert.equal(shown.project.data_transfer_bytes, 77);
  const kept = (await call(first, 'POST', `${path}/branches/${branch.id}/snapshot?name=s`)).json as unknown as {
    snapshot: {id: string};
  };
  const restored = (await call(first, 'POST', `${path}/snapshots/${kept.snapshot.id}/restore`, {})).json as unknown as {
    branch: {id: string};
  };
  const finalized = await call(first, 'POST', `${path}/branches/${restored.branch.id}/finalize_restore`, {name: 'old'});
  assert.equal(finalized.status, 200, JSON.stringify(finalized.json));
  const list = async (control: TestControl): Promise<unknown> =>
    ((await call(control, 'GET', `${path}/branches`)).json as unknown as {branches: Record<string, unknown>[]}).branches
      .map((b) => [b['name'], b['id'], b['default'], b['current_state']].join(' '))
      .toSorted();
  const before = await list(first);
  await first.app.close();
  await first.runner.stop();

  const second = await startControl(world, {store: first.store, key: first.key, seed: 2});
  assert.deepEqual(await list(second), before);
  assert.equal((await call(second, 'DELETE', path)).status, 200);
  assert.equal(world.timelines.size, 0);
  await second.stop();
});
