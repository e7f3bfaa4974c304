/**
 * `npm run bench -- amplification`: bytes in the object store ÷ (logical size + WAL of the kept history), through a whole
 * Pagoda with its defaults: after pgbench (TPC-B), and after a bulk load with indexes. A stop at the end of each has everything
 * uploaded, also what would have waited in memory. The 7 days of the default restore window keep all WAL of the run.
 *
 *   --scale N     pgbench scale (about 15 MB each), default 20
 *   --seconds N   of pgbench, default 60
 *   --rows N      of the bulk load, default 2,000,000 (about 100 bytes each)
 *   --settle N    seconds for compaction and archiving after each load, default 20
 */
import {readdirSync, statSync} from 'node:fs';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {parseLsn} from '#postgres/lsn.ts';
import {Pagoda, libpqEnvironment} from '../test/pagoda.ts';
import {initialise, pgbench} from './pgbench.ts';
import {printReport, say} from './report.ts';

interface Measured {
  readonly ratio: number;
  readonly storedMb: number;
  readonly layersMb: number;
  readonly archivedWalMb: number;
  readonly logicalMb: number;
  readonly walMb: number;
}

export async function amplification(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      scale: {type: 'string', default: '20'},
      seconds: {type: 'string', default: '60'},
      rows: {type: 'string', default: '2000000'},
      settle: {type: 'string', default: '20'},
    },
  });
  const settleMs = Number(options.settle) * 1000;
  const tpcb = await measure(settleMs, async (pagoda) => {
    const target = libpqEnvironment(pagoda.status.databaseUrl);
    await initialise(target, Number(options.scale));
    const {tps} = await pgbench(target, '-N', 4, Number(options.seconds));
    say(`pgbench: ${tps.toFixed(0)} tps`);
  });
  const bulk = await measure(settleMs, async (pagoda) => {
    await pagoda.query('create table load (id bigint, name text, at timestamptz, amount numeric)');
    await pagoda.query(
      `insert into load select i, md5(i::text) || md5((i * 7)::text), now() + i * interval '1 second', i * 1.01
       from generate_series(1, ${Number(options.rows)}) i`,
    );
    await pagoda.query('create index on load (id)');
    await pagoda.query('create index on load (name)');
  });
  printReport({
    name: 'amplification',
    ratio: Math.max(tpcb.ratio, bulk.ratio),
    ...prefixed('pgbench', tpcb),
    ...prefixed('bulk', bulk),
  });
}

async function measure(settleMs: number, load: (pagoda: Pagoda) => Promise<void>): Promise<Measured> {
  await using pagoda = await Pagoda.start();
  const startLsn = await walLsn(pagoda);
  await load(pagoda);
  const walBytes = (await walLsn(pagoda)) - startLsn;
  const [row] = await pagoda.query('select sum(pg_database_size(oid)) as bytes from pg_database');
  const logicalBytes = Number(row!['bytes']);
  await new Promise((resolve) => setTimeout(resolve, settleMs));
  await pagoda.stop();
  const objects = join(pagoda.dir, 'objects');
  const layers = bytesIn(join(objects, 'tenants'));
  const wal = bytesIn(join(objects, 'wal'));
  const measured = {
    ratio: (layers + wal) / (logicalBytes + walBytes),
    storedMb: mb(layers + wal),
    layersMb: mb(layers),
    archivedWalMb: mb(wal),
    logicalMb: mb(logicalBytes),
    walMb: mb(walBytes),
  };
  say(JSON.stringify(measured));
  return measured;
}

async function walLsn(pagoda: Pagoda): Promise<number> {
  const [row] = await pagoda.query('select pg_current_wal_lsn()::text as lsn');
  return parseLsn(String(row!['lsn']));
}

function bytesIn(folder: string): number {
  let bytes = 0;
  for (const entry of readdirSync(folder, {recursive: true, withFileTypes: true}))
    if (entry.isFile()) bytes += statSync(join(entry.parentPath, entry.name)).size;
  return bytes;
}

function prefixed(prefix: string, values: Measured): Record<string, number> {
  return Object.fromEntries(
    Object.entries(values).map(([name, value]) => [
      `${prefix}${name[0]!.toUpperCase()}${name.slice(1)}`,
      value as number,
    ]),
  );
}

function mb(bytes: number): number {
  return Math.round(bytes / 1e5) / 10;
}
