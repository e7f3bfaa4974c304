/** Runs pgbench against anything that libpq reaches. */
import {execFile} from 'node:child_process';
import {join} from 'node:path';
import {promisify} from 'node:util';
import {type Pagoda, libpqEnvironment} from '../test/pagoda.ts';
import {type PostgresCluster, postgresBinDir} from '../test/postgres-cluster.ts';

const run = promisify(execFile);

export interface PgbenchResult {
  /** Transactions per second without connection time. */
  readonly tps: number;
  readonly latencyMs: number;
}

/** libpq's variables: where a session goes. */
export type Target = Readonly<Record<string, string>>;

export async function initialise(target: Target, scale: number): Promise<void> {
  await tool('pgbench', target, ['-i', '-q', '-s', String(scale)]);
}

/** `how`: `-N` or `-S`, or that with more options. */
export async function pgbench(
  target: Target,
  how: string | readonly string[],
  clients: number,
  seconds: number,
): Promise<PgbenchResult> {
  const jobs = Math.min(clients, 2);
  const out = await tool('pgbench', target, [
    '-n',
    ...(typeof how === 'string' ? [how] : how),
    '-c',
    String(clients),
    '-j',
    String(jobs),
    '-T',
    String(seconds),
  ]);
  const tps = /^tps = ([\d.]+) \(without initial connection time\)/m.exec(out);
  const latency = /^latency average = ([\d.]+) ms/m.exec(out);
  const failed = /^number of failed transactions: (\d+)/m.exec(out);
  if (tps === null || latency === null || (failed !== null && failed[1] !== '0'))
    throw new Error(`pgbench printed no result, or transactions failed:\n${out}`);
  return {tps: Number(tps[1]), latencyMs: Number(latency[1])};
}

export async function tool(name: string, target: Target, args: readonly string[]): Promise<string> {
  const {stdout} = await run(join(postgresBinDir, name), args, {env: target, maxBuffer: 1 << 26, cwd: '/'});
  return stdout;
}

export function stockTarget(cluster: PostgresCluster): Target {
  return {
    ...(process.env as Record<string, string>),
    PGHOST: '127.0.0.1',
    PGPORT: String(cluster.port),
    PGUSER: cluster.superuser,
    PGDATABASE: 'postgres',
  };
}

/** Through the front door, as a user comes. */
export function proxyTarget(pagoda: Pagoda): Target {
  return libpqEnvironment(pagoda.status.databaseUrl);
}

/** Straight to the compute's loopback port: the same road as to stock. The endpoint must run. */
export async function computeTarget(pagoda: Pagoda): Promise<Target> {
  const {endpointId} = await pagoda.mainBranch();
  const {PGOPTIONS: _options, ...target} = libpqEnvironment(pagoda.status.databaseUrl);
  return {...target, PGHOST: '127.0.0.1', PGPORT: String(pagoda.computeSocket(endpointId).port), PGSSLMODE: 'disable'};
}
