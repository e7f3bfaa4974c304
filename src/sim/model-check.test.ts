/** Small models; `npm run model-check` has the large ones. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {type Model, ModelCheck} from '#sim/model-check.ts';
import type {Mutations} from '#sim/mutations.ts';

const wal: Model = {name: 'wal', proposers: 2, members: [1, 2], termMax: 2, recordsMax: 1};
const change: Model = {name: 'change', proposers: 1, members: [1], target: [2], termMax: 1, recordsMax: 1};
const rivals: Model = {name: 'rivals', proposers: 2, members: [1], target: [2], termMax: 2, recordsMax: 0};

for (const model of [wal, change])
  test(`${model.name}: complete, 0 violations`, () => {
    const {violation, complete, path, states} = new ModelCheck(model).run();
    assert.equal(violation, undefined, path.join('\n'));
    assert.ok(complete);
    assert.ok(states > 100, `${states} states`);
  });

const caught: readonly (readonly [Model, Mutations])[] = [
  [wal, {proposer: new Set(['quorum-of-one'])}],
  [{...wal, members: [1, 2, 3]}, {proposer: new Set(['votes-of-any-term'])}],
  [rivals, {control: new Set(['no-sync-term'])}],
];
for (const [model, mutations] of caught)
  test(`${model.name} catches ${JSON.stringify(Object.values(mutations).map((set) => [...set]))}`, () =>
    assert.notEqual(new ModelCheck({...model, mutations}).run().violation, undefined));
