/** Storage that hangs, is away, or answers with an error: sessions can be cancelled, wait in bounds, and say what is wrong. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {Cluster, Compute, buildExtension, rows, sleep} from './cluster.ts';

let base: Cluster;

before(async () => {
  buildExtension();
  base = await Cluster.initialise();
  await base.start();
  await base.query([
    `create table facts as select g as id, repeat('x', 100) as v from generate_series(1, 20000) g`,
    'alter table facts add primary key (id)',
    'vacuum analyze',
  ]);
  await base.stop();
});

after(() => base.discard());

/** Until one more request than `before` hangs at the agent: whoever made it waits for storage. */
async function hanging(compute: Compute, before = 0): Promise<void> {
  for (let waited = 0; compute.agent.waiting <= before && waited < 20_000; waited += 20) await sleep(20);
}

async function withCompute(
  work: (compute: Compute) => Promise<void>,
  settings: Record<string, string> = {},
): Promise<void> {
  const compute = await Compute.on(base);
  try {
    await compute.start({settings});
    await work(compute);
  } finally {
    await compute.discard();
  }
}

test('cancel, statement_timeout and terminate end a wait for storage that hangs', () =>
  withCompute(async (compute) => {
    const client = await compute.connect();
    const control = await compute.connect();
    await rows(control, 'select pg_cancel_backend(0), pg_terminate_backend(0)').catch(() => {});
    await rows(client, 'prepare q as select count(*) from facts');
    const [pid] = await rows(client, 'select pg_backend_pid()');
    compute.agent.hangs = true;

    let started = performance.now();
    const cancelled = assert.rejects(rows(client, 'execute q'), /canceling statement due to user request/);
    await hanging(compute);
    process.kill(Number(pid), 'SIGINT');
    await cancelled;
    assert.ok(performance.now() - started < 20_000);

    started = performance.now();
    await assert.rejects(
      rows(client, `set statement_timeout = '300ms'; select count(*) from facts`),
      /statement timeout/,
    );
    assert.ok(performance.now() - started < 20_000);

    const before = compute.agent.waiting;
    const ended = assert.rejects(
      rows(client, 'reset statement_timeout; select count(*) from facts'),
      /terminating connection|terminated unexpectedly/,
    );
    await hanging(compute, before);
    process.kill(Number(pid), 'SIGTERM');
    await ended;

    // What was left of those requests does not disturb the next one.
    compute.agent.release();
    assert.deepEqual(await compute.query('select count(*) from facts'), ['20000']);
    await control.end();
  }));

test('a cancelled session goes on working on the same connection', () =>
  withCompute(async (compute) => {
    const client = await compute.connect();
    const [pid] = await rows(client, 'select pg_backend_pid()');
    compute.agent.delayMs = 50;
    let cancels = 0;
    for (let i = 0; i < 5; i++) {
      const cancelled = rows(client, 'select count(*) from facts').catch((error: Error) => error);
      await sleep(120);
      process.kill(Number(pid), 'SIGINT');
      const result = await cancelled;
      // On a slow machine it may be through before.
      if (!(result instanceof Error)) continue;
      assert.match(result.message, /canceling statement/);
      cancels++;
    }
    assert.ok(cancels > 0);
    compute.agent.delayMs = 0;
    assert.deepEqual(await rows(client, 'select count(*), sum(id) from facts'), ['20000|200010000']);
    await client.end();
  }));

test('an agent that restarts is waited for; one that stays away is named in the error', () =>
  withCompute(
    async (compute) => {
      const client = await compute.connect();
      await rows(client, 'select 1');
      await compute.agent.close();
      const waiting = rows(client, 'select count(*) from facts');
      await sleep(500);
      await compute.agent.listen();
      assert.deepEqual(await waiting, ['20000']);

      await compute.agent.close();
      const started = performance.now();
      const error = (await rows(
        client,
        'select * from pg_largeobject_metadata, pg_foreign_server, pg_subscription_rel',
      ).catch((e: unknown) => e)) as Error & {
        detail?: string;
        hint?: string;
        code?: string;
      };
      assert.match(error.message, /could not get the size of relation 1663\/5\/\d+ from storage: could not connect/);
      assert.match(error.detail ?? '', /compute-.*\.sock/);
      assert.match(error.hint ?? '', /run the statement again/);
      assert.equal(error.code, '58030');
      const seconds = (performance.now() - started) / 1000;
      assert.ok(seconds > 4.9 && seconds < 60, `${seconds} s`);
      await compute.agent.listen();
      await rows(client, 'select * from pg_largeobject_metadata, pg_foreign_server, pg_subscription_rel');
      await client.end();
    },
    {'pagoda.connect_timeout': '5s'},
  ));

test('an agent that never answers ends in an error, not in a wait without end', () =>
  withCompute(
    async (compute) => {
      compute.agent.hangs = true;
      await assert.rejects(compute.query('select count(*) from facts'), /no answer within 5 s/);
      compute.agent.release();
      assert.deepEqual(await compute.query('select count(*) from facts'), ['20000']);
    },
    {'pagoda.request_timeout': '5s'},
  ));

test('an error of storage reaches the user with relation and block, and only that relation suffers', () =>
  withCompute(async (compute) => {
    const [node] = await compute.query(`select pg_relation_filenode('facts')`);
    compute.agent.broken = (rel) => rel.relNode === Number(node);
    await assert.rejects(compute.query('select count(*) from facts'), new RegExp(`from storage: the layer is damaged`));
    assert.deepEqual(await compute.query('select count(*) > 0 from pg_class'), ['t']);
    compute.agent.broken = undefined;
    assert.deepEqual(await compute.query('select count(*) from facts'), ['20000']);
  }));

test('a fast stop does not wait for a session that waits for storage', () =>
  withCompute(async (compute) => {
    const client = await compute.connect();
    compute.agent.hangs = true;
    const waiting = rows(client, 'select count(*) from facts').catch(() => {});
    await hanging(compute);
    const started = performance.now();
    await compute.stop('fast');
    assert.ok(performance.now() - started < 30_000);
    await waiting;
  }));
