import assert from 'node:assert/strict';
import {test} from 'node:test';
import {encodeThrottle, throttleFor, throttleStop} from '#proposer/throttle.ts';

const MiB = 1024 * 1024;
const limits = {softBytes: 10 * MiB, hardBytes: 110 * MiB, middleUsPerMib: 1000};

test('nothing below the soft limit, more with the lag, a stop at the hard one', () => {
  assert.equal(throttleFor(0, limits), 0);
  assert.equal(throttleFor(10 * MiB, limits), 0);
  assert.equal(throttleFor(60 * MiB, limits), 1000);
  let last = 0;
  for (let lag = 11; lag < 110; lag++) {
    const now = throttleFor(lag * MiB, limits);
    assert.ok(now > last || lag === 11, `at ${lag} MiB`);
    last = now;
  }
  assert.equal(throttleFor(110 * MiB, limits), throttleStop);
  assert.equal(throttleFor(1e12, limits), throttleStop);
});

test('writers settle where the pageserver keeps up, whatever it takes in and however many they are', () => {
  for (const [ingest, writers, alone] of [
    [20, 1, 60],
    [20, 8, 60],
    [5, 4, 100],
    [50, 2, 40],
  ] as const) {
    let lag = 0;
    // A millisecond a step; a writer makes a MiB in 1/alone s and then waits.
    for (let ms = 0; ms < 60_000; ms++) {
      const us = throttleFor(lag, limits);
      const perSecond = us === throttleStop ? 0 : writers / (1 / alone + us / 1e6);
      lag = Math.max(0, lag + ((perSecond - ingest) * MiB) / 1000);
    }
    assert.ok(lag < limits.hardBytes, `${writers} writers against ${ingest} MB/s: ${lag / MiB} MiB behind`);
    assert.ok(lag > limits.softBytes, 'the pageserver is never idle');
  }
});

test('the file is what the extension reads', () => {
  assert.equal(encodeThrottle(throttleStop).toString('hex'), '6f726854ffffffff');
});
