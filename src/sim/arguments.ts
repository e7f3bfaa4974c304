import {exitProcess, printLine} from '#runtime/process.ts';
import {programArguments} from '#runtime/program.ts';

export interface SimArguments {
  readonly seeds: number;
  readonly from: number;
  readonly seed: number | undefined;
  readonly trace: boolean;
}

/** Ends the process with the usage when an argument is not understood. */
export function commandLine(): SimArguments {
  let seeds = 200;
  let from = 1;
  let seed: number | undefined;
  let trace = false;
  for (let i = 0; i < programArguments.length; i++) {
    const name = programArguments[i];
    const value = Number(programArguments[i + 1]);
    if (name === '--trace') trace = true;
    else if (!Number.isSafeInteger(value) || value < 0) usage();
    else {
      i++;
      if (name === '--seeds') seeds = value;
      else if (name === '--from') from = value;
      else if (name === '--seed') seed = value;
      else usage();
    }
  }
  return {seeds, from, seed, trace};
}

function usage(): never {
  printLine('usage: npm run sim -- [--seeds N] [--from SEED]   or   npm run sim -- --seed SEED [--trace]');
  exitProcess(2);
}
