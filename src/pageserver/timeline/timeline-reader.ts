/**
 * What can be read of a timeline at an LSN: the narrow view that basebackup, the page service and tools get. `Timeline`
 * implements it.
 *
 * Every method reads history as of `at`, which must not be above lastRecordLsn (waitForLsn first): otherwise
 * TimelineError 'lsn-timeout'. Buffers that come back may be views of caches: never write into them.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {RelTag} from '#postgres/relation.ts';
import type {SlruKind} from '#postgres/slru.ts';
import type {PageErrorCode, RelListEntry} from '#wire/pages.ts';

/** A read that cannot be answered; the message names tenant, timeline, LSN and what to do. */
export class TimelineError extends Error {
  readonly code: PageErrorCode;
  constructor(code: PageErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

export interface DatabaseEntry {
  readonly spcNode: number;
  readonly dbNode: number;
  /** False for the directory of a database's relations in a further tablespace: no PG_VERSION, no relation map. */
  readonly hasVersionFile: boolean;
}

export interface TimelineReader {
  readonly tenantId: string;
  readonly timelineId: string;
  /** End of the last record that ingest has put in whole. */
  readonly lastRecordLsn: Lsn;

  /** Resolves when lastRecordLsn ≥ lsn; TimelineError 'lsn-timeout' after `timeoutMs` (default 60 s) or when ingest has stopped. */
  waitForLsn(lsn: Lsn, timeoutMs?: number): Promise<void>;

  /** Blocks of a fork, or undefined when it does not exist. */
  relSize(rel: RelTag, at: Lsn): Promise<number | undefined>;
  /** Whether this shard of the tenant keeps the block (wire/shard.ts). */
  ownsBlock(rel: RelTag, block: number): boolean;
  /** Pages block … block+count-1; fewer where the relation ends. 'not-found', 'wrong-shard', 'beyond-end', 'redo-failed', 'corrupt', 'unavailable'. */
  getRelPages(rel: RelTag, block: number, count: number, at: Lsn): Promise<Buffer[]>;
  /** All forks of all relations of a database, by (tablespace, relation, fork); spcNode 0: of every tablespace. */
  listRelations(spcNode: number, dbNode: number, at: Lsn): Promise<RelListEntry[]>;

  listDatabases(at: Lsn): Promise<DatabaseEntry[]>;
  /** Contents of pg_filenode.map, as given to the sink. */
  relationMap(spcNode: number, dbNode: number, at: Lsn): Promise<Buffer | undefined>;

  /** Numbers of the pages that exist, ascending. */
  slruPages(kind: SlruKind, at: Lsn): Promise<number[]>;
  /** The given pages, in that order; 'not-found' when one does not exist. */
  getSlruPages(kind: SlruKind, pages: readonly number[], at: Lsn): Promise<Buffer[]>;

  twoPhaseFiles(at: Lsn): Promise<{xid: number; contents: Buffer}[]>;
  auxFiles(at: Lsn): Promise<{path: string; contents: Buffer}[]>;
  /** What checkpoint-state.ts encoded, or undefined on a timeline that holds nothing yet. */
  checkpointState(at: Lsn): Promise<Buffer | undefined>;
}
