/** Where WAL records end, and how a node finds that out again after a crash. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import type {TermHistory} from '#wire/safekeeper.ts';

/** Finds where WAL records end. The simulator has one for its own small records. */
export interface RecordBoundary {
  /** Where the last whole record ends. */
  readonly endLsn: Lsn;
  /** Forgets everything; the next byte fed is at `at`, which ends a record. */
  reset(at: Lsn): void;
  /** Takes the next bytes; returns endLsn. Throws when they cannot be WAL; endLsn is then the end of what can. */
  feed(bytes: Buffer): Lsn;
}

/** RecordBoundary over PostgreSQL's WAL: page headers, lengths, xl_prev and CRC of each record are checked. */
export class WalRecordBoundary implements RecordBoundary {
  #reader = new WalReader({startLsn: 0 as Lsn});
  #endLsn = 0 as Lsn;

  get endLsn(): Lsn {
    return this.#endLsn;
  }

  reset(at: Lsn): void {
    this.#reader = new WalReader({startLsn: at});
    this.#endLsn = at;
  }

  feed(bytes: Buffer): Lsn {
    const reader = this.#reader;
    reader.push(bytes);
    // The padding of a record, and the rest of the segment after XLOG_SWITCH, belong to it: it ends when they are here.
    const pushedLsn = reader.pushLsn;
    if (reader.lastRecordEndLsn <= pushedLsn) this.#endLsn = reader.lastRecordEndLsn;
    while (reader.skip()) if (reader.lastRecordEndLsn <= pushedLsn) this.#endLsn = reader.lastRecordEndLsn;
    if (reader.failure !== undefined)
      throw new Error(`at ${formatLsn(reader.failure.position)}: ${reader.failure.reason}`);
    return this.#endLsn;
  }
}

/**
 * Feeds WAL that begins at `beginLsn`. Where a new term starts, a new compute started: the xl_prev of its first record
 * names nothing that a reader can check, so reading starts anew there. Throws when a term does not start where a record
 * ends.
 */
export function feedAcrossTerms(boundary: RecordBoundary, history: TermHistory, beginLsn: Lsn, bytes: Buffer): Lsn {
  const endLsn = beginLsn + bytes.length;
  // Nearly always the newest term is the only one here; the older ones are looked at from the newest on.
  let first = history.length;
  while (first > 0 && history[first - 1]!.lsn > beginLsn) first--;
  if (first > 0 && history[first - 1]!.lsn === beginLsn) startTerm(boundary, beginLsn, history[first - 1]!.term);
  let at: number = beginLsn;
  for (let i = first; i < history.length && history[i]!.lsn < endLsn; i++) {
    const {lsn, term} = history[i]!;
    if (lsn === at) continue;
    boundary.feed(bytes.subarray(at - beginLsn, lsn - beginLsn));
    startTerm(boundary, lsn, term);
    at = lsn;
  }
  return boundary.feed(at === beginLsn ? bytes : bytes.subarray(at - beginLsn));
}

function startTerm(boundary: RecordBoundary, lsn: Lsn, term: number): void {
  if (boundary.endLsn !== lsn)
    throw new Error(`term ${term} starts at ${formatLsn(lsn)}, inside the record after ${formatLsn(boundary.endLsn)}`);
  boundary.reset(lsn);
}
