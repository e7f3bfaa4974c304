/** The machine's memory. */
import {readFileSync} from 'node:fs';
import {freemem} from 'node:os';

/** What programs can still have without swapping, in bytes; on Linux with what the page cache would give back. */
export function availableMemoryBytes(): number {
  try {
    const kilobytes = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1];
    if (kilobytes !== undefined) return Number(kilobytes) * 1024;
  } catch {
    // not Linux
  }
  return freemem();
}
