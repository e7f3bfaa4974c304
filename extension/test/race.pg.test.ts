/** Writers, scanners, evictions and read-ahead on the same pages while they arrive: nothing old overwrites anything new. */
import assert from 'node:assert/strict';
import * as fs from 'node:fs';
import {after, before, test} from 'node:test';
import {Cluster, Compute, buildExtension, rows, runTool, sleep} from './cluster.ts';

const scale = Number(process.env['PAGODA_RACE_SCALE'] ?? 5);
const seconds = Number(process.env['PAGODA_RACE_SECONDS'] ?? 6);
let base: Cluster;

before(async () => {
  buildExtension();
  base = await Cluster.initialise();
  await base.start();
  await runTool('pgbench', [
    '-h',
    '127.0.0.1',
    '-p',
    String(base.port),
    '-U',
    'postgres',
    '-i',
    '-q',
    '-s',
    String(scale),
    'postgres',
  ]);
  await base.stop();
});

after(() => base.discard());

for (const kill of [false, true]) {
  test(`8 writers and 3 parallel scanners over arriving pages${kill ? ', with backends killed' : ''}`, async () => {
    const compute = await Compute.on(base);
    let transactions = 0;
    try {
      await compute.start({
        settings: {
          shared_buffers: '2MB',
          restart_after_crash: 'on',
          max_parallel_workers_per_gather: '2',
          min_parallel_table_scan_size: '0',
          parallel_setup_cost: '0',
          parallel_tuple_cost: '0',
          synchronize_seqscans: 'off',
        },
      });
      compute.agent.delayMs = 4;
      let running = true;
      const writers = async (): Promise<void> => {
        const args = [
          '-h',
          '127.0.0.1',
          '-p',
          String(compute.port),
          '-U',
          'postgres',
          '-n',
          '-N',
          '-c',
          '8',
          '-T',
          String(seconds),
          'postgres',
        ];
        const out = await runTool('pgbench', args).catch((error: Error) => {
          if (!kill) throw error;
          return '';
        });
        transactions += Number(/processed: (\d+)/.exec(out)?.[1] ?? 0);
      };
      const scanner = async (): Promise<void> => {
        while (running) {
          const found = await compute.query('select count(*) from pgbench_accounts').catch((error: Error) => {
            if (!kill) throw error;
            return undefined;
          });
          if (found) assert.deepEqual(found, [String(scale * 100_000)]);
          else await sleep(100);
        }
      };
      const killer = async (): Promise<void> => {
        for (let i = 0; i < 3; i++) {
          await sleep((seconds * 1000) / 4);
          const client = await compute.connect().catch(() => undefined);
          if (!client) continue;
          const pids = await rows(
            client,
            `select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()`,
          ).catch(() => []);
          const pid = pids[i % Math.max(pids.length, 1)];
          // It may have ended by itself.
          if (pid !== undefined && fs.existsSync(`/proc/${pid}`)) process.kill(Number(pid), 'SIGKILL');
          await sleep(200);
          await compute.untilReady();
        }
      };
      const scanners = [scanner(), scanner(), scanner()];
      await (kill ? Promise.all([killer(), writers()]) : writers());
      // The last of them may be noticed late: then this round of writers ends with an error too.
      for (let round = 0; transactions <= 100 && round < 20; round++) await compute.untilReady().then(writers);
      running = false;
      await Promise.all(scanners);
      compute.agent.delayMs = 0;
      assert.deepEqual(
        await compute.query(
          'select count(*), sum(abalance) - (select sum(delta) from pgbench_history) from pgbench_accounts',
        ),
        [`${scale * 100_000}|0`],
      );
      await runTool('pg_amcheck', [
        '-h',
        '127.0.0.1',
        '-p',
        String(compute.port),
        '-U',
        'postgres',
        '--install-missing',
        '--heapallindexed',
        '-d',
        'postgres',
      ]);
      const {pagesFetched, pagesStored, pagesLate} = compute.metrics;
      console.log({transactions, pagesFetched, pagesStored, pagesLate});
      assert.ok(transactions > 100);
    } finally {
      await compute.discard();
    }
  });
}
