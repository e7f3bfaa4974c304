/** Seeds that once failed: `regressions/<name>.json` holds {seed, note}. They run before all others. */
import {systemDisk} from '#runtime/disk.ts';

export interface Regression {
  readonly seed: number;
  /** What was wrong, and when. The faults a seed draws change with the simulator: a note outlives its seed. */
  readonly note: string;
}

export function regressions(): Regression[] {
  const directory = `${import.meta.dirname}/regressions`;
  if (!systemDisk.exists(directory)) return [];
  return systemDisk
    .list(directory)
    .filter((name) => name.endsWith('.json'))
    .map((name) => JSON.parse(systemDisk.readFile(`${directory}/${name}`).toString('utf8')) as Regression);
}
