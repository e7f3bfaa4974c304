/** XLOG records without blocks, and replication origins (xlog.c xlog_redo, origin.c replorigin_redo). */
import {CheckPoint, checkPointSize} from '#postgres/checkpoint.ts';
import {slruKind} from '#postgres/slru.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {
  type Effects,
  type InterpretContext,
  effects,
  noEffects,
  problem,
} from '#pageserver/ingest/interpret-context.ts';
import {commitTsPageCount} from '#pageserver/ingest/slru-truncation.ts';

const opcode = {
  checkpointShutdown: 0x00,
  checkpointOnline: 0x10,
  nextOid: 0x30,
  parameterChange: 0x60,
  fpwChange: 0x80,
  endOfRecovery: 0x90,
} as const;

const walLevelMinimal = 0;

export function interpretXlog(record: WalRecord, context: InterpretContext): Effects {
  const {data, checkpoint} = context;
  const {control} = checkpoint;
  switch (record.info & 0xf0) {
    case opcode.checkpointShutdown:
    case opcode.checkpointOnline: {
      const theirs = new CheckPoint(Buffer.from(data.bytes(checkPointSize)));
      if (theirs.timeline !== control.checkPoint.timeline)
        return problem(`timeline ${theirs.timeline}, expected ${control.checkPoint.timeline}: the server was promoted`);
      const shutdown = (record.info & 0xf0) === opcode.checkpointShutdown;
      return effects(() => (shutdown ? adoptShutdown(theirs, context) : adoptOnline(theirs, context)));
    }
    case opcode.nextOid: {
      const nextOid = data.u32();
      return effects(() => {
        control.checkPoint.nextOid = nextOid;
        checkpoint.markChanged();
      });
    }
    case opcode.parameterChange:
      return parameterChange(record, context);
    case opcode.fpwChange: {
      const fullPageWrites = data.u8() !== 0;
      return effects(() => {
        control.checkPoint.fullPageWrites = fullPageWrites;
        checkpoint.markChanged();
      });
    }
    case opcode.endOfRecovery: {
      data.skip(8);
      const timeline = data.u32();
      if (timeline !== control.checkPoint.timeline)
        return problem(`timeline ${timeline}, expected ${control.checkPoint.timeline}: the server was promoted`);
      return noEffects;
    }
    default:
      // NOOP, SWITCH, BACKUP_END, RESTORE_POINT, OVERWRITE_CONTRECORD: positions only.
      return noEffects;
  }
}

/** At a shutdown nothing runs: the counters are exact. */
function adoptShutdown(theirs: CheckPoint, {checkpoint}: InterpretContext): void {
  theirs.bytes.copy(checkpoint.control.checkPoint.bytes);
  checkpoint.markChanged();
}

/** Taken while transactions run: the counters are minima, and nextOid may be older than a NEXTOID record before. */
function adoptOnline(theirs: CheckPoint, {checkpoint}: InterpretContext): void {
  const ours = checkpoint.control.checkPoint;
  if (theirs.nextXid > ours.nextXid) ours.nextXid = theirs.nextXid;
  checkpoint.advanceNextMulti(theirs.nextMulti, theirs.nextMultiOffset);
  checkpoint.advanceOldestMulti(theirs.oldestMulti, theirs.oldestMultiDb);
  checkpoint.advanceOldestXid(theirs.oldestXid, theirs.oldestXidDb);
  ours.fullPageWrites = theirs.fullPageWrites;
  ours.timeSeconds = theirs.timeSeconds;
  ours.oldestActiveXid = theirs.oldestActiveXid;
  ours.oldestCommitTsXid = theirs.oldestCommitTsXid;
  ours.newestCommitTsXid = theirs.newestCommitTsXid;
  checkpoint.markChanged();
}

/** xl_parameter_change. Commit timestamps that are turned off are forgotten, as DeactivateCommitTs does. */
function parameterChange(record: WalRecord, context: InterpretContext): Effects {
  const {data, checkpoint, sink} = context;
  const {control} = checkpoint;
  const maxConnections = data.u32();
  const maxWorkerProcesses = data.u32();
  const maxWalSenders = data.u32();
  const maxPreparedTransactions = data.u32();
  const maxLocksPerTransaction = data.u32();
  const walLevel = data.u32();
  const walLogHints = data.u8() !== 0;
  const trackCommitTimestamp = data.u8() !== 0;
  // At this level relations made or truncated by a transaction are not logged: what follows cannot be rebuilt from WAL.
  if (walLevel === walLevelMinimal)
    return problem('the server was started with wal_level = minimal, whose WAL leaves changes out');
  return effects(() => {
    control.maxConnections = maxConnections;
    control.maxWorkerProcesses = maxWorkerProcesses;
    control.maxWalSenders = maxWalSenders;
    control.maxPreparedTransactions = maxPreparedTransactions;
    control.maxLocksPerTransaction = maxLocksPerTransaction;
    control.walLevel = walLevel;
    control.walLogHints = walLogHints;
    const {checkPoint} = control;
    if (trackCommitTimestamp && !control.trackCommitTimestamp && checkPoint.oldestCommitTsXid === 0) {
      checkPoint.oldestCommitTsXid = checkpoint.nextXid32;
      checkPoint.newestCommitTsXid = checkpoint.nextXid32;
    }
    if (!trackCommitTimestamp && control.trackCommitTimestamp) {
      checkPoint.oldestCommitTsXid = 0;
      checkPoint.newestCommitTsXid = 0;
      sink.slruDropPages(slruKind.commitTs, 0, commitTsPageCount, record.endLsn);
    }
    control.trackCommitTimestamp = trackCommitTimestamp;
    checkpoint.markChanged();
  });
}

export function interpretOrigin(record: WalRecord, {data, checkpoint}: InterpretContext): Effects {
  if ((record.info & 0xf0) === 0x00) {
    const remoteLsn = data.u64();
    const origin = data.u16();
    const force = data.u8() !== 0;
    return effects(() => checkpoint.advanceOrigin(origin, remoteLsn, force));
  }
  const origin = data.u16();
  return effects(() => checkpoint.dropOrigin(origin));
}
