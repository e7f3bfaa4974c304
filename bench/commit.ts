/**
 * `npm run bench -- commit`: pgbench -N. Pagoda with three safekeepers (a commit waits for two of them to fsync) against
 * stock Postgres with two synchronous stock standbys, `ANY 1` (a commit waits for its own fsync and one standby's), its
 * defaults otherwise, on the same machine in the same run. Both over TCP on loopback, straight to Postgres. ratio = tps of
 * Pagoda ÷ tps of stock at 8 clients; one client, latencies and the way through the proxy are details.
 *
 *   --seconds S   per run, default 10     --rounds N   default 5     --scale N   of pgbench, default 10
 */
import {chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {parseArgs} from 'node:util';
import {Pagoda} from '../test/pagoda.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {
  type PgbenchResult,
  type Target,
  computeTarget,
  initialise,
  pgbench,
  proxyTarget,
  stockTarget,
} from './pgbench.ts';
import {cpuPerUnit, readCpu, withDescendants} from './process-cpu.ts';
import {alternate, median, printReport, say} from './report.ts';
import {settled} from './settled.ts';

/** What initdb gives: the test harness's faster settings taken back. */
export const stockDefaults = {fsync: 'on', autovacuum: 'on', shared_buffers: '128MB'} as const;

export async function commit(args: string[]): Promise<void> {
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
  await using stock = await ReplicatedStock.start();
  await pagoda.query('select 1');
  const ours = await computeTarget(pagoda);
  const theirs = stockTarget(stock.primary);
  for (const target of [ours, theirs]) {
    await initialise(target, Number(options.scale));
    await pgbench(target, '-N', 8, 20); // caches, segments to recycle, the roles' code compiled
  }
  // What the load has left to do would fall into some of the rounds.
  await stock.primary.query('checkpoint');
  say(`settled after ${(await settled(pagoda)).toFixed(0)} s`);
  const {pagoda: a, reference: b} = await alternate({
    rounds: Number(options.rounds),
    pagoda: async () => ({
      one: await pgbench(ours, '-N', 1, seconds),
      eight: await withCpu(ours, 8, seconds, () => pagoda.processes()),
      proxy: await pgbench(proxyTarget(pagoda), '-N', 8, seconds),
    }),
    reference: async () => ({
      one: await pgbench(theirs, '-N', 1, seconds),
      eight: await withCpu(theirs, 8, seconds, () => stock.processes()),
    }),
  });
  const tps = (results: readonly {readonly tps: number}[]): number => median(results.map((r) => r.tps));
  const ms = (results: readonly {readonly latencyMs: number}[]): number => median(results.map((r) => r.latencyMs));
  say(
    `8 clients: Pagoda ${a.map((r) => r.eight.tps.toFixed(0)).join(' ')}, stock ${b.map((r) => r.eight.tps.toFixed(0)).join(' ')} tps`,
  );
  const [a1, a8, ap] = [a.map((r) => r.one), a.map((r) => r.eight), a.map((r) => r.proxy)];
  const [b1, b8] = [b.map((r) => r.one), b.map((r) => r.eight)];
  printReport({
    name: 'commit',
    ratio: tps(a8) / tps(b8),
    clients8: {pagodaTps: tps(a8), stockTps: tps(b8), pagodaMs: ms(a8), stockMs: ms(b8)},
    clients1: {ratio: tps(a1) / tps(b1), pagodaTps: tps(a1), stockTps: tps(b1), pagodaMs: ms(a1), stockMs: ms(b1)},
    throughProxy8: {ratio: tps(ap) / tps(b8), tps: tps(ap), ms: ms(ap)},
    cpuUsPerCommit8: {pagoda: a8.at(-1)!.cpuUs, stock: b8.at(-1)!.cpuUs},
  });
}

interface WithCpu extends PgbenchResult {
  /** Microseconds per transaction, by process; of the middle of the run, while all sessions live. */
  readonly cpuUs: Readonly<Record<string, number>>;
}

async function withCpu(
  target: Target,
  clients: number,
  seconds: number,
  processes: () => readonly number[],
): Promise<WithCpu> {
  const running = pgbench(target, '-N', clients, seconds);
  running.catch(() => {}); // awaited below
  await sleep(seconds * 250);
  const pids = processes();
  const started = performance.now();
  const before = readCpu(pids, roleOf);
  await sleep(seconds * 600);
  const after = readCpu(pids, roleOf);
  const measuredMs = performance.now() - started;
  const result = await running;
  const byRole = cpuPerUnit(before, after, (result.tps * measuredMs) / 1000);
  return {...result, cpuUs: {all: Object.values(byRole).reduce((sum, us) => sum + us, 0), ...byRole}};
}

function roleOf(args: readonly string[]): string {
  const [title] = args;
  if (title?.startsWith('postgres:') === true)
    return /: (walsender|walreceiver|startup|walwriter)/.exec(title)?.[1] ?? 'backends';
  return (
    ['safekeeper', 'proposer', 'pageserver', 'compute', 'broker', 'control'].find((r) => args.includes(r)) ?? 'others'
  );
}

/** A stock primary and two synchronous stock standbys. */
export class ReplicatedStock {
  readonly primary: PostgresCluster;
  readonly #standbys: readonly PostgresCluster[];
  readonly #dir: string;

  private constructor(primary: PostgresCluster, standbys: readonly PostgresCluster[], dir: string) {
    this.primary = primary;
    this.#standbys = standbys;
    this.#dir = dir;
  }

  static async start(): Promise<ReplicatedStock> {
    const dir = mkdtempSync(join(tmpdir(), 'pagoda-bench-standbys-'));
    chmodSync(dir, 0o777);
    const primary = await PostgresCluster.create({settings: stockDefaults});
    const standbys: PostgresCluster[] = [];
    for (const name of ['one', 'two']) {
      const own = join(dir, name);
      mkdirSync(own);
      chmodSync(own, 0o777);
      await primary.tool('pg_basebackup', ['-D', join(own, 'data'), '-R', '-c', 'fast', '-h', '127.0.0.1']);
      const primary_conninfo = `host=127.0.0.1 port=${primary.port} user=${primary.superuser} application_name=${name}`;
      standbys.push(await PostgresCluster.create({dir: own, settings: {...stockDefaults, primary_conninfo}}));
    }
    await primary.query(`alter system set synchronous_standby_names = 'ANY 1 (one, two)'`);
    await primary.query('select pg_reload_conf()');
    for (let attempt = 0; ; attempt++) {
      const rows = await primary.query(
        `select count(*)::int as n from pg_stat_replication where sync_state = 'quorum'`,
      );
      if (rows[0]!['n'] === 2) break;
      if (attempt > 100) throw new Error('the standbys did not become synchronous');
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return new ReplicatedStock(primary, standbys, dir);
  }

  /** Of all three. */
  processes(): number[] {
    return withDescendants(
      [this.primary, ...this.#standbys].map(({dataDir}) =>
        Number.parseInt(readFileSync(join(dataDir, 'postmaster.pid'), 'utf8'), 10),
      ),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.primary[Symbol.asyncDispose]();
    for (const standby of this.#standbys) await standby.stop('immediate');
    rmSync(this.#dir, {recursive: true, force: true});
  }
}
