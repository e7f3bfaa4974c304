/** A bulk load against a pageserver that cannot keep up: how far it is behind stays bounded, and reads do not notice. */
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {Pagoda} from '../pagoda.ts';

const MiB = 1024 * 1024;
/** Where writers stop (src/proposer/throttle.ts), and what is on its way then. */
const lagMax = (256 + 48) * MiB;
/** Of most reads; the slowest of a busy machine waits for the machine. */
const readMsMax = 500;
let pagoda: Pagoda;

before(async () => {
  pagoda = await Pagoda.start();
});
after(async () => {
  await pagoda?.[Symbol.asyncDispose]();
});

interface Storage {
  readonly lagBytes: number;
  readonly throttleUsPerMib: number;
}

test('a load of 300 MB while the pageserver stands still most of the time', {timeout: 850_000}, async () => {
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.query(
    'create table bulk (id int, filler text); create table small as select generate_series(1, 10000) as id',
  );
  const storage = async (): Promise<Storage | undefined> =>
    ((await pagoda.agent<{storage?: Storage}>(endpointId, '/status')) as {storage?: Storage}).storage;
  const pageserver = pagoda.pidOf('pageserver');
  let loading = true;
  let highestLag = 0;
  const readMs: number[] = [];
  let stopped = 0;
  const watch = async (): Promise<void> => {
    while (loading) {
      const now = await storage();
      if (now && now.lagBytes > highestLag) highestLag = now.lagBytes;
      if (now && now.throttleUsPerMib > 0) stopped++;
      await sleep(100);
    }
  };
  const read = async (): Promise<void> => {
    const client = await pagoda.admin(endpointId, 'neondb');
    while (loading) {
      const started = performance.now();
      await client.query('select sum(id) from small');
      readMs.push(performance.now() - started);
      await sleep(20);
    }
    await client.end();
  };
  const hinder = async (): Promise<void> => {
    while (loading) {
      process.kill(pageserver, 'SIGSTOP');
      // The first time until somebody has to wait for it, however slowly the machine writes.
      for (let waited = 0; waited < 1500 || (loading && stopped === 0); waited += 100) await sleep(100);
      process.kill(pageserver, 'SIGCONT');
      await sleep(500);
    }
  };
  const others = [watch(), read(), hinder()];
  const started = performance.now();
  try {
    const client = await pagoda.admin(endpointId, 'neondb');
    for (let part = 0; part < 3; part++)
      await client.query(`insert into bulk select i, repeat('x', 180) from generate_series(1, 400000) i`);
    await client.end();
  } finally {
    loading = false;
    await Promise.allSettled(others);
    process.kill(pageserver, 'SIGCONT');
  }
  await Promise.all(others);
  const seconds = (performance.now() - started) / 1000;
  readMs.sort((a, b) => a - b);
  const most = readMs[Math.floor(readMs.length * 0.9)]!;
  console.log(
    `300 MB in ${seconds.toFixed(0)} s; at most ${(highestLag / MiB).toFixed(0)} MiB behind, writers waited in ${stopped} looks; ${readMs.length} reads, nine in ten within ${most.toFixed(0)} ms, the slowest ${readMs.at(-1)!.toFixed(0)} ms`,
  );
  assert.ok(highestLag < lagMax, `the pageserver was ${(highestLag / MiB).toFixed(0)} MiB behind`);
  assert.ok(stopped > 0, 'writers had to wait');
  assert.ok(most < readMsMax, `reads took ${most.toFixed(0)} ms`);
  // Given time, it catches up, and nobody waits any more.
  for (let attempt = 0; ; attempt++) {
    const now = await storage();
    if (now && now.lagBytes < MiB && now.throttleUsPerMib === 0) break;
    assert.ok(attempt < 1500, `it did not catch up: ${JSON.stringify(now)}`);
    await sleep(200);
  }
});
