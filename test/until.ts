import {setTimeout as sleep} from 'node:timers/promises';

/**
 * Waits for a state instead of a time. The deadline is for a machine that is several times slower and busy: it only says when to
 * give up. A condition that throws does not hold yet; what it threw last is in the error's message. Answers the milliseconds.
 */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  msMax = 240_000,
): Promise<number> {
  const started = performance.now();
  for (let said = ''; ;) {
    try {
      if (await condition()) return Math.round(performance.now() - started);
    } catch (error) {
      said = `: ${(error as Error).message}`;
    }
    if (performance.now() - started > msMax) throw new Error(`did not happen within ${msMax / 1000} s: ${what}${said}`);
    await sleep(50);
  }
}
