/**
 * Back-pressure: how long a backend of the compute waits for each MiB of WAL that it makes, so that the pageserver does not
 * fall behind without bound (a new compute, and a branch of now, wait until it has caught up). Pure.
 *
 * Proportional: nothing up to `softBytes` of lag, then more and more, until at `hardBytes` writers stop. It settles where
 * writers make as much WAL as the pageserver takes in, whatever that is and however many they are. Reads never wait.
 */

/** Writers stop altogether. */
export const throttleStop = 0xffff_ffff;

export interface ThrottleLimits {
  readonly softBytes: number;
  readonly hardBytes: number;
  /** Halfway between the two. */
  readonly middleUsPerMib: number;
}

export const throttleLimits: ThrottleLimits = {
  // A second or two of ingest; below, waiting would only cost.
  softBytes: 32 * 1024 * 1024,
  hardBytes: 256 * 1024 * 1024,
  middleUsPerMib: 40_000,
};

/** Microseconds of waiting per MiB of WAL, or throttleStop. */
export function throttleFor(lagBytes: number, limits: ThrottleLimits = throttleLimits): number {
  const x = (lagBytes - limits.softBytes) / (limits.hardBytes - limits.softBytes);
  if (x <= 0) return 0;
  if (x >= 1) return throttleStop;
  return Math.max(1, Math.min(10_000_000, Math.round((limits.middleUsPerMib * x) / (1 - x))));
}

const magic = 0x5468726f;

/** Content of `<data directory>/pagoda_throttle` (extension/throttle.c). */
export function encodeThrottle(usPerMib: number): Buffer {
  const b = Buffer.allocUnsafe(8);
  b.writeUInt32LE(magic, 0);
  b.writeUInt32LE(usPerMib, 4);
  return b;
}
