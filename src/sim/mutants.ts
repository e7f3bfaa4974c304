/**
 * Seeded bugs: each, switched on alone, must be caught by a scripted schedule, the model check or a seed.
 *
 * npm run mutants [-- --seeds N] [--jobs J]   ends with `N of M caught (P %)`
 *
 * Those that nothing catches are argued one by one in README.md.
 */
import type {ProposerMutation} from '#proposer/proposer-io.ts';
import {systemClock} from '#runtime/clock.ts';
import {executablePath, exitProcess, printLine, spawnProcess} from '#runtime/process.ts';
import type {AcceptorMutation} from '#safekeeper/acceptor.ts';
import type {ArchiverMutation} from '#safekeeper/archiver.ts';
import {commandLine} from '#sim/arguments.ts';
import {ModelCheck, models} from '#sim/model-check.ts';
import type {ArchiveShellMutation, ControlMutation, Mutations, StorageMutation} from '#sim/mutations.ts';
import {scripts} from '#sim/scripts.ts';
import {World} from '#sim/world.ts';

export interface Mutant {
  readonly name: string;
  readonly mutations: Mutations;
}

const acceptor: readonly (readonly AcceptorMutation[])[] = [
  ['vote-twice'],
  ['vote-before-save'],
  ['history-not-cut'],
  ['no-truncation'],
  ['truncate-at-any-elected'],
  ['history-before-truncation'],
  ['ack-before-fsync'],
  ['ack-partial-record'],
  ['commit-beyond-flush'],
  // Two checks, one behind the other: each alone changes nothing that can be seen.
  ['append-from-any-term', 'append-from-any-connection'],
  ['take-older-generations'],
  ['no-term-bump'],
  ['membership-not-saved'],
  ['flush-covers-later-writes'],
  ['stale-flush-counts'],
  ['write-broken-ignored'],
  ['elected-of-older-term'],
  ['peer-keeps-own-tail'],
  ['peer-beside-proposer'],
];

const proposer: readonly ProposerMutation[] = [
  'quorum-of-one',
  'donor-by-lsn',
  'donor-by-term',
  'commit-old-terms',
  'reuse-term',
  'ignore-higher-term',
  'commit-partial-record',
  'forget-donor-history',
  'joint-old-only',
  'joint-new-only',
  'keep-acks-across-generations',
  'count-any-generation',
  'votes-of-any-term',
  'start-at-donors-commit',
  'never-starts-over',
  'never-left-alone',
  'always-best-donor',
  'offline-counts',
];

const storage: readonly StorageMutation[] = [
  'flush-without-fsync',
  'flushed-too-early',
  'fsync-last-file-only',
  'fsync-retried',
  'no-directory-fsync',
  'control-file-in-place',
  'control-file-unsynced',
  'control-rename-unsynced',
  'send-before-save',
  'truncate-forgotten',
  'truncate-unsynced',
  'tail-not-cut',
  'flush-mark-ignored',
  'flush-mark-not-lowered',
  'torn-tail-accepted',
  'page-cache-believed',
  'disk-full-ignored',
  'copy-not-rechecked',
  'copy-unsynced',
  'lost-disk-rejoins',
];

const control: readonly ControlMutation[] = [
  'no-joint',
  'joint-not-majority',
  'no-catch-up',
  'catch-up-by-lsn',
  'no-sync-term',
  'state-not-saved',
];

const archiver: readonly ArchiverMutation[] = [
  'trim-unverified',
  'trim-ahead-of-pageserver',
  'drop-before-record',
  'archive-uncommitted',
];

const archive: readonly ArchiveShellMutation[] = [
  'archive-overwrites',
  'archive-undecoded',
  'archive-unverified',
  'parts-forgotten-early',
];

export const mutants: readonly Mutant[] = [
  ...acceptor.map((names) => ({name: `acceptor ${names.join(' + ')}`, mutations: {acceptor: new Set(names)}})),
  ...proposer.map((name) => ({name: `proposer ${name}`, mutations: {proposer: new Set([name])}})),
  ...storage.map((name) => ({name: `storage ${name}`, mutations: {storage: new Set([name])}})),
  ...control.map((name) => ({name: `control ${name}`, mutations: {control: new Set([name])}})),
  ...archiver.map((name) => ({name: `archiver ${name}`, mutations: {archiver: new Set([name])}})),
  ...archive.map((name) => ({name: `archive ${name}`, mutations: {archive: new Set([name])}})),
];

/** What catches the bug first, and how it shows; undefined: nothing does. */
export function hunt(mutant: Mutant, seeds: number, from = 1, states = 300_000): string | undefined {
  for (const script of scripts) {
    const failure = script.run(mutant.mutations);
    if (failure !== undefined) return `script "${script.name}": ${failure}`;
  }
  for (let seed = from; seed < from + seeds; seed++) {
    const {failure} = new World({seed, mutations: mutant.mutations}).run();
    if (failure !== undefined) return `seed ${seed}: ${failure}`;
  }
  // The second one is the first with more records.
  for (const model of models.filter((_, i) => i !== 1)) {
    const {violation} = new ModelCheck({...model, mutations: mutant.mutations, statesMax: states}).run();
    if (violation !== undefined) return `model "${model.name}": ${violation}`;
  }
  return undefined;
}

async function lead(seeds: number, from: number, jobs: number): Promise<void> {
  const startedMs = systemClock.monotonicMs();
  let caught = 0;
  const workers = await Promise.all(
    Array.from({length: jobs}, async (_, j) =>
      spawnProcess({
        command: executablePath,
        args: [
          import.meta.filename,
          '--stride',
          String(jobs),
          '--seed',
          String(j),
          '--seeds',
          String(seeds),
          '--from',
          String(from),
        ],
        onStdoutLine: (line) => {
          if (!line.includes(': not caught')) caught++;
          printLine(line);
        },
        onStderrLine: printLine,
      }),
    ),
  );
  const ends = await Promise.all(workers.map(async (worker) => worker.exited));
  if (ends.some((end) => end.code !== 0)) {
    printLine('a worker ended before its time');
    exitProcess(2);
  }
  printLine(`${((systemClock.monotonicMs() - startedMs) / 1000).toFixed(0)} s, up to ${seeds} seeds each`);
  printLine(`${caught} of ${mutants.length} caught (${Math.floor((100 * caught) / mutants.length)} %)`);
  exitProcess(caught >= mutants.length * 0.9 ? 0 : 1);
}

if (import.meta.main) {
  const {seeds, from, jobs, stride, seed} = commandLine();
  if (stride === undefined) await lead(seeds === 200 ? 1500 : seeds, from, jobs);
  else {
    for (let i = seed ?? 0; i < mutants.length; i += stride) {
      const found = hunt(mutants[i]!, seeds, from);
      printLine(`${mutants[i]!.name}: ${found ?? `not caught in ${seeds} seeds`}`);
    }
    exitProcess(0);
  }
}
