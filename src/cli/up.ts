/**
 * `pagoda up`: the supervisor of an installation on one machine.
 *
 *   lock → leftovers of a killed run ended → ports free? → set-up → keys → configurations
 *        → broker and control → safekeepers, pageserver and proxy → first project → banner
 *
 * Each role is a process of its own and is started again when it dies. Stopping goes the other way round: proxy and control
 * first (nobody new), then the computes, gracefully, then what they need.
 */
import {generateKeys} from '#wire/auth.ts';
import {shardCountMax} from '#wire/shard.ts';
import {type Clock, systemClock} from '#runtime/clock.ts';
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {createLog} from '#runtime/log.ts';
import {type Listener, listenSockets} from '#runtime/net.ts';
import {changeMode} from '#runtime/permissions.ts';
import {environment, exitProcess, onTerminate, ownPid, printLine, runProcess, runsAsRoot} from '#runtime/process.ts';
import {systemRandom} from '#runtime/random.ts';
import {sha256} from '#runtime/crypto.ts';
import {LocalComputeLauncher} from '#control/local-launcher.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import {type ObjectStoreConfig, openObjectStore} from '#objectstore/open.ts';
import type {Arguments} from '#cli/arguments.ts';
import {UsageError} from '#cli/arguments.ts';
import {banner, findProject, makeFirstProject, startProject} from '#cli/first-project.ts';
import {choosePorts, type Layout, packageRoot, pageserversMax, type Ports} from '#cli/layout.ts';
import {endLeftovers} from '#cli/leftovers.ts';
import {chooseObjectStore} from '#cli/object-store-choice.ts';
import {type InstallationChoices, localComputes, portsInUse, type RoleConfig, roleConfigs} from '#cli/role-configs.ts';
import {RoleProcess} from '#cli/role-process.ts';
import {setUp, setUpNames} from '#cli/setup.ts';

function readShards(text: string | undefined): {shards?: number} {
  if (text === undefined) return {};
  const shards = Number(text);
  if (!Number.isInteger(shards) || shards < 1 || shards > shardCountMax)
    throw new UsageError(`--shards must be a number from 1 to ${shardCountMax}, not ${JSON.stringify(text)}`);
  return {shards};
}

function readPageservers(text = '1'): number {
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1 || count > pageserversMax)
    throw new UsageError(`--pageservers must be a number from 1 to ${pageserversMax}, not ${JSON.stringify(text)}`);
  return count;
}

/** What `status` and `stop` read while the supervisor runs. */
export interface SupervisorFile {
  readonly pid: number;
  readonly startedAtMs: number;
  readonly ports: Ports;
  readonly listen: string;
  readonly withProxy: boolean;
}

export async function up(args: Arguments, layout: Layout): Promise<void> {
  const ports = choosePorts(args.options);
  const listen = args.options.get('--listen') ?? '127.0.0.1';
  const shards = readShards(args.options.get('--shards'));
  const pageservers = readPageservers(args.options.get('--pageservers'));
  const disk = systemDisk;
  disk.makeDirectory(layout.data);
  // Postgres runs as another user than root and must be able to pass through; what is private lies in closed folders.
  changeMode(layout.data, 0o711);
  const lock = await takeLock(layout);
  const report = (line: string): void => printLine(`pagoda: ${line}`);
  let supervisor: Supervisor | undefined;
  let stopping = false;
  const stop = (signal: string): void => {
    if (stopping) {
      report('still stopping; computes finish their transactions first');
      return;
    }
    stopping = true;
    report(`${signal}: stopping`);
    void (async () => {
      await supervisor?.stop();
      disk.remove(layout.supervisorFile);
      await lock.close();
      report('stopped');
      exitProcess(0);
    })();
  };
  onTerminate(stop);
  try {
    await endLeftovers(layout.data, systemClock, report);
    const installation = await setUp(disk, report);
    await setUpNames(disk, report);
    const withProxy = disk.exists(joinPath(packageRoot, 'src', 'proxy', 'server.ts'));
    const objectStore = chooseObjectStore(layout, environment['PAGODA_OBJECT_STORE'], disk, systemRandom);
    await checkObjectStore(objectStore);
    const choices: InstallationChoices = {
      layout,
      ports,
      installation,
      listen,
      withProxy,
      objectStore,
      pageservers,
      ...shards,
    };
    await checkPorts(choices);
    await checkReachable(layout);
    supervisor = new Supervisor(choices, systemClock, report);
    const notes: SupervisorFile = {pid: ownPid, startedAtMs: systemClock.nowMs(), ports, listen, withProxy};
    disk.writeFileAtomic(layout.supervisorFile, Buffer.from(JSON.stringify(notes)), 0o644);
    await supervisor.start(() => stopping);
    if (stopping) return;
    await makeFirstProject(layout, ports, disk, report);
    await startProject(layout, ports, report);
    if (!stopping) printLine(banner(layout, ports, await findProject(layout, ports)));
  } catch (error) {
    if (stopping) return;
    stopping = true;
    await supervisor?.stop();
    disk.remove(layout.supervisorFile);
    await lock.close();
    throw error;
  }
}

class Supervisor {
  readonly #choices: InstallationChoices;
  readonly #clock: Clock;
  readonly #report: (line: string) => void;
  readonly #processes: RoleProcess[] = [];

  constructor(choices: InstallationChoices, clock: Clock, report: (line: string) => void) {
    this.#choices = choices;
    this.#clock = clock;
    this.#report = report;
  }

  async start(isStopping: () => boolean): Promise<void> {
    const {layout} = this.#choices;
    const disk = systemDisk;
    for (const folder of [layout.config, layout.logs, layout.keys, layout.computes, layout.cache, layout.objects])
      disk.makeDirectory(folder);
    changeMode(layout.computes, 0o711);
    changeMode(layout.cache, 0o711);
    await generateKeys(layout.keys);
    if (!disk.exists(layout.installKeyFile))
      disk.writeFileAtomic(layout.installKeyFile, Buffer.from(systemRandom.bytes(32).toString('hex')), 0o600);
    const roles = roleConfigs(this.#choices);
    for (const {name, config} of roles)
      disk.writeFileAtomic(layout.configFile(name), Buffer.from(`${JSON.stringify(config, undefined, 2)}\n`), 0o600);
    for (const group of inPhases(roles)) {
      if (isStopping()) return;
      const started = group.map(({name, role}) => {
        const process = new RoleProcess({name, role, layout, clock: this.#clock, disk, report: this.#report});
        this.#processes.push(process);
        return process.start();
      });
      const results = await Promise.allSettled(started);
      const failed = results.find((r) => r.status === 'rejected');
      if (failed && !isStopping()) throw failed.reason;
    }
  }

  async stop(): Promise<void> {
    const take = (...prefixes: readonly string[]): Promise<unknown> =>
      Promise.all(
        this.#processes.filter((p) => prefixes.some((prefix) => p.name.startsWith(prefix))).map((p) => p.stop()),
      );
    await take('proxy', 'control');
    const launcher = new LocalComputeLauncher({
      ...localComputes(this.#choices),
      clock: this.#clock,
      random: systemRandom,
      disk: systemDisk,
      log: createLog({component: 'stop', level: 'error'}),
    });
    await launcher.stopAll().catch((error: unknown) => this.#report(`computes: ${(error as Error).message}`));
    await take('pageserver');
    await take('safekeeper');
    await take('broker');
  }
}

/** Roles that need not wait for one another start together. */
function inPhases(roles: readonly RoleConfig[]): RoleConfig[][] {
  const phases: RoleConfig[][] = [];
  for (const role of roles) (phases[role.phase] ??= []).push(role);
  return phases.filter((phase) => phase !== undefined);
}

/**
 * One supervisor per data directory. The lock is an abstract unix socket named after the directory: the kernel gives it to one
 * process and takes it back when that one dies, however it dies.
 */
async function takeLock(layout: Layout): Promise<Listener> {
  try {
    return await listenSockets({path: lockAddress(layout)}, (socket) => socket.destroy());
  } catch (error) {
    const code = ((error as Error).cause as {code?: string} | undefined)?.code;
    if (code !== 'EADDRINUSE') throw error;
    const pid = readSupervisor(layout)?.pid;
    throw new UsageError(
      `another \`pagoda up\`${pid === undefined ? '' : ` (pid ${pid})`} runs on ${layout.data}. Stop it with \`pagoda stop\`, or choose another directory with --data DIR`,
    );
  }
}

export function lockAddress(layout: Layout): string {
  return `\0pagoda-${sha256(Buffer.from(layout.data)).toString('hex').slice(0, 32)}`;
}

/** The notes of a running supervisor, or of one that was killed. */
export function readSupervisor(layout: Layout): SupervisorFile | undefined {
  if (!systemDisk.exists(layout.supervisorFile)) return undefined;
  try {
    return JSON.parse(systemDisk.readFile(layout.supervisorFile).toString('utf8')) as SupervisorFile;
  } catch {
    return undefined;
  }
}

async function checkPorts(choices: InstallationChoices): Promise<void> {
  for (const {host, port, what, flag} of portsInUse(choices)) {
    try {
      await (await listenSockets({host, port}, (socket) => socket.destroy())).close();
    } catch (error) {
      const code = ((error as Error).cause as {code?: string} | undefined)?.code;
      if (code === 'EADDRINUSE')
        throw new UsageError(
          `port ${port} (${what}) is in use by another program. Choose another with ${flag} N, for example ${flag} ${port + 1000}`,
        );
      if (code === 'EACCES')
        throw new UsageError(
          `this user may not listen on port ${port} (${what}). Choose one above 1024 with ${flag} N`,
        );
      throw error;
    }
  }
}

/** Wrong credentials, no bucket, another installation's store: said here, where somebody reads it. */
async function checkObjectStore(config: ObjectStoreConfig): Promise<void> {
  try {
    await openObjectStore(config, {
      clock: systemClock,
      random: systemRandom,
      disk: systemDisk,
      log: createLog({component: 'up'}),
    }).list('none/');
  } catch (error) {
    throw error instanceof ObjectStoreError ? new UsageError(error.message) : error;
  }
}

/** Postgres refuses to be root; the user it runs as must reach its data directory. */
async function checkReachable(layout: Layout): Promise<void> {
  if (!runsAsRoot) return;
  const {code} = await runProcess({command: '/usr/bin/test', args: ['-x', layout.data], user: 'postgres'});
  if (code !== 0)
    throw new UsageError(
      `Postgres runs as user postgres, who cannot reach ${layout.data} because a directory above it is closed. Choose another place with --data DIR (for example /var/lib/pagoda)`,
    );
}
