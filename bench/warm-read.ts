/**
 * `npm run bench -- warm-read`: pgbench -S, all pages local, against stock with the same shared_buffers. Both over TCP on
 * loopback, straight to Postgres. ratio = tps of Pagoda ÷ tps of stock at 8 clients.
 *
 *   --seconds S   per run, default 10     --rounds N   default 5     --scale N   of pgbench, default 10
 */
import {parseArgs} from 'node:util';
import {Pagoda} from '../test/pagoda.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {stockDefaults} from './commit.ts';
import {computeTarget, initialise, pgbench, proxyTarget, stockTarget, tool} from './pgbench.ts';
import {alternate, median, printReport} from './report.ts';

export async function warmRead(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      seconds: {type: 'string', default: '10'},
      rounds: {type: 'string', default: '5'},
      scale: {type: 'string', default: '10'},
    },
  });
  const seconds = Number(options.seconds);
  await using pagoda = await Pagoda.start();
  await using stock = await PostgresCluster.create({settings: stockDefaults});
  await pagoda.query('select 1');
  const ours = await computeTarget(pagoda);
  const theirs = stockTarget(stock);
  for (const target of [ours, theirs]) {
    await initialise(target, Number(options.scale));
    await tool('psql', target, ['-Xqc', 'vacuum analyze', '-c', 'select sum(abalance) from pgbench_accounts']);
    await pgbench(target, '-S', 8, Math.min(3, seconds));
  }
  const {pagoda: a, reference: b} = await alternate({
    rounds: Number(options.rounds),
    pagoda: async () => ({
      one: await pgbench(ours, '-S', 1, seconds),
      eight: await pgbench(ours, '-S', 8, seconds),
      proxy: await pgbench(proxyTarget(pagoda), '-S', 8, seconds),
    }),
    reference: async () => ({
      one: await pgbench(theirs, '-S', 1, seconds),
      eight: await pgbench(theirs, '-S', 8, seconds),
    }),
  });
  const tps = (results: readonly {readonly tps: number}[]): number => median(results.map((r) => r.tps));
  const [a1, a8, ap] = [a.map((r) => r.one), a.map((r) => r.eight), a.map((r) => r.proxy)];
  const [b1, b8] = [b.map((r) => r.one), b.map((r) => r.eight)];
  printReport({
    name: 'warm-read',
    ratio: tps(a8) / tps(b8),
    clients8: {pagodaTps: tps(a8), stockTps: tps(b8)},
    clients1: {ratio: tps(a1) / tps(b1), pagodaTps: tps(a1), stockTps: tps(b1)},
    throughProxy8: {ratio: tps(ap) / tps(b8), tps: tps(ap)},
  });
}
