/** The roles of the one program, and how `pagoda <role> --config FILE` runs one. */
import {createLog, logToFile} from '#runtime/log.ts';
import {exitProcess, onTerminate, printLine, readStdinLine} from '#runtime/process.ts';
import {readSecretFile} from '#runtime/secret-file.ts';
import {UsageError} from '#cli/arguments.ts';
import {pagodaCommand} from '#cli/role-process.ts';
import {type SpareTask, spareReadyLine} from '#wire/spare.ts';

interface RoleEntry {
  /** Imported when the role runs: a process loads only what it is. */
  readonly module: string;
  readonly run: string;
  /** What a spare process of this role can do before it knows its task; its answer is given to `run`. */
  readonly prepare?: string;
}

/** Ports that a role may report; they go into the ready line. */
const portNames = ['port', 'httpPort', 'pgPort', 'apiPort', 'internalPort'] as const;

/** What every `runX` answers. */
type RunningRole = {
  stop(): Promise<void>;
  /** Resolves after a stop; rejects when the role ended by itself (a compute that is fenced, or failed for good). */
  readonly finished?: Promise<void>;
} & {readonly [name in (typeof portNames)[number]]?: number};

const roles: Readonly<Record<string, RoleEntry>> = {
  broker: {module: '#broker/server.ts', run: 'runBroker'},
  safekeeper: {module: '#safekeeper/server.ts', run: 'runSafekeeper'},
  pageserver: {module: '#pageserver/server.ts', run: 'runPageserver'},
  control: {module: '#control/server.ts', run: 'runControl'},
  proxy: {module: '#proxy/server.ts', run: 'runProxy'},
  compute: {module: '#compute/agent.ts', run: 'runCompute', prepare: 'prepareCompute'},
  proposer: {module: '#proposer/run.ts', run: 'runProposer'},
};

export const roleNames: readonly string[] = Object.keys(roles);

/**
 * Runs one role until it is told to stop. The configuration is private: it may hold tokens.
 *
 * A spare process (`--spare`) is started before there is anything to do: it loads what it will need, says so, and waits on
 * standard input for its task. Its `--config` names no file; it marks the process, so that left-overs can be told from
 * strangers' processes.
 */
export async function runRole(name: string, configFile: string | undefined, isSpare = false): Promise<void> {
  const role = roles[name];
  if (role === undefined) throw new UsageError(`unknown role ${name}`);
  if (configFile === undefined) throw new UsageError(`pagoda ${name} needs --config FILE`);
  const module = (await import(role.module)) as Record<string, unknown>;
  const run = module[role.run];
  if (typeof run !== 'function') throw new Error(`${role.module} does not export ${role.run}`);
  let path = configFile;
  let prepared: Prepared | undefined;
  if (isSpare) {
    prepared = await prepare(module, role, configFile);
    printLine(spareReadyLine);
    const line = await readStdinLine();
    if (line === undefined) {
      // Who would have given it a task is gone.
      prepared?.discard();
      exitProcess(0);
    }
    const task = JSON.parse(line) as SpareTask;
    path = task.config;
    if (task.logFile !== undefined) logToFile(task.logFile);
  }
  const config = parseConfig(name, path);
  const log = createLog({component: name});
  let stopping = false;
  let running: RunningRole | undefined;
  const stop = async (signal: string): Promise<void> => {
    if (stopping) return;
    stopping = true;
    log.info(`${signal}: stopping`);
    await running?.stop();
    exitProcess(0);
  };
  onTerminate((signal) => void stop(signal).catch((error: unknown) => fail(name, error)));
  try {
    running = await (run as (config: unknown, prepared?: Prepared) => Promise<RunningRole>)(config, prepared);
  } catch (error) {
    // A spare one's standard error is not where its log is.
    fail(name, error);
  }
  if (stopping) {
    await running.stop();
    exitProcess(0);
  }
  const ready: Record<string, unknown> = {ready: true};
  for (const port of portNames) if (typeof running[port] === 'number') ready[port] = running[port];
  printLine(JSON.stringify(ready));
  if (running.finished === undefined) return;
  await running.finished.catch((error: unknown) => fail(name, error));
  if (stopping) return;
  // Asked to stop by another way than a signal (a compute: over HTTP); the answer to that goes out first.
  await running.stop();
  exitProcess(0);
}

interface Prepared {
  discard(): void;
}

async function prepare(
  module: Readonly<Record<string, unknown>>,
  role: RoleEntry,
  mark: string,
): Promise<Prepared | undefined> {
  if (role.prepare === undefined) return undefined;
  const make = module[role.prepare];
  if (typeof make !== 'function') throw new Error(`${role.module} does not export ${role.prepare}`);
  const proposerCommand = {command: pagodaCommand.command, args: [...pagodaCommand.args, 'proposer']};
  return (make as (options: unknown) => Promise<Prepared>)({proposerCommand, mark});
}

/** The last line of the log is for whoever started this, and says no more than why. */
function fail(name: string, error: unknown): never {
  const log = createLog({component: name});
  if (error instanceof Error) log.error('where it was stopped', {stack: error.stack});
  log.error('stopped by an error', {error});
  exitProcess(1);
}

function parseConfig(name: string, path: string): unknown {
  const text = readSecretFile(path);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new UsageError(`the configuration of ${name} (${path}) is not JSON: ${(error as Error).message}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new UsageError(`the configuration of ${name} (${path}) must be an object`);
  return value;
}
