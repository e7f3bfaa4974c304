/**
 * Branches made from points of the run, of now and of long ago, while faults go on. A branch must be the database as it was at
 * that LSN: everything acknowledged before the LSN was asked for, nothing that began after it was known, what was between them whole or not
 * at all; the bank's sum; lists that are beginnings of the final lists. And what is written to it stays in it.
 */
import {setTimeout as sleep} from 'node:timers/promises';
import type pg from 'pg';
import type {SeededRandom} from '#runtime/random.ts';
import {queryOnce} from '../../pagoda.ts';
import type {Cell} from '../cell.ts';
import {Bank} from './bank.ts';
import {type ClientOptions, type Loop, runClient} from './client.ts';
import type {Ledger, LedgerPoint} from './ledger.ts';
import type {ListAppend} from './list-append.ts';

/** Between two branches; each costs the start of a compute. */
const pauseMs = 4000;
/** Each step of a branch must succeed within this, faults and all. */
const patienceMsMax = 120_000;
const pointsMax = 200;
const listsAtOnce = 40;

interface Point {
  readonly lsn: string;
  readonly ledger: LedgerPoint;
}

export class Branches {
  checked = 0;
  /** Of those checked: made at a point that had another branch or more made after it. */
  ofThePast = 0;
  readonly anomalies: string[] = [];
  /** What never came. */
  readonly problems: string[] = [];
  readonly #cell: Cell;
  readonly #ledger: Ledger;
  readonly #lists: readonly ListAppend[];
  readonly #random: SeededRandom;
  readonly #points: Point[] = [];
  readonly #seenLists: {
    readonly branch: string;
    readonly list: ListAppend;
    readonly elements: Map<number, number[]>;
  }[] = [];
  #made = 0;

  constructor(
    cell: Cell,
    work: {readonly ledger: Ledger; readonly lists: readonly ListAppend[]},
    random: SeededRandom,
  ) {
    this.#cell = cell;
    this.#ledger = work.ledger;
    this.#lists = work.lists;
    this.#random = random;
  }

  start({config}: ClientOptions): Loop {
    return runClient({config, thinkMs: pauseMs}, async (client) => {
      const point = await this.#point(client);
      const isOld = this.#points.length > 1 && this.#random.uint32() % 2 === 0;
      const chosen = isOld ? this.#points[this.#random.uint32() % (this.#points.length - 1)]! : point;
      await this.#branch(chosen);
      if (isOld) this.ofThePast++;
    });
  }

  /** Lists that a branch had must be beginnings of the final ones. */
  compareLists(list: ListAppend, final: ReadonlyMap<number, readonly number[]>): void {
    for (const seen of this.#seenLists.filter((s) => s.list === list))
      for (const [key, elements] of seen.elements) {
        const whole = final.get(key) ?? [];
        if (elements.some((value, i) => value !== whole[i]))
          this.anomalies.push(`${seen.branch}: list ${key} is ${elements.join(',')}, in the end ${whole.join(',')}`);
      }
  }

  /**
   * An LSN that stays in the branch's history: something after it is acknowledged in the same session. (A compute that was deposed
   * also has LSNs, and another's WAL may come to lie below them.)
   */
  async #point(client: pg.Client): Promise<Point> {
    const before = this.#ledger.snapshot(this.#random);
    const {rows} = await client.query<{lsn: string}>('select pg_current_wal_flush_lsn()::text as lsn');
    const ledger = {...before, next: this.#ledger.next};
    if ((await this.#ledger.turn(client)) !== 'committed') throw new Error('the point is not acknowledged');
    const point = {lsn: rows[0]!.lsn, ledger};
    this.#points.push(point);
    if (this.#points.length > pointsMax) this.#points.splice(this.#random.uint32() % pointsMax, 1);
    return point;
  }

  async #branch(point: Point): Promise<void> {
    const name = `point-${++this.#made}`;
    const label = `branch ${name} at ${point.lsn}`;
    const id = await this.#untilDone(label, () => this.#make(name, point.lsn));
    const uri = await this.#untilDone(label, () => this.#uri(id));
    const ask = (sql: string): Promise<Record<string, unknown>[]> => this.#untilDone(label, () => queryOnce(uri, sql));
    const wrong = await this.#ledger.compareAt(point.ledger, ask);
    if (wrong.length > 0)
      this.anomalies.push(`${label}: ${wrong.length} entries wrong: ${wrong.slice(0, 5).join('; ')}`);
    const money = await Bank.problem(ask);
    if (money !== undefined) this.anomalies.push(`${label}: ${money}`);
    for (const list of this.#lists)
      this.#seenLists.push({branch: label, list, elements: await list.lists(ask, listsAtOnce)});
    // The last check of the run's own ledger finds it should it cross over.
    await ask(`insert into ledger values (-${this.#made}, 0, 'of a branch'); select 1`);
    this.checked++;
    await this.#untilDone(label, () => this.#delete(id));
  }

  /** An answer may be lost: then it is there under its name. */
  async #make(name: string, lsn: string): Promise<string> {
    const path = `/projects/${this.#cell.projectId}/branches`;
    const {branches} = await this.#cell.api<{branches: {id: string; name: string}[]}>('GET', `${path}?search=${name}`);
    const there = branches.find((b) => b.name === name);
    if (there !== undefined) return there.id;
    const {branch} = await this.#cell.api<{branch: {id: string}}>('POST', path, {
      branch: {name, parent_lsn: lsn},
      endpoints: [{type: 'read_write'}],
    });
    return branch.id;
  }

  async #uri(id: string): Promise<string> {
    const query = `branch_id=${id}&database_name=neondb&role_name=neondb_owner`;
    return (await this.#cell.api<{uri: string}>('GET', `/projects/${this.#cell.projectId}/connection_uri?${query}`))
      .uri;
  }

  /** Faults make everything fail now and then; in the end it must work. */
  async #untilDone<T>(label: string, work: () => Promise<T>): Promise<T> {
    const deadline = performance.now() + patienceMsMax;
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (performance.now() > deadline) {
          this.problems.push(`${label}: nothing for ${patienceMsMax / 1000} s: ${(error as Error).message}`);
          throw error;
        }
        await sleep(250);
      }
    }
  }

  async #delete(id: string): Promise<void> {
    try {
      await this.#cell.api('DELETE', `/projects/${this.#cell.projectId}/branches/${id}?hard_delete=true`);
    } catch (error) {
      if (!/: 404 /.test((error as Error).message)) throw error;
    }
  }
}
