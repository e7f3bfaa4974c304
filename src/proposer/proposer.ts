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
 * can have no quorum, or until those that are left do not come for a while; then we take the newest we heard of and greet
 * everybody anew, in whatever phase we are. An elected proposer stays elected: only acknowledgements are collected again, since
 * they count in one generation only.
 *
 * Invariants (reliability.md 1 A): 7 commitLsn is what a quorum has durable, and at least termStartLsn: WAL of older terms
 * is never committed by counting (Raft, figure 8). 8 commitLsn never goes back. 12 after `fenced` nothing is ever said.
 */
import {type Lsn, formatLsn, invalidLsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';
import {type Peer, type PeerStatus, type Vote, newPeer} from '#proposer/peer.ts';
import type {
  ProposerInput,
  ProposerMutation,
  ProposerOptions,
  ProposerOutput,
  ProposerSnapshot,
} from '#proposer/proposer-io.ts';
import {isQuorum, quorumLsn} from '#proposer/quorum.ts';
import {WalStreams} from '#proposer/wal-streams.ts';
import {allMembers} from '#wire/membership.ts';
import type {AcceptorMessage, Membership, ProposerMessage, TermHistory} from '#wire/safekeeper.ts';

/** An elected proposer whose donor is gone waits so long for it. */
const stuckMs = 2000;
const noBytes = Buffer.alloc(0);

export class Proposer {
  readonly #options: ProposerOptions;
  readonly #mutations: ReadonlySet<ProposerMutation> | undefined;
  readonly #peers = new Map<number, Peer>();
  readonly #streams: WalStreams;
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
    this.#streams = new WalStreams(this, this.#peers, options.mutations);
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
    return this.#streams.endLsn;
  }
  /** WAL before it is not sent to anybody (any more). */
  get windowStartLsn(): Lsn {
    return this.#streams.windowStartLsn;
  }
  /** WAL below it is on a quorum's disks; it may end inside a record, which commitLsn does not. */
  get durableLsn(): Lsn {
    return this.#streams.durableLsn;
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
        assert(this.#phase === 'elected', 'the compute streams after the election');
        this.#streams.push(input.lsn, input.bytes, out);
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
        this.#streams.recovered(this.#peer(input.peer), input.lsn, input.bytes, out);
        break;
      case 'recovery-ended': {
        // Not tried again here: the next tick or answer looks for a donor, so a failing one is not asked in a loop.
        this.#peer(input.peer).recovery = 'none';
        break;
      }
      case 'commit-due':
        for (const peer of this.#peers.values())
          if (peer.phase === 'streaming' && peer.commitSentLsn < this.#commitLsn)
            this.#streams.append(peer, noBytes, false, out);
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
      ...this.#streams.snapshot(),
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
    this.#streams.restore(s);
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
    assert(this.#commitLsn <= this.#streams.endLsn, 'nothing beyond the end of WAL is committed');
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
    this.#streams.stopRecovery(peer, out);
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
      this.#streams.stopRecovery(peer, out);
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
      this.#streams.stopRecovery(peer, out);
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
    this.#streams.begin(startLsn);
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
    if (startLsn > this.#streams.endLsn || startLsn < peer.flushLsn) {
      out.push({
        kind: 'close',
        peer: peer.nodeId,
        reason: `safekeeper ${peer.nodeId} wants WAL from ${formatLsn(startLsn)}; it had acknowledged ${formatLsn(peer.flushLsn)}, and WAL ends at ${formatLsn(this.#streams.endLsn)}`,
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
    if (peer.commitSentLsn < this.#commitLsn && peer.nextLsn >= this.#streams.endLsn)
      this.#streams.append(peer, noBytes, false, out);
    for (const p of this.#peers.values()) this.#streams.pump(p, out);
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
    this.#streams.acknowledged(peer, out);
  }

  #advanceCommit(out: ProposerOutput[]): void {
    const reached = (nodeId: number): Lsn => {
      const peer = this.#peers.get(nodeId)!;
      if (peer.phase === 'offline' && this.#has('offline-counts')) return this.#streams.endLsn;
      const {flushLsn} = peer;
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
      if (peer.phase === 'streaming') this.#streams.append(peer, noBytes, false, out);
    out.push({kind: 'synced', lsn: this.#termStartLsn});
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
        this.#streams.append(peer, noBytes, true, out);
        this.#streams.pump(peer, out);
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
      this.#streams.stopRecovery(peer, out);
      if (peer.phase === 'electing' || peer.phase === 'streaming') peer.phase = 'greeted';
      peer.flushLsn = invalidLsn;
      peer.syncedLsn = invalidLsn;
    }
    this.#campaign(out);
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
