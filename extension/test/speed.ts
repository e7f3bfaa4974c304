/**
 * How fast pages arrive, and what hydration costs once they are here, against the same binaries without the extension in the same run.
 *
 *     sh scripts/node extension/test/speed.ts [seconds per pgbench run] [warm]
 */
import {Cluster, Compute, buildExtension, runTool, sleep} from './cluster.ts';

const seconds = Number(process.argv[2] ?? 8);
buildExtension();
const base = await Cluster.initialise();
await base.start();
await runTool('pgbench', [...connection(base), '-i', '-q', '-s', '20', 'postgres']);
await base.query('checkpoint');
const [bytes] = await base.query(`select pg_table_size('pgbench_accounts')`);
const megabytes = Number(bytes) / 1e6;
const scan = 'set max_parallel_workers_per_gather = 0; select sum(abalance) from pgbench_accounts';

console.log(`cold scan of ${Math.round(megabytes)} MB, one process; agent in Node answers from files`);
await base.stop();
for (const [pages, delayMs] of [
  [1, 0],
  [16, 0],
  [64, 0],
  [64, 1],
  [64, 10],
] as const) {
  if (process.argv[3] === 'warm') break;
  const compute = await Compute.on(base);
  await compute.start({settings: {'pagoda.readahead_max': String(pages)}});
  compute.agent.delayMs = delayMs;
  const cold = await timed(() => compute.query(scan));
  const warm = await timed(() => compute.query(scan));
  console.log(
    `  fetch size ${pages}, ${delayMs} ms delay: cold ${rate(cold)}, then local ${rate(warm)}; ${compute.metrics.fetchRequests} requests`,
  );
  await compute.discard();
}

console.log('warm pgbench, 4 clients, transactions per second: stock / compute');
const compute = await Compute.on(base);
const stock = await base.copy();
await stock.start({settings: {full_page_writes: 'off'}});
await compute.start();
for (const cluster of [stock, compute])
  await cluster.query([
    scan,
    'select count(*) from pgbench_branches, pgbench_tellers',
    'set enable_seqscan = off',
    'select count(aid) from pgbench_accounts where aid > 0',
  ]);
for (const mode of ['-S', '-N'] as const)
  for (let round = 0; round < 3; round++) {
    const before = compute.metrics.pagesFetched;
    const theirs = await pgbench(stock, mode);
    const ours = await pgbench(compute, mode);
    console.log(
      `  ${mode}: ${Math.round(theirs.tps)} / ${Math.round(ours.tps)} = ${(ours.tps / theirs.tps).toFixed(2)}; CPU µs per transaction ` +
        `${theirs.cpu.toFixed(1)} / ${ours.cpu.toFixed(1)} = ${(ours.cpu / theirs.cpu).toFixed(2)}; ${compute.metrics.pagesFetched - before} pages fetched`,
    );
  }
await compute.discard();
await stock.discard();
await base.discard();

function connection(cluster: Cluster): string[] {
  return ['-h', '127.0.0.1', '-p', String(cluster.port), '-U', 'postgres'];
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return (performance.now() - started) / 1000;
}

function rate(duration: number): string {
  return `${Math.round(megabytes / duration)} MB/s`;
}

/** CPU time is steadier than the rate when the machine does other things. */
async function pgbench(cluster: Cluster, mode: string): Promise<{tps: number; cpu: number}> {
  const before = cluster.cpuSeconds;
  const out = await runTool('pgbench', [
    ...connection(cluster),
    '-n',
    mode,
    '-c',
    '4',
    '-T',
    String(seconds),
    'postgres',
  ]);
  await sleep(500); // until the postmaster has noticed the end of the sessions
  const transactions = Number(/processed: (\d+)/.exec(out)![1]);
  return {tps: Number(/tps = ([\d.]+)/.exec(out)![1]), cpu: ((cluster.cpuSeconds - before) * 1e6) / transactions};
}
