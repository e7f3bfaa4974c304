/**
 * Archiving a branch: its timeline leaves the pageserver's memory, and what is left of its WAL leaves the safekeepers' disks by
 * itself. Nothing moves: all of it is in the object store already. The next start of an endpoint wakes it (wakeBranch).
 *
 * An attempt that fails is not repeated but skipped: nobody waits for it, and everybody waits for its locks. Whoever finds the
 * timeline asleep wakes it, whatever the table says.
 */
import {readCommittedPosition, waitForNow} from '#control/operations/branch-point.ts';
import {type PlanContext, whereIs} from '#control/operations/plan-context.ts';
import {type Plan, SkippedError} from '#control/operations/plan.ts';
import {safekeeperEffects} from '#control/operations/safekeeper-effects.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {inStorage, isInStorage} from '#control/store/in-storage.ts';
import type {Store, StoreTransaction} from '#control/store/schema.ts';

export function archiveBranchPlan(context: PlanContext): Plan {
  const {store, storage, clock, log} = context;
  return {
    kind: 'archive_branch',
    steps: [
      {
        name: 'archive',
        async effect({operation}) {
          const branchId = operation.branch_id!;
          const reason = await whyNot(store, branchId);
          if (reason !== undefined) throw new SkippedError(reason);
          const {project, branch, safekeeperSet} = await whereIs(store, branchId);
          const [tenantId, timelineId] = [project.tenant_id, branch.timeline_id];
          try {
            const pages = new TenantPages(context, tenantId);
            await pages.attach();
            const position = await readCommittedPosition(storage, safekeeperSet, tenantId, timelineId);
            const lsn = await waitForNow({pages, clock, position, timelineId});
            await pages.archiveTimeline(timelineId, lsn);
          } catch (error) {
            log.warn('a branch is not archived', {branch: branchId, error});
            await wakeBranch(context, branchId).catch(() => {});
            throw new SkippedError((error as Error).message);
          }
          return undefined;
        },
        async record(trx, {operation, nowMs}) {
          await trx
            .updateTable('branches')
            .set({state: 'archived', state_changed_at: nowMs, updated_at: nowMs})
            .where('id', '=', operation.branch_id!)
            .execute();
        },
      },
    ],
  };
}

/** Why the branch cannot be archived now, or undefined. */
export async function whyNot(store: Store | StoreTransaction, branchId: string): Promise<string | undefined> {
  const branch = await store.selectFrom('branches').selectAll().where('id', '=', branchId).executeTakeFirstOrThrow();
  if (!isInStorage(branch) || branch.state !== 'ready') return `the branch is not ready (${branch.state})`;
  if (branch.is_default === 1) return 'the default branch is not archived';
  if (branch.protected === 1) return 'a protected branch is not archived';
  const endpoint = await store
    .selectFrom('endpoints')
    .select('id')
    .where('branch_id', '=', branchId)
    .where('deleted_at', 'is', null)
    .where((e) => e.or([e('current_state', '=', 'active'), e('pending_state', 'is not', null)]))
    .executeTakeFirst();
  if (endpoint) return `its endpoint ${endpoint.id} is active`;
  const child = await store
    .selectFrom('branches')
    .select('id')
    .where('parent_id', '=', branchId)
    .where(inStorage)
    .where('state', '!=', 'archived')
    .executeTakeFirst();
  return child && `its child ${child.id} is not archived`;
}

/** The branch can be read and branched from, and its ancestors can. Repeating it changes nothing. */
export async function wakeBranch(
  {store, storage, clock}: Pick<PlanContext, 'store' | 'storage' | 'clock'>,
  branchId: string,
): Promise<void> {
  const {project, branch} = await whereIs(store, branchId);
  const pages = new TenantPages({store, storage, clock}, project.tenant_id);
  await pages.attach();
  await pages.unarchiveTimeline(branch.timeline_id);
  const safekeepers = safekeeperEffects({store, storage, clock});
  const nowMs = clock.nowMs();
  // The pageserver has woken the ancestors too.
  for (let id: string | null = branchId; id !== null;) {
    const row: {id: string; parent_id: string | null; state: string} = await store
      .selectFrom('branches')
      .select(['id', 'parent_id', 'state'])
      .where('id', '=', id)
      .executeTakeFirstOrThrow();
    if (id !== branchId && row.state !== 'archived') break;
    await safekeepers.tellPageserver(id);
    await store
      .updateTable('branches')
      .set({state: 'ready', state_changed_at: nowMs, updated_at: nowMs})
      .where('id', '=', id)
      .where('state', '=', 'archived')
      .execute();
    id = row.parent_id;
  }
}
