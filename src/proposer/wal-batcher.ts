/**
 * Group commit: WAL that could not become durable any earlier leaves as one piece for all safekeepers. While a piece is on its
 * way to a quorum's disks, newer WAL waits here, until that one is there or for some milliseconds: a message, a write, an fsync
 * and an answer cost every process on the way more CPU than the bytes do.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';

/** A network with long ways gains more by a second piece under way than by a larger first one. */
const waitMs = 2;
/** So much WAL is no commit that somebody waits for, or many. */
const waitBytesMax = 32 * 1024;
/** Pieces on their way at once: one that is being synced, one that waits for its turn. */
const underWayMax = 2;

export interface WalBatcherOptions {
  readonly clock: Clock;
  /** Contiguous; the bytes do not change afterwards. */
  readonly onBatch: (lsn: Lsn, bytes: Buffer) => void;
  /** WAL begins to wait: from now on `tick` is to be called every few milliseconds. */
  readonly onWaiting: () => void;
}

export class WalBatcher {
  readonly #options: WalBatcherOptions;
  #durableLsn = 0 as Lsn;
  /** Ends of the pieces that no quorum has durably, oldest first. */
  readonly #underWay: number[] = [];
  #waitingLsn = 0 as Lsn;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #waitingSinceMs = 0;

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
    if (this.#waiting.length === 0) {
      if (this.#underWay.length === 0 || bytes.length >= waitBytesMax) {
        this.#send(lsn, bytes);
        return;
      }
      this.#waitingLsn = lsn;
      this.#waitingSinceMs = this.#options.clock.monotonicMs();
      this.#options.onWaiting();
    }
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    if (this.#waitingBytes >= waitBytesMax) this.sendNow();
  }

  /** A quorum has everything below durably. */
  durable(lsn: Lsn): void {
    this.#durableLsn = lsn;
    const underWay = this.#underWay;
    while (underWay.length > 0 && underWay[0]! <= lsn) underWay.shift();
    if (underWay.length === 0) this.sendNow();
  }

  tick(nowMs: number): void {
    if (nowMs - this.#waitingSinceMs >= waitMs && this.#underWay.length < underWayMax) this.sendNow();
  }

  sendNow(): void {
    if (this.#waiting.length === 0) return;
    const bytes = this.#waiting.length === 1 ? this.#waiting[0]! : Buffer.concat(this.#waiting, this.#waitingBytes);
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#send(this.#waitingLsn, bytes);
  }

  #send(lsn: Lsn, bytes: Buffer): void {
    this.#underWay.push(lsn + bytes.length);
    this.#options.onBatch(lsn, bytes);
  }
}
