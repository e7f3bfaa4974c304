/**
 * SLRU ("simple LRU") areas: transaction status kept in files of 8 KiB pages, 32 pages a file (access/transam/slru.c).
 * Layouts of PostgreSQL 15: clog.c, multixact.c, commit_ts.c.
 */
import {blockSize} from '#postgres/relation.ts';

export const slruKind = {clog: 0, multixactOffsets: 1, multixactMembers: 2, commitTs: 3} as const;
export type SlruKind = 0 | 1 | 2 | 3;

export const slruKinds: readonly SlruKind[] = [0, 1, 2, 3];

/** SLRU_PAGES_PER_SEGMENT. */
export const slruPagesPerSegment = 32;

const directories = ['pg_xact', 'pg_multixact/offsets', 'pg_multixact/members', 'pg_commit_ts'] as const;

/** Directory inside the data directory. */
export function slruDirectory(kind: SlruKind): string {
  return directories[kind]!;
}

/** File name of a segment: at least 4 upper-hex digits. */
export function slruSegmentName(segment: number): string {
  return segment.toString(16).toUpperCase().padStart(4, '0');
}

/** Reads a segment file name, or undefined when it is none. */
export function parseSlruSegmentName(name: string): number | undefined {
  return /^[0-9A-F]{4,6}$/.test(name) ? parseInt(name, 16) : undefined;
}

// pg_xact: 2 bits per transaction id.
export const clogXactsPerByte = 4;
export const clogXactsPerPage = blockSize * clogXactsPerByte;
export const transactionStatus = {inProgress: 0, committed: 1, aborted: 2, subCommitted: 3} as const;

// pg_multixact/offsets: one u32 per multixact id.
export const multixactOffsetsPerPage = blockSize / 4;

// pg_multixact/members: groups of 4 flag bytes followed by 4 u32 transaction ids.
export const multixactMembersPerGroup = 4;
export const multixactMemberGroupSize = 20;
export const multixactMembersPerPage = Math.floor(blockSize / multixactMemberGroupSize) * multixactMembersPerGroup;
/** The last members page there can be: offsets are u32. */
export const multixactMembersPageMax = Math.floor(0xffffffff / multixactMembersPerPage);

/** Byte offset of a member's transaction id within its page. */
export function multixactMemberXidOffset(memberOffset: number): number {
  const group =
    Math.floor(memberOffset / multixactMembersPerGroup) %
    Math.floor(multixactMembersPerPage / multixactMembersPerGroup);
  return group * multixactMemberGroupSize + multixactMembersPerGroup + (memberOffset % multixactMembersPerGroup) * 4;
}

/** Byte offset of a member's flag byte within its page. */
export function multixactMemberFlagOffset(memberOffset: number): number {
  const group =
    Math.floor(memberOffset / multixactMembersPerGroup) %
    Math.floor(multixactMembersPerPage / multixactMembersPerGroup);
  return group * multixactMemberGroupSize + (memberOffset % multixactMembersPerGroup);
}

// pg_commit_ts: i64 timestamp and u16 origin per transaction id, not padded.
export const commitTsEntrySize = 10;
export const commitTsXactsPerPage = Math.floor(blockSize / commitTsEntrySize);
