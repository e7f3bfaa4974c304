/**
 * Tests the simulator itself: each seeded bug, switched on alone, must be found.
 * sh scripts/node src/sim/mutants.ts [--seeds N]   ends with `N of M caught`
 */
import type {ProposerMutation} from '#proposer/proposer.ts';
import {exitProcess, printLine} from '#runtime/process.ts';
import type {AcceptorMutation} from '#safekeeper/acceptor.ts';
import {commandLine} from '#sim/arguments.ts';
import {World} from '#sim/world.ts';

export interface Mutant {
  readonly name: string;
  readonly acceptor?: readonly AcceptorMutation[];
  readonly proposer?: readonly ProposerMutation[];
}

/**
 * Not here: `commit-old-terms`, which only a script meets (figure-8.test.ts). `append-from-any-term` and
 * `append-from-any-connection` stand behind one another, so each alone changes nothing that can be seen: only both are a bug.
 */
export const mutants: readonly Mutant[] = [
  ...(
    [
      'vote-twice',
      'vote-before-save',
      'history-not-cut',
      'no-truncation',
      'truncate-at-any-elected',
      'history-before-truncation',
      'ack-before-fsync',
      'ack-partial-record',
      'commit-beyond-flush',
    ] as const
  ).map((name) => ({name: `acceptor ${name}`, acceptor: [name]})),
  {name: 'acceptor takes stale appends', acceptor: ['append-from-any-term', 'append-from-any-connection']},
  ...(
    [
      'quorum-of-one',
      'donor-by-lsn',
      'donor-by-term',
      'reuse-term',
      'ignore-higher-term',
      'commit-partial-record',
      'forget-donor-history',
    ] as const
  ).map((name) => ({
    name: `proposer ${name}`,
    proposer: [name],
  })),
];

/** The first seed of `from … from + seeds - 1` that finds the bug, and how. */
export function hunt(
  mutant: Mutant,
  seeds: number,
  from = 1,
): {readonly seed: number; readonly failure: string} | undefined {
  for (let seed = from; seed < from + seeds; seed++) {
    const result = new World({
      seed,
      ...(mutant.acceptor ? {acceptorMutations: new Set(mutant.acceptor)} : {}),
      ...(mutant.proposer ? {proposerMutations: new Set(mutant.proposer)} : {}),
    }).run();
    if (result.failure !== undefined) return {seed, failure: result.failure};
  }
  return undefined;
}

if (import.meta.main) {
  const {seeds, from} = commandLine();
  let caught = 0;
  for (const mutant of mutants) {
    const found = hunt(mutant, seeds, from);
    if (found) caught++;
    printLine(
      `${mutant.name}: ${found ? `caught by seed ${found.seed}: ${found.failure}` : `not caught in ${seeds} seeds`}`,
    );
  }
  printLine(`${caught} of ${mutants.length} caught`);
  exitProcess(0);
}
