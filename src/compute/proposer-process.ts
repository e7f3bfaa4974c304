/** The proposer runs as a process of its own, so that commits never wait behind page traffic. This is our end of its pipe. */
import type {Lsn} from '#postgres/lsn.ts';
import {parseLsn} from '#postgres/lsn.ts';
import type {Log} from '#runtime/log.ts';
import {type ChildProcessHandle, spawnProcess} from '#runtime/process.ts';
import {type SpareTask, spareReadyLine} from '#wire/spare.ts';

export interface Elected {
  readonly term: number;
  /** All WAL below it is committed; the compute starts exactly here. */
  readonly lsn: Lsn;
}

/** The event `progress` of proposer/driver.ts. */
export interface ProposerProgress {
  readonly commitLsn: string;
  readonly ingestedLsn: string;
  readonly diskConsistentLsn: string;
  readonly remoteConsistentLsn: string;
  readonly lagBytes: number;
  readonly throttleUsPerMib: number;
}

export class ProposerProcess {
  readonly exited: Promise<{code: number | null; signal: string | null}>;
  /** Rejects when the proposer ends first. */
  readonly elected: Promise<Elected>;
  /** Resolves with the final commit LSN when all WAL of a stopped Postgres is committed. */
  readonly stopped: Promise<Lsn>;
  /** Where a spare one's words go is known only later. */
  #log: Log;
  #onFenced: (reason: string) => void;
  #progress: ProposerProgress | undefined;
  readonly #child: ChildProcessHandle;

  private constructor(
    child: ChildProcessHandle,
    events: {elected: Promise<Elected>; stopped: Promise<Lsn>},
    options: {log: Log; onFenced: (reason: string) => void},
  ) {
    this.#child = child;
    this.exited = child.exited;
    this.elected = events.elected;
    this.stopped = events.stopped;
    this.#log = options.log;
    this.#onFenced = options.onFenced;
  }

  static async start(options: {
    command: string;
    args: readonly string[];
    log: Log;
    onFenced: (reason: string) => void;
  }): Promise<ProposerProcess> {
    let onElected: (e: Elected) => void = () => {};
    let onStopped: (lsn: Lsn) => void = () => {};
    let lastError = '';
    const electedEvent = new Promise<Elected>((resolve) => (onElected = resolve));
    const stopped = new Promise<Lsn>((resolve) => (onStopped = resolve));
    let proposer: ProposerProcess | undefined;
    const log = (): Log => (proposer ? proposer.#log : options.log);
    const child = await spawnProcess({
      command: options.command,
      args: options.args,
      detached: true,
      onStdoutLine(line) {
        if (line === spareReadyLine) return;
        let event: Record<string, unknown>;
        try {
          event = JSON.parse(line) as Record<string, unknown>;
        } catch {
          log().warn('the proposer said something that is no event', {line});
          return;
        }
        if (event['event'] === 'elected') onElected({term: Number(event['term']), lsn: parseLsn(String(event['lsn']))});
        else if (event['event'] === 'stopped') onStopped(parseLsn(String(event['commitLsn'])));
        else if (event['event'] === 'progress') {
          const {event: _, ...progress} = event;
          if (proposer) proposer.#progress = progress as unknown as ProposerProgress;
        } else if (event['event'] === 'postgres-lost') log().warn('the proposer lost Postgres', {line});
        else if (event['event'] === 'fenced')
          (proposer ? proposer.#onFenced : options.onFenced)(String(event['message'] ?? line));
      },
      onStderrLine(line) {
        lastError = line;
        log().info(`proposer: ${line}`);
      },
    });
    const early = child.exited.then(({code, signal}) => {
      throw new Error(`the proposer ended before it was elected (${signal ?? `code ${code}`}): ${lastError}`);
    });
    const elected = Promise.race([electedEvent, early]);
    elected.catch(() => {});
    proposer = new ProposerProcess(child, {elected, stopped}, options);
    return proposer;
  }

  /** Gives a spare proposer (`--spare`) its task. */
  assign(options: {config: string; log: Log; onFenced: (reason: string) => void}): void {
    this.#log = options.log;
    this.#onFenced = options.onFenced;
    this.#child.writeStdin(`${JSON.stringify({config: options.config} satisfies SpareTask)}\n`);
  }

  /** The newest word of it; undefined before the first. */
  get progress(): ProposerProgress | undefined {
    return this.#progress;
  }

  stream(postgres: {socketDir: string; port: number; user: string; throttlePath: string}): void {
    this.#say({event: 'stream', ...postgres});
  }

  refreshToken(token: string): void {
    this.#say({event: 'token', token});
  }

  stop(): void {
    this.#child.kill('SIGTERM');
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #say(event: Record<string, unknown>): void {
    this.#child.writeStdin(JSON.stringify(event) + '\n');
  }
}
