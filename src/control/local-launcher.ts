/**
 * Computes as processes of this machine: `pagoda compute --config FILE`, one directory each.
 *
 *   <computes>/<endpoint>/config.json   for the agent; holds its token: mode 0600
 *   <computes>/<endpoint>/run.json      pid, ports and HTTP token of the running agent
 *   <computes>/<endpoint>/port          where its Postgres listens, at every start (compute-ports.ts)
 *   <computes>/<endpoint>/mark          how the agent is named in the process table when it began as a spare (spare-agents.ts)
 *   <computes>/<endpoint>/data/         the agent's; a cache, thrown away at every start
 *
 * The directory goes when the endpoint is gone (compute-leftovers.ts), or at once when no client ever knew of the compute.
 *
 * A compute outlives the control plane that started it: a restarted one finds it again through run.json. A pid is
 * believed only when the process's command line names the endpoint's own configuration file, or the mark.
 */
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Disk} from '#runtime/disk.ts';
import {joinPath, replaceFile} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import type {Log} from '#runtime/log.ts';
import {changeMode, changeOwner} from '#runtime/permissions.ts';
import {listProcesses, processArguments} from '#runtime/process-table.ts';
import {type ChildProcessHandle, signalProcess, spawnProcess} from '#runtime/process.ts';
import type {Random} from '#runtime/random.ts';
import {openLogFile, removeOldLogs} from '#control/compute-logs.ts';
import {portOfCompute} from '#control/compute-ports.ts';
import {SpareAgents} from '#control/spare-agents.ts';
import type {ComputeSpec, ImportedCatalog, SchemaSource} from '#wire/compute-spec.ts';
import type {ComputeLauncher, ComputeReport, RunningCompute} from '#control/launcher.ts';

export interface LocalLauncherOptions {
  readonly computesDir: string;
  readonly logsDir: string;
  /** `pagoda` itself: command and the arguments before the role. */
  readonly pagodaCommand: {readonly command: string; readonly args: readonly string[]};
  /** System user of Postgres. */
  readonly systemUser: string;
  /** PostgreSQL's binaries. */
  readonly binDir: string;
  readonly extensionLibrary: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly disk: Disk;
  readonly log: Log;
}

interface RunFile {
  readonly pid: number;
  readonly pgPort: number;
  readonly httpPort: number;
  readonly httpToken: string;
}

const startMsMax = 120_000;
/** Each object of a directory that is imported may get another owner, read by read from a pageserver that has just taken it in. */
const adoptMsMax = 1_800_000;
/** Tens of thousands of tables take minutes. */
const copySchemaMsMax = 1_800_000;
const gracefulStopMsMax = 120_000;
const watchEveryMs = 500;

export class LocalComputeLauncher implements ComputeLauncher {
  onExit: (endpointId: string) => void = () => {};
  readonly #options: LocalLauncherOptions;
  readonly #watches = new Map<string, Timer>();
  readonly #stopping = new Set<string>();
  /** Endpoint id → the end of what an agent that died has left behind. */
  readonly #cleaning = new Map<string, Promise<void>>();
  readonly #spares: SpareAgents;

  constructor(options: LocalLauncherOptions) {
    this.#options = options;
    this.#spares = new SpareAgents(options);
  }

  /** From now on an agent is kept ready for the next start. */
  keepSpare(): void {
    this.#spares.keep();
  }

  async start(spec: ComputeSpec): Promise<RunningCompute> {
    const running = await this.find(spec.endpointId);
    if (running) return running;
    const {disk} = this.#options;
    const endpointId = spec.endpointId;
    this.#watches.get(endpointId)?.cancel();
    await this.#cleaning.get(endpointId);
    await this.#killLeftovers(endpointId);
    const directory = this.#directory(endpointId);
    disk.makeDirectory(directory);
    changeMode(this.#options.computesDir, 0o711);
    changeMode(directory, 0o711);
    const dataDir = joinPath(directory, 'data');
    disk.makeDirectory(dataDir);
    changeOwner(dataDir, this.#options.systemUser);
    const pgPort = await portOfCompute(disk, this.#options.computesDir, endpointId);
    const httpToken = this.#options.random.bytes(24).toString('base64url');
    replaceFile(
      disk,
      this.#configFile(endpointId),
      Buffer.from(JSON.stringify(this.#agentConfig(spec, dataDir, httpToken, pgPort), undefined, 2)),
    );
    const child = await this.#spawn(endpointId, spec.adopt === undefined ? startMsMax : adoptMsMax);
    replaceFile(
      disk,
      this.#runFile(endpointId),
      Buffer.from(JSON.stringify({pid: child.pid, httpToken, ...child.ports})),
    );
    this.#watch(endpointId, child.pid);
    return {host: '127.0.0.1', port: child.ports.pgPort};
  }

  async find(endpointId: string): Promise<RunningCompute | undefined> {
    const run = this.#running(endpointId);
    if (!run) {
      // It died while nobody watched (the control plane itself was away).
      if (this.#options.disk.exists(this.#runFile(endpointId)) && !this.#stopping.has(endpointId)) {
        this.#options.disk.remove(this.#runFile(endpointId));
        if (!this.#cleaning.has(endpointId)) this.#onDeath(endpointId);
      }
      return undefined;
    }
    if (!this.#watches.has(endpointId)) this.#watch(endpointId, run.pid);
    return {host: '127.0.0.1', port: run.pgPort};
  }

  async configure(spec: ComputeSpec): Promise<void> {
    await this.#ask(spec.endpointId, this.#mustRun(spec.endpointId), 'POST', '/configure', {body: spec});
  }

  async report(endpointId: string): Promise<ComputeReport | undefined> {
    const run = this.#running(endpointId);
    if (!run) return undefined;
    const report = (await this.#ask(endpointId, run, 'GET', '/status', {timeoutMs: 5000})) as Partial<ComputeReport>;
    if (typeof report.lastActiveMs !== 'number')
      throw new Error(`the compute of endpoint ${endpointId} does not say when it was last active`);
    return {lastActiveMs: report.lastActiveMs, ...(report.replica === undefined ? {} : {replica: report.replica})};
  }

  async catalog(endpointId: string): Promise<ImportedCatalog> {
    const options = {timeoutMs: startMsMax};
    return (await this.#ask(endpointId, this.#mustRun(endpointId), 'GET', '/catalog', options)) as ImportedCatalog;
  }

  async copySchema(endpointId: string, source: SchemaSource): Promise<void> {
    const run = this.#mustRun(endpointId);
    await this.#ask(endpointId, run, 'POST', '/copy_schema', {body: source, timeoutMs: copySchemaMsMax});
  }

  async stop(endpointId: string, options: {readonly idleSinceMs?: number} = {}): Promise<boolean> {
    // The watch goes on: a compute that is not stopped after all must still be seen to end.
    this.#stopping.add(endpointId);
    try {
      const run = this.#running(endpointId);
      if (run && !(await this.#stopAgent(endpointId, run, options.idleSinceMs))) return false;
      await this.#killLeftovers(endpointId);
      this.#options.disk.remove(this.#runFile(endpointId));
      this.#watches.get(endpointId)?.cancel();
      this.#watches.delete(endpointId);
    } finally {
      this.#stopping.delete(endpointId);
    }
    return true;
  }

  kept(): string[] {
    const {disk, computesDir} = this.#options;
    return disk.exists(computesDir) ? disk.list(computesDir) : [];
  }

  async discard(endpointId: string): Promise<void> {
    await this.stop(endpointId);
    this.#options.disk.remove(this.#directory(endpointId));
  }

  removeOldLogs(): void {
    removeOldLogs(this.#options.disk, this.#options, this.#options.clock.nowMs());
  }

  /** Stops every compute that runs below the directory; for the end of the whole installation. */
  async stopAll(): Promise<void> {
    await Promise.all(this.kept().map((endpointId) => this.stop(endpointId)));
  }

  close(): void {
    for (const timer of this.#watches.values()) timer.cancel();
    this.#watches.clear();
    this.#spares.close();
  }

  #mustRun(endpointId: string): RunFile {
    const run = this.#running(endpointId);
    if (!run) throw new Error(`the compute of endpoint ${endpointId} does not run`);
    return run;
  }

  /** One call of the agent's HTTP. Throws with what it said when it did not do it. */
  async #ask(
    endpointId: string,
    run: RunFile,
    method: string,
    path: string,
    options: {readonly body?: unknown; readonly timeoutMs?: number} = {},
  ): Promise<unknown> {
    const {status, json} = await requestJson({
      method,
      url: `http://127.0.0.1:${run.httpPort}${path}`,
      token: run.httpToken,
      ...(options.body === undefined ? {} : {body: options.body}),
      timeoutMs: options.timeoutMs ?? 60_000,
    });
    if (status >= 300)
      throw new Error(`the compute of endpoint ${endpointId} refused ${method} ${path}: ${messageOf(json, status)}`);
    return json ?? {};
  }

  /** False: it is in use after all, and goes on. */
  async #stopAgent(endpointId: string, run: RunFile, idleSinceMs: number | undefined): Promise<boolean> {
    const {clock, log} = this.#options;
    try {
      const {status} = await requestJson({
        method: 'POST',
        url: `http://127.0.0.1:${run.httpPort}/stop`,
        token: run.httpToken,
        ...(idleSinceMs === undefined ? {} : {body: {idleSinceMs}}),
        timeoutMs: gracefulStopMsMax,
      });
      if (status === 409 && idleSinceMs !== undefined) return false;
    } catch (error) {
      log.warn('the compute did not answer to stop; ending its processes', {endpoint: endpointId, error});
      signalProcess(run.pid, 'SIGTERM');
    }
    const deadline = clock.monotonicMs() + gracefulStopMsMax;
    while (this.#isAgent(endpointId, run.pid)) {
      if (clock.monotonicMs() > deadline) {
        log.warn('the compute did not stop in time', {endpoint: endpointId});
        return true;
      }
      await clock.sleep(20);
    }
    return true;
  }

  /** Processes of a compute that nobody watches: agent, proposer and Postgres of an earlier life. */
  async #killLeftovers(endpointId: string): Promise<void> {
    const {clock, log} = this.#options;
    const directory = this.#directory(endpointId);
    const deadline = clock.monotonicMs() + 20_000;
    for (let round = 0; ; round++) {
      const left = findComputeProcesses(directory, this.#mark(endpointId));
      if (left.length === 0) return;
      for (const {pid, isPostgres} of left) {
        // SIGQUIT lets a postmaster take its children along; its directory is a cache, so nothing is lost.
        if (round === 0) log.warn('ending a left-over process of a compute', {endpoint: endpointId, pid});
        signalProcess(pid, isPostgres && round < 100 ? 'SIGQUIT' : 'SIGKILL');
      }
      if (clock.monotonicMs() > deadline)
        throw new Error(`processes ${left.map((p) => p.pid).join(', ')} of endpoint ${endpointId} cannot be ended`);
      await clock.sleep(50);
    }
  }

  #agentConfig(spec: ComputeSpec, dataDir: string, httpToken: string, pgPort: number): Record<string, unknown> {
    return {
      spec,
      dataDir,
      systemUser: this.#options.systemUser,
      binDir: this.#options.binDir,
      extensionLibrary: this.#options.extensionLibrary,
      pgPort,
      httpPort: 0,
      httpToken,
      proposerCommand: {
        command: this.#options.pagodaCommand.command,
        args: [...this.#options.pagodaCommand.args, 'proposer'],
      },
    };
  }

  async #spawn(
    endpointId: string,
    readyMsMax: number,
  ): Promise<{pid: number; ports: {pgPort: number; httpPort: number}}> {
    const {disk, clock} = this.#options;
    const logFile = openLogFile(disk, this.#options.logsDir, endpointId);
    const spare = this.#spares.take();
    // Written before the agent has its task: killed at any moment, its processes are found again.
    if (spare) replaceFile(disk, this.#markFile(endpointId), Buffer.from(spare.mark));
    else disk.remove(this.#markFile(endpointId));
    const ready = Promise.withResolvers<{pgPort: number; httpPort: number}>();
    const onLine = (line: string): void => {
      const ports = parseReady(line);
      if (ports) ready.resolve(ports);
    };
    const child = spare?.child ?? (await this.#spawnAgent(endpointId, logFile, onLine));
    spare?.assign({config: this.#configFile(endpointId), logFile}, onLine);
    const timer = clock.setTimer(readyMsMax, () => {
      ready.reject(
        new Error(`the compute of endpoint ${endpointId} was not ready within ${readyMsMax / 1000} s; see ${logFile}`),
      );
    });
    void child.exited.then(({code, signal}) => {
      ready.reject(
        new Error(
          `the compute of endpoint ${endpointId} ended while starting (${signal ?? `code ${code}`}): ${lastWords(disk, logFile)}; see ${logFile}`,
        ),
      );
    });
    try {
      return {pid: child.pid, ports: await ready.promise};
    } catch (error) {
      child.kill('SIGKILL');
      await this.#killLeftovers(endpointId);
      throw error;
    } finally {
      timer.cancel();
      this.#spares.replenish();
    }
  }

  #spawnAgent(endpointId: string, logFile: string, onStdoutLine: (line: string) => void): Promise<ChildProcessHandle> {
    const {command, args} = this.#options.pagodaCommand;
    return spawnProcess({
      // The log is a file and not a pipe to us: the compute goes on when the control plane ends.
      command: '/bin/sh',
      args: [
        '-c',
        'exec "$0" "$@" 2>>"$PAGODA_LOG_FILE"',
        command,
        ...args,
        'compute',
        '--config',
        this.#configFile(endpointId),
      ],
      env: {PAGODA_LOG_FILE: logFile},
      detached: true,
      onStdoutLine,
    });
  }

  #watch(endpointId: string, pid: number): void {
    const check = (): void => {
      if (this.#isAgent(endpointId, pid)) {
        this.#watches.set(endpointId, this.#options.clock.setTimer(watchEveryMs, check));
        return;
      }
      this.#watches.delete(endpointId);
      if (!this.#stopping.has(endpointId)) this.#onDeath(endpointId);
    };
    this.#watches.get(endpointId)?.cancel();
    this.#watches.set(endpointId, this.#options.clock.setTimer(watchEveryMs, check));
  }

  /** The agent died. Its Postgres would go on to let clients in, and no commit would ever return: it must go at once. */
  #onDeath(endpointId: string): void {
    const cleaning = this.#killLeftovers(endpointId)
      .catch((error: unknown) =>
        this.#options.log.error('left-overs of a compute cannot be ended', {endpoint: endpointId, error}),
      )
      .finally(() => this.#cleaning.delete(endpointId));
    this.#cleaning.set(endpointId, cleaning);
    this.onExit(endpointId);
  }

  #running(endpointId: string): RunFile | undefined {
    const {disk} = this.#options;
    const path = this.#runFile(endpointId);
    if (!disk.exists(path)) return undefined;
    let run: RunFile;
    try {
      run = JSON.parse(disk.readFile(path).toString('utf8')) as RunFile;
    } catch {
      return undefined;
    }
    return this.#isAgent(endpointId, run.pid) ? run : undefined;
  }

  #isAgent(endpointId: string, pid: number): boolean {
    const args = processArguments(pid);
    const mark = this.#mark(endpointId);
    return (
      args?.includes(this.#configFile(endpointId)) === true || (mark !== undefined && args?.includes(mark) === true)
    );
  }

  #mark(endpointId: string): string | undefined {
    const {disk} = this.#options;
    const path = this.#markFile(endpointId);
    return disk.exists(path) ? disk.readFile(path).toString('utf8') : undefined;
  }
  #markFile(endpointId: string): string {
    return joinPath(this.#directory(endpointId), 'mark');
  }
  #directory(endpointId: string): string {
    return joinPath(this.#options.computesDir, endpointId);
  }
  #configFile(endpointId: string): string {
    return joinPath(this.#directory(endpointId), 'config.json');
  }
  #runFile(endpointId: string): string {
    return joinPath(this.#directory(endpointId), 'run.json');
  }
}

/** Processes whose arguments name a path inside the directory, or the mark: agent, proposer, postmaster (not its children: they follow it). */
export function findComputeProcesses(
  directory: string,
  mark: string | undefined,
): {pid: number; isPostgres: boolean}[] {
  const inside = `${directory}/`;
  const isOurs = (argument: string): boolean =>
    argument.startsWith(inside) || argument === directory || argument === mark;
  return listProcesses()
    .filter(({args}) => args.some(isOurs))
    .map(({pid, args}) => ({pid, isPostgres: args[0]?.endsWith('/postgres') ?? false}));
}

function parseReady(line: string): {pgPort: number; httpPort: number} | undefined {
  try {
    const value = JSON.parse(line) as {ready?: unknown; pgPort?: unknown; httpPort?: unknown};
    return value.ready === true && typeof value.pgPort === 'number' && typeof value.httpPort === 'number'
      ? {pgPort: value.pgPort, httpPort: value.httpPort}
      : undefined;
  } catch {
    return undefined;
  }
}

function lastWords(disk: Disk, path: string): string {
  const size = disk.stat(path)?.size ?? 0;
  if (size === 0) return 'it wrote no log';
  const file = disk.open(path, 'read');
  try {
    const tail = Buffer.alloc(Math.min(size, 16_384));
    file.read(tail, size - tail.length);
    const line = tail.toString('utf8').trimEnd().split('\n').at(-1) ?? '';
    // How a role that fails ends its log (cli/roles.ts).
    const reason = / ERROR \w+: stopped by an error error=(.*)$/.exec(line)?.[1];
    if (reason === undefined) return line;
    return reason.startsWith('"') ? (JSON.parse(reason) as string) : reason;
  } finally {
    file.close();
  }
}

function messageOf(json: unknown, status: number): string {
  const message = typeof json === 'object' && json !== null && 'message' in json ? json.message : undefined;
  return typeof message === 'string' ? message : `status ${status}`;
}
