import {exitProcess, printLine} from '#runtime/process.ts';
import {programArguments} from '#runtime/program.ts';

export interface SimArguments {
  readonly seeds: number;
  readonly from: number;
  readonly seed: number | undefined;
  readonly trace: boolean;
  /** Worker processes. */
  readonly jobs: number;
  /** Set in a worker: every so many-th seed is its own. */
  readonly stride: number | undefined;
}

/** Ends the process with the usage when an argument is not understood. */
export function commandLine(): SimArguments {
  const numbers: Record<string, number | undefined> = {};
  let trace = false;
  for (let i = 0; i < programArguments.length; i++) {
    const name = programArguments[i]!;
    const value = Number(programArguments[i + 1]);
    if (name === '--trace') trace = true;
    else if (
      ['--seeds', '--from', '--seed', '--jobs', '--stride'].includes(name) &&
      Number.isSafeInteger(value) &&
      value >= 0
    ) {
      numbers[name] = value;
      i++;
    } else usage();
  }
  return {
    seeds: numbers['--seeds'] ?? 200,
    from: numbers['--from'] ?? 1,
    seed: numbers['--seed'],
    trace,
    jobs: Math.max(1, numbers['--jobs'] ?? 2),
    stride: numbers['--stride'],
  };
}

function usage(): never {
  printLine(
    'usage: npm run sim -- [--seeds N] [--from SEED] [--jobs PROCESSES]   or   npm run sim -- --seed SEED [--trace]',
  );
  exitProcess(2);
}
