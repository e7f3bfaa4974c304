/**
 * `npm run bench -- cold-scan`: sequential scan of a table by a fresh compute (its directory deleted, all pages come from the
 * page server), against stock Postgres reading the same table from local disk with nothing of it in the file cache. The first
 * scan waits until the page server has finished compacting what was loaded.
 * mbPerSecond is Pagoda's; ratio = its rate ÷ stock's. cpuPerPage: microseconds of CPU for each page of the table, by process,
 * of the last round (on a busy machine they say more than the rate); packedShare: of the pages, those that came as they lie in storage.
 *
 *   --megabytes N   of the table, default 256 (1024 for the record)     --rounds N   default 3
 */
import {execFileSync} from 'node:child_process';
import {readdirSync, rmSync} from 'node:fs';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {systemClock} from '#runtime/clock.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {Pagoda} from '../test/pagoda.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {stockDefaults} from './commit.ts';
import {cpuPerUnit, readCpu} from './process-cpu.ts';
import {alternate, median, printReport, say} from './report.ts';
import {settled} from './settled.ts';

/** One process, no hint bits to set, nothing but the scan. */
const scan = 'select count(*), sum(id) from big';
const session = 'set max_parallel_workers_per_gather = 0';

export async function coldScan(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {megabytes: {type: 'string', default: '256'}, rounds: {type: 'string', default: '3'}},
  });
  // 64 rows a page
  const fill = `create table big as select i as id, repeat(md5(i::text), 3) as filler from generate_series(1, ${Number(options.megabytes) * 128 * 61}) i`;
  await using pagoda = await Pagoda.start();
  await using stock = await PostgresCluster.create({settings: stockDefaults});
  const {endpointId} = await pagoda.mainBranch();
  for (const sql of [fill, 'vacuum freeze big']) {
    await pagoda.query(sql);
    await stock.query(sql);
  }
  const sized = await pagoda.query(`select pg_relation_size('big')::float8 as bytes`);
  const bytes = Number(sized[0]!['bytes']);
  say(`settled after ${(await settled(pagoda)).toFixed(0)} s`);
  let cpuPerPage: Record<string, number> = {};
  let packedShare = 0;
  const {pagoda: a, reference: b} = await alternate({
    rounds: Number(options.rounds),
    pagoda: async () => {
      await pagoda.suspend(endpointId);
      rmSync(join(pagoda.computeDir(endpointId), 'data'), {recursive: true, force: true});
      const client = await pagoda.connect();
      try {
        await client.query(session);
        await client.query('select count(*) from pg_class'); // the catalogue is not what is measured
        const before = readCpu(pagoda.processes(), roleOf);
        const servedBefore = await servedPages(pagoda);
        const started = performance.now();
        await client.query(scan);
        const seconds = (performance.now() - started) / 1000;
        say(`${(bytes / 1e6 / seconds).toFixed(0)} MB/s`);
        cpuPerPage = cpuPerUnit(before, readCpu(pagoda.processes(), roleOf), bytes / 8192);
        const served = await servedPages(pagoda);
        packedShare = (served.packed - servedBefore.packed) / (served.all - servedBefore.all);
        return seconds;
      } finally {
        await client.end();
      }
    },
    reference: async () => {
      await stock.stop('fast');
      forgetFiles(stock.dataDir);
      await stock.start();
      await stock.query(session);
      await stock.query('select count(*) from pg_class');
      const started = performance.now();
      await stock.query(scan);
      return (performance.now() - started) / 1000;
    },
  });
  printReport({
    name: 'cold-scan',
    ratio: median(b) / median(a),
    mbPerSecond: bytes / 1e6 / median(a),
    stockMbPerSecond: bytes / 1e6 / median(b),
    bytes,
    cpuPerPage,
    packedShare,
  });
}

/** Pages that the page server has served, and those of them that it sent as they lie in storage. */
async function servedPages(pagoda: Pagoda): Promise<{all: number; packed: number}> {
  const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
  const headers = {authorization: `Bearer ${await issuer.sign({aud: 'pageserver', scope: 'node'})}`};
  const text = await (await fetch(`http://127.0.0.1:${pagoda.status.ports.internal + 8}/metrics`, {headers})).text();
  const value = (name: string): number => Number(new RegExp(`^${name} (\\d+)`, 'm').exec(text)?.[1]);
  return {all: value('pagoda_getpage_pages_total'), packed: value('pagoda_getpage_packed_pages_total')};
}

function roleOf(args: readonly string[]): string {
  if (args.includes('pageserver')) return 'pageserver';
  if (args.includes('compute')) return 'agent';
  return args[0]?.startsWith('postgres:') === true ? 'postgres' : 'others';
}

/** Drops the relation files from the kernel's cache (posix_fadvise DONTNEED, by dd), without touching other programs' files. */
function forgetFiles(dataDir: string): void {
  for (const name of readdirSync(join(dataDir, 'base'), {recursive: true, encoding: 'utf8'}))
    if (/^\d+\/\d+(\.\d+)?$/.test(name))
      execFileSync('dd', [
        `of=${join(dataDir, 'base', name)}`,
        'oflag=nocache',
        'conv=notrunc,fdatasync',
        'count=0',
        'status=none',
      ]);
}
