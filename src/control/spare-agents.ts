/**
 * An agent kept ready: a compute agent with its proposer, both started and loaded, waiting for a task (wire/spare.ts). A wake
 * that finds one saves the start of two Node processes. There is at most one, and none when memory is short: a spare must
 * never be what a running compute is missing.
 */
import type {Clock, Timer} from '#runtime/clock.ts';
import {type Disk, joinPath} from '#runtime/disk.ts';
import type {Log} from '#runtime/log.ts';
import {availableMemoryBytes} from '#runtime/memory.ts';
import {type ChildProcessHandle, spawnProcess} from '#runtime/process.ts';
import {newId, type Random} from '#runtime/random.ts';
import {openLogFile} from '#control/compute-logs.ts';
import {type SpareTask, spareReadyLine} from '#wire/spare.ts';

/** After a start, so that the spare does not take the processor from the compute that has just begun to work. */
const replenishAfterMs = 400;
/** After a spare died by itself, or memory was short. */
const tryAgainMs = 30_000;
const memoryBytesMin = 700 * 1024 * 1024;

export interface SpareAgent {
  readonly child: ChildProcessHandle;
  /** An argument of agent and proposer that no other process has. */
  readonly mark: string;
  assign(task: SpareTask, onStdoutLine: (line: string) => void): void;
}

export interface SpareAgentsOptions {
  readonly computesDir: string;
  readonly logsDir: string;
  readonly pagodaCommand: {readonly command: string; readonly args: readonly string[]};
  readonly clock: Clock;
  readonly random: Random;
  readonly disk: Disk;
  readonly log: Log;
}

export class SpareAgents {
  readonly #options: SpareAgentsOptions;
  #kept = false;
  #ready: SpareAgent | undefined;
  #starting = false;
  #timer: Timer | undefined;

  constructor(options: SpareAgentsOptions) {
    this.#options = options;
  }

  keep(): void {
    this.#kept = true;
    this.replenish();
  }

  /** The spare, when there is one; it is the caller's from now on. */
  take(): SpareAgent | undefined {
    const spare = this.#ready;
    this.#ready = undefined;
    return spare;
  }

  /** Starts a new one soon, when one is missing. */
  replenish(afterMs = replenishAfterMs): void {
    this.#timer?.cancel();
    if (!this.#kept || this.#ready || this.#starting) return;
    this.#timer = this.#options.clock.setTimer(afterMs, () => void this.#start());
  }

  /** Spares end when their standard input does; this only says so earlier. */
  close(): void {
    this.#kept = false;
    this.#timer?.cancel();
    this.#ready?.child.kill('SIGTERM');
    this.#ready = undefined;
  }

  async #start(): Promise<void> {
    const {log, random, disk, computesDir, logsDir, pagodaCommand} = this.#options;
    if (availableMemoryBytes() < memoryBytesMin) {
      this.replenish(tryAgainMs);
      return;
    }
    this.#starting = true;
    const mark = joinPath(`${computesDir}.spare`, newId(random));
    let onLine: (line: string) => void = () => {};
    try {
      const child = await spawnProcess({
        command: '/bin/sh',
        args: [
          '-c',
          'exec "$0" "$@" 2>>"$PAGODA_LOG_FILE"',
          pagodaCommand.command,
          ...pagodaCommand.args,
          'compute',
          '--config',
          mark,
          '--spare',
        ],
        env: {PAGODA_LOG_FILE: openLogFile(disk, logsDir, 'spare')},
        detached: true,
        onStdoutLine(line) {
          if (line !== spareReadyLine) onLine(line);
          else announce();
        },
      });
      const spare: SpareAgent = {
        child,
        mark,
        assign(task, onStdoutLine) {
          onLine = onStdoutLine;
          child.writeStdin(`${JSON.stringify(task)}\n`);
        },
      };
      const announce = (): void => {
        this.#starting = false;
        if (this.#kept) this.#ready = spare;
        else child.kill('SIGTERM');
      };
      void child.exited.then(() => {
        const wasWaiting = this.#ready === spare;
        if (!wasWaiting && !this.#starting) return;
        if (wasWaiting) this.#ready = undefined;
        this.#starting = false;
        if (this.#kept) log.warn('the spare compute agent ended; see compute-spare.log');
        this.replenish(tryAgainMs);
      });
    } catch (error) {
      this.#starting = false;
      log.warn('no spare compute agent could be started', {error});
      this.replenish(tryAgainMs);
    }
  }
}
