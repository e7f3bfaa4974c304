import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {systemClock} from '#runtime/clock.ts';
import {createLog} from '#runtime/log.ts';
import {AutoArchive} from '#control/auto-archive.ts';
import {call, FakeWorld, startControl} from '#control/test-world.ts';

test('old branches that rest are archived, children first; others never; whatever needs one wakes it with its ancestors', async () => {
  let nowMs = systemClock.nowMs();
  const clock = {...systemClock, nowMs: () => nowMs};
  const world = new FakeWorld();
  await using control = await startControl(world, {clock});
  const {store, runner} = control.context;
  const log = createLog({component: 'test', level: 'error'});
  const archive = new AutoArchive({store, runner, clock, log, config: undefined});
  const made = (await call(control, 'POST', '/projects', {project: {}})).json as unknown as {project: {id: string}};
  const path = `/projects/${made.project.id}`;
  const add = async (name: string, more: object = {}, endpoints: object[] = []): Promise<string> => {
    nowMs++;
    const {status, json} = await call(control, 'POST', `${path}/branches`, {branch: {name, ...more}, endpoints});
    assert.equal(status, 201, JSON.stringify(json));
    return (json as unknown as {branch: {id: string}}).branch.id;
  };
  const states = async (): Promise<Record<string, string>> => {
    const {branches} = (await call(control, 'GET', `${path}/branches`)).json as unknown as {
      branches: {name: string; current_state: string}[];
    };
    return Object.fromEntries(branches.map((b) => [b.name, b.current_state]));
  };
  const parent = await add('parent');
  const child = await add('child', {parent_id: parent});
  await add('protected', {protected: true});
  await add('busy', {}, [{type: 'read_write'}]);
  await archive.sweep();
  assert.equal(world.asleep.size, 0, 'too young');
  nowMs += 14 * 86_400_000;
  await archive.sweep();
  const rest = {main: 'ready', protected: 'ready', busy: 'ready'};
  assert.deepEqual(await states(), {...rest, parent: 'archived', child: 'archived'});
  assert.equal(world.asleep.size, 2);

  // A branch of the child: child and parent are awake, and stay so for a day.
  await add('grandchild', {parent_id: child});
  assert.deepEqual(await states(), {...rest, parent: 'ready', child: 'ready', grandchild: 'ready'});
  await archive.sweep();
  assert.deepEqual(await states(), {...rest, parent: 'ready', child: 'ready', grandchild: 'ready'});
  nowMs += 86_400_000;
  await archive.sweep();
  // The grandchild is too young, so are its ancestors not free to go.
  assert.deepEqual(await states(), {...rest, parent: 'ready', child: 'ready', grandchild: 'ready'});
  nowMs += 14 * 86_400_000;
  await archive.sweep();
  assert.deepEqual(await states(), {...rest, parent: 'archived', child: 'archived', grandchild: 'archived'});

  // An attempt that fails leaves the branch as it was, awake, and is made again soon; less and less often when it goes on failing.
  const other = await add('other');
  nowMs += 14 * 86_400_000;
  world.broken.add('archiveTimeline');
  await archive.sweep();
  assert.equal((await states())['other'], 'ready');
  assert.equal(await runner.holder(store, made.project.id, [`branch:${other}`]), undefined, 'nobody waits for it');
  world.broken.clear();
  await archive.sweep();
  assert.equal((await states())['other'], 'ready', 'not at once');
  nowMs += 5_000;
  await archive.sweep();
  assert.equal((await states())['other'], 'archived');

  const hopeless = await add('hopeless');
  nowMs += 14 * 86_400_000;
  world.broken.add('archiveTimeline');
  const attempts = async (): Promise<number> =>
    (
      await store
        .selectFrom('operations')
        .select('id')
        .where('branch_id', '=', hopeless)
        .where('kind', '=', 'archive_branch')
        .execute()
    ).length;
  for (let minute = 0; minute < 360; minute++, nowMs += 60_000) await archive.sweep();
  const inSixHours = await attempts();
  assert.ok(inSixHours > 30 && inSixHours < 60, `${inSixHours} attempts in six hours`);
});
