/**
 * A client that keeps its own books: for every id whether Postgres acknowledged, refused, or never answered. In the end the
 * table must hold each acknowledged entry exactly once and whole, no refused one, and the others not at all or once.
 */
import {createHash} from 'node:crypto';
import type pg from 'pg';
import {BrokenSession, type ClientOptions, type Commits, type Loop, type Outcome, commit, runClient} from './client.ts';

export interface LedgerVerdict {
  rows: number;
  acknowledged: number;
  readonly lost: number[];
  readonly doubled: number[];
  /** Refused and there, never written and there, torn, or with another content. */
  readonly wrong: number[];
}

interface Row {
  readonly id: number;
  readonly part: number;
  readonly payload: string;
}

/** So many ids are asked for at once: an hour's ledger is too much for one answer. */
const idsAtOnce = 50_000;

export class Ledger {
  /** By id; the first is 1. */
  readonly #outcomes: Outcome[] = ['aborted'];
  readonly #commits: Commits;

  constructor(commits: Commits) {
    this.#commits = commits;
  }

  /** No unique index: a doubled row must be able to appear. */
  static readonly schema = 'create table ledger (id int, part int, payload text); create index on ledger (id)';

  start(options: ClientOptions, clients: number): Loop[] {
    return Array.from({length: clients}, () => runClient(options, (client) => this.turn(client)));
  }

  /** One entry, on any session. */
  async turn(client: pg.Client): Promise<void> {
    const id = this.#outcomes.push('unknown') - 1;
    const rows = rowsOf(id);
    try {
      this.#outcomes[id] = await commit(async () => {
        const result = await client.query(
          'insert into ledger select $1, part, payload from unnest($2::int[], $3::text[]) as e (part, payload)',
          [id, parts(rows), parts(rows).map((part) => payloadOf(id, part))],
        );
        return result.rowCount === rows;
      });
    } catch (error) {
      if (error instanceof BrokenSession) this.#outcomes[id] = error.outcome;
      throw error;
    } finally {
      this.#commits.note(this.#outcomes[id]!, true);
    }
  }

  /** What the table has against the books as they are now; clients may go on writing. */
  async compare(query: (sql: string) => Promise<Record<string, unknown>[]>): Promise<LedgerVerdict> {
    const known = [...this.#outcomes];
    const verdict: LedgerVerdict = {rows: 0, acknowledged: 0, lost: [], doubled: [], wrong: []};
    for (let from = 1; from < known.length; from += idsAtOnce) {
      const to = Math.min(from + idsAtOnce, known.length);
      const rows = await query(`select id, part, payload from ledger where id >= ${from} and id < ${to}`);
      verdict.rows += rows.length;
      judge(rows as unknown as Row[], known, from, to, verdict);
    }
    const strangers = await query(
      `select id from ledger where id < 1 or id >= ${this.#outcomes.length + 10_000} limit 10`,
    );
    for (const {id} of strangers) verdict.wrong.push(Number(id));
    return verdict;
  }
}

function judge(
  rows: readonly Row[],
  known: readonly Outcome[],
  from: number,
  to: number,
  verdict: LedgerVerdict,
): void {
  const {lost, doubled, wrong} = verdict;
  const there = new Map<number, Row[]>();
  for (const row of rows) {
    const list = there.get(row.id);
    if (list === undefined) there.set(row.id, [row]);
    else list.push(row);
  }
  for (let id = from; id < to; id++) {
    const outcome = known[id]!;
    const list = there.get(id) ?? [];
    const expected = rowsOf(id);
    if (outcome === 'committed') verdict.acknowledged++;
    if (outcome === 'committed' && list.length < expected) lost.push(id);
    if (outcome === 'aborted' && list.length > 0) wrong.push(id);
    if (outcome === 'unknown' && list.length !== 0 && list.length < expected) wrong.push(id);
    if (list.length > expected) doubled.push(id);
    if (list.some(({part, payload}) => payload !== payloadOf(id, part))) wrong.push(id);
  }
}

/** Some entries have several rows: they come and go together. */
const rowsOf = (id: number): number => (id % 4 === 0 ? 3 : 1);
const parts = (rows: number): number[] => Array.from({length: rows}, (_, i) => i);

function payloadOf(id: number, part: number): string {
  return createHash('md5')
    .update(`${id}.${part}`)
    .digest('hex')
    .repeat((id % 8) + 1);
}
