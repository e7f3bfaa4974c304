/** Endpoints that nobody uses suspend themselves, and what they held is there when they wake. */
import {strict as assert} from 'node:assert';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {type Branch, Pagoda} from '../pagoda.ts';

/** The API takes 60 s and more; the installation's default may be shorter. */
const timeoutSeconds = 4;
/** Two looks of the agent and a sweep of the control plane beside the timeout, on a busy machine. */
const suspendedMsMax = 300_000;

let pagoda: Pagoda;
let branch: Branch;

before(async () => {
  process.env['PAGODA_SUSPEND_SECONDS'] = String(timeoutSeconds);
  pagoda = await Pagoda.start();
  branch = await pagoda.mainBranch();
});
after(async () => {
  await pagoda.stop();
  await pagoda[Symbol.asyncDispose]();
});

const state = async (): Promise<string> =>
  (
    await pagoda.api<{endpoint: {current_state: string}}>(
      'GET',
      `/projects/${pagoda.status.projectId}/endpoints/${branch.endpointId}`,
    )
  ).endpoint.current_state;

async function untilIdle(): Promise<void> {
  const deadline = Date.now() + suspendedMsMax;
  while ((await state()) !== 'idle') {
    assert.ok(Date.now() < deadline, `the endpoint is ${await state()} after ${suspendedMsMax} ms without use`);
    await sleep(200);
  }
  await pagoda.settled();
}

test('sequences, prepared transactions and statistics outlive a suspend that nobody asked for', async () => {
  const client = await pagoda.connect();
  await client.query('create sequence counter; create table t (i int)');
  for (let i = 1; i <= 3; i++)
    assert.equal((await client.query<{n: string}>(`select nextval('counter') as n`)).rows[0]?.n, String(i));
  await client.query('insert into t select generate_series(1, 1000)');
  await client.query('begin; insert into t values (0)');
  await client.query(`prepare transaction 'kept'`);
  await client.end();
  await untilIdle();

  const [counter] = await pagoda.query(`select nextval('counter') as n`);
  assert.equal(counter?.['n'], '4', 'no jump');
  const [table] = await pagoda.query(`select n_tup_ins, n_live_tup from pg_stat_user_tables where relname = 't'`);
  assert.ok(Number(table?.['n_tup_ins']) >= 1000, 'the statistics are those of before');
  assert.deepEqual(await pagoda.query('select gid from pg_prepared_xacts'), [{gid: 'kept'}]);
  await pagoda.query(`commit prepared 'kept'`);
  assert.deepEqual(await pagoda.query('select count(*)::int as n from t'), [{n: 1001}]);
});

test('an open transaction keeps the endpoint awake; an idle session and LISTEN do not', async () => {
  const idle = await pagoda.connect();
  const ended = new Promise<void>((resolve) => idle.once('end', resolve));
  await idle.query('listen something');
  const busy = await pagoda.connect();
  await busy.query('begin');
  await busy.query('select 1');
  await sleep(timeoutSeconds * 1000 + 8000);
  assert.equal(await state(), 'active', 'a transaction is open');
  await busy.query('commit');
  await untilIdle();
  await ended;
  await busy.end().catch(() => {});
  assert.deepEqual(await pagoda.query('select 1 as one'), [{one: 1}], 'the next session wakes it');
});

test('-1 is never, and what was busy until the last moment is not suspended', async () => {
  await pagoda.api('PATCH', `/projects/${pagoda.status.projectId}/endpoints/${branch.endpointId}`, {
    endpoint: {suspend_timeout_seconds: -1},
  });
  await pagoda.query('select 1');
  await sleep(timeoutSeconds * 1000 + 8000);
  assert.equal(await state(), 'active');
});
