import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {
  MembershipChange,
  type MembershipChangeState,
  type SafekeeperPosition,
  compareMembership,
  mayPull,
  parseMembership,
  parsePosition,
  positionJson,
} from '#wire/membership.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';

const member = (nodeId: number): Member => ({nodeId, host: `sk${nodeId}`, port: 5454});
const base: Membership = {generation: 7, members: [1, 2, 3].map(member), newMembers: []};
const target = [1, 2, 4].map(member);
const at = (generation: number, term: number, lastLogTerm: number, flushLsn: number): SafekeeperPosition => ({
  generation,
  term,
  lastLogTerm,
  flushLsn: flushLsn as Lsn,
  commitLsn: 0 as Lsn,
});
/** What is asked of whom. */
const asked = (change: MembershipChange): string[] =>
  change.actions().map((a) => `${a.kind} ${a.node.nodeId} g${a.membership.generation}`);
/** As after a crash: the state went through a store. */
const again = (change: MembershipChange): MembershipChange =>
  new MembershipChange(JSON.parse(JSON.stringify(change.state)) as MembershipChangeState);

test('one safekeeper is replaced; the plan goes on after a crash in every phase', () => {
  let change = new MembershipChange(MembershipChange.begin(base, target));
  assert.deepEqual(asked(change), ['pull 4 g7']);
  assert.equal(change.configuration.generation, 7);
  change.answered(4, at(7, 3, 2, 500));
  assert.equal(change.state.phase, 'joint');
  change = again(change);
  assert.deepEqual(asked(change), ['put 1 g8', 'put 2 g8', 'put 3 g8']);
  change.answered(1, at(8, 5, 4, 900));
  assert.equal(change.state.phase, 'joint', 'one of three is no majority');
  change.answered(2, at(8, 6, 4, 950));
  assert.deepEqual(change.state.sync, {term: 6, lastLogTerm: 4, flushLsn: '0/3B6'});
  change = again(change);
  assert.deepEqual(asked(change), ['put 1 g8', 'put 2 g8', 'put 4 g8', 'put 3 g8']);
  assert.ok(change.actions().every((a) => a.kind === 'put' && a.minTerm === 6));
  assert.equal(change.configuration.generation, 8, 'a majority of the old set has it');
  change.answered(2, at(8, 6, 4, 950));
  change.answered(4, at(8, 6, 3, 2000));
  assert.equal(change.state.phase, 'catch-up', 'longer, but of an older term');
  change.answered(4, at(8, 5, 4, 950));
  assert.equal(change.state.phase, 'catch-up', 'its term is too low');
  change.answered(4, at(8, 6, 4, 950));
  assert.equal(change.state.phase, 'final');
  change = again(change);
  assert.deepEqual(asked(change), ['put 1 g9', 'put 2 g9', 'put 4 g9']);
  change.answered(4, at(9, 6, 4, 990));
  change.answered(1, at(9, 6, 4, 990));
  assert.ok(change.isDone);
  assert.equal(change.configuration.generation, 9);
  assert.deepEqual(asked(change), ['put 2 g9', 'exclude 3 g9']);
  change.answered(2, at(9, 6, 4, 990));
  change.excluded(3);
  assert.deepEqual(asked(change), []);
});

test('a change is cancelled as long as the new configuration cannot exist', () => {
  const early = new MembershipChange(MembershipChange.begin(base, target));
  assert.ok(early.cancel());
  assert.ok(early.isDone);
  assert.deepEqual(early.configuration, base);
  const joint = new MembershipChange(MembershipChange.begin(base, target));
  joint.answered(4, at(7, 1, 1, 100));
  joint.answered(1, at(8, 1, 1, 100));
  assert.ok(joint.cancel());
  assert.deepEqual(asked(joint), ['put 1 g9', 'put 2 g9', 'put 3 g9']);
  joint.answered(2, at(9, 1, 1, 100));
  joint.answered(3, at(9, 1, 1, 100));
  assert.ok(joint.isDone);
  assert.deepEqual(joint.configuration.members, base.members);
  assert.ok(asked(joint).includes('exclude 4 g9'));
  const late = new MembershipChange({...MembershipChange.begin(base, target), phase: 'final'});
  assert.equal(late.cancel(), false);
});

test('an answer that was overtaken changes nothing', () => {
  const change = new MembershipChange({...MembershipChange.begin(base, target), phase: 'joint'});
  change.answered(1, at(8, 1, 1, 100));
  change.answered(1, at(7, 1, 1, 50));
  change.answered(2, at(7, 1, 1, 100));
  assert.equal(change.state.phase, 'joint');
  change.answered(2, at(8, 1, 1, 100));
  assert.equal(change.state.phase, 'final', '1 and 2 are a majority of the new set, too, and have it all');
});

test('what cannot be begun', () => {
  assert.throws(() => MembershipChange.begin(base, []), /at least one/);
  assert.throws(() => MembershipChange.begin(base, [3, 1, 2].map(member)), /already/);
  assert.throws(() => MembershipChange.begin({...base, newMembers: target}, target), /under way/);
});

test('configurations are compared by generation, and must not contradict', () => {
  assert.equal(compareMembership(base, {...base, generation: 8}), 'newer');
  assert.equal(compareMembership(base, {...base, generation: 6}), 'stale');
  assert.equal(compareMembership(base, base), 'same');
  assert.equal(compareMembership(base, {...base, members: target}), 'conflict');
  assert.equal(mayPull(base, 4), true);
  assert.equal(mayPull(base, 3), false);
  assert.equal(mayPull({...base, newMembers: target}, 4), false);
});

test('JSON of positions and configurations', () => {
  const position = at(3, 2, 1, 0x1_0000_0028);
  assert.deepEqual(parsePosition(JSON.parse(JSON.stringify(positionJson(position)))), position);
  assert.throws(() => parsePosition({generation: 1, term: 1}), /lastLogTerm/);
  assert.throws(() => parsePosition(null), /generation/);
  assert.deepEqual(parseMembership(JSON.parse(JSON.stringify(base))), base);
  for (const bad of [
    null,
    {},
    {generation: 0, members: base.members},
    {generation: 1, members: []},
    {generation: 1, members: [member(1), member(1)]},
    {generation: 1, members: [{nodeId: 1}]},
  ])
    assert.throws(() => parseMembership(bad));
});
