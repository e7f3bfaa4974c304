/** A stopped cluster's WAL: its records one by one, and the LSNs at which an oracle looks. */
import {existsSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import {CheckPoint} from '#postgres/checkpoint.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {segmentFileName, segmentNumber, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import type {Random} from '#runtime/random.ts';

/** Records arrive in pieces of this size at most, as from a socket. */
const chunkBytesMax = 128 * 1024;
const opcodeCheckpointOnline = 0x10;
const opcodePrepare = 0x10;

export interface ReadWalOptions {
  readonly walDir: string;
  readonly startLsn: Lsn;
  /** Read no further than this end of a record. */
  readonly endLsn?: Lsn | undefined;
  readonly random: Random;
  /** Gets each record, which is reused. A promise is waited for. */
  readonly use: (record: WalRecord) => void | Promise<unknown>;
}

/** Feeds a stopped cluster's WAL, in pieces of random size, to its end; answers the end of the last record. */
export async function readWal({walDir, startLsn, endLsn, random, use}: ReadWalOptions): Promise<Lsn> {
  if (endLsn !== undefined && endLsn <= startLsn) return startLsn;
  const reader = new WalReader({startLsn});
  const record = new WalRecord();
  for (let segment = segmentNumber(startLsn); reader.failure === undefined; segment++) {
    const path = join(walDir, segmentFileName(1, segment));
    if (!existsSync(path)) break;
    let bytes = readFileSync(path);
    if (segment === segmentNumber(startLsn)) bytes = bytes.subarray(startLsn % walSegmentSizeDefault);
    while (bytes.length > 0 && reader.failure === undefined) {
      const count = Math.min(bytes.length, 1 + (random.uint32() % chunkBytesMax));
      reader.push(bytes.subarray(0, count));
      bytes = bytes.subarray(count);
      while (reader.next(record)) {
        const waiting = use(record);
        if (waiting !== undefined) await waiting;
        if (record.endLsn === endLsn) return endLsn;
      }
    }
  }
  return reader.lastRecordEndLsn;
}

export interface WalCheckpoint {
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  readonly redoLsn: Lsn;
  readonly shutdown: boolean;
}

export interface Target {
  /** End of a record. */
  readonly lsn: Lsn;
  /** Where that record starts. */
  readonly startLsn: Lsn;
  /** Its resource manager and info, for the report. */
  readonly rmid: number;
  readonly info: number;
  /** The last checkpoint record before the target, or the target itself. */
  readonly checkpoint: WalCheckpoint;
}

export interface WalPlan {
  readonly records: number;
  readonly endLsn: Lsn;
  readonly checkpoints: readonly WalCheckpoint[];
  /** Transaction id → end of its PREPARE record. */
  readonly prepares: ReadonlyMap<number, Lsn>;
  /** Ascending; the last one is the end. */
  readonly targets: readonly Target[];
}

interface Gap {
  readonly checkpoint: WalCheckpoint;
  records: number;
  special: number;
  any: Target;
  chosen: Target | undefined;
}

/**
 * Reads the WAL once and chooses the end and `count` earlier LSNs, spread over it by bytes: each behind another checkpoint
 * record, because a standby writes all its dirty pages only when it has replayed a new one. Every second target is right
 * behind a record that changes files or metadata rather than a page, where there is one.
 */
export async function planWal(walDir: string, startLsn: Lsn, count: number, random: Random): Promise<WalPlan> {
  const gaps: Gap[] = [];
  const checkpoints: WalCheckpoint[] = [];
  const prepares = new Map<number, Lsn>();
  let records = 0;
  const use = (record: WalRecord): void => {
    records++;
    const opcode = record.info & 0xf0;
    if (record.rmid === rmgr.xlog && opcode <= opcodeCheckpointOnline) {
      const checkpoint: WalCheckpoint = {
        startLsn: record.startLsn,
        endLsn: record.endLsn,
        redoLsn: new CheckPoint(Buffer.from(record.mainData())).redoLsn,
        shutdown: opcode !== opcodeCheckpointOnline,
      };
      checkpoints.push(checkpoint);
      gaps.push({checkpoint, records: 0, special: 0, any: targetOf(record, checkpoint), chosen: undefined});
    }
    if (record.rmid === rmgr.transaction && (opcode & 0x70) === opcodePrepare) prepares.set(record.xid, record.endLsn);
    const gap = gaps.at(-1);
    if (gap === undefined) return;
    if (random.uint32() % ++gap.records === 0) gap.any = targetOf(record, gap.checkpoint);
    if (isSpecial(record) && random.uint32() % ++gap.special === 0) gap.chosen = targetOf(record, gap.checkpoint);
  };
  const endLsn = await readWal({walDir, startLsn, random, use});
  const last = gaps.pop();
  if (last === undefined) throw new Error(`the WAL in ${walDir} holds no checkpoint behind its start`);
  if (gaps.length < count)
    throw new Error(`the load wrote ${gaps.length} checkpoints before its end, fewer than the ${count} LSNs wanted`);
  const targets: Target[] = [];
  let from = 0;
  for (let i = 0; i < count; i++) {
    // The gap nearest to the i-th of `count` even steps, leaving enough for the rest.
    const wanted = startLsn + ((endLsn - startLsn) * (i + 0.5)) / count;
    let at = from;
    while (at < gaps.length - (count - i) && gaps[at + 1]!.checkpoint.endLsn <= wanted) at++;
    const gap = gaps[at]!;
    targets.push(i % 2 === 1 && gap.chosen !== undefined ? gap.chosen : gap.any);
    from = at + 1;
  }
  const {checkpoint} = last;
  const {startLsn: lastStartLsn} = checkpoint;
  targets.push({
    lsn: endLsn,
    startLsn: lastStartLsn,
    rmid: rmgr.xlog,
    info: checkpoint.shutdown ? 0 : opcodeCheckpointOnline,
    checkpoint,
  });
  return {records, endLsn, checkpoints, prepares, targets};
}

/**
 * The same for standbys that each begin anew: the end and `count` earlier LSNs anywhere behind the first checkpoint record,
 * one in each of as many even parts of the WAL.
 */
export async function planAnywhere(walDir: string, startLsn: Lsn, count: number, random: Random): Promise<WalPlan> {
  const checkpoints: WalCheckpoint[] = [];
  const prepares = new Map<number, Lsn>();
  const size = await readWal({walDir, startLsn, random, use: () => {}});
  const parts: Gap[] = [];
  let records = 0;
  let end: Target | undefined;
  const use = (record: WalRecord): void => {
    records++;
    const opcode = record.info & 0xf0;
    if (record.rmid === rmgr.xlog && opcode <= opcodeCheckpointOnline)
      checkpoints.push({
        startLsn: record.startLsn,
        endLsn: record.endLsn,
        redoLsn: new CheckPoint(Buffer.from(record.mainData())).redoLsn,
        shutdown: opcode !== opcodeCheckpointOnline,
      });
    if (record.rmid === rmgr.transaction && (opcode & 0x70) === opcodePrepare) prepares.set(record.xid, record.endLsn);
    const checkpoint = checkpoints.at(-1);
    if (checkpoint === undefined) return;
    const target = (end = targetOf(record, checkpoint));
    const at = Math.min(count - 1, Math.floor(((record.startLsn - startLsn) / (size - startLsn)) * count));
    const part = (parts[at] ??= {checkpoint, records: 0, special: 0, any: target, chosen: undefined});
    if (random.uint32() % ++part.records === 0) part.any = target;
    if (isSpecial(record) && random.uint32() % ++part.special === 0) part.chosen = target;
  };
  const endLsn = await readWal({walDir, startLsn, random, use});
  if (end === undefined) throw new Error(`the WAL in ${walDir} holds no checkpoint behind its start`);
  const targets = parts.map((part, i) => (i % 2 === 1 && part.chosen !== undefined ? part.chosen : part.any));
  if (targets.length < count)
    throw new Error(`the WAL in ${walDir} holds records in ${targets.length} of ${count} parts`);
  return {records, endLsn, checkpoints, prepares, targets: [...targets, end]};
}

function targetOf(record: WalRecord, checkpoint: WalCheckpoint): Target {
  return {lsn: record.endLsn, startLsn: record.startLsn, rmid: record.rmid, info: record.info, checkpoint};
}

/** Records that do more than change pages; commits and the chatter of standbys are everywhere anyway. */
function isSpecial(record: WalRecord): boolean {
  switch (record.rmid) {
    case rmgr.storage:
    case rmgr.clog:
    case rmgr.database:
    case rmgr.tablespace:
    case rmgr.multiXact:
    case rmgr.relMap:
    case rmgr.commitTs:
    case rmgr.replicationOrigin:
      return true;
    case rmgr.transaction:
      return [0x10, 0x30, 0x40].includes(record.info & 0x70);
    default:
      return false;
  }
}
