/**
 * A client that keeps its own books: for every id whether Postgres acknowledged, refused, or never answered. In the end the
 * table must hold each acknowledged entry exactly once and whole, no refused one, and the others not at all or once.
 */
import {createHash} from 'node:crypto';
import type pg from 'pg';
import type {SeededRandom} from '#runtime/random.ts';
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

/** What the books said about some of the ids at a moment of the run. */
export interface LedgerPoint {
  readonly windows: readonly {readonly from: number; readonly known: readonly Outcome[]}[];
  /** Entries from here on began later. */
  readonly next: number;
}

type Query = (sql: string) => Promise<Record<string, unknown>[]>;

/** The newest entries of a point, and as many again of any age. */
const windowIds = 1500;
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
    return Array.from({length: clients}, () => runClient(options, async (client) => void (await this.turn(client))));
  }

  /** One entry, on any session. */
  async turn(client: pg.Client): Promise<Outcome> {
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
      return this.#outcomes[id];
    } catch (error) {
      if (error instanceof BrokenSession) this.#outcomes[id] = error.outcome;
      throw error;
    } finally {
      this.#commits.note(this.#outcomes[id]!, true);
    }
  }

  /** The id of the entry that begins next. */
  get next(): number {
    return this.#outcomes.length;
  }

  snapshot(random: SeededRandom): LedgerPoint {
    const from = Math.max(1, this.next - windowIds);
    const old = 1 + (random.uint32() % from);
    return {
      windows: [old, from].map((first) => ({from: first, known: this.#outcomes.slice(first, first + windowIds)})),
      next: this.next,
    };
  }

  /** What a database that is as it was at the point has against the books. */
  async compareAt({windows, next}: LedgerPoint, query: Query): Promise<string[]> {
    const verdict: LedgerVerdict = {rows: 0, acknowledged: 0, lost: [], doubled: [], wrong: []};
    for (const {from, known} of windows) {
      const to = Math.min(from + known.length + 1000, next);
      const rows = await query(`select id, part, payload from ledger where id >= ${from} and id < ${to}`);
      // Not yet acknowledged then: it may be there, unless it was refused later.
      const outcomeOf = (id: number): Outcome =>
        known[id - from] === 'committed' || this.#outcomes[id] === 'aborted' ? this.#outcomes[id]! : 'unknown';
      judge(rows as unknown as Row[], outcomeOf, from, to, verdict);
    }
    const later = await query(`select id from ledger where id >= ${next} limit 10`);
    return [
      ...verdict.lost.map((id) => `${id} is lost`),
      ...verdict.doubled.map((id) => `${id} is doubled`),
      ...verdict.wrong.map((id) => `${id} is torn or was never committed`),
      ...later.map(({id}) => `${String(id)} began later`),
    ];
  }

  /** What the table has against the books as they are now; clients may go on writing. */
  async compare(query: Query): Promise<LedgerVerdict> {
    const known = [...this.#outcomes];
    const verdict: LedgerVerdict = {rows: 0, acknowledged: 0, lost: [], doubled: [], wrong: []};
    for (let from = 1; from < known.length; from += idsAtOnce) {
      const to = Math.min(from + idsAtOnce, known.length);
      const rows = await query(`select id, part, payload from ledger where id >= ${from} and id < ${to}`);
      verdict.rows += rows.length;
      judge(rows as unknown as Row[], (id) => known[id]!, from, to, verdict);
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
  outcomeOf: (id: number) => Outcome,
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
    const outcome = outcomeOf(id);
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
