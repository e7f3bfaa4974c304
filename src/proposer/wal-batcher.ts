/**
 * Group commit: WAL that could not become durable any earlier leaves as one piece for all safekeepers. While a piece is on its
 * way to a quorum's disks, newer WAL waits: the first of it here, what follows in Postgres's socket, which is not read
 * meanwhile. A message, a write, an fsync and each waking of a process cost more CPU than the bytes do.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {Clock} from '#runtime/clock.ts';

/** A network with long ways gains more by a second piece under way than by a larger first one. */
const waitMs = 2;
/** So much WAL is no commit that somebody waits for, or many. */
const waitBytesMax = 32 * 1024;
/** Pieces on their way at once: one that is being synced, one that waits for its turn. */
const underWayMax = 2;
/** Weight of the newest duration in the mean. */
const newest = 1 / 16;

export interface WalBatcherOptions {
  readonly clock: Clock;
  /** Contiguous; the bytes do not change afterwards. */
  readonly onBatch: (lsn: Lsn, bytes: Buffer) => void;
  /** True: what comes next would only wait. False: more is wanted. */
  readonly onWaiting: (is: boolean) => void;
}

export class WalBatcher {
  readonly #options: WalBatcherOptions;
  /** Pieces that no quorum has durably, oldest first: where they end, and when they left. */
  readonly #underWay: {readonly end: number; readonly sentMs: number}[] = [];
  #waitingLsn = 0 as Lsn;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #waitingSinceMs = 0;
  #meanMs = 1;

  constructor(options: WalBatcherOptions) {
    this.#options = options;
  }

  get isWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /** How long a piece takes to a quorum's disks and back, mean of the last ones. */
  get meanMs(): number {
    return this.#meanMs;
  }

  add(lsn: Lsn, bytes: Buffer): void {
    if (this.#waiting.length === 0) {
      if (this.#underWay.length === 0 || bytes.length >= waitBytesMax) {
        this.#send(lsn, bytes);
        return;
      }
      this.#waitingLsn = lsn;
      this.#waitingSinceMs = this.#options.clock.monotonicMs();
      this.#options.onWaiting(true);
    }
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    if (this.#waitingBytes >= waitBytesMax) this.sendNow();
  }

  /** A quorum has everything below durably. */
  durable(lsn: Lsn): void {
    const underWay = this.#underWay;
    if (underWay.length === 0 || underWay[0]!.end > lsn) return;
    const nowMs = this.#options.clock.monotonicMs();
    while (underWay.length > 0 && underWay[0]!.end <= lsn)
      this.#meanMs += (nowMs - underWay.shift()!.sentMs - this.#meanMs) * newest;
    if (underWay.length === 0) this.sendNow();
  }

  /** To be called every few milliseconds while something waits. */
  tick(nowMs: number): void {
    if (nowMs - this.#waitingSinceMs >= waitMs && this.#underWay.length < underWayMax) this.sendNow();
  }

  sendNow(): void {
    if (this.#waiting.length === 0) return;
    const bytes = this.#waiting.length === 1 ? this.#waiting[0]! : Buffer.concat(this.#waiting, this.#waitingBytes);
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#options.onWaiting(false);
    this.#send(this.#waitingLsn, bytes);
  }

  #send(lsn: Lsn, bytes: Buffer): void {
    this.#underWay.push({end: lsn + bytes.length, sentMs: this.#options.clock.monotonicMs()});
    this.#options.onBatch(lsn, bytes);
  }
}
