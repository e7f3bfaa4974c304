import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {WalBatcher} from '#proposer/wal-batcher.ts';
import {systemClock} from '#runtime/clock.ts';

function batcher(): {
  now: number;
  readonly sent: string[];
  readonly wal: WalBatcher;
  readonly add: (text: string) => void;
  endLsn: number;
} {
  const world = {
    now: 0,
    sent: [] as string[],
    endLsn: 100,
    wal: undefined as unknown as WalBatcher,
    add: (text: string) => {
      world.wal.add(world.endLsn as Lsn, Buffer.from(text));
      world.endLsn += text.length;
    },
  };
  let next = 100;
  world.wal = new WalBatcher({
    clock: {...systemClock, monotonicMs: () => world.now},
    onBatch: (lsn, bytes) => {
      assert.equal(lsn, next, 'without gaps');
      next += bytes.length;
      world.sent.push(String(bytes));
    },
    onWaiting: () => {},
  });
  return world;
}

test('what comes while a piece is on its way leaves as one piece when that is durable', () => {
  const w = batcher();
  w.add('one');
  w.add('two');
  w.add('three');
  assert.deepEqual(w.sent, ['one']);
  w.wal.durable(102 as Lsn);
  assert.deepEqual(w.sent, ['one'], 'not yet all of it');
  w.wal.durable(103 as Lsn);
  assert.deepEqual(w.sent, ['one', 'twothree']);
  w.wal.durable(w.endLsn as Lsn);
  w.add('four');
  assert.deepEqual(w.sent.at(-1), 'four', 'nothing is under way: at once');
});

test('on a long way a second piece follows after 2 ms, a third does not', () => {
  const w = batcher();
  w.add('one');
  w.add('two');
  w.now = 1;
  w.wal.tick(w.now);
  assert.deepEqual(w.sent, ['one']);
  w.now = 2;
  w.wal.tick(w.now);
  assert.deepEqual(w.sent, ['one', 'two']);
  w.add('three');
  w.now = 100;
  w.wal.tick(w.now);
  assert.equal(w.wal.isWaiting, true);
  w.wal.durable(103 as Lsn);
  w.wal.tick(w.now);
  assert.deepEqual(w.sent, ['one', 'two', 'three']);
});

test('bulk does not wait, and what waited leaves before it', () => {
  const w = batcher();
  const bulk = 'b'.repeat(40_000);
  w.add('one');
  w.add('two');
  w.add(bulk);
  assert.deepEqual(w.sent, ['one', 'two', bulk]);
  const half = 'h'.repeat(20_000);
  w.add(half);
  assert.equal(w.sent.length, 3);
  w.add(half);
  assert.deepEqual(w.sent.slice(3), [half + half]);
});
