/**
 * Branches that are old and that nobody has used for long are archived: the default branch and protected ones never, one with
 * children after all of them. One at a time: nothing is in a hurry here.
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {whyNot} from '#control/operations/archive-plan.ts';
import type {OperationRunner} from '#control/operations/runner.ts';
import {startSweep, type Sweep} from '#control/sweep.ts';
import {inStorage} from '#control/store/in-storage.ts';
import type {BranchTable, Store} from '#control/store/schema.ts';

/** Neon's. */
const ageSecondsDefault = 14 * 86_400;
const idleSecondsDefault = 86_400;
const sweepMsMax = 60_000;
/** After one that could not be archived; twice as long after each further time. The first may only have come before its pageserver. */
const refusedMsMin = 5_000;
const refusedMsMax = 600_000;
const archiveMsMax = 180_000;

export interface AutoArchiveConfig {
  /** Branches at least this old; -1: none, ever. Default 14 days. */
  readonly ageSeconds?: number;
  /** … that nobody has used for so long. Default 24 hours. */
  readonly idleSeconds?: number;
}

export interface AutoArchiveOptions {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly clock: Clock;
  readonly log: Log;
  readonly config: AutoArchiveConfig | undefined;
}

export class AutoArchive {
  readonly #options: AutoArchiveOptions;
  readonly #ageMs: number;
  readonly #idleMs: number;
  readonly #refused = new Map<string, {readonly times: number; readonly untilMs: number}>();
  #stopped = false;

  constructor(options: AutoArchiveOptions) {
    this.#options = options;
    this.#ageMs = (options.config?.ageSeconds ?? ageSecondsDefault) * 1000;
    this.#idleMs = (options.config?.idleSeconds ?? idleSecondsDefault) * 1000;
  }

  /** undefined: nothing is ever archived. */
  start(): Sweep | undefined {
    if (this.#ageMs < 0) return undefined;
    const {clock, log} = this.#options;
    const everyMs = Math.min(sweepMsMax, Math.max(this.#idleMs / 2, 500));
    const sweep = startSweep({clock, log, everyMs, what: 'looking for branches to archive', sweep: () => this.sweep()});
    return {
      stop: () => {
        this.#stopped = true;
        return sweep.stop();
      },
    };
  }

  async sweep(): Promise<void> {
    const {store, clock} = this.#options;
    const nowMs = clock.nowMs();
    const old = await store
      .selectFrom('branches')
      .selectAll()
      .where('state', '=', 'ready')
      // A deleted one rests, too, until it is removed.
      .where(inStorage)
      .where('is_default', '=', 0)
      .where('protected', '=', 0)
      .where('created_at', '<=', nowMs - this.#ageMs)
      // An import, a restore, being woken: all of them are use.
      .where('state_changed_at', '<=', nowMs - this.#idleMs)
      // Children before parents.
      .orderBy('created_at', 'desc')
      .execute();
    const ids = new Set(old.map((branch) => branch.id));
    for (const id of this.#refused.keys()) if (!ids.has(id)) this.#refused.delete(id);
    for (const branch of old) {
      if (this.#stopped) return;
      if (
        (this.#refused.get(branch.id)?.untilMs ?? 0) > nowMs ||
        (await this.#wasUsedSince(branch, nowMs - this.#idleMs))
      )
        continue;
      await this.#archive(branch);
    }
  }

  async #wasUsedSince(branch: BranchTable, timeMs: number): Promise<boolean> {
    const endpoints = await this.#options.store
      .selectFrom('endpoints')
      .select(['current_state', 'last_active', 'started_at', 'suspended_at'])
      .where('branch_id', '=', branch.id)
      .execute();
    return endpoints.some(
      (e) =>
        e.current_state === 'active' ||
        Math.max(e.last_active ?? 0, e.started_at ?? 0, e.current_state === 'idle' ? (e.suspended_at ?? 0) : 0) >
          timeMs,
    );
  }

  async #archive(branch: BranchTable): Promise<void> {
    const {store, runner, clock, log} = this.#options;
    const locks = [`branch:${branch.id}`];
    const ids = await store.transaction().execute(async (trx) => {
      if (await runner.holder(trx, branch.project_id, [...locks, `project:${branch.project_id}`])) return [];
      if ((await whyNot(trx, branch.id)) !== undefined) return [];
      return runner.submit(trx, [
        {
          projectId: branch.project_id,
          branchId: branch.id,
          action: 'timeline_archive',
          kind: 'archive_branch',
          locks,
        },
      ]);
    });
    if (ids.length === 0) return;
    await runner.kick();
    await runner.wait(ids, archiveMsMax);
    const {state} = await store
      .selectFrom('branches')
      .select('state')
      .where('id', '=', branch.id)
      .executeTakeFirstOrThrow();
    if (state === 'archived') log.info('branch archived', {project: branch.project_id, branch: branch.id});
    else this.#refuse(branch.id, clock.nowMs());
  }

  #refuse(branchId: string, nowMs: number): void {
    const times = (this.#refused.get(branchId)?.times ?? 0) + 1;
    this.#refused.set(branchId, {times, untilMs: nowMs + Math.min(refusedMsMax, refusedMsMin * 2 ** (times - 1))});
  }
}
