/** Transactions of up to four appends and reads of lists; cycle-checker.ts judges the history. */
import type pg from 'pg';
import type {SeededRandom} from '#runtime/random.ts';
import {type Operation, type Transaction} from '../cycle-checker.ts';
import {
  BrokenSession,
  type ClientOptions,
  type Commits,
  type Loop,
  type Outcome,
  runClient,
  transact,
} from './client.ts';

const activeKeys = 8;
const elementsPerKey = 24;

export type Isolation = 'serializable' | 'repeatable read' | 'read committed';

export class ListAppend {
  readonly history: Transaction[] = [];
  readonly #commits: Commits;
  readonly #random: SeededRandom;
  readonly #isolation: Isolation;
  readonly #table: string;
  #values = 0;
  #transactions = 0;

  constructor(commits: Commits, random: SeededRandom, isolation: Isolation) {
    this.#commits = commits;
    this.#random = random;
    this.#isolation = isolation;
    this.#table = `lists_${isolation.replace(' ', '_')}`;
  }

  get schema(): string {
    return `drop table if exists ${this.#table}; create table ${this.#table} (key int primary key, elements int[] not null)`;
  }

  start(options: ClientOptions, clients: number): Loop[] {
    return Array.from({length: clients}, () => runClient(options, (client) => this.#turn(client)));
  }

  /** All lists, or the newest of them. */
  async lists(
    query: (sql: string) => Promise<Record<string, unknown>[]>,
    newest?: number,
  ): Promise<Map<number, number[]>> {
    const some = newest === undefined ? '' : `order by key desc limit ${newest}`;
    const rows = (await query(`select key, elements from ${this.#table} ${some}`)) as {
      key: number;
      elements: number[];
    }[];
    return new Map(rows.map((row) => [row.key, row.elements]));
  }

  async #turn(client: pg.Client): Promise<void> {
    const operations: Operation[] = [];
    const beganMs = performance.now();
    let outcome: Outcome = 'unknown';
    try {
      outcome = await transact(client, `begin isolation level ${this.#isolation}`, async () => {
        for (let n = 1 + (this.#random.uint32() % 4); n > 0; n--) {
          const key = this.#key();
          if (this.#random.uint32() % 2 === 0) {
            const value = ++this.#values;
            // Written down before it is sent: whatever happens, we have tried.
            operations.push({kind: 'append', key, value});
            await client.query(
              `insert into ${this.#table} as l values ($1, array[$2::int]) on conflict (key) do update set elements = l.elements || $2::int`,
              [key, value],
            );
          } else {
            const {rows} = await client.query<{elements: number[]}>(
              `select elements from ${this.#table} where key = $1`,
              [key],
            );
            operations.push({kind: 'read', key, values: rows[0]?.elements ?? []});
          }
        }
      });
    } catch (error) {
      if (error instanceof BrokenSession) outcome = error.outcome;
      throw error;
    } finally {
      this.history.push({id: ++this.#transactions, outcome, operations, beganMs, endedMs: performance.now()});
      this.#commits.note(
        outcome,
        operations.some((op) => op.kind === 'append'),
      );
    }
  }

  /** A few keys at a time; a key retires when about `elementsPerKey` elements were meant for it. */
  #key(): number {
    return Math.floor(this.#values / elementsPerKey / activeKeys) * activeKeys + (this.#random.uint32() % activeKeys);
  }
}
