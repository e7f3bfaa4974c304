/** What plans work with, and the effects that several of them have. */
import {sql} from 'kysely';
import {type Clock, systemClock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Bootstrap} from '#control/bootstrap.ts';
import {nextGeneration} from '#control/generations.ts';
import type {ComputeLauncher} from '#control/launcher.ts';
import type {Step} from '#control/operations/plan.ts';
import type {PasswordVault} from '#control/scram.ts';
import {allNodes, readSafekeeperSet, type SafekeeperSet} from '#control/safekeeper-set.ts';
import type {StorageClients} from '#control/storage-client.ts';
import type {BranchTable, ProjectTable, Store, StoreTransaction} from '#control/store/schema.ts';

export interface PlanContext {
  readonly store: Store;
  readonly storage: StorageClients;
  readonly launcher: ComputeLauncher;
  readonly bootstrap: Bootstrap;
  readonly vault: PasswordVault;
  readonly clock: Clock;
  readonly log: Log;
  /** A token for one compute: pageserver, safekeepers, and control for the next token. */
  readonly mintComputeToken: (tenantId: string, timelineId: string) => Promise<string>;
  readonly tokenRefreshUrl: string;
}

/** PG_VERSION_NUM of a major version's first release: what storage compares majors by. */
export function pgVersionNumber(major: number): number {
  return major * 10_000;
}

export interface Where {
  readonly project: ProjectTable;
  readonly branch: BranchTable;
  readonly pageserverId: number;
  readonly generation: number;
  readonly safekeeperSet: SafekeeperSet;
  /** Every node that may hold something of the timeline: while they are being changed, the old and the new ones. */
  readonly safekeepers: readonly number[];
}

export async function whereIs(store: Store, branchId: string | null): Promise<Where> {
  const branch = await store
    .selectFrom('branches')
    .selectAll()
    .where('id', '=', branchId ?? '')
    .executeTakeFirstOrThrow();
  const project = await store
    .selectFrom('projects')
    .selectAll()
    .where('id', '=', branch.project_id)
    .executeTakeFirstOrThrow();
  const attachment = await store
    .selectFrom('attachments')
    .selectAll()
    .where('tenant_id', '=', project.tenant_id)
    .executeTakeFirstOrThrow();
  const safekeeperSet = readSafekeeperSet(branch.safekeepers);
  return {
    project,
    branch,
    pageserverId: attachment.pageserver_id,
    generation: attachment.generation,
    safekeeperSet,
    safekeepers: allNodes(safekeeperSet),
  };
}

const attachAttemptsMax = 5;

/**
 * The pageserver holds the tenant under its present generation. A pageserver that re-attaches at the same moment raises the
 * generation between our reading and our asking; then the newer one is asked for.
 */
export async function attach(
  store: Store,
  storage: StorageClients,
  branchId: string | null,
  clock: Clock = systemClock,
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const {project, pageserverId, generation} = await whereIs(store, branchId);
    try {
      await storage.pageserver(pageserverId).attachTenant(project.tenant_id, generation);
      return;
    } catch (error) {
      if (attempt === attachAttemptsMax) throw error;
      const now = await whereIs(store, branchId);
      if (now.generation !== generation) continue;
      // Ours is older than what the pageserver has, and nobody here has raised it: we were restored from a backup.
      const held = await storage.pageserver(pageserverId).tenantGeneration(project.tenant_id);
      if (held === undefined || held <= generation) throw error;
      await store
        .updateTable('attachments')
        .set({generation: nextGeneration(held, clock)})
        .where('tenant_id', '=', project.tenant_id)
        .where('generation', '=', generation)
        .execute();
    }
  }
}

export async function stopComputes({store, launcher}: PlanContext, branchIds: readonly string[]): Promise<void> {
  const endpoints = await store.selectFrom('endpoints').select('id').where('branch_id', 'in', branchIds).execute();
  for (const {id} of endpoints) await launcher.stop(id);
}

/** The step of a plan that puts another timeline into its branch's place. */
export function stopComputesStep(context: PlanContext): Step {
  return {
    name: 'stop-computes',
    async effect({operation}) {
      await stopComputes(context, [operation.branch_id!]);
      return undefined;
    },
    async record(trx, {operation, nowMs}) {
      await trx
        .updateTable('endpoints')
        .set({current_state: 'idle', suspended_at: nowMs, updated_at: nowMs})
        .where('branch_id', '=', operation.branch_id!)
        .where('current_state', '=', 'active')
        .execute();
    },
  };
}

export async function deleteTimelines({store, storage}: PlanContext, where: Where): Promise<void> {
  const {tenant_id: tenantId} = where.project;
  const {timeline_id: timelineId} = where.branch;
  const pageserver = storage.pageserver(where.pageserverId);
  // "Not found" must mean that the timeline is gone, not that the pageserver has just started and holds nothing yet.
  await attach(store, storage, where.branch.id);
  await pageserver.deleteTimeline(tenantId, timelineId);
  await Promise.all(where.safekeepers.map((nodeId) => storage.safekeeper(nodeId).deleteTimeline(tenantId, timelineId)));
}

export async function setIdle(trx: StoreTransaction, endpointId: string, nowMs: number): Promise<void> {
  await trx
    .updateTable('endpoints')
    .set((e) => ({
      current_state: 'idle' as const,
      pending_state: null,
      suspended_at: nowMs,
      updated_at: nowMs,
      // What ran counts; a start that failed has run for nobody.
      active_ms: sql<number>`active_ms + case when ${e.ref('current_state')} = 'active' then ${nowMs} - ${e.ref('started_at')} else 0 end`,
    }))
    .where('id', '=', endpointId)
    .execute();
}
