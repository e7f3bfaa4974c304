/**
 * Scale to zero: an endpoint that nobody has used for its suspend_timeout_seconds is suspended, gracefully, by an operation like
 * any other. What counts as use is the agent's to say (compute/activity.ts). The agent looks once more before it stops:
 * somebody who came in between is served, and the operation ends as `skipped`.
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {ComputeLauncher} from '#control/launcher.ts';
import type {OperationRunner} from '#control/operations/runner.ts';
import {forgetStaticEndpoints} from '#control/static-endpoints.ts';
import {startSweep, type Sweep} from '#control/sweep.ts';
import type {Store} from '#control/store/schema.ts';

const sweepEveryMs = 1000;
/** An endpoint is asked when its time may have come, and this often anyway: the API shows when it was last active. */
const askEveryMs = 60_000;
const askAgainMs = 5_000;

export interface AutosuspendOptions {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly launcher: ComputeLauncher;
  readonly clock: Clock;
  readonly log: Log;
  /** What suspend_timeout_seconds 0 means. */
  readonly defaultSeconds: number;
}

export class Autosuspend {
  readonly #options: AutosuspendOptions;
  /** Endpoint id → what its agent said last. */
  readonly #known = new Map<string, {startedAt: number | null; lastActiveMs: number; askAtMs: number}>();

  constructor(options: AutosuspendOptions) {
    this.#options = options;
  }

  start(): Sweep {
    const {clock, log} = this.#options;
    return startSweep({
      clock,
      log,
      everyMs: sweepEveryMs,
      what: 'looking for idle endpoints',
      sweep: () => this.sweep(),
    });
  }

  async sweep(): Promise<void> {
    const {store, clock, defaultSeconds} = this.#options;
    const endpoints = await store
      .selectFrom('endpoints')
      .select(['id', 'project_id', 'branch_id', 'suspend_timeout_seconds', 'started_at', 'last_active'])
      .where('current_state', '=', 'active')
      .where('deleted_at', 'is', null)
      .execute();
    const active = new Set(endpoints.map((e) => e.id));
    for (const id of this.#known.keys()) if (!active.has(id)) this.#known.delete(id);
    const nowMs = clock.nowMs();
    await forgetStaticEndpoints(store, nowMs);
    await Promise.all(
      endpoints.map(async (endpoint) => {
        const timeoutSeconds =
          endpoint.suspend_timeout_seconds === 0 ? defaultSeconds : endpoint.suspend_timeout_seconds;
        const timeoutMs = timeoutSeconds < 0 ? Infinity : timeoutSeconds * 1000;
        let known = this.#known.get(endpoint.id);
        if (known?.startedAt !== endpoint.started_at) known = undefined;
        if (known && nowMs < known.askAtMs && nowMs < known.lastActiveMs + timeoutMs) return;
        const lastActiveMs = await this.#ask(endpoint.id);
        if (lastActiveMs === undefined) {
          this.#known.set(endpoint.id, {
            startedAt: endpoint.started_at,
            lastActiveMs: nowMs,
            askAtMs: nowMs + askAgainMs,
          });
          return;
        }
        this.#known.set(endpoint.id, {startedAt: endpoint.started_at, lastActiveMs, askAtMs: nowMs + askEveryMs});
        if (lastActiveMs > (endpoint.last_active ?? 0))
          await store
            .updateTable('endpoints')
            .set({last_active: Math.round(lastActiveMs)})
            .where('id', '=', endpoint.id)
            .execute();
        if (nowMs >= lastActiveMs + timeoutMs) await this.#suspend(endpoint, lastActiveMs);
      }),
    );
  }

  async #ask(endpointId: string): Promise<number | undefined> {
    try {
      return (await this.#options.launcher.report(endpointId))?.lastActiveMs;
    } catch (error) {
      this.#options.log.warn('a compute does not say when it was last active', {endpoint: endpointId, error});
      return undefined;
    }
  }

  async #suspend(
    endpoint: {readonly id: string; readonly project_id: string; readonly branch_id: string},
    idleSinceMs: number,
  ): Promise<void> {
    const {store, runner, log} = this.#options;
    const locks = [`endpoint:${endpoint.id}`];
    const submitted = await store.transaction().execute(async (trx) => {
      if (await runner.holder(trx, endpoint.project_id, [...locks, `project:${endpoint.project_id}`])) return [];
      return runner.submit(trx, [
        {
          projectId: endpoint.project_id,
          branchId: endpoint.branch_id,
          endpointId: endpoint.id,
          action: 'suspend_compute',
          kind: 'suspend_compute',
          locks,
          state: {idleSinceMs},
        },
      ]);
    });
    if (submitted.length === 0) return;
    log.info('suspending an idle endpoint', {endpoint: endpoint.id});
    await runner.kick();
  }
}
