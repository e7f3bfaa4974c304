/**
 * `npm run bench -- proxy`: pgbench -S through the front door, against straight to the compute, and against PgBouncer in
 * session mode before the same compute. All sessions of a round are alike: TLS off for `plain`, which is what PgBouncer is
 * compared with (its own TLS would cost it as ours does us), TLS on for `tls`.
 * ratio = tps through the front door ÷ tps through PgBouncer at 8 clients, both without TLS.
 *
 *   --seconds S   per run, default 5     --rounds N   default 5     --scale N   of pgbench, default 10     --mode M   of pgbench, default simple
 */
import {type ChildProcess, spawn} from 'node:child_process';
import {chownSync, existsSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {connect} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {parseArgs} from 'node:util';
import {Pagoda, freeBlock} from '../test/pagoda.ts';
import {runAs} from '../test/postgres-cluster.ts';
import {type PgbenchResult, type Target, computeTarget, initialise, pgbench, proxyTarget, tool} from './pgbench.ts';
import {readCpu} from './process-cpu.ts';
import {median, printReport, say, sayTable} from './report.ts';

const clients = 8;
const pgbouncerPath = '/usr/sbin/pgbouncer';

interface Side {
  readonly name: string;
  readonly target: Target;
  /** Whose CPU time is the price of the way. */
  readonly pid?: number;
}
interface Measured extends PgbenchResult {
  /** Microseconds of the process in between, per transaction. */
  readonly cpuUs: number | undefined;
}

export async function proxy(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      seconds: {type: 'string', default: '5'},
      rounds: {type: 'string', default: '5'},
      scale: {type: 'string', default: '10'},
      mode: {type: 'string', default: 'simple'},
    },
  });
  const seconds = Number(options.seconds);
  await using pagoda = await Pagoda.start();
  await pagoda.query('select 1');
  const compute = await computeTarget(pagoda);
  const door = proxyTarget(pagoda);
  await initialise(compute, Number(options.scale));
  await tool('psql', compute, ['-Xqc', 'vacuum analyze', '-c', 'select sum(abalance) from pgbench_accounts']);

  const pid = pagoda.pidOf('proxy');
  const {endpointId} = await pagoda.mainBranch();
  const plain = {...door, PGSSLMODE: 'disable', PGCHANNELBINDING: 'disable'};
  const pooler = {PGOPTIONS: `endpoint=${endpointId}-pooler`};
  await using bouncer = await PgBouncer.start(compute);
  const sides: Side[] = [
    {name: 'straight', target: compute},
    {name: 'door', target: {...plain, PGOPTIONS: `endpoint=${endpointId}`}, pid},
    ...(bouncer === undefined ? [] : [{name: 'pgbouncer', target: bouncer.target, pid: bouncer.pid}]),
    {name: 'door, pooled', target: {...plain, ...pooler}, pid},
    {name: 'door, TLS', target: {...door, PGOPTIONS: `endpoint=${endpointId}`}, pid},
    {name: 'door, TLS, pooled', target: {...door, ...pooler}, pid},
  ];
  const results = new Map<string, Measured[]>(sides.map((side) => [side.name, []]));
  const how = ['-S', '-M', options.mode];
  for (const side of sides) await pgbench(side.target, how, clients, 1);
  for (let round = 0; round < Number(options.rounds); round++)
    for (const side of sides) results.get(side.name)!.push(await measure(side, how, seconds));

  const tps = (name: string): number => median(results.get(name)!.map((r) => r.tps));
  const cpu = (name: string): number | undefined => {
    const known = results.get(name)!.flatMap((r) => r.cpuUs ?? []);
    return known.length === 0 ? undefined : median(known);
  };
  const rows = sides.map(({name}) => ({
    name,
    tps: tps(name),
    ofStraight: tps(name) / tps('straight'),
    cpuUs: cpu(name),
  }));
  sayTable([
    ['', 'tps', 'of straight', 'CPU µs'],
    ...rows.map((r) => [r.name, r.tps.toFixed(0), r.ofStraight.toFixed(2), r.cpuUs?.toFixed(1) ?? '']),
  ]);
  printReport({
    name: 'proxy',
    ...(bouncer === undefined ? {} : {ratio: tps('door') / tps('pgbouncer')}),
    clients,
    mode: options.mode,
    sides: Object.fromEntries(rows.map(({name, ...row}) => [name, row])),
  });
}

async function measure(side: Side, how: readonly string[], seconds: number): Promise<Measured> {
  const cpu = (): number => (side.pid === undefined ? 0 : (readCpu([side.pid], () => 'way').get('way') ?? 0));
  const before = cpu();
  const result = await pgbench(side.target, how, clients, seconds);
  const cpuUs = side.pid === undefined ? undefined : (cpu() - before) / 1000 / (result.tps * seconds);
  return {...result, cpuUs};
}

/** Debian's PgBouncer before the compute, in session mode; its clients log in with SCRAM as ours do. */
class PgBouncer {
  readonly target: Target;
  readonly #child: ChildProcess;
  readonly #dir: string;

  private constructor(child: ChildProcess, dir: string, target: Target) {
    this.#child = child;
    this.#dir = dir;
    this.target = target;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** Undefined where it is not installed. */
  static async start(compute: Target): Promise<PgBouncer | undefined> {
    if (!existsSync(pgbouncerPath)) {
      say('PgBouncer is not installed (apt-get install pgbouncer): measured without it');
      return undefined;
    }
    const dir = mkdtempSync(join(tmpdir(), 'pagoda-pgbouncer-'));
    const port = await freeBlock();
    const user = compute['PGUSER']!;
    writeFileSync(join(dir, 'users.txt'), `"${user}" "${compute['PGPASSWORD']}"\n`, {mode: 0o600});
    writeFileSync(
      join(dir, 'pgbouncer.ini'),
      `[databases]
${compute['PGDATABASE']} = host=${compute['PGHOST']} port=${compute['PGPORT']} user=${user} password=${compute['PGPASSWORD']}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${join(dir, 'users.txt')}
pool_mode = session
default_pool_size = 50
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
`,
      {mode: 0o600},
    );
    // It refuses to run as root.
    if (runAs.uid !== undefined)
      for (const path of [dir, join(dir, 'users.txt'), join(dir, 'pgbouncer.ini')])
        chownSync(path, runAs.uid, runAs.gid!);
    const child = spawn(pgbouncerPath, ['-q', join(dir, 'pgbouncer.ini')], {
      stdio: ['ignore', 'inherit', 'inherit'],
      ...runAs,
    });
    const {PGCHANNELBINDING: _binding, ...rest} = compute;
    const bouncer = new PgBouncer(child, dir, {
      ...rest,
      PGHOST: '127.0.0.1',
      PGPORT: String(port),
      PGSSLMODE: 'disable',
    });
    for (let i = 0; !(await answers(port)); i++) {
      if (i > 200 || child.exitCode !== null) {
        await bouncer[Symbol.asyncDispose]();
        throw new Error('PgBouncer does not listen');
      }
      await sleep(25);
    }
    return bouncer;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode === null) {
      const ended = new Promise((resolve) => this.#child.once('close', resolve));
      this.#child.kill('SIGKILL');
      await ended;
    }
    rmSync(this.#dir, {recursive: true, force: true});
  }
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => resolve(true));
    socket.once('error', () => resolve(false));
    socket.on('connect', () => socket.destroy());
  });
}
