/**
 * A client that keeps its own books: every id that Postgres acknowledged is written down by the client, so that after any
 * catastrophe the ledger, and not a sum, says what must be there.
 */
import type {Pagoda} from '../pagoda.ts';
import {within} from '../within.ts';

export class Ledger {
  /** Ids whose COMMIT was answered with success. */
  readonly acknowledged = new Set<number>();
  /** Ids whose outcome nobody knows: the connection broke while the answer was awaited. */
  readonly unknown = new Set<number>();
  /** The longest time between two acknowledgements of any client, in milliseconds. */
  longestGapMs = 0;
  /** Statements that Postgres answered with an error. */
  readonly errors: string[] = [];
  readonly #pagoda: Pagoda;
  readonly #uri: string;
  #running = false;
  #nextId = 1;
  #lastMs = 0;
  #clients: Promise<void>[] = [];

  constructor(pagoda: Pagoda, uri = pagoda.status.databaseUrl) {
    this.#pagoda = pagoda;
    this.#uri = uri;
  }

  async create(): Promise<void> {
    await this.#pagoda.query(
      'create table ledger (id int primary key, written timestamptz default clock_timestamp())',
      this.#uri,
    );
  }

  start(clients: number): void {
    this.#running = true;
    this.#lastMs = performance.now();
    this.#clients = Array.from({length: clients}, () => this.#client());
  }

  /** Ends the clients; those that hang on a dead connection are let go. */
  async stop(): Promise<void> {
    this.#running = false;
    await within(Promise.all(this.#clients), 60_000);
  }

  /** What the database has against what the books say. */
  async compare(uri = this.#uri): Promise<{rows: number; lost: number[]; invented: number[]}> {
    const rows = (await this.#pagoda.query('select id from ledger', uri)) as {id: number}[];
    const there = new Set(rows.map((r) => r.id));
    return {
      rows: rows.length,
      lost: [...this.acknowledged].filter((id) => !there.has(id)),
      invented: [...there].filter((id) => !this.acknowledged.has(id) && !this.unknown.has(id)),
    };
  }

  async #client(): Promise<void> {
    while (this.#running) {
      let client;
      try {
        client = await this.#pagoda.connect(this.#uri);
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 50));
        continue;
      }
      try {
        while (this.#running) {
          const id = this.#nextId++;
          this.unknown.add(id);
          await client.query('insert into ledger (id) values ($1)', [id]);
          this.unknown.delete(id);
          this.acknowledged.add(id);
          const now = performance.now();
          this.longestGapMs = Math.max(this.longestGapMs, now - this.#lastMs);
          this.#lastMs = now;
        }
      } catch (error) {
        const {code, message} = error as {code?: string; message: string};
        if (code !== undefined && /^[0-9A-Z]{5}$/.test(code)) this.errors.push(`${code} ${message}`);
      } finally {
        await client.end().catch(() => {});
      }
    }
  }
}
