/** What all workloads share: sessions that come back, outcomes that are honest, and the clock of commits. */
import {setTimeout as sleep} from 'node:timers/promises';
import pg from 'pg';
import {within} from '../../within.ts';

export type Outcome = 'committed' | 'aborted' | 'unknown';

/** Every acknowledged commit of every client. */
export class Commits {
  count = 0;
  unknown = 0;
  aborted = 0;
  lastMs = performance.now();
  /** Times without any commit, above 50 ms. */
  readonly gaps: {readonly fromMs: number; readonly toMs: number}[] = [];

  /** What wrote nothing waits for no safekeeper: it is no commit. */
  note(outcome: Outcome, wrote: boolean): void {
    if (!wrote) return;
    if (outcome === 'unknown') this.unknown++;
    else if (outcome === 'aborted') this.aborted++;
    else {
      const now = performance.now();
      if (now - this.lastMs > 50) this.gaps.push({fromMs: this.lastMs, toMs: now});
      this.lastMs = now;
      this.count++;
    }
  }
}

/** A statement that hangs for so long is given up; its outcome is unknown. */
const queryMsMax = 60_000;
const connectMsMax = 30_000;

/**
 * A transaction of one attempt: `body` runs between BEGIN and COMMIT. What fails before COMMIT was sent is aborted; a COMMIT
 * that was not answered, or answered by the end of the session, is unknown: it must never be counted as either.
 */
export async function transact(client: pg.Client, begin: string, body: () => Promise<void>): Promise<Outcome> {
  try {
    await client.query(begin);
    await body();
  } catch (error) {
    if (!isSqlError(error)) throw new BrokenSession('aborted', error);
    try {
      await client.query('rollback');
    } catch (second) {
      throw new BrokenSession('aborted', second);
    }
    return 'aborted';
  }
  return commit(async () => (await client.query('commit')).command === 'COMMIT');
}

/** A single statement that commits by itself, or COMMIT. `work` answers whether it was a success. */
export async function commit(work: () => Promise<boolean>): Promise<Outcome> {
  try {
    return (await work()) ? 'committed' : 'aborted';
  } catch (error) {
    // Serialization failures, constraints, and refusals of a statement are definite.
    if (isSqlError(error) && /^(40|23|22|42|25)/.test(error.code)) return 'aborted';
    throw new BrokenSession('unknown', error);
  }
}

/** The session is of no use any more; what was under way ended as `outcome`. */
export class BrokenSession extends Error {
  readonly outcome: Outcome;
  constructor(outcome: Outcome, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), {cause});
    this.outcome = outcome;
  }
}

function isSqlError(error: unknown): error is Error & {code: string} {
  const code = (error as {code?: unknown}).code;
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && !/^(57|08|XX|58)/.test(code);
}

export interface Loop {
  stop(): Promise<void>;
}

/** Where clients go, and how long each thinks between two turns, on average. */
export interface ClientOptions {
  readonly config: pg.ClientConfig;
  readonly thinkMs: number;
}

/** One client: `turn` again and again on a session that is made anew whenever it breaks. */
export function runClient(options: ClientOptions, turn: (client: pg.Client) => Promise<void>): Loop {
  const {config, thinkMs} = options;
  let running = true;
  let current: pg.Client | undefined;
  const done = (async () => {
    while (running) {
      const client = new pg.Client({...config, connectionTimeoutMillis: connectMsMax, query_timeout: queryMsMax});
      client.on('error', () => {});
      try {
        await client.connect();
        current = client;
        while (running) {
          await turn(client);
          // Uneven, or all clients would go in step after each fault.
          if (thinkMs > 0) await sleep(thinkMs * (0.5 + Math.random()));
        }
      } catch {
        // whatever it was: a new session; `turn` has written down what became of its work
        await sleep(20);
      } finally {
        current = undefined;
        destroy(client);
      }
    }
  })();
  return {
    async stop() {
      running = false;
      if (!(await within(done, 20_000)) && current !== undefined) destroy(current);
      await within(done, 40_000);
    },
  };
}

/** Not `end()`: a session that hangs would never answer. */
function destroy(client: pg.Client): void {
  (client as unknown as {connection: {stream: {destroy(): void}}}).connection.stream.destroy();
}
