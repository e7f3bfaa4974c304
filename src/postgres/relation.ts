/** Names of relation files (storage/relfilenode.h, common/relpath.h). */

export const blockSize = 8192;
/** Blocks in one 1 GiB segment file. */
export const relSegmentBlocks = 131072;

export const fork = {main: 0, fsm: 1, vm: 2, init: 3} as const;
export type ForkNumber = 0 | 1 | 2 | 3;

export const defaultTablespace = 1663;
export const globalTablespace = 1664;

/** One fork of one relation. `dbNode` is 0 for shared relations. */
export interface RelTag {
  readonly spcNode: number;
  readonly dbNode: number;
  readonly relNode: number;
  readonly fork: ForkNumber;
}

const forkSuffix = ['', '_fsm', '_vm', '_init'] as const;

/** `spc/db/rel_fork`: for errors and logs. */
export function formatRel(rel: RelTag): string {
  return `${rel.spcNode}/${rel.dbNode}/${rel.relNode}${forkSuffix[rel.fork]}`;
}

/** Path of the first segment inside a data directory, or undefined for a tablespace other than the two built-in ones. */
export function relPath(rel: RelTag): string | undefined {
  const file = `${rel.relNode}${forkSuffix[rel.fork]}`;
  if (rel.spcNode === globalTablespace) return `global/${file}`;
  if (rel.spcNode === defaultTablespace) return `base/${rel.dbNode}/${file}`;
  return undefined;
}
