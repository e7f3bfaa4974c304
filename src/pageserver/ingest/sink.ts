/**
 * Where ingest hands its results (IngestSink) and what it must be able to look up at once (IngestState). The timeline's
 * write path implements both, normally in one object, so that what the sink was told is seen by the next look-up.
 *
 * Rules for an implementation:
 * 1. Calls come in LSN order; all calls of one record carry its `endLsn`. For one key at one LSN there is at most one value
 *    (the interpreter merges), so (key, lsn) is unique.
 * 2. A value with `needsBase` false stands alone: page reconstruction starts from 8192 zero bytes there (WILL_INIT, an image
 *    inside the record, or a page that came into being without WAL) and never looks further back.
 * 3. A block below its relation's size that has no value, or whose newest value is from zeroPages, reads as zeros.
 * 4. Buffers: a record and its BlockRefs are reused, its `bytes` may be kept (nobody writes into a WAL chunk). Images are
 *    fresh: they may be kept. A patch is valid only during the call: copy it.
 * 5. Calls cannot fail for reasons of data; an I/O error is thrown and stops ingest of the timeline at that record.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {ForkNumber, RelTag} from '#postgres/relation.ts';
import type {SlruKind} from '#postgres/slru.ts';
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';

/** IngestState.relationSize: the fork does not exist. */
export const relationMissing = -1;
/** IngestState.relationSize: not in memory; the driver has to load it (RelTag in `missing`) and call interpret again. */
export const relationNotLoaded = -2;

/** Synchronous look-ups of the state as of the last record given to the sink. */
export interface IngestState {
  /** Blocks of a fork ≥ 0, or relationMissing, or relationNotLoaded. Called for every block of every record: make it fast. */
  relationSize(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber): number;
  /** Whether createDatabase/copyDatabase made this directory and no dropDatabase followed. Always in memory. */
  databaseExists(spcNode: number, dbNode: number): boolean;
  /** Whether the page has been written (image, zero or patch) since it was last dropped. Always in memory. */
  slruPageExists(kind: SlruKind, page: number): boolean;
  /**
   * Whether the page is kept here at all, or by another shard of the tenant (wire/shard.ts). The sink drops what is said of others'
   * pages; this is for those who can save themselves the work before. Sizes of relations are everybody's.
   */
  ownsBlock(relNode: number, fork: ForkNumber, block: number): boolean;
  /** This shard keeps SLRU pages, visibility maps and everything else that is no page of a main fork. */
  readonly isFirstShard: boolean;
}

export interface IngestSink {
  /**
   * A WAL record that changes block `b` of it; redo is due at read time. The page LSN after redo is `record.endLsn`.
   */
  relationPageRecord(record: WalRecord, b: BlockRef, needsBase: boolean): void;
  /** A whole page, 8192 bytes, its page LSN already set. */
  relationPageImage(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    block: number,
    lsn: Lsn,
    image: Buffer,
  ): void;
  /** page-patch.ts, on top of the page's older value (8192 zeros when there is none). */
  relationPagePatch(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    block: number,
    lsn: Lsn,
    patch: Buffer,
  ): void;
  /** Blocks [startBlock, endBlock) came into being as zeros without WAL (a relation extended with a gap). Older values of these keys are from before a truncation: they must not show through. */
  zeroPages(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    startBlock: number,
    endBlock: number,
    lsn: Lsn,
  ): void;

  /** A fork comes into being with no blocks. It did not exist. */
  createRelation(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber, lsn: Lsn): void;
  /** The fork exists. Smaller than before = truncation. */
  setRelationSize(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber, blocks: number, lsn: Lsn): void;
  /** All forks are gone. They may never have existed. */
  dropRelation(spcNode: number, dbNode: number, relNode: number, lsn: Lsn): void;

  /**
   * A database directory, or that it has a version file now. `hasVersionFile` is false for the directory of a database's relations in
   * another tablespace than its own (no PG_VERSION, no relation map).
   */
  createDatabase(spcNode: number, dbNode: number, hasVersionFile: boolean, lsn: Lsn): void;
  /**
   * CREATE DATABASE … STRATEGY file_copy, ALTER DATABASE SET TABLESPACE: everything of the source (relation forks, sizes,
   * pages, relation map, the directory itself) as it is just before this record becomes the target's, at `lsn`. What an
   * existing target held is gone. This may take long: interpret() then answers `barrier: true`, and the driver finishes the copy
   * before it interprets the next record. Copied pages must not show later changes of the source.
   */
  copyDatabase(
    sourceSpcNode: number,
    sourceDbNode: number,
    targetSpcNode: number,
    targetDbNode: number,
    lsn: Lsn,
  ): void;
  /** The directory with all its relations and its relation map is gone. May never have existed. */
  dropDatabase(spcNode: number, dbNode: number, lsn: Lsn): void;

  /** Whole contents of pg_filenode.map (512 bytes in 15); dbNode 0 with tablespace 1664 is global/pg_filenode.map. */
  putRelationMap(spcNode: number, dbNode: number, map: Buffer, lsn: Lsn): void;

  slruPageImage(kind: SlruKind, page: number, lsn: Lsn, image: Buffer): void;
  /** needsBase false: on top of zeros. */
  slruPagePatch(kind: SlruKind, page: number, lsn: Lsn, patch: Buffer, needsBase: boolean): void;
  slruPageZero(kind: SlruKind, page: number, lsn: Lsn): void;
  /** Pages [startPage, endPage) are gone. */
  slruDropPages(kind: SlruKind, startPage: number, endPage: number, lsn: Lsn): void;

  /** Contents of pg_twophase/<xid>, checksum included; undefined = gone. */
  putTwoPhase(xid: number, contents: Buffer | undefined, lsn: Lsn): void;
  /** Another small file of the data directory that goes into a basebackup as it is (pg_stat/pgstat.stat, pg_tblspc/<oid>); undefined = gone. */
  putAuxFile(path: string, contents: Buffer | undefined, lsn: Lsn): void;
  /** checkpoint-state.ts encodes it; a few hundred bytes, one key. */
  putCheckpointState(state: Buffer, lsn: Lsn): void;

  /** A transaction committed at this time (microseconds since 1970-01-01 UTC): feeds lsn_by_timestamp. Called for every commit. */
  commitTime(unixMicroseconds: number, lsn: Lsn): void;
}

/** What interpret() answers. Objects are reused: read them at once. */
export type InterpretOutcome =
  /** Done. `barrier`: finish what copyDatabase began before the next record. */
  | {readonly kind: 'applied'; readonly barrier: boolean}
  /** Nothing was done: load these sizes into IngestState, then interpret the same record again. */
  | {readonly kind: 'missing'; readonly relations: readonly RelTag[]}
  /** Nothing was done, and never can be: ingest of this timeline stops here. */
  | {readonly kind: 'error'; readonly error: IngestError};

/** A record that cannot be interpreted; the message names record, resource manager and LSN. */
export class IngestError extends Error {
  readonly lsn: Lsn;
  constructor(message: string, lsn: Lsn) {
    super(message);
    this.lsn = lsn;
  }
}
