import assert from 'node:assert/strict';
import {test} from 'node:test';
import {hunt, mutants} from '#sim/mutants.ts';
import {regressions} from '#sim/regressions.ts';
import {World} from '#sim/world.ts';

test('saved regressions hold', () => {
  for (const {seed, note} of regressions())
    assert.equal(new World({seed}).run().failure, undefined, `seed ${seed}: ${note}`);
});

test('a seed decides everything: twice the same run', () => {
  for (let seed = 1000; seed < 1010; seed++) assert.deepEqual(new World({seed}).run(), new World({seed}).run());
  assert.notEqual(new World({seed: 1}).run().hash, new World({seed: 2}).run().hash);
});

/** The bugs that fall within few seeds; `npm run mutants` hunts them all. */
const quick = [
  'acceptor vote-twice',
  'acceptor no-truncation',
  'acceptor ack-before-fsync',
  'acceptor commit-beyond-flush',
  'proposer quorum-of-one',
  'proposer reuse-term',
  'proposer commit-partial-record',
  'storage flush-without-fsync',
  'storage no-directory-fsync',
];
for (const mutant of mutants.filter(({name}) => quick.includes(name)))
  test(`finds the seeded bug: ${mutant.name}`, () => assert.ok(hunt(mutant, 150, 1, 0), 'not found in 150 seeds'));
