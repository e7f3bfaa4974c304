/**
 * What a pageserver does when nobody asks: compaction, GC, orphan sweeps, letting go of the memory of branches that rest.
 *
 * One step of compaction at a time in the process, of the timeline that is furthest behind; so its memory is bounded, and
 * reads get their turn between slices of each step. GC goes over all timelines every gcPeriodMs; it never runs beside a step.
 */
import type {Timer} from '#runtime/clock.ts';
import type {PageserverContext} from './timeline/state.ts';
import {sweepOrphans} from './timeline/orphans.ts';
import type {Tenant} from './timeline/tenant.ts';
import type {Timeline} from './timeline/timeline.ts';

/** After a failed step the timeline waits so long, then twice as long, and so on. */
const retryMsFirst = 1000;
const retryMsMax = 60_000;
/** GC periods between two sweeps of a tenant for orphans. */
const sweepEvery = 4;

export class Background {
  readonly #context: PageserverContext;
  readonly #tenants: () => readonly Tenant[];
  /** Timelines that may have work. */
  readonly #woken = new Set<Timeline>();
  readonly #failures = new Map<Timeline, {delayMs: number; untilMs: number}>();
  #work: Promise<void> = Promise.resolve();
  #compacting = false;
  #stopped = false;
  #gcTimer: Timer | undefined;
  #retryTimer: Timer | undefined;
  #rounds = 0;

  constructor(context: PageserverContext, tenants: () => readonly Tenant[]) {
    this.#context = context;
    this.#tenants = tenants;
    this.#armGc();
  }

  /** The timeline may have something to compact. */
  wake(timeline: Timeline): void {
    if (this.#stopped) return;
    this.#woken.add(timeline);
    this.#start();
  }

  forget(timeline: Timeline): void {
    this.#woken.delete(timeline);
    this.#failures.delete(timeline);
  }

  /** Resolves when the step under way has ended. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#gcTimer?.cancel();
    this.#retryTimer?.cancel();
    await this.#work;
  }

  /** Does `work` beside no step and no GC. */
  async alone(work: () => Promise<void>): Promise<void> {
    const result = this.#work.then(work);
    this.#work = result.catch(() => {});
    return result;
  }

  /** One after the other: a step, a round of GC. */
  #queue(work: () => Promise<void>): void {
    this.#work = this.#work.then(async () => {
      if (!this.#stopped) await work();
    });
  }

  #start(): void {
    if (this.#compacting) return;
    const timeline = this.#choose();
    if (timeline === undefined) return;
    this.#compacting = true;
    this.#queue(() => this.#step(timeline));
    // The next choice is made when GC and others that came meanwhile have had their turn.
    this.#queue(async () => {
      // Steps that find everything in caches would follow one another without a turn for anybody else of the process.
      await this.#context.clock.sleep(0);
      this.#compacting = false;
      this.#start();
    });
  }

  async #step(timeline: Timeline): Promise<void> {
    const {log, clock, metrics} = this.#context;
    try {
      if (!(await timeline.compactionStep())) this.#woken.delete(timeline);
      this.#failures.delete(timeline);
    } catch (error) {
      metrics.compactionFailures.inc();
      const delayMs = Math.min((this.#failures.get(timeline)?.delayMs ?? retryMsFirst / 2) * 2, retryMsMax);
      this.#failures.set(timeline, {delayMs, untilMs: clock.monotonicMs() + delayMs});
      log.warn('a step of compaction failed; trying again', {
        tenant: timeline.tenantId,
        timeline: timeline.timelineId,
        error: (error as Error).message,
        delayMs,
      });
      this.#retryTimer?.cancel();
      this.#retryTimer = clock.setTimer(retryMsFirst, () => this.#start());
    }
  }

  #choose(): Timeline | undefined {
    const now = this.#context.clock.monotonicMs();
    let best: Timeline | undefined;
    let waits = false;
    for (const timeline of this.#woken) {
      if ((this.#failures.get(timeline)?.untilMs ?? 0) > now) {
        waits = true;
        continue;
      }
      if (best === undefined || timeline.compactionDebt > best.compactionDebt) best = timeline;
    }
    if (best === undefined && waits) {
      this.#retryTimer?.cancel();
      this.#retryTimer = this.#context.clock.setTimer(retryMsFirst, () => this.#start());
    }
    return best;
  }

  #armGc(): void {
    this.#gcTimer = this.#context.clock.setTimer(this.#context.limits.gcPeriodMs, () => {
      if (this.#stopped) return;
      for (const tenant of this.#tenants())
        for (const timeline of tenant.timelines()) this.#queue(() => this.#collect(timeline));
      if (++this.#rounds % sweepEvery === 0)
        for (const tenant of this.#tenants()) this.#queue(() => this.#sweep(tenant));
      this.#queue(async () => this.#armGc());
    });
  }

  async #collect(timeline: Timeline): Promise<void> {
    try {
      timeline.releaseIdle();
      await timeline.collectGarbage();
      if (timeline.hasCompactionWork) this.wake(timeline);
    } catch (error) {
      this.#context.log.warn('history was not collected', {
        tenant: timeline.tenantId,
        timeline: timeline.timelineId,
        error: (error as Error).message,
      });
    }
  }

  async #sweep(tenant: Tenant): Promise<void> {
    try {
      const deleted = await sweepOrphans(this.#context, tenant);
      if (deleted > 0)
        this.#context.log.info('objects deleted that no index names', {tenant: tenant.tenantId, deleted});
    } catch (error) {
      this.#context.log.warn('not swept for orphans', {tenant: tenant.tenantId, error: (error as Error).message});
    }
  }
}
