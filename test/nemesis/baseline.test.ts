/** The list-append check against stock Postgres: clean where it must be, and it sees what a weaker level does. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {SeededRandom} from '#runtime/random.ts';
import {PostgresCluster} from '../postgres-cluster.ts';
import {type Anomaly, checkListAppend, forbiddenAt} from './cycle-checker.ts';
import {schedule} from './faults.ts';
import {Commits} from './workloads/client.ts';
import {type Isolation, ListAppend} from './workloads/list-append.ts';

let cluster: PostgresCluster;
before(async () => {
  cluster = await PostgresCluster.create({settings: {fsync: 'off'}});
});
after(async () => {
  await cluster?.[Symbol.asyncDispose]();
});

async function run(isolation: Isolation): Promise<{commits: number; anomalies: Anomaly[]}> {
  const commits = new Commits();
  const lists = new ListAppend(commits, new SeededRandom(3), isolation);
  await cluster.query(lists.schema);
  const config = {host: '127.0.0.1', port: cluster.port, user: cluster.superuser, database: 'postgres'};
  const loops = lists.start({config, thinkMs: 15}, 8);
  await sleep(6000);
  await Promise.all(loops.map((loop) => loop.stop()));
  return {
    commits: commits.count,
    anomalies: checkListAppend(lists.history, await lists.lists((sql) => cluster.query(sql))),
  };
}

for (const isolation of ['serializable', 'repeatable read'] as const)
  test(`stock Postgres at ${isolation} shows no anomaly that the level forbids`, async () => {
    const {commits, anomalies} = await run(isolation);
    assert.ok(commits > 100, `only ${commits} commits`);
    assert.deepEqual(
      anomalies.filter((a) => forbiddenAt[isolation](a.kind)),
      [],
    );
  });

test('stock Postgres at read committed is caught: the check can fail', async () => {
  const kinds = new Set<string>();
  // Clients have to meet: how often they do depends on the machine.
  for (let rounds = 0; rounds < 10 && !kinds.has('G-single') && !kinds.has('internal'); rounds++)
    for (const {kind} of (await run('read committed')).anomalies) kinds.add(kind);
  assert.ok(kinds.has('G-single') || kinds.has('internal'), `found only ${[...kinds].join(', ')}`);
});

test('the schedule of faults follows from the seed', () => {
  const first = (seed: number): string => {
    const plan = schedule(seed, new Set(['isolated', 's3']));
    const faults = Array.from({length: 200}, () => plan.next().value!);
    return JSON.stringify(faults.map(({kind, holdMs, restMs, seed: s}) => [kind.name, holdMs, restMs, s]));
  };
  assert.equal(first(7), first(7));
  assert.notEqual(first(7), first(8));
});
