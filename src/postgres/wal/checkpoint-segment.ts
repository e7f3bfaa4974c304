/**
 * Start without recovery (docs/design D3): the WAL that makes a data directory look cleanly shut down at any LSN X. It is
 * one shutdown-checkpoint record at X, on pages with valid headers, and a pg_control that names it. Postgres reads the
 * record, finds nothing to replay, and goes on writing behind it.
 *
 * The bytes from X to the end of the record are part of the branch's WAL from then on. What lies before X on its page is
 * zeros here; nobody reads it: replication starts at X.
 */
import {type ControlFile, databaseState} from '#postgres/control-file.ts';
import {type Lsn, formatLsn, lsn} from '#postgres/lsn.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {
  segmentFileName,
  segmentNumber,
  walPageHeaderSize,
  walPageSize,
  walSegmentSizeDefault,
  writeWalPageHeader,
} from '#postgres/wal/segment.ts';
import {WalWriter, mainDataBody} from '#postgres/wal/writer.ts';

/** Bytes of the record: header 24, data header 2, CheckPoint 88. */
export const checkpointRecordLength = 114;

export interface WalFile {
  /** Name under pg_wal. */
  readonly name: string;
  /** A whole segment. */
  readonly bytes: Buffer;
}

export interface CheckpointSegment {
  /** One segment, or two when the record crosses a segment boundary. */
  readonly files: readonly WalFile[];
  /** pg_control, 8192 bytes. */
  readonly controlFile: Buffer;
  /** Where the record starts: X, or behind the page header when X is a page start. */
  readonly recordLsn: Lsn;
  /** Where the next record goes. */
  readonly endLsn: Lsn;
  /** The WAL bytes [X, endLsn), page headers included. */
  readonly walBytes: Buffer;
}

export interface CheckpointSegmentOptions {
  /** X: an end of a record, so a multiple of 8 and not inside a page header. Throws a RangeError otherwise. */
  readonly lsn: Lsn;
  /** Its checkPoint holds the state at X; state, positions and timeline fields are set here, in a copy. */
  readonly controlFile: ControlFile;
  /** xl_prev: start of the record that ends at X. 0 when unknown (WalReader accepts that for this record). */
  readonly previousLsn?: Lsn;
  readonly timeline?: number;
}

/** The first position from `position` on at which a compute can start: a multiple of 8, not inside a page header. */
export function alignStartLsn(position: Lsn): Lsn {
  const aligned = Math.ceil(position / 8) * 8;
  const pageOffset = aligned % walPageSize;
  if (pageOffset === 0) return lsn(aligned);
  const headerSize = walPageHeaderSize(lsn(aligned - pageOffset), walSegmentSizeDefault);
  return lsn(pageOffset < headerSize ? aligned - pageOffset + headerSize : aligned);
}

export function makeCheckpointSegment(options: CheckpointSegmentOptions): CheckpointSegment {
  const timeline = options.timeline ?? 1;
  const start = options.lsn;
  const segmentSize = walSegmentSizeDefault;
  const systemId = options.controlFile.systemId;
  if (alignStartLsn(start) !== start)
    throw new RangeError(
      `no WAL record can start at ${formatLsn(start)}: not a multiple of 8, or inside a page header`,
    );
  const writer = new WalWriter({
    startLsn: start,
    systemId,
    timeline,
    segmentSize,
    previousLsn: options.previousLsn ?? lsn(0),
  });

  const control = options.controlFile.clone();
  const recordLsn = lsn(start % walPageSize === 0 ? start + walPageHeaderSize(start, segmentSize) : start);
  const checkPoint = control.checkPoint;
  checkPoint.redoLsn = recordLsn;
  checkPoint.timeline = timeline;
  checkPoint.previousTimeline = timeline;
  checkPoint.oldestActiveXid = 0;
  control.state = databaseState.shutDown;
  control.checkPointLsn = recordLsn;
  control.clearRecoveryPoints();

  // CHECKPOINT_SHUTDOWN is opcode 0.
  writer.append({rmid: rmgr.xlog, info: 0, body: mainDataBody(checkPoint.bytes)});
  const walBytes = writer.take();
  const endLsn = writer.position;

  const files: WalFile[] = [];
  const lastSegment = segmentNumber(lsn(endLsn - 1), segmentSize);
  for (let segment = segmentNumber(start, segmentSize); segment <= lastSegment; segment++) {
    const bytes = Buffer.alloc(segmentSize);
    const fileStart = segment * segmentSize;
    // Postgres checks the first page of the segment and the page of the record; their headers are not in walBytes when X lies behind them.
    for (const pageLsn of new Set([fileStart, Math.max(fileStart, start - (start % walPageSize))]))
      writeWalPageHeader(bytes, pageLsn - fileStart, {pageLsn: lsn(pageLsn), timeline, systemId, segmentSize});
    const from = Math.max(start, fileStart);
    walBytes.copy(bytes, from - fileStart, from - start, Math.min(endLsn, fileStart + segmentSize) - start);
    files.push({name: segmentFileName(timeline, segment, segmentSize), bytes});
  }
  return {files, controlFile: control.encode(), recordLsn, endLsn, walBytes};
}
