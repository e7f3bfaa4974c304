/**
 * One tenant at the pageservers that hold it now. Every call finds out where each shard is, asks all of them, and asks again
 * when one has moved between the look and the answer.
 */
import {type Clock, systemClock} from '#runtime/clock.ts';
import {type Attachment, readAttachments} from '#control/attachments.ts';
import type {SafekeeperNode} from '#control/config.ts';
import {nextGeneration} from '#control/generations.ts';
import type {Lsn} from '#control/lsn.ts';
import {
  NotAttachedError,
  type PageserverClient,
  type StorageClients,
  type TimelineInfo,
  type TimelineMode,
  type TimestampAnswer,
} from '#control/storage-client.ts';
import type {Store} from '#control/store/schema.ts';

export interface TenantPagesContext {
  readonly store: Store;
  readonly storage: Pick<StorageClients, 'pageserver'>;
  readonly clock?: Clock;
}

const attachAttemptsMax = 5;
const askAttemptsMax = 4;

/** Every call may be repeated: creating what exists and deleting what is gone succeed. */
export class TenantPages {
  readonly tenantId: string;
  readonly #store: Store;
  readonly #storage: TenantPagesContext['storage'];
  readonly #clock: Clock;

  constructor({store, storage, clock = systemClock}: TenantPagesContext, tenantId: string) {
    this.#store = store;
    this.#storage = storage;
    this.#clock = clock;
    this.tenantId = tenantId;
  }

  /** The pageservers hold the shards under their present generations. */
  async attach(): Promise<void> {
    await Promise.all((await this.#shards()).map((shard) => this.#attach(shard)));
  }

  /** With all its objects. */
  async delete(): Promise<void> {
    await this.#each((client, shardId) => client.deleteTenant(shardId));
  }

  async createTimeline(timelineId: string, pgVersion: number, mode: TimelineMode): Promise<void> {
    await this.#each((client, shardId) => client.createTimeline(shardId, timelineId, pgVersion, mode));
  }

  /** Streams the first pages in, to each shard a stream of its own; answers the LSN where the branch's WAL begins. */
  async importTimeline(timelineId: string, open: () => Promise<AsyncIterable<Buffer>>): Promise<Lsn> {
    const lsns = await this.#each(async (client, shardId) => client.importTimeline(shardId, timelineId, await open()));
    return lsns[0]!;
  }

  /** undefined: there is no such timeline. What is reached is what every shard has reached. */
  async timeline(timelineId: string): Promise<TimelineInfo | undefined> {
    const all = await this.#each((client, shardId) => client.timeline(shardId, timelineId));
    const infos = all.filter((info) => info !== undefined);
    const [first] = infos;
    if (first === undefined || infos.length < all.length) return undefined;
    const stopped = infos.find((info) => info.ingestError !== undefined);
    return {
      ...first,
      lastRecordLsn: Math.min(...infos.map((info) => info.lastRecordLsn)) as Lsn,
      ...(first.walNeededLsn === undefined
        ? {}
        : {walNeededLsn: Math.min(...infos.map((info) => info.walNeededLsn ?? 0)) as Lsn}),
      ...(stopped?.ingestError === undefined ? {} : {ingestError: stopped.ingestError}),
    };
  }

  async lsnByTimestamp(timelineId: string, timestamp: string): Promise<TimestampAnswer> {
    const [first] = await this.#shards();
    return this.#ask(first!, (client, shardId) => client.lsnByTimestamp(shardId, timelineId, timestamp));
  }

  async setSafekeepers(timelineId: string, safekeepers: readonly SafekeeperNode[]): Promise<void> {
    await this.#each((client, shardId) => client.setSafekeepers(shardId, timelineId, safekeepers));
  }

  /** History of at least this long stays readable. */
  async setRetention(timelineId: string, windowSeconds: number): Promise<void> {
    await this.#each((client, shardId) => client.setRetention(shardId, timelineId, windowSeconds));
  }

  async deleteTimeline(timelineId: string): Promise<void> {
    await this.#each((client, shardId) => client.deleteTimeline(shardId, timelineId));
  }

  /** Saves everything up to `lsn` and drops it from memory; throws while a child is not archived. */
  async archiveTimeline(timelineId: string, lsn: Lsn): Promise<void> {
    await this.#each((client, shardId) => client.archiveTimeline(shardId, timelineId, lsn));
  }

  /** Goes on with making the timeline independent of its ancestor, for some seconds; true: every shard's is. */
  async detachTimeline(timelineId: string): Promise<boolean> {
    return (await this.#each((client, shardId) => client.detachTimeline(shardId, timelineId))).every(Boolean);
  }

  /** With its ancestors. */
  async unarchiveTimeline(timelineId: string): Promise<void> {
    await this.#each((client, shardId) => client.unarchiveTimeline(shardId, timelineId));
  }

  async #shards(): Promise<Attachment[]> {
    const shards = await readAttachments(this.#store, this.tenantId);
    if (shards.length === 0) throw new Error(`tenant ${this.tenantId} is gone: no pageserver holds it`);
    return shards;
  }

  async #each<T>(ask: (client: PageserverClient, shardId: string) => Promise<T>): Promise<T[]> {
    return Promise.all((await this.#shards()).map((shard) => this.#ask(shard, ask)));
  }

  /**
   * A change that was answered counts when the shard is still where it was: whoever attaches it later finds the change in the
   * object store. When it has moved meanwhile, the new holder may have looked before, and is asked again.
   */
  async #ask<T>(shard: Attachment, ask: (client: PageserverClient, shardId: string) => Promise<T>): Promise<T> {
    for (let at = shard, attempt = 1; ; attempt++) {
      let answer: T | NotAttachedError;
      try {
        answer = await ask(this.#storage.pageserver(at.pageserverId), at.shardId);
      } catch (error) {
        if (!(error instanceof NotAttachedError) || attempt >= askAttemptsMax) throw error;
        answer = error;
      }
      const now = await this.#shard(shard.number).catch(() => undefined);
      const stayed = now === undefined || isSame(now, at);
      if (!(answer instanceof NotAttachedError)) {
        if (stayed || attempt >= askAttemptsMax) return answer;
        at = now;
        continue;
      }
      // It should hold it and does not: it has let go of it, or has just started. Each attachment has a generation of its own.
      if (stayed) await this.#raise(at, at.generation);
      at = await this.#attach(shard);
    }
  }

  /**
   * The pageserver of the shard holds it under its present generation. A pageserver that re-attaches at the same moment raises
   * the generation between our reading and our asking; then the newer one is asked for.
   */
  async #attach({number}: Attachment): Promise<Attachment> {
    for (let attempt = 1; ; attempt++) {
      const shard = await this.#shard(number);
      const {shardId, pageserverId, generation} = shard;
      try {
        await this.#storage.pageserver(pageserverId).attachTenant(shardId, generation);
        return shard;
      } catch (error) {
        if (attempt === attachAttemptsMax) throw error;
        const now = await this.#shard(number);
        if (now.generation !== generation) continue;
        // Ours is older than what the pageserver has, and nobody here has raised it: we were restored from a backup.
        const held = await this.#storage.pageserver(pageserverId).tenantGeneration(shardId);
        if (held === undefined || held <= generation) throw error;
        await this.#raise(shard, held);
      }
    }
  }

  /** Above `last`, unless somebody else has changed the attachment meanwhile. */
  async #raise({number, generation}: Attachment, last: number): Promise<void> {
    await this.#store
      .updateTable('attachments')
      .set({generation: nextGeneration(last, this.#clock)})
      .where('tenant_id', '=', this.tenantId)
      .where('shard_number', '=', number)
      .where('generation', '=', generation)
      .execute();
  }

  async #shard(number: number): Promise<Attachment> {
    const shard = (await this.#shards()).find((s) => s.number === number);
    if (shard === undefined) throw new Error(`tenant ${this.tenantId} has no shard ${number} any more`);
    return shard;
  }
}

function isSame(a: Attachment, b: Attachment): boolean {
  return a.pageserverId === b.pageserverId && a.generation === b.generation;
}
