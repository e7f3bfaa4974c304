/**
 * Group commit: WAL that could not become durable any earlier leaves as one piece for all safekeepers. While a piece is on its
 * way to a quorum's disks, newer WAL waits here, until that one is there or for some milliseconds: a message, a write, an fsync
 * and an answer cost every process on the way more CPU than the bytes do.
 *
 * When it is there, those whose commits it held go on, and mostly come back with the next one sooner than a piece takes: with them
 * the next piece is the last one's size and more, without them two half as large follow each other, at twice the cost, and each
 * waits for the other. So the next piece waits for most of them, no longer than the last one took, and not at all for a while
 * when they did not come.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';

/** A network with long ways gains more by a second piece under way than by a larger first one. */
const waitMs = 2;
/** So much WAL is no commit that somebody waits for, or many. */
const waitBytesMax = 32 * 1024;
/** Pieces on their way at once: one that is being synced, one that waits for its turn. */
const underWayMax = 2;
/** Of those who may be expected; and how long for. */
const expectedShare = 0.75;
const expectMsMax = 2;
/** Pieces that wait for nobody after one that waited in vain; twice as many after the next such. */
const hurryPiecesMin = 8;
const hurryPiecesMax = 1024;

export interface WalBatcherOptions {
  readonly clock: Clock;
  /** Contiguous; the bytes do not change afterwards. */
  readonly onBatch: (lsn: Lsn, bytes: Buffer) => void;
  /** WAL begins to wait: from now on `tick` is to be called every few milliseconds. */
  readonly onWaiting: () => void;
}

interface Piece {
  readonly endLsn: number;
  /** As Postgres cut it: mostly one part for each commit. */
  readonly parts: number;
  readonly sentAtMs: number;
}

export class WalBatcher {
  readonly #options: WalBatcherOptions;
  #durableLsn = 0 as Lsn;
  /** That no quorum has durably, oldest first. */
  readonly #underWay: Piece[] = [];
  #waitingLsn = 0 as Lsn;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #waitingSinceMs = 0;
  /** With nothing under way: so many parts are waited for, until then. */
  #expected = 0;
  #expectUntilMs = 0;
  #hurry = 0;
  #hurryPieces = hurryPiecesMin;

  constructor(options: WalBatcherOptions) {
    this.#options = options;
  }

  get isWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  get durableLsn(): Lsn {
    return this.#durableLsn;
  }

  add(lsn: Lsn, bytes: Buffer): void {
    if (bytes.length >= waitBytesMax) this.sendNow();
    const nowMs = this.#options.clock.monotonicMs();
    if (this.#waiting.length === 0) {
      if (bytes.length >= waitBytesMax || (this.#underWay.length === 0 && !this.#expects(1, nowMs))) {
        this.#send(lsn, bytes, 1, nowMs);
        return;
      }
      this.#waitingLsn = lsn;
      this.#waitingSinceMs = nowMs;
      this.#options.onWaiting();
    }
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    if (this.#waitingBytes >= waitBytesMax) this.sendNow();
    else if (this.#underWay.length === 0 && !this.#expects(this.#waiting.length, nowMs)) this.sendNow();
  }

  /** A quorum has everything below durably. */
  durable(lsn: Lsn): void {
    this.#durableLsn = lsn;
    const underWay = this.#underWay;
    let last: Piece | undefined;
    while (underWay.length > 0 && underWay[0]!.endLsn <= lsn) last = underWay.shift();
    if (last === undefined || underWay.length > 0) return;
    const nowMs = this.#options.clock.monotonicMs();
    this.#expected = 0;
    if (this.#hurry > 0) this.#hurry--;
    else {
      this.#expected = Math.ceil((last.parts + this.#waiting.length) * expectedShare);
      this.#expectUntilMs = nowMs + Math.min(nowMs - last.sentAtMs, expectMsMax);
    }
    if (!this.#expects(this.#waiting.length, nowMs)) this.sendNow();
  }

  tick(nowMs: number): void {
    if (this.#underWay.length === 0 && this.isWaiting && nowMs >= this.#expectUntilMs) {
      this.#hurry = this.#hurryPieces;
      this.#hurryPieces = Math.min(2 * this.#hurryPieces, hurryPiecesMax);
      this.#expected = 0;
      this.sendNow();
    } else if (nowMs - this.#waitingSinceMs >= waitMs && this.#underWay.length < underWayMax) this.sendNow();
  }

  sendNow(): void {
    if (this.#waiting.length === 0) return;
    const parts = this.#waiting.length;
    const bytes = parts === 1 ? this.#waiting[0]! : Buffer.concat(this.#waiting, this.#waitingBytes);
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#send(this.#waitingLsn, bytes, parts, this.#options.clock.monotonicMs());
  }

  /** More than `parts` will come soon. */
  #expects(parts: number, nowMs: number): boolean {
    if (parts >= this.#expected) {
      if (this.#expected > 1) this.#hurryPieces = hurryPiecesMin;
      return false;
    }
    return nowMs < this.#expectUntilMs;
  }

  #send(lsn: Lsn, bytes: Buffer, parts: number, sentAtMs: number): void {
    this.#underWay.push({endLsn: lsn + bytes.length, parts, sentAtMs});
    this.#options.onBatch(lsn, bytes);
  }
}
