import assert from 'node:assert/strict';
import {test} from 'node:test';
import {lsn} from '#postgres/lsn.ts';
import {ShardReports, combineFeedback} from '#wire/shard-feedback.ts';
import type {WalFeedback} from '#wire/safekeeper.ts';

function at(lastReceived: number, diskConsistent: number, remoteConsistent: number): WalFeedback {
  return {
    lastReceivedLsn: lsn(lastReceived),
    diskConsistentLsn: lsn(diskConsistent),
    remoteConsistentLsn: lsn(remoteConsistent),
  };
}

function figures({lastReceivedLsn, diskConsistentLsn, remoteConsistentLsn}: WalFeedback): number[] {
  return [lastReceivedLsn, diskConsistentLsn, remoteConsistentLsn];
}

test('one shard: its own word, until it is old', () => {
  const reports = new ShardReports(lsn(100));
  assert.deepEqual(figures(reports.feedback(0)), [0, 0, 100]);
  reports.report({number: 0, count: 1, generation: 1}, at(300, 200, 150), 1000);
  assert.deepEqual(figures(reports.feedback(9000)), [300, 200, 150]);
  assert.equal(reports.feedback(9000).shards, undefined);
  assert.deepEqual(figures(reports.feedback(12_000)), [150, 150, 150]);
  assert.equal(reports.remoteConsistentLsns, undefined);
});

test('the slowest shard counts, and one that has said nothing holds everything back', () => {
  const reports = new ShardReports(lsn(100));
  reports.report({number: 1, count: 3, generation: 1}, at(900, 800, 700), 0);
  assert.deepEqual(figures(reports.feedback(0)), [100, 100, 100]);
  reports.report({number: 0, count: 3, generation: 1}, at(950, 500, 400), 0);
  assert.deepEqual(figures(reports.feedback(0)), [100, 100, 100]);
  reports.report({number: 2, count: 3, generation: 1}, at(910, 890, 600), 0);
  assert.deepEqual(figures(reports.feedback(0)), [900, 500, 400]);
  assert.deepEqual(reports.feedback(0).shards!.map(figures), [
    [950, 500, 400],
    [900, 800, 700],
    [910, 890, 600],
  ]);
  // What is uploaded stays uploaded when a shard's pageserver is gone; what it had received does not.
  reports.report({number: 0, count: 3, generation: 1}, at(990, 980, 970), 60_000);
  assert.deepEqual(figures(reports.feedback(60_000)), [600, 600, 600]);
});

test('a shard that moved: its new home counts, and what the old one uploaded', () => {
  const reports = new ShardReports(lsn(0));
  reports.report({number: 0, count: 1, generation: 5}, at(900, 800, 700), 0);
  reports.report({number: 0, count: 1, generation: 6}, at(710, 700, 700), 10);
  reports.report({number: 0, count: 1, generation: 5}, at(2000, 1900, 720), 20);
  assert.deepEqual(figures(reports.feedback(20)), [710, 700, 720]);
});

test('shards that are read from different safekeepers: peers tell each other', () => {
  const [a, b] = [new ShardReports(lsn(100)), new ShardReports(lsn(90))];
  a.report({number: 0, count: 2, generation: 1}, at(500, 400, 300), 0);
  b.report({number: 1, count: 2, generation: 1}, at(600, 500, 200), 0);
  for (const [to, from] of [
    [a, b],
    [b, a],
  ] as const)
    to.heard(from.feedback(0).remoteConsistentLsn, from.remoteConsistentLsns);
  assert.equal(a.feedback(0).remoteConsistentLsn, 200);
  assert.equal(b.feedback(0).remoteConsistentLsn, 200);
  // The proposer hears both: of each shard the better word.
  assert.deepEqual(figures(combineFeedback([a.feedback(0), b.feedback(0)])), [500, 400, 200]);
  // A peer that has heard nothing but how far all are.
  const c = new ShardReports(lsn(0));
  c.heard(lsn(150), undefined);
  assert.deepEqual(figures(combineFeedback([c.feedback(0), a.feedback(0), b.feedback(0)])), [500, 400, 200]);
  assert.deepEqual(figures(combineFeedback([])), [0, 0, 0]);
});
