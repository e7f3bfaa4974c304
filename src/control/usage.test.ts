import assert from 'node:assert/strict';
import {test} from 'node:test';
import {call, FakeWorld, startControl} from '#control/test-world.ts';
import {addTransfer, sampleUsage} from '#control/usage.ts';
import {systemClock} from '#runtime/clock.ts';
import {silentLog} from '#runtime/log.ts';

test('projects and branches show what they have used: time, WAL, traffic, size', async () => {
  let nowMs = 1_800_000_000_000;
  const world = new FakeWorld();
  const clock = {...systemClock, nowMs: () => nowMs};
  await using control = await startControl(world, {clock});
  const context = {store: control.store, storage: world, clock, log: silentLog};
  const made = (await call(control, 'POST', '/projects', {
    project: {name: 'p', autoscaling_limit_min_cu: 0.5},
  })) as unknown as {json: {project: {id: string}; branch: {id: string}; endpoints: {id: string}[]}};
  const {project, branch, endpoints} = made.json;
  const row = await control.store.selectFrom('branches').selectAll().executeTakeFirstOrThrow();
  const show = async (): Promise<{project: Record<string, number>; branch: Record<string, number>}> => ({
    project: ((await call(control, 'GET', `/projects/${project.id}`)).json as {project: never}).project,
    branch: ((await call(control, 'GET', `/projects/${project.id}/branches/${branch.id}`)).json as {branch: never})
      .branch,
  });
  nowMs += 100_000;
  await sampleUsage(context);
  world.advance(row.timeline_id, 5000);
  await addTransfer(control.store, nowMs, {[endpoints[0]!.id]: 300, 'ep-of-nobody': 5});
  nowMs += 3_600_000;
  await sampleUsage(context);
  await addTransfer(control.store, nowMs, {[endpoints[0]!.id]: 45});
  const running = await show();
  for (const shown of [running.project, running.branch]) {
    assert.equal(shown['active_time_seconds'], 3700);
    assert.equal(shown['compute_time_seconds'], 1850);
    assert.equal(shown['written_data_bytes'], 5000);
    assert.equal(shown['data_transfer_bytes'], 345);
  }
  assert.equal(running.project['data_storage_bytes_hour'], 1234);
  assert.equal(running.project['synthetic_storage_size'], 1234);
  assert.equal(running.branch['logical_size'], 1234);

  // A suspended one stands still; a restore ends what ran, too.
  await call(control, 'POST', `/projects/${project.id}/endpoints/${endpoints[0]!.id}/suspend`);
  nowMs += 50_000;
  assert.equal((await show()).branch['active_time_seconds'], 3700);
  await call(control, 'POST', `/projects/${project.id}/endpoints/${endpoints[0]!.id}/start`);
  nowMs += 10_000;
  await call(control, 'POST', `/projects/${project.id}/branches/${branch.id}/restore`, {
    source_branch_id: branch.id,
    source_lsn: '0/1500000',
    preserve_under_name: 'before',
  });
  assert.equal((await show()).branch['active_time_seconds'], 3710);

  // What is gone was used all the same.
  const child = (await call(control, 'POST', `/projects/${project.id}/branches`, {
    branch: {name: 'child'},
    endpoints: [{type: 'read_write'}],
  })) as unknown as {json: {branch: {id: string}}};
  nowMs += 40_000;
  await call(control, 'DELETE', `/projects/${project.id}/branches/${child.json.branch.id}`);
  nowMs += 40_000;
  // 80 s more of the main branch, which the restore has started again, and 40 s of the child.
  assert.equal((await show()).project['active_time_seconds'], 3710 + 80 + 40);
});
