/**
 * Pageservers as the control plane sees them: each is asked every half second whether it lives. Of one that is dead, every
 * shard goes to its secondary (or to any other node) under a new generation; computes ask where it is when their pageserver
 * does not answer. What a node holds is compared with the table when it comes back, and from time to time: nothing that was
 * told once must have arrived.
 */
import type {Clock, Timer} from '#runtime/clock.ts';
import {inParallel} from '#runtime/in-parallel.ts';
import type {Log} from '#runtime/log.ts';
import {type Attachment, attachmentOf} from '#control/attachments.ts';
import {nextGeneration} from '#control/generations.ts';
import {migrationLock} from '#control/operations/migrate-plan.ts';
import {defaultHealthLimits, type HealthLimits, PageserverHealth} from '#control/pageserver-health.ts';
import {loadOf, placeShards} from '#control/placement.ts';
import type {HeldShard, StorageClients} from '#control/storage-client.ts';
import type {Store} from '#control/store/schema.ts';

/** What every node holds is compared with the table so often. */
const reconcileMs = 60_000;
/** Nodes that could not be brought in line are tried again after so long. */
const retryMs = 1000;
/** Shards that are told of at the same time. */
const parallelMax = 16;

export interface FailoverOptions {
  readonly store: Store;
  readonly storage: StorageClients;
  readonly clock: Clock;
  readonly log: Log;
  readonly limits?: HealthLimits;
}

export class Failover {
  readonly #options: FailoverOptions;
  readonly #limits: HealthLimits;
  readonly #health: PageserverHealth;
  /** Node → when it is to be brought in line. */
  readonly #due = new Map<number, number>();
  readonly #asked = new Set<number>();
  #timer: Timer | undefined;
  #stopped = false;
  /** Failovers and comparisons, one after the other. */
  #work: Promise<void> = Promise.resolve();

  constructor(options: FailoverOptions) {
    this.#options = options;
    this.#limits = options.limits ?? defaultHealthLimits;
    this.#health = new PageserverHealth(this.#limits);
  }

  start(): void {
    this.#tick();
  }

  /** Resolves when nothing is under way. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    await this.#work;
  }

  isDead(nodeId: number): boolean {
    return this.#health.isDead(nodeId);
  }

  #tick(): void {
    if (this.#stopped) return;
    const {clock, storage} = this.#options;
    this.#timer = clock.setTimer(this.#limits.tickMs, () => this.#tick());
    const nowMs = clock.monotonicMs();
    const nodes = storage.pageservers.map(({nodeId}) => nodeId);
    for (const {kind, nodeId} of this.#health.step({kind: 'tick', nowMs, nodes}))
      if (kind === 'dead') this.#died(nodeId);
    for (const nodeId of nodes) void this.#ask(nodeId);
    for (const [nodeId, atMs] of this.#due) {
      if (atMs > nowMs || !this.#health.isAlive(nodeId)) continue;
      this.#due.set(nodeId, nowMs + reconcileMs);
      this.#queue(() => this.#bringInLine(nodeId));
    }
  }

  async #ask(nodeId: number): Promise<void> {
    if (this.#asked.has(nodeId)) return;
    this.#asked.add(nodeId);
    try {
      await this.#options.storage.pageserver(nodeId).alive(this.#limits.deadAfterMs);
      for (const {kind} of this.#health.step({kind: 'answered', nodeId})) if (kind === 'back') this.#isBack(nodeId);
    } catch (error) {
      if (isRefusal(error)) this.#health.step({kind: 'refused', nodeId});
    } finally {
      this.#asked.delete(nodeId);
    }
  }

  #isBack(nodeId: number): void {
    this.#options.log.info('pageserver answers', {pageserver: nodeId});
    this.#due.set(nodeId, 0);
    // What has no living node, this one may take.
    for (const {nodeId: other} of this.#options.storage.pageservers)
      if (this.#health.isDead(other)) this.#queue(() => this.#failOver(other));
  }

  #died(nodeId: number): void {
    this.#options.log.warn('pageserver does not answer: what it holds goes to others', {pageserver: nodeId});
    this.#queue(() => this.#failOver(nodeId));
  }

  #queue(work: () => Promise<void>): void {
    this.#work = this.#work.then(async () => {
      if (this.#stopped) return;
      await work().catch((error: unknown) => this.#options.log.error('pageservers could not be looked after', {error}));
    });
  }

  /** Every shard of a dead node gets another one, in transactions; then those are told. */
  async #failOver(nodeId: number): Promise<void> {
    const {store, storage, clock, log} = this.#options;
    if (!this.#health.isDead(nodeId)) return;
    const rows = (await store.selectFrom('attachments').selectAll().execute()).map(attachmentOf);
    const load = loadOf(rows);
    const dead = storage.pageservers.map((n) => n.nodeId).filter((id) => !this.#health.isAlive(id));
    const moved: Attachment[] = [];
    for (const shard of rows) {
      if (shard.pageserverId !== nodeId) continue;
      const ready = shard.secondaryId !== undefined && this.#health.isAlive(shard.secondaryId);
      const to = ready
        ? shard.secondaryId
        : placeShards({nodes: storage.pageservers, avoid: dead, load})[0]?.pageserverId;
      if (to === undefined) continue;
      const generation = nextGeneration(shard.generation, clock);
      const {numUpdatedRows} = await store
        .updateTable('attachments')
        .set({pageserver_id: to, generation, secondary_id: nodeId})
        .where('tenant_id', '=', shard.tenantId)
        .where('shard_number', '=', shard.number)
        .where('pageserver_id', '=', nodeId)
        .where('generation', '=', shard.generation)
        .executeTakeFirst();
      if (numUpdatedRows === 0n) continue; // it moved meanwhile
      moved.push({...shard, pageserverId: to, generation, secondaryId: nodeId});
      load.set(to, {attached: (load.get(to)?.attached ?? 0) + 1, secondary: load.get(to)?.secondary ?? 0});
    }
    const left = rows.filter((shard) => shard.pageserverId === nodeId).length - moved.length;
    if (left > 0) log.error('no living pageserver for shards of a dead one', {pageserver: nodeId, shards: left});
    if (moved.length === 0) return;
    log.warn('failed over', {pageserver: nodeId, shards: moved.length});
    await inParallel(moved, parallelMax, ({shardId, pageserverId, generation}) =>
      storage
        .pageserver(pageserverId)
        .attachTenant(shardId, generation)
        .catch((error: unknown) => {
          log.warn('not attached yet after a failover', {shard: shardId, pageserver: pageserverId, error});
          this.#due.set(pageserverId, clock.monotonicMs() + retryMs);
        }),
    );
  }

  async #bringInLine(nodeId: number): Promise<void> {
    const {store, storage, clock, log} = this.#options;
    const client = storage.pageserver(nodeId);
    try {
      // In this order: what was attached in between is in the table, and asking for it again changes nothing.
      const held = await client.held();
      const rows = await store
        .selectFrom('attachments')
        .selectAll()
        .where((e) => e.or([e('pageserver_id', '=', nodeId), e('secondary_id', '=', nodeId)]))
        .execute();
      const moving = await this.#moving();
      const actions = differences(nodeId, rows.map(attachmentOf), held).filter(
        ({shardId}) => !moving.has(migrationLock(shardId)),
      );
      if (actions.length > 0) log.info('pageserver is brought in line', {pageserver: nodeId, actions: actions.length});
      await inParallel(actions, parallelMax, async (action) => {
        if (action.kind === 'attach') await client.attachTenant(action.shardId, action.generation);
        else if (action.kind === 'keep-ready') await client.keepReady(action.shardId);
        else await client.detachTenant(action.shardId);
      });
    } catch (error) {
      log.warn('a pageserver could not be brought in line; trying again', {pageserver: nodeId, error});
      this.#due.set(nodeId, clock.monotonicMs() + retryMs);
    }
  }

  /** Locks of migrations under way: they say themselves who holds what. */
  async #moving(): Promise<ReadonlySet<string>> {
    const rows = await this.#options.store
      .selectFrom('operations')
      .select('locks')
      .where('kind', '=', 'migrate_tenant')
      .where('status', 'in', ['scheduling', 'running'])
      .execute();
    return new Set(rows.flatMap(({locks}) => JSON.parse(locks) as string[]));
  }
}

function isRefusal(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause)
    if ((cause as {code?: unknown}).code === 'ECONNREFUSED') return true;
  return false;
}

export type LineAction =
  | {readonly kind: 'attach'; readonly shardId: string; readonly generation: number}
  | {readonly kind: 'keep-ready' | 'detach'; readonly shardId: string};

/** What must be told to a node, so that what it holds is what the table says. */
export function differences(nodeId: number, rows: readonly Attachment[], held: readonly HeldShard[]): LineAction[] {
  const actions: LineAction[] = [];
  const holds = new Map(held.map((shard) => [shard.shardId, shard]));
  const wanted = new Set<string>();
  for (const {shardId, pageserverId, generation} of rows) {
    wanted.add(shardId);
    const has = holds.get(shardId);
    if (pageserverId !== nodeId) {
      if (has?.mode !== 'secondary') actions.push({kind: 'keep-ready', shardId});
    } else if (has?.mode !== 'attached' || (has.generation ?? 0) < generation)
      actions.push({kind: 'attach', shardId, generation});
  }
  for (const {shardId} of held) if (!wanted.has(shardId)) actions.push({kind: 'detach', shardId});
  return actions;
}
