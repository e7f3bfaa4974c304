import type {Pagoda} from '../test/pagoda.ts';
import {readCpu} from './process-cpu.ts';

/**
 * Waits until the page server has nothing left to do: it makes images of what has settled within twice settleMs (10 s) of the last
 * WAL, so it has when it was idle for longer. Answers how many seconds that took.
 */
export async function settled(pagoda: Pagoda): Promise<number> {
  const started = performance.now();
  for (let idle = 0; idle < 25;) {
    const before = readCpu(pagoda.processes(), pageserverOnly).get('pageserver') ?? 0;
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const ns = (readCpu(pagoda.processes(), pageserverOnly).get('pageserver') ?? 0) - before;
    idle = ns < 0.05 * 1e9 ? idle + 1 : 0;
  }
  return (performance.now() - started) / 1000;
}

function pageserverOnly(args: readonly string[]): string {
  return args.includes('pageserver') ? 'pageserver' : 'others';
}
