import {setTimeout as sleep} from 'node:timers/promises';

/** Whether the promise was fulfilled in this time. Leaves no timer: one that nobody waits for keeps a test's process from ending. */
export async function within(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const over = new AbortController();
  try {
    return await Promise.race([promise.then(() => true), sleep(ms, false, {signal: over.signal})]);
  } finally {
    over.abort();
  }
}
