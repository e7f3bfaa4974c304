/** Where the CPU time of a machine goes while something is measured: by process, children included, from /proc. */
import {readFileSync, readdirSync} from 'node:fs';

/** Nanoseconds on a CPU (user and system, all threads that are alive) by label. */
export type CpuByLabel = ReadonlyMap<string, number>;

/** `label` names the account of a process from its arguments (of a Postgres child: its title), or undefined to leave it out. */
export function readCpu(
  pids: Iterable<number>,
  label: (args: readonly string[], pid: number) => string | undefined,
): CpuByLabel {
  const sums = new Map<string, number>();
  for (const pid of pids) {
    try {
      const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
      const name = label(args, pid);
      if (name === undefined) continue;
      let ns = 0;
      for (const task of readdirSync(`/proc/${pid}/task`))
        ns += Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, 'utf8').split(' ')[0]);
      sums.set(name, (sums.get(name) ?? 0) + ns);
    } catch {
      // ended in between
    }
  }
  return sums;
}

/** Microseconds per unit of work, largest first; what is below a tenth of a microsecond is left out. */
export function cpuPerUnit(before: CpuByLabel, after: CpuByLabel, units: number): Record<string, number> {
  return Object.fromEntries(
    [...after]
      .map(([name, ns]): [string, number] => [name, (ns - (before.get(name) ?? 0)) / 1000 / units])
      .filter(([, us]) => us >= 0.1)
      .sort((a, b) => b[1] - a[1]),
  );
}

/** All processes of which one of the given is an ancestor, and these. */
export function withDescendants(pids: Iterable<number>): number[] {
  const parents = new Map<number, number>();
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
    } catch {
      // ended in between
    }
  }
  const found = new Set(pids);
  for (let grew = true; grew;) {
    grew = false;
    for (const [pid, parent] of parents) if (!found.has(pid) && found.has(parent)) grew = found.add(pid).size > 0;
  }
  return [...found];
}
