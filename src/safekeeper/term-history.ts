/** Term histories say which proposer wrote which stretch of WAL (wire/safekeeper.ts TermHistory). */
import type {Lsn} from '#postgres/lsn.ts';
import type {TermHistory} from '#wire/safekeeper.ts';

/** The history of WAL that ends at `endLsn`: entries that begin after it are cut off, one that begins at it stays. */
export function cutHistory(history: TermHistory, endLsn: Lsn): TermHistory {
  let count = history.length;
  while (count > 0 && history[count - 1]!.lsn > endLsn) count--;
  return count === history.length ? history : history.slice(0, count);
}

export type CommonPoint =
  | {readonly kind: 'common'; readonly lsn: Lsn}
  | {readonly kind: 'none'; readonly reason: string};

/**
 * Up to where the WAL of an acceptor (its `history`, durable up to `flushLsn`) and that of a proposer are the same bytes.
 * WAL is the same as long as terms are, since a term has one writer.
 */
export function commonPoint(proposer: TermHistory, acceptor: TermHistory, flushLsn: Lsn): CommonPoint {
  const own = cutHistory(acceptor, flushLsn);
  let shared = 0;
  while (shared < own.length && shared < proposer.length && own[shared]!.term === proposer[shared]!.term) {
    if (own[shared]!.lsn !== proposer[shared]!.lsn)
      return {
        kind: 'none',
        reason: `term ${own[shared]!.term} starts at two places: two proposers were elected for it, or the histories are of two timelines`,
      };
    shared++;
  }
  if (shared === 0) return {kind: 'none', reason: 'the histories have no term in common'};
  const next = Math.min(proposer[shared]?.lsn ?? Infinity, own[shared]?.lsn ?? Infinity, flushLsn);
  return {kind: 'common', lsn: next as Lsn};
}

export function sameHistory(a: TermHistory, b: TermHistory): boolean {
  return a.length === b.length && a.every((entry, i) => entry.term === b[i]!.term && entry.lsn === b[i]!.lsn);
}
