/**
 * Endpoints at work: waking them, and keeping what the database says true to what runs.
 *
 *        start_compute            suspend_compute
 *   idle ────────────► active ───────────────────► idle
 *                        └──── the compute ended by itself ──► idle (the next connection wakes it)
 *
 * Any number of callers may ask for one endpoint at once: they share one start (a thundering herd starts one compute).
 */
import type {Log} from '#runtime/log.ts';
import type {Clock} from '#runtime/clock.ts';
import {apiErrors} from '#control/api/errors.ts';
import type {ComputeLauncher, ComputeReport, RunningCompute} from '#control/launcher.ts';
import type {OperationRunner} from '#control/operations/runner.ts';
import {stopped} from '#control/store/endpoint-stopped.ts';
import type {Store} from '#control/store/schema.ts';

const wakeMsMax = 55_000;

export class Endpoints {
  readonly #store: Store;
  readonly #runner: OperationRunner;
  readonly #launcher: ComputeLauncher;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #waking = new Map<string, Promise<RunningCompute>>();

  constructor(options: {store: Store; runner: OperationRunner; launcher: ComputeLauncher; clock: Clock; log: Log}) {
    this.#store = options.store;
    this.#runner = options.runner;
    this.#launcher = options.launcher;
    this.#clock = options.clock;
    this.#log = options.log;
    options.launcher.onExit = (endpointId) => {
      this.#noteExit(endpointId).catch((error: unknown) =>
        this.#log.error('could not note the end of a compute', {endpoint: endpointId, error}),
      );
    };
  }

  /** After a start of the control plane: endpoints that were active and whose compute is gone are idle. */
  async reconcile(): Promise<void> {
    const active = await this.#store
      .selectFrom('endpoints')
      .select('id')
      .where('current_state', '=', 'active')
      .where('deleted_at', 'is', null)
      .execute();
    for (const {id} of active) if ((await this.#launcher.find(id)) === undefined) await this.#noteExit(id);
  }

  /** Address of the endpoint's compute, which is started when it is idle. ApiError when that cannot be. */
  wake(endpointId: string): Promise<RunningCompute> {
    const running = this.#waking.get(endpointId);
    if (running) return running;
    const waking = this.#wake(endpointId).finally(() => this.#waking.delete(endpointId));
    this.#waking.set(endpointId, waking);
    return waking;
  }

  /** What the compute says about itself; undefined when it does not run, or does not answer. */
  report(endpointId: string): Promise<ComputeReport | undefined> {
    return this.#launcher.report(endpointId).catch(() => undefined);
  }

  async #wake(endpointId: string): Promise<RunningCompute> {
    const deadline = this.#clock.monotonicMs() + wakeMsMax;
    let lastError: string | undefined;
    for (let tries = 0; this.#clock.monotonicMs() < deadline && tries < 3;) {
      const endpoint = await this.#store
        .selectFrom('endpoints')
        .selectAll()
        .where('id', '=', endpointId)
        .where('deleted_at', 'is', null)
        .executeTakeFirst();
      if (!endpoint) throw apiErrors.notFound('endpoint', endpointId);
      if (endpoint.disabled === 1) throw apiErrors.endpointDisabled(endpointId);
      // An operation under way first: a suspend ends before a start, a start is shared.
      const holder = await this.#runner.holder(this.#store, endpoint.project_id, [`endpoint:${endpointId}`]);
      if (holder) {
        await this.#runner.wait([holder.id], Math.max(0, deadline - this.#clock.monotonicMs()));
        lastError =
          (await this.#store.selectFrom('operations').select('error').where('id', '=', holder.id).executeTakeFirst())
            ?.error ?? lastError;
        if (holder.kind === 'start_compute') tries++;
        const compute = await this.#launcher.find(endpointId);
        if (compute && holder.kind === 'start_compute') return compute;
        continue;
      }
      const compute = endpoint.current_state === 'active' ? await this.#launcher.find(endpointId) : undefined;
      if (compute) return compute;
      await this.#submitStart(endpoint.project_id, endpoint.branch_id, endpointId);
    }
    throw apiErrors.notReady(
      `endpoint ${endpointId} could not be started${lastError === undefined ? '' : `: ${lastError}`}`,
    );
  }

  async #submitStart(projectId: string, branchId: string, endpointId: string): Promise<void> {
    await this.#store.transaction().execute(async (trx) => {
      const locks = [`endpoint:${endpointId}`, `branch:${branchId}`];
      if (await this.#runner.holder(trx, projectId, locks.slice(0, 1))) return;
      await trx
        .updateTable('endpoints')
        .set({pending_state: 'active', updated_at: this.#clock.nowMs()})
        .where('id', '=', endpointId)
        .execute();
      await this.#runner.submit(trx, [
        {projectId, branchId, endpointId, action: 'start_compute', kind: 'start_compute', locks},
      ]);
    });
    await this.#runner.kick();
  }

  async #noteExit(endpointId: string): Promise<void> {
    const nowMs = this.#clock.nowMs();
    const changed = await this.#store
      .updateTable('endpoints')
      .set(stopped(nowMs))
      .where('id', '=', endpointId)
      .where('current_state', '=', 'active')
      .executeTakeFirst();
    if (changed.numUpdatedRows > 0n)
      this.#log.warn('the compute ended by itself; its endpoint is idle until the next connection', {
        endpoint: endpointId,
      });
  }
}
