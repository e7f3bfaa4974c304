/**
 * One timeline of a running safekeeper: carries messages between connections and the acceptor, and the acceptor's outputs
 * to disk and sockets, in order. Group commit: all appends that arrived together, and all that arrive while an fdatasync is
 * under way, share the next one.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import type {DiskFile} from '#runtime/disk.ts';
import {failpoint} from '#runtime/failpoint.ts';
import type {Log} from '#runtime/log.ts';
import {type FrameConnection, sendJson} from '#runtime/net.ts';
import type {WalArchive} from '#objectstore/wal-archive.ts';
import {Archiver} from '#safekeeper/archiver.ts';
import {Acceptor, type AcceptorInput, type AcceptorOutput} from '#safekeeper/acceptor.ts';
import type {SafekeeperMetrics, TimelineFigures} from '#safekeeper/metrics.ts';
import {PeerRecovery} from '#safekeeper/peer-recovery.ts';
import type {RecordBoundary} from '#safekeeper/record-boundary.ts';
import type {SyncPace} from '#safekeeper/sync-pace.ts';
import {type ArchiveSlots, type ArchiveTimes, TimelineArchive} from '#safekeeper/timeline-archive.ts';
import {type TimelineStorage, isDiskFull} from '#safekeeper/timeline-storage.ts';
import {WalSender} from '#safekeeper/wal-sender.ts';
import {
  type Membership,
  type Refusal,
  type RefusalCode,
  decodeProposerMessage,
  encodeAcceptorMessage,
  frameAppend,
  frameRefused,
} from '#wire/safekeeper.ts';
import {type ShardReporter, ShardReports} from '#wire/shard-feedback.ts';

/** commitLsn is saved when it has stood still for so long, or when this much was committed since. */
const saveAfterMs = 2000;
const saveAfterBytes = 16 * 1024 * 1024;
/** A proposer asks for a sign of life every second; a connection that is silent for so long is dead. */
const proposerSilenceMs = 30_000;
/** What a peer said of itself through the broker is true for so long. */
const peerNewsMs = 10_000;

export interface TimelineOptions {
  readonly nodeId: number;
  readonly storage: TimelineStorage;
  readonly boundary: RecordBoundary;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SafekeeperMetrics;
  /** Shared by all timelines of the disk. */
  readonly syncPace: SyncPace;
  /** commitLsn has advanced, or the term has changed. */
  readonly onProgress: (timeline: Timeline) => void;
  /** The disk failed under us: the node must stop, and find out at its next start what is durable. */
  readonly onDiskFailure: (error: Error) => void;
  /** No space for the control file: this timeline must be read anew from the disk. */
  readonly onStateUnsaved: (timeline: Timeline) => void;
  /** Without one all WAL stays on this disk. */
  readonly archive: {readonly wal: WalArchive; readonly slots: ArchiveSlots; readonly times: ArchiveTimes} | undefined;
  /** For safekeepers, to read their WAL. */
  readonly peerToken: () => Promise<string>;
}

/** What a peer said of itself through the broker. */
export interface PeerNews {
  readonly nodeId: number;
  readonly commitLsn: Lsn;
  readonly archivedLsn: Lsn;
  readonly remoteConsistentLsn: Lsn;
  readonly shardLsns?: readonly Lsn[];
}

interface ProposerConnection {
  readonly frames: FrameConnection;
  lastHeardMs: number;
}

export class Timeline {
  readonly acceptor: Acceptor;
  readonly #options: TimelineOptions;
  readonly #proposers = new Map<number, ProposerConnection>();
  readonly #senders = new Set<WalSender>();
  readonly #reports: ShardReports;
  #connections = 0;
  #batchScheduled = false;
  #failed = false;
  #savedCommitLsn: Lsn;
  #lastSeenCommitLsn: Lsn;
  #commitStillSinceMs: number;
  #idleSinceMs: number;
  #timer: Timer;
  readonly #archive: TimelineArchive | undefined;
  readonly #recovery: PeerRecovery;
  #archiveClosed = Promise.resolve();
  readonly #peers = new Map<number, PeerNews & {readonly heardMs: number}>();

  constructor(options: TimelineOptions) {
    this.#options = options;
    this.acceptor = new Acceptor({
      nodeId: options.nodeId,
      state: options.storage.state,
      flushLsn: options.storage.flushLsn,
      boundary: options.boundary,
    });
    this.#reports = new ShardReports(options.storage.state.remoteConsistentLsn);
    this.#savedCommitLsn = options.storage.state.commitLsn;
    this.#lastSeenCommitLsn = options.storage.state.commitLsn;
    this.#idleSinceMs = options.clock.monotonicMs();
    this.#commitStillSinceMs = this.#idleSinceMs;
    this.#timer = options.clock.setTimer(1000, () => this.#everySecond());
    const {clock, log, metrics, storage, archive, peerToken} = options;
    if (archive !== undefined)
      this.#archive = new TimelineArchive({
        archive: archive.wal,
        slots: archive.slots,
        times: archive.times,
        acceptor: this.acceptor,
        storage,
        clock,
        log,
        metrics,
        record: (archivedLsn, localStartLsn) => {
          this.#step({kind: 'archived', archivedLsn, localStartLsn});
          return !this.#failed;
        },
      });
    this.#recovery = new PeerRecovery({
      acceptor: this.acceptor,
      token: peerToken,
      clock,
      log,
      newConnection: () => ++this.#connections,
      step: (input) => this.#step(input),
    });
  }

  get tenantId(): string {
    return this.acceptor.state.tenantId;
  }
  get timelineId(): string {
    return this.acceptor.state.timelineId;
  }
  /** Somebody writes or reads. */
  get isActive(): boolean {
    return this.#proposers.size > 0 || this.#senders.size > 0;
  }
  get idleMs(): number {
    return this.isActive ? 0 : this.#options.clock.monotonicMs() - this.#idleSinceMs;
  }

  /** All WAL is archived and off this disk, or there is no archive: nothing happens until somebody comes. */
  get isAtRest(): boolean {
    const {state, commitLsn, writeLsn} = this.acceptor;
    return this.#archive === undefined || Archiver.atRest({localStartLsn: state.localStartLsn, commitLsn, writeLsn});
  }
  /** Not to be taken out of memory, though nobody is connected. */
  get hasWork(): boolean {
    return !this.isAtRest || this.#archive?.isWorking === true || this.#recovery.isRunning || this.#recovery.isDue;
  }
  /** Bytes of WAL on this disk. */
  get localBytes(): number {
    return this.#options.storage.wal.localBytes;
  }

  /** After close(): resolves when nothing of it is put into the object store any more. */
  get archiveClosed(): Promise<void> {
    return this.#archiveClosed;
  }

  /** The control plane's configuration. False: it could not be made durable. */
  setMembership(membership: Membership, minTerm: number): boolean {
    this.#step({kind: 'membership', membership, minTerm});
    return !this.#failed;
  }

  /** A word of a peer about this timeline, through the broker. */
  heard(news: PeerNews): void {
    this.#peers.set(news.nodeId, {...news, heardMs: this.#options.clock.monotonicMs()});
    // A pageserver reads from one member; the others learn here how far it is.
    this.#reports.heard(news.remoteConsistentLsn, news.shardLsns);
    this.#combineFeedback();
  }

  /** We know something that the peer does not. */
  isAheadOf({commitLsn, archivedLsn, remoteConsistentLsn}: PeerNews): boolean {
    const {acceptor} = this;
    return (
      acceptor.commitLsn > commitLsn ||
      acceptor.state.archivedLsn > archivedLsn ||
      acceptor.feedback.remoteConsistentLsn > remoteConsistentLsn
    );
  }

  /** Takes over a connection whose hello was accepted. */
  attachProposer(frames: FrameConnection): void {
    const id = ++this.#connections;
    const {clock} = this.#options;
    const connection = {frames, lastHeardMs: clock.monotonicMs()};
    this.#proposers.set(id, connection);
    frames.onFrame = (type, payload) => {
      connection.lastHeardMs = clock.monotonicMs();
      let message;
      try {
        message = decodeProposerMessage(type, payload);
      } catch (error) {
        this.#refuse(id, 'bad-request', error instanceof Error ? error.message : String(error));
        return;
      }
      this.#step({kind: 'message', connection: id, message});
      // The bytes are in the page cache, and the record that they end in was copied: nobody looks at them any more.
      if (type === frameAppend) frames.recycle(payload);
      // All frames of one read of the socket are handled before the microtask runs: they share one flush.
      if (type === frameAppend && !this.#batchScheduled) {
        this.#batchScheduled = true;
        queueMicrotask(() => {
          this.#batchScheduled = false;
          this.#step({kind: 'batch-end'});
        });
      }
    };
    frames.onClose = () => {
      this.#proposers.delete(id);
      this.#step({kind: 'disconnected', connection: id});
      this.#noteIdle();
    };
  }

  /**
   * Streams WAL from `startLsn`; with a term, as a recovery read. Only a pageserver's feedback counts: WAL is trimmed by it.
   * `reporter`: which shard of the tenant the pageserver reads for.
   */
  attachReader(
    connection: FrameConnection,
    options: {
      readonly startLsn: Lsn;
      readonly term: number | undefined;
      /** A safekeeper copies the timeline: up to flushLsn in whatever term. */
      readonly copy: boolean;
      readonly reporter: ShardReporter | undefined;
    },
  ): void {
    const {startLsn, term, copy, reporter} = options;
    const {state} = this.acceptor;
    const sender: WalSender = new WalSender({
      connection,
      acceptor: this.acceptor,
      wal: this.#options.storage.wal,
      archived: this.#archived(),
      startLsn,
      term,
      copy,
      clock: this.#options.clock,
      onFeedback: (feedback) => {
        if (reporter === undefined) return;
        this.#reports.report(reporter, feedback, this.#options.clock.monotonicMs());
        this.#combineFeedback();
      },
      onClose: () => {
        this.#senders.delete(sender);
        this.#noteIdle();
      },
    });
    this.#senders.add(sender);
    if (startLsn < state.startLsn) {
      sender.refuse(
        'bad-request',
        `timeline ${state.timelineId} starts at ${formatLsn(state.startLsn)}, WAL from ${formatLsn(startLsn)} belongs to its ancestor`,
      );
      return;
    }
    sender.pump();
  }

  figures(): TimelineFigures {
    const {state, term, flushLsn, commitLsn, feedback} = this.acceptor;
    return {
      tenantId: state.tenantId,
      timelineId: state.timelineId,
      term,
      flushLsn,
      commitLsn,
      archivedLsn: state.archivedLsn,
      localStartLsn: state.localStartLsn,
      remoteConsistentLsn: feedback.remoteConsistentLsn,
      localBytes: this.localBytes,
      readers: this.#senders.size,
      archiveFails: this.#archive?.error !== undefined,
    };
  }

  status(): Record<string, unknown> {
    const {state} = this.acceptor;
    return {
      tenantId: state.tenantId,
      timelineId: state.timelineId,
      systemId: state.systemId,
      pgVersion: state.pgVersion,
      startLsn: formatLsn(state.startLsn),
      term: this.acceptor.term,
      lastLogTerm: this.acceptor.lastLogTerm,
      termHistory: state.history.map((entry) => ({term: entry.term, lsn: formatLsn(entry.lsn)})),
      membership: state.membership,
      flushLsn: formatLsn(this.acceptor.flushLsn),
      commitLsn: formatLsn(this.acceptor.commitLsn),
      archivedLsn: formatLsn(state.archivedLsn),
      localStartLsn: formatLsn(state.localStartLsn),
      localBytes: this.localBytes,
      ...(this.#archive?.error === undefined ? {} : {archiveError: this.#archive.error}),
      remoteConsistentLsn: formatLsn(this.acceptor.feedback.remoteConsistentLsn),
      proposerConnected: this.acceptor.hasProposer,
      readers: [...this.#senders].map((sender) => ({nextLsn: formatLsn(sender.nextLsn)})),
    };
  }

  /** Saves what may be saved and lets go of files; connections are destroyed. */
  close(): void {
    this.#timer.cancel();
    this.#archiveClosed = this.#archive?.close() ?? Promise.resolve();
    this.#recovery.close();
    for (const {frames} of this.#proposers.values()) frames.destroy();
    for (const sender of this.#senders) sender.refuse('stopping', 'the safekeeper stops, or the timeline is deleted');
    if (!this.#failed) this.#step({kind: 'save'});
    this.#failed = true;
    this.#options.storage.close();
  }

  #step(input: AcceptorInput): void {
    if (this.#failed) return;
    const flushLsn = this.acceptor.flushLsn;
    const {term} = this.acceptor;
    let progress = false;
    for (const output of this.acceptor.step(input)) {
      if (!this.#carryOut(output)) return;
      if (output.kind === 'commit') progress = true;
    }
    if (progress || this.acceptor.flushLsn !== flushLsn || this.acceptor.term !== term)
      for (const sender of this.#senders) sender.pump();
    if (progress || this.acceptor.term !== term) this.#options.onProgress(this);
  }

  /** False: the rest of the outputs must not be carried out. */
  #carryOut(output: AcceptorOutput): boolean {
    switch (output.kind) {
      case 'send': {
        const connection = this.#proposers.get(output.connection);
        if (connection !== undefined) {
          const frame = encodeAcceptorMessage(output.message);
          connection.frames.sendNow(frame.type, ...frame.parts);
        }
        return true;
      }
      case 'write':
        try {
          this.#options.storage.apply(output);
          this.#options.metrics.writtenBytes.inc(output.bytes.length);
          return true;
        } catch (error) {
          if (!isDiskFull(error)) return this.#fail(error);
          this.#options.log.error('disk full: WAL is refused until there is space', {lsn: formatLsn(output.lsn)});
          this.#step({
            kind: 'write-failed',
            message: `safekeeper ${this.acceptor.nodeId} has no disk space for WAL at ${formatLsn(output.lsn)}`,
          });
          return false;
        }
      case 'save':
        try {
          this.#options.storage.apply(output);
          this.#savedCommitLsn = output.state.commitLsn;
          return true;
        } catch (error) {
          return this.#failUnsaved(error);
        }
      case 'truncate':
        try {
          this.#options.storage.apply(output);
          return true;
        } catch (error) {
          return this.#failUnsaved(error);
        }
      case 'mark':
        try {
          this.#options.storage.apply(output);
          return true;
        } catch (error) {
          return this.#fail(error);
        }
      case 'flush':
        this.#flush(output.epoch);
        return true;
      case 'commit':
        return true;
      case 'refuse':
        this.#refuse(output.connection, output.code, output.message);
        return true;
    }
  }

  #flush(epoch: number): void {
    const {storage, clock, metrics, syncPace} = this.#options;
    const startedMs = clock.monotonicMs();
    const finish = (): void => {
      const endedMs = clock.monotonicMs();
      metrics.flushSeconds.observe((endedMs - startedMs) / 1000);
      syncPace.took(endedMs - startedMs, endedMs);
      storage.endSync();
      failpoint('safekeeper.sync.after');
      this.#step({kind: 'flushed', epoch});
      failpoint('safekeeper.acknowledge.after');
    };
    const fail = (error: unknown): void => void this.#fail(error);
    const files = storage.beginSync();
    failpoint('safekeeper.sync.before');
    if (syncPace.mayWait(this, this.acceptor.writeLsn - this.acceptor.flushLsn, startedMs)) {
      try {
        for (const file of files) file.syncNow();
      } catch (error) {
        fail(error);
        return;
      }
      finish();
      return;
    }
    const [only] = files;
    if (files.length === 1) only!.sync().then(finish, fail);
    else syncAll(files).then(finish, fail);
  }

  #refuse(id: number, code: RefusalCode, message: string): void {
    const connection = this.#proposers.get(id);
    if (connection === undefined) return;
    this.#options.log.warn('refused a proposer', {peer: connection.frames.peer, code, reason: message});
    sendJson(connection.frames, frameRefused, {code, message} satisfies Refusal);
    connection.frames.onFrame = () => {};
    connection.frames.close();
  }

  /** The acceptor has already taken the new state for durable: only what is on the disk can be believed now. */
  #failUnsaved(error: unknown): false {
    if (!isDiskFull(error)) return this.#fail(error);
    this.#failed = true;
    this.#options.log.error(
      'disk full: the state of the timeline cannot be saved; connections are closed until there is space',
    );
    this.#options.onStateUnsaved(this);
    return false;
  }

  #fail(error: unknown): false {
    if (!this.#failed) {
      this.#failed = true;
      this.#options.onDiskFailure(
        new Error(
          `tenant ${this.tenantId} timeline ${this.timelineId}: ${error instanceof Error ? error.message : String(error)}`,
          {cause: error},
        ),
      );
    }
    return false;
  }

  #combineFeedback(): void {
    const feedback = this.#reports.feedback(this.#options.clock.monotonicMs());
    const known = this.acceptor.feedback;
    if (
      feedback.lastReceivedLsn === known.lastReceivedLsn &&
      feedback.diskConsistentLsn === known.diskConsistentLsn &&
      feedback.remoteConsistentLsn === known.remoteConsistentLsn &&
      feedback.shards === undefined
    )
      return;
    this.#step({kind: 'feedback', feedback});
  }

  /** Of each shard of a sharded tenant, what is uploaded: for peers. */
  get shardLsns(): readonly Lsn[] | undefined {
    return this.#reports.remoteConsistentLsns;
  }

  #everySecond(): void {
    const {clock} = this.#options;
    this.#timer = clock.setTimer(1000, () => this.#everySecond());
    for (const sender of this.#senders) sender.keepalive();
    const now = clock.monotonicMs();
    this.#combineFeedback(); // reports get old
    for (const {frames, lastHeardMs} of this.#proposers.values())
      if (now - lastHeardMs > proposerSilenceMs) frames.destroy();
    // While commits go on, saving would cost them their time: it waits for a pause, or for a segment's worth of WAL.
    const {commitLsn} = this.acceptor;
    if (commitLsn !== this.#lastSeenCommitLsn) this.#commitStillSinceMs = now;
    this.#lastSeenCommitLsn = commitLsn;
    const unsavedBytes = commitLsn - this.#savedCommitLsn;
    if (unsavedBytes >= saveAfterBytes || (unsavedBytes > 0 && now - this.#commitStillSinceMs >= saveAfterMs))
      this.#step({kind: 'save'});
    this.#tickPeers(now);
  }

  #tickPeers(now: number): void {
    for (const [nodeId, {heardMs}] of this.#peers) if (now - heardMs > peerNewsMs) this.#peers.delete(nodeId);
    const peers = [...this.#peers.values()];
    const peerCommitLsn = peers.reduce((most, {commitLsn}) => Math.max(most, commitLsn), 0) as Lsn;
    this.#recovery.tick(peerCommitLsn, this.isAtRest);
    const readersLsn =
      this.#senders.size === 0
        ? undefined
        : ([...this.#senders].reduce((least, {nextLsn}) => Math.min(least, nextLsn), Infinity) as Lsn);
    this.#archive?.tick({
      peers,
      remoteConsistentLsn: this.acceptor.feedback.remoteConsistentLsn,
      readersLsn,
      busy: this.isActive || this.#recovery.isRunning,
      commitStillSinceMs: this.#commitStillSinceMs,
    });
  }

  #archived(): ((lsn: Lsn, lengthMax: number) => Promise<Buffer>) | undefined {
    const {archive, metrics} = this.#options;
    if (archive === undefined) return undefined;
    return async (lsn, lengthMax) => {
      const bytes = await archive.wal.read(lsn, lengthMax);
      metrics.archiveReadBytes.inc(bytes.length);
      return bytes;
    };
  }

  #noteIdle(): void {
    if (!this.isActive) this.#idleSinceMs = this.#options.clock.monotonicMs();
  }
}

async function syncAll(files: readonly DiskFile[]): Promise<void> {
  await Promise.all(files.map(async (file) => file.sync()));
}
