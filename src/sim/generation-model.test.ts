/** Small models; `npm run model-check` has the larger ones, and prints what each seeded bug is found by. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {
  type GenerationModel,
  type GenerationMutation,
  GenerationModelCheck,
  generationModels,
} from '#sim/generation-model.ts';

const model = (begin: string): GenerationModel => generationModels.find(({name}) => name.startsWith(begin))!;
const merge: GenerationModel = {...model('deletion'), name: 'merge', pageservers: 1};

for (const one of [model('orphans: '), merge])
  test(`${one.name}: complete, 0 violations`, () => {
    const {violation, complete, path, states} = new GenerationModelCheck(one).run();
    assert.equal(violation, undefined, path.join('\n'));
    assert.ok(complete);
    assert.ok(states > 500, `${states} states`);
  });

/** Which model shows it first. */
const caught: readonly (readonly [GenerationMutation, GenerationModel])[] = [
  ['no-validation', model('deletion')],
  ['delete-at-once', model('deletion')],
  ['generation-twice', model('deletion')],
  ['newest-by-sequence', model('deletion')],
  ['replaced-are-orphans', model('orphans of one')],
  ['pending-are-orphans', model('orphans of one')],
  ['no-index-of-its-own', model('orphans: ')],
];
for (const [mutation, one] of caught)
  test(`${one.name} catches ${mutation}`, () => {
    const {violation} = new GenerationModelCheck(one, {mutation, statesMax: 100_000}).run();
    assert.notEqual(violation, undefined);
  });
