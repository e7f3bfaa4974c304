/** What goes on with several pageservers when nobody asks: tenants are kept ready, hot blocks told of, generations looked at. */
import type {Timer} from '#runtime/clock.ts';
import type {Pageserver} from '../pageserver.ts';
import type {PageserverContext} from '../timeline/state.ts';
import {HotBlocksPublisher} from './hot-blocks.ts';

/** How often one tenant's uploads are followed. */
const roundMs = 10_000;
const publishMs = 30_000;
const validateMs = 10_000;
const tickMs = 500;
/** A tick that comes so late: the process was stopped, or its machine was, and others may have taken over. */
const pausedMs = 1000;

export class Rounds {
  readonly #pageserver: Pageserver;
  readonly #context: PageserverContext;
  readonly #publisher: HotBlocksPublisher | undefined;
  #timer: Timer | undefined;
  #lastTickMs: number;
  #stopped = false;
  readonly #due = {follow: 0, publish: 0, validate: 0};
  readonly #busy = new Set<string>();

  /** `publishes`: others have a local disk to fetch hot blocks to. */
  constructor(pageserver: Pageserver, context: PageserverContext, publishes: boolean) {
    this.#pageserver = pageserver;
    this.#context = context;
    this.#publisher = publishes ? new HotBlocksPublisher(context) : undefined;
    this.#lastTickMs = context.clock.monotonicMs();
    this.#due.publish = this.#lastTickMs + publishMs;
    this.#due.validate = this.#lastTickMs + validateMs;
    this.#arm();
  }

  stop(): void {
    this.#stopped = true;
    this.#timer?.cancel();
  }

  #arm(): void {
    this.#timer = this.#context.clock.setTimer(tickMs, () => {
      if (this.#stopped) return;
      this.#tick();
      this.#arm();
    });
  }

  #tick(): void {
    const now = this.#context.clock.monotonicMs();
    const paused = now - this.#lastTickMs > tickMs + pausedMs;
    this.#lastTickMs = now;
    if (paused || now >= this.#due.validate) {
      this.#due.validate = now + validateMs;
      this.#once('validate', () => this.#pageserver.validateAll());
    }
    // One that is new is looked at with the next tick.
    if (now >= this.#due.follow || this.#pageserver.secondaries().some((s) => !s.isReady)) {
      this.#due.follow = now + roundMs;
      this.#once('follow', async () => {
        for (const secondary of this.#pageserver.secondaries()) await secondary.round();
      });
    }
    if (this.#publisher !== undefined && now >= this.#due.publish) {
      this.#due.publish = now + publishMs;
      this.#once('publish', async () => {
        for (const tenant of this.#pageserver.tenants()) await this.#publisher!.publish(tenant);
      });
    }
  }

  /** Not again while it runs; a failure is for the next time. */
  #once(what: string, work: () => Promise<void>): void {
    if (this.#busy.has(what)) return;
    this.#busy.add(what);
    work()
      .catch((error: unknown) => this.#context.log.debug('a round did not end', {what, error}))
      .finally(() => this.#busy.delete(what));
  }
}
