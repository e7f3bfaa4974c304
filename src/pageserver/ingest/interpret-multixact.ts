/** Multixacts (multixact.c multixact_redo, RecordNewMultiXact). */
import {xidPrecedes} from '#postgres/checkpoint.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {
  multixactMemberFlagOffset,
  multixactMemberXidOffset,
  multixactMembersPerPage,
  multixactOffsetsPerPage,
  slruKind,
} from '#postgres/slru.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {type Effects, type InterpretContext, effects, problem} from '#pageserver/ingest/interpret-context.ts';
import {truncateMembers, truncateSlru} from '#pageserver/ingest/slru-truncation.ts';

const opcode = {zeroOffsetsPage: 0x00, zeroMembersPage: 0x10, createId: 0x20, truncateId: 0x30} as const;
const firstMultixactId = 1;
const memberStatusMax = 5;

export function interpretMultixact(record: WalRecord, context: InterpretContext): Effects {
  const {data, sink, checkpoint} = context;
  const lsn = record.endLsn;
  switch (record.info & 0xf0) {
    case opcode.zeroOffsetsPage: {
      const page = data.u32();
      return effects(() => {
        // A CREATE_ID record of an older minor release already made and used the page.
        if (checkpoint.preInitializedOffsetsPage !== page) sink.slruPageZero(slruKind.multixactOffsets, page, lsn);
        setPreInitialized(context, undefined);
      });
    }
    case opcode.zeroMembersPage: {
      const page = data.u32();
      return effects(() => sink.slruPageZero(slruKind.multixactMembers, page, lsn));
    }
    case opcode.createId:
      return createId(record, context);
    case opcode.truncateId: {
      const database = data.u32();
      data.skip(4);
      const endMulti = data.u32();
      const startOffset = data.u32();
      const endOffset = data.u32();
      return effects(() => {
        checkpoint.control.checkPoint.oldestMulti = endMulti;
        checkpoint.control.checkPoint.oldestMultiDb = database;
        checkpoint.markChanged();
        truncateMembers(sink, startOffset, endOffset, lsn);
        // One id back: the page of `endMulti` itself need not exist yet.
        const previous = endMulti <= firstMultixactId ? 0xffffffff : endMulti - 1;
        truncateSlru(sink, slruKind.multixactOffsets, Math.floor(previous / multixactOffsetsPerPage), lsn);
      });
    }
    default:
      return problem('unknown type of record');
  }
}

function createId(record: WalRecord, context: InterpretContext): Effects {
  const {data, checkpoint} = context;
  const multi = data.u32();
  const offset = data.u32();
  const memberCount = data.u32();
  if (memberCount * 8 > data.remaining)
    return problem(`${memberCount} members announced, ${data.remaining} bytes left`);
  const members: {xid: number; status: number}[] = [];
  let latestXid = record.xid;
  for (let i = 0; i < memberCount; i++) {
    const xid = data.u32();
    const status = data.u32();
    if (status > memberStatusMax) return problem(`member with status ${status}`);
    members.push({xid, status});
    if (xidPrecedes(latestXid, xid)) latestXid = xid;
  }
  return effects(() => {
    putOffsets(context, multi, offset, memberCount, record.endLsn);
    putMembers(context, offset, members, record.endLsn);
    checkpoint.advanceNextMulti((multi + 1) >>> 0, (offset + memberCount) >>> 0);
    checkpoint.advanceNextXid(latestXid);
  });
}

/** The offset of this id, and of the next one: where this one's members end (wal-redo.md 5.3). */
function putOffsets(context: InterpretContext, multi: number, offset: number, memberCount: number, lsn: Lsn): void {
  const {sink, state, patch} = context;
  const kind = slruKind.multixactOffsets;
  const next = multi === 0xffffffff ? firstMultixactId : multi + 1;
  const nextOffset = (offset + memberCount) >>> 0 || 1; // offset 0 is never used
  const page = Math.floor(multi / multixactOffsetsPerPage);
  const nextPage = Math.floor(next / multixactOffsetsPerPage);
  patch.setUInt32((multi % multixactOffsetsPerPage) * 4, offset);
  let preInitialized: number | undefined;
  if (nextPage !== page) {
    sink.slruPagePatch(kind, page, lsn, patch.take(), state.slruPageExists(kind, page));
    if (!state.slruPageExists(kind, nextPage)) preInitialized = nextPage;
  }
  patch.setUInt32((next % multixactOffsetsPerPage) * 4, nextOffset);
  sink.slruPagePatch(kind, nextPage, lsn, patch.take(), state.slruPageExists(kind, nextPage));
  setPreInitialized(context, preInitialized);
}

function putMembers(
  {sink, state, patch}: InterpretContext,
  firstOffset: number,
  members: readonly {readonly xid: number; readonly status: number}[],
  lsn: Lsn,
): void {
  const kind = slruKind.multixactMembers;
  let page = -1;
  const flush = (): void => {
    if (page >= 0) sink.slruPagePatch(kind, page, lsn, patch.take(), state.slruPageExists(kind, page));
  };
  members.forEach(({xid, status}, i) => {
    const offset = (firstOffset + i) >>> 0;
    const memberPage = Math.floor(offset / multixactMembersPerPage);
    if (memberPage !== page) {
      flush();
      page = memberPage;
    }
    patch.setUInt32(multixactMemberXidOffset(offset), xid);
    patch.mask(multixactMemberFlagOffset(offset), 0, status);
  });
  flush();
}

function setPreInitialized({checkpoint}: InterpretContext, page: number | undefined): void {
  if (checkpoint.preInitializedOffsetsPage === page) return;
  checkpoint.preInitializedOffsetsPage = page;
  checkpoint.markChanged();
}
