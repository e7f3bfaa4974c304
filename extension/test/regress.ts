/**
 * PostgreSQL's regression (or isolation) suite on a compute whose relation files all come from the fake agent, compared
 * with the same binaries without the extension; then amcheck, and pg_dumpall against a stock Postgres that replayed the
 * compute's WAL.
 *
 *     sh scripts/node extension/test/regress.ts [regress|isolation]
 */
import {differences, runSuite, type Suite, type SuiteResult} from '../../test/suites/pg-regress.ts';
import {Cluster, Compute, buildExtension, freshDirectory, runTool} from './cluster.ts';

const suite = (process.argv[2] ?? 'regress') as Suite;
const settings = {
  autovacuum: 'on',
  shared_buffers: process.env['PAGODA_SHARED_BUFFERS'] ?? '16MB',
  max_connections: '100',
  max_prepared_transactions: '0',
  max_worker_processes: '9',
};
const connection = (cluster: Cluster): string[] => ['-h', '127.0.0.1', '-p', String(cluster.port), '-U', 'postgres'];
const without = (dump: string): string =>
  dump.replace(/^\\(un)?restrict .*$/gm, '').replace(/^(-- Started on|-- Completed on).*$/gm, '');

buildExtension();
const base = await Cluster.initialise();
await base.start({settings});
await base.stop();

const stock = await Cluster.initialise();
await stock.start({settings});
const vanilla = await run(stock);
const left = without(await runTool('pg_dumpall', [...connection(stock), '--no-unlogged-table-data']));
await stock.stop();

const compute = await Compute.on(base);
await compute.start({settings: {...settings, wal_keep_size: '20GB', max_wal_size: '4GB'}});
const ours = await run(compute);
const different = differences(vanilla, ours);
console.log(
  `${suite}: ${[...vanilla.ok.values()].filter(Boolean).length}/${vanilla.tests.length} without, ${[...ours.ok.values()].filter(Boolean).length}/${ours.tests.length} with the extension`,
);
console.log(`outputs that differ: ${different.join(' ') || 'none'}`);
console.log(compute.metrics);
await runTool('pg_amcheck', [...connection(compute), '--install-missing', '-a', '--heapallindexed']).then(
  () => console.log('amcheck: clean'),
  (error: Error) => console.log(`amcheck: ${error.message}`),
);
const dump = without(await runTool('pg_dumpall', [...connection(compute), '--no-unlogged-table-data']));
await compute.stop('fast');
console.log(
  compute.log
    .split('\n')
    .filter((line) => /pagoda|PANIC|terminated by signal/.test(line))
    .slice(-20)
    .join('\n'),
);
const recovered = await compute.recovered(base, settings);
const again = without(await runTool('pg_dumpall', [...connection(recovered), '--no-unlogged-table-data']));
console.log(
  `pg_dumpall after replay of the compute's WAL: ${again === dump ? 'equal' : 'DIFFERENT'} (${dump.length} bytes)`,
);
await recovered.discard();
await compute.discard();

// The cluster that the suite left behind, as the base of another compute.
const second = await Compute.on(stock);
await second.start({settings: {...settings, allow_in_place_tablespaces: 'on'}});
const hydrated = without(await runTool('pg_dumpall', [...connection(second), '--no-unlogged-table-data']));
await runTool('pg_amcheck', [...connection(second), '--install-missing', '-a', '--heapallindexed']).then(
  () => console.log('amcheck of a compute on what the suite left: clean'),
  (error: Error) => console.log(`amcheck of a compute on what the suite left: ${error.message}`),
);
console.log(
  `pg_dumpall of a compute on what the suite left: ${hydrated === left ? 'equal' : 'DIFFERENT'}`,
  second.metrics,
);
await second.discard();
await stock.discard();
await base.discard();

async function run(cluster: Cluster): Promise<SuiteResult> {
  const started = performance.now();
  const dir = freshDirectory(suite);
  const result = await runSuite({suite, server: {host: '127.0.0.1', port: cluster.port, user: 'postgres'}, dir});
  console.log(
    `${cluster instanceof Compute ? 'compute' : 'stock'}: ${Math.round((performance.now() - started) / 1000)} s, outputs in ${dir}`,
  );
  return result;
}
