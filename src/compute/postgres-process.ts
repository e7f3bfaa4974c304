/** One postmaster: start, wait until it accepts connections, stop. */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {type ChildProcessHandle, ownPid, spawnProcess} from '#runtime/process.ts';

const startMsMax = 60_000;

export class PostgresProcess {
  readonly pid: number;
  /** Resolves when the postmaster is gone, however it went. */
  readonly exited: Promise<{code: number | null; signal: string | null}>;
  readonly #child: ChildProcessHandle;

  private constructor(child: ChildProcessHandle) {
    this.#child = child;
    this.pid = child.pid;
    this.exited = child.exited;
  }

  /** Rejects with Postgres's own last words when it does not come up. `settings` go on the command line: they win. */
  static async start(options: {
    binDir: string;
    dataDir: string;
    /** System user to run as when this process is root. */
    user: string;
    settings: Readonly<Record<string, string>>;
    clock: Clock;
    log: Log;
    onLine: (line: string) => void;
  }): Promise<PostgresProcess> {
    const lastWords: string[] = [];
    let ready: () => void = () => {};
    const accepting = new Promise<void>((resolve) => (ready = resolve));
    const child = await spawnProcess({
      command: `${options.binDir}/postgres`,
      args: [
        '-D',
        options.dataDir,
        ...Object.entries(options.settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ],
      cwd: options.dataDir,
      user: options.user,
      env: {
        LC_ALL: undefined,
        PGDATA: undefined,
        PGHOST: undefined,
        PGPORT: undefined,
        NODE_EXTRA_CA_CERTS: undefined,
        NODE_COMPILE_CACHE: undefined,
        // The extension lets Postgres end with us (extension/pagoda.c): without a proposer its commits would hang for ever.
        PAGODA_AGENT_PID: String(ownPid),
      },
      // A Ctrl-C in the terminal must not reach Postgres before the agent stops it in order.
      detached: true,
      onStderrLine(line) {
        options.onLine(line);
        lastWords.push(line);
        if (lastWords.length > 20) lastWords.shift();
        if (/database system is ready to accept (read-only )?connections/.test(line)) ready();
      },
    });
    const postgres = new PostgresProcess(child);
    const timer = options.clock.setTimer(startMsMax, () => void child.kill('SIGQUIT'));
    const exit = child.exited.then(({code, signal}) => {
      throw new Error(`Postgres ended while starting (${signal ?? `code ${code}`}):\n${lastWords.join('\n')}`);
    });
    exit.catch(() => {});
    try {
      await Promise.race([accepting, exit]);
    } finally {
      timer.cancel();
    }
    return postgres;
  }

  /** SIGINT: clients are disconnected, a shutdown checkpoint is written. */
  stopFast(): void {
    this.#child.kill('SIGINT');
  }

  /** SIGQUIT: at once, nothing is written. */
  stopImmediately(): void {
    this.#child.kill('SIGQUIT');
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  reload(): void {
    this.#child.kill('SIGHUP');
  }
}
