/**
 * Which SLRU pages a truncation removes (slru.c SimpleLruTruncate): whole segments of 32 pages all of which precede the
 * cut-off page, on the circle of page numbers.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {
  type SlruKind,
  clogXactsPerPage,
  commitTsXactsPerPage,
  multixactMembersPageMax,
  multixactMembersPerPage,
  multixactOffsetsPerPage,
  slruKind,
  slruPagesPerSegment,
} from '#postgres/slru.ts';
import type {IngestSink} from '#pageserver/ingest/sink.ts';

const ids = 4294967296;

export const commitTsPageCount = Math.ceil(ids / commitTsXactsPerPage);

const pageCounts: readonly number[] = [
  ids / clogXactsPerPage,
  ids / multixactOffsetsPerPage,
  multixactMembersPageMax + 1,
  commitTsPageCount,
];

/** Drops the segments before the one of `cutoffPage`: half the circle back. */
export function truncateSlru(sink: IngestSink, kind: SlruKind, cutoffPage: number, lsn: Lsn): void {
  const count = pageCounts[kind]!;
  const end = Math.floor(cutoffPage / slruPagesPerSegment) * slruPagesPerSegment;
  const start = end - Math.floor(count / 2 / slruPagesPerSegment) * slruPagesPerSegment;
  if (start < 0)
    sink.slruDropPages(kind, Math.ceil((count + start) / slruPagesPerSegment) * slruPagesPerSegment, count, lsn);
  if (end > 0) sink.slruDropPages(kind, Math.max(start, 0), end, lsn);
}

/** PerformMembersTruncation (multixact.c): member segments from that of one offset up to that of another, which stays. */
export function truncateMembers(sink: IngestSink, startOffset: number, endOffset: number, lsn: Lsn): void {
  const kind = slruKind.multixactMembers;
  const start = firstPageOfSegment(startOffset);
  const end = firstPageOfSegment(endOffset);
  if (start < end) {
    sink.slruDropPages(kind, start, end, lsn);
  } else if (start > end) {
    sink.slruDropPages(kind, start, pageCounts[kind]!, lsn);
    if (end > 0) sink.slruDropPages(kind, 0, end, lsn);
  }
}

function firstPageOfSegment(offset: number): number {
  return Math.floor(offset / multixactMembersPerPage / slruPagesPerSegment) * slruPagesPerSegment;
}
