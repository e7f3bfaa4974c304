/**
 * Generations: which attachment of a tenant is the newest (design D9). A number that was given out once must never be given out
 * again, not even by a control plane that was restored from an old backup and has forgotten it: two pageservers would write
 * objects of the same names. So a new one is above the last one known here *and* above the clock, in seconds: what was given
 * out after the backup was below the clock then. (No tenant is attached anew once a second for long; then the count runs ahead
 * of the clock by as much.)
 */
import type {Clock} from '#runtime/clock.ts';

/** 32 bits, in the names of objects. */
const generationMax = 0xffff_ffff;

export function nextGeneration(last: number, clock: Clock): number {
  const next = Math.max(last + 1, Math.floor(clock.nowMs() / 1000));
  if (next > generationMax) throw new Error(`generation ${next} does not fit into 32 bits: is the clock right?`);
  return next;
}
