/** What a resource manager's redo function gets and gives. One file per resource manager beside this one. */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';

/** Settings of the cluster that wrote the WAL which change what redo does (wal-redo.md 3.2). */
export interface RedoEnvironment {
  /** wal_log_hints or data checksums were on in the writer: Heap2 VISIBLE then sets the heap page's LSN. */
  readonly walLogHints: boolean;
}

/**
 * Redo of one block of one record, in place. Rules: only `page` is changed; no other page is needed; bounds of every
 * offset, count and length that come from the record or the page are checked, a breach throws RedoError.
 * `restored` says that the record's own image has just been put into `page`: nearly every function then returns at once.
 * Returns true when the caller must set the page LSN to record.endLsn (the normal case after a change; also after a restore
 * that was edited), false when the page LSN must stay as it is.
 */
export type RedoFunction = (
  page: Buffer,
  record: WalRecord,
  block: BlockRef,
  restored: boolean,
  environment: RedoEnvironment,
) => boolean;

/** This record cannot be applied to this page: corrupt or hostile record, wrong base page, or an unknown type. */
export class RedoError extends Error {}
