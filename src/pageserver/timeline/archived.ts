/**
 * What a pageserver keeps in memory of an archived timeline: this, a few hundred bytes. Everything else is in the object store.
 *
 * A timeline is archived when its newest index says so; archiving moves no data. Its children are archived before it, so that
 * nothing that can be read needs it. Whoever wakes a timeline wakes its ancestors.
 */
import {type Lsn, invalidLsn} from '#postgres/lsn.ts';
import type {TimelineIndex} from './index-object.ts';

export interface ArchivedTimeline {
  readonly timelineId: string;
  /** Milliseconds since 1970. */
  readonly archivedAtMs: number;
  readonly ancestorTimelineId?: string;
  readonly ancestorLsn?: Lsn;
  readonly initialLsn: Lsn;
  /** Its end: WAL behind it, if there is any, is at the safekeepers. */
  readonly lastRecordLsn: Lsn;
  /** As of when it was archived: TimelineInfo.walNeededLsn. */
  readonly walNeededLsn: Lsn;
  readonly pgVersion: number;
  readonly systemId: string;
  readonly logicalSizeBytes: number;
  readonly layers: number;
  readonly layerBytes: number;
}

export function archivedFromIndex(index: TimelineIndex, archivedAtMs: number): ArchivedTimeline {
  const {ancestorTimelineId} = index;
  return {
    timelineId: index.timelineId,
    archivedAtMs,
    ...(ancestorTimelineId === undefined ? {} : {ancestorTimelineId, ancestorLsn: index.ancestorLsn ?? invalidLsn}),
    initialLsn: index.initialLsn,
    lastRecordLsn: index.diskConsistentLsn,
    walNeededLsn: Math.min(index.gcCutoffLsn, index.diskConsistentLsn) as Lsn,
    pgVersion: index.pgVersion,
    systemId: index.systemId,
    logicalSizeBytes: index.logicalSizeBytes,
    layers: index.layers.length,
    layerBytes: index.layers.reduce((sum, layer) => sum + layer.size, 0),
  };
}
