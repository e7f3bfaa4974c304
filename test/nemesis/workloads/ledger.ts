/**
 * A client that keeps its own books: for every id whether Postgres acknowledged, refused, or never answered. In the end the
 * table must hold each acknowledged entry exactly once and whole, no refused one, and the others not at all or once.
 */
import {createHash} from 'node:crypto';
import type pg from 'pg';
import {BrokenSession, type Commits, type Loop, type Outcome, commit, runClient} from './client.ts';

export interface LedgerVerdict {
  readonly rows: number;
  readonly acknowledged: number;
  readonly lost: number[];
  readonly doubled: number[];
  /** Refused and there, never written and there, torn, or with another content. */
  readonly wrong: number[];
}

export class Ledger {
  readonly #entries = new Map<number, {outcome: Outcome; rows: number}>();
  readonly #commits: Commits;
  #next = 1;

  constructor(commits: Commits) {
    this.#commits = commits;
  }

  get acknowledged(): number {
    let n = 0;
    for (const {outcome} of this.#entries.values()) if (outcome === 'committed') n++;
    return n;
  }

  /** No unique index: a doubled row must be able to appear. */
  static readonly schema = 'create table ledger (id int, part int, payload text); create index on ledger (id)';

  start(config: pg.ClientConfig, clients: number): Loop[] {
    return Array.from({length: clients}, () => runClient(config, (client) => this.turn(client)));
  }

  /** One entry, on any session. */
  async turn(client: pg.Client): Promise<void> {
    const id = this.#next++;
    // Some entries have several rows: they come and go together.
    const rows = id % 4 === 0 ? 3 : 1;
    const entry: {outcome: Outcome; rows: number} = {outcome: 'unknown', rows};
    this.#entries.set(id, entry);
    try {
      entry.outcome = await commit(async () => {
        const result = await client.query(
          'insert into ledger select $1, part, payload from unnest($2::int[], $3::text[]) as e (part, payload)',
          [id, parts(rows), parts(rows).map((part) => payloadOf(id, part))],
        );
        return result.rowCount === rows;
      });
    } catch (error) {
      if (error instanceof BrokenSession) entry.outcome = error.outcome;
      throw error;
    } finally {
      this.#commits.note(entry.outcome, true);
    }
  }

  /** What is known now: for a comparison while clients go on writing. */
  snapshot(): ReadonlyMap<number, {readonly outcome: Outcome; readonly rows: number}> {
    return new Map([...this.#entries].map(([id, entry]) => [id, {...entry}]));
  }

  /** `known`: the books as they were before the rows were read. */
  compare(
    rows: readonly {id: number; part: number; payload: string}[],
    known: ReadonlyMap<number, {readonly outcome: Outcome; readonly rows: number}> = this.#entries,
  ): LedgerVerdict {
    const there = new Map<number, {part: number; payload: string}[]>();
    for (const row of rows) {
      const list = there.get(row.id);
      if (list === undefined) there.set(row.id, [row]);
      else list.push(row);
    }
    const lost: number[] = [];
    const doubled: number[] = [];
    const wrong: number[] = [];
    for (const [id, {outcome, rows: expected}] of known) {
      const found = there.get(id)?.length ?? 0;
      if (outcome === 'committed' && found < expected) lost.push(id);
      if (outcome === 'aborted' && found > 0) wrong.push(id);
      if (outcome === 'unknown' && found !== 0 && found < expected) wrong.push(id);
      if (found > expected) doubled.push(id);
    }
    for (const [id, list] of there)
      if (!this.#entries.has(id) || list.some(({part, payload}) => payload !== payloadOf(id, part))) wrong.push(id);
    return {rows: rows.length, acknowledged: this.acknowledged, lost, doubled, wrong};
  }
}

const parts = (rows: number): number[] => Array.from({length: rows}, (_, i) => i);

function payloadOf(id: number, part: number): string {
  return createHash('md5')
    .update(`${id}.${part}`)
    .digest('hex')
    .repeat((id % 8) + 1);
}
