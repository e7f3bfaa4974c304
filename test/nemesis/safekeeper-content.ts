/** Safekeepers agree on content, not only on LSNs: byte for byte, as far as each has committed WAL on its disk. */
import {existsSync, readFileSync, readdirSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {formatLsn, parseLsn} from '#postgres/lsn.ts';
import {parseSegmentFileName, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {requestJson} from '#runtime/http.ts';
import {type Cell, safekeeperNames} from './cell.ts';

interface Status {
  readonly startLsn: string;
  readonly flushLsn: string;
  readonly commitLsn: string;
  readonly term: number;
}

/** Status of one timeline on each safekeeper. */
export async function safekeeperStatus(
  cell: Cell,
  tenant: string,
  timeline: string,
  names: readonly string[] = safekeeperNames,
): Promise<(Status | undefined)[]> {
  const token = await cell.token('safekeeper');
  return Promise.all(
    names.map(async (name) => {
      const url = `${cell.urlOf(`${name}-http`)}/v1/tenant/${tenant}/timeline/${timeline}`;
      try {
        const {status, json} = await requestJson({method: 'GET', url, token, timeoutMs: 5000});
        return status === 200 ? (json as Status) : undefined;
      } catch {
        return undefined;
      }
    }),
  );
}

export interface Timeline {
  readonly tenant: string;
  readonly timeline: string;
}

/** Timelines that any safekeeper has on its disk. */
export function timelinesOnDisk(cell: Cell, names: readonly string[] = safekeeperNames): Timeline[] {
  const found = new Map<string, Timeline>();
  for (const name of names) {
    const base = cell.layout.node(name);
    for (const tenant of list(base))
      for (const timeline of list(join(base, tenant)))
        if (/^[0-9a-f]{32}$/.test(timeline)) found.set(`${tenant}/${timeline}`, {tenant, timeline});
  }
  return [...found.values()];
}

/**
 * Waits until all three have the same commit LSN (they catch up with a running compute), then compares the bytes below it. A
 * timeline that is on no disk any more was deleted meanwhile: a safekeeper that was down learns of it when it is back.
 */
export async function compareSafekeepers(
  cell: Cell,
  problems: string[],
  say: (line: string) => void,
  names: readonly string[] = safekeeperNames,
  timelines: readonly Timeline[] = timelinesOnDisk(cell, names),
): Promise<void> {
  let bytes = 0;
  for (const {tenant, timeline} of timelines) {
    const deadline = performance.now() + 60_000;
    let statuses: (Status | undefined)[];
    for (;;) {
      if (!timelinesOnDisk(cell, names).some((t) => t.timeline === timeline)) {
        statuses = [];
        break;
      }
      statuses = await safekeeperStatus(cell, tenant, timeline, names);
      const commits = statuses.map((s) => (s === undefined ? -1 : parseLsn(s.commitLsn)));
      if (Math.min(...commits) >= 0 && Math.max(...commits) - Math.min(...commits) < 1024 * 1024) break;
      if (performance.now() > deadline) {
        problems.push(
          `safekeepers do not come together on timeline ${timeline}: commit LSNs ${statuses.map((s) => s?.commitLsn ?? 'none').join(', ')}`,
        );
        break;
      }
      await sleep(250);
    }
    const known = statuses.filter((s) => s !== undefined);
    if (known.length < 2) continue;
    const startLsn = Math.max(...known.map((s) => parseLsn(s.startLsn)));
    const endLsn = Math.min(...known.map((s) => parseLsn(s.commitLsn)));
    bytes += compareFiles(cell, names, tenant, timeline, startLsn, endLsn, problems);
  }
  if (bytes === 0) problems.push('no byte of the safekeepers was compared');
  say(`safekeepers hold the same bytes: ${bytes} compared`);
}

function compareFiles(
  cell: Cell,
  names: readonly string[],
  tenant: string,
  timeline: string,
  startLsn: number,
  endLsn: number,
  problems: string[],
): number {
  const directories = names.map((name) => join(cell.layout.node(name), tenant, timeline));
  const files = new Set(
    directories.flatMap(list).filter((f) => parseSegmentFileName(f, walSegmentSizeDefault) !== undefined),
  );
  let compared = 0;
  for (const name of files) {
    const first = parseSegmentFileName(name, walSegmentSizeDefault)!.segment * walSegmentSizeDefault;
    const from = Math.max(startLsn - first, 0);
    const to = Math.min(endLsn - first, walSegmentSizeDefault);
    if (to <= from) continue;
    // Trimmed on one, still on another: only those that have the file have a say.
    const copies = directories
      .filter((d) => existsSync(join(d, name)))
      .map((d) => readFileSync(join(d, name)).subarray(from, to));
    for (const copy of copies.slice(1)) {
      compared += to - from;
      if (copy.equals(copies[0]!)) continue;
      const at = copies[0]!.findIndex((byte, i) => byte !== copy[i]);
      problems.push(`safekeepers differ on timeline ${timeline} at ${formatLsn((first + from + at) as never)}`);
    }
  }
  return compared;
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}
