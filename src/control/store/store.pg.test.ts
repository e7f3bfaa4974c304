/** The same control plane on PostgreSQL: one code path, the same results. */
import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {PostgresCluster} from '../../../test/postgres-cluster.ts';
import {call, FakeWorld, startControl} from '#control/test-world.ts';

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
  const {json: before} = await call(first, 'GET', `${path}/branches`);
  await first.app.close();
  await first.runner.stop();

  const second = await startControl(world, {store: first.store, key: first.key, seed: 2});
  assert.deepEqual((await call(second, 'GET', `${path}/branches`)).json, before);
  assert.equal((await call(second, 'DELETE', path)).status, 200);
  assert.equal(world.timelines.size, 0);
  await second.stop();
});
