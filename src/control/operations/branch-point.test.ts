import assert from 'node:assert/strict';
import {test} from 'node:test';
import {committedPosition} from '#control/operations/branch-point.ts';
import type {SafekeeperStatus} from '#control/storage-client.ts';

const at = (term: number, flushLsn: number, commitLsn: number): SafekeeperStatus =>
  ({term, flushLsn, commitLsn}) as SafekeeperStatus;

test('what a quorum has flushed in the newest term is in "now"', () => {
  assert.deepEqual(committedPosition([at(2, 500, 300), at(2, 400, 300), at(2, 350, 300)]), {
    committed: 300,
    acknowledged: 400,
  });
});

test('a silent safekeeper may be the other half of the quorum that acknowledged', () => {
  assert.deepEqual(committedPosition([undefined, at(2, 500, 300), at(2, 350, 300)]), {
    committed: 300,
    acknowledged: 500,
  });
});

test('flushed under an older term is not acknowledged in the newest', () => {
  assert.deepEqual(committedPosition([at(3, 400, 400), at(2, 900, 300), at(2, 800, 300)]), {
    committed: 400,
    acknowledged: 400,
  });
});

test('without a quorum of answers there is no answer', () => {
  assert.equal(committedPosition([undefined, undefined, at(1, 1, 1)]), undefined);
});
