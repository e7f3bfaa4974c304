import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Mutations} from '#sim/mutations.ts';
import {scripts} from '#sim/scripts.ts';

for (const script of scripts) test(`script: ${script.name}`, () => assert.equal(script.run(), undefined));

/** What only a script meets, or what a script was written for. */
const caught: readonly (readonly [string, Mutations])[] = [
  ['figure 8', {proposer: new Set(['commit-old-terms'])}],
  ['five nodes, truncation', {acceptor: new Set(['no-truncation'])}],
  ['an elected message comes late', {acceptor: new Set(['elected-of-older-term'])}],
  ['an elected message comes late', {acceptor: new Set(['truncate-at-any-elected'])}],
  [
    'an append of a deposed proposer comes late',
    {acceptor: new Set(['append-from-any-term', 'append-from-any-connection'])},
  ],
  ['acknowledgements of an earlier generation', {proposer: new Set(['keep-acks-across-generations'])}],
  ['the only donor is gone', {proposer: new Set(['never-starts-over'])}],
  ['a damaged donor', {proposer: new Set(['always-best-donor'])}],
  ['a compute starts with a configuration that is over', {proposer: new Set(['never-left-alone'])}],
  ['one term is won in two configurations', {acceptor: new Set(['no-term-bump'])}],
];
for (const [name, mutations] of caught)
  test(`${name} catches ${JSON.stringify(Object.values(mutations).map((set) => [...set]))}`, () =>
    assert.notEqual(scripts.find((s) => s.name === name)!.run(mutations), undefined));
