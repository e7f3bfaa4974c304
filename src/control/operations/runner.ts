/**
 * Carries out operations: takes them from the database, lets the scheduler say which may run, and walks through their plans.
 * All that matters is in the table `operations`: a runner that is killed at any point leaves it to the next one (invariant 32).
 */
import type {Clock, Timer} from '#runtime/clock.ts';
import {newUuid} from '#runtime/crypto.ts';
import type {Log} from '#runtime/log.ts';
import type {OperationStatus, OperationTable, Store, StoreTransaction} from '#control/store/schema.ts';
import {type OperationState, PermanentError, type Plan, retryDelayMs, SkippedError} from '#control/operations/plan.ts';
import {OperationScheduler} from '#control/operations/scheduler.ts';

export interface OperationDraft {
  readonly projectId: string;
  readonly branchId?: string;
  readonly endpointId?: string;
  /** Neon's word for it, for people. */
  readonly action: string;
  readonly kind: string;
  readonly locks: readonly string[];
  readonly state?: OperationState;
}

export interface RunnerOptions {
  readonly store: Store;
  readonly clock: Clock;
  readonly log: Log;
  readonly plans: readonly Plan[];
  /** Called between any two actions; a test stops the world here by never resolving. */
  readonly checkpoint?: (point: string) => Promise<void>;
}

const unfinished: readonly OperationStatus[] = ['scheduling', 'running'];

export class OperationRunner {
  readonly #options: RunnerOptions;
  readonly #plans: ReadonlyMap<string, Plan>;
  readonly #scheduler = new OperationScheduler();
  readonly #waiting = new Map<string, (() => void)[]>();
  readonly #retries = new Map<string, Timer>();
  readonly #active = new Set<Promise<void>>();
  #stopped = false;

  constructor(options: RunnerOptions) {
    this.#options = options;
    this.#plans = new Map(options.plans.map((plan) => [plan.kind, plan]));
  }

  /** Inserts operations in the caller's transaction. Call `kick` once it is committed. */
  async submit(trx: StoreTransaction, drafts: readonly OperationDraft[]): Promise<string[]> {
    const ids: string[] = [];
    const last = await trx
      .selectFrom('operations')
      .select((e) => e.fn.max('seq').as('seq'))
      .executeTakeFirst();
    let seq = Number(last?.seq ?? 0);
    const nowMs = this.#options.clock.nowMs();
    for (const draft of drafts) {
      const id = newUuid();
      ids.push(id);
      await trx
        .insertInto('operations')
        .values({
          id,
          seq: ++seq,
          project_id: draft.projectId,
          branch_id: draft.branchId ?? null,
          endpoint_id: draft.endpointId ?? null,
          action: draft.action,
          kind: draft.kind,
          locks: JSON.stringify(draft.locks),
          status: 'scheduling',
          step: 0,
          state: JSON.stringify(draft.state ?? {}),
          failures_count: 0,
          error: null,
          retry_at: null,
          created_at: nowMs,
          updated_at: nowMs,
          finished_at: null,
        })
        .execute();
    }
    return ids;
  }

  /** The unfinished operation that holds one of these locks, if one does. */
  async holder(
    trx: StoreTransaction | Store,
    projectId: string,
    locks: readonly string[],
  ): Promise<OperationTable | undefined> {
    const rows = await trx
      .selectFrom('operations')
      .selectAll()
      .where('project_id', '=', projectId)
      .where('status', 'in', unfinished)
      .orderBy('seq')
      .execute();
    return rows.find((row) => (JSON.parse(row.locks) as string[]).some((lock) => locks.includes(lock)));
  }

  /** Takes up everything unfinished that the database has: after a start, and after each submit. */
  async kick(): Promise<void> {
    const rows = await this.#options.store
      .selectFrom('operations')
      .select(['id', 'seq', 'locks'])
      .where('status', 'in', unfinished)
      .orderBy('seq')
      .execute();
    this.#run(
      this.#scheduler.submit(rows.map(({id, seq, locks}) => ({id, seq, locks: JSON.parse(locks) as string[]}))),
    );
  }

  /** Resolves when all have ended, or after the time. */
  async wait(ids: readonly string[], waitMsMax: number): Promise<void> {
    const pending = ids.filter((id) => this.#scheduler.knows(id));
    if (pending.length === 0) return;
    const {promise: timeout, resolve} = Promise.withResolvers<void>();
    const timer = this.#options.clock.setTimer(waitMsMax, resolve);
    const all = pending.map(
      (id) => new Promise<void>((done) => this.#waiting.set(id, [...(this.#waiting.get(id) ?? []), done])),
    );
    await Promise.race([timeout, Promise.all(all)]);
    timer.cancel();
  }

  /** Nothing new starts; resolves when no step is under way. What is unfinished goes on at the next start. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const timer of this.#retries.values()) timer.cancel();
    await Promise.allSettled(this.#active);
  }

  #run(ids: readonly string[]): void {
    if (this.#stopped) return;
    for (const id of ids) {
      const active = this.#walk(id)
        .catch((error: unknown) => {
          // The database itself failed: the operation stays as it is and is tried again.
          this.#options.log.error('an operation could not be carried on', {operation: id, error});
          return this.#options.clock.nowMs() + retryDelayMs(6);
        })
        .then((retryAtMs) => {
          this.#active.delete(active);
          if (retryAtMs === undefined) this.#ended(id);
          else this.#retryAt(id, retryAtMs);
        });
      this.#active.add(active);
    }
  }

  #ended(id: string): void {
    const startable = this.#scheduler.finish(id);
    // A failure may have submitted what cleans up behind it.
    this.#kickSoon();
    for (const done of this.#waiting.get(id) ?? []) done();
    this.#waiting.delete(id);
    this.#run(startable);
  }

  #kickSoon(): void {
    if (this.#stopped) return;
    const active = this.kick()
      .catch((error: unknown) => this.#options.log.error('operations could not be looked for', {error}))
      .then(() => void this.#active.delete(active));
    this.#active.add(active);
  }

  #retryAt(id: string, timeMs: number): void {
    if (this.#stopped) return;
    const {clock} = this.#options;
    this.#retries.set(
      id,
      clock.setTimer(Math.max(0, timeMs - clock.nowMs()), () => {
        this.#retries.delete(id);
        this.#run([id]);
      }),
    );
  }

  /** Goes through the remaining steps; answers when to try again, or undefined when the operation has ended. */
  async #walk(id: string): Promise<number | undefined> {
    const {store, clock, checkpoint} = this.#options;
    for (;;) {
      const operation = await store.selectFrom('operations').selectAll().where('id', '=', id).executeTakeFirstOrThrow();
      if (!unfinished.includes(operation.status)) return undefined;
      if (this.#stopped) return clock.nowMs();
      const plan = this.#plans.get(operation.kind);
      const step = plan?.steps[operation.step];
      if (!plan || !step)
        throw new Error(
          `operation ${id} (${operation.kind}) has no step ${operation.step}: the database is of a newer version`,
        );
      const state = JSON.parse(operation.state) as OperationState;
      try {
        await checkpoint?.(`${operation.kind}.${step.name}: before`);
        const learned = await step.effect?.({operation, state});
        await checkpoint?.(`${operation.kind}.${step.name}: done, not recorded`);
        await this.#record(operation, plan, {...state, ...learned});
      } catch (error) {
        const retryAtMs = await this.#failed(operation, plan, state, error as Error);
        if (retryAtMs !== undefined) return retryAtMs;
      }
    }
  }

  async #record(operation: OperationTable, plan: Plan, state: OperationState): Promise<void> {
    const {store, clock} = this.#options;
    const step = plan.steps[operation.step];
    const isLast = operation.step + 1 === plan.steps.length;
    const nowMs = clock.nowMs();
    await store.transaction().execute(async (trx) => {
      await step?.record?.(trx, {operation, state, nowMs});
      await this.submit(trx, step?.follow?.(state) ?? []);
      await trx
        .updateTable('operations')
        .set({
          step: operation.step + 1,
          state: JSON.stringify(state),
          status: isLast ? 'finished' : 'running',
          updated_at: nowMs,
          error: null,
          retry_at: null,
          ...(isLast ? {finished_at: nowMs} : {}),
        })
        .where('id', '=', operation.id)
        .execute();
    });
  }

  /** Answers when to try again; undefined when the operation was given up. */
  async #failed(
    operation: OperationTable,
    plan: Plan,
    state: OperationState,
    error: Error,
  ): Promise<number | undefined> {
    const {store, clock, log} = this.#options;
    const nowMs = clock.nowMs();
    const failures = operation.failures_count + 1;
    const fields = {
      operation: operation.id,
      kind: operation.kind,
      step: plan.steps[operation.step]?.name,
      failures,
      error: error.message,
    };
    if (error instanceof SkippedError) {
      await store
        .updateTable('operations')
        .set({status: 'skipped', updated_at: nowMs, finished_at: nowMs})
        .where('id', '=', operation.id)
        .execute();
      return undefined;
    }
    if (error instanceof PermanentError || (plan.failuresMax !== undefined && failures >= plan.failuresMax)) {
      log.error('operation failed', fields);
      await store.transaction().execute(async (trx) => {
        await plan.onFailed?.(trx, {operation, state, nowMs, error: error.message});
        await this.submit(trx, plan.cleanUp?.(operation) ?? []);
        await trx
          .updateTable('operations')
          .set({
            status: 'failed',
            failures_count: failures,
            error: error.message,
            updated_at: nowMs,
            finished_at: nowMs,
          })
          .where('id', '=', operation.id)
          .execute();
      });
      return undefined;
    }
    log.warn('a step failed and will be tried again', fields);
    const retryAtMs = nowMs + retryDelayMs(failures);
    await store
      .updateTable('operations')
      .set({status: 'running', failures_count: failures, error: error.message, retry_at: retryAtMs, updated_at: nowMs})
      .where('id', '=', operation.id)
      .execute();
    return retryAtMs;
  }
}
