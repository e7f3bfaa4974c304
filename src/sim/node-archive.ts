/** The archiver of a simulated safekeeper: carries out what the production Archiver decides, as timeline-archive.ts does. */
import type {Lsn} from '#postgres/lsn.ts';
import type {Acceptor, AcceptorInput} from '#safekeeper/acceptor.ts';
import {
  type ArchivePeer,
  type ArchivePiece,
  Archiver,
  type ArchiverInput,
  type ArchiverOutput,
} from '#safekeeper/archiver.ts';
import {feedAcrossTerms} from '#safekeeper/record-boundary.ts';
import type {TimelineStorage} from '#safekeeper/timeline-storage.ts';
import {Violation} from '#sim/checker.ts';
import type {SimStore} from '#sim/sim-store.ts';
import {SimRecordBoundary} from '#sim/sim-wal.ts';
import {type Stage, segmentSize, timelineId} from '#sim/stage.ts';

/** The node, as its archiver sees it. */
export interface ArchivedNode {
  readonly id: number;
  readonly incarnation: number;
  readonly acceptor: Acceptor | undefined;
  readonly storage: TimelineStorage | undefined;
  readonly rottenLsn: Lsn;
  step(input: AcceptorInput): boolean;
  readWal(lsn: Lsn, lengthMax: number): Buffer;
}

export class NodeArchive {
  readonly #node: ArchivedNode;
  readonly #stage: Stage;
  readonly #store: SimStore;
  readonly #pageserver: {readonly consistentLsn: Lsn};
  readonly #archiver: Archiver;
  readonly #incarnation: number;
  #working = false;
  #commitLsn: Lsn;
  #commitStillSinceMs: number;

  constructor(node: ArchivedNode, stage: Stage, store: SimStore, pageserver: {readonly consistentLsn: Lsn}) {
    this.#node = node;
    this.#stage = stage;
    this.#store = store;
    this.#pageserver = pageserver;
    this.#incarnation = node.incarnation;
    this.#commitLsn = node.acceptor!.commitLsn;
    this.#commitStillSinceMs = stage.nowMs;
    this.#archiver = new Archiver({
      nodeId: node.id,
      timelineId,
      segmentSize,
      partialAfterMs: 200,
      partialEveryMs: 1500,
      evictAfterMs: 700,
      takeOverMs: 300,
      ...(stage.mutations.archiver ? {mutations: stage.mutations.archiver} : {}),
    });
  }

  /** `peers`: what others last said of themselves. */
  tick(peers: readonly ArchivePeer[]): void {
    const {acceptor} = this.#node;
    if (!this.#isAlive || acceptor === undefined || this.#working) return;
    const nowMs = this.#stage.nowMs;
    if (acceptor.commitLsn !== this.#commitLsn) {
      this.#commitLsn = acceptor.commitLsn;
      this.#commitStillSinceMs = nowMs;
    }
    const {state} = acceptor;
    this.#step({
      kind: 'tick',
      view: {
        nowMs,
        startLsn: state.startLsn,
        localStartLsn: state.localStartLsn,
        archivedLsn: state.archivedLsn,
        commitLsn: acceptor.commitLsn,
        writeLsn: acceptor.writeLsn,
        history: state.history,
        remoteConsistentLsn: acceptor.feedback.remoteConsistentLsn,
        readersLsn: undefined,
        busy: acceptor.hasProposer,
        commitStillSinceMs: this.#commitStillSinceMs,
        peers: peers.filter((peer) => peer.nodeId !== this.#node.id),
      },
    });
  }

  get #isAlive(): boolean {
    return this.#node.incarnation === this.#incarnation;
  }

  #step(input: ArchiverInput): void {
    for (const output of this.#archiver.step(input)) if (!this.#carryOut(output)) return;
  }

  #carryOut(output: ArchiverOutput): boolean {
    const node = this.#node;
    switch (output.kind) {
      case 'record':
        return node.step({
          kind: 'archived',
          archivedLsn: output.archivedLsn,
          localStartLsn: output.localStartLsn,
        });
      case 'drop':
        this.#stage.checker.trimmed(node.id, output.belowLsn, this.#pageserver.consistentLsn, (startLsn, endLsn) =>
          this.#store.readAll(startLsn, endLsn),
        );
        node.storage!.drop(output.belowLsn, output.belowLsn === node.acceptor!.writeLsn);
        return true;
      case 'archive':
        this.#put(output.piece);
        return true;
      case 'verify':
        this.#verify(output.piece, this.#bytes(output.piece), false);
        return true;
      case 'forget-parts':
        this.#store.forgetParts();
        return true;
    }
  }

  #put(piece: ArchivePiece): void {
    const bytes = this.#bytes(piece);
    this.#working = true;
    if (bytes === undefined || !this.#decodes(piece)) {
      this.#end(piece, false, true);
      return;
    }
    this.#store.put(this.#node.id, piece, bytes, (result) => {
      if (!this.#isAlive) return;
      if (this.#stage.mutations.archive?.has('archive-unverified')) this.#end(piece, true, true);
      else if (result === 'error') this.#end(piece, false, true);
      else this.#verify(piece, bytes, true);
    });
  }

  #verify(piece: ArchivePiece, bytes: Buffer | undefined, byUs: boolean): void {
    this.#working = true;
    this.#store.get(piece, (found) => {
      if (!this.#isAlive) return;
      const there = found !== undefined && found !== 'error';
      if (there && bytes !== undefined && !found.equals(bytes) && this.#node.rottenLsn === 0)
        throw new Violation(`safekeeper ${this.#node.id} finds other WAL in the archive than it has (10)`);
      this.#end(piece, there, byUs);
    });
  }

  #end(piece: ArchivePiece, found: boolean, byUs: boolean): void {
    // Never within the step that began it.
    this.#stage.after(found ? 0 : 50, () => {
      if (!this.#isAlive) return;
      this.#working = false;
      this.#step(found ? {kind: 'found', piece, byUs} : {kind: 'not-found', piece});
    });
  }

  /** All records that have a byte in it. There are no pages here to find the first one by: from the timeline's start. */
  #decodes(piece: ArchivePiece): boolean {
    if (this.#stage.mutations.archive?.has('archive-undecoded')) return true;
    const {startLsn, history} = this.#node.acceptor!.state;
    const boundary = new SimRecordBoundary();
    boundary.reset(startLsn);
    // What lies behind it is believed up to commitLsn only; the piece itself is asked for by whoever decided on it.
    const endLsn = Math.max(this.#node.acceptor!.commitLsn, piece.endLsn) as Lsn;
    const bytes = this.#bytes({startLsn, endLsn});
    try {
      return bytes !== undefined && feedAcrossTerms(boundary, history, startLsn, bytes) >= piece.endLsn;
    } catch {
      return boundary.endLsn >= piece.endLsn;
    }
  }

  /** Undefined when a byte of it cannot be had. */
  #bytes(piece: Pick<ArchivePiece, 'startLsn' | 'endLsn'>): Buffer | undefined {
    const parts: Buffer[] = [];
    for (let at: number = piece.startLsn; at < piece.endLsn;) {
      const bytes = this.#node.readWal(at as Lsn, piece.endLsn - at);
      if (bytes.length === 0) return undefined;
      parts.push(bytes);
      at += bytes.length;
    }
    return Buffer.concat(parts);
  }
}
