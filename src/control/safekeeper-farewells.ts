/**
 * Looks now and then for safekeepers that were not there when they were replaced, or when a branch was deleted, and are there again: what
 * they still have is no copy of anything any more, and goes (operations/exclude-safekeeper-plan.ts).
 */
import type {Clock, Timer} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {ReplaceState} from '#control/operations/replace-safekeeper-plan.ts';
import type {OperationRunner} from '#control/operations/runner.ts';
import type {StorageClients} from '#control/storage-client.ts';
import type {Store} from '#control/store/schema.ts';

const sweepMs = 15_000;
const excludeMsMax = 30_000;

export interface SafekeeperFarewellsOptions {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly storage: StorageClients;
  readonly clock: Clock;
  readonly log: Log;
}

export class SafekeeperFarewells {
  readonly #options: SafekeeperFarewellsOptions;
  #timer: Timer | undefined;
  #sweeping = Promise.resolve();
  #stopped = false;

  constructor(options: SafekeeperFarewellsOptions) {
    this.#options = options;
  }

  start(): void {
    if (this.#stopped) return;
    const {clock, log} = this.#options;
    this.#timer = clock.setTimer(sweepMs, () => {
      this.#sweeping = this.sweep()
        .catch((error: unknown) => log.error('replaced safekeepers could not be looked for', {error}))
        .then(() => this.start());
    });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    await this.#sweeping;
  }

  async sweep(): Promise<void> {
    /** Asked once each: one that is down holds up nobody. */
    const silent = new Set<number>();
    await this.#payDebts(silent);
    await this.#excludeReplaced(silent);
  }

  /** Timelines that were deleted while a safekeeper was down. Their ids are never used again: no lock is needed. */
  async #payDebts(silent: Set<number>): Promise<void> {
    const {store, storage, log} = this.#options;
    for (const debt of await store.selectFrom('safekeeper_debts').selectAll().execute()) {
      const {node_id: nodeId, tenant_id: tenantId, timeline_id: timelineId} = debt;
      if (this.#stopped) return;
      if (silent.has(nodeId)) continue;
      try {
        await storage.safekeeper(nodeId).deleteTimeline(tenantId, timelineId);
      } catch {
        silent.add(nodeId);
        continue;
      }
      await store
        .deleteFrom('safekeeper_debts')
        .where('node_id', '=', nodeId)
        .where('timeline_id', '=', timelineId)
        .execute();
      log.info('a safekeeper is back; a branch that was deleted meanwhile goes there too', {
        safekeeper: nodeId,
        tenant: tenantId,
        timeline: timelineId,
      });
    }
  }

  async #excludeReplaced(silent: Set<number>): Promise<void> {
    const {store, runner, storage, log} = this.#options;
    const rows = await store
      .selectFrom('operations')
      .select(['id', 'project_id', 'branch_id', 'state'])
      .where('kind', '=', 'replace_safekeeper')
      .where('status', '=', 'finished')
      .where('state', 'like', '%"unreached":[_%')
      .where('state', 'not like', '%"unreached":[]%')
      .orderBy('seq')
      .execute();
    for (const row of rows) {
      const {change, tenantId, timelineId, unreached} = JSON.parse(row.state) as ReplaceState & {
        readonly unreached: readonly number[];
      };
      // A member that was away learns from its peers what has changed.
      for (const nodeId of unreached.filter((id) => !change.final.members.some((m) => m.nodeId === id))) {
        if (this.#stopped) return;
        if (silent.has(nodeId)) continue;
        try {
          await storage.safekeeper(nodeId).status(tenantId, timelineId);
        } catch {
          silent.add(nodeId);
          continue;
        }
        const ids = await store.transaction().execute((trx) =>
          runner.submit(trx, [
            {
              projectId: row.project_id,
              ...(row.branch_id === null ? {} : {branchId: row.branch_id}),
              action: 'exclude_safekeeper',
              kind: 'exclude_safekeeper',
              locks: [`safekeepers:${row.branch_id}`],
              state: {nodeId, replacedBy: row.id},
            },
          ]),
        );
        log.info('a replaced safekeeper is back; what it has of the branch goes', {
          safekeeper: nodeId,
          branch: row.branch_id,
        });
        await runner.kick();
        await runner.wait(ids, excludeMsMax);
      }
    }
  }
}
