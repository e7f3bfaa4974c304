/** The tenants of one pageserver, and the ingest of their timelines: what management, page service and start-up share. */
import type {Clock, Timer} from '#runtime/clock.ts';
import {failpoint} from '#runtime/failpoint.ts';
import type {Log} from '#runtime/log.ts';
import type {Lsn} from '#postgres/lsn.ts';
import type {SafekeeperInfo} from '#wire/broker.ts';
import {Background} from './background.ts';
import type {GenerationValidator} from './generation-validator.ts';
import {TimelineIngest} from './ingest/receive.ts';
import {Secondary} from './secondary/secondary.ts';
import type {SafekeeperNode} from './timeline/index-object.ts';
import {parseIndexObjectKey} from './timeline/index-object.ts';
import type {PageserverContext} from './timeline/state.ts';
import {Tenant} from './timeline/tenant.ts';
import {TimelineError} from './timeline/timeline-reader.ts';
import type {Timeline} from './timeline/timeline.ts';

/** Timelines that ask a safekeeper for the first time at once, after an attachment. */
const firstWordsMax = 64;
/** Ingest tells safekeepers every second how far it is. */
const feedbackMs = 1100;

export interface PageserverParts {
  readonly context: PageserverContext;
  readonly validator: GenerationValidator;
  readonly clock: Clock;
  readonly log: Log;
  /** Parts of objects are kept on a local disk (caching-object-store.ts). */
  readonly hasLocalCache: boolean;
  /** A token for safekeepers. */
  readonly safekeeperToken: () => Promise<string>;
}

export class Pageserver {
  readonly #parts: PageserverParts;
  readonly #tenants = new Map<string, Tenant>();
  readonly #secondaries = new Map<string, Secondary>();
  /** The last thing that was begun for a tenant. */
  readonly #turns = new Map<string, Promise<void>>();
  /** Tenants of which nothing may be deleted yet: validation waits. */
  readonly #holds = new Map<string, {readonly promise: Promise<void>; readonly resolve: () => void}>();
  readonly #validator: GenerationValidator;
  readonly #firstWords = {free: firstWordsMax};
  readonly #ingests = new Map<string, TimelineIngest>();
  /** The same by what safekeepers call the timeline: those of all shards of its tenant that are here. */
  readonly #listeners = new Map<string, Set<TimelineIngest>>();
  readonly #background: Background;
  /** Called when a tenant is not held any more. */
  onLetGo: (tenantId: string) => void = () => {};

  constructor(parts: PageserverParts) {
    this.#parts = parts;
    this.#validator = {
      validate: async (tenantId, generation) => {
        await this.#holds.get(tenantId)?.promise;
        return this.isLatest(tenantId, generation);
      },
    };
    this.#background = new Background(parts.context, () => this.tenants());
  }

  tenants(): Tenant[] {
    return [...this.#tenants.values()];
  }

  ingests(): TimelineIngest[] {
    return [...this.#ingests.values()];
  }

  /**
   * Holds the tenant under `generation`, loaded from the object store: whatever an older attachment here has in memory may have
   * been left behind by another pageserver, and is dropped. Repeating it changes nothing. TimelineError 'conflict' when it is
   * held under a higher generation.
   *
   * With `holds`, objects stay and no progress is reported, until it is asked for without: another pageserver is still read.
   */
  attach(tenantId: string, generation: number, holds = false): Promise<Tenant> {
    return this.#inTurn(tenantId, async () => {
      const attached = this.#tenants.get(tenantId);
      if (attached !== undefined && attached.generation > generation)
        throw new TimelineError(
          'conflict',
          `tenant ${tenantId} is attached with generation ${attached.generation}; ${generation} is older`,
        );
      this.#hold(tenantId, holds);
      if (attached?.generation === generation) return attached;
      failpoint('pageserver.attach.before');
      if (attached !== undefined) await this.#letGo(attached);
      this.#secondaries.delete(tenantId);
      const tenant = await this.#load(tenantId, generation);
      failpoint('pageserver.attach.after');
      return tenant;
    });
  }

  /** Keeps what another pageserver has uploaded of the tenant ready, instead of holding it. Repeating it changes nothing. */
  keepReady(tenantId: string): Promise<Secondary> {
    return this.#inTurn(tenantId, async () => {
      const known = this.#secondaries.get(tenantId);
      if (known !== undefined) return known;
      const attached = this.#tenants.get(tenantId);
      if (attached !== undefined) await this.#letGo(attached);
      const secondary = new Secondary(this.#parts.context, tenantId, this.#parts.hasLocalCache);
      this.#secondaries.set(tenantId, secondary);
      return secondary;
    });
  }

  /** Forgets a tenant, or that it is to be kept ready; its objects stay. Repeating it changes nothing. */
  detach(tenantId: string): Promise<void> {
    return this.#inTurn(tenantId, async () => {
      failpoint('pageserver.detach.before');
      const attached = this.#tenants.get(tenantId);
      if (attached !== undefined) await this.#letGo(attached);
      this.#secondaries.delete(tenantId);
      failpoint('pageserver.detach.after');
    });
  }

  /** Saves what is in memory, so that whoever takes the tenant over has little to ingest. */
  async save(tenantId: string): Promise<void> {
    await Promise.all(
      this.tenant(tenantId)
        .timelines()
        .filter((timeline) => timeline.state.lifecycle === 'active')
        .map((timeline) => timeline.checkpoint()),
    );
  }

  secondaries(): Secondary[] {
    return [...this.#secondaries.values()];
  }

  secondary(tenantId: string): Secondary | undefined {
    return this.#secondaries.get(tenantId);
  }

  /** Asks for all of them; after a pause of the process, or from time to time. */
  async validateAll(): Promise<void> {
    await Promise.all(this.tenants().map((tenant) => this.isLatest(tenant.tenantId, tenant.generation)));
  }

  /** Whether this attachment is the tenant's latest; one that is not is let go of. Rejects when nobody can tell. */
  async isLatest(tenantId: string, generation: number): Promise<boolean> {
    const valid = await this.#parts.validator.validate(tenantId, generation);
    if (!valid)
      void this.#inTurn(tenantId, async () => {
        const attached = this.#tenants.get(tenantId);
        if (attached?.generation !== generation) return;
        this.#parts.log.warn('another pageserver holds the tenant: it is let go of', {tenant: tenantId, generation});
        await this.#letGo(attached);
      });
    return valid;
  }

  /** What concerns one tenant happens one after the other. */
  #inTurn<T>(tenantId: string, work: () => Promise<T>): Promise<T> {
    const result = (this.#turns.get(tenantId) ?? Promise.resolve()).then(work);
    const turn = result.then(
      () => {},
      () => {},
    );
    this.#turns.set(tenantId, turn);
    void turn.then(() => {
      if (this.#turns.get(tenantId) === turn) this.#turns.delete(tenantId);
    });
    return result;
  }

  #hold(tenantId: string, holds: boolean): void {
    const held = this.#holds.get(tenantId);
    if (holds && held === undefined) this.#holds.set(tenantId, Promise.withResolvers<void>());
    if (holds || held === undefined) return;
    this.#holds.delete(tenantId);
    held.resolve();
  }

  /** Readers are sent away: they ask the control plane who holds it now. */
  async #letGo(tenant: Tenant): Promise<void> {
    const {tenantId} = tenant;
    if (this.#tenants.get(tenantId) === tenant) this.#tenants.delete(tenantId);
    this.#hold(tenantId, false);
    await tenant.detach();
    this.onLetGo(tenantId);
  }

  async #load(tenantId: string, generation: number): Promise<Tenant> {
    const {context, log} = this.#parts;
    const tenant = await Tenant.attach(context, this.#validator, tenantId, generation);
    this.#tenants.set(tenantId, tenant);
    tenant.onActive = (timeline) => this.#startIngest(timeline);
    tenant.onGone = (timeline) => this.#stopIngest(timeline);
    for (const timeline of tenant.timelines()) {
      if (timeline.state.lifecycle === 'active') this.#startIngest(timeline);
      if (timeline.state.lifecycle === 'deleting')
        tenant
          .deleteTimeline(timeline.timelineId)
          .catch((error: unknown) => log.warn('a deletion is not finished', {timeline: timeline.timelineId, error}));
    }
    log.info('tenant attached', {tenant: tenantId, generation, timelines: tenant.timelines().length});
    return tenant;
  }

  /** Attaches every tenant of the object store with the generation it was last written with (config.controlUrl says when). */
  async attachAllStored(): Promise<void> {
    const generations = new Map<string, number>();
    for (const {key} of await this.#parts.context.store.list('tenants/')) {
      const tenantId = key.split('/')[1];
      const at = parseIndexObjectKey(key);
      if (tenantId === undefined || at === undefined) continue;
      generations.set(tenantId, Math.max(generations.get(tenantId) ?? 0, at.generation));
    }
    for (const [tenantId, generation] of generations)
      try {
        await this.attach(tenantId, generation);
      } catch (error) {
        // One damaged tenant must not keep the others away.
        this.#parts.log.error('tenant not attached', {tenant: tenantId, generation, error: (error as Error).message});
      }
  }

  /** TimelineError 'not-attached'. */
  tenant(tenantId: string): Tenant {
    const tenant = this.#tenants.get(tenantId);
    if (tenant === undefined)
      throw new TimelineError('not-attached', `tenant ${tenantId} is not attached to this pageserver`);
    return tenant;
  }

  timeline(tenantId: string, timelineId: string): Timeline {
    return this.tenant(tenantId).timeline(timelineId);
  }

  /** Everything up to `lsn` is in the object store, nothing here: Tenant.archive. */
  async archive(tenantId: string, timelineId: string, lsn: Lsn): Promise<void> {
    const tenant = this.tenant(tenantId);
    if (tenant.archivedTimeline(timelineId) === undefined) {
      // What takes long is done before, so that little waits for it.
      const timeline = tenant.timeline(timelineId);
      await timeline.waitForLsn(lsn);
      await timeline.checkpoint();
      // Safekeepers hear what they need not keep.
      if (timeline.remoteConsistentLsn > timeline.state.initialLsn) await this.#parts.clock.sleep(feedbackMs);
    }
    await this.#background.alone(() => tenant.archive(timelineId, lsn));
    this.#parts.log.info('timeline archived', {tenant: tenantId, timeline: timelineId});
  }

  /**
   * Goes on for about `msMax` with making a timeline independent of its ancestor: Tenant.detachStep. True: it is. What is read of
   * the ancestor is written anew, so this takes long for a large branch; whoever wants it asks again.
   */
  async detachAncestor(tenantId: string, timelineId: string, msMax: number): Promise<boolean> {
    const {clock, log} = this.#parts;
    const until = clock.monotonicMs() + msMax;
    let detached = false;
    do
      await this.#background.alone(async () => {
        detached = await this.tenant(tenantId).detachStep(timelineId);
      });
    while (!detached && clock.monotonicMs() < until);
    if (detached) log.info('timeline detached from its ancestor', {tenant: tenantId, timeline: timelineId});
    return detached;
  }

  async setSafekeepers(timeline: Timeline, safekeepers: readonly SafekeeperNode[]): Promise<void> {
    const known = JSON.stringify(timeline.state.safekeepers);
    timeline.state.safekeepers = safekeepers;
    this.#ingests.get(ingestId(timeline))?.setSafekeepers(safekeepers);
    if (JSON.stringify(safekeepers) !== known) await timeline.saveIndex();
  }

  /** A word of the broker. */
  heard(info: SafekeeperInfo): void {
    for (const ingest of this.#listeners.get(`${info.tenantId}/${info.timelineId}`) ?? []) ingest.heard(info);
  }

  /** Saves what is in memory, for at most `saveMsMax`: what is not saved is only ingested again. */
  async stop(saveMsMax: number): Promise<void> {
    const {clock, log} = this.#parts;
    for (const ingest of this.#ingests.values()) ingest.stop();
    this.#ingests.clear();
    this.#listeners.clear();
    const resting = this.#background.stop();
    const saves = [...this.#tenants.values()].flatMap((tenant) =>
      tenant.timelines().map((timeline) =>
        timeline.save().catch((error: unknown) =>
          log.warn('not saved at the stop; the next start ingests it again', {
            timeline: timeline.timelineId,
            error: (error as Error).message,
          }),
        ),
      ),
    );
    let timer: Timer | undefined;
    const late = new Promise<void>((resolve) => (timer = clock.setTimer(saveMsMax, resolve)));
    await Promise.race([Promise.all([...saves, resting]), late]);
    timer?.cancel();
    for (const tenant of this.#tenants.values()) for (const timeline of tenant.timelines()) timeline.stop();
    this.#tenants.clear();
    this.#secondaries.clear();
  }

  #startIngest(timeline: Timeline): void {
    const {context, clock, log, safekeeperToken} = this.#parts;
    const id = ingestId(timeline);
    if (this.#ingests.has(id)) return;
    timeline.state.onLayerAdded = () => this.#background.wake(timeline);
    this.#background.wake(timeline);
    const ingest = new TimelineIngest({
      timeline,
      token: safekeeperToken,
      clock,
      log: log.with({tenant: timeline.tenantId, timeline: timeline.timelineId}),
      metrics: context.metrics,
      firstWords: this.#firstWords,
    });
    this.#ingests.set(id, ingest);
    const name = streamName(timeline);
    const listeners = this.#listeners.get(name);
    if (listeners === undefined) this.#listeners.set(name, new Set([ingest]));
    else listeners.add(ingest);
    if (timeline.state.safekeepers.length > 0) ingest.setSafekeepers(timeline.state.safekeepers);
  }

  #stopIngest(timeline: Timeline): void {
    const id = ingestId(timeline);
    this.#background.forget(timeline);
    const ingest = this.#ingests.get(id);
    if (ingest === undefined) return;
    ingest.stop();
    this.#ingests.delete(id);
    const name = streamName(timeline);
    const listeners = this.#listeners.get(name);
    listeners?.delete(ingest);
    if (listeners?.size === 0) this.#listeners.delete(name);
  }
}

function ingestId(timeline: Timeline): string {
  return `${timeline.tenantId}/${timeline.timelineId}`;
}

/** Its WAL, at the safekeepers: shards of a tenant ingest the same. */
function streamName(timeline: Timeline): string {
  return `${timeline.state.shard.tenantId}/${timeline.timelineId}`;
}
