/** Other programs, and this one's environment. */
import {spawn, spawnSync} from 'node:child_process';
import {readFileSync} from 'node:fs';
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
  let ids = userIds.get(name) ?? userOfPasswdFile(name);
  if (ids) userIds.set(name, ids);
  else {
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

/** Users that are not in the file (a directory service) are left to `id`, which costs two processes. */
function userOfPasswdFile(name: string): {uid: number; gid: number} | undefined {
  let text: string;
  try {
    text = readFileSync('/etc/passwd', 'utf8');
  } catch {
    return undefined;
  }
  const fields = text
    .split('\n')
    .find((line) => line.startsWith(`${name}:`))
    ?.split(':');
  const [uid, gid] = [Number(fields?.[2]), Number(fields?.[3])];
  return fields !== undefined && Number.isInteger(uid) && Number.isInteger(gid) ? {uid, gid} : undefined;
}

/** What a process said last is still read when it is gone, for as long as this. */
const outputMsMax = 300;

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
      // Its own children may hold its output open long after it is gone: their words are not waited for.
      child.once('exit', (code, signal) => setTimeout(() => done({code, signal}), outputMsMax).unref());
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

/** Runs a program at this terminal: its input and output are ours. Its exit code; 128 and more after a signal. */
export function runAttached(
  command: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, [...args], {stdio: 'inherit', env: {...process.env, ...env}});
    const ignore = (): void => {}; // Ctrl-C is for the program; it ends when it wants to
    process.on('SIGINT', ignore);
    child.once('error', (error) => reject(new Error(`cannot start ${command}: ${error.message}`, {cause: error})));
    child.once('exit', (code) => {
      process.off('SIGINT', ignore);
      resolve(code ?? 128);
    });
  });
}

/** Lines of this process's own standard input that nobody has taken yet. */
const stdinLines: string[] = [];
let stdinEnded = false;
let stdinOpen = false;
let stdinWaiter: {line: (line: string) => void; end: () => void} | undefined;

/** One reader for the life of the process: who reads the first line must not swallow the ones behind it. */
function openStdin(waiter: {line: (line: string) => void; end: () => void}): void {
  stdinWaiter = waiter;
  if (!stdinOpen) {
    stdinOpen = true;
    createInterface({input: process.stdin})
      .on('line', (line) => (stdinWaiter ? stdinWaiter.line(line) : stdinLines.push(line)))
      .on('close', () => {
        stdinEnded = true;
        stdinWaiter?.end();
      });
  }
}

/** Lines of this process's own standard input. */
export function onStdinLine(fn: (line: string) => void, onEnd: () => void = () => {}): void {
  openStdin({line: fn, end: onEnd});
  for (const line of stdinLines.splice(0)) fn(line);
  if (stdinEnded) onEnd();
}

/** The next line of standard input; undefined at its end. What follows waits for the next call, or for `onStdinLine`. */
export function readStdinLine(): Promise<string | undefined> {
  const waiting = stdinLines.shift();
  if (waiting !== undefined) return Promise.resolve(waiting);
  if (stdinEnded) return Promise.resolve(undefined);
  return new Promise((resolve) => {
    openStdin({
      line: (line) => {
        stdinWaiter = undefined;
        resolve(line);
      },
      end: () => resolve(undefined),
    });
  });
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
