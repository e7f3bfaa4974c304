/**
 * The acceptor of one timeline on one safekeeper: a pure state machine. It promises terms, takes WAL from the proposer of
 * the newest term and says how much of it is durable. It never touches a disk or a socket: `step` returns what to do, and
 * the shell (timeline.ts, or the simulator) does it in that order. The shell may delay or lose outputs, never reorder them.
 *
 *   vote-request T   term < T?  save T, then grant
 *   elected T, H     save T, truncate where own WAL and H part, save H, then answer where the stream starts
 *   append           write; a flush covers all that was written before it began; then answer
 *
 * Invariants (numbers of reference/reliability.md 1 A; checkInvariants and the simulator's checkers hold them):
 *   2, 3  The term is saved before anything is said on its behalf, and never goes back.
 *   5     A truncation is durable before the new history is saved.
 *   6     flushLsn is covered by a finished fsync and ends a record.
 *   8     commitLsn never goes back and is at most flushLsn.
 *   9     Only `elected` truncates, at the point computed here and now, never below commitLsn. Only the connection that
 *         brought the newest `elected` may append: late messages of an older one change nothing.
 *   11    Messages count in exactly one membership generation, the newest that was made durable here (wire/membership.ts).
 */
import {type Lsn, formatLsn, invalidLsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';
import {type RecordBoundary, feedAcrossTerms} from '#safekeeper/record-boundary.ts';
import {commonPoint, cutHistory, sameHistory} from '#safekeeper/term-history.ts';
import {type SafekeeperPosition, compareMembership, isMember} from '#wire/membership.ts';
import type {
  AcceptorMessage,
  Membership,
  ProposerMessage,
  RefusalCode,
  TermHistory,
  WalFeedback,
} from '#wire/safekeeper.ts';

/** What survives a restart (control-file.ts). `commitLsn` may lag behind what was said, never lead. */
export interface AcceptorState {
  readonly tenantId: string;
  readonly timelineId: string;
  /** pg_control's system identifier, decimal; empty = taken from the first proposer that knows it. */
  readonly systemId: string;
  /** PG_VERSION_NUM; 0 = taken from the first proposer. */
  readonly pgVersion: number;
  /** The timeline's WAL starts here: what is before belongs to its ancestor or its import, and is committed. */
  readonly startLsn: Lsn;
  readonly membership: Membership;
  readonly term: number;
  /** Never empty: the first entry is {term: 0, lsn: startLsn}. */
  readonly history: TermHistory;
  readonly commitLsn: Lsn;
  /** Pageservers have uploaded everything below, and their generation was validated. */
  readonly remoteConsistentLsn: Lsn;
  /** WAL below is in the object store, verified by this node (archiver.ts). At least startLsn. */
  readonly archivedLsn: Lsn;
  /** WAL from here on is on this node's disk; what is below is in the object store. At least startLsn, at most commitLsn. */
  readonly localStartLsn: Lsn;
}

export type AcceptorInput =
  | {readonly kind: 'message'; readonly connection: number; readonly message: ProposerMessage}
  /** No more messages wait at the moment: what was written should become durable now (group commit). */
  | {readonly kind: 'batch-end'}
  /** The flush of this epoch is finished. */
  | {readonly kind: 'flushed'; readonly epoch: number}
  /** A write output could not be carried out (disk full). */
  | {readonly kind: 'write-failed'; readonly message: string}
  | {readonly kind: 'disconnected'; readonly connection: number}
  /** What the timeline's readers have, all of them together. */
  | {readonly kind: 'feedback'; readonly feedback: WalFeedback}
  /** Time to make a lagging commitLsn durable. */
  | {readonly kind: 'save'}
  /**
   * The control plane's word (PUT membership). Durable when the outputs are carried out: `position` then is the answer. An
   * older or contradicting configuration changes nothing (compareMembership says so beforehand).
   */
  | {readonly kind: 'membership'; readonly membership: Membership; readonly minTerm: number}
  /** So far WAL was found in the object store, and from here on it is kept on this disk (archiver.ts). Saved at once. */
  | {readonly kind: 'archived'; readonly archivedLsn: Lsn; readonly localStartLsn: Lsn}
  /**
   * A peer's committed WAL follows, since no proposer brings it: `history` is the peer's, cut at its `commitLsn`, up to
   * which WAL can never change again. What we have beyond the point where the logs part is dropped; the first byte wanted is
   * writeLsn after this step. Without effect while a proposer appends.
   */
  | {readonly kind: 'peer-begin'; readonly connection: number; readonly history: TermHistory; readonly commitLsn: Lsn}
  /** The next bytes of the peer of the last peer-begin; never beyond its commitLsn. */
  | {readonly kind: 'peer-wal'; readonly connection: number; readonly beginLsn: Lsn; readonly bytes: Buffer};

export type AcceptorOutput =
  /** Bytes to the page cache; need not be durable. */
  | {readonly kind: 'write'; readonly lsn: Lsn; readonly bytes: Buffer}
  /** fsync everything written so far, then step `flushed` with the epoch. At most one is under way. */
  | {readonly kind: 'flush'; readonly epoch: number}
  /** flushLsn has advanced: noted on the disk before anybody is told (flush-mark.ts), durable or not. */
  | {readonly kind: 'mark'; readonly lsn: Lsn}
  /** Drop all WAL from here on; durable before the next output is carried out. */
  | {readonly kind: 'truncate'; readonly lsn: Lsn}
  /** Durable before the next output is carried out. */
  | {readonly kind: 'save'; readonly state: AcceptorState}
  | {readonly kind: 'send'; readonly connection: number; readonly message: AcceptorMessage}
  /** Tell why, and close the connection. */
  | {readonly kind: 'refuse'; readonly connection: number; readonly code: RefusalCode; readonly message: string}
  /** commitLsn has advanced: readers may have more. */
  | {readonly kind: 'commit'; readonly lsn: Lsn};

/** Seeded bugs for the simulator's mutation check; production never passes any. */
export type AcceptorMutation =
  | 'vote-twice'
  | 'vote-before-save'
  | 'history-not-cut'
  | 'no-truncation'
  | 'truncate-at-any-elected'
  | 'history-before-truncation'
  | 'ack-before-fsync'
  | 'ack-partial-record'
  | 'commit-beyond-flush'
  | 'append-from-any-term'
  | 'append-from-any-connection'
  | 'take-older-generations'
  | 'take-newer-generations'
  | 'no-term-bump'
  | 'membership-not-saved'
  | 'flush-covers-later-writes'
  | 'stale-flush-counts'
  | 'write-broken-ignored'
  | 'elected-of-older-term'
  | 'peer-keeps-own-tail'
  | 'peer-beside-proposer';

export interface AcceptorOptions {
  readonly nodeId: number;
  readonly state: AcceptorState;
  /** Durable end of WAL, at the end of a record (wal-store.ts finds it at start). */
  readonly flushLsn: Lsn;
  readonly boundary: RecordBoundary;
  readonly mutations?: ReadonlySet<AcceptorMutation>;
}

/** All that decides what an acceptor does next, for the model check. The parts are never changed in place. */
export interface AcceptorSnapshot {
  readonly state: AcceptorState;
  readonly commitLsn: Lsn;
  readonly proposerCommitLsn: Lsn;
  readonly feedback: WalFeedback;
  readonly flushLsn: Lsn;
  readonly syncedLsn: Lsn;
  readonly writeLsn: Lsn;
  readonly recordEndLsn: Lsn;
  readonly epoch: number;
  readonly flushing: {readonly epoch: number; readonly writeLsn: Lsn; readonly recordEndLsn: Lsn} | undefined;
  readonly writeBroken: boolean;
  readonly appender: number | undefined;
  readonly peer: {readonly connection: number; readonly commitLsn: Lsn} | undefined;
}

export class Acceptor {
  readonly #nodeId: number;
  readonly #boundary: RecordBoundary;
  readonly #mutations: ReadonlySet<AcceptorMutation> | undefined;
  #state: AcceptorState;
  #commitLsn: Lsn;
  #feedback: WalFeedback;
  /** The newest commit LSN a proposer named; beyond flushLsn while WAL is on its way. */
  #proposerCommitLsn: Lsn;
  /** Durable, at the end of a record. */
  #flushLsn: Lsn;
  /** All bytes below are durable; may end inside a record. */
  #syncedLsn: Lsn;
  /** Where the next byte goes. */
  #writeLsn: Lsn;
  /** End of the last whole record below #writeLsn. */
  #recordEndLsn: Lsn;
  /** Counts truncations and failed writes: a flush that began before one must not move flushLsn. */
  #epoch = 0;
  #flushing: {readonly epoch: number; readonly writeLsn: Lsn; readonly recordEndLsn: Lsn} | undefined;
  /** A write failed: what lies between flushLsn and writeLsn is not WAL until the next `elected` has truncated it. */
  #writeBroken = false;
  /** The connection whose `elected` was taken last; only it may append. */
  #appender: number | undefined;
  /** A peer that brings its committed WAL while no proposer does. */
  #peer: {readonly connection: number; readonly commitLsn: Lsn} | undefined;

  constructor(options: AcceptorOptions) {
    this.#nodeId = options.nodeId;
    this.#boundary = options.boundary;
    this.#mutations = options.mutations;
    this.#state = options.state;
    this.#commitLsn = options.state.commitLsn;
    this.#proposerCommitLsn = options.state.commitLsn;
    this.#flushLsn = options.flushLsn;
    this.#syncedLsn = options.flushLsn;
    this.#writeLsn = options.flushLsn;
    this.#recordEndLsn = options.flushLsn;
    this.#feedback = {
      lastReceivedLsn: invalidLsn,
      diskConsistentLsn: invalidLsn,
      remoteConsistentLsn: options.state.remoteConsistentLsn,
    };
    this.#boundary.reset(options.flushLsn);
    this.checkInvariants();
  }

  get nodeId(): number {
    return this.#nodeId;
  }
  get state(): AcceptorState {
    return this.#state;
  }
  get term(): number {
    return this.#state.term;
  }
  get flushLsn(): Lsn {
    return this.#flushLsn;
  }
  /** Durable, but may end inside a record. */
  get syncedLsn(): Lsn {
    return this.#syncedLsn;
  }
  get writeLsn(): Lsn {
    return this.#writeLsn;
  }
  get commitLsn(): Lsn {
    return this.#commitLsn;
  }
  get feedback(): WalFeedback {
    return this.#feedback;
  }
  /** The term of the last WAL that is durable here. */
  get lastLogTerm(): number {
    return cutHistory(this.#state.history, this.#flushLsn).at(-1)!.term;
  }
  /** What the control plane is told; durable. */
  get position(): SafekeeperPosition {
    return {
      generation: this.#state.membership.generation,
      term: this.#state.term,
      lastLogTerm: this.lastLogTerm,
      flushLsn: this.#flushLsn,
      commitLsn: this.#commitLsn,
    };
  }
  /** A proposer is connected and elected. */
  get hasProposer(): boolean {
    return this.#appender !== undefined;
  }
  /** The peer of the last peer-begin is still the one whose WAL is taken. */
  takesFrom(connection: number): boolean {
    return this.#peer?.connection === connection;
  }
  /** A proposer of `term` may read our uncommitted WAL: it is a prefix of its own. */
  servesRecovery(term: number): boolean {
    return this.#state.term === term && this.#state.history.at(-1)!.term === term;
  }

  step(input: AcceptorInput): AcceptorOutput[] {
    const out: AcceptorOutput[] = [];
    switch (input.kind) {
      case 'message':
        this.#message(input.connection, input.message, out);
        break;
      case 'batch-end':
        this.#flush(out);
        break;
      case 'flushed':
        this.#flushed(input.epoch, out);
        break;
      case 'write-failed':
        this.#writeFailed(input.message, out);
        break;
      case 'disconnected':
        if (this.#appender === input.connection) this.#appender = undefined;
        if (this.#peer?.connection === input.connection) this.#peer = undefined;
        break;
      case 'feedback':
        this.#feedback = {
          ...input.feedback,
          remoteConsistentLsn: Math.max(input.feedback.remoteConsistentLsn, this.#feedback.remoteConsistentLsn) as Lsn,
        };
        break;
      case 'save':
        if (
          this.#commitLsn > this.#state.commitLsn ||
          this.#feedback.remoteConsistentLsn > this.#state.remoteConsistentLsn
        )
          this.#save({}, out);
        break;
      case 'membership':
        this.#membership(input.membership, input.minTerm, out);
        break;
      case 'archived':
        this.#archived(input.archivedLsn, input.localStartLsn, out);
        break;
      case 'peer-begin':
        this.#peerBegin(input.connection, input.history, input.commitLsn, out);
        break;
      case 'peer-wal':
        this.#peerWal(input.connection, input.beginLsn, input.bytes, out);
        break;
    }
    return out;
  }

  snapshot(): AcceptorSnapshot {
    return {
      state: this.#state,
      commitLsn: this.#commitLsn,
      proposerCommitLsn: this.#proposerCommitLsn,
      feedback: this.#feedback,
      flushLsn: this.#flushLsn,
      syncedLsn: this.#syncedLsn,
      writeLsn: this.#writeLsn,
      recordEndLsn: this.#recordEndLsn,
      epoch: this.#epoch,
      flushing: this.#flushing,
      writeBroken: this.#writeBroken,
      appender: this.#appender,
      peer: this.#peer,
    };
  }

  /** Goes on from a snapshot whose last record was whole. */
  restore(s: AcceptorSnapshot): void {
    this.#state = s.state;
    this.#commitLsn = s.commitLsn;
    this.#proposerCommitLsn = s.proposerCommitLsn;
    this.#feedback = s.feedback;
    this.#flushLsn = s.flushLsn;
    this.#syncedLsn = s.syncedLsn;
    this.#writeLsn = s.writeLsn;
    this.#recordEndLsn = s.recordEndLsn;
    this.#epoch = s.epoch;
    this.#flushing = s.flushing;
    this.#writeBroken = s.writeBroken;
    this.#appender = s.appender;
    this.#peer = s.peer;
    this.#boundary.reset(s.writeLsn);
  }

  checkInvariants(): void {
    const s = this.#state;
    assert(s.history.length > 0, 'the term history is never empty');
    assert(s.history.at(-1)!.term <= s.term, 'the newest history entry is of the own term or an older one');
    assert(s.startLsn <= this.#commitLsn, 'commitLsn is at or after the start of the timeline');
    assert(
      s.startLsn <= s.localStartLsn && s.localStartLsn <= s.archivedLsn && s.archivedLsn <= this.#commitLsn,
      'only archived WAL is dropped, and only committed WAL is archived (10, 14)',
    );
    assert(this.#commitLsn <= this.#flushLsn || this.#has('commit-beyond-flush'), 'commitLsn is at most flushLsn (8)');
    assert(
      this.#flushLsn <= this.#recordEndLsn || this.#has('ack-partial-record'),
      'flushLsn is at most the end of the last record (6)',
    );
    assert(this.#recordEndLsn <= this.#writeLsn && this.#syncedLsn <= this.#writeLsn, 'nothing lies beyond writeLsn');
  }

  #message(connection: number, message: ProposerMessage, out: AcceptorOutput[]): void {
    if (message.kind === 'greeting') {
      this.#greeting(connection, message, out);
      return;
    }
    const {membership} = this.#state;
    if (message.generation < membership.generation && !this.#has('take-older-generations')) {
      // Without effect; the proposer learns the newer configuration.
      this.#sendGreeting(connection, out);
      return;
    }
    if (
      (message.generation > membership.generation && !this.#has('take-newer-generations')) ||
      !isMember(membership, this.#nodeId)
    ) {
      this.#refuse(
        connection,
        'wrong-generation',
        `membership generation is ${membership.generation} here${isMember(membership, this.#nodeId) ? '' : ' and this safekeeper is no member'}, the proposer's is ${message.generation}`,
        out,
      );
      return;
    }
    switch (message.kind) {
      case 'vote-request':
        this.#voteRequest(connection, message.term, out);
        break;
      case 'elected':
        this.#elected(connection, message.term, message.history, out);
        break;
      case 'append':
        this.#append(connection, message, out);
        break;
    }
  }

  #greeting(connection: number, message: Extract<ProposerMessage, {kind: 'greeting'}>, out: AcceptorOutput[]): void {
    const s = this.#state;
    if (message.tenantId !== s.tenantId || message.timelineId !== s.timelineId) {
      this.#refuse(
        connection,
        'wrong-timeline',
        `the greeting is for tenant ${message.tenantId} timeline ${message.timelineId}`,
        out,
      );
      return;
    }
    const major = Math.floor(message.pgVersion / 10000);
    if (s.pgVersion !== 0 && major !== Math.floor(s.pgVersion / 10000)) {
      this.#refuse(
        connection,
        'wrong-timeline',
        `the compute runs PostgreSQL ${major}, the timeline is of ${Math.floor(s.pgVersion / 10000)}`,
        out,
      );
      return;
    }
    if (message.systemId !== '' && s.systemId !== '' && message.systemId !== s.systemId) {
      this.#refuse(
        connection,
        'wrong-timeline',
        `the compute's system identifier is ${message.systemId}, the timeline's is ${s.systemId}`,
        out,
      );
      return;
    }
    if (s.pgVersion === 0 || (s.systemId === '' && message.systemId !== ''))
      this.#save({pgVersion: s.pgVersion || message.pgVersion, systemId: s.systemId || message.systemId}, out);
    this.#sendGreeting(connection, out);
  }

  #sendGreeting(connection: number, out: AcceptorOutput[]): void {
    const {term, membership} = this.#state;
    this.#send(connection, {kind: 'greeting-response', nodeId: this.#nodeId, term, membership}, out);
  }

  #membership(membership: Membership, minTerm: number, out: AcceptorOutput[]): void {
    const compared = compareMembership(this.#state.membership, membership);
    if (compared === 'stale' || compared === 'conflict') return;
    const term = this.#has('no-term-bump') ? this.#state.term : Math.max(minTerm, this.#state.term);
    if (compared === 'same' && term === this.#state.term) return;
    const told = this.#appender;
    this.#appender = undefined;
    this.#peer = undefined;
    if (this.#has('membership-not-saved')) this.#state = {...this.#state, membership, term};
    else this.#save({membership, term}, out);
    // The proposer goes on sooner than with its next message.
    if (told !== undefined) this.#sendGreeting(told, out);
    this.checkInvariants();
  }

  #voteRequest(connection: number, term: number, out: AcceptorOutput[]): void {
    const granted = this.#state.term < term || (this.#has('vote-twice') && this.#state.term === term);
    const saved = out.length;
    if (this.#state.term < term) this.#raiseTerm(term, out, connection);
    this.#send(
      connection,
      {
        kind: 'vote-response',
        generation: this.#state.membership.generation,
        term: this.#state.term,
        granted,
        flushLsn: this.#flushLsn,
        commitLsn: this.#commitLsn,
        history: this.#has('history-not-cut') ? this.#state.history : cutHistory(this.#state.history, this.#flushLsn),
      },
      out,
    );
    if (this.#has('vote-before-save') && out.length > saved + 1) out.push(out.splice(saved, 1)[0]!);
  }

  #elected(connection: number, term: number, history: TermHistory, out: AcceptorOutput[]): void {
    const generation = this.#state.membership.generation;
    if (term < this.#state.term && !this.#has('elected-of-older-term')) {
      this.#send(
        connection,
        {kind: 'elected-response', generation, term: this.#state.term, startLsn: invalidLsn, commitLsn: invalidLsn},
        out,
      );
      return;
    }
    if (history.at(-1)?.term !== term) {
      this.#refuse(
        connection,
        'bad-history',
        `the history of a proposer elected for term ${term} must end with that term`,
        out,
      );
      return;
    }
    const common = commonPoint(history, this.#state.history, this.#flushLsn);
    if (common.kind === 'none') {
      this.#refuse(connection, 'bad-history', common.reason, out);
      return;
    }
    let startLsn = common.lsn;
    if (startLsn < this.#commitLsn && !this.#has('truncate-at-any-elected')) {
      this.#refuse(
        connection,
        'bad-history',
        `WAL would be truncated at ${formatLsn(startLsn)}, below what is committed (${formatLsn(this.#commitLsn)}): the proposer of term ${term} lacks committed WAL`,
        out,
      );
      return;
    }
    if (this.#has('truncate-at-any-elected')) startLsn = Math.min(history.at(-1)!.lsn, startLsn) as Lsn;
    if (this.#has('no-truncation')) startLsn = this.#flushLsn;
    if (term > this.#state.term) this.#raiseTerm(term, out, connection);
    const early = this.#has('history-before-truncation') && !sameHistory(history, this.#state.history);
    if (early) this.#save({history}, out);
    // Also what was written but not acknowledged goes: the stream starts anew at the end of a durable record.
    if (this.#writeLsn > startLsn) {
      this.#epoch++;
      this.#flushLsn = startLsn;
      this.#syncedLsn = startLsn;
      this.#writeLsn = startLsn;
      this.#recordEndLsn = startLsn;
      this.#writeBroken = false;
      out.push({kind: 'truncate', lsn: startLsn});
    }
    if (this.#has('truncate-at-any-elected')) this.#commitLsn = Math.min(this.#commitLsn, startLsn) as Lsn;
    this.#boundary.reset(startLsn);
    if (!sameHistory(history, this.#state.history)) this.#save({history}, out);
    this.#peer = undefined;
    this.#appender = connection;
    this.#send(connection, {kind: 'elected-response', generation, term, startLsn, commitLsn: this.#commitLsn}, out);
    this.checkInvariants();
  }

  #append(connection: number, message: Extract<ProposerMessage, {kind: 'append'}>, out: AcceptorOutput[]): void {
    const {term} = this.#state;
    if (message.term < term && !this.#has('append-from-any-term')) {
      this.#respond(connection, out);
      return;
    }
    if (
      message.term > term ||
      (this.#state.history.at(-1)!.term !== message.term && !this.#has('append-from-any-term'))
    ) {
      this.#refuse(
        connection,
        'not-elected',
        `append of term ${message.term} before its proposer announced its election (term is ${term} here)`,
        out,
      );
      return;
    }
    if (connection !== this.#appender && !this.#has('append-from-any-connection')) {
      this.#refuse(connection, 'not-elected', 'append on a connection that a newer one has replaced', out);
      return;
    }
    if (message.bytes.length > 0) {
      if (message.beginLsn !== this.#writeLsn) {
        this.#refuse(
          connection,
          'gap',
          `append at ${formatLsn(message.beginLsn)}, but WAL ends at ${formatLsn(this.#writeLsn)} here`,
          out,
        );
        return;
      }
      let recordEndLsn: Lsn;
      try {
        recordEndLsn = feedAcrossTerms(this.#boundary, this.#state.history, message.beginLsn, message.bytes);
      } catch (error) {
        this.#refuse(
          connection,
          'bad-wal',
          `WAL that begins at ${formatLsn(message.beginLsn)} does not decode: ${error instanceof Error ? error.message : String(error)}`,
          out,
        );
        return;
      }
      this.#writeLsn = (message.beginLsn + message.bytes.length) as Lsn;
      this.#recordEndLsn = recordEndLsn;
      out.push({kind: 'write', lsn: message.beginLsn, bytes: message.bytes});
      if (this.#has('ack-before-fsync')) {
        this.#flushLsn = recordEndLsn;
        this.#respond(connection, out);
      }
    }
    if (message.commitLsn > this.#proposerCommitLsn) this.#proposerCommitLsn = message.commitLsn;
    this.#advanceCommit(out);
    if (message.wantsReply) this.#respond(connection, out);
    this.checkInvariants();
  }

  #archived(archivedLsn: Lsn, localStartLsn: Lsn, out: AcceptorOutput[]): void {
    const next = {
      archivedLsn: Math.max(archivedLsn, this.#state.archivedLsn) as Lsn,
      localStartLsn: Math.max(localStartLsn, this.#state.localStartLsn) as Lsn,
    };
    if (next.archivedLsn === this.#state.archivedLsn && next.localStartLsn === this.#state.localStartLsn) return;
    this.#save(next, out);
    this.checkInvariants();
  }

  /**
   * Why a tail may go that a proposer has not truncated: a committed record is in every log of a higher term, so where our
   * log parts from committed WAL, our bytes are of a lower term than the committed ones and were never committed.
   */
  #peerBegin(connection: number, history: TermHistory, commitLsn: Lsn, out: AcceptorOutput[]): void {
    if (this.#appender !== undefined && !this.#has('peer-beside-proposer')) return;
    const committed = cutHistory(history, commitLsn);
    const common = commonPoint(committed, this.#state.history, this.#flushLsn);
    if (common.kind === 'none' || common.lsn < Math.min(this.#commitLsn, commitLsn)) return;
    if (common.lsn < commitLsn) {
      if (committed.at(-1)!.term > this.#state.term) this.#raiseTerm(committed.at(-1)!.term, out);
      if (this.#writeLsn > common.lsn && !this.#has('peer-keeps-own-tail')) {
        this.#epoch++;
        this.#flushLsn = common.lsn;
        this.#syncedLsn = common.lsn;
        this.#writeLsn = common.lsn;
        this.#recordEndLsn = common.lsn;
        this.#writeBroken = false;
        out.push({kind: 'truncate', lsn: common.lsn});
      }
      this.#boundary.reset(this.#writeLsn);
      if (!sameHistory(committed, this.#state.history)) this.#save({history: committed}, out);
      this.#peer = {connection, commitLsn};
    }
    // Everything below both is committed, whoever wrote it.
    const known = Math.min(common.lsn, commitLsn) as Lsn;
    if (known > this.#proposerCommitLsn) this.#proposerCommitLsn = known;
    this.#advanceCommit(out);
    this.checkInvariants();
  }

  #peerWal(connection: number, beginLsn: Lsn, bytes: Buffer, out: AcceptorOutput[]): void {
    const peer = this.#peer;
    if (peer?.connection !== connection || beginLsn !== this.#writeLsn || this.#writeBroken) return;
    assert(beginLsn + bytes.length <= peer.commitLsn, 'a peer brings committed WAL only (10)');
    try {
      this.#recordEndLsn = feedAcrossTerms(this.#boundary, this.#state.history, beginLsn, bytes);
    } catch {
      this.#peer = undefined;
      return;
    }
    this.#writeLsn = (beginLsn + bytes.length) as Lsn;
    out.push({kind: 'write', lsn: beginLsn, bytes});
    // Whole records only: a commit LSN inside a record could not be read from after a crash, and what follows it would be cut.
    if (this.#recordEndLsn > this.#proposerCommitLsn) this.#proposerCommitLsn = this.#recordEndLsn;
    this.checkInvariants();
  }

  #flush(out: AcceptorOutput[]): void {
    if (this.#flushing !== undefined || this.#writeBroken || this.#writeLsn <= this.#syncedLsn) return;
    this.#flushing = {epoch: this.#epoch, writeLsn: this.#writeLsn, recordEndLsn: this.#recordEndLsn};
    out.push({kind: 'flush', epoch: this.#epoch});
  }

  #flushed(epoch: number, out: AcceptorOutput[]): void {
    const flushing = this.#flushing;
    assert(flushing !== undefined && flushing.epoch === epoch, 'a flush that finished had begun');
    this.#flushing = undefined;
    if (epoch === this.#epoch || this.#has('stale-flush-counts')) {
      const late = this.#has('flush-covers-later-writes');
      const before = this.#flushLsn;
      this.#syncedLsn = late ? this.#writeLsn : flushing.writeLsn;
      this.#flushLsn = this.#has('ack-partial-record')
        ? flushing.writeLsn
        : (Math.max(this.#flushLsn, late ? this.#recordEndLsn : flushing.recordEndLsn) as Lsn);
      if (this.#flushLsn > before) out.push({kind: 'mark', lsn: this.#flushLsn});
      this.#advanceCommit(out);
      if (this.#appender !== undefined) this.#respond(this.#appender, out);
      this.checkInvariants();
    }
    this.#flush(out);
  }

  /** The connection that sent it is refused; it comes again, and its next `elected` drops what was half written. */
  #writeFailed(message: string, out: AcceptorOutput[]): void {
    this.#epoch++;
    if (this.#has('write-broken-ignored')) return;
    this.#recordEndLsn = this.#flushLsn;
    this.#writeBroken = true;
    this.#peer = undefined;
    if (this.#appender !== undefined) this.#refuse(this.#appender, 'disk-full', message, out);
  }

  #advanceCommit(out: AcceptorOutput[]): void {
    const lsn = this.#has('commit-beyond-flush')
      ? this.#proposerCommitLsn
      : (Math.min(this.#proposerCommitLsn, this.#flushLsn) as Lsn);
    if (lsn <= this.#commitLsn) return;
    this.#commitLsn = lsn;
    out.push({kind: 'commit', lsn});
  }

  #respond(connection: number, out: AcceptorOutput[]): void {
    this.#send(
      connection,
      {
        kind: 'append-response',
        generation: this.#state.membership.generation,
        term: this.#state.term,
        flushLsn: this.#flushLsn,
        syncedLsn: this.#syncedLsn,
        commitLsn: this.#commitLsn,
        feedback: this.#feedback,
      },
      out,
    );
  }

  /**
   * A connection of an older term may go on reading answers, but not append. It is told at once: what it has sent is never answered
   * any more, and with its clients waiting for that it has nothing more to send.
   */
  #raiseTerm(term: number, out: AcceptorOutput[], connection?: number): void {
    const deposed = this.#appender;
    this.#appender = undefined;
    this.#peer = undefined;
    this.#save({term}, out);
    if (deposed !== undefined && deposed !== connection) this.#respond(deposed, out);
  }

  #save(changes: Partial<AcceptorState>, out: AcceptorOutput[]): void {
    const next: AcceptorState = {
      ...this.#state,
      commitLsn: this.#commitLsn,
      remoteConsistentLsn: this.#feedback.remoteConsistentLsn,
      ...changes,
    };
    assert(next.term >= this.#state.term, 'the term never goes back (3)');
    this.#state = next;
    out.push({kind: 'save', state: next});
  }

  #send(connection: number, message: AcceptorMessage, out: AcceptorOutput[]): void {
    out.push({kind: 'send', connection, message});
  }

  #refuse(connection: number, code: RefusalCode, message: string, out: AcceptorOutput[]): void {
    if (this.#appender === connection) this.#appender = undefined;
    out.push({kind: 'refuse', connection, code, message});
  }

  #has(mutation: AcceptorMutation): boolean {
    return this.#mutations !== undefined && this.#mutations.has(mutation);
  }
}
