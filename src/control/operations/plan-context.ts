/** What plans work with, and the effects that several of them have. */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import type {Bootstrap} from '#control/bootstrap.ts';
import type {ComputeLauncher} from '#control/launcher.ts';
import type {Step} from '#control/operations/plan.ts';
import type {PasswordVault} from '#control/scram.ts';
import {allNodes, readSafekeeperSet, type SafekeeperSet} from '#control/safekeeper-set.ts';
import type {StorageClients} from '#control/storage-client.ts';
import {TenantPages, type TenantPagesContext} from '#control/tenant-pages.ts';
import {stopped} from '#control/store/endpoint-stopped.ts';
import type {BranchTable, ProjectTable, Store, StoreTransaction} from '#control/store/schema.ts';

export interface PlanContext {
  readonly store: Store;
  readonly storage: StorageClients;
  readonly launcher: ComputeLauncher;
  readonly bootstrap: Bootstrap;
  readonly vault: PasswordVault;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
  /** A token for one compute: pageserver, safekeepers, and control for the next token. */
  readonly mintComputeToken: (tenantId: string, timelineId: string) => Promise<string>;
  readonly tokenRefreshUrl: string;
  /** Where a compute asks which pageserver has its pages. */
  readonly locationsUrl: (tenantId: string) => string;
}

/** PG_VERSION_NUM of a major version's first release: what storage compares majors by. */
export function pgVersionNumber(major: number): number {
  return major * 10_000;
}

export interface Where {
  readonly project: ProjectTable;
  readonly branch: BranchTable;
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
  const safekeeperSet = readSafekeeperSet(branch.safekeepers);
  return {
    project,
    branch,
    safekeeperSet,
    safekeepers: allNodes(safekeeperSet),
  };
}

/** The tenant of a branch, at its pageservers. */
export async function pagesOf(context: TenantPagesContext, branchId: string | null): Promise<TenantPages> {
  return new TenantPages(context, (await whereIs(context.store, branchId)).project.tenant_id);
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
        .set(stopped(nowMs))
        .where('branch_id', '=', operation.branch_id!)
        .where('current_state', '=', 'active')
        .execute();
    },
  };
}

/** After the majority has answered. */
const stragglerMs = 2000;

/**
 * The timeline leaves its pageserver and its safekeepers. When most of those have deleted it, it cannot come back to life: one that is
 * down is noted, and told when it is there again (safekeeper-farewells.ts).
 */
export async function deleteTimelines(context: PlanContext, where: Where): Promise<void> {
  const {store, storage, clock} = context;
  const {tenant_id: tenantId} = where.project;
  const {timeline_id: timelineId} = where.branch;
  const pages = new TenantPages(context, tenantId);
  // "Not found" must mean that the timeline is gone, not that the pageserver has just started and holds nothing yet.
  await pages.attach();
  await pages.deleteTimeline(timelineId);
  const {members, newMembers} = where.safekeeperSet;
  const missing = new Set(where.safekeepers);
  const isMajorityDone = (): boolean =>
    [members, newMembers].every(
      (ids) => ids.length === 0 || ids.filter((id) => missing.has(id)).length < ids.length / 2,
    );
  const failures: unknown[] = [];
  const enough = Promise.withResolvers<void>();
  const all = Promise.all(
    where.safekeepers.map(async (nodeId) => {
      try {
        await storage.safekeeper(nodeId).deleteTimeline(tenantId, timelineId);
        missing.delete(nodeId);
        if (isMajorityDone()) enough.resolve();
      } catch (error) {
        failures.push(error);
      }
    }),
  );
  // A dead node's connection may hang.
  await Promise.race([all, enough.promise.then(() => Promise.race([all, clock.sleep(stragglerMs)]))]);
  if (!isMajorityDone()) throw failures[0];
  for (const nodeId of missing) await oweDeletion(store, nodeId, tenantId, timelineId);
  // A change of safekeepers does not wait for a deletion. From here on it finds no timeline at the pageserver, and clears up itself.
  const now = await whereIs(store, where.branch.id);
  const late = now.safekeepers.filter((id) => !where.safekeepers.includes(id));
  if (late.length > 0) throw new Error(`branch ${where.branch.id} is on safekeeper ${late.join(', ')} too meanwhile`);
}

/** A safekeeper that is down has a timeline that is gone. */
export async function oweDeletion(store: Store, nodeId: number, tenantId: string, timelineId: string): Promise<void> {
  await store
    .insertInto('safekeeper_debts')
    .values({node_id: nodeId, tenant_id: tenantId, timeline_id: timelineId})
    .onConflict((c) => c.doNothing())
    .execute();
}

export async function setIdle(trx: StoreTransaction, endpointId: string, nowMs: number): Promise<void> {
  await trx
    .updateTable('endpoints')
    .set((e) => ({...stopped(nowMs)(e), pending_state: null}))
    .where('id', '=', endpointId)
    .execute();
}
