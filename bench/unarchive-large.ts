/**
 * `npm run bench -- unarchive-large --data DIRECTORY`: what `large` does at the page server, through a real compute: from the first packet of a client to
 * the first row of a table, with the branch archived; and making a branch, at the page server. A cluster of any size (10 GB for the
 * record) and one of pgbench -s 1 are imported as projects; their branches have nobody below them, so that all of each is archived.
 *
 *   --data DIRECTORY   of a stopped cluster of PostgreSQL 15 with pgbench's tables in the database `shop`, which belong to the role `app` with the
 *                      password 'app secret'
 *   --dir DIRECTORY    for the installation: kept, and used again without importing anew
 *   --prepare          imports only
 *   --times N          of each, default 10
 */
import {existsSync, readFileSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {DatabaseSync} from 'node:sqlite';
import {setTimeout as sleep} from 'node:timers/promises';
import {parseArgs} from 'node:util';
import {systemClock} from '#runtime/clock.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {Pagoda} from '../test/pagoda.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {median, printReport, say} from './report.ts';

/** As long as this the spare agent takes to come back (bench/wake.ts). */
const pauseMs = 1500;

interface Project {
  readonly projectId: string;
  readonly branchId: string;
  readonly endpointId: string;
  /** As printed by the import; the port may have changed since. */
  readonly uri: string;
  readonly importSeconds: number;
}
type Projects = Readonly<Record<'small' | 'large', Project>>;

export async function unarchiveLarge(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      data: {type: 'string'},
      dir: {type: 'string'},
      prepare: {type: 'boolean', default: false},
      times: {type: 'string', default: '10'},
    },
  });
  process.env['PAGODA_ARCHIVE_AGE_SECONDS'] = '1';
  process.env['PAGODA_ARCHIVE_IDLE_SECONDS'] = '1';
  await using pagoda = await Pagoda.start(options.dir === undefined ? {} : {dir: options.dir});
  const known = join(pagoda.dir, 'unarchive-large.json');
  let projects: Projects;
  if (existsSync(known)) projects = JSON.parse(readFileSync(known, 'utf8')) as Projects;
  else {
    if (options.data === undefined) throw new Error('--data names the data directory of a stopped cluster');
    projects = {small: await importSmall(pagoda), large: await importDirectory(pagoda, options.data)};
    writeFileSync(known, JSON.stringify(projects));
  }
  if (!options.prepare) await measure(pagoda, projects, Number(options.times));
  await pagoda.stop();
}

async function measure(pagoda: Pagoda, projects: Projects, times: number): Promise<void> {
  const wake = {small: [] as number[], large: [] as number[]};
  const create = {small: [] as number[], large: [] as number[]};
  const bytes = {small: 0, large: 0};
  for (let n = 0; n < times; n++)
    for (const size of ['small', 'large'] as const) {
      const {projectId, branchId, endpointId, uri} = projects[size];
      const path = `/projects/${projectId}/branches/${branchId}`;
      const state = async (): Promise<string> =>
        (await pagoda.api<{branch: {current_state: string}}>('GET', path)).branch.current_state;
      if ((await state()) !== 'archived') {
        await pagoda.suspend(endpointId, projectId);
        // One that could not be archived, as the page server was not there yet, is not tried again for long: unless it was protected.
        for (const wanted of [true, false]) {
          await pagoda.api('PATCH', path, {branch: {protected: wanted}});
          await sleep(pauseMs);
        }
      }
      while ((await state()) !== 'archived') await sleep(100);
      await sleep(pauseMs);
      const url = new URL(uri);
      url.port = String(pagoda.status.ports.proxy);
      url.username = 'app';
      url.password = 'app secret';
      const started = performance.now();
      const rows = await pagoda.query('select aid from pgbench_accounts where aid = 5000', url.href);
      wake[size].push(performance.now() - started);
      if (rows[0]?.['aid'] !== 5000) throw new Error('the woken branch does not have its row');
      const made = await makeBranch(pagoda, endpointId, n);
      create[size].push(made.ms);
      bytes[size] = made.bytes;
      say(`${n + 1} ${size}: first row ${wake[size].at(-1)!.toFixed(0)} ms, branch ${made.ms.toFixed(1)} ms`);
    }
  printReport({
    name: 'unarchive-large',
    ratio: median(wake.small) / median(wake.large),
    largeToSmall: median(wake.large) / median(wake.small),
    smallMb: bytes.small / 1e6,
    largeMb: bytes.large / 1e6,
    importSeconds: projects.large.importSeconds,
    wakeSmallMs: median(wake.small),
    wakeLargeMs: median(wake.large),
    wakeSmall: wake.small,
    wakeLarge: wake.large,
    branchSmallMs: median(create.small),
    branchLargeMs: median(create.large),
  });
}

async function importSmall(pagoda: Pagoda): Promise<Project> {
  await using cluster = await PostgresCluster.create({});
  await cluster.query("create role app login password 'app secret'");
  await cluster.query('create database shop owner app');
  await cluster.pgbench(['-i', '-q', '-s', '1', 'shop']);
  for (const table of ['accounts', 'branches', 'tellers', 'history'])
    await pagoda.query(`alter table pgbench_${table} owner to app`, cluster.connectionString('shop'));
  await cluster.stop('fast');
  return await importDirectory(pagoda, cluster.dataDir);
}

/** A project whose imported branch is archived when nobody uses it: a default one never is, so it is made none, in the metadata of this installation. */
async function importDirectory(pagoda: Pagoda, directory: string): Promise<Project> {
  const started = performance.now();
  const printed = await pagoda.cli('import', directory);
  const importSeconds = (performance.now() - started) / 1000;
  say(printed);
  const [, projectId, branchId] = /is project (\S+) \(branch (\S+)\)/.exec(printed)!;
  const [, uri] = /^ {2}shop: (\S+)$/m.exec(printed)!;
  const endpointId = await pagoda.endpointOf(branchId!, projectId);
  const metadata = new DatabaseSync(join(pagoda.dir, 'control/control.sqlite'));
  metadata.prepare('update branches set is_default = 0 where id = ?').run(branchId!);
  metadata.close();
  return {projectId: projectId!, branchId: branchId!, endpointId, uri: uri!, importSeconds};
}

/** A branch of the timeline that the endpoint runs on, made and deleted at the page server, and the bytes it has. */
async function makeBranch(pagoda: Pagoda, endpointId: string, n: number): Promise<{ms: number; bytes: number}> {
  const config = readFileSync(join(pagoda.computeDir(endpointId), 'config.json'), 'utf8');
  const find = (name: string): string => new RegExp(`"${name}":\\s*"([^"]+)"`).exec(config)![1]!;
  const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
  const token = await issuer.sign({aud: 'pageserver', scope: 'node'});
  const base = `http://127.0.0.1:${pagoda.status.ports.internal + 8}/v1/tenant/${find('tenantId')}/timeline`;
  const call = async (method: string, path: string, body?: unknown): Promise<Record<string, unknown>> => {
    const headers = {authorization: `Bearer ${token}`, 'content-type': 'application/json'};
    const response = await fetch(base + path, {
      method,
      headers,
      ...(body === undefined ? {} : {body: JSON.stringify(body)}),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return text === '' ? {} : (JSON.parse(text) as Record<string, unknown>);
  };
  const ancestorTimelineId = find('timelineId');
  const {logicalSizeBytes} = await call('GET', `/${ancestorTimelineId}`);
  const timelineId = (n + 2).toString(16).padStart(32, '0');
  const started = performance.now();
  await call('POST', '', {timelineId, pgVersion: 15, mode: {kind: 'branch', ancestorTimelineId}});
  const ms = performance.now() - started;
  await call('DELETE', `/${timelineId}`);
  return {ms, bytes: Number(logicalSizeBytes)};
}
