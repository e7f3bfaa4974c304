import assert from 'node:assert/strict';
import {test} from 'node:test';
import {dueItem, lastTime, sweepBackups} from '#control/api/backup-schedule.ts';
import {sweepExpiredBranches} from '#control/api/branch-expiry.ts';
import {call, FakeWorld, startControl} from '#control/test-world.ts';
import {systemClock} from '#runtime/clock.ts';

const at = (text: string): number => Date.parse(text);
const iso = (timeMs: number): string => new Date(timeMs).toISOString();

test('the newest scheduled time is not after now', () => {
  const now = at('2026-03-30T10:15:00Z'); // a Monday
  const last = (item: Parameters<typeof lastTime>[0]): string => iso(lastTime(item, now));
  assert.equal(last({frequency: 'hourly'}), '2026-03-30T10:00:00.000Z');
  assert.equal(last({frequency: 'daily'}), '2026-03-30T00:00:00.000Z');
  assert.equal(last({frequency: 'daily', hour: 11}), '2026-03-29T11:00:00.000Z');
  assert.equal(last({frequency: 'weekly'}), '2026-03-30T00:00:00.000Z');
  assert.equal(last({frequency: 'weekly', day: 1, hour: 11}), '2026-03-23T11:00:00.000Z');
  assert.equal(last({frequency: 'weekly', day: 7}), '2026-03-29T00:00:00.000Z');
  assert.equal(last({frequency: 'monthly', day: 31}), '2026-02-28T00:00:00.000Z', 'the last day stands for the 31st');
  assert.equal(last({frequency: 'monthly', day: 30, hour: 3}), '2026-03-30T03:00:00.000Z');
  assert.equal(last({frequency: 'yearly', month: 4}), '2025-04-01T00:00:00.000Z');
  assert.equal(last({frequency: 'yearly', month: 2, day: 29}), '2026-02-28T00:00:00.000Z');
});

test('of several that are due the one that is kept longest is made', () => {
  const schedule = [{frequency: 'hourly', retention_seconds: 3600}, {frequency: 'daily'}] as const;
  const midnight = at('2026-03-30T00:00:00Z');
  assert.equal(dueItem(schedule, midnight - 1000, midnight + 5000)?.frequency, 'daily');
  assert.equal(dueItem(schedule, midnight + 5000, midnight + 3_600_000)?.frequency, 'hourly');
  assert.equal(dueItem(schedule, midnight + 5000, midnight + 6000), undefined);
});

test('a schedule is set, shown, makes snapshots by the clock, which expire, and is taken away', async () => {
  let nowMs = at('2026-03-30T10:15:00Z');
  await using control = await startControl(new FakeWorld(), {clock: {...systemClock, nowMs: () => nowMs}});
  const {project, branch} = (await call(control, 'POST', '/projects', {project: {name: 'p'}}))
    .json as unknown as Record<'project' | 'branch', {id: string}>;
  const path = `/projects/${project.id}/branches/${branch.id}/backup_schedule`;
  assert.deepEqual((await call(control, 'GET', path)).json, {schedule: []});
  const schedule = [{frequency: 'hourly', retention_seconds: 7200}];
  assert.equal((await call(control, 'PUT', path, {schedule: [{frequency: 'never'}]})).status, 400);
  assert.deepEqual((await call(control, 'PUT', path, {schedule})).json, {});
  assert.deepEqual((await call(control, 'GET', path)).json, {schedule});
  const made = async (): Promise<{created_at: string; expires_at: string; manual: boolean}[]> =>
    ((await call(control, 'GET', `/projects/${project.id}/snapshots`)).json as unknown as {snapshots: never[]})
      .snapshots;
  await sweepBackups(control.context);
  assert.deepEqual(await made(), [], 'nothing for times before it was set');
  nowMs = at('2026-03-30T11:00:10Z');
  await sweepBackups(control.context);
  await sweepBackups(control.context);
  const [first, ...more] = await made();
  assert.deepEqual([first!.expires_at, first!.manual, more.length], ['2026-03-30T13:00:10.000Z', false, 0]);
  nowMs = at('2026-03-30T15:30:00Z');
  await sweepExpiredBranches(control.context, new Map());
  await sweepBackups(control.context);
  assert.equal((await made()).length, 1, 'the old one is gone; four missed times make one');
  await call(control, 'PUT', path, {schedule: []});
  nowMs = at('2026-03-30T18:00:10Z');
  await sweepBackups(control.context);
  assert.equal((await made()).length, 1);
});
