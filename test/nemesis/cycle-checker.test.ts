/** The checker can fail: one history per anomaly, and clean ones. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {type Operation, type Transaction, checkListAppend, forbiddenAt} from './cycle-checker.ts';

const append = (key: number, value: number): Operation => ({kind: 'append', key, value});
const read = (key: number, ...values: number[]): Operation => ({kind: 'read', key, values});
function history(...all: [Transaction['outcome'], ...Operation[]][]): Transaction[] {
  // All at the same time, so that no read is stale.
  return all.map(([outcome, ...operations], i) => ({id: i + 1, outcome, operations, beganMs: 0, endedMs: 1000}));
}
const kinds = (h: Transaction[], final: Record<number, number[]>): string[] =>
  checkListAppend(h, new Map(Object.entries(final).map(([k, v]) => [Number(k), v]))).map((a) => a.kind);

test('a serial history is clean', () => {
  const h = history(
    ['committed', append(1, 1), read(1, 1)],
    ['committed', read(1, 1), append(1, 2), read(1, 1, 2), append(2, 3)],
    ['committed', read(1, 1, 2), read(2, 3)],
    ['aborted', read(1, 1), append(1, 9)],
    ['unknown', append(2, 4)],
    ['unknown', append(2, 5)],
  );
  assert.deepEqual(kinds(h, {1: [1, 2], 2: [3, 4]}), []);
});

test('G0: two transactions whose writes interleave', () => {
  const h = history(['committed', append(1, 1), append(2, 3)], ['committed', append(1, 2), append(2, 4)]);
  assert.deepEqual(kinds(h, {1: [1, 2], 2: [4, 3]}), ['G0']);
});

test('G1a, G1b, G1c', () => {
  assert.deepEqual(kinds(history(['aborted', append(1, 1)], ['committed', read(1, 1)]), {1: []}), [
    'incompatible-order',
    'G1a',
  ]);
  assert.deepEqual(kinds(history(['committed', append(1, 1), append(1, 2)], ['committed', read(1, 1)]), {1: [1, 2]}), [
    'G1b',
    'G-single',
  ]);
  const h = history(['committed', append(1, 1), read(2, 2)], ['committed', append(2, 2), read(1, 1)]);
  assert.deepEqual(kinds(h, {1: [1], 2: [2]}), ['G1c']);
});

test('G-single (read skew) is forbidden everywhere, G2 (write skew) only where transactions are serializable', () => {
  const skew = history(['committed', append(1, 1), append(2, 2)], ['committed', read(1), read(2, 2)]);
  assert.deepEqual(kinds(skew, {1: [1], 2: [2]}), ['G-single']);
  const write = history(['committed', read(1), append(2, 2)], ['committed', read(2), append(1, 1)]);
  assert.deepEqual(kinds(write, {1: [1], 2: [2]}), ['G2']);
  assert.ok(forbiddenAt['repeatable read']('G-single') && !forbiddenAt['repeatable read']('G2'));
  assert.ok(forbiddenAt.serializable('G2'));
});

test('lost and doubled appends, contradicting reads, own writes, values out of nowhere, stale reads', () => {
  assert.deepEqual(kinds(history(['committed', append(1, 1)]), {1: []}), ['lost-append']);
  assert.deepEqual(kinds(history(['committed', append(1, 1)]), {1: [1, 1]}), ['doubled-append']);
  assert.deepEqual(
    kinds(history(['committed', append(1, 1)], ['committed', append(1, 2)], ['committed', read(1, 2)]), {1: [1, 2]})[0],
    'incompatible-order',
  );
  assert.deepEqual(kinds(history(['committed', append(1, 1), read(1)]), {1: [1]}), ['internal']);
  assert.deepEqual(kinds(history(['committed', append(1, 1), read(1, 1), read(1, 1, 7)]), {1: [1, 7]}).toSorted(), [
    'internal',
    'phantom-value',
  ]);
  const late: Transaction[] = [
    {id: 1, outcome: 'committed', operations: [append(1, 1)], beganMs: 0, endedMs: 10},
    {id: 2, outcome: 'committed', operations: [read(1)], beganMs: 20, endedMs: 30},
  ];
  assert.deepEqual(kinds(late, {1: [1]}), ['stale-read']);
});

test('a long history takes no time', () => {
  const all: [Transaction['outcome'], ...Operation[]][] = [];
  const final: Record<number, number[]> = {};
  for (let i = 1; i <= 100_000; i++) {
    const list = (final[i >> 6] ??= []);
    all.push(['committed', read(i >> 6, ...list), append(i >> 6, i)]);
    list.push(i);
  }
  const started = performance.now();
  assert.deepEqual(kinds(history(...all), final), []);
  assert.ok(performance.now() - started < 120_000);
});
