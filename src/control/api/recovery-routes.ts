/** Deleted projects and branches come back while their time lasts: `neon projects recover`, `neon branches recover`. */
import {checkBranchName, liveBranches} from '#control/api/branch-routes.ts';
import {branchLock} from '#control/api/context.ts';
import {listEndpoints} from '#control/api/endpoint-routes.ts';
import {apiErrors} from '#control/api/errors.ts';
import {projectView} from '#control/api/project-routes.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {Views} from '#control/api/views.ts';
import {detachLock} from '#control/branch-admin.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {recoverBranch, recoverProject} from '#control/store/forget.ts';
import type {StoreTransaction} from '#control/store/schema.ts';

export const recoveryRoutes: readonly ApiRoute[] = [
  route({
    method: 'POST',
    path: '/projects/:project_id/recover',
    handler: async (context, {params, principal}) => {
      const deleted = await context.recoverableProject(principal, params.project_id);
      await context.mutate(deleted.id, [], async (trx, nowMs) => {
        await stillThere(trx, 'projects', deleted.id);
        await recoverProject(trx, deleted, nowMs);
        return {operations: [retention(deleted.id)], result: undefined};
      });
      const project = await context.project(principal, deleted.id);
      const views = new Views(context.config);
      const branches = await liveBranches(context, project);
      return {
        body: {project: await projectView(context, project), branches: branches.map((b) => views.branch(b))},
      };
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/branches/:branch_id/recover',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const deleted = await context.recoverableBranch(project, params.branch_id);
      await context.mutate(project.id, [branchLock(deleted.id)], async (trx, nowMs) => {
        await stillThere(trx, 'branches', deleted.id);
        await checkBranchName(trx, project.id, deleted.name);
        await recoverBranch(trx, deleted, nowMs);
        const operations = [retention(project.id)];
        const parent =
          deleted.parent_id === null
            ? undefined
            : await trx
                .selectFrom('branches')
                .select('deleted_at')
                .where('id', '=', deleted.parent_id)
                .executeTakeFirstOrThrow();
        // Its pages are still there, as long as it needs them; they become its own.
        if (parent !== undefined && parent.deleted_at !== null)
          operations.push({
            projectId: project.id,
            branchId: deleted.id,
            action: 'detach_parent_branch',
            kind: 'detach_branch',
            locks: [detachLock(deleted.id)],
          });
        return {operations, result: undefined};
      });
      return {
        body: {
          branch: new Views(context.config).branch(await context.branch(project, deleted.id)),
          endpoints: await listEndpoints(context, project, deleted.id),
        },
      };
    },
  }),
];

/** The restore window may have changed while it was away. */
function retention(projectId: string): OperationDraft {
  return {
    projectId,
    action: 'apply_storage_config',
    kind: 'apply_retention',
    locks: [`retention:${projectId}`],
  };
}

/** Somebody else may have recovered it, or deleted it for good, in between. */
async function stillThere(trx: StoreTransaction, table: 'projects' | 'branches', id: string): Promise<void> {
  const row = await trx.selectFrom(table).select(['deleted_at', 'purge_at']).where('id', '=', id).executeTakeFirst();
  if (row == null || row.deleted_at === null || row.purge_at === null)
    throw apiErrors.conflict(`${id} is not deleted any more, or for good`);
}
