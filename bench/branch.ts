/**
 * `npm run bench -- branch`: making a branch of a small and of a large database, through the API (no endpoint), and for scale
 * `createdb -T` of the same two databases on stock Postgres, which copies the files. A branch must not depend on size.
 *
 *   --times N     branches of each, default 10
 *   --scale N     pgbench scale of the large database (about 15 MB each), default 134: 2 GB
 */
import {execFile} from 'node:child_process';
import {parseArgs, promisify} from 'node:util';
import {Pagoda, libpqEnvironment} from '../test/pagoda.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {alternate, median, printReport, say} from './report.ts';

export async function branch(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {times: {type: 'string', default: '10'}, scale: {type: 'string', default: '134'}},
  });
  const times = Number(options.times);
  await using pagoda = await Pagoda.start();
  const large = await otherProject(pagoda);
  await load(pagoda.status.databaseUrl, '1');
  await load(large.uri, options.scale);
  const sizes = [await size(pagoda, pagoda.status.databaseUrl), await size(pagoda, large.uri)];
  say(`small ${mb(sizes[0]!)} MB, large ${mb(sizes[1]!)} MB`);
  // Branches are made of what is committed; both sides have been quiet for a moment.
  const {pagoda: smallMs, reference: largeMs} = await alternate({
    rounds: times,
    pagoda: () => timed(pagoda, pagoda.status.projectId),
    reference: () => timed(pagoda, large.projectId),
  });
  await using stock = await PostgresCluster.create({settings: {fsync: 'on'}});
  const copies: number[] = [];
  for (const [name, scale] of [
    ['small', '1'],
    ['large', options.scale],
  ] as const) {
    await stock.query(`create database ${name}`);
    await stock.pgbench(['-i', '-q', '-s', scale, name]);
    const started = performance.now();
    await stock.query(`create database ${name}_copy template ${name} strategy file_copy`);
    copies.push(performance.now() - started);
  }
  printReport({
    name: 'branch',
    ratio: median(smallMs) / median(largeMs),
    smallMs: median(smallMs),
    largeMs: median(largeMs),
    smallMb: mb(sizes[0]!),
    largeMb: mb(sizes[1]!),
    stockCopySmallMs: copies[0]!,
    stockCopyLargeMs: copies[1]!,
  });
}

async function otherProject(pagoda: Pagoda): Promise<{projectId: string; uri: string}> {
  const made = await pagoda.api<{project: {id: string}; branch: {id: string}}>('POST', '/projects', {
    project: {name: 'large'},
  });
  await pagoda.settled(made.project.id);
  return {projectId: made.project.id, uri: await pagoda.uri(made.branch.id, made.project.id)};
}

async function load(uri: string, scale: string): Promise<void> {
  await promisify(execFile)('pgbench', ['-i', '-q', '-s', scale], {env: libpqEnvironment(uri)});
}

async function size(pagoda: Pagoda, uri: string): Promise<number> {
  const [row] = await pagoda.query('select pg_database_size(current_database()) as bytes', uri);
  return Number(row!['bytes']);
}

function mb(bytes: number): number {
  return Math.round(bytes / 1e6);
}

/** Milliseconds from the request to a branch that is ready. */
async function timed(pagoda: Pagoda, projectId: string): Promise<number> {
  const started = performance.now();
  await pagoda.api('POST', `/projects/${projectId}/branches`, {endpoints: []});
  await pagoda.settled(projectId);
  return performance.now() - started;
}
