/**
 * The proposer of one timeline: a pure state machine that wins a term and then appends its compute's WAL at a quorum of
 * safekeepers. `step` returns what to do; run.ts (or the simulator) does it in that order.
 *
 *   greeting  ── quorum greeted ──>  voting  ── quorum of votes ──>  elected  ── a higher term is seen ──>  fenced
 *                 ↑                    └─ refused: a higher term after a pause ─┘
 *                 └── the donor is gone before a quorum has its WAL ──┘
 *
 * Votes tell each voter's (term of its last WAL, flushLsn). The highest of them is the donor: its WAL holds everything that
 * any earlier proposer committed, so our log is the donor's, and from its flushLsn (`termStartLsn`) on it is ours.
 * Safekeepers that lack older WAL get it from one that has it (`recover`), those that lack newer from our window.
 *
 * When the membership changes (wire/membership.ts) we stay with our configuration until so many members have left it that it
 * can have no quorum, or until those that are left do not come for a while; then we take the newest we heard of and greet everybody anew, in whatever phase we are. An elected
 * proposer stays elected: only acknowledgements are collected again, since they count in one generation only.
 *
 * Invariants (reliability.md 1 A): 7 commitLsn is what a quorum has durable, and at least termStartLsn: WAL of older terms
 * is never committed by counting (Raft, figure 8). 8 commitLsn never goes back. 12 after `fenced` nothing is ever said.
 */
import {type Lsn, formatLsn, invalidLsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';
import {isQuorum, quorumLsn} from '#proposer/quorum.ts';
import {WalWindow, type WalWindowSnapshot} from '#proposer/wal-window.ts';
import {allMembers} from '#wire/membership.ts';
import type {AcceptorMessage, Membership, ProposerMessage, TermHistory, WalFeedback} from '#wire/safekeeper.ts';

/** Sent to one safekeeper and not yet durable there. */
const inFlightBytesMax = 8 * 1024 * 1024;
/** Not yet durable at a quorum: beyond, the compute's stream is paused; it goes on at half of it. */
const undurableBytesMax = 16 * 1024 * 1024;
/** An elected proposer whose donor is gone waits so long for it. */
const stuckMs = 2000;
/** WAL kept for a safekeeper that was away for a moment; and at most for one that is slow. */
const windowBytesMin = 1024 * 1024;
const windowBytesMax = 16 * 1024 * 1024;

export type ProposerInput =
  | {readonly kind: 'connected'; readonly peer: number}
  | {readonly kind: 'disconnected'; readonly peer: number}
  | {readonly kind: 'message'; readonly peer: number; readonly message: AcceptorMessage}
  /** The compute's WAL, without gaps from termStartLsn on. The bytes must not change afterwards. */
  | {readonly kind: 'wal'; readonly lsn: Lsn; readonly bytes: Buffer}
  /** What a `recover` output asked for, in order. */
  | {readonly kind: 'recovered'; readonly peer: number; readonly lsn: Lsn; readonly bytes: Buffer}
  /** The donor failed, or has no more for now. */
  | {readonly kind: 'recovery-ended'; readonly peer: number}
  /** Time to tell safekeepers a commit LSN that no append has carried. */
  | {readonly kind: 'commit-due'}
  /** A few times a second before the election, then once: asks for signs of life. `random` in [0, 1) spreads campaigns of rivals. */
  | {readonly kind: 'tick'; readonly nowMs: number; readonly random: number};

export type ProposerOutput =
  | {readonly kind: 'send'; readonly peer: number; readonly message: ProposerMessage}
  /** Close the connection; connect again after a while. */
  | {readonly kind: 'close'; readonly peer: number; readonly reason: string}
  | {readonly kind: 'elected'; readonly term: number; readonly termStartLsn: Lsn}
  /** Once: everything up to here is committed, the compute starts exactly here. */
  | {readonly kind: 'synced'; readonly lsn: Lsn}
  /** commitLsn has advanced: acknowledge it to the compute. */
  | {readonly kind: 'committed'; readonly lsn: Lsn}
  /** Read WAL [startLsn, …) at safekeeper `donor` under our term and step it in as `recovered`, until `stop-recovery`. */
  | {
      readonly kind: 'recover';
      readonly peer: number;
      readonly donor: number;
      readonly startLsn: Lsn;
      readonly term: number;
    }
  | {readonly kind: 'pause-recovery'; readonly peer: number}
  | {readonly kind: 'resume-recovery'; readonly peer: number}
  | {readonly kind: 'stop-recovery'; readonly peer: number}
  | {readonly kind: 'pause-source'}
  | {readonly kind: 'resume-source'}
  /** From now on these are the safekeepers: connect to those that are new, let go of those that are gone. */
  | {readonly kind: 'membership'; readonly membership: Membership}
  /** A proposer of a higher term exists: this one has ended. */
  | {readonly kind: 'fenced'; readonly term: number; readonly peer: number};

/** Seeded bugs for the simulator's mutation check; production never passes any. */
export type ProposerMutation =
  | 'quorum-of-one'
  | 'donor-by-lsn'
  | 'donor-by-term'
  | 'commit-old-terms'
  | 'reuse-term'
  | 'ignore-higher-term'
  | 'commit-partial-record'
  | 'forget-donor-history'
  | 'joint-old-only'
  | 'joint-new-only'
  | 'keep-acks-across-generations'
  | 'count-any-generation'
  | 'votes-of-any-term'
  | 'start-at-donors-commit'
  | 'never-starts-over'
  | 'never-left-alone'
  | 'always-best-donor';

export interface ProposerOptions {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly pgVersion: number;
  readonly systemId: string;
  readonly membership: Membership;
  readonly mutations?: ReadonlySet<ProposerMutation>;
}

interface Vote {
  readonly flushLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly history: TermHistory;
}

export interface Peer {
  readonly nodeId: number;
  /** ahead: it has a newer configuration (`newer`) and takes nothing of ours. */
  phase: 'offline' | 'greeting' | 'greeted' | 'electing' | 'streaming' | 'ahead';
  newer: Membership | undefined;
  vote: Vote | undefined;
  /** Durable there in our term; stays when the connection breaks. */
  flushLsn: Lsn;
  /** Durable there, maybe inside a record: flow control only. */
  syncedLsn: Lsn;
  commitLsn: Lsn;
  /** The next byte to send. */
  nextLsn: Lsn;
  commitSentLsn: Lsn;
  recovery: 'none' | 'running' | 'paused';
  /** Donors asked for it in this round: what the best one sends may be damaged, which only the safekeeper notices. */
  askedDonors: readonly number[];
  feedback: WalFeedback;
}

/** All that decides what a proposer does next, for the model check. The parts are never changed in place. */
export interface ProposerSnapshot {
  readonly membership: Membership;
  readonly phase: 'greeting' | 'voting' | 'elected' | 'fenced';
  readonly term: number;
  readonly highestTermSeen: number;
  readonly campaignAgain: boolean;
  readonly campaignAtMs: number | undefined;
  readonly history: TermHistory;
  readonly termStartLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly window: WalWindowSnapshot;
  readonly sourcePaused: boolean;
  readonly progress: number;
  readonly progressAtMs: number | undefined;
  readonly aloneSinceMs: number | undefined;
  readonly peers: readonly Readonly<Peer>[];
}

export interface PeerStatus {
  readonly nodeId: number;
  readonly phase: string;
  readonly flushLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly feedback: WalFeedback;
}

const noBytes = Buffer.alloc(0);
const noFeedback: WalFeedback = {
  lastReceivedLsn: invalidLsn,
  diskConsistentLsn: invalidLsn,
  remoteConsistentLsn: invalidLsn,
};

function newPeer(nodeId: number): Peer {
  return {
    nodeId,
    phase: 'offline',
    newer: undefined,
    vote: undefined,
    flushLsn: invalidLsn,
    syncedLsn: invalidLsn,
    commitLsn: invalidLsn,
    nextLsn: invalidLsn,
    commitSentLsn: invalidLsn,
    recovery: 'none',
    askedDonors: [],
    feedback: noFeedback,
  };
}

export class Proposer {
  readonly #options: ProposerOptions;
  readonly #mutations: ReadonlySet<ProposerMutation> | undefined;
  readonly #peers = new Map<number, Peer>();
  #membership: Membership;
  #phase: 'greeting' | 'voting' | 'elected' | 'fenced' = 'greeting';
  #term = 0;
  #highestTermSeen = 0;
  /** The campaign is lost; a new one starts after a random pause (campaignAtMs, once a tick has chosen it). */
  #campaignAgain = false;
  #campaignAtMs: number | undefined;
  #history: TermHistory = [];
  #termStartLsn: Lsn = invalidLsn;
  #commitLsn: Lsn = invalidLsn;
  #window = new WalWindow(invalidLsn);
  #sourcePaused = false;
  /** While not synced: what safekeepers have, in sum, and since when it has not grown. */
  #progress = 0;
  #progressAtMs: number | undefined;
  /** A newer configuration is known, and ours has had no quorum of connections since then. */
  #aloneSinceMs: number | undefined;

  constructor(options: ProposerOptions) {
    this.#options = options;
    this.#mutations = options.mutations;
    this.#membership = options.membership;
    for (const {nodeId} of allMembers(options.membership)) this.#peers.set(nodeId, newPeer(nodeId));
  }

  get phase(): 'greeting' | 'voting' | 'elected' | 'fenced' {
    return this.#phase;
  }
  get term(): number {
    return this.#term;
  }
  get termStartLsn(): Lsn {
    return this.#termStartLsn;
  }
  /** 0 until WAL of our own term start is committed. */
  get commitLsn(): Lsn {
    return this.#commitLsn;
  }
  get endLsn(): Lsn {
    return this.#window.endLsn;
  }
  /** WAL below it is on a quorum's disks; it may end inside a record, which commitLsn does not. */
  get durableLsn(): Lsn {
    return quorumLsn(
      this.#membership,
      (nodeId) => Math.max(this.#peers.get(nodeId)!.syncedLsn, this.#commitLsn, this.#termStartLsn) as Lsn,
    );
  }
  get history(): TermHistory {
    return this.#history;
  }
  get membership(): Membership {
    return this.#membership;
  }
  peers(): PeerStatus[] {
    return [...this.#peers.values()].map(({nodeId, phase, flushLsn, commitLsn, feedback}) => ({
      nodeId,
      phase,
      flushLsn,
      commitLsn,
      feedback,
    }));
  }

  step(input: ProposerInput): ProposerOutput[] {
    const out: ProposerOutput[] = [];
    if (this.#phase === 'fenced') return out;
    // What a removed safekeeper's connection still brings does not matter.
    if ('peer' in input && !this.#peers.has(input.peer)) return out;
    switch (input.kind) {
      case 'wal':
        this.#wal(input.lsn, input.bytes, out);
        break;
      case 'message':
        this.#message(this.#peer(input.peer), input.message, out);
        break;
      case 'connected':
        this.#connected(this.#peer(input.peer), out);
        break;
      case 'disconnected':
        this.#disconnected(this.#peer(input.peer), out);
        break;
      case 'recovered':
        this.#recovered(this.#peer(input.peer), input.lsn, input.bytes, out);
        break;
      case 'recovery-ended': {
        // Not tried again here: the next tick or answer looks for a donor, so a failing one is not asked in a loop.
        this.#peer(input.peer).recovery = 'none';
        break;
      }
      case 'commit-due':
        for (const peer of this.#peers.values())
          if (peer.phase === 'streaming' && peer.commitSentLsn < this.#commitLsn)
            this.#sendAppend(peer, noBytes, false, out);
        break;
      case 'tick':
        this.#tick(input.nowMs, input.random, out);
        break;
    }
    this.checkInvariants();
    return out;
  }

  snapshot(): ProposerSnapshot {
    return {
      membership: this.#membership,
      phase: this.#phase,
      term: this.#term,
      highestTermSeen: this.#highestTermSeen,
      campaignAgain: this.#campaignAgain,
      campaignAtMs: this.#campaignAtMs,
      history: this.#history,
      termStartLsn: this.#termStartLsn,
      commitLsn: this.#commitLsn,
      window: this.#window.snapshot(),
      sourcePaused: this.#sourcePaused,
      progress: this.#progress,
      progressAtMs: this.#progressAtMs,
      aloneSinceMs: this.#aloneSinceMs,
      peers: Array.from(this.#peers.values(), (peer) => ({...peer})),
    };
  }

  restore(s: ProposerSnapshot): void {
    this.#membership = s.membership;
    this.#phase = s.phase;
    this.#term = s.term;
    this.#highestTermSeen = s.highestTermSeen;
    this.#campaignAgain = s.campaignAgain;
    this.#campaignAtMs = s.campaignAtMs;
    this.#history = s.history;
    this.#termStartLsn = s.termStartLsn;
    this.#commitLsn = s.commitLsn;
    this.#window = WalWindow.restore(s.window);
    this.#sourcePaused = s.sourcePaused;
    this.#progress = s.progress;
    this.#progressAtMs = s.progressAtMs;
    this.#aloneSinceMs = s.aloneSinceMs;
    this.#peers.clear();
    for (const peer of s.peers) this.#peers.set(peer.nodeId, {...peer});
  }

  checkInvariants(): void {
    if (this.#phase !== 'elected') return;
    assert(
      this.#commitLsn === invalidLsn || this.#commitLsn >= this.#termStartLsn || this.#has('commit-old-terms'),
      'commitLsn is at or after the own term start (7)',
    );
    assert(this.#commitLsn <= this.#window.endLsn, 'nothing beyond the end of WAL is committed');
  }

  #connected(peer: Peer, out: ProposerOutput[]): void {
    this.#greet(peer, out);
  }

  #greet(peer: Peer, out: ProposerOutput[]): void {
    peer.phase = 'greeting';
    const {tenantId, timelineId, pgVersion, systemId} = this.#options;
    this.#send(
      peer,
      {kind: 'greeting', tenantId, timelineId, pgVersion, systemId, generation: this.#membership.generation},
      out,
    );
  }

  #disconnected(peer: Peer, out: ProposerOutput[]): void {
    peer.phase = 'offline';
    this.#stopRecovery(peer, out);
  }

  #message(peer: Peer, message: AcceptorMessage, out: ProposerOutput[]): void {
    if (message.kind !== 'append-response' && message.term > this.#highestTermSeen)
      this.#highestTermSeen = message.term;
    if (this.#phase === 'elected' && message.term > this.#term && !this.#has('ignore-higher-term')) {
      this.#phase = 'fenced';
      out.push({kind: 'fenced', term: message.term, peer: peer.nodeId});
      return;
    }
    switch (message.kind) {
      case 'append-response':
        this.#appendResponse(peer, message, out);
        break;
      case 'greeting-response':
        this.#greetingResponse(peer, message, out);
        break;
      case 'vote-response':
        this.#voteResponse(peer, message, out);
        break;
      case 'elected-response':
        if (this.#isOfOurs(message.generation))
          this.#electedResponse(peer, message.term, message.startLsn, message.commitLsn, out);
        break;
    }
  }

  #greetingResponse(
    peer: Peer,
    message: Extract<AcceptorMessage, {kind: 'greeting-response'}>,
    out: ProposerOutput[],
  ): void {
    if (message.nodeId !== peer.nodeId) {
      out.push({
        kind: 'close',
        peer: peer.nodeId,
        reason: `safekeeper ${message.nodeId} answers at the address of safekeeper ${peer.nodeId}`,
      });
      return;
    }
    if (message.membership.generation < this.#membership.generation) {
      out.push({
        kind: 'close',
        peer: peer.nodeId,
        reason: `membership generation ${message.membership.generation} there, ${this.#membership.generation} here: it has to learn the newer one`,
      });
      return;
    }
    if (message.membership.generation > this.#membership.generation) {
      this.#stopRecovery(peer, out);
      peer.phase = 'ahead';
      peer.newer = message.membership;
      this.#followMembership(out);
      return;
    }
    if (peer.phase !== 'greeting') return;
    peer.phase = 'greeted';
    if (this.#phase === 'elected') {
      this.#sendElected(peer, out);
    } else if (this.#phase === 'voting') {
      // Its vote may have been given and lost, or given to another: only a new term can win it.
      if (message.term >= this.#term) this.#campaignAgain = true;
      else this.#send(peer, {kind: 'vote-request', generation: this.#membership.generation, term: this.#term}, out);
    } else {
      this.#campaign(out);
    }
  }

  /**
   * Those that have not left our configuration may still be a quorum of it, but do not come: they are gone for good (excluded
   * while we knew nothing), or down. After a while the newer configuration is the better hope.
   */
  #isLeftAlone(nowMs: number): boolean {
    const here = (nodeId: number): boolean => {
      const {phase} = this.#peers.get(nodeId)!;
      return phase !== 'offline' && phase !== 'ahead';
    };
    const known = [...this.#peers.values()].some((peer) => peer.newer !== undefined);
    if (!known || this.#has('never-left-alone') || isQuorum(this.#membership, here)) {
      this.#aloneSinceMs = undefined;
      return false;
    }
    this.#aloneSinceMs ??= nowMs;
    return nowMs - this.#aloneSinceMs > stuckMs;
  }

  /** Takes the newest configuration once those that have not left ours cannot be a quorum of it, or do not come. */
  #followMembership(out: ProposerOutput[], alone = false): void {
    if (!alone && isQuorum(this.#membership, (nodeId) => this.#peers.get(nodeId)!.newer === undefined)) return;
    this.#aloneSinceMs = undefined;
    let newest = this.#membership;
    for (const {newer} of this.#peers.values())
      if (newer !== undefined && newer.generation > newest.generation) newest = newer;
    this.#membership = newest;
    const members = allMembers(newest);
    for (const peer of this.#peers.values()) {
      this.#stopRecovery(peer, out);
      if (members.some((m) => m.nodeId === peer.nodeId)) continue;
      this.#peers.delete(peer.nodeId);
    }
    for (const {nodeId} of members) if (!this.#peers.has(nodeId)) this.#peers.set(nodeId, newPeer(nodeId));
    out.push({kind: 'membership', membership: newest});
    for (const peer of this.#peers.values()) {
      if (peer.newer !== undefined && peer.newer.generation <= newest.generation) peer.newer = undefined;
      if (!this.#has('keep-acks-across-generations')) {
        peer.vote = undefined;
        peer.flushLsn = invalidLsn;
        peer.syncedLsn = invalidLsn;
      }
      if (peer.phase !== 'offline') this.#greet(peer, out);
    }
    if (this.#phase === 'voting') this.#campaignAgain = true;
  }

  #campaign(out: ProposerOutput[]): void {
    const greeted = (nodeId: number): boolean => {
      const phase = this.#peers.get(nodeId)?.phase;
      return phase === 'greeted';
    };
    if (!isQuorum(this.#membership, greeted)) return;
    this.#phase = 'voting';
    this.#campaignAgain = false;
    this.#campaignAtMs = undefined;
    this.#term = this.#has('reuse-term')
      ? Math.max(1, this.#highestTermSeen)
      : Math.max(this.#highestTermSeen, this.#term) + 1;
    for (const peer of this.#peers.values()) {
      peer.vote = undefined;
      if (peer.phase === 'greeted')
        this.#send(peer, {kind: 'vote-request', generation: this.#membership.generation, term: this.#term}, out);
    }
  }

  #voteResponse(peer: Peer, message: Extract<AcceptorMessage, {kind: 'vote-response'}>, out: ProposerOutput[]): void {
    if (this.#phase !== 'voting') return;
    if (message.term > this.#term || (message.term === this.#term && !message.granted && peer.vote === undefined)) {
      this.#campaignAgain = true;
      return;
    }
    if (
      (message.term !== this.#term && !this.#has('votes-of-any-term')) ||
      !message.granted ||
      !this.#isOfOurs(message.generation)
    )
      return;
    assert(message.history.length > 0, 'a vote tells the history of its WAL');
    const {flushLsn, commitLsn, history} = message;
    peer.vote = {flushLsn, commitLsn, history};
    const voted = (nodeId: number): boolean => this.#peers.get(nodeId)!.vote !== undefined;
    if (isQuorum(this.#countedMembership, voted) || this.#has('quorum-of-one')) this.#elect(out);
  }

  #elect(out: ProposerOutput[]): void {
    let donor: Vote | undefined;
    for (const {vote} of this.#peers.values())
      if (vote !== undefined && (donor === undefined || this.#isNewer(vote, donor))) donor = vote;
    assert(donor !== undefined, 'a quorum of votes is not empty');
    this.#phase = 'elected';
    const startLsn = this.#has('start-at-donors-commit') ? donor.commitLsn : donor.flushLsn;
    this.#termStartLsn = startLsn;
    this.#history = [
      ...(this.#has('forget-donor-history') ? donor.history.slice(0, 1) : donor.history).filter(
        (e) => e.lsn <= startLsn,
      ),
      {term: this.#term, lsn: startLsn},
    ];
    this.#window = new WalWindow(startLsn);
    out.push({kind: 'elected', term: this.#term, termStartLsn: this.#termStartLsn});
    for (const peer of this.#peers.values()) if (peer.phase === 'greeted') this.#sendElected(peer, out);
  }

  #isNewer(a: Vote, b: Vote): boolean {
    const termA = a.history.at(-1)!.term;
    const termB = b.history.at(-1)!.term;
    if (this.#has('donor-by-lsn')) return a.flushLsn > b.flushLsn;
    if (this.#has('donor-by-term')) return termA > termB;
    return termA > termB || (termA === termB && a.flushLsn > b.flushLsn);
  }

  #sendElected(peer: Peer, out: ProposerOutput[]): void {
    peer.phase = 'electing';
    this.#send(
      peer,
      {kind: 'elected', generation: this.#membership.generation, term: this.#term, history: this.#history},
      out,
    );
  }

  #electedResponse(peer: Peer, term: number, startLsn: Lsn, commitLsn: Lsn, out: ProposerOutput[]): void {
    if (peer.phase !== 'electing' || term !== this.#term) return;
    if (startLsn > this.#window.endLsn || startLsn < peer.flushLsn) {
      out.push({
        kind: 'close',
        peer: peer.nodeId,
        reason: `safekeeper ${peer.nodeId} wants WAL from ${formatLsn(startLsn)}; it had acknowledged ${formatLsn(peer.flushLsn)}, and WAL ends at ${formatLsn(this.#window.endLsn)}`,
      });
      return;
    }
    peer.phase = 'streaming';
    peer.flushLsn = startLsn;
    peer.syncedLsn = startLsn;
    peer.nextLsn = startLsn;
    peer.commitLsn = commitLsn;
    peer.commitSentLsn = invalidLsn;
    this.#advanceCommit(out);
    if (peer.commitSentLsn < this.#commitLsn && peer.nextLsn >= this.#window.endLsn)
      this.#sendAppend(peer, noBytes, false, out);
    for (const p of this.#peers.values()) this.#pump(p, out);
  }

  #wal(lsn: Lsn, bytes: Buffer, out: ProposerOutput[]): void {
    assert(this.#phase === 'elected', 'the compute streams after the election');
    this.#window.push(lsn, bytes);
    for (const peer of this.#peers.values()) {
      if (
        peer.phase === 'streaming' &&
        peer.nextLsn === lsn &&
        peer.recovery === 'none' &&
        lsn - peer.syncedLsn < inFlightBytesMax
      )
        this.#sendAppend(peer, bytes, false, out);
    }
    if (!this.#sourcePaused && this.#window.length > undurableBytesMax && this.#undurable() > undurableBytesMax) {
      this.#sourcePaused = true;
      out.push({kind: 'pause-source'});
    }
  }

  #appendResponse(
    peer: Peer,
    message: Extract<AcceptorMessage, {kind: 'append-response'}>,
    out: ProposerOutput[],
  ): void {
    if (this.#phase !== 'elected' || peer.phase !== 'streaming' || message.term !== this.#term) return;
    if (!this.#isOfOurs(message.generation)) return;
    peer.commitLsn = message.commitLsn;
    peer.feedback = message.feedback;
    if (message.syncedLsn > peer.syncedLsn) peer.syncedLsn = message.syncedLsn;
    const flushLsn = this.#has('commit-partial-record') ? message.syncedLsn : message.flushLsn;
    if (flushLsn > peer.flushLsn) {
      assert(flushLsn <= peer.nextLsn, 'nothing is acknowledged that was not sent');
      peer.flushLsn = flushLsn;
      this.#advanceCommit(out);
    }
    this.#pump(peer, out);
    if (this.#sourcePaused && this.#undurable() < undurableBytesMax / 2) {
      this.#sourcePaused = false;
      out.push({kind: 'resume-source'});
    }
    if (this.#window.length > windowBytesMin) this.#trim();
  }

  #advanceCommit(out: ProposerOutput[]): void {
    const reached = (nodeId: number): Lsn => {
      const flushLsn = this.#peers.get(nodeId)!.flushLsn;
      return flushLsn >= this.#termStartLsn || this.#has('commit-old-terms') ? flushLsn : invalidLsn;
    };
    const lsn = this.#has('quorum-of-one')
      ? (Math.max(...[...this.#peers.keys()].map(reached)) as Lsn)
      : quorumLsn(this.#countedMembership, reached);
    if (lsn <= this.#commitLsn) return;
    const first = this.#commitLsn < this.#termStartLsn && lsn >= this.#termStartLsn;
    this.#commitLsn = lsn;
    out.push({kind: 'committed', lsn});
    if (!first) return;
    // The basebackup waits for WAL up to here: safekeepers must learn at once that it is committed.
    for (const peer of this.#peers.values())
      if (peer.phase === 'streaming') this.#sendAppend(peer, noBytes, false, out);
    out.push({kind: 'synced', lsn: this.#termStartLsn});
  }

  /** Sends a streaming safekeeper what it lacks, as far as flow control allows. */
  #pump(peer: Peer, out: ProposerOutput[]): void {
    if (peer.phase !== 'streaming') return;
    if (peer.recovery !== 'none') {
      if (peer.recovery === 'paused' && peer.nextLsn - peer.syncedLsn < inFlightBytesMax / 2) {
        peer.recovery = 'running';
        out.push({kind: 'resume-recovery', peer: peer.nodeId});
      }
      return;
    }
    while (peer.nextLsn < this.#window.endLsn || peer.nextLsn < this.#window.startLsn) {
      if (peer.nextLsn - peer.syncedLsn >= inFlightBytesMax) return;
      if (peer.nextLsn < this.#window.startLsn) {
        this.#startRecovery(peer, out);
        return;
      }
      this.#sendAppend(peer, this.#window.at(peer.nextLsn)!, false, out);
    }
  }

  /**
   * The one that has most is asked first. A recovery is only begun again when the one before it did not do, so the next asks
   * another: one that cannot serve, or whose disk is damaged there, must not keep a safekeeper back while others are whole.
   */
  #startRecovery(peer: Peer, out: ProposerOutput[]): void {
    const have = (lsn: number): Peer[] =>
      [...this.#peers.values()].filter((one) => one !== peer && one.phase === 'streaming' && one.flushLsn >= lsn);
    // One that lags itself may stop half way.
    let donors = have(this.#window.startLsn);
    if (donors.length === 0) donors = have(peer.nextLsn + 1);
    if (donors.length === 0) return; // until one connects
    let fresh = donors.filter((one) => !peer.askedDonors.includes(one.nodeId));
    if (fresh.length === 0 || this.#has('always-best-donor')) {
      fresh = donors;
      peer.askedDonors = [];
    }
    const donor = fresh.reduce((best, one) => (one.flushLsn > best.flushLsn ? one : best));
    peer.askedDonors = [...peer.askedDonors, donor.nodeId];
    peer.recovery = 'running';
    out.push({kind: 'recover', peer: peer.nodeId, donor: donor.nodeId, startLsn: peer.nextLsn, term: this.#term});
  }

  #recovered(peer: Peer, lsn: Lsn, bytes: Buffer, out: ProposerOutput[]): void {
    if (peer.recovery === 'none' || peer.phase !== 'streaming') return;
    assert(lsn === peer.nextLsn, 'a donor sends WAL without gaps');
    this.#sendAppend(peer, bytes, false, out);
    if (peer.nextLsn >= this.#window.startLsn) {
      this.#stopRecovery(peer, out);
      this.#pump(peer, out);
    } else if (peer.recovery === 'running' && peer.nextLsn - peer.syncedLsn >= inFlightBytesMax) {
      peer.recovery = 'paused';
      out.push({kind: 'pause-recovery', peer: peer.nodeId});
    }
  }

  #stopRecovery(peer: Peer, out: ProposerOutput[]): void {
    if (peer.recovery === 'none') return;
    peer.recovery = 'none';
    out.push({kind: 'stop-recovery', peer: peer.nodeId});
  }

  #tick(nowMs: number, random: number, out: ProposerOutput[]): void {
    if (this.#isLeftAlone(nowMs)) this.#followMembership(out, true);
    if (this.#phase === 'greeting') {
      this.#campaign(out);
    } else if (this.#phase === 'voting' && this.#campaignAgain) {
      if (this.#campaignAtMs === undefined) this.#campaignAtMs = nowMs + random * 300;
      else if (nowMs >= this.#campaignAtMs) this.#campaign(out);
    } else if (this.#phase === 'elected') {
      if (this.#isStuck(nowMs)) {
        this.#startOver(out);
        return;
      }
      for (const peer of this.#peers.values()) {
        if (peer.phase !== 'streaming') continue;
        this.#sendAppend(peer, noBytes, true, out);
        this.#pump(peer, out);
      }
    }
  }

  /** Not synced, and nobody has got further for a while: the only one that had our log's end is gone. */
  #isStuck(nowMs: number): boolean {
    if (this.#commitLsn >= this.#termStartLsn || this.#has('never-starts-over')) return false;
    let progress = 0;
    for (const peer of this.#peers.values()) progress += peer.syncedLsn;
    if (progress !== this.#progress || this.#progressAtMs === undefined) {
      this.#progress = progress;
      this.#progressAtMs = nowMs;
    }
    return nowMs - this.#progressAtMs > stuckMs;
  }

  /** Nothing of this term was committed, so its log may be forgotten: the others elect a new one among themselves. */
  #startOver(out: ProposerOutput[]): void {
    this.#phase = 'greeting';
    this.#progressAtMs = undefined;
    for (const peer of this.#peers.values()) {
      this.#stopRecovery(peer, out);
      if (peer.phase === 'electing' || peer.phase === 'streaming') peer.phase = 'greeted';
      peer.flushLsn = invalidLsn;
      peer.syncedLsn = invalidLsn;
    }
    this.#campaign(out);
  }

  #sendAppend(peer: Peer, bytes: Buffer, wantsReply: boolean, out: ProposerOutput[]): void {
    const beginLsn = peer.nextLsn;
    peer.nextLsn = (beginLsn + bytes.length) as Lsn;
    peer.commitSentLsn = this.#commitLsn;
    this.#send(
      peer,
      {
        kind: 'append',
        generation: this.#membership.generation,
        term: this.#term,
        beginLsn,
        commitLsn: this.#commitLsn,
        wantsReply,
        bytes,
      },
      out,
    );
  }

  /** WAL that no quorum has durably: it lives only in our memory and in the compute. */
  #undurable(): number {
    return this.#window.endLsn - this.durableLsn;
  }

  /** Votes and acknowledgements of another generation's quorum do not count in ours. */
  #isOfOurs(generation: number): boolean {
    return generation === this.#membership.generation || this.#has('count-any-generation');
  }

  get #countedMembership(): Membership {
    const {generation, members, newMembers} = this.#membership;
    if (this.#mutations !== undefined && newMembers.length > 0) {
      if (this.#has('joint-old-only')) return {generation, members, newMembers: []};
      if (this.#has('joint-new-only')) return {generation, members: newMembers, newMembers: []};
    }
    return this.#membership;
  }

  #trim(): void {
    let needed: number = this.#commitLsn;
    for (const peer of this.#peers.values())
      if (peer.phase === 'streaming' && peer.recovery === 'none') needed = Math.min(needed, peer.syncedLsn);
    this.#window.trim(needed as Lsn, windowBytesMin);
    if (this.#window.length > windowBytesMax) this.#window.trim(this.#commitLsn, windowBytesMax);
  }

  #send(peer: Peer, message: ProposerMessage, out: ProposerOutput[]): void {
    out.push({kind: 'send', peer: peer.nodeId, message});
  }

  #peer(nodeId: number): Peer {
    const peer = this.#peers.get(nodeId);
    assert(peer !== undefined, `safekeeper ${nodeId} is a member`);
    return peer;
  }

  #has(mutation: ProposerMutation): boolean {
    return this.#mutations !== undefined && this.#mutations.has(mutation);
  }
}
