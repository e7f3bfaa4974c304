/** One role as a supervised process: started, awaited, started again with growing pauses when it dies, stopped. */
import type {Clock} from '#runtime/clock.ts';
import type {Disk} from '#runtime/disk.ts';
import {type ChildProcessHandle, executablePath, spawnProcess} from '#runtime/process.ts';
import {UsageError} from '#cli/arguments.ts';
import {compileCache, mainFile} from '#cli/layout.ts';
import type {Layout} from '#cli/layout.ts';

const readyMsMax = 60_000;
const pauseMsMin = 250;
const pauseMsMax = 10_000;
/** A role that ran this long died of something new. */
const steadyMs = 60_000;
const stopMsMax = 30_000;
const logBytesMax = 16 * 1024 * 1024;

/** Command and arguments that run this program again. */
export const pagodaCommand = {
  command: executablePath,
  args: ['--disable-warning=ExperimentalWarning', mainFile],
} as const;

export interface RoleProcessOptions {
  /** Unique; names log, pid file and configuration (`safekeeper-2`). */
  readonly name: string;
  readonly role: string;
  readonly layout: Layout;
  readonly clock: Clock;
  readonly disk: Disk;
  readonly report: (line: string) => void;
}

export class RoleProcess {
  readonly name: string;
  readonly #options: RoleProcessOptions;
  #child: ChildProcessHandle | undefined;
  #stopping = false;
  #pauseMs = pauseMsMin;

  constructor(options: RoleProcessOptions) {
    this.name = options.name;
    this.#options = options;
  }

  /** Resolves when the role serves; rejects with its last log lines when it does not get there. */
  async start(): Promise<void> {
    const {clock, layout} = this.#options;
    const startedAt = clock.monotonicMs();
    const child = await this.#spawn();
    const timer = clock.setTimer(readyMsMax, () => void child.handle.kill('SIGKILL'));
    try {
      await Promise.race([
        child.ready,
        child.handle.exited.then(({code, signal}) => {
          throw new UsageError(
            `${this.name} ended while starting (${signal ?? `code ${code}`}):\n${tail(this.#options.disk, layout.logFile(this.name))}\nThe whole log: ${layout.logFile(this.name)}`,
          );
        }),
      ]);
    } finally {
      timer.cancel();
    }
    void child.handle.exited.then(({code, signal}) =>
      this.#onExit(signal ?? `code ${code}`, clock.monotonicMs() - startedAt),
    );
  }

  /** SIGTERM, and SIGKILL when that takes too long. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const child = this.#child;
    if (!child) return;
    child.kill('SIGTERM');
    const timer = this.#options.clock.setTimer(stopMsMax, () => {
      this.#options.report(`${this.name} does not stop; killing it (nothing committed is lost)`);
      child.kill('SIGKILL');
    });
    await child.exited;
    timer.cancel();
    this.#options.disk.remove(this.#options.layout.pidFile(this.name));
  }

  #onExit(how: string, ranMs: number): void {
    this.#child = undefined;
    if (this.#stopping) return;
    const {clock, report, layout} = this.#options;
    this.#pauseMs = ranMs > steadyMs ? pauseMsMin : Math.min(this.#pauseMs * 2, pauseMsMax);
    report(
      `${this.name} died (${how}); starting it again in ${this.#pauseMs} ms. Its log: ${layout.logFile(this.name)}`,
    );
    clock.setTimer(this.#pauseMs, () => {
      if (this.#stopping) return;
      this.start().then(
        () => report(`${this.name} serves again`),
        // A start that fails has no exit handler yet: it is this one's turn.
        (error: unknown) => this.#onExit((error as Error).message.split('\n')[0] ?? 'unknown', 0),
      );
    });
  }

  async #spawn(): Promise<{handle: ChildProcessHandle; ready: Promise<void>}> {
    const {layout, disk} = this.#options;
    const logFile = layout.logFile(this.name);
    if ((disk.stat(logFile)?.size ?? 0) > logBytesMax) disk.rename(logFile, `${logFile}.1`);
    let onReady: () => void = () => {};
    const ready = new Promise<void>((resolve) => (onReady = resolve));
    const handle = await spawnProcess({
      command: '/bin/sh',
      args: [
        '-c',
        'exec "$0" "$@" 2>>"$PAGODA_LOG_FILE"',
        pagodaCommand.command,
        ...pagodaCommand.args,
        this.#options.role,
        '--config',
        layout.configFile(this.name),
      ],
      // Compiled code is kept between starts, for this process and those it starts: a role loads in a third of the time.
      env: {PAGODA_LOG_FILE: logFile, NODE_COMPILE_CACHE: compileCache},
      // A Ctrl-C in the terminal reaches the supervisor alone, which stops everything in order.
      detached: true,
      onStdoutLine(line) {
        if (isReady(line)) onReady();
      },
    });
    this.#child = handle;
    disk.makeDirectory(layout.node('run'));
    disk.writeFileAtomic(layout.pidFile(this.name), Buffer.from(`${handle.pid}\n`));
    return {handle, ready};
  }
}

function isReady(line: string): boolean {
  try {
    return (JSON.parse(line) as {ready?: unknown}).ready === true;
  } catch {
    return false;
  }
}

/** The last lines of a log. */
export function tail(disk: Disk, path: string, lines = 12): string {
  const size = disk.stat(path)?.size ?? 0;
  if (size === 0) return '(it wrote no log)';
  const file = disk.open(path, 'read');
  try {
    const bytes = Buffer.alloc(Math.min(size, 64 * 1024));
    file.read(bytes, size - bytes.length);
    return bytes.toString('utf8').trimEnd().split('\n').slice(-lines).join('\n');
  } finally {
    file.close();
  }
}
