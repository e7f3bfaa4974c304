/**
 * `npm run bench -- large --data DIRECTORY`: what must not depend on size, at the page server. A stopped cluster of any size (made by
 * stock Postgres; 10 GB for the record) and one just made by initdb are imported into one page server process, each as a tenant.
 * Then in turn: making a branch; and, with the branch archived, unarchiving it, its basebackup and the first page of its largest
 * relation, which is what a wake needs of storage.
 *
 *   --data DIRECTORY   of the stopped cluster      --times N   of each, default 10
 */
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import {parseLsn} from '#postgres/lsn.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import {PagesClient} from '#wire/pages.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {endChild, startChild} from './child.ts';
import {median, printReport, say} from './report.ts';

const rootId = '1'.repeat(32);
const tenants = {small: 'a'.repeat(32), large: 'b'.repeat(32)} as const;
type Size = keyof typeof tenants;
/** PostgresDbOid of PostgreSQL 15. */
const postgresDatabase = 5;

export async function large(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {data: {type: 'string'}, times: {type: 'string', default: '10'}},
  });
  if (options.data === undefined) throw new Error('--data names the data directory of a stopped cluster');
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-bench-large-'));
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
  };
  const {child, ready} = await startChild('getpage-pageserver.ts', JSON.stringify(config));
  try {
    const {port, httpPort} = ready as {port: number; httpPort: number};
    const token = await issuer.sign({aud: 'pageserver', scope: 'node'});
    const url = (size: Size, path: string): string => `http://127.0.0.1:${httpPort}/v1/tenant/${tenants[size]}${path}`;
    const call = async (size: Size, method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
      const request = {method, url: url(size, path), token, timeoutMs: 600_000};
      const {status, json} = await requestJson(body === undefined ? request : {...request, body});
      if (status >= 300) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(json)}`);
      return json as Record<string, unknown>;
    };
    const importDirectory = async (size: Size, dataDir: string): Promise<number> => {
      await call(size, 'PUT', '', {generation: 1});
      await call(size, 'POST', '/timeline', {timelineId: rootId, pgVersion: 15, mode: {kind: 'import'}});
      const started = performance.now();
      const response = await requestStream({
        method: 'POST',
        url: url(size, `/timeline/${rootId}/import`),
        token,
        body: tarDataDirectory(systemDisk, dataDir),
        timeoutMs: 600_000,
      });
      const parts: Buffer[] = [];
      for await (const part of response.body) parts.push(part);
      if (response.status !== 200) throw new Error(`import: ${response.status} ${Buffer.concat(parts).toString()}`);
      const seconds = (performance.now() - started) / 1000;
      await call(size, 'POST', `/timeline/${rootId}/checkpoint`);
      return seconds;
    };
    {
      await using cluster = await PostgresCluster.create({});
      await cluster.stop('fast');
      await importDirectory('small', cluster.dataDir);
    }
    const importSeconds = await importDirectory('large', options.data);
    const bytes: Record<string, number> = {};
    for (const size of ['small', 'large'] as const)
      bytes[size] = Number((await call(size, 'GET', `/timeline/${rootId}`))['logicalSizeBytes']);
    say(`imported ${(bytes['large']! / 1e9).toFixed(2)} GB in ${importSeconds.toFixed(0)} s`);

    const connect = async (size: Size, timeline: string): Promise<PagesClient> => {
      const pagesToken = await issuer.sign({aud: 'pageserver', scope: 'tenant', tenant: tenants[size], timeline});
      return PagesClient.connect({host: '127.0.0.1', port}, pagesToken, tenants[size], timeline);
    };
    const create = {small: [] as number[], large: [] as number[]};
    const wake = {small: [] as number[], large: [] as number[]};
    for (let n = 0; n < Number(options.times); n++)
      for (const size of ['small', 'large'] as const) {
        const timelineId = (n + 2).toString(16).padStart(32, '0');
        let started = performance.now();
        await call(size, 'POST', '/timeline', {
          timelineId,
          pgVersion: 15,
          mode: {kind: 'branch', ancestorTimelineId: rootId},
        });
        create[size].push(performance.now() - started);
        const info = await call(size, 'GET', `/timeline/${timelineId}`);
        const requestLsn = parseLsn(String(info['lastRecordLsn']));
        for (const id of [timelineId, rootId])
          await call(size, 'POST', `/timeline/${id}/archive`, {lsn: info['lastRecordLsn']});
        started = performance.now();
        await call(size, 'POST', `/timeline/${timelineId}/unarchive`);
        const backup = await requestStream({
          method: 'GET',
          url: url(size, `/timeline/${timelineId}/basebackup?lsn=${String(info['lastRecordLsn'])}`),
          token,
        });
        for await (const part of backup.body) void part;
        if (backup.status !== 200) throw new Error(`basebackup: ${backup.status}`);
        const pages = await connect(size, timelineId);
        const relations = await pages.listDb(0, postgresDatabase, {requestLsn});
        const biggest = relations.reduce((x, y) => (y.blocks > x.blocks ? y : x));
        await pages.getPages(biggest.rel, biggest.blocks - 1, 1, {requestLsn});
        wake[size].push(performance.now() - started);
        pages.close();
        await call(size, 'DELETE', `/timeline/${timelineId}`);
        say(`${n + 1} ${size}: branch ${create[size].at(-1)!.toFixed(1)} ms, wake ${wake[size].at(-1)!.toFixed(0)} ms`);
      }
    printReport({
      name: 'large',
      ratio: median(wake.large) / median(wake.small),
      smallMb: bytes['small']! / 1e6,
      largeMb: bytes['large']! / 1e6,
      importSeconds,
      branchSmallMs: median(create.small),
      branchLargeMs: median(create.large),
      wakeSmallMs: median(wake.small),
      wakeLargeMs: median(wake.large),
    });
  } finally {
    await endChild(child);
    rmSync(dir, {recursive: true, force: true});
  }
}
