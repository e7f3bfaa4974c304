/**
 * `npm run bench -- ingest`: the same WAL through our ingest (own-ingest.ts) and through a stock physical standby, in CPU
 * seconds. ratio = stock's CPU time ÷ ours, the lower of the two loads. mbPerSecond: WAL of TPC-B per second of our CPU.
 * Before the rounds our side runs five times unmeasured: a pageserver has been running for long.
 *
 *   --transactions N   of TPC-B, default 60000 (about 35 MiB of WAL)    --rows N   of COPY + index build, default 400000
 *   --rounds N         default 3                                       --fresh    record the WAL anew
 */
import {parseArgs} from 'node:util';
import {ingestByPagoda} from './own-ingest.ts';
import {type Load, mebibytes, recordWal} from './recorded-wal.ts';
import {alternate, median, printReport, say} from './report.ts';
import {replayByStock} from './stock-replay.ts';

export async function ingest(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      transactions: {type: 'string', default: '60000'},
      rows: {type: 'string', default: '400000'},
      rounds: {type: 'string', default: '3'},
      fresh: {type: 'boolean', default: false},
    },
  });
  const results: Record<string, Awaited<ReturnType<typeof measure>>> = {};
  const loads = {tpcB: tpcB(Number(options.transactions)), copyAndIndexes: copyAndIndexes(Number(options.rows))};
  for (const [name, load] of Object.entries(loads))
    results[name] = await measure(load, Number(options.rounds), options.fresh);
  const all = Object.values(results);
  printReport({
    name: 'ingest',
    ratio: Math.min(...all.map((r) => r.ratio)),
    mbPerSecond: results['tpcB']!.mbPerSecond,
    ...results,
  });
}

async function measure(load: Load, rounds: number, fresh: boolean) {
  const recording = await recordWal(load, fresh);
  const startNs = median([
    (await replayByStock(recording, false)).cpuNs,
    (await replayByStock(recording, false)).cpuNs,
    (await replayByStock(recording, false)).cpuNs,
  ]);
  for (let i = 0; i < 5; i++) await ingestByPagoda(recording);
  const {pagoda, reference} = await alternate({
    rounds,
    pagoda: () => ingestByPagoda(recording),
    reference: () => replayByStock(recording),
  });
  const {records, walBytes, layerBytes} = pagoda[0]!;
  const pagodaSeconds = median(pagoda.map((r) => r.cpuNs)) / 1e9;
  const stockSeconds = (median(reference.map((r) => r.cpuNs)) - startNs) / 1e9;
  say(
    `${load.name}: ${mebibytes(walBytes)} MiB, ${records} records; ours ${pagoda.map((r) => (r.cpuNs / 1e6).toFixed(0)).join(' ')} ms, ` +
      `stock ${reference.map((r) => (r.cpuNs / 1e6).toFixed(0)).join(' ')} ms (${(startNs / 1e6).toFixed(0)} of it start-up, taken away)`,
  );
  return {
    ratio: stockSeconds / pagodaSeconds,
    mbPerSecond: walBytes / 1e6 / pagodaSeconds,
    stockMbPerSecond: walBytes / 1e6 / stockSeconds,
    stockSystemSeconds: median(reference.map((r) => r.systemNs)) / 1e9,
    nsPerRecord: (pagodaSeconds * 1e9) / records,
    stockNsPerRecord: (stockSeconds * 1e9) / records,
    records,
    walBytes,
    layerBytes,
  };
}

function tpcB(transactions: number): Load {
  const clients = 4;
  return {
    name: `ingest-tpcb-${transactions}`,
    setUp: async (cluster) => void (await cluster.pgbench(['-i', '-q', '-s', '10'])),
    run: async (cluster) =>
      void (await cluster.pgbench(['-n', '-c', String(clients), '-j', '2', '-t', String(transactions / clients)])),
  };
}

function copyAndIndexes(rows: number): Load {
  return {
    name: `ingest-copy-${rows}`,
    setUp: async (cluster) => {
      await cluster.query('create table source (id int, n int, h text)');
      await cluster.query(
        `insert into source select i, i::bigint * 7919 % 1000003, md5(i::text) from generate_series(1, ${rows}) i`,
      );
      await cluster.query(`copy source to '${cluster.dir}/source.copy'`);
      await cluster.query('drop table source');
      await cluster.query('create table t (id int, n int, h text)');
    },
    run: async (cluster) => {
      await cluster.query(`copy t from '${cluster.dir}/source.copy'`);
      await cluster.query('alter table t add primary key (id)');
      await cluster.query('create index on t (h)');
      await cluster.query('create index on t using hash (n)');
    },
  };
}
