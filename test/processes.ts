/** The processes of this machine, as /proc has them. */
import {readFileSync, readdirSync} from 'node:fs';

export interface Process {
  readonly pid: number;
  readonly parent: number;
  readonly args: readonly string[];
  /** Time on a processor so far, in seconds. */
  readonly cpuSeconds: number;
}

const ticksPerSecond = 100;

/** All but zombies. */
export function processes(): Process[] {
  return readdirSync('/proc')
    .filter((n) => /^\d+$/.test(n))
    .flatMap((n) => {
      try {
        const args = readFileSync(`/proc/${n}/cmdline`, 'utf8').split('\0');
        const stat = readFileSync(`/proc/${n}/stat`, 'utf8');
        // From the third on: state, parent, …; user and system time are the 14th and 15th.
        const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
        if (fields[0] === 'Z') return [];
        const cpuSeconds = (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
        return [{pid: Number(n), parent: Number(fields[1]), args, cpuSeconds}];
      } catch {
        return []; // it has just ended
      }
    });
}

/** Those that name the directory or something in it, and all their descendants; never this process and those that started it. */
export function processesOf(dir: string): Process[] {
  const all = processes();
  const above = new Set<number>();
  for (let pid = process.pid; pid > 1; pid = all.find((p) => p.pid === pid)?.parent ?? 0) above.add(pid);
  const ours = new Set(
    all.filter((p) => !above.has(p.pid) && p.args.some((a) => a === dir || a.startsWith(`${dir}/`))).map((p) => p.pid),
  );
  for (let grew = true; grew;) {
    grew = false;
    for (const p of all) if (!ours.has(p.pid) && ours.has(p.parent)) grew = ours.add(p.pid).size > 0;
  }
  return all.filter((p) => ours.has(p.pid) && !above.has(p.pid));
}

/** Whoever is still there gets it. */
export function signalAll(pids: readonly (number | undefined)[], signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void {
  for (const pid of pids)
    try {
      if (pid !== undefined) process.kill(pid, signal);
    } catch {
      // gone by itself
    }
}
