/** Records of a stretch of WAL, one after the other, and why reading ended. */
import type {Lsn} from '#postgres/lsn.ts';
import {type WalReadFailure, WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import type {WalSource} from '#cli/wal/wal-source.ts';

const chunkBytes = 1024 * 1024;

export interface ReadEnd {
  /** End of the last whole record. */
  readonly endLsn: Lsn;
  /** Undefined: the source ended, at a record or inside one. */
  readonly failure: WalReadFailure | undefined;
}

/** `startLsn` starts a record. `use` answers false to stop; the record is one object, used again and again. */
export async function readRecords(
  source: WalSource,
  startLsn: Lsn,
  use: (record: WalRecord) => boolean,
): Promise<ReadEnd> {
  const reader = new WalReader({startLsn});
  const record = new WalRecord();
  for (let at = startLsn; at < source.endLsn;) {
    const bytes = await source.read(at, Math.min(chunkBytes, source.endLsn - at));
    if (bytes.length === 0) break;
    at = (at + bytes.length) as Lsn;
    reader.push(bytes);
    while (reader.next(record)) if (!use(record)) return {endLsn: record.endLsn, failure: undefined};
    if (reader.failure !== undefined) break;
  }
  return {endLsn: reader.lastRecordEndLsn, failure: reader.failure};
}

/** Behind the end of WAL there are zeros. */
export function isEndOfWal(failure: WalReadFailure | undefined): boolean {
  return failure === undefined || /invalid record length 0$|magic number 0,/.test(failure.reason);
}
