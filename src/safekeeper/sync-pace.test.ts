import assert from 'node:assert/strict';
import {test} from 'node:test';
import {SyncPace} from '#safekeeper/sync-pace.ts';

const a = {};
const b = {};

function fast(): SyncPace {
  const pace = new SyncPace();
  for (let i = 0; i < 100; i++) pace.took(0.2, i);
  return pace;
}

test('a disk is slow until it was seen to be fast', () => {
  const pace = new SyncPace();
  assert.equal(pace.mayWait(a, 500, 0), false);
  assert.equal(fast().mayWait(a, 500, 1000), true);
  assert.equal(fast().mayWait(a, 100_000, 1000), false, 'not for a bulk load');
});

test('with two writers nobody waits, until one has been alone for a while', () => {
  const pace = fast();
  assert.equal(pace.mayWait(a, 500, 1000), true);
  assert.equal(pace.mayWait(b, 500, 1001), false);
  assert.equal(pace.mayWait(b, 500, 1050), false);
  assert.equal(pace.mayWait(b, 500, 1102), true);
  assert.equal(pace.mayWait(a, 500, 1103), false);
});

test('one slow sync frees the event loop for a second; a slow disk for good', () => {
  const pace = fast();
  pace.took(21, 1000);
  assert.equal(pace.mayWait(a, 500, 1500), false);
  assert.equal(pace.mayWait(a, 500, 2001), true);
  for (let i = 0; i < 100; i++) pace.took(3, 2001);
  assert.equal(pace.mayWait(a, 500, 9000), false);
});
