/**
 * Pages of the branch at the compute's start LSN, over one connection to the pageserver that is made again when it
 * breaks. Everything is read at that one LSN: what is newer is in the local files (design D2).
 */
import type {Lsn} from '#postgres/lsn.ts';
import {formatLsn} from '#postgres/lsn.ts';
import type {RelTag} from '#postgres/relation.ts';
import {formatRel} from '#postgres/relation.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {type PageRun, PageServiceError, PagesClient, type RelListEntry} from '#wire/pages.ts';
import type {HydrationSource} from '#wire/hydration.ts';
import type {Locations} from '#compute/locations.ts';
import type {ComputeSpec, ShardLocation} from '#wire/compute-spec.ts';

/** How long a read waits for a pageserver that is away before the backend gets an error. A cancel ends it earlier. */
const unreachableMsMax = 120_000;
const reconnectMs = 100;
/** The pageserver itself gives up waiting for WAL after a minute: a connection that is silent for longer is dead. */
const answerMsMax = 70_000;
const welcomeMsMax = 10_000;
const lookEveryMs = 1000;

export class PageSource implements HydrationSource {
  readonly #spec: ComputeSpec;
  readonly #token: () => string;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #lsn: Lsn;
  readonly #locations: Locations;
  readonly #shard: number;
  /** Where the client is connected to. */
  #location: ShardLocation;
  #client: Promise<PagesClient> | undefined;
  #stopped = false;

  /** `shard`: whose pages, by number; 0 is the only one of a tenant that is not sharded. */
  constructor(options: {
    spec: ComputeSpec;
    locations: Locations;
    token: () => string;
    lsn: Lsn;
    clock: Clock;
    log: Log;
    shard?: number;
  }) {
    this.#spec = options.spec;
    this.#locations = options.locations;
    this.#shard = options.shard ?? 0;
    this.#location = options.locations.of(this.#shard);
    this.#token = options.token;
    this.#lsn = options.lsn;
    this.#clock = options.clock;
    this.#log = options.log;
  }

  stop(): void {
    this.#stopped = true;
    void this.#client?.then(
      (client) => client.close(),
      () => {},
    );
  }

  relSize(rel: RelTag): Promise<number | undefined> {
    return this.#withClient(`size of ${formatRel(rel)}`, (client) => client.relSize(rel, {requestLsn: this.#lsn}));
  }

  getPages(rel: RelTag, block: number, count: number, packed = false): Promise<PageRun> {
    return this.#withClient(`block ${block} of ${formatRel(rel)}`, (client) =>
      client.getPageRun(rel, block, count, {requestLsn: this.#lsn}, packed),
    );
  }

  listDb(spcNode: number, dbNode: number): Promise<RelListEntry[]> {
    return this.#withClient(`relations of database ${dbNode}`, (client) =>
      client.listDb(spcNode, dbNode, {requestLsn: this.#lsn}),
    );
  }

  dbSize(dbNode: number): Promise<number> {
    return this.#withClient(`size of database ${dbNode}`, (client) => client.dbSize(dbNode, {requestLsn: this.#lsn}));
  }

  async #withClient<T>(what: string, ask: (client: PagesClient) => Promise<T>): Promise<T> {
    const deadline = this.#clock.monotonicMs() + unreachableMsMax;
    for (let attempt = 0; ; attempt++) {
      try {
        const client = await (this.#client ??= this.#connect());
        const watch = this.#watch(() => client.destroy(), answerMsMax);
        try {
          return await ask(client);
        } catch (error) {
          if (error instanceof PageServiceError && error.code === 'not-attached') client.destroy();
          throw error;
        } finally {
          watch.cancel();
        }
      } catch (error) {
        if (this.#stopped) throw error;
        const transient =
          error instanceof NotConnected ||
          !(error instanceof PageServiceError) ||
          error.code === 'disconnected' ||
          error.code === 'unavailable' ||
          error.code === 'not-attached';
        if (!transient) throw error;
        if (this.#clock.monotonicMs() > deadline)
          throw new Error(
            `pageserver ${this.#location.host}:${this.#location.port} could not give ${what} at ${formatLsn(this.#lsn)} ` +
              `for ${unreachableMsMax / 1000} s (tenant ${this.#location.shardId}, branch ${this.#spec.branchId}): ${(error as Error).message}. ` +
              'See `pagoda status` and `pagoda logs pageserver`.',
            {cause: error},
          );
        if (attempt % 50 === 0) this.#log.warn('the pageserver is away, trying again', {what, error});
        // It may have moved: at once when it has, for one that is away there is time.
        await this.#locations.ask();
        if (!this.#locations.hasMoved(this.#shard, this.#location)) await this.#clock.sleep(reconnectMs);
      }
    }
  }

  /**
   * While an answer is awaited: every second, is the shard elsewhere by now? (A pageserver that was stopped answers nobody, and
   * its connections stay.) Gives up on it then, or after `msMax`.
   */
  #watch(giveUp: () => void, msMax: number): {cancel(): void} {
    const location = this.#location;
    const until = this.#clock.monotonicMs() + msMax;
    let ended = false;
    let timer: Timer;
    const look = async (): Promise<void> => {
      if (this.#clock.monotonicMs() >= until) return giveUp();
      await this.#locations.ask();
      if (ended) return;
      if (this.#locations.hasMoved(this.#shard, location)) giveUp();
      else timer = this.#clock.setTimer(lookEveryMs, () => void look());
    };
    timer = this.#clock.setTimer(lookEveryMs, () => void look());
    return {
      cancel(): void {
        ended = true;
        timer.cancel();
      },
    };
  }

  /**
   * Any failure is worth another attempt, also a refusal: a pageserver that has just been started, or is taking the tenant
   * over, does not know it yet.
   */
  async #connect(): Promise<PagesClient> {
    const {promise: deadline, resolve: giveUp} = Promise.withResolvers<void>();
    this.#location = this.#locations.of(this.#shard);
    const watch = this.#watch(giveUp, welcomeMsMax);
    try {
      const client = await PagesClient.connect(
        this.#location,
        this.#token(),
        this.#location.shardId,
        this.#spec.timelineId,
        deadline,
      );
      void client.closed.then(() => (this.#client = undefined));
      return client;
    } catch (error) {
      this.#client = undefined;
      throw new NotConnected((error as Error).message, {cause: error});
    } finally {
      watch.cancel();
    }
  }
}

class NotConnected extends Error {}
