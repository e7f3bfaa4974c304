/**
 * A simulated safekeeper: the production Acceptor, TimelineStorage, TimelineCopy and Archiver on a simulated disk. It carries
 * out their outputs as timeline.ts does, and dies between any two of them.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {segmentFileName} from '#postgres/wal/segment.ts';
import {Acceptor, type AcceptorInput, type AcceptorOutput} from '#safekeeper/acceptor.ts';
import {ControlFileError} from '#safekeeper/control-file.ts';
import {readFlushMark} from '#safekeeper/flush-mark.ts';
import {type PeerSnapshot, pulledState} from '#safekeeper/pulled-state.ts';
import {TimelineCopy, TimelineCopyError} from '#safekeeper/timeline-copy.ts';
import {type NewTimeline, TimelineStorage, initialState} from '#safekeeper/timeline-storage.ts';
import {WalLostError} from '#safekeeper/wal-store.ts';
import {Violation} from '#sim/checker.ts';
import type {StorageMutation} from '#sim/mutations.ts';
import type {Network, NodeEnd} from '#sim/network.ts';
import {NodeArchive} from '#sim/node-archive.ts';
import {SimDisk, type SimFile} from '#sim/sim-disk.ts';
import type {SimStore} from '#sim/sim-store.ts';
import {SimRecordBoundary} from '#sim/sim-wal.ts';
import {type Stage, marks, segmentSize, tenantId, timelineId} from '#sim/stage.ts';
import {type SafekeeperPosition, compareMembership, isMember, mayPull} from '#wire/membership.ts';
import type {AcceptorMessage, Membership, ProposerMessage} from '#wire/safekeeper.ts';

const directory = `/${tenantId}/${timelineId}`;
const copyChunkBytes = 1500;

/**
 * absent: has no timeline (a spare) · running · down: its process is dead, its disk is there · lost: its disk is gone, and it
 * comes back only after it has left the membership.
 */
export type NodeStatus = 'absent' | 'running' | 'down' | 'lost';

export interface NodeWorld {
  readonly stage: Stage;
  readonly network: Network;
  readonly store: SimStore;
  /** What pageservers have for good. */
  readonly pageserver: {readonly consistentLsn: Lsn};
  node(id: number): SimNode;
  /** An election while the node is away. */
  onAimedCrash(): void;
}

export class SimNode implements NodeEnd {
  readonly id: number;
  readonly disk: SimDisk;
  readonly #world: NodeWorld;
  readonly #stage: Stage;
  readonly #bugs: ReadonlySet<StorageMutation>;
  status: NodeStatus = 'absent';
  storage: TimelineStorage | undefined;
  acceptor: Acceptor | undefined;
  archive: NodeArchive | undefined;
  incarnation = 0;
  #batchScheduled = false;
  #copying = false;
  #copies = 0;
  /** The newest generation that it was a member of, by what is or was on its disk: it may have voted. 0: none. */
  #memberGeneration = 0;
  /** Bits of its WAL are flipped below here. */
  rottenLsn = 0 as Lsn;
  /** They were, once: what it sent then may still be on its way when its disk is replaced. */
  wasRotten = false;
  /** … above what its control file knows to be committed. */
  #tailIsRotten = false;
  #peerConnections = 0;

  constructor(id: number, world: NodeWorld) {
    this.id = id;
    this.#world = world;
    this.#stage = world.stage;
    this.#bugs = world.stage.mutations.storage ?? new Set();
    this.disk = new SimDisk(world.stage.random, this.#bugs);
  }

  get serves(): boolean {
    return this.acceptor !== undefined;
  }

  // ---- life

  create(timeline: NewTimeline): void {
    this.disk.makeDirectory(directory);
    TimelineStorage.create({disk: this.disk, directory}, initialState(timeline));
    this.status = 'down';
    this.start();
  }

  start(): void {
    if (this.status !== 'down') return;
    const stage = this.#stage;
    const torn = this.#bugs.has('torn-tail-accepted');
    const boundary = new SimRecordBoundary();
    let storage: TimelineStorage;
    this.disk.opening = true;
    try {
      storage = TimelineStorage.open(
        {disk: this.disk, directory, tenantId, timelineId, segmentSize},
        torn ? new SimRecordBoundary(false) : boundary,
      );
    } catch (error) {
      // Both say: replace this node. Nothing but rot leads here.
      if ((error instanceof ControlFileError || error instanceof WalLostError) && this.rottenLsn > 0) {
        stage.note(() => `n${this.id} cannot start: ${(error as Error).message}`);
        this.loseDisk();
        return;
      }
      throw error;
    } finally {
      this.disk.opening = false;
    }
    this.status = 'running';
    this.storage = storage;
    const acceptor = new Acceptor({
      nodeId: this.id,
      state: storage.state,
      flushLsn: storage.flushLsn,
      boundary,
      ...(stage.mutations.acceptor ? {mutations: stage.mutations.acceptor} : {}),
    });
    this.acceptor = acceptor;
    this.#noteMembership(acceptor.state.membership);
    this.#batchScheduled = false;
    this.archive = new NodeArchive(this, this.#stage, this.#world.store, this.#world.pageserver);
    stage.mark(marks.restart, this.id, storage.flushLsn);
    stage.note(() => `n${this.id} starts in term ${acceptor.term} with WAL up to ${formatLsn(storage.flushLsn)}`);
    stage.checker.restarted(this.id, acceptor.term, storage.flushLsn);
    this.checkLog();
  }

  /** All bytes on its disk are what its history says. */
  checkLog(): void {
    const {acceptor} = this;
    if (acceptor === undefined || this.rottenLsn > 0) return;
    const {localStartLsn, history} = acceptor.state;
    const {flushLsn} = acceptor;
    if (localStartLsn > flushLsn) return;
    this.#stage.checker.log(this.id, history, localStartLsn, flushLsn, this.localWal(localStartLsn, flushLsn));
  }

  crash(why: string): void {
    if (this.acceptor === undefined) return;
    const stage = this.#stage;
    stage.mark(marks.crash, this.id);
    stage.note(() => `n${this.id} crashes (${why})`);
    stage.crashes++;
    this.#stop();
    this.status = 'down';
    // A killed process leaves the page cache behind; a later power cut may still take it.
    // It may take the mark, without which rot of the tail is not found.
    if (stage.random.float() < stage.faults.powerCut && !this.#tailIsRotten) this.disk.crash();
    const aimed = why !== 'random';
    stage.after(aimed ? 1 + stage.random.float() * 50 : 10 + stage.random.float() * 1500, () => this.start());
    if (aimed && !stage.healed && stage.random.float() < 0.5)
      stage.after(stage.random.float() * 60, () => this.#world.onAimedCrash());
  }

  /** The node is gone with all it promised. */
  loseDisk(): void {
    const stage = this.#stage;
    if (this.status === 'absent') return;
    stage.note(() => `n${this.id} loses its disk`);
    stage.mark(marks.fault, this.id, 1);
    this.#stop();
    this.disk.wipe();
    this.rottenLsn = 0 as Lsn;
    this.#tailIsRotten = false;
    // Who has never been a member has promised nothing, and may copy again.
    this.status = this.#memberGeneration > 0 ? 'lost' : 'absent';
    stage.checker.forgotten(this.id, this.#memberGeneration);
  }

  #stop(): void {
    this.acceptor = undefined;
    this.storage = undefined;
    this.archive = undefined;
    this.#copying = false;
    this.incarnation++;
    this.#world.network.nodeDied(this);
  }

  #noteMembership(membership: Membership): void {
    if (isMember(membership, this.id)) this.#memberGeneration = membership.generation;
  }

  // ---- acceptor

  receive(connection: number, message: ProposerMessage): void {
    this.step({kind: 'message', connection, message});
    if (message.kind === 'append') this.#batchEndLater();
  }

  closed(connection: number): void {
    this.step({kind: 'disconnected', connection});
  }

  /** False: the node did not live to carry out all of it. */
  step(input: AcceptorInput): boolean {
    const {acceptor} = this;
    if (acceptor === undefined) return false;
    const stage = this.#stage;
    const {commitLsn, flushLsn, state} = acceptor;
    const outputs = acceptor.step(input);
    if (outputs.length === 0) return true;
    acceptor.checkInvariants();
    if (this.#bugs.has('send-before-save'))
      outputs.sort((a, b) => (a.kind === 'send' ? 0 : 1) - (b.kind === 'send' ? 0 : 1));
    for (const output of outputs) {
      if (stage.happens(stage.faults.aimedCrash[output.kind])) {
        if (output.kind === 'save' && stage.random.float() < 0.3) {
          this.disk.cutNextReplacement = true;
          this.storage!.apply(output);
        }
        this.crash(`before ${output.kind}`);
        return false;
      }
      if (!this.#carryOut(acceptor, output, {commitLsn, flushLsn, history: state.history})) return false;
    }
    return true;
  }

  #carryOut(
    acceptor: Acceptor,
    output: AcceptorOutput,
    before: {readonly commitLsn: Lsn; readonly flushLsn: Lsn; readonly history: Acceptor['state']['history']},
  ): boolean {
    const stage = this.#stage;
    const storage = this.storage!;
    switch (output.kind) {
      case 'send':
        this.#send(output.connection, output.message);
        return true;
      case 'write':
        this.#mayFail();
        try {
          storage.apply(output);
          return true;
        } catch (error) {
          if ((error as {code?: string}).code !== 'ENOSPC') return this.#ioFailed(error);
          if (this.#bugs.has('disk-full-ignored')) return true;
          stage.note(() => `n${this.id} disk full at ${formatLsn(output.lsn)}`);
          this.step({kind: 'write-failed', message: 'disk full'});
          return false;
        }
      case 'mark':
        this.#mayFail();
        try {
          storage.apply(output);
          return true;
        } catch (error) {
          return this.#ioFailed(error);
        }
      case 'truncate':
        stage.mark(marks.truncate, this.id, output.lsn);
        stage.note(() => `n${this.id} truncates at ${formatLsn(output.lsn)}`);
        stage.checker.truncates(this.id, output.lsn, acceptor.term, before.history, before.flushLsn);
        if (this.#bugs.has('truncate-forgotten')) return true;
        try {
          if (this.#bugs.has('flush-mark-not-lowered')) storage.wal.truncate(output.lsn);
          else storage.apply(output);
          return true;
        } catch (error) {
          return this.#ioFailed(error);
        }
      case 'save':
        this.#noteMembership(output.state.membership);
        this.#mayFail();
        try {
          storage.apply(output);
          return true;
        } catch (error) {
          return this.#ioFailed(error);
        }
      case 'flush':
        this.#flush(storage, output.epoch);
        return true;
      case 'commit':
        if (this.rottenLsn === 0)
          stage.checker.published(this.id, before.commitLsn, output.lsn, (startLsn, endLsn) =>
            this.localWal(startLsn, endLsn),
          );
        if (output.lsn > acceptor.flushLsn) throw new Violation(`safekeeper ${this.id} commits beyond its WAL (8)`);
        return true;
      case 'refuse':
        stage.note(() => `n${this.id} refuses c${output.connection}: ${output.code} ${output.message}`);
        // A donor's rot ends here, too: the record's checksum does not fit.
        if (output.code === 'bad-history' || (output.code === 'bad-wal' && !this.#someDonorIsRotten()))
          throw new Violation(`safekeeper ${this.id} refuses its proposer: ${output.message}`);
        this.#world.network.refuse(this, output.connection);
        return true;
    }
  }

  #flush(storage: TimelineStorage, epoch: number): void {
    const stage = this.#stage;
    const {incarnation} = this;
    let finishes = (storage.beginSync() as readonly SimFile[]).map((file) => file.beginSync());
    if (this.#bugs.has('flush-without-fsync')) finishes = [];
    if (this.#bugs.has('fsync-last-file-only')) finishes = finishes.slice(-1);
    const failing = stage.happens(stage.faults.syncError);
    const takesMs = stage.faults.syncMs * (0.2 + stage.random.float() * 2);
    const finish = (): void => {
      if (this.incarnation !== incarnation) return;
      if (failing) {
        // Nobody knows what is on the disk now: the node stops. (The kernel has forgotten what it could not write.)
        if (this.#bugs.has('fsync-retried')) finishes = [];
        else {
          this.crash('fsync failed');
          return;
        }
      }
      for (const one of finishes) one();
      storage.endSync();
      this.step({kind: 'flushed', epoch});
    };
    if (this.#bugs.has('flushed-too-early')) {
      stage.after(takesMs, () => {
        if (this.incarnation === incarnation) for (const one of finishes) one();
      });
      stage.after(0, () => {
        if (this.incarnation !== incarnation) return;
        storage.endSync();
        this.step({kind: 'flushed', epoch});
      });
    } else stage.after(takesMs, finish);
  }

  #send(connection: number, message: AcceptorMessage): void {
    this.#stage.checker.said(
      this.id,
      message.term,
      message.kind === 'vote-response' || message.kind === 'append-response'
        ? message.flushLsn
        : message.kind === 'elected-response'
          ? message.startLsn
          : (0 as Lsn),
    );
    this.#world.network.sendToCompute(this, connection, message);
  }

  /** A disk may fail under any change: then nobody knows what is on it, and the node stops. */
  #mayFail(): void {
    if (this.#stage.happens(this.#stage.faults.ioError)) this.disk.failNext = true;
  }

  #ioFailed(error: unknown): false {
    if (!('code' in (error as object))) throw error;
    this.crash(`disk: ${(error as Error).message}`);
    return false;
  }

  #someDonorIsRotten(): boolean {
    for (let id = 1; id <= 5; id++) if (this.#world.node(id).wasRotten) return true;
    return false;
  }

  #batchEndLater(): void {
    if (this.#batchScheduled || this.acceptor === undefined) return;
    this.#batchScheduled = true;
    const {incarnation} = this;
    this.#stage.after(this.#stage.random.float() * 0.5, () => {
      if (this.incarnation !== incarnation) return;
      this.#batchScheduled = false;
      this.step({kind: 'batch-end'});
    });
  }

  // ---- HTTP of the control plane (wire/membership.ts); undefined: no such timeline, or refused

  putMembership(membership: Membership, minTerm: number): SafekeeperPosition | undefined {
    const {acceptor} = this;
    if (acceptor === undefined) return undefined;
    const compared = compareMembership(acceptor.state.membership, membership);
    if (compared === 'conflict')
      throw new Violation(
        `safekeeper ${this.id} is told two configurations of generation ${membership.generation} (11)`,
      );
    if (compared === 'stale') return undefined;
    if (!this.step({kind: 'membership', membership, minTerm})) return undefined;
    return this.#position();
  }

  /** Copies the timeline; `done` with the position, or not at all. */
  pull(membership: Membership, from: readonly number[], done: (position: SafekeeperPosition) => void): void {
    if (this.acceptor !== undefined) {
      done(this.#position());
      return;
    }
    // It has left since.
    if (this.status === 'lost' && this.#memberGeneration < membership.generation && mayPull(membership, this.id)) {
      this.#memberGeneration = 0;
      this.status = 'absent';
    }
    const rejoins = this.status === 'lost' && this.#bugs.has('lost-disk-rejoins');
    if ((this.status !== 'absent' && !rejoins) || this.#copying) return;
    if (!mayPull(membership, this.id) && !rejoins)
      throw new Violation(`safekeeper ${this.id} is told to copy as a member (11)`);
    // A damaged donor cannot be copied from: another one is tried next.
    const donors = from.map((id) => this.#world.node(id)).filter((node) => node.acceptor !== undefined);
    const donor = donors[this.#copies++ % Math.max(1, donors.length)];
    if (donor === undefined) return;
    this.#copying = true;
    const {incarnation} = this;
    const donorLife = donor.incarnation;
    const before = donor.snapshot();
    const copy = new TimelineCopy(
      {disk: this.disk, directory, tenantId, timelineId, segmentSize},
      before,
      new SimRecordBoundary(),
    );
    const stage = this.#stage;
    const step = (): void => {
      try {
        go();
      } catch (error) {
        const unchanged =
          donor.acceptor !== undefined && pulledState(before, donor.snapshot(), membership) !== undefined;
        if (error instanceof TimelineCopyError && donor.rottenLsn === 0 && unchanged)
          throw new Violation(`safekeeper ${this.id}: ${error.message}`, {cause: error});
        if (!(error instanceof TimelineCopyError) && !('code' in (error as object))) throw error;
        // The donor is damaged, or our disk full: the control plane asks again.
        this.#copying = false;
      }
    };
    const go = (): void => {
      if (this.incarnation !== incarnation || !this.#copying) return;
      if (stage.happens(0.01)) {
        stage.note(() => `n${this.id} dies while it copies`);
        this.incarnation++;
        this.#copying = false;
        if (stage.random.float() < stage.faults.powerCut) this.disk.crash();
        return;
      }
      if (donor.incarnation !== donorLife || donor.acceptor === undefined) {
        this.#copying = false;
        copy.abandon();
        return;
      }
      if (copy.nextLsn < copy.endLsn) {
        const bytes = donor.readWal(copy.nextLsn, Math.min(copyChunkBytes, copy.endLsn - copy.nextLsn));
        if (bytes.length === 0) {
          this.#copying = false;
          copy.abandon();
          return;
        }
        copy.write(copy.nextLsn, bytes);
        stage.after(stage.latency(), step);
        return;
      }
      const finishes = (copy.beginSync() as readonly SimFile[]).map((file) => file.beginSync());
      stage.after(stage.faults.syncMs, () => {
        if (this.incarnation !== incarnation || donor.acceptor === undefined) {
          this.#copying = false;
          return;
        }
        if (!this.#bugs.has('copy-unsynced')) for (const finish of finishes) finish();
        this.#copying = false;
        try {
          const after = this.#bugs.has('copy-not-rechecked') ? before : donor.snapshot();
          if (!copy.complete(after, membership)) return;
        } catch (error) {
          if (!(error instanceof TimelineCopyError)) throw error;
          if (donor.rottenLsn === 0) throw new Violation(`safekeeper ${this.id}: ${error.message}`, {cause: error});
          return;
        }
        stage.mark(marks.copy, this.id, copy.endLsn);
        stage.note(() => `n${this.id} has copied n${donor.id} up to ${formatLsn(copy.endLsn)}`);
        // What could not be checked: below the first place where a record is known to start.
        const {localStartLsn, history} = before.state;
        if (donor.rottenLsn > 0 && !history.some((entry) => entry.lsn === localStartLsn))
          this.rottenLsn = donor.rottenLsn;
        this.wasRotten = true;
        this.status = 'down';
        this.start();
        if (this.acceptor !== undefined) done(this.#position());
      });
    };
    stage.after(stage.latency(), step);
  }

  exclude(membership: Membership): boolean {
    if (isMember(membership, this.id)) throw new Violation(`safekeeper ${this.id} is a member and to be excluded`);
    if (this.status === 'lost') {
      // It comes back with an empty disk.
      this.#memberGeneration = 0;
      this.status = 'absent';
      return true;
    }
    const {acceptor} = this;
    if (acceptor === undefined) return this.status === 'absent' && !this.#copying;
    if (acceptor.state.membership.generation > membership.generation) return false;
    this.#stage.note(() => `n${this.id} is excluded`);
    this.#memberGeneration = 0;
    this.#stop();
    this.disk.wipe();
    this.rottenLsn = 0 as Lsn;
    this.#tailIsRotten = false;
    this.status = 'absent';
    this.#stage.checker.forgotten(this.id, membership.generation);
    return true;
  }

  #position(): SafekeeperPosition {
    const {position} = this.acceptor!;
    this.#stage.checker.said(this.id, position.term, position.flushLsn);
    return position;
  }

  snapshot(): PeerSnapshot {
    const {state, flushLsn} = this.acceptor!;
    return {state, flushLsn};
  }

  // ---- WAL

  /** Committed WAL of a peer, when no proposer brings it (peer-recovery.ts). */
  recoverFromPeer(): void {
    const {acceptor, incarnation} = this;
    if (acceptor === undefined || acceptor.hasProposer) return;
    const others = [1, 2, 3, 4, 5]
      .filter((id) => id !== this.id && isMember(acceptor.state.membership, id))
      .map((id) => this.#world.node(id))
      .filter((node) => node.acceptor !== undefined);
    const newest = others
      .map((node) => node.acceptor!.state.membership)
      .reduce((a, b) => (b.generation > a.generation ? b : a), acceptor.state.membership);
    if (newest.generation > acceptor.state.membership.generation) {
      this.step({kind: 'membership', membership: newest, minTerm: 0});
      return;
    }
    const peers = others.filter((node) => node.acceptor!.commitLsn > acceptor.commitLsn);
    if (peers.length === 0) return;
    const peer = this.#stage.pick(peers);
    const peerLife = peer.incarnation;
    const {commitLsn} = peer.acceptor!;
    const {history} = peer.acceptor!.state;
    const connection = -++this.#peerConnections;
    const stage = this.#stage;
    const end = (): void => {
      if (this.incarnation === incarnation) this.step({kind: 'disconnected', connection});
    };
    const next = (): void => {
      if (this.incarnation !== incarnation) return;
      if (!acceptor.takesFrom(connection) || acceptor.writeLsn >= commitLsn || peer.incarnation !== peerLife) {
        end();
        return;
      }
      const lsn = acceptor.writeLsn;
      const bytes = peer.readWal(lsn, Math.min(copyChunkBytes, commitLsn - lsn));
      stage.after(stage.latency(), () => {
        if (this.incarnation !== incarnation || bytes.length === 0) {
          end();
          return;
        }
        this.step({kind: 'peer-wal', connection, beginLsn: lsn, bytes});
        this.#batchEndLater();
        next();
      });
    };
    stage.after(stage.latency(), () => {
      if (this.incarnation !== incarnation) return;
      stage.note(() => `n${this.id} takes WAL of n${peer.id} up to ${formatLsn(commitLsn)}`);
      if (this.step({kind: 'peer-begin', connection, history, commitLsn})) next();
    });
  }

  /** As a reader gets it: what is no longer on the disk comes from the archive. */
  readWal(lsn: Lsn, lengthMax: number): Buffer {
    const {localStartLsn} = this.acceptor!.state;
    if (lsn < localStartLsn) return this.#world.store.read(lsn, Math.min(lengthMax, localStartLsn - lsn));
    return this.storage!.wal.read(lsn, lengthMax);
  }

  localWal(startLsn: Lsn, endLsn: Lsn): Buffer {
    const parts: Buffer[] = [];
    for (let at: number = startLsn; at < endLsn;) {
      const bytes = this.storage!.wal.read(at as Lsn, endLsn - at);
      if (bytes.length === 0) break;
      parts.push(bytes);
      at += bytes.length;
    }
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }

  /** What a power cut would leave for sure. */
  durableWal(startLsn: Lsn, endLsn: Lsn): Buffer {
    const parts: Buffer[] = [];
    for (let at: number = startLsn; at < endLsn;) {
      const count = Math.min(endLsn - at, segmentSize - (at % segmentSize));
      parts.push(this.disk.durableBytes(segmentPath(at as Lsn), at % segmentSize, count));
      at += count;
    }
    return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  }

  /**
   * A bit flips: of the control file, of WAL that it knows to be committed, or of committed WAL behind that (`tail`), which
   * this node has acknowledged.
   */
  rot(where: 'control-file' | 'wal' | 'tail'): void {
    const {acceptor} = this;
    if (acceptor === undefined || this.rottenLsn > 0) return;
    const {random} = this.#stage;
    if (where === 'control-file') {
      if (this.disk.rot(`${directory}/safekeeper.control`, Math.floor(random.float() * 100)))
        this.rottenLsn = acceptor.commitLsn;
      this.wasRotten = this.rottenLsn > 0;
      return;
    }
    const {localStartLsn, commitLsn} = acceptor.state;
    const startLsn = where === 'tail' ? commitLsn : localStartLsn;
    const promised = readFlushMark({disk: this.disk, directory, tenantId, timelineId}) ?? 0;
    const endLsn = where === 'tail' ? (Math.min(promised, this.#stage.checker.committedLsn) as Lsn) : commitLsn;
    if (endLsn <= startLsn) return;
    const at = (startLsn + Math.floor(random.float() * (endLsn - startLsn))) as Lsn;
    if (this.disk.rot(segmentPath(at), at % segmentSize)) {
      this.#stage.note(() => `n${this.id} rots at ${formatLsn(at)} (${where})`);
      this.rottenLsn = endLsn;
      this.wasRotten = true;
      this.#tailIsRotten = where === 'tail';
    }
  }
}

function segmentPath(lsn: Lsn): string {
  return `${directory}/${segmentFileName(1, Math.floor(lsn / segmentSize), segmentSize)}`;
}
