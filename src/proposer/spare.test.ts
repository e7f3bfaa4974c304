import assert from 'node:assert/strict';
import {test} from 'node:test';
import {Spare, type SpareMember} from '#proposer/spare.ts';

function members(...hosts: string[]): SpareMember[] {
  return hosts.map((host, i) => ({nodeId: i + 1, host, isUpToDate: true}));
}

test('The one that is behind most often is the spare, and stays it', () => {
  const spare = new Spare();
  for (const nodeId of [1, 2, 2, 2, 3]) spare.noteBehind(nodeId);
  spare.choose(1000, members('a', 'a', 'a'));
  assert.equal(spare.nodeId, 2);
  for (const nodeId of [1, 1, 3]) spare.noteBehind(nodeId);
  spare.choose(2000, members('a', 'a', 'a'));
  assert.equal(spare.nodeId, 2);
});

test('No spare on several machines, among two, and while one has to catch up', () => {
  const spare = new Spare();
  spare.choose(1000, members('a', 'a', 'b'));
  assert.equal(spare.nodeId, undefined);
  spare.choose(2000, members('a', 'a'));
  assert.equal(spare.nodeId, undefined);
  spare.choose(3000, [...members('a', 'a'), {nodeId: 3, host: 'a', isUpToDate: false}]);
  assert.equal(spare.nodeId, undefined);
  spare.choose(4000, []);
  assert.equal(spare.nodeId, undefined);
});

test('When the others are late three times in a row there is no spare for five seconds, then the slowest is it', () => {
  const spare = new Spare();
  spare.choose(1000, members('a', 'a', 'a'));
  assert.equal(spare.nodeId, 1);
  for (let i = 0; i < 2; i++) spare.noteDue(1100, false);
  assert.equal(spare.nodeId, 1);
  spare.noteDue(1110, false);
  assert.equal(spare.nodeId, undefined);
  spare.noteBehind(3);
  spare.choose(6000, members('a', 'a', 'a'));
  assert.equal(spare.nodeId, undefined);
  spare.choose(6110, members('a', 'a', 'a'));
  assert.equal(spare.nodeId, 3);
});

test('Late now and then is no reason; one in four is', () => {
  const spare = new Spare();
  spare.choose(1000, members('a', 'a', 'a'));
  for (let i = 0; i < 1000; i++) spare.noteDue(1100, i % 6 !== 0);
  assert.equal(spare.nodeId, 1);
  for (let i = 0; i < 40; i++) spare.noteDue(1200, i % 4 !== 0);
  assert.equal(spare.nodeId, undefined);
});

test('With a lost connection all get everything at once, until the next choice', () => {
  const spare = new Spare();
  spare.choose(1000, members('a', 'a', 'a'));
  spare.noteLost();
  assert.equal(spare.nodeId, undefined);
});
