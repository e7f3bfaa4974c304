/** Processes of this installation that outlived a `kill -9` of their supervisor. */
import type {Clock} from '#runtime/clock.ts';
import {listProcesses} from '#runtime/process-table.ts';
import {ownPid, signalProcess} from '#runtime/process.ts';

interface Leftover {
  readonly pid: number;
  readonly what: string;
  readonly isPostgres: boolean;
}

/**
 * Ours is a process whose command line has the path of a file inside the data directory right after `--config` (every role)
 * or `-D` (postmasters of computes). A pid alone proves nothing: it may long belong to somebody else.
 */
export function findLeftovers(dataDir: string): Leftover[] {
  const inside = `${dataDir}/`;
  const found: Leftover[] = [];
  for (const {pid, args} of listProcesses()) {
    if (pid === ownPid) continue;
    const at = args.findIndex(
      (argument, i) => (argument === '--config' || argument === '-D') && (args[i + 1] ?? '').startsWith(inside),
    );
    if (at < 0) continue;
    const isPostgres = args[at] === '-D';
    found.push({pid, isPostgres, what: isPostgres ? 'postgres' : (args[at - 1] ?? 'pagoda')});
  }
  return found;
}

/** Ends them: nothing they hold is lost, that is what the storage is for. Throws when one cannot be ended. */
export async function endLeftovers(dataDir: string, clock: Clock, report: (line: string) => void): Promise<void> {
  const deadline = clock.monotonicMs() + 20_000;
  for (let round = 0; ; round++) {
    const left = findLeftovers(dataDir);
    if (left.length === 0) return;
    if (round === 0)
      report(`ending ${left.length} processes of an earlier run: ${left.map((p) => `${p.what} ${p.pid}`).join(', ')}`);
    // A postmaster takes its children along on SIGQUIT; the second try is the hard one.
    for (const {pid, isPostgres} of left) signalProcess(pid, isPostgres && round < 40 ? 'SIGQUIT' : 'SIGKILL');
    if (clock.monotonicMs() > deadline)
      throw new Error(
        `processes of an earlier run cannot be ended: ${left.map((p) => p.pid).join(', ')}; end them by hand`,
      );
    await clock.sleep(50);
  }
}
