/** Other programs, and this one's environment. */
import {spawn, spawnSync} from 'node:child_process';
import {createInterface} from 'node:readline';

export const environment: Readonly<Record<string, string | undefined>> = process.env;
export const executablePath = process.execPath;
export const ownPid = process.pid;
export const runsAsRoot = process.getuid?.() === 0;

export interface SpawnOptions {
  readonly command: string;
  readonly args: readonly string[];
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** System user to become when this process is root; otherwise it stays what it is. */
  readonly user?: string;
  readonly onStdoutLine?: (line: string) => void;
  readonly onStderrLine?: (line: string) => void;
  /** A group of its own, so that a Ctrl-C in the terminal reaches only us and we stop it in order. */
  readonly detached?: boolean;
}

export interface ChildProcessHandle {
  readonly pid: number;
  readonly exited: Promise<{code: number | null; signal: string | null}>;
  kill(signal: 'SIGTERM' | 'SIGINT' | 'SIGQUIT' | 'SIGKILL' | 'SIGHUP' | 'SIGSTOP' | 'SIGCONT'): boolean;
  writeStdin(text: string): void;
}

const userIds = new Map<string, {uid: number; gid: number}>();

/** uid and gid of a system user. Throws when there is none. */
export function lookUpUser(name: string): {uid: number; gid: number} {
  let ids = userIds.get(name);
  if (!ids) {
    const out = (flag: string): number => {
      const r = spawnSync('id', [flag, name], {encoding: 'utf8'});
      if (r.status !== 0) throw new Error(`there is no system user ${JSON.stringify(name)}: ${r.stderr.trim()}`);
      return Number(r.stdout.trim());
    };
    ids = {uid: out('-u'), gid: out('-g')};
    userIds.set(name, ids);
  }
  return ids;
}

/** Rejects when the program cannot be started; resolves as soon as it runs. */
export function spawnProcess(options: SpawnOptions): Promise<ChildProcessHandle> {
  const ids = options.user !== undefined && runsAsRoot ? lookUpUser(options.user) : undefined;
  return new Promise((resolve, reject) => {
    const child = spawn(options.command, [...options.args], {
      ...(options.cwd === undefined ? {} : {cwd: options.cwd}),
      ...(ids === undefined ? {} : {uid: ids.uid, gid: ids.gid}),
      env: {...process.env, ...options.env},
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: options.detached ?? false,
    });
    const exited = new Promise<{code: number | null; signal: string | null}>((done) => {
      child.once('close', (code, signal) => done({code, signal}));
    });
    child.stdin.on('error', () => {}); // the child went away: `exited` tells
    createInterface({input: child.stdout}).on('line', (line) => options.onStdoutLine?.(line));
    createInterface({input: child.stderr}).on('line', (line) => options.onStderrLine?.(line));
    child.once('error', (error) =>
      reject(new Error(`cannot start ${options.command}: ${error.message}`, {cause: error})),
    );
    child.once('spawn', () =>
      resolve({
        pid: child.pid!,
        exited,
        kill: (signal) => child.kill(signal),
        writeStdin: (text) => void child.stdin.write(text),
      }),
    );
  });
}

/** Runs a short program to its end. */
export async function runProcess(
  options: SpawnOptions,
): Promise<{code: number | null; stdout: string; stderr: string}> {
  const stdout: string[] = [];
  const stderr: string[] = [];
  const child = await spawnProcess({
    ...options,
    onStdoutLine: (line) => stdout.push(line),
    onStderrLine: (line) => stderr.push(line),
  });
  const {code} = await child.exited;
  return {code, stdout: stdout.join('\n'), stderr: stderr.join('\n')};
}

/** Lines of this process's own standard input. */
export function onStdinLine(fn: (line: string) => void, onEnd: () => void = () => {}): void {
  createInterface({input: process.stdin}).on('line', fn).on('close', onEnd);
}

// A reader that has seen enough (`… | head`) is no fault.
process.stdout.on('error', () => {});

export function printLine(text: string): void {
  process.stdout.write(text + '\n');
}

export function onTerminate(fn: (signal: string) => void): void {
  process.on('SIGTERM', () => fn('SIGTERM'));
  process.on('SIGINT', () => fn('SIGINT'));
}

export function exitProcess(code: number): never {
  process.exit(code);
}

/** True when the process exists (also when it belongs to another user). */
export function processExists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as {code?: string}).code === 'EPERM';
  }
}

/** Signals a process by pid; false when it is gone. */
export function signalProcess(pid: number, signal: 'SIGTERM' | 'SIGINT' | 'SIGQUIT' | 'SIGKILL' | 'SIGHUP'): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}
