/** The ledger's verdict on tables that are wrong in each way: a check that cannot fail would be worth nothing. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import type pg from 'pg';
import {SeededRandom} from '#runtime/random.ts';
import {Commits} from './client.ts';
import {Ledger} from './ledger.ts';

interface Row {
  id: number;
  part: number;
  payload: string;
}

/** A table that takes what it is given, and answers the three questions that the ledger asks. */
class Table {
  rows: Row[] = [];
  fail: 'refused' | 'lost' | undefined;
  readonly client = {
    query: (_: string, [id, parts, payloads]: [number, number[], string[]]) => {
      if (this.fail === 'refused') return Promise.reject(Object.assign(new Error('refused'), {code: '40001'}));
      for (const [i, part] of parts.entries()) this.rows.push({id, part, payload: payloads[i]!});
      return this.fail === 'lost'
        ? Promise.reject(new Error('connection lost'))
        : Promise.resolve({rowCount: parts.length});
    },
  } as unknown as pg.Client;

  readonly query = (sql: string): Promise<Record<string, unknown>[]> => {
    const [, from = '-Infinity', to = 'Infinity'] = /id >= (\d+)(?: and id < (\d+))?/.exec(sql) ?? [];
    const isStrangers = sql.includes('id < 1 or');
    return Promise.resolve(
      this.rows
        .filter(({id}) => (isStrangers ? id < 1 || id >= Number(from) : id >= Number(from) && id < Number(to)))
        .map((row) => ({...row})),
    );
  };
}

/** Ten entries: the third refused, the sixth not answered but there. 4 and 8 have three rows. */
async function written(): Promise<{ledger: Ledger; table: Table}> {
  const [ledger, table] = [new Ledger(new Commits()), new Table()];
  for (let id = 1; id <= 10; id++) {
    table.fail = id === 3 ? 'refused' : id === 6 ? 'lost' : undefined;
    await ledger.turn(table.client).catch(() => {});
  }
  return {ledger, table};
}

test('what was written is right, with and without the entry that nobody knows of', async () => {
  const {ledger, table} = await written();
  for (let round = 0; round < 2; round++) {
    const {acknowledged, lost, doubled, wrong} = await ledger.compare(table.query);
    assert.deepEqual({acknowledged, lost, doubled, wrong}, {acknowledged: 8, lost: [], doubled: [], wrong: []});
    table.rows = table.rows.filter((row) => row.id !== 6);
  }
});

const damages: readonly (readonly [string, (table: Table) => void, 'lost' | 'doubled' | 'wrong', number])[] = [
  ['an entry lost', (t) => (t.rows = t.rows.filter((row) => row.id !== 5)), 'lost', 5],
  ['one of three rows lost', (t) => (t.rows = t.rows.filter((row) => row.id !== 4 || row.part !== 1)), 'lost', 4],
  ['an entry twice', (t) => t.rows.push(t.rows.find((row) => row.id === 7)!), 'doubled', 7],
  ['an unknown entry twice', (t) => t.rows.push(t.rows.find((row) => row.id === 6)!), 'doubled', 6],
  ['a refused entry there', (t) => t.rows.push({id: 3, part: 0, payload: 'x'}), 'wrong', 3],
  ['another content', (t) => (t.rows.find((row) => row.id === 9)!.payload = 'x'), 'wrong', 9],
  ['an entry that nobody wrote', (t) => t.rows.push({id: -1, part: 0, payload: 'of a branch'}), 'wrong', -1],
];

for (const [name, damage, where, id] of damages)
  test(`${name}: ${where}`, async () => {
    const {ledger, table} = await written();
    damage(table);
    const verdict = await ledger.compare(table.query);
    for (const kind of ['lost', 'doubled', 'wrong'] as const)
      if (kind === where) assert.ok(verdict[kind].includes(id));
      else if (id !== 3) assert.deepEqual(verdict[kind], [], kind);
  });

test('a point of the run: all that was acknowledged, nothing that began later', async () => {
  const {ledger, table} = await written();
  const point = ledger.snapshot(new SeededRandom(1));
  const then = [...table.rows];
  await ledger.turn(table.client); // 11
  const check = (rows: Row[]): Promise<string[]> => {
    table.rows = rows;
    return ledger.compareAt(point, table.query);
  };
  const now = [...table.rows];
  assert.deepEqual(await check(then), []);
  assert.deepEqual(await check(then.filter((row) => row.id !== 6)), [], 'what was never answered may be missing');
  assert.ok((await check(then.filter((row) => row.id !== 10))).includes('10 is lost'));
  assert.ok((await check(now)).includes('11 began later'));
  assert.ok((await check([...then, then[0]!])).includes('1 is doubled'));
  // What began after the books were read and before the LSN was known may be there or not, but whole; 12 has three rows.
  const loose = {...point, next: 13};
  table.rows = now;
  await ledger.turn(table.client); // 12
  const whole = [...table.rows];
  const ask = (rows: Row[]): Promise<string[]> => {
    table.rows = rows;
    return ledger.compareAt(loose, table.query);
  };
  assert.deepEqual(await ask(then), []);
  assert.deepEqual(await ask(whole), []);
  assert.ok((await ask(whole.slice(0, -1))).includes('12 is torn or was never committed'));
});
