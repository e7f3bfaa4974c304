/**
 * `npm run bench -- getpage`: random pages from one page server process with everything in its memory, one page a request,
 * 1 and 16 requests in flight, against the bare-socket bound: a process that answers each request of the same size with 8 KiB
 * over the same frames and does nothing else. The client is the same in both. Pages as images (of an import), and pages with
 * some ten records to replay each.
 *
 * ratio: pages per second ÷ bound at 16 in flight, image pages (goal 0.5; for ten records 0.3).
 *
 *   --seconds S   per run, default 3     --rounds N   default 3     --fresh   record the WAL anew
 *   --scan        instead: runs of 64 pages in order, four in flight, as a scan asks for them, packed (wire/packed-pages.ts) and
 *                 not; microseconds of CPU per page of the page server and of this client, which does not unpack
 */
import type {ChildProcess} from 'node:child_process';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize} from '#postgres/relation.ts';
import {WalFilesSafekeeper} from '#pageserver/wal-source.testing.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import {PagesClient} from '#wire/pages.ts';
import {endChild, startChild} from './child.ts';
import {type CpuByLabel, cpuPerUnit, readCpu} from './process-cpu.ts';
import {type Recording, recordWal} from './recorded-wal.ts';
import {alternate, median, percentile, printReport, say} from './report.ts';

const tenantId = 'e'.repeat(32);
const timelineId = '1'.repeat(32);
const rows = 400_000;
/** PostgresDbOid of PostgreSQL 15. */
const postgresDatabase = 5;

interface Rate {
  readonly pagesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

export async function getPage(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      seconds: {type: 'string', default: '3'},
      rounds: {type: 'string', default: '3'},
      fresh: {type: 'boolean', default: false},
      scan: {type: 'boolean', default: false},
    },
  });
  const seconds = Number(options.seconds);
  const recording = await recordWal(load, options.fresh);
  await using pageserver = await PageserverChild.start(recording);
  await using bound = await EchoChild.start();
  const {rel, blocks} = await pageserver.largestRelation();
  say(`${blocks} pages of relation ${rel.relNode}`);
  if (options.scan) return await scan(pageserver, rel, blocks, seconds, Number(options.rounds));
  const image = pageserver.imageLsn;
  const changed = recording.endLsn;
  const measures: readonly (readonly [string, Lsn, number])[] = [
    ['image1', image, 1],
    ['image16', image, 16],
    ['records1', changed, 1],
    ['records16', changed, 16],
  ];
  const results: Record<string, Rate & {readonly ratio: number; readonly boundPagesPerSecond: number}> = {};
  for (const [name, lsn, depth] of measures) {
    const client = await pageserver.pages();
    const echo = await bound.pages();
    await drive(client, rel, blocks, lsn, depth, 1);
    await drive(echo, rel, blocks, lsn, depth, 1);
    const {pagoda, reference} = await alternate({
      rounds: Number(options.rounds),
      pagoda: () => drive(client, rel, blocks, lsn, depth, seconds),
      reference: () => drive(echo, rel, blocks, lsn, depth, seconds),
    });
    client.close();
    echo.close();
    const of = (rates: Rate[], field: keyof Rate): number => median(rates.map((r) => r[field]));
    const pagesPerSecond = of(pagoda, 'pagesPerSecond');
    const boundPagesPerSecond = of(reference, 'pagesPerSecond');
    results[name] = {
      ratio: pagesPerSecond / boundPagesPerSecond,
      pagesPerSecond,
      boundPagesPerSecond,
      p50Us: of(pagoda, 'p50Us'),
      p99Us: of(pagoda, 'p99Us'),
    };
    say(`${name}: ${pagesPerSecond.toFixed(0)} pages/s, bound ${boundPagesPerSecond.toFixed(0)}`);
  }
  printReport({name: 'getpage', ratio: results['image16']!.ratio, blocks, ...results});
}

async function scan(
  pageserver: PageserverChild,
  rel: RelTag,
  blocks: number,
  seconds: number,
  rounds: number,
): Promise<void> {
  const client = await pageserver.pages();
  const cpu = (packed: boolean): Promise<Record<string, number>> =>
    driveScan(pageserver, client, rel, blocks, packed, seconds);
  await cpu(true);
  await cpu(false);
  const {pagoda, reference} = await alternate({rounds, pagoda: () => cpu(true), reference: () => cpu(false)});
  client.close();
  const of = (rows: Record<string, number>[], name: string): number => median(rows.map((row) => row[name] ?? 0));
  const result = (rows: Record<string, number>[]): Record<string, number> => ({
    pageserver: of(rows, 'pageserver'),
    client: of(rows, 'client'),
    mbPerSecond: of(rows, 'mbPerSecond'),
  });
  printReport({
    name: 'getpage-scan',
    ratio: of(reference, 'pageserver') / of(pagoda, 'pageserver'),
    blocks,
    packed: result(pagoda),
    plain: result(reference),
  });
}

/** CPU per page by process, in microseconds, and the rate. */
async function driveScan(
  pageserver: PageserverChild,
  client: PagesClient,
  rel: RelTag,
  blocks: number,
  packed: boolean,
  seconds: number,
): Promise<Record<string, number>> {
  const cpu = (): CpuByLabel =>
    readCpu([pageserver.pid, process.pid], (_, pid) => (pid === process.pid ? 'client' : 'pageserver'));
  const before = cpu();
  const started = performance.now();
  const end = started + seconds * 1000;
  let pages = 0;
  let next = 0;
  await Promise.all(
    Array.from({length: 4}, async () => {
      while (performance.now() < end) {
        const block = next;
        next = next + 64 < blocks ? next + 64 : 0;
        const run = await client.getPageRun(rel, block, 64, {requestLsn: pageserver.imageLsn}, packed);
        pages += run.packedPages ?? run.bytes.length / blockSize;
        run.release();
      }
    }),
  );
  const mbPerSecond = (pages * blockSize) / 1e3 / (performance.now() - started);
  const row = {...cpuPerUnit(before, cpu(), pages), mbPerSecond};
  say(`${packed ? 'packed' : 'plain'}: ${JSON.stringify(row)}`);
  return row;
}

/** Every page of a table gets about ten updates within the page. */
const load = {
  name: `getpage-md5-${rows}`,
  setUp: async (cluster: {query(sql: string): Promise<unknown>}): Promise<void> => {
    await cluster.query('create table t (id int, n int, filler text) with (fillfactor = 80)');
    await cluster.query(
      `insert into t select i, 0, left(repeat(md5(i::text), 2), 60) from generate_series(1, ${rows}) i`,
    );
    await cluster.query('vacuum freeze t');
  },
  run: async (cluster: {query(sql: string): Promise<unknown>}): Promise<void> => {
    await cluster.query('update t set n = n + 1 where id % 7 = 0');
  },
};

/** Random single pages, `depth` requests always in flight. */
async function drive(
  client: PagesClient,
  rel: RelTag,
  blocks: number,
  requestLsn: Lsn,
  depth: number,
  seconds: number,
): Promise<Rate> {
  const times: number[] = [];
  const started = performance.now();
  const end = started + seconds * 1000;
  await Promise.all(
    Array.from({length: depth}, async () => {
      for (let before = performance.now(); before < end;) {
        await client.getPages(rel, Math.floor(Math.random() * blocks), 1, {requestLsn});
        const after = performance.now();
        times.push((after - before) * 1000);
        before = after;
      }
    }),
  );
  const pagesPerSecond = times.length / ((performance.now() - started) / 1000);
  return {pagesPerSecond, p50Us: median(times), p99Us: percentile(times, 99)};
}

/** One `pagoda pageserver` process with the recording imported and ingested. */
class PageserverChild {
  readonly imageLsn: Lsn;
  readonly #dir: string;
  readonly #child: ChildProcess;
  readonly #issuer: TokenIssuer;
  readonly #port: number;

  private constructor(options: {dir: string; child: ChildProcess; issuer: TokenIssuer; port: number; imageLsn: Lsn}) {
    this.#dir = options.dir;
    this.#child = options.child;
    this.#issuer = options.issuer;
    this.#port = options.port;
    this.imageLsn = options.imageLsn;
  }

  static async start(recording: Recording): Promise<PageserverChild> {
    const dir = mkdtempSync(join(tmpdir(), 'pagoda-bench-pages-'));
    const keysDir = join(dir, 'keys');
    await generateKeys(keysDir);
    const issuer = await TokenIssuer.load(keysDir, 'control', systemClock);
    const config = {
      nodeId: 1,
      host: '127.0.0.1',
      port: 0,
      httpPort: 0,
      dataDir: join(dir, 'local'),
      keysDir,
      objectStore: {kind: 'folder', root: join(dir, 'objects')},
      blockCacheBytes: 1 << 30,
    };
    const {child, ready} = await startChild('getpage-pageserver.ts', JSON.stringify(config));
    const ports = ready as {port: number; httpPort: number};
    const safekeeper = await WalFilesSafekeeper.start({walDir: recording.wal, commitLsn: () => recording.endLsn});
    try {
      const base = `http://127.0.0.1:${ports.httpPort}/v1/tenant/${tenantId}`;
      const token = await issuer.sign({aud: 'pageserver', scope: 'node'});
      const call = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
        const {status, json} = await requestJson({
          method,
          url: base + path,
          token,
          ...(body === undefined ? {} : {body}),
        });
        if (status >= 300) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(json)}`);
        return json as Record<string, unknown>;
      };
      await call('PUT', '', {generation: 1});
      await call('POST', '/timeline', {timelineId, pgVersion: 15, mode: {kind: 'import'}});
      const response = await requestStream({
        method: 'POST',
        url: `${base}/timeline/${timelineId}/import`,
        token,
        body: tarDataDirectory(systemDisk, recording.base),
      });
      const parts: Buffer[] = [];
      for await (const part of response.body) parts.push(part);
      const text = Buffer.concat(parts).toString();
      if (response.status !== 200) throw new Error(`import: ${response.status} ${text}`);
      const imageLsn = parseLsn((JSON.parse(text) as {lsn: string}).lsn);
      await call('PUT', `/timeline/${timelineId}/safekeepers`, {
        safekeepers: [{nodeId: 1, host: '127.0.0.1', port: safekeeper.port}],
      });
      for (;;) {
        const status = await call('GET', `/timeline/${timelineId}`);
        if (parseLsn(String(status['lastRecordLsn'])) >= recording.endLsn) break;
        if (status['ingestError'] !== undefined) throw new Error(String(status['ingestError']));
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      await call('POST', `/timeline/${timelineId}/checkpoint`);
      return new PageserverChild({dir, child, issuer, port: ports.port, imageLsn});
    } catch (error) {
      child.kill('SIGKILL');
      rmSync(dir, {recursive: true, force: true});
      throw error;
    } finally {
      await safekeeper.stop();
    }
  }

  get pid(): number {
    return this.#child.pid!;
  }

  async pages(): Promise<PagesClient> {
    const token = await this.#issuer.sign({aud: 'pageserver', scope: 'tenant', tenant: tenantId, timeline: timelineId});
    // On a machine that has no time for us the server gives up on a hello after a while.
    for (let tries = 1; ; tries++)
      try {
        return await PagesClient.connect({host: '127.0.0.1', port: this.#port}, token, tenantId, timelineId);
      } catch (error) {
        if (tries >= 10) throw error;
      }
  }

  async largestRelation(): Promise<{rel: RelTag; blocks: number}> {
    const client = await this.pages();
    let best: {rel: RelTag; blocks: number} | undefined;
    for (const entry of await client.listDb(0, postgresDatabase, {requestLsn: this.imageLsn}))
      if (entry.blocks > (best?.blocks ?? 0)) best = entry;
    client.close();
    if (best === undefined) throw new Error(`no relation at ${formatLsn(this.imageLsn)}`);
    return best;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.#child);
    rmSync(this.#dir, {recursive: true, force: true});
  }
}

/** The bound: frames in, 8 KiB out. */
class EchoChild {
  readonly #child: ChildProcess;
  readonly #port: number;

  private constructor(child: ChildProcess, port: number) {
    this.#child = child;
    this.#port = port;
  }

  static async start(): Promise<EchoChild> {
    const {child, ready} = await startChild('getpage-bound.ts', '');
    return new EchoChild(child, (ready as {port: number}).port);
  }

  pages(): Promise<PagesClient> {
    return PagesClient.connect({host: '127.0.0.1', port: this.#port}, '', tenantId, timelineId);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endChild(this.#child);
  }
}
