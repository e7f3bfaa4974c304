/**
 * Ends of transactions: status (pg_xact), commit timestamps, dropped relations, two-phase files (xact.c xact_redo, xactdesc.c
 * ParseCommitRecord and ParseAbortRecord), and the zeroing and truncation of pg_xact and pg_commit_ts pages.
 */
import {crc32c} from '#runtime/crc.ts';
import {precedesModulo, xidPrecedes} from '#postgres/checkpoint.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {
  clogXactsPerPage,
  commitTsEntrySize,
  commitTsXactsPerPage,
  slruKind,
  transactionStatus,
} from '#postgres/slru.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {
  type Effects,
  type InterpretContext,
  effects,
  noEffects,
  problem,
} from '#pageserver/ingest/interpret-context.ts';
import {truncateSlru} from '#pageserver/ingest/slru-truncation.ts';

const opcode = {commit: 0x00, prepare: 0x10, abort: 0x20, commitPrepared: 0x30, abortPrepared: 0x40} as const;
const hasInfo = 0x80;

// xinfo bits, in the order in which the parts follow (access/xact.h).
const hasDatabase = 1 << 0;
const hasSubtransactions = 1 << 1;
const hasRelations = 1 << 2;
const hasDroppedStatistics = 1 << 8;
const hasInvalidations = 1 << 3;
const hasTwoPhase = 1 << 4;
const hasGid = 1 << 7;
const hasOrigin = 1 << 5;

/** Microseconds between 1970-01-01 and 2000-01-01, where Postgres starts to count. */
const postgresEpochMicroseconds = 946_684_800_000_000;

const noXids: readonly number[] = [];

export function interpretTransaction(record: WalRecord, context: InterpretContext): Effects {
  switch (record.info & 0x70) {
    case opcode.commit:
    case opcode.commitPrepared:
    case opcode.abort:
    case opcode.abortPrepared:
      return transactionEnd(record, context);
    case opcode.prepare:
      return prepare(record, context);
    default:
      return noEffects; // ASSIGNMENT and INVALIDATIONS serve standbys and logical decoding
  }
}

/**
 * A commit or abort that says no more than its time, as nearly all do, while commit timestamps are off. Such a record needs
 * no look-up and cannot be wrong: its effect is plainTransactionEnd.
 */
export function isPlainEnd(record: WalRecord, {checkpoint}: InterpretContext): boolean {
  const {info} = record;
  return (
    ((info & 0xf0) === opcode.commit || (info & 0xf0) === opcode.abort) &&
    record.mainDataLength >= 8 &&
    !checkpoint.control.trackCommitTimestamp
  );
}

/** The record's own id has been taken note of. The same as transactionEnd, which is the one to read. */
export function plainTransactionEnd(record: WalRecord, context: InterpretContext): void {
  const {xid, endLsn} = record;
  const committed = (record.info & 0xf0) === opcode.commit;
  if (xid !== 0 && context.state.isFirstShard) {
    maskStatus(context, xid, committed ? transactionStatus.committed : transactionStatus.aborted);
    putPatch(context, slruKind.clog, Math.floor(xid / clogXactsPerPage), endLsn);
  }
  if (committed)
    context.sink.commitTime(postgresEpochMicroseconds + readInt64(record.bytes, record.mainDataOffset), endLsn);
}

function transactionEnd(record: WalRecord, context: InterpretContext): Effects {
  const {data, sink, checkpoint} = context;
  const kind = record.info & 0x70;
  const committed = kind === opcode.commit || kind === opcode.commitPrepared;
  const prepared = kind === opcode.commitPrepared || kind === opcode.abortPrepared;
  let timestamp = data.bytes(8);
  const endTime = timestamp;
  const info = (record.info & hasInfo) !== 0 ? data.u32() : 0;
  let subtransactions = noXids;
  const relations: {spcNode: number; dbNode: number; relNode: number}[] = [];
  let xid = record.xid;
  let originLsn: bigint | undefined;
  if ((info & hasDatabase) !== 0) data.skip(8);
  if ((info & hasSubtransactions) !== 0) {
    const xids: number[] = [];
    for (let left = count(context, 4); left > 0; left--) xids.push(data.u32());
    subtransactions = xids;
  }
  if ((info & hasRelations) !== 0)
    for (let left = count(context, 12); left > 0; left--)
      relations.push({spcNode: data.u32(), dbNode: data.u32(), relNode: data.u32()});
  if ((info & hasDroppedStatistics) !== 0) data.skip(count(context, 12) * 12);
  if (committed && (info & hasInvalidations) !== 0) data.skip(count(context, 16) * 16);
  if ((info & hasTwoPhase) !== 0) {
    xid = data.u32();
    if ((info & hasGid) !== 0) data.cString();
  } else if (prepared) {
    return problem('the end of a prepared transaction does not say which');
  }
  if ((info & hasOrigin) !== 0) {
    originLsn = data.u64();
    timestamp = data.bytes(8);
  }

  return effects(() => {
    const lsn = record.endLsn;
    let latest = xid;
    for (const sub of subtransactions) if (xidPrecedes(latest, sub)) latest = sub;
    checkpoint.advanceNextXid(latest);
    if (xid !== 0) {
      setStatus(
        context,
        xid,
        subtransactions,
        committed ? transactionStatus.committed : transactionStatus.aborted,
        lsn,
      );
      if (committed && checkpoint.control.trackCommitTimestamp)
        setCommitTimestamps(context, xid, subtransactions, timestamp, record.originId, lsn);
    }
    if (originLsn !== undefined && record.originId !== 0) checkpoint.advanceOrigin(record.originId, originLsn, false);
    for (const r of relations) sink.dropRelation(r.spcNode, r.dbNode, r.relNode, lsn);
    if (prepared) sink.putTwoPhase(xid, undefined, lsn);
    if (committed) sink.commitTime(postgresEpochMicroseconds + readInt64(endTime, 0), lsn);
  });
}

/** A count followed by that many items of `itemSize`; data.skip and reads check the rest. */
function count({data}: InterpretContext, itemSize: number): number {
  const n = data.u32();
  if (n * itemSize > data.remaining) data.skip(n * itemSize); // throws with the usual message
  return n;
}

/** The file that CheckPointTwoPhase would write: the record's main data and its checksum (twophase.c). */
function prepare(record: WalRecord, {data, sink}: InterpretContext): Effects {
  const contents = Buffer.allocUnsafe(data.remaining + 4);
  data.bytes(data.remaining).copy(contents);
  if (contents.length < 16) return problem('a prepared transaction without header');
  contents.writeUInt32LE(crc32c(contents.subarray(0, contents.length - 4)), contents.length - 4);
  const xid = contents.readUInt32LE(8);
  return effects(() => sink.putTwoPhase(xid, contents, record.endLsn));
}

/** TransactionIdSetTreeStatus: two bits per id, one patch per page. */
function setStatus(
  context: InterpretContext,
  xid: number,
  subtransactions: readonly number[],
  status: number,
  lsn: Lsn,
): void {
  forEachPage(xid, subtransactions, clogXactsPerPage, (page, xids) => {
    for (const id of xids) maskStatus(context, id, status);
    putPatch(context, slruKind.clog, page, lsn);
  });
}

function maskStatus({patch}: InterpretContext, xid: number, status: number): void {
  const shift = (xid % 4) * 2;
  patch.mask((xid % clogXactsPerPage) >>> 2, ~(3 << shift) & 0xff, status << shift);
}

/** TransactionTreeSetCommitTsData: ten bytes per id. */
function setCommitTimestamps(
  context: InterpretContext,
  xid: number,
  subtransactions: readonly number[],
  timestamp: Buffer,
  originId: number,
  lsn: Lsn,
): void {
  const {patch} = context;
  const entry = Buffer.allocUnsafe(commitTsEntrySize);
  timestamp.copy(entry);
  entry.writeUInt16LE(originId, 8);
  forEachPage(xid, subtransactions, commitTsXactsPerPage, (page, xids) => {
    for (const id of xids) patch.set((id % commitTsXactsPerPage) * commitTsEntrySize, entry);
    putPatch(context, slruKind.commitTs, page, lsn);
  });
}

function putPatch({sink, state, patch}: InterpretContext, kind: 0 | 3, page: number, lsn: Lsn): void {
  // A page that nobody zeroed reads as zeros, as in recovery.
  sink.slruPagePatch(kind, page, lsn, patch.take(), state.slruPageExists(kind, page));
}

function forEachPage(
  xid: number,
  subtransactions: readonly number[],
  perPage: number,
  use: (page: number, xids: readonly number[]) => void,
): void {
  if (subtransactions.length === 0) {
    use(Math.floor(xid / perPage), [xid]);
    return;
  }
  const pages = new Map<number, number[]>();
  for (const id of [xid, ...subtransactions]) {
    const page = Math.floor(id / perPage);
    const xids = pages.get(page);
    if (xids === undefined) pages.set(page, [id]);
    else xids.push(id);
  }
  for (const [page, xids] of pages) use(page, xids);
}

export function interpretClog(record: WalRecord, context: InterpretContext): Effects {
  const {data, sink, checkpoint} = context;
  const page = data.u32();
  if ((record.info & 0xf0) === 0x00) return effects(() => sink.slruPageZero(slruKind.clog, page, record.endLsn));
  const oldestXid = data.u32();
  const database = data.u32();
  return effects(() => {
    // Postgres learns this from the next checkpoint; a compute may start before, and must not ask for what is gone.
    checkpoint.advanceOldestXid(oldestXid, database);
    truncateSlru(sink, slruKind.clog, page, record.endLsn);
  });
}

export function interpretCommitTs(record: WalRecord, context: InterpretContext): Effects {
  const {data, sink, checkpoint} = context;
  const page = data.u32();
  if ((record.info & 0xf0) === 0x00) return effects(() => sink.slruPageZero(slruKind.commitTs, page, record.endLsn));
  const oldestXid = data.u32();
  return effects(() => {
    const {checkPoint} = checkpoint.control;
    if (checkPoint.oldestCommitTsXid !== 0 && precedesModulo(checkPoint.oldestCommitTsXid, oldestXid)) {
      checkPoint.oldestCommitTsXid = oldestXid;
      checkpoint.markChanged();
    }
    truncateSlru(sink, slruKind.commitTs, page, record.endLsn);
  });
}

/** Exact for times up to the year 2255; a wilder one is only used for look-ups by time. */
function readInt64(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readInt32LE(at + 4) * 4294967296;
}
