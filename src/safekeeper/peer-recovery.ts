/**
 * A safekeeper that lags gets committed WAL from a peer while no proposer brings it: at load, when a peer is heard to have
 * committed more, and now and then while it is not at rest. The acceptor decides what is taken (input peer-begin); where the
 * peer has no local WAL any more, it serves its archive.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Acceptor, AcceptorInput} from '#safekeeper/acceptor.ts';
import {type PeerState, askPeerState} from '#safekeeper/peer-state.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';

/** After load, and after a peer was heard to be ahead: a proposer has so long to bring it. */
const graceMs = 2000;
const againMs = 60_000;
/** A peer that sends nothing for so long is given up. */
const silenceMs = 10_000;
/** WAL received and not yet durable, at most: then the peer waits. */
const unflushedBytesMax = 8 * 1024 * 1024;

export interface PeerRecoveryOptions {
  readonly acceptor: Acceptor;
  readonly token: () => Promise<string>;
  readonly clock: Clock;
  readonly log: Log;
  /** An id that no proposer's connection has. */
  readonly newConnection: () => number;
  readonly step: (input: AcceptorInput) => void;
}

export class PeerRecovery {
  readonly #options: PeerRecoveryOptions;
  #nextMs: number;
  #behindSinceMs: number | undefined;
  #running = false;
  #looked = false;
  #closed = false;

  constructor(options: PeerRecoveryOptions) {
    this.#options = options;
    this.#nextMs = options.clock.monotonicMs() + graceMs;
  }

  get isRunning(): boolean {
    return this.#running;
  }
  /** The look after load has not been yet. */
  get isDue(): boolean {
    return !this.#looked;
  }

  /** `peerCommitLsn`: the highest heard of. `atRest`: nothing is expected to change by itself. */
  tick(peerCommitLsn: Lsn, atRest: boolean): void {
    const {acceptor, clock, log} = this.#options;
    if (this.#running || this.#closed) return;
    const nowMs = clock.monotonicMs();
    if (acceptor.hasProposer) {
      this.#nextMs = nowMs + graceMs;
      this.#behindSinceMs = undefined;
      return;
    }
    if (peerCommitLsn <= acceptor.commitLsn) this.#behindSinceMs = undefined;
    else this.#behindSinceMs ??= nowMs;
    const behind = this.#behindSinceMs !== undefined && nowMs - this.#behindSinceMs >= graceMs;
    if (!behind && nowMs < this.#nextMs) return;
    this.#running = true;
    this.#behindSinceMs = undefined;
    this.#recover()
      .catch((error: unknown) => log.warn('WAL could not be had from a peer', {error: String(error)}))
      .finally(() => {
        this.#running = false;
        this.#looked = true;
        this.#nextMs = atRest ? Infinity : clock.monotonicMs() + againMs;
      });
  }

  close(): void {
    this.#closed = true;
  }

  async #recover(): Promise<void> {
    const {acceptor, token, log, newConnection, step} = this.#options;
    const best = await this.#bestPeer();
    if (best === undefined || this.#closed || best.state.commitLsn <= acceptor.commitLsn) return;
    const {commitLsn, history} = best.state;
    const connection = newConnection();
    step({kind: 'peer-begin', connection, history, commitLsn});
    if (!acceptor.takesFrom(connection)) return;
    const fromLsn = acceptor.writeLsn;
    try {
      await this.#stream(best, connection, await token());
    } finally {
      step({kind: 'disconnected', connection});
    }
    step({kind: 'save'});
    log.info('got committed WAL from a peer', {
      peer: best.nodeId,
      from: formatLsn(fromLsn),
      to: formatLsn(acceptor.flushLsn),
    });
  }

  async #stream(peer: PeerState, connection: number, token: string): Promise<void> {
    const {acceptor, clock, step} = this.#options;
    const {commitLsn, tenantId, timelineId} = peer.state;
    let ended: Error | undefined;
    let heardMs = clock.monotonicMs();
    const stream = await WalStreamClient.connect({
      address: peer.address,
      token,
      tenantId,
      timelineId,
      startLsn: acceptor.writeLsn,
      onWal: (startLsn, bytes) => {
        heardMs = clock.monotonicMs();
        const wanted = bytes.subarray(0, Math.max(0, commitLsn - startLsn));
        if (wanted.length === 0 || this.#closed) return;
        step({kind: 'peer-wal', connection, beginLsn: startLsn, bytes: wanted});
        step({kind: 'batch-end'});
        if (acceptor.writeLsn - acceptor.syncedLsn > unflushedBytesMax) stream.pause();
      },
      onKeepalive: () => {
        heardMs = clock.monotonicMs();
      },
      onClose: (reason) => {
        ended = reason ?? new Error('closed');
      },
    });
    try {
      while (!this.#closed && acceptor.takesFrom(connection) && acceptor.commitLsn < commitLsn) {
        if (ended !== undefined) throw ended;
        if (clock.monotonicMs() - heardMs > silenceMs) throw new Error(`safekeeper ${peer.nodeId} is silent`);
        if (acceptor.writeLsn - acceptor.syncedLsn <= unflushedBytesMax) stream.resume();
        await clock.sleep(10);
      }
    } finally {
      stream.close();
    }
  }

  async #bestPeer(): Promise<PeerState | undefined> {
    const {acceptor, token, clock} = this.#options;
    const {tenantId, timelineId, membership} = acceptor.state;
    const others = new Map(
      [...membership.members, ...membership.newMembers]
        .filter((member) => member.nodeId !== acceptor.nodeId)
        .map((member) => [member.nodeId, member]),
    );
    const ownToken = await token();
    const answers = await Promise.allSettled(
      [...others.values()].map(
        async (address) => await askPeerState({address, token: ownToken, tenantId, timelineId, clock}),
      ),
    );
    let best: PeerState | undefined;
    let newest = membership;
    for (const answer of answers) {
      if (answer.status !== 'fulfilled') continue;
      const {state} = answer.value;
      if (best === undefined || state.commitLsn > best.state.commitLsn) best = answer.value;
      if (state.membership.generation > newest.generation) newest = state.membership;
    }
    // We were away when the control plane told it: proposers would be refused here for ever.
    if (newest !== membership && !this.#closed)
      this.#options.step({kind: 'membership', membership: newest, minTerm: 0});
    return best;
  }
}
