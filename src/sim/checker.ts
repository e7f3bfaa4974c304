/**
 * What must hold in every simulated run (reliability.md 1 A). It sees what no node sees: all disks, and what was committed.
 * A broken rule throws Violation.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {commonPoint, cutHistory} from '#safekeeper/term-history.ts';
import {isQuorum} from '#proposer/quorum.ts';
import {TermLogs} from '#sim/sim-wal.ts';
import type {Membership, TermHistory} from '#wire/safekeeper.ts';

export class Violation extends Error {}

/** Bytes that a power cut would leave on a node for sure. */
export type DurableRead = (nodeId: number, startLsn: Lsn, endLsn: Lsn) => Buffer;

export class Checker {
  readonly logs = new TermLogs();
  readonly #startLsn: Lsn;
  readonly #durable: DurableRead;
  readonly #winners = new Map<number, number>();
  /** The committed log. */
  #committedHistory: TermHistory;
  #committedLsn: Lsn;
  /** The highest commit of each term, with its history: what proposers of higher terms must have. */
  readonly #commits = new Map<number, {lsn: Lsn; readonly history: TermHistory}>();
  readonly #proposerCommits = new Map<number, Lsn>();
  /** By node, each time all it had was gone: the newest generation it had said anything in, and how far it had WAL by its word. */
  readonly #forgotten = new Map<number, readonly {readonly generation: number; readonly saidFlushLsn: Lsn}[]>();
  readonly #saidTerm = new Map<number, number>();
  readonly #saidFlushLsn = new Map<number, Lsn>();

  constructor(startLsn: Lsn, durable: DurableRead) {
    this.#startLsn = startLsn;
    this.#durable = durable;
    this.#committedLsn = startLsn;
    this.#committedHistory = [{term: 0, lsn: startLsn}];
    this.logs.start(0, startLsn);
  }

  get committedLsn(): Lsn {
    return this.#committedLsn;
  }

  /** 2: one proposer per term. 4: it has everything that was committed in lower terms. */
  elected(proposer: number, term: number, history: TermHistory, termStartLsn: Lsn): void {
    const winner = this.#winners.get(term);
    if (winner !== undefined && winner !== proposer)
      throw new Violation(`term ${term} was won by proposers ${winner} and ${proposer} (2)`);
    this.#winners.set(term, proposer);
    for (const [lower, commit] of this.#commits) {
      if (lower >= term) continue;
      const common = commonPoint(history, commit.history, commit.lsn);
      if (common.kind === 'none' || common.lsn < commit.lsn)
        throw new Violation(
          `the proposer of term ${term} lacks WAL up to ${formatLsn(commit.lsn)}, committed in term ${lower}: it shares ${common.kind === 'none' ? common.reason : formatLsn(common.lsn)} (4)`,
        );
    }
    this.logs.start(term, termStartLsn);
  }

  /** What was committed between two positions; only below committedLsn. */
  committedBytes(startLsn: Lsn, endLsn: Lsn): Buffer {
    return this.logs.content(this.#committedHistory, startLsn, endLsn);
  }

  /** 1, 7, 8: what a proposer declares committed is durable at a quorum and never contradicts what was. */
  committed(proposer: number, term: number, history: TermHistory, lsn: Lsn, membership: Membership): void {
    const before = this.#proposerCommits.get(proposer) ?? this.#startLsn;
    if (lsn < before)
      throw new Violation(
        `proposer ${proposer} takes its commit LSN back from ${formatLsn(before)} to ${formatLsn(lsn)} (8)`,
      );
    this.#proposerCommits.set(proposer, lsn);
    const own = cutHistory(history, lsn);
    const common = commonPoint(own, this.#committedHistory, Math.min(lsn, this.#committedLsn) as Lsn);
    if (common.kind === 'none' || common.lsn < Math.min(lsn, this.#committedLsn))
      throw new Violation(`term ${term} commits ${formatLsn(lsn)}, other WAL than was committed before (1)`);
    const commit = this.#commits.get(term);
    if (commit === undefined) this.#commits.set(term, {lsn, history});
    else commit.lsn = lsn;
    if (lsn > this.#committedLsn) {
      const expected = this.logs.content(history, this.#committedLsn, lsn);
      // One that left, or lost its disk, had it when it said so, in this generation or a later one.
      const has = (node: number): boolean =>
        this.#forgotten.get(node)?.some((f) => f.generation >= membership.generation && f.saidFlushLsn >= lsn) ===
          true || this.#durable(node, this.#committedLsn, lsn).equals(expected);
      if (!isQuorum(membership, has))
        throw new Violation(
          `term ${term} commits ${formatLsn(lsn)}, which is not durable at a quorum of generation ${membership.generation} (6)`,
        );
      this.#committedLsn = lsn;
      this.#committedHistory = own;
    }
  }

  /** 10: what a safekeeper hands out as committed is. `read` gives what it would send. */
  published(node: number, fromLsn: Lsn, lsn: Lsn, read: (startLsn: Lsn, endLsn: Lsn) => Buffer): void {
    if (lsn > this.#committedLsn)
      throw new Violation(
        `safekeeper ${node} calls ${formatLsn(lsn)} committed, but only ${formatLsn(this.#committedLsn)} is (10)`,
      );
    if (!read(fromLsn, lsn).equals(this.logs.content(this.#committedHistory, fromLsn, lsn)))
      throw new Violation(
        `safekeeper ${node} hands out other WAL than was committed between ${formatLsn(fromLsn)} and ${formatLsn(lsn)} (10)`,
      );
  }

  /** Noted when a message leaves a node. */
  said(node: number, term: number, flushLsn: Lsn): void {
    if (term < (this.#saidTerm.get(node) ?? 0))
      throw new Violation(`safekeeper ${node} speaks for term ${term} after a higher one (3)`);
    this.#saidTerm.set(node, term);
    this.#saidFlushLsn.set(node, Math.max(flushLsn, this.#saidFlushLsn.get(node) ?? 0) as Lsn);
  }

  /**
   * 5, 9: no truncation by the proposer of a term takes away a copy of what that term or a lower one has committed. (What a
   * higher term has committed meanwhile, with others, it may take: it cannot know, and this copy did not count.)
   */
  truncates(node: number, lsn: Lsn, term: number, history: TermHistory, flushLsn: Lsn): void {
    let committedLsn = this.#startLsn;
    for (const [of, commit] of this.#commits) if (of <= term && commit.lsn > committedLsn) committedLsn = commit.lsn;
    const common = commonPoint(this.#committedHistory, history, Math.min(flushLsn, committedLsn) as Lsn);
    if (common.kind === 'common' && lsn < common.lsn)
      throw new Violation(
        `safekeeper ${node} truncates at ${formatLsn(lsn)} although its WAL is the committed one up to ${formatLsn(common.lsn)} (9)`,
      );
    this.#saidFlushLsn.set(node, Math.min(lsn, this.#saidFlushLsn.get(node) ?? 0) as Lsn);
  }

  /** 10: only committed WAL goes to the archive, and an object never changes. */
  archived(node: number, startLsn: Lsn, endLsn: Lsn, bytes: Buffer): void {
    if (endLsn > this.#committedLsn)
      throw new Violation(
        `safekeeper ${node} archives WAL up to ${formatLsn(endLsn)}, only ${formatLsn(this.#committedLsn)} is committed (10)`,
      );
    if (!bytes.equals(this.committedBytes(startLsn, endLsn)))
      throw new Violation(
        `safekeeper ${node} archives other WAL than was committed between ${formatLsn(startLsn)} and ${formatLsn(endLsn)} (10)`,
      );
  }

  /** 14: WAL leaves a disk only when a pageserver has it for good, and the archive. `archive` reads what is in the store. */
  trimmed(node: number, lsn: Lsn, consistentLsn: Lsn, archive: (startLsn: Lsn, endLsn: Lsn) => Buffer): void {
    if (lsn > consistentLsn)
      throw new Violation(
        `safekeeper ${node} drops WAL below ${formatLsn(lsn)}, no pageserver is beyond ${formatLsn(consistentLsn)} (14)`,
      );
    if (!archive(this.#startLsn, lsn).equals(this.committedBytes(this.#startLsn, lsn)))
      throw new Violation(`safekeeper ${node} drops WAL below ${formatLsn(lsn)} that the archive does not have (14)`);
  }

  /** Its promises are gone with its disk, and known to be. */
  forgotten(node: number, generation: number): void {
    const saidFlushLsn = this.#saidFlushLsn.get(node) ?? this.#startLsn;
    this.#forgotten.set(node, [...(this.#forgotten.get(node) ?? []), {generation, saidFlushLsn}]);
    this.#saidTerm.delete(node);
    this.#saidFlushLsn.delete(node);
  }

  /** 3, 6, 15: what was promised before a crash is there after it. */
  restarted(node: number, term: number, flushLsn: Lsn): void {
    const saidTerm = this.#saidTerm.get(node) ?? 0;
    if (term < saidTerm)
      throw new Violation(`safekeeper ${node} restarts in term ${term} after speaking for ${saidTerm} (3)`);
    const saidFlushLsn = this.#saidFlushLsn.get(node) ?? 0;
    if (flushLsn < saidFlushLsn)
      throw new Violation(
        `safekeeper ${node} restarts with WAL up to ${formatLsn(flushLsn)} after acknowledging ${formatLsn(saidFlushLsn as Lsn)} (6)`,
      );
  }

  /** 5: every log is what its history says. */
  log(node: number, history: TermHistory, startLsn: Lsn, flushLsn: Lsn, bytes: Buffer): void {
    let expected: Buffer;
    try {
      expected = this.logs.content(cutHistory(history, flushLsn), startLsn, flushLsn);
    } catch (error) {
      throw new Violation(`safekeeper ${node}: ${(error as Error).message} (5)`, {cause: error});
    }
    if (expected.equals(bytes)) return;
    let at = 0;
    while (at < expected.length && expected[at] === bytes[at]) at++;
    throw new Violation(
      `safekeeper ${node}: WAL at ${formatLsn((startLsn + at) as Lsn)} is not what the history says (5)`,
    );
  }
}
