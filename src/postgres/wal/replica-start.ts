/**
 * The WAL from which a hot standby starts at any LSN X in the middle of a busy branch.
 *
 * A shutdown checkpoint at X would say that no transaction runs there: a standby would take the ones that do for aborted, and
 * hint them so on its pages. So three records of our own stand before X, in a pg_wal that only this standby has:
 *
 *   online checkpoint · XLOG_NOOP that fills up · XLOG_RUNNING_XACTS that ends exactly at X
 *
 * The standby replays the last one, knows who is running, and lets readers in (storage/ipc/procarray.c
 * ProcArrayApplyRecoveryInfo). The branch's own WAL follows at X; its first record names another predecessor, which whoever
 * streams it must put right (compute/wal-relay.ts).
 */
import {type ControlFile, databaseState} from '#postgres/control-file.ts';
import {xidPrecedes} from '#postgres/checkpoint.ts';
import {type Lsn, formatLsn, lsn, writeLsn64} from '#postgres/lsn.ts';
import {alignStartLsn, type WalFile} from '#postgres/wal/checkpoint-segment.ts';
import {recordCrc} from '#postgres/wal/record-crc.ts';
import {recordHeaderSize} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {
  segmentFileName,
  segmentNumber,
  walPageHeaderSize,
  walPageSize,
  walSegmentSizeDefault,
  writeWalPageHeader,
} from '#postgres/wal/segment.ts';
import {mainDataBody, WalWriter} from '#postgres/wal/writer.ts';

const opcodeCheckpointOnline = 0x10;
const opcodeNoop = 0x20;
const opcodeRunningXacts = 0x10;
/** offsetof(xl_running_xacts, xids). */
const runningXactsHeader = 24;

export interface ReplicaStart {
  readonly files: readonly WalFile[];
  /** pg_control, 8192 bytes. */
  readonly controlFile: Buffer;
  /** Start of the record that ends at X: what the first record at X must name as its predecessor, for this standby. */
  readonly previousLsn: Lsn;
}

/** `runningXids`: 32-bit ids of the transactions in progress at X, subtransactions among them; any order. */
export function makeReplicaStart(options: {
  readonly lsn: Lsn;
  readonly controlFile: ControlFile;
  readonly runningXids: readonly number[];
}): ReplicaStart {
  const x = options.lsn;
  if (alignStartLsn(x) !== x) throw new RangeError(`no WAL record can start at ${formatLsn(x)}`);
  const control = options.controlFile.clone();
  const {checkPoint, systemId} = control;
  // Right behind a page's header nothing can end; it is the same place as the start of that page.
  const pageStart = x - (x % walPageSize);
  const end = lsn(x % walPageSize === walPageHeaderSize(lsn(pageStart)) ? pageStart : x);
  const nextXid = Number(BigInt(checkPoint.nextXid) & 0xffffffffn);
  const xids = [...options.runningXids].sort((a, b) => (a === b ? 0 : xidPrecedes(a, b) ? -1 : 1));
  const oldest = xids[0] ?? nextXid;

  const running = mainDataBody(runningXacts(xids, nextXid, oldest));
  // Room for the three records with the headers of the pages that they cross; the filler takes what is too much.
  const length = 24 + 2 + 88 + recordHeaderSize + running.length + 64;
  const pages = Math.ceil(length / (walPageSize - 40)) + 1;
  const start = lsn(pageStart - pages * walPageSize);
  const timeline = 1;
  const make = (filler: number): WalWriter => {
    const writer = new WalWriter({startLsn: start, systemId, timeline});
    checkPoint.redoLsn = lsn(start + walPageHeaderSize(start));
    checkPoint.timeline = timeline;
    checkPoint.previousTimeline = timeline;
    checkPoint.oldestActiveXid = oldest;
    writer.append({rmid: rmgr.xlog, info: opcodeCheckpointOnline, body: mainDataBody(checkPoint.bytes)});
    writer.append({rmid: rmgr.xlog, info: opcodeNoop, body: mainDataBody(Buffer.alloc(filler))});
    writer.append({rmid: rmgr.standby, info: opcodeRunningXacts, body: running});
    return writer;
  };
  const writer = fit(make, end);

  control.state = databaseState.shutDownInRecovery;
  control.checkPointLsn = checkPoint.redoLsn;
  control.clearRecoveryPoints();
  // Consistent as soon as all three are replayed.
  control.setRecoveryPoint(end, timeline);
  return {
    files: layOut(writer.take(), start, end, x, systemId, timeline),
    controlFile: control.encode(),
    previousLsn: writer.previousLsn,
  };
}

/** The filler with which the records end at `x`: the end grows with it, in steps of 8. */
function fit(make: (filler: number) => WalWriter, x: Lsn): WalWriter {
  let low = 0;
  let high = walPageSize * 4;
  while (low <= high) {
    const filler = Math.floor((low + high) / 2);
    const writer = make(filler);
    if (writer.position === x) return writer;
    if (writer.position < x) low = filler + 1;
    else high = filler - 1;
  }
  throw new RangeError(`no record can be made to end at ${formatLsn(x)}`);
}

/** xl_running_xacts (storage/standbydefs.h); subtransactions stand among the others, so nothing has overflowed. */
function runningXacts(xids: readonly number[], nextXid: number, oldest: number): Buffer {
  const bytes = Buffer.alloc(runningXactsHeader + xids.length * 4);
  bytes.writeInt32LE(xids.length, 0);
  bytes.writeUInt32LE(nextXid, 12);
  bytes.writeUInt32LE(oldest, 16);
  bytes.writeUInt32LE(nextXid <= 3 ? 0xffffffff : nextXid - 1, 20);
  xids.forEach((xid, i) => bytes.writeUInt32LE(xid, runningXactsHeader + i * 4));
  return bytes;
}

function layOut(wal: Buffer, start: Lsn, end: Lsn, x: Lsn, systemId: bigint, timeline: number): WalFile[] {
  const segmentSize = walSegmentSizeDefault;
  const files: WalFile[] = [];
  // The segment of X itself too, when X is its first byte: streaming begins with a segment that is there.
  for (let segment = segmentNumber(start); segment <= segmentNumber(end); segment++) {
    const bytes = Buffer.alloc(segmentSize);
    const fileStart = segment * segmentSize;
    writeWalPageHeader(bytes, 0, {pageLsn: lsn(fileStart), timeline, systemId, segmentSize});
    const from = Math.max(start, fileStart);
    const to = Math.min(end, fileStart + segmentSize);
    if (to > from) wal.copy(bytes, from - fileStart, from - start, to - start);
    if (x > end && segment === segmentNumber(end))
      writeWalPageHeader(bytes, end - fileStart, {pageLsn: end, timeline, systemId, segmentSize});
    files.push({name: segmentFileName(timeline, segment), bytes});
  }
  return files;
}

/** The 24 bytes of a record's header with another predecessor and the checksum that goes with it. `record`: the whole record. */
export function withPreviousLsn(record: Buffer, previousLsn: Lsn): Buffer {
  const copy = Buffer.from(record);
  writeLsn64(copy, 8, previousLsn);
  copy.writeUInt32LE(recordCrc(copy, 0, copy.length), 20);
  return copy.subarray(0, recordHeaderSize);
}
