/**
 * Deleting branches and projects. The rows are marked by whoever asks (store/forget.ts). What can be recovered (`purge_at` lies ahead) has
 * its computes stopped and keeps its storage; the same operation comes again when its time is over (purge.ts).
 *
 * A timeline goes after those that begin on it: a branch whose deleted children can still be recovered waits for them.
 */
import {readAttachments} from '#control/attachments.ts';
import {deleteTimelines, type PlanContext, stopComputes, whereIs} from '#control/operations/plan-context.ts';
import type {Plan, Step} from '#control/operations/plan.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {childrenInStorage} from '#control/store/in-storage.ts';
import type {ProjectTable} from '#control/store/schema.ts';

export function deleteBranchPlan(context: PlanContext): Plan {
  return {kind: 'delete_branch', steps: deleteBranchSteps(context)};
}

/** The end of every plan that has deleted its branch. */
export function deleteBranchSteps(context: PlanContext): Step[] {
  return [
    {
      name: 'stop-computes',
      async effect({operation}) {
        await stopComputes(context, [operation.branch_id!]);
        return undefined;
      },
    },
    {
      name: 'delete-timelines',
      effect: async ({operation}) => ({purged: await purgeBranch(context, operation.branch_id!)}),
      async record(trx, {operation, state}) {
        if (state['purged'] !== true) return;
        await trx.updateTable('branches').set({purge_at: null}).where('id', '=', operation.branch_id!).execute();
      },
    },
  ];
}

/** Answers false when its time, or that of a child, has not come. */
export async function purgeBranch(context: PlanContext, branchId: string): Promise<boolean> {
  const {store, clock} = context;
  const where = await whereIs(store, branchId);
  if ((where.branch.purge_at ?? 0) > clock.nowMs()) return false;
  const children = await childrenInStorage(store, branchId);
  const going = children.find((child) => (child.purge_at ?? 0) <= clock.nowMs());
  if (going !== undefined) throw new Error(`branch ${going.id} begins on it and is still in storage`);
  if (children.length > 0) return false;
  await deleteTimelines(context, where);
  return true;
}

export function deleteProjectPlan(context: PlanContext): Plan {
  const {store, clock} = context;
  const projectOf = (projectId: string): Promise<ProjectTable> =>
    store.selectFrom('projects').selectAll().where('id', '=', projectId).executeTakeFirstOrThrow();
  /** Children before parents: a timeline with children cannot go. */
  const branchIds = async (projectId: string): Promise<string[]> => {
    const branches = await store
      .selectFrom('branches')
      .select(['id', 'parent_id'])
      .where('project_id', '=', projectId)
      .orderBy('id')
      .execute();
    const parents = new Map(branches.map((b) => [b.id, b.parent_id]));
    const depth = (id: string): number => {
      const parent = parents.get(id);
      return parent == null ? 0 : 1 + depth(parent);
    };
    return branches.map((b) => b.id).toSorted((a, b) => depth(b) - depth(a));
  };
  return {
    kind: 'delete_project',
    steps: [
      {
        name: 'stop-computes',
        async effect({operation}) {
          await stopComputes(context, await branchIds(operation.project_id));
          return undefined;
        },
      },
      {
        name: 'delete-timelines',
        async effect({operation}) {
          const {purge_at: purgeAt} = await projectOf(operation.project_id);
          if ((purgeAt ?? 0) > clock.nowMs()) return {isDue: false};
          for (const branchId of await branchIds(operation.project_id))
            await deleteTimelines(context, await whereIs(store, branchId));
          return {isDue: true};
        },
      },
      {
        name: 'delete-tenant',
        async effect({operation, state}) {
          // Its time may have come since the step before.
          if (state['isDue'] === false) return undefined;
          const project = await projectOf(operation.project_id);
          if ((await readAttachments(store, project.tenant_id)).length > 0)
            await new TenantPages(context, project.tenant_id).delete();
          return {tenantId: project.tenant_id};
        },
        // Until here a pageserver that starts anew is told to hold the tenant: what is not attached cannot be deleted.
        async record(trx, {operation, state}) {
          if (state['tenantId'] === undefined) return;
          await trx
            .deleteFrom('attachments')
            .where('tenant_id', '=', state['tenantId'] as string)
            .execute();
          await trx.updateTable('projects').set({purge_at: null}).where('id', '=', operation.project_id).execute();
          await trx
            .updateTable('branches')
            .set({purge_at: null})
            .where('project_id', '=', operation.project_id)
            .execute();
        },
      },
    ],
  };
}
