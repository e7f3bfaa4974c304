/** The timelines of one tenant that is attached to this pageserver under one generation. */
import type {Lsn} from '#postgres/lsn.ts';
import {formatLsn} from '#postgres/lsn.ts';
import {failpoint} from '#runtime/failpoint.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import type {GenerationValidator} from '../generation-validator.ts';
import {
  type TimelineIndex,
  decodeIndex,
  indexObjectKey,
  parseIndexObjectKey,
  tenantPrefix,
  timelinePrefix,
} from './index-object.ts';
import {type ArchivedTimeline, archivedFromIndex, archivedMarkKey, parseArchivedMarkKey} from './archived.ts';
import {checkKept} from './kept-history.ts';
import type {PageserverContext} from './state.ts';
import {TimelineError} from './timeline-reader.ts';
import {Timeline} from './timeline.ts';

export class Tenant {
  readonly tenantId: string;
  readonly #context: PageserverContext;
  readonly #validator: GenerationValidator;
  readonly #timelines = new Map<string, Timeline>();
  /** A timeline is here or in #timelines, never in both. */
  readonly #archived = new Map<string, ArchivedTimeline>();
  readonly #waking = new Map<string, Promise<Timeline>>();
  readonly #generation: number;
  /** Called when a timeline can ingest, and when it is gone. */
  onActive: (timeline: Timeline) => void = () => {};
  onGone: (timeline: Timeline) => void = () => {};

  private constructor(
    context: PageserverContext,
    validator: GenerationValidator,
    tenantId: string,
    generation: number,
  ) {
    this.#context = context;
    this.#validator = validator;
    this.tenantId = tenantId;
    this.#generation = generation;
  }

  /**
   * Loads every timeline of the tenant that is not archived from the object store. TimelineError 'conflict' when the store holds an index of a
   * higher generation: this attachment is not the latest.
   */
  static async attach(
    context: PageserverContext,
    validator: GenerationValidator,
    tenantId: string,
    generation: number,
  ): Promise<Tenant> {
    const tenant = new Tenant(context, validator, tenantId, generation);
    const {indexes, marked} = await loadIndexes(context, tenantId, generation);
    // Ancestors first.
    const loading = new Set<string>();
    const load = (index: TimelineIndex): Timeline => {
      const known = tenant.#timelines.get(index.timelineId);
      if (known !== undefined) return known;
      if (loading.has(index.timelineId))
        throw new TimelineError('corrupt', `tenant ${tenantId}: timeline ${index.timelineId} is its own ancestor`);
      loading.add(index.timelineId);
      let ancestor: Timeline | undefined;
      if (index.ancestorTimelineId !== undefined) {
        const parent = indexes.get(index.ancestorTimelineId);
        if (parent === undefined)
          throw new TimelineError(
            'corrupt',
            `tenant ${tenantId} timeline ${index.timelineId}: its ancestor ${index.ancestorTimelineId} has no index in the object store`,
          );
        ancestor = load(parent);
      }
      const timeline = Timeline.load(context, validator, index, generation, ancestor);
      tenant.#timelines.set(index.timelineId, timeline);
      return timeline;
    };
    for (const archived of marked) tenant.#archived.set(archived.timelineId, archived);
    for (const index of indexes.values()) {
      if (index.archivedAtMs === undefined || index.lifecycle !== 'active') load(index);
      else tenant.#archived.set(index.timelineId, archivedFromIndex(index, index.archivedAtMs));
    }
    // A child was woken, and its ancestor's index did not get that far: needed is needed.
    for (const timelineId of tenant.#timelines.keys()) tenant.#archived.delete(timelineId);
    for (const archived of tenant.#archived.values()) tenant.#holdFor(archived);
    return tenant;
  }

  get generation(): number {
    return this.#generation;
  }
  timelines(): Timeline[] {
    return [...this.#timelines.values()];
  }

  has(timelineId: string): boolean {
    return this.#timelines.has(timelineId);
  }

  /** Whether the generation is still the tenant's latest. Rejects when nobody can tell. */
  validate(generation: number): Promise<boolean> {
    return this.#validator.validate(this.tenantId, generation);
  }

  /** TimelineError 'not-found'. */
  timeline(timelineId: string): Timeline {
    const timeline = this.#timelines.get(timelineId);
    if (timeline !== undefined) return timeline;
    if (this.#archived.has(timelineId))
      throw new TimelineError(
        'unavailable',
        `tenant ${this.tenantId} timeline ${timelineId} is archived; start an endpoint of its branch to wake it`,
      );
    throw new TimelineError('not-found', `tenant ${this.tenantId} has no timeline ${timelineId} on this pageserver`);
  }

  archivedTimelines(): ArchivedTimeline[] {
    return [...this.#archived.values()];
  }

  archivedTimeline(timelineId: string): ArchivedTimeline | undefined {
    return this.#archived.get(timelineId);
  }

  /** The ancestor keeps what a timeline that is not loaded will read. */
  #holdFor({timelineId, ancestorTimelineId, ancestorLsn}: ArchivedTimeline): void {
    if (ancestorTimelineId === undefined || ancestorLsn === undefined) return;
    this.#timelines.get(ancestorTimelineId)?.state.branchPoints.set(timelineId, ancestorLsn);
  }

  /**
   * Saves the timeline with everything up to `lsn`, and lets go of it. TimelineError 'conflict' while a child is not archived,
   * 'unavailable' when it cannot be now. Repeating it changes nothing. Never beside a step of compaction or GC.
   */
  async archive(timelineId: string, lsn: Lsn): Promise<void> {
    if (this.#archived.has(timelineId)) return;
    const timeline = this.timeline(timelineId);
    const {state} = timeline;
    const awake = (): string[] => [...state.branchPoints.keys()].filter((child) => this.#timelines.has(child));
    const checkChildren = (): void => {
      if (awake().length > 0)
        throw new TimelineError(
          'conflict',
          `${state.name} cannot be archived: its child ${awake()[0]} is not; archive all ${awake().length} of them first`,
        );
    };
    checkChildren();
    if (state.archivedAtMs !== undefined) throw this.#isBeingArchived(timelineId);
    await timeline.waitForLsn(lsn);
    await timeline.checkpoint();
    if (
      this.#timelines.get(timelineId) !== timeline ||
      state.lifecycle !== 'active' ||
      state.archivedAtMs !== undefined
    )
      throw this.#isBeingArchived(timelineId);
    // From here on nobody branches from it, or wakes a child of it.
    const archivedAtMs = this.#context.clock.nowMs();
    state.archivedAtMs = archivedAtMs;
    try {
      checkChildren();
      this.onGone(timeline);
      await timeline.checkpoint();
      failpoint('pageserver.archive.index.before');
      await timeline.saveIndex();
      failpoint('pageserver.archive.index.after');
    } catch (error) {
      state.archivedAtMs = undefined;
      if (this.#timelines.get(timelineId) === timeline && state.lifecycle === 'active') {
        this.onActive(timeline);
        // One that says otherwise may be there already.
        timeline
          .saveIndex()
          .catch((reason: unknown) =>
            this.#context.log.warn('not archived, and its index may say so', {timeline: timelineId, reason}),
          );
      }
      throw error;
    }
    if (this.#timelines.get(timelineId) !== timeline) return; // deleted or detached meanwhile
    const {ancestor, layers} = state;
    const archived: ArchivedTimeline = {
      timelineId,
      archivedAtMs,
      ...(ancestor === undefined ? {} : {ancestorTimelineId: ancestor.state.timelineId, ancestorLsn: ancestor.lsn}),
      walNeededLsn: Math.min(state.gcCutoffLsn, state.diskConsistentLsn) as Lsn,
      layers: layers.count,
    };
    this.#timelines.delete(timelineId);
    this.#archived.set(timelineId, archived);
    timeline.stop();
    const {safeIndex} = timeline;
    if (safeIndex === undefined) return;
    try {
      failpoint('pageserver.archive.mark.before');
      await this.#context.store.put(archivedMarkKey(this.tenantId, safeIndex, archived), Buffer.alloc(0), {
        ifNoneMatch: '*',
      });
      failpoint('pageserver.archive.mark.after');
    } catch (error) {
      // Then an attachment reads the index.
      this.#context.log.warn('an archived branch has no mark', {timeline: timelineId, error: (error as Error).message});
    }
  }

  /** The index of an archived timeline, from the object store. TimelineError 'not-found' when it is archived no more. */
  async archivedIndex(timelineId: string): Promise<TimelineIndex> {
    const index = await this.#readIndex(timelineId);
    if (index === undefined || !this.#archived.has(timelineId))
      throw new TimelineError(
        'not-found',
        `tenant ${this.tenantId} timeline ${timelineId} has just been woken or deleted; try again`,
      );
    return index;
  }

  async #readIndex(timelineId: string): Promise<TimelineIndex | undefined> {
    const {indexes} = await loadIndexes(this.#context, this.tenantId, this.#generation, timelineId);
    return indexes.get(timelineId);
  }

  /** Loads an archived timeline, and its ancestors. Repeating it gives the same timeline. */
  wake(timelineId: string): Promise<Timeline> {
    const waking = this.#waking.get(timelineId);
    if (waking !== undefined) return waking;
    const wake = this.#wake(timelineId).finally(() => this.#waking.delete(timelineId));
    this.#waking.set(timelineId, wake);
    return wake;
  }

  async #wake(timelineId: string): Promise<Timeline> {
    const known = this.#timelines.get(timelineId);
    if (known?.state.archivedAtMs !== undefined) throw this.#isBeingArchived(timelineId);
    const archived = this.#archived.get(timelineId);
    if (archived === undefined) return this.timeline(timelineId);
    const {ancestorTimelineId} = archived;
    const ancestor = ancestorTimelineId === undefined ? undefined : await this.wake(ancestorTimelineId);
    const index = await this.#readIndex(timelineId);
    // Deleted or detached meanwhile; or its ancestor has gone to sleep again.
    if (this.#archived.get(timelineId) !== archived) return this.timeline(timelineId);
    if (index === undefined)
      throw new TimelineError(
        'corrupt',
        `tenant ${this.tenantId} timeline ${timelineId} is archived, and the object store has no index of it`,
      );
    if (ancestor?.state.archivedAtMs !== undefined) throw this.#isBeingArchived(ancestor.timelineId);
    const timeline = Timeline.load(this.#context, this.#validator, index, this.#generation, ancestor);
    this.#archived.delete(timelineId);
    this.#timelines.set(timelineId, timeline);
    for (const child of this.#archived.values()) if (child.ancestorTimelineId === timelineId) this.#holdFor(child);
    // It serves only when a restart would find it awake: the control plane never sees it asleep again by itself.
    failpoint('pageserver.unarchive.index.before');
    try {
      await timeline.saveIndex();
      failpoint('pageserver.unarchive.index.after');
    } catch (error) {
      if (this.#timelines.get(timelineId) === timeline) {
        timeline.stop();
        this.#timelines.delete(timelineId);
        this.#archived.set(timelineId, archived);
      }
      throw error;
    }
    if (this.#timelines.get(timelineId) === timeline) this.onActive(timeline);
    return this.timeline(timelineId);
  }

  #isBeingArchived(timelineId: string): TimelineError {
    return new TimelineError(
      'unavailable',
      `tenant ${this.tenantId} timeline ${timelineId} is being archived, or has just changed; try again`,
    );
  }

  /**
   * One step of detaching a timeline from its ancestor, so that the ancestor can be deleted; true: it is detached, and an index
   * that says so is durable. Its history begins at its branch point then. Repeating it goes on, also after a crash. Never beside
   * a step of compaction or GC.
   */
  async detachStep(timelineId: string): Promise<boolean> {
    const timeline = this.timeline(timelineId);
    const {state} = timeline;
    if (state.lifecycle !== 'active' || state.archivedAtMs !== undefined) throw this.#isBeingArchived(timelineId);
    const branchLsn = state.ancestor?.lsn ?? 0;
    const held = [...state.leases].find(([at, until]) => at < branchLsn && until > this.#context.clock.monotonicMs());
    if (held !== undefined)
      throw new TimelineError(
        'conflict',
        `${state.name} cannot be detached: a reader holds ${formatLsn(held[0])}, which is before its branch point; stop the reader (or wait until its lease has ended)`,
      );
    await timeline.waitForLsn(state.initialLsn);
    for (let of = timeline; of.ancestor !== undefined; of = of.ancestor)
      if (of.ancestor.remoteConsistentLsn < of.state.initialLsn) await of.ancestor.checkpoint();
    if (!(await timeline.takeOverStep())) return false;
    await timeline.leaveAncestor();
    // Only now may the ancestor forget, or go.
    for (const other of this.#timelines.values()) other.state.branchPoints.delete(timelineId);
    return true;
  }

  /** Creates an empty timeline that waits for its import. Repeating it gives the same timeline. */
  async createEmpty(timelineId: string, pgVersion: number): Promise<Timeline> {
    if (this.#archived.has(timelineId)) return this.timeline(timelineId);
    const existing = this.#timelines.get(timelineId);
    if (existing !== undefined) {
      if (existing.ancestor !== undefined) throw this.#differs(timelineId);
      return existing;
    }
    return this.#add(
      Timeline.create(this.#context, this.#validator, {
        tenantId: this.tenantId,
        timelineId,
        pgVersion,
        generation: this.#generation,
      }),
    );
  }

  /** Throws away what a failed import has left, for another try. */
  async recreateEmpty(timelineId: string): Promise<Timeline> {
    const {pgVersion} = this.timeline(timelineId).state;
    await this.deleteTimeline(timelineId);
    return this.createEmpty(timelineId, pgVersion);
  }

  /**
   * Branches: one small object, whatever the size. Waits until the ancestor has reached the LSN. Repeating it with the same
   * ancestor and LSN gives the same timeline.
   */
  async createBranch(timelineId: string, ancestorTimelineId: string, ancestorLsn: Lsn | undefined): Promise<Timeline> {
    const ancestor = this.timeline(ancestorTimelineId);
    if (this.#archived.has(timelineId)) return this.timeline(timelineId);
    const existing = this.#timelines.get(timelineId);
    if (existing !== undefined) {
      const same =
        existing.ancestor === ancestor && (ancestorLsn === undefined || existing.state.ancestor?.lsn === ancestorLsn);
      if (!same) throw this.#differs(timelineId);
      return existing;
    }
    const lsn = ancestorLsn ?? ancestor.lastRecordLsn;
    checkKept(ancestor.state, lsn);
    if (lsn < ancestor.state.initialLsn)
      throw new TimelineError(
        'lsn-too-old',
        `${ancestor.state.name} begins at ${formatLsn(ancestor.state.initialLsn)}; branch at ${formatLsn(lsn)} from its ancestor instead`,
      );
    await ancestor.waitForLsn(lsn);
    checkKept(ancestor.state, lsn); // and in the same turn the new timeline holds it
    if (ancestor.state.archivedAtMs !== undefined || this.#timelines.get(ancestorTimelineId) !== ancestor)
      throw this.#isBeingArchived(ancestorTimelineId);
    const assumed = ancestor.state.logicalSizeBytes;
    const isPast = lsn < ancestor.lastRecordLsn;
    const timeline = await this.#add(
      Timeline.create(this.#context, this.#validator, {
        tenantId: this.tenantId,
        timelineId,
        pgVersion: ancestor.state.pgVersion,
        generation: this.#generation,
        branch: {ancestor, lsn},
      }),
    );
    // Not to make anybody wait for what only figures show.
    if (isPast)
      timeline
        .correctLogicalSize(assumed)
        .catch((error: unknown) =>
          this.#context.log.warn('the size of a branch is only a guess', {timeline: timelineId, error}),
        );
    return timeline;
  }

  async #add(timeline: Timeline): Promise<Timeline> {
    if (this.#timelines.has(timeline.timelineId)) throw this.#differs(timeline.timelineId); // created while we waited
    this.#timelines.set(timeline.timelineId, timeline);
    try {
      await timeline.saveIndex();
    } catch (error) {
      this.#timelines.delete(timeline.timelineId);
      timeline.stop();
      timeline.ancestor?.state.branchPoints.delete(timeline.timelineId);
      throw error;
    }
    if (timeline.state.lifecycle === 'active') this.onActive(timeline);
    return timeline;
  }

  /** An import has made the timeline readable. */
  imported(timeline: Timeline): void {
    this.onActive(timeline);
  }

  /**
   * Deletes a timeline with all its objects; TimelineError 'conflict' while it has children, 'not-attached' when another attachment
   * is newer. Interrupted, it is resumed by the next call or attachment: the index says `deleting` before the first object goes.
   */
  async deleteTimeline(timelineId: string): Promise<void> {
    await this.#loadToDelete(timelineId);
    const timeline = this.#timelines.get(timelineId);
    if (timeline !== undefined) {
      const children = timeline.state.branchPoints.size;
      if (children > 0)
        throw new TimelineError(
          'conflict',
          `${timeline.state.name} has ${children} child timelines; delete or detach them first`,
        );
      if (!timeline.isStopped) {
        timeline.state.lifecycle = 'deleting';
        this.onGone(timeline);
        await timeline.saveIndex();
        timeline.stop();
      }
    }
    await this.#erase(timelinePrefix(this.tenantId, timelineId));
    if (timeline === undefined || this.#timelines.get(timelineId) !== timeline) return;
    this.#timelines.delete(timelineId);
    timeline.ancestor?.state.branchPoints.delete(timelineId);
  }

  /** An archived timeline too says `deleting` before its first object goes; nobody reads it, so its ancestor may sleep on. */
  async #loadToDelete(timelineId: string): Promise<void> {
    const archived = this.#archived.get(timelineId);
    if (archived === undefined) return;
    const children = this.archivedTimelines().filter((child) => child.ancestorTimelineId === timelineId).length;
    if (children > 0)
      throw new TimelineError(
        'conflict',
        `tenant ${this.tenantId} timeline ${timelineId} has ${children} child timelines; delete or detach them first`,
      );
    const index = await this.#readIndex(timelineId);
    if (this.#archived.get(timelineId) !== archived) return;
    if (index !== undefined) {
      const ancestor = this.#timelines.get(archived.ancestorTimelineId ?? '');
      const timeline = Timeline.load(this.#context, this.#validator, index, this.#generation, ancestor);
      timeline.state.lifecycle = 'deleting';
      this.#timelines.set(timelineId, timeline);
    }
    this.#archived.delete(timelineId);
  }

  /** Saves everything and lets go of the tenant. */
  async detach(): Promise<void> {
    for (const timeline of this.#timelines.values()) this.onGone(timeline);
    for (const timeline of this.#timelines.values()) timeline.stop();
    this.#timelines.clear();
    this.#archived.clear();
  }

  async delete(): Promise<void> {
    await this.detach();
    await this.#erase(tenantPrefix(this.tenantId));
  }

  /**
   * Layers go before indexes, so that whatever is left after a crash still has the index that says `deleting`. What was listed
   * while this attachment was the latest is all that goes: another one may be writing under the same names' prefix by now.
   */
  async #erase(prefix: string): Promise<void> {
    const {store} = this.#context;
    const keys = (await store.list(prefix)).map((object) => object.key);
    if (!(await this.validate(this.#generation)))
      throw new TimelineError(
        'not-attached',
        `tenant ${this.tenantId} is not attached to this pageserver any more: generation ${this.#generation} is not its latest, nothing of it is deleted here`,
      );
    failpoint('pageserver.erase.before');
    await store.delete(keys.filter((key) => parseIndexObjectKey(key) === undefined));
    failpoint('pageserver.erase.layers.after');
    await store.delete(keys.filter((key) => parseIndexObjectKey(key) !== undefined));
    failpoint('pageserver.erase.after');
  }

  #differs(timelineId: string): TimelineError {
    return new TimelineError('bad-request', `tenant ${this.tenantId} already has a different timeline ${timelineId}`);
  }
}

/** Attachments that are going away may still replace an index or finish a deletion while their successor looks. */
const loadTriesMax = 20;
const loadPauseMs = 50;

interface Loaded {
  readonly indexes: Map<string, TimelineIndex>;
  /** Archived timelines whose index was not read: a mark says it all. None when `timelineId` was given. */
  readonly marked: ArchivedTimeline[];
}

/** The newest index of each timeline whose generation is not above `generation`. */
async function loadIndexes(
  context: PageserverContext,
  tenantId: string,
  generation: number,
  timelineId?: string,
): Promise<Loaded> {
  for (let tries = 1; ; tries++) {
    try {
      return await listAndLoadIndexes(context, tenantId, generation, timelineId);
    } catch (error) {
      // Gone since it was listed: a later one took its place, or its timeline was deleted. The next list says which.
      if (!(error instanceof ObjectStoreError) || error.code !== 'not-found' || tries === loadTriesMax) throw error;
      await context.clock.sleep(loadPauseMs);
    }
  }
}

async function listAndLoadIndexes(
  context: PageserverContext,
  tenantId: string,
  generation: number,
  only: string | undefined,
): Promise<Loaded> {
  const prefix = `${tenantPrefix(tenantId)}timelines/`;
  const newest = new Map<string, {generation: number; sequence: number}>();
  const marks: NonNullable<ReturnType<typeof parseArchivedMarkKey>>[] = [];
  for (const {key} of await context.store.list(only === undefined ? prefix : timelinePrefix(tenantId, only))) {
    const at = parseIndexObjectKey(key);
    const timelineId = key.slice(prefix.length, key.indexOf('/', prefix.length));
    if (at === undefined) {
      const mark = only === undefined ? parseArchivedMarkKey(key) : undefined;
      if (mark !== undefined) marks.push(mark);
      continue;
    }
    if (at.generation > generation)
      throw new TimelineError(
        'conflict',
        `tenant ${tenantId} cannot be attached with generation ${generation}: timeline ${timelineId} has an index of generation ${at.generation}`,
      );
    const best = newest.get(timelineId);
    if (
      best === undefined ||
      at.generation > best.generation ||
      (at.generation === best.generation && at.sequence > best.sequence)
    )
      newest.set(timelineId, at);
  }
  const marked = new Map<string, ArchivedTimeline>();
  for (const {at, archived} of marks) {
    const {timelineId} = archived;
    const index = newest.get(timelineId);
    // A mark of an earlier index: it has been woken since, and deleting the mark has not come to it.
    if (index?.generation === at.generation && index.sequence === at.sequence) marked.set(timelineId, archived);
  }
  const indexes = new Map<string, TimelineIndex>();
  const readAll = (wanted: readonly string[]): Promise<void[]> =>
    Promise.all(
      wanted.map(async (timelineId) => {
        const at = newest.get(timelineId)!;
        const bytes = await context.store.get(indexObjectKey(tenantId, timelineId, at.generation, at.sequence));
        indexes.set(timelineId, decodeIndex(bytes, {tenantId, timelineId, ...at}));
      }),
    );
  for (let wanted = [...newest.keys()].filter((timelineId) => !marked.has(timelineId)); wanted.length > 0;) {
    await readAll(wanted);
    // What is awake needs its ancestors, whatever their marks say.
    wanted = [...indexes.values()]
      .map(({ancestorTimelineId}) => ancestorTimelineId)
      .filter((timelineId) => timelineId !== undefined)
      .filter((timelineId) => marked.delete(timelineId));
  }
  return {indexes, marked: [...marked.values()]};
}
