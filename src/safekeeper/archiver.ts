/**
 * Decides for one timeline on one safekeeper what WAL goes to the object store, and what may leave the local disk. Pure: the
 * shell (timeline-archive.ts, or the simulator) shows it the state of things (`tick`), carries out what it answers, and
 * tells how that ended. One job is under way at a time.
 *
 *   archive / verify  ──found in the store──→  record archivedLsn (durable)  ──→  record localStartLsn (durable)  ──→  drop files
 *
 * 1. Only committed WAL is archived (10): any two members write the same bytes, duplicates are harmless.
 * 2. One member archives, chosen from the timeline's id among the members heard of lately; the others look whether the
 *    object is there and holds the bytes that they hold. When the chosen one does nothing for `takeOverMs`, the next does.
 * 3. A local file goes only when this node has found its WAL in the store, a pageserver of validated generation has uploaded
 *    everything below, every reader connected here is beyond it, and the control file says so durably (14).
 * 4. A branch that rests has its partial segment archived too, and then nothing on the local disk but the control file. For
 *    that, all its WAL must be committed.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {assert} from '#runtime/assert.ts';
import type {TermHistory} from '#wire/safekeeper.ts';

/** A piece of WAL that becomes, or is, one object (objectstore/wal-archive.ts). */
export interface ArchivePiece {
  readonly segment: number;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  /** Undefined: the whole segment. */
  readonly partialTerm: number | undefined;
}

/** What a peer said of itself through the broker. */
export interface ArchivePeer {
  readonly nodeId: number;
  readonly commitLsn: Lsn;
  readonly archivedLsn: Lsn;
}

/** The state of things at a tick. */
export interface ArchiverView {
  readonly nowMs: number;
  readonly startLsn: Lsn;
  readonly localStartLsn: Lsn;
  readonly archivedLsn: Lsn;
  readonly commitLsn: Lsn;
  /** End of all local WAL, committed or not. */
  readonly writeLsn: Lsn;
  readonly history: TermHistory;
  readonly remoteConsistentLsn: Lsn;
  /** The lowest position of a reader that is connected here; undefined: none is. */
  readonly readersLsn: Lsn | undefined;
  /** A proposer or a reader of WAL that still waits for something is connected. */
  readonly busy: boolean;
  /** Since when commitLsn stands still, on the clock of nowMs. */
  readonly commitStillSinceMs: number;
  /** Members heard of in the last seconds, without this one. */
  readonly peers: readonly ArchivePeer[];
}

export type ArchiverInput =
  | {readonly kind: 'tick'; readonly view: ArchiverView}
  /** The job of the last archive or verify output ended: the object is in the store and right. */
  | {readonly kind: 'found'; readonly piece: ArchivePiece; readonly byUs: boolean}
  /** It is not there (yet), or the store does not answer. */
  | {readonly kind: 'not-found'; readonly piece: ArchivePiece};

export type ArchiverOutput =
  /** Put the object, verify it; then step found or not-found. */
  | {readonly kind: 'archive'; readonly piece: ArchivePiece}
  /** Verify the object that a peer says it has put; then step found or not-found. */
  | {readonly kind: 'verify'; readonly piece: ArchivePiece}
  /** Durable in the control file before the next output is carried out. */
  | {readonly kind: 'record'; readonly archivedLsn: Lsn; readonly localStartLsn: Lsn}
  /** Local WAL below may go; equal to writeLsn: all of it. */
  | {readonly kind: 'drop'; readonly belowLsn: Lsn}
  /** A longer object has replaced parts in the store: they can be deleted there. */
  | {readonly kind: 'forget-parts'};

export interface ArchiverOptions {
  readonly nodeId: number;
  readonly timelineId: string;
  readonly segmentSize?: number;
  /** A branch whose commitLsn stood still for so long has its partial segment archived (default 60 s). */
  readonly partialAfterMs?: number;
  /** The same while it is written to, so that the loss of all disks costs no more than this much time (default 15 min). */
  readonly partialEveryMs?: number;
  /** A branch that rested for so long leaves the local disk (default 5 min). */
  readonly evictAfterMs?: number;
  /** The next member acts when the one before it has not for so long (default 30 s). */
  readonly takeOverMs?: number;
  readonly mutations?: ReadonlySet<ArchiverMutation>;
}

/** Seeded bugs for the simulator's mutation check; production never passes any. */
export type ArchiverMutation =
  | 'trim-unverified'
  | 'trim-ahead-of-pageserver'
  | 'drop-before-record'
  | 'archive-uncommitted';

export class Archiver {
  readonly #options: ArchiverOptions;
  readonly #segmentSize: number;
  #job: ArchivePiece | undefined;
  /** End of the piece that was looked for, or put, last and in vain. */
  #missingLsn: Lsn | undefined;
  #view: ArchiverView | undefined;
  /** Since when the next piece has been waiting for whoever archives it. */
  #pending: {readonly endLsn: Lsn; readonly sinceMs: number} | undefined;
  /** Since when commitLsn is ahead of archivedLsn. */
  #unarchivedSinceMs: number | undefined;

  constructor(options: ArchiverOptions) {
    this.#options = options;
    this.#segmentSize = options.segmentSize ?? walSegmentSizeDefault;
  }

  /** Nothing is left to do until something changes: all WAL is archived and none is on the local disk. */
  static atRest(view: Pick<ArchiverView, 'localStartLsn' | 'commitLsn' | 'writeLsn'>): boolean {
    return view.localStartLsn === view.commitLsn && view.commitLsn === view.writeLsn;
  }

  step(input: ArchiverInput): ArchiverOutput[] {
    switch (input.kind) {
      case 'tick':
        this.#view = input.view;
        return this.#tick(input.view);
      case 'found':
        return this.#found(input.piece, input.byUs);
      case 'not-found':
        assert(this.#job?.endLsn === input.piece.endLsn, 'the job that ended is the one under way');
        this.#job = undefined;
        // A peer named it, but it is not there: whose turn it is archives it.
        this.#missingLsn = input.piece.endLsn;
        return [];
    }
  }

  #tick(view: ArchiverView): ArchiverOutput[] {
    if (view.commitLsn <= view.archivedLsn) this.#unarchivedSinceMs = undefined;
    else this.#unarchivedSinceMs ??= view.nowMs;
    const out: ArchiverOutput[] = [];
    const localStartLsn = this.#horizon(view);
    if (localStartLsn > view.localStartLsn) {
      const record = {kind: 'record', archivedLsn: view.archivedLsn, localStartLsn} as const;
      const drop = {kind: 'drop', belowLsn: localStartLsn} as const;
      out.push(...(this.#has('drop-before-record') ? [drop, record] : [record, drop]));
    }
    if (this.#job === undefined) this.#begin(view, out);
    return out;
  }

  #begin(view: ArchiverView, out: ArchiverOutput[]): void {
    // What a peer has archived we need only find.
    let peerLsn = 0;
    for (const peer of view.peers) if (peer.archivedLsn > peerLsn) peerLsn = peer.archivedLsn;
    const theirs = peerLsn > view.archivedLsn ? this.#piece(view, Math.min(peerLsn, view.commitLsn) as Lsn) : undefined;
    // A part that ends beyond what we know to be committed, we cannot judge yet.
    if (
      theirs !== undefined &&
      theirs.endLsn !== this.#missingLsn &&
      (theirs.partialTerm === undefined || theirs.endLsn === peerLsn)
    ) {
      this.#job = theirs;
      out.push({kind: 'verify', piece: theirs});
      return;
    }
    const limit = this.#limit(view);
    const piece = limit > view.archivedLsn ? this.#piece(view, limit) : undefined;
    if (piece === undefined || !this.#isMyTurn(view, piece)) return;
    this.#job = piece;
    out.push({kind: 'archive', piece});
  }

  #found(piece: ArchivePiece, byUs: boolean): ArchiverOutput[] {
    assert(this.#job?.endLsn === piece.endLsn, 'the job that ended is the one under way');
    this.#job = undefined;
    this.#pending = undefined;
    this.#missingLsn = undefined;
    const view = this.#view!;
    const out: ArchiverOutput[] = [{kind: 'record', archivedLsn: piece.endLsn, localStartLsn: view.localStartLsn}];
    this.#unarchivedSinceMs = undefined;
    // The part that this one replaces: it began where the segment begins, and ended where we had archived up to.
    if (byUs && view.archivedLsn % this.#segmentSize !== 0 && view.archivedLsn > piece.startLsn)
      out.push({kind: 'forget-parts'});
    return out;
  }

  /** Up to where WAL shall be archived now. */
  #limit(view: ArchiverView): Lsn {
    const {partialAfterMs = 60_000, partialEveryMs = 900_000} = this.#options;
    if (this.#has('archive-uncommitted')) return view.writeLsn;
    const still = view.nowMs - view.commitStillSinceMs >= partialAfterMs;
    const old = this.#unarchivedSinceMs !== undefined && view.nowMs - this.#unarchivedSinceMs >= partialEveryMs;
    return still || old ? view.commitLsn : (this.#floor(view.commitLsn) as Lsn);
  }

  /** The piece that goes on from archivedLsn: to the end of its segment, or to `limit` when that comes before. */
  #piece(view: ArchiverView, limit: Lsn): ArchivePiece | undefined {
    const segment = this.#floor(view.archivedLsn) / this.#segmentSize;
    const startLsn = Math.max(segment * this.#segmentSize, view.startLsn) as Lsn;
    const wholeLsn = ((segment + 1) * this.#segmentSize) as Lsn;
    if (limit >= wholeLsn) return {segment, startLsn, endLsn: wholeLsn, partialTerm: undefined};
    if (limit <= view.archivedLsn) return undefined;
    return {segment, startLsn, endLsn: limit, partialTerm: termAt(view.history, limit)};
  }

  #isMyTurn(view: ArchiverView, piece: ArchivePiece): boolean {
    if (this.#pending?.endLsn !== piece.endLsn) this.#pending = {endLsn: piece.endLsn, sinceMs: view.nowMs};
    const able = [
      this.#options.nodeId,
      ...view.peers.filter((peer) => peer.commitLsn >= piece.endLsn).map((peer) => peer.nodeId),
    ].sort((a, b) => a - b);
    const first = parseInt(this.#options.timelineId.slice(0, 8), 16) % able.length;
    const rank = (able.indexOf(this.#options.nodeId) - first + able.length) % able.length;
    return view.nowMs - this.#pending.sinceMs >= rank * (this.#options.takeOverMs ?? 30_000);
  }

  /** The localStartLsn that is allowed now. */
  #horizon(view: ArchiverView): Lsn {
    const archivedLsn = this.#has('trim-unverified') ? view.commitLsn : view.archivedLsn;
    const consistentLsn = this.#has('trim-ahead-of-pageserver') ? view.commitLsn : view.remoteConsistentLsn;
    const free = Math.min(archivedLsn, consistentLsn, view.readersLsn ?? Infinity, view.commitLsn);
    const rests = view.nowMs - view.commitStillSinceMs >= (this.#options.evictAfterMs ?? 300_000);
    if (!view.busy && rests && free === view.commitLsn && view.writeLsn === view.commitLsn) return view.commitLsn;
    return this.#floor(free) as Lsn;
  }

  #floor(lsn: number): number {
    return lsn - (lsn % this.#segmentSize);
  }

  #has(mutation: ArchiverMutation): boolean {
    return this.#options.mutations?.has(mutation) ?? false;
  }
}

/** The term that wrote the byte before `endLsn`. */
export function termAt(history: TermHistory, endLsn: Lsn): number {
  let term = history[0]!.term;
  for (const entry of history) if (entry.lsn < endLsn) term = entry.term;
  return term;
}
