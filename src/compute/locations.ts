/**
 * Which pageserver holds each shard of the tenant. A tenant moves while its computes run: whoever gets no answer, or is told
 * that the shard is not there, asks here, and this asks the control plane. When that is away, what was known last counts.
 */
import type {Clock} from '#runtime/clock.ts';
import {requestJson} from '#runtime/http.ts';
import type {Log} from '#runtime/log.ts';
import {type ComputeSpec, type ShardLocation, shardsOf} from '#wire/compute-spec.ts';

/** All shards and connections of a compute ask at once when a pageserver dies. */
const askEveryMs = 200;
const askMsMax = 3000;

export class Locations {
  readonly #url: string | undefined;
  readonly #token: () => string;
  readonly #clock: Clock;
  readonly #log: Log;
  #shards: readonly ShardLocation[];
  #asking: Promise<void> | undefined;
  #askedAtMs = -askEveryMs;

  constructor(options: {spec: ComputeSpec; token: () => string; clock: Clock; log: Log}) {
    this.#url = options.spec.locationsUrl;
    this.#shards = shardsOf(options.spec);
    this.#token = options.token;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  /** In order. */
  get shards(): readonly ShardLocation[] {
    return this.#shards;
  }

  of(shard: number): ShardLocation {
    return this.#shards[shard]!;
  }

  /** Whether the shard is elsewhere than it was thought to be. */
  hasMoved(shard: number, from: ShardLocation): boolean {
    const now = this.of(shard);
    return now.host !== from.host || now.port !== from.port;
  }

  /** Looks anew; resolves, never rejects, when that is over. */
  ask(): Promise<void> {
    if (this.#url === undefined || this.#clock.monotonicMs() - this.#askedAtMs < askEveryMs)
      return this.#asking ?? Promise.resolve();
    this.#askedAtMs = this.#clock.monotonicMs();
    return (this.#asking ??= this.#look(this.#url).finally(() => (this.#asking = undefined)));
  }

  /**
   * Asks the pageserver of a shard by its management HTTP, for as long as `msMax` again where the shard is when it does not
   * answer or does not hold it.
   */
  async follow<T>(shard: number, msMax: number, ask: (at: ShardLocation) => Promise<T | 'elsewhere'>): Promise<T> {
    const deadline = this.#clock.monotonicMs() + msMax;
    for (;;) {
      let failure: unknown = new Error(`no pageserver holds shard ${this.of(shard).shardId}`);
      try {
        const answer = await ask(this.of(shard));
        if (answer !== 'elsewhere') return answer;
      } catch (error) {
        failure = error;
      }
      if (this.#url === undefined || this.#clock.monotonicMs() > deadline) throw failure;
      await this.#clock.sleep(askEveryMs);
      await this.ask();
    }
  }

  async #look(url: string): Promise<void> {
    try {
      const {status, json} = await requestJson({method: 'GET', url, token: this.#token(), timeoutMs: askMsMax});
      const shards = (json as {shards?: ShardLocation[]} | undefined)?.shards;
      if (status !== 200 || !Array.isArray(shards) || shards.length !== this.#shards.length)
        throw new Error(`the control plane answered ${status}`);
      const before = this.#shards;
      this.#shards = shards;
      for (const [i, at] of shards.entries())
        if (this.hasMoved(i, before[i]!))
          this.#log.info('the pages are elsewhere now', {shard: at.shardId, pageserver: `${at.host}:${at.port}`});
    } catch (error) {
      this.#log.warn('the control plane does not say where the pages are; asking where they were', {error});
    }
  }
}
