import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import type {ProposerOutput} from '#proposer/proposer-io.ts';
import {Proposer} from '#proposer/proposer.ts';
import {isQuorum, quorumLsn} from '#proposer/quorum.ts';
import {WalWindow} from '#proposer/wal-window.ts';
import type {AcceptorMessage, Member, Membership, ProposerMessage} from '#wire/safekeeper.ts';

const at = (value: number): Lsn => value as Lsn;
const member = (nodeId: number): Member => ({nodeId, host: 'h', port: nodeId});
const membership: Membership = {generation: 1, members: [1, 2, 3].map(member), newMembers: []};
const feedback = {lastReceivedLsn: at(0), diskConsistentLsn: at(0), remoteConsistentLsn: at(0)};
const root = {term: 0, lsn: at(100)};

function proposer(): Proposer {
  return new Proposer({tenantId: 'a', timelineId: 'b', pgVersion: 150000, systemId: '', membership});
}
const hear = (p: Proposer, peer: number, message: AcceptorMessage): ProposerOutput[] =>
  p.step({kind: 'message', peer, message});
const greet = (p: Proposer, peer: number, term = 0): ProposerOutput[] => {
  p.step({kind: 'connected', peer});
  return hear(p, peer, {kind: 'greeting-response', nodeId: peer, term, membership});
};
const vote = (term: number, flushLsn: number, history = [root], granted = true): AcceptorMessage => ({
  kind: 'vote-response',
  generation: 1,
  term,
  granted,
  flushLsn: at(flushLsn),
  commitLsn: at(100),
  history,
});
const took = (term: number, startLsn: number): AcceptorMessage => ({
  kind: 'elected-response',
  generation: 1,
  term,
  startLsn: at(startLsn),
  commitLsn: at(100),
});
const ack = (term: number, flushLsn: number): AcceptorMessage => ({
  kind: 'append-response',
  generation: 1,
  term,
  flushLsn: at(flushLsn),
  syncedLsn: at(flushLsn),
  commitLsn: at(100),
  feedback,
});
const messages = (outputs: readonly ProposerOutput[]): [number, ProposerMessage['kind']][] =>
  outputs.flatMap((o) => (o.kind === 'send' ? [[o.peer, o.message.kind] as [number, ProposerMessage['kind']]] : []));

test('takes the log of the highest last term, not of the longest', () => {
  const p = proposer();
  greet(p, 1, 4);
  assert.deepEqual(messages(greet(p, 2, 6)), [
    [1, 'vote-request'],
    [2, 'vote-request'],
  ]);
  assert.equal(p.term, 7);
  hear(p, 1, vote(7, 900, [root, {term: 3, lsn: at(100)}]));
  const won = hear(p, 2, vote(7, 200, [root, {term: 5, lsn: at(150)}]));
  assert.deepEqual(won[0], {kind: 'elected', term: 7, termStartLsn: 200});
  assert.deepEqual(p.history, [root, {term: 5, lsn: 150}, {term: 7, lsn: 200}]);
});

test('is synced when a quorum has all of the donor, streams, commits by quorum, and is fenced by a higher term', () => {
  const p = proposer();
  for (const peer of [1, 2]) greet(p, peer);
  hear(p, 1, vote(1, 200, [root]));
  hear(p, 2, vote(1, 100, [root]));
  assert.deepEqual(
    hear(p, 1, took(1, 200)).filter((o) => o.kind !== 'send'),
    [],
  );
  const lagging = hear(p, 2, took(1, 100));
  assert.deepEqual(lagging, [{kind: 'recover', peer: 2, donor: 1, startLsn: 100, term: 1}]);
  const appended = p.step({kind: 'recovered', peer: 2, lsn: at(100), bytes: Buffer.alloc(100)});
  assert.deepEqual(messages(appended), [[2, 'append']]);
  assert.ok(appended.some((o) => o.kind === 'stop-recovery'));
  assert.equal(p.commitLsn, 0, 'WAL of older terms is not committed before the own term start is');
  const synced = hear(p, 2, ack(1, 200));
  assert.ok(synced.some((o) => o.kind === 'synced' && o.lsn === 200));

  assert.deepEqual(messages(p.step({kind: 'wal', lsn: at(200), bytes: Buffer.alloc(50)})), [
    [1, 'append'],
    [2, 'append'],
  ]);
  assert.deepEqual(hear(p, 1, ack(1, 250)), []);
  assert.deepEqual(hear(p, 2, ack(1, 240)), [{kind: 'committed', lsn: 240}]);
  assert.deepEqual(messages(p.step({kind: 'commit-due'})), [
    [1, 'append'],
    [2, 'append'],
  ]);
  assert.deepEqual(p.step({kind: 'commit-due'}), [], 'told once');

  const late = greet(p, 3);
  assert.deepEqual(messages(late), [[3, 'elected']]);
  assert.deepEqual(hear(p, 3, ack(2, 0)), [{kind: 'fenced', term: 2, peer: 3}]);
  assert.deepEqual(hear(p, 1, ack(1, 250)), [], 'a fenced proposer says nothing');
});

test('campaigns again with a higher term after a refusal', () => {
  const p = proposer();
  for (const peer of [1, 2]) greet(p, peer);
  hear(p, 1, vote(1, 100));
  assert.deepEqual(hear(p, 2, vote(5, 100, [root], false)), []);
  assert.deepEqual(p.step({kind: 'tick', nowMs: 0, random: 0.5}), []);
  assert.deepEqual(messages(p.step({kind: 'tick', nowMs: 200, random: 0.5})), [
    [1, 'vote-request'],
    [2, 'vote-request'],
  ]);
  assert.equal(p.term, 6);
});

test('pauses the compute while no quorum takes its WAL, and lets go of WAL that all have', () => {
  const p = proposer();
  for (const peer of [1, 2]) greet(p, peer);
  for (const peer of [1, 2]) hear(p, peer, vote(1, 100));
  for (const peer of [1, 2]) hear(p, peer, took(1, 100));
  const mib = 1024 * 1024;
  let end = 100;
  let paused = false;
  for (let i = 0; i < 20 && !paused; i++) {
    paused = p.step({kind: 'wal', lsn: at(end), bytes: Buffer.alloc(mib)}).some((o) => o.kind === 'pause-source');
    end += mib;
  }
  assert.ok(paused);
  // In flight to one safekeeper: at most eight MiB; what comes next waits for its answers.
  const more = hear(p, 1, ack(1, 100 + 4 * mib));
  assert.equal(messages(more).length, 4);
  hear(p, 1, ack(1, 100 + 12 * mib));
  hear(p, 2, ack(1, 100 + 8 * mib));
  const resumed = hear(p, 2, ack(1, 100 + 15 * mib));
  void resumed;
  hear(p, 1, ack(1, end));
  hear(p, 2, ack(1, end));
  assert.equal(p.commitLsn, end);
});

test('quorums, also of a joint membership', () => {
  const joint: Membership = {generation: 2, members: [1, 2, 3].map(member), newMembers: [3, 4, 5].map(member)};
  const lsns = new Map([
    [1, 50],
    [2, 40],
    [3, 30],
    [4, 20],
    [5, 10],
  ]);
  assert.equal(
    quorumLsn(membership, (id) => at(lsns.get(id)!)),
    40,
  );
  assert.equal(
    quorumLsn(joint, (id) => at(lsns.get(id)!)),
    20,
  );
  assert.ok(isQuorum(membership, (id) => id < 3));
  assert.ok(!isQuorum(joint, (id) => id < 3));
  assert.ok(isQuorum(joint, (id) => id > 1 && id < 5));
  assert.ok(!isQuorum({generation: 1, members: [1, 2].map(member), newMembers: []}, (id) => id === 1));
});

test('the window hands out what it holds and forgets whole chunks', () => {
  const w = new WalWindow(at(10));
  for (let i = 0; i < 1000; i++) w.push(at(10 + i * 4), Buffer.from([i & 255, 1, 2, 3]));
  assert.equal(w.at(at(10 + 4 * 700 + 1))!.length, 3);
  w.trim(at(10 + 4 * 600 + 2), 0);
  assert.equal(w.startLsn, 10 + 4 * 600);
  assert.equal(w.at(at(10 + 4 * 999))![0], 999 & 255);
  assert.equal(w.at(w.endLsn), undefined);
  w.trim(w.endLsn, 8);
  assert.equal(w.length, 8);
});
