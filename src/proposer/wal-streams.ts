/**
 * The streams of WAL from an elected proposer to its safekeepers: what each gets next, from the window of newest WAL or, when it
 * lacks more, from another safekeeper; how much may be under way; and when the compute has to wait.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';
import type {Peer} from '#proposer/peer.ts';
import type {ProposerMutation, ProposerOutput} from '#proposer/proposer-io.ts';
import {quorumLsn} from '#proposer/quorum.ts';
import {WalWindow, type WalWindowSnapshot} from '#proposer/wal-window.ts';
import type {Membership} from '#wire/safekeeper.ts';

/** Sent to one safekeeper and not yet durable there. */
const inFlightBytesMax = 8 * 1024 * 1024;
/** Not yet durable at a quorum: beyond, the compute's stream is paused; it goes on at half of it. */
const undurableBytesMax = 16 * 1024 * 1024;
/** WAL kept for a safekeeper that was away for a moment; and at most for one that is slow. */
const windowBytesMin = 1024 * 1024;
const windowBytesMax = 16 * 1024 * 1024;

/** The proposer, as its streams see it. */
export interface StreamingProposer {
  readonly membership: Membership;
  readonly term: number;
  readonly termStartLsn: Lsn;
  readonly commitLsn: Lsn;
}

export interface WalStreamsSnapshot {
  readonly window: WalWindowSnapshot;
  readonly sourcePaused: boolean;
}

export class WalStreams {
  readonly #proposer: StreamingProposer;
  readonly #peers: ReadonlyMap<number, Peer>;
  readonly #mutations: ReadonlySet<ProposerMutation> | undefined;
  #window = new WalWindow(0 as Lsn);
  #sourcePaused = false;

  /** `peers` is the proposer's own map: it changes. */
  constructor(
    proposer: StreamingProposer,
    peers: ReadonlyMap<number, Peer>,
    mutations: ReadonlySet<ProposerMutation> | undefined,
  ) {
    this.#proposer = proposer;
    this.#peers = peers;
    this.#mutations = mutations;
  }

  /** End of all WAL. */
  get endLsn(): Lsn {
    return this.#window.endLsn;
  }

  /** Of what is kept to be sent. */
  get windowStartLsn(): Lsn {
    return this.#window.startLsn;
  }

  /** WAL below it is on a quorum's disks, maybe up to the inside of a record. */
  get durableLsn(): Lsn {
    const {membership, commitLsn, termStartLsn} = this.#proposer;
    return quorumLsn(
      membership,
      (nodeId) => Math.max(this.#peers.get(nodeId)!.syncedLsn, commitLsn, termStartLsn) as Lsn,
    );
  }

  /** A term is won: its WAL begins here. */
  begin(startLsn: Lsn): void {
    this.#window = new WalWindow(startLsn);
  }

  /** The compute's WAL: to those that have all before it at once, to the others when they come to it. */
  push(lsn: Lsn, bytes: Buffer, out: ProposerOutput[]): void {
    this.#window.push(lsn, bytes);
    for (const peer of this.#peers.values()) {
      if (
        peer.phase === 'streaming' &&
        peer.nextLsn === lsn &&
        peer.recovery === 'none' &&
        lsn - peer.syncedLsn < inFlightBytesMax
      )
        this.append(peer, bytes, false, out);
    }
    if (!this.#sourcePaused && this.#window.length > undurableBytesMax && this.#undurable() > undurableBytesMax) {
      this.#sourcePaused = true;
      out.push({kind: 'pause-source'});
    }
  }

  /** Sends a streaming safekeeper what it lacks, as far as flow control allows. */
  pump(peer: Peer, out: ProposerOutput[]): void {
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
      this.append(peer, this.#window.at(peer.nextLsn)!, false, out);
    }
  }

  /** The next bytes of another safekeeper, asked for with `recover`. */
  recovered(peer: Peer, lsn: Lsn, bytes: Buffer, out: ProposerOutput[]): void {
    if (peer.recovery === 'none' || peer.phase !== 'streaming') return;
    assert(lsn === peer.nextLsn, 'a donor sends WAL without gaps');
    this.append(peer, bytes, false, out);
    if (peer.nextLsn >= this.#window.startLsn) {
      this.stopRecovery(peer, out);
      this.pump(peer, out);
    } else if (peer.recovery === 'running' && peer.nextLsn - peer.syncedLsn >= inFlightBytesMax) {
      peer.recovery = 'paused';
      out.push({kind: 'pause-recovery', peer: peer.nodeId});
    }
  }

  stopRecovery(peer: Peer, out: ProposerOutput[]): void {
    if (peer.recovery === 'none') return;
    peer.recovery = 'none';
    out.push({kind: 'stop-recovery', peer: peer.nodeId});
  }

  /** A safekeeper has more durably: it gets more, the compute may go on, and what nobody needs is forgotten. */
  acknowledged(peer: Peer, out: ProposerOutput[]): void {
    this.pump(peer, out);
    if (this.#sourcePaused && this.#undurable() < undurableBytesMax / 2) {
      this.#sourcePaused = false;
      out.push({kind: 'resume-source'});
    }
    if (this.#window.length > windowBytesMin) this.#trim();
  }

  /** Sends `bytes` as the next ones; none: what is committed, and with `wantsReply` a question for a sign of life. */
  append(peer: Peer, bytes: Buffer, wantsReply: boolean, out: ProposerOutput[]): void {
    const {membership, term, commitLsn} = this.#proposer;
    const beginLsn = peer.nextLsn;
    peer.nextLsn = (beginLsn + bytes.length) as Lsn;
    peer.commitSentLsn = commitLsn;
    out.push({
      kind: 'send',
      peer: peer.nodeId,
      message: {
        kind: 'append',
        generation: membership.generation,
        term,
        beginLsn,
        commitLsn,
        wantsReply,
        bytes,
      },
    });
  }

  snapshot(): WalStreamsSnapshot {
    return {window: this.#window.snapshot(), sourcePaused: this.#sourcePaused};
  }

  restore(s: WalStreamsSnapshot): void {
    this.#window = WalWindow.restore(s.window);
    this.#sourcePaused = s.sourcePaused;
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
    if (fresh.length === 0 || this.#mutations?.has('always-best-donor') === true) {
      fresh = donors;
      peer.askedDonors = [];
    }
    const donor = fresh.reduce((best, one) => (one.flushLsn > best.flushLsn ? one : best));
    peer.askedDonors = [...peer.askedDonors, donor.nodeId];
    peer.recovery = 'running';
    out.push({
      kind: 'recover',
      peer: peer.nodeId,
      donor: donor.nodeId,
      startLsn: peer.nextLsn,
      term: this.#proposer.term,
    });
  }

  /** WAL that no quorum has durably: it lives only in our memory and in the compute. */
  #undurable(): number {
    return this.#window.endLsn - this.durableLsn;
  }

  #trim(): void {
    let needed: number = this.#proposer.commitLsn;
    for (const peer of this.#peers.values())
      if (peer.phase === 'streaming' && peer.recovery === 'none') needed = Math.min(needed, peer.syncedLsn);
    this.#window.trim(needed as Lsn, windowBytesMin);
    if (this.#window.length > windowBytesMax) this.#window.trim(this.#proposer.commitLsn, windowBytesMax);
  }
}
