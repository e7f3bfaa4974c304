/** Transfers between accounts: the sum stays, and no account goes below zero. */
import type pg from 'pg';
import type {SeededRandom} from '#runtime/random.ts';
import {
  BrokenSession,
  type ClientOptions,
  type Commits,
  type Loop,
  type Outcome,
  runClient,
  transact,
} from './client.ts';

const accounts = 40;
const initial = 1000;
const readPauseMs = 200;
const sumOfAll = 'select sum(balance)::int as sum, count(*)::int as n from bank';

export class Bank {
  readonly anomalies: string[] = [];
  reads = 0;
  readonly #commits: Commits;
  readonly #random: SeededRandom;

  constructor(commits: Commits, random: SeededRandom) {
    this.#commits = commits;
    this.#random = random;
  }

  static readonly schema = `create table bank (id int primary key, balance int not null check (balance >= 0));
    insert into bank select n, ${initial} from generate_series(1, ${accounts}) as n`;

  start(options: ClientOptions, clients: number): Loop[] {
    return [
      ...Array.from({length: clients}, (_, i) =>
        runClient(options, (client) => this.#transfer(client, i % 2 === 0 ? 'serializable' : 'repeatable read')),
      ),
      runClient({...options, thinkMs: readPauseMs}, (client) => this.#read(client)),
    ];
  }

  /** What is wrong with the money of a database at rest. */
  static async problem(query: (sql: string) => Promise<Record<string, unknown>[]>): Promise<string | undefined> {
    const [row] = await query(sumOfAll);
    const {sum, n} = row as {sum: number; n: number};
    return sum === accounts * initial && n === accounts
      ? undefined
      : `${n} accounts hold ${sum} instead of ${accounts * initial}`;
  }

  async #transfer(client: pg.Client, level: string): Promise<void> {
    const from = 1 + (this.#random.uint32() % accounts);
    const to = 1 + ((from + (this.#random.uint32() % (accounts - 1))) % accounts);
    const amount = 1 + (this.#random.uint32() % 50);
    let outcome: Outcome = 'unknown';
    let wrote = false;
    try {
      outcome = await transact(client, `begin isolation level ${level}`, async () => {
        const {rows} = await client.query<{balance: number}>('select balance from bank where id = $1', [from]);
        if (rows[0] === undefined) this.anomalies.push(`account ${from} is missing`);
        else if (rows[0].balance >= amount) {
          wrote = true;
          await client.query('update bank set balance = balance - $2 where id = $1', [from, amount]);
          await client.query('update bank set balance = balance + $2 where id = $1', [to, amount]);
        }
      });
    } catch (error) {
      if (error instanceof BrokenSession) outcome = error.outcome;
      throw error;
    } finally {
      this.#commits.note(outcome, wrote);
    }
  }

  async #read(client: pg.Client): Promise<void> {
    const problem = await Bank.problem(async (sql) => (await client.query<Record<string, unknown>>(sql)).rows);
    this.reads++;
    if (problem !== undefined) this.anomalies.push(problem);
  }
}
