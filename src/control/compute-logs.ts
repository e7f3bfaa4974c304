/** Logs of computes: one file each, kept once more when it has grown large, and removed when nothing else is left of its compute. */
import {type Disk, joinPath} from '#runtime/disk.ts';

/** An old log is kept once. */
const logBytesMax = 16 * 1024 * 1024;
/** Somebody may want to know what a schema copy or a start said that failed. */
export const logKeptMs = 3_600_000;

/** `name`: an endpoint's id, or what spare agents are called. */
export function openLogFile(disk: Disk, logsDir: string, name: string): string {
  const path = joinPath(logsDir, `compute-${name}.log`);
  if ((disk.stat(path)?.size ?? 0) > logBytesMax) disk.rename(path, `${path}.1`);
  return path;
}

/** Of computes without a directory, an hour after their last line. */
export function removeOldLogs(
  disk: Disk,
  {logsDir, computesDir}: {readonly logsDir: string; readonly computesDir: string},
  nowMs: number,
): void {
  if (!disk.exists(logsDir)) return;
  for (const name of disk.list(logsDir)) {
    const endpointId = /^compute-(ep-[\w-]+)\.log(\.1)?$/.exec(name)?.[1];
    if (endpointId === undefined || disk.exists(joinPath(computesDir, endpointId))) continue;
    const path = joinPath(logsDir, name);
    if ((disk.stat(path)?.mtimeMs ?? nowMs) < nowMs - logKeptMs) disk.remove(path);
  }
}
