import assert from 'node:assert/strict';
import {test} from 'node:test';
import {placeSafekeepers} from '#control/placement.ts';

const node = (nodeId: number, zone?: string, retired = false) => ({
  nodeId,
  host: 'h',
  port: nodeId,
  httpPort: nodeId,
  ...(zone === undefined ? {} : {zone}),
  ...(retired ? {retired} : {}),
});

test('three members lie in three zones, in each the one with the fewest timelines', () => {
  const nodes = [node(1, 'a'), node(2, 'a'), node(3, 'b'), node(4, 'b'), node(5, 'c'), node(6, 'c')];
  const load = new Map([
    [1, 9],
    [2, 3],
    [3, 1],
    [4, 2],
    [5, 7],
    [6, 7],
  ]);
  assert.deepEqual(placeSafekeepers({nodes, load}), [2, 3, 5]);
});

test('two zones hold two and one; nodes without a zone are zones of their own', () => {
  assert.deepEqual(placeSafekeepers({nodes: [node(1, 'a'), node(2, 'a'), node(3, 'a'), node(4, 'b')]}), [1, 2, 4]);
  assert.deepEqual(placeSafekeepers({nodes: [node(1, 'a'), node(2, 'a'), node(3), node(4)]}), [1, 3, 4]);
});

test('what takes the place of a lost one lies in the lost one’s zone, and is neither retired nor a member', () => {
  const nodes = [node(1, 'a'), node(2, 'b'), node(3, 'c', true), node(4, 'a'), node(5, 'b'), node(6, 'c')];
  assert.deepEqual(placeSafekeepers({nodes, kept: [1, 2], avoid: [3]}), [1, 2, 6]);
  assert.deepEqual(placeSafekeepers({nodes: nodes.slice(0, 3), kept: [1, 2], avoid: [3]}), [1, 2]);
});
