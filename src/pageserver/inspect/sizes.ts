/** What a branch occupies, by whom it is held, and which relations it belongs to. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize} from '#postgres/relation.ts';
import {LayerCursor} from '../layers/layer-cursor.ts';
import {planGc} from '../timeline/gc-plan.ts';
import type {LayerDescription} from '../timeline/index-object.ts';
import {heldPoints} from '../timeline/kept-history.ts';
import {keyBytes, keyKind} from '../timeline/key.ts';
import type {Timeline} from '../timeline/timeline.ts';
import {valueHeaderBytes} from '../timeline/value.ts';

export interface BranchSizes {
  readonly lastRecordLsn: string;
  readonly gcCutoffLsn: string;
  /** What Postgres would say: blocks of all forks. */
  readonly logicalBytes: number;
  /** In the object store, of this branch's own layers. */
  readonly storedBytes: number;
  readonly layers: number;
  /** Not uploaded yet. */
  readonly memoryBytes: number;
  /** What each reason alone keeps: the bytes that would be free without it. */
  readonly pinnedBy: readonly {readonly what: string; readonly bytes: number}[];
}

/** `childName`: how to call a child branch. */
export function branchSizes(timeline: Timeline): BranchSizes {
  const {state} = timeline;
  const layers = state.layers.descriptions();
  const total = sum(layers);
  const cutoff = state.gcCutoffLsn;
  const points = [...heldPoints(state, state.lastRecordLsn), cutoff].sort((x, y) => x - y);
  // Without any history: only the newest state is wanted.
  const without = (kept: readonly Lsn[]): number => sum(planGc(layers, kept));
  const free = without([...new Set(points)]);
  const pinnedBy: {what: string; bytes: number}[] = [];
  const onlyNewest = [...new Set([...points.filter((p) => p !== cutoff), state.lastRecordLsn])].sort((x, y) => x - y);
  pinnedBy.push({
    what: `restore window (from ${formatLsn(cutoff)} to ${formatLsn(state.lastRecordLsn)})`,
    bytes: Math.max(0, without(onlyNewest) - free),
  });
  for (const [child, lsn] of state.branchPoints)
    pinnedBy.push({
      what: `branch ${child} at ${formatLsn(lsn)}`,
      bytes: Math.max(0, without(points.filter((p) => p !== lsn)) - free),
    });
  for (const lsn of state.leases.keys())
    pinnedBy.push({
      what: `lease at ${formatLsn(lsn)}`,
      bytes: Math.max(0, without(points.filter((p) => p !== lsn)) - free),
    });
  if (free > 0) pinnedBy.push({what: 'nothing: goes with the next garbage collection', bytes: free});
  return {
    lastRecordLsn: formatLsn(state.lastRecordLsn),
    gcCutoffLsn: formatLsn(cutoff),
    logicalBytes: state.logicalSizeBytes,
    storedBytes: total,
    layers: layers.length,
    memoryBytes: (state.open?.bytes ?? 0) + state.frozen.reduce((bytes, {layer}) => bytes + layer.bytes, 0),
    pinnedBy,
  };
}

export interface RelationSize {
  readonly rel: RelTag;
  /** As of the last record; 0: dropped, but history has it. */
  readonly logicalBytes: number;
  /** In this branch's own layers: its share of the stored bytes, by the raw bytes of its values. */
  readonly storedBytes: number;
  readonly versions: number;
}

const readAheadBytes = 4 * 1024 * 1024;
/** A millisecond or two of work. */
const versionsPerTurn = 4000;

/** Goes through all layers of the branch, with pauses for others of the process. `storedBytes` of everything that is no relation's page is under relation 0. */
export async function relationSizes(timeline: Timeline, pause: () => Promise<void>): Promise<RelationSize[]> {
  const {state} = timeline;
  const at = state.lastRecordLsn;
  const found = new Map<string, {rel: RelTag; logical: number; stored: number; versions: number}>();
  const of = (
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: number,
  ): {logical: number; stored: number; versions: number} => {
    const id = `${spcNode}/${dbNode}/${relNode}/${fork}`;
    let entry = found.get(id);
    if (entry === undefined) {
      entry = {rel: {spcNode, dbNode, relNode, fork: fork as RelTag['fork']}, logical: 0, stored: 0, versions: 0};
      found.set(id, entry);
    }
    return entry;
  };
  for (const {spcNode, dbNode} of [{spcNode: 1664, dbNode: 0}, ...(await timeline.listDatabases(at))])
    for (const {rel, blocks} of await timeline.listRelations(spcNode, dbNode, at))
      of(rel.spcNode, rel.dbNode, rel.relNode, rel.fork).logical = blocks * blockSize;
  let seen = 0;
  for (const reader of state.layers.readers()) {
    const raw = new Map<{stored: number; versions: number}, number>();
    let total = 0;
    const cursor = new LayerCursor(reader, Buffer.alloc(keyBytes), Buffer.alloc(keyBytes, 0xff), readAheadBytes);
    for (let more = await cursor.start(); more; more = await cursor.next()) {
      const value = cursor.value ?? (await cursor.fetchValue());
      const {keyBuffer: key, keyOffset: from} = cursor;
      const entry =
        key[from] === keyKind.relPage
          ? of(key.readUInt32BE(from + 1), key.readUInt32BE(from + 5), key.readUInt32BE(from + 9), key[from + 13]!)
          : of(0, 0, 0, 0);
      const bytes = value.payload.length + valueHeaderBytes + keyBytes;
      entry.versions++;
      if (++seen % versionsPerTurn === 0) await pause();
      raw.set(entry, (raw.get(entry) ?? 0) + bytes);
      total += bytes;
    }
    for (const [entry, bytes] of raw) entry.stored += (bytes / total) * reader.description.size;
  }
  return [...found.values()]
    .map(({rel, logical, stored, versions}) => ({
      rel,
      logicalBytes: logical,
      storedBytes: Math.round(stored),
      versions,
    }))
    .sort((x, y) => y.storedBytes - x.storedBytes);
}

function sum(layers: readonly LayerDescription[]): number {
  return layers.reduce((bytes, {size}) => bytes + size, 0);
}
