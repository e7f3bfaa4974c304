/**
 * What a pageserver keeps in memory of an archived timeline: this, a few hundred bytes. Everything else is in the object store.
 *
 * A timeline is archived when its newest index says so; archiving moves no data. Its children are archived before it, so that
 * nothing that can be read needs it. Whoever wakes a timeline wakes its ancestors.
 *
 * Beside such an index lies an empty object, whose name says it too:
 *
 *   tenants/<tenant>/timelines/<timeline>/archived-<generation>-<sequence>-<ms since 1970, 12 hex>-<layers, 8 hex>
 *                                        -<walNeededLsn, 16 hex>[-<ancestor timeline>-<its LSN, 16 hex>]
 *
 * so that an attachment need not read the indexes of thousands of archived branches: the list of names is enough. It is put
 * after the index of that generation and sequence was validated, and means something only while no later index is there. When it
 * is missing, the index is read.
 */
import {type Lsn, invalidLsn, lsn, lsnToHex} from '#postgres/lsn.ts';
import {type TimelineIndex, timelinePrefix} from './index-object.ts';

export interface ArchivedTimeline {
  readonly timelineId: string;
  /** Milliseconds since 1970. */
  readonly archivedAtMs: number;
  readonly ancestorTimelineId?: string;
  readonly ancestorLsn?: Lsn;
  /** As of when it was archived: TimelineInfo.walNeededLsn. */
  readonly walNeededLsn: Lsn;
  /** Number of layers that its index names. */
  readonly layers: number;
}

export function archivedFromIndex(index: TimelineIndex, archivedAtMs: number): ArchivedTimeline {
  const {timelineId, ancestorTimelineId, ancestorLsn = invalidLsn} = index;
  return {
    timelineId,
    archivedAtMs,
    ...(ancestorTimelineId === undefined ? {} : {ancestorTimelineId, ancestorLsn}),
    walNeededLsn: Math.min(index.gcCutoffLsn, index.diskConsistentLsn) as Lsn,
    layers: index.layers.length,
  };
}

interface Position {
  readonly generation: number;
  readonly sequence: number;
}

/** Name of the mark beside the index at `at`. */
export function archivedMarkKey(tenantId: string, at: Position, archived: ArchivedTimeline): string {
  const {timelineId, archivedAtMs, layers, walNeededLsn, ancestorTimelineId, ancestorLsn = invalidLsn} = archived;
  const own = `archived-${hex(at.generation, 8)}-${hex(at.sequence, 8)}-${hex(archivedAtMs, 12)}-${hex(layers, 8)}`;
  const parent = ancestorTimelineId === undefined ? '' : `-${ancestorTimelineId}-${lsnToHex(ancestorLsn)}`;
  return `${timelinePrefix(tenantId, timelineId)}${own}-${lsnToHex(walNeededLsn)}${parent}`;
}

/** What the name of a mark says, or undefined when the key is none. */
export function parseArchivedMarkKey(key: string): {at: Position; archived: ArchivedTimeline} | undefined {
  const match =
    /\/timelines\/([0-9a-f]{32})\/archived-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{12})-([0-9a-f]{8})-([0-9A-F]{16})(?:-([0-9a-f]{32})-([0-9A-F]{16}))?$/.exec(
      key,
    );
  if (match === null) return undefined;
  const [, timelineId, generation, sequence, archivedAtMs, layers, walNeeded, ancestorTimelineId, ancestorLsn] = match;
  return {
    at: {generation: parseInt(generation!, 16), sequence: parseInt(sequence!, 16)},
    archived: {
      timelineId: timelineId!,
      archivedAtMs: parseInt(archivedAtMs!, 16),
      layers: parseInt(layers!, 16),
      walNeededLsn: lsn(parseInt(walNeeded!, 16)),
      ...(ancestorTimelineId === undefined ? {} : {ancestorTimelineId, ancestorLsn: lsn(parseInt(ancestorLsn!, 16))}),
    },
  };
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, '0');
}
