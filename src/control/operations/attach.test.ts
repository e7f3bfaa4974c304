import assert from 'node:assert/strict';
import {test} from 'node:test';
import {FakeWorld, call, startControl} from '#control/test-world.ts';

test('a pageserver that re-attaches while a project is made has a newer generation: the project is made all the same', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  let raised = 0;
  world.beforeAttach = async (tenantId) => {
    if (raised++ > 0) return;
    await control.store.updateTable('attachments').set({generation: 2}).where('tenant_id', '=', tenantId).execute();
    world.tenants.set(tenantId, 2);
  };
  const {status, json} = await call(control, 'POST', '/projects', {project: {name: 'x'}});
  assert.equal(status, 201, JSON.stringify(json));
  assert.deepEqual([...world.tenants.values()], [2]);
});
