/** POST /projects/{id}/branches/{id}/restore: `neon branches restore` and `neon branches reset --parent`. */
import {parseTime} from '#runtime/time-format.ts';
import {newId} from '#runtime/random.ts';
import {checkBranchName, checkBranchPoint} from '#control/api/branch-routes.ts';
import {type ApiContext, branchLock, endpointLock} from '#control/api/context.ts';
import {apiErrors} from '#control/api/errors.ts';
import type {Principal} from '#control/api/principal.ts';
import {type ApiAnswer, type ApiRoute, route} from '#control/api/route.ts';
import {restoreBranchBody} from '#control/api/schemas.ts';
import {Views} from '#control/api/views.ts';
import {newBranch} from '#control/branch-row.ts';
import {newBranchId} from '#control/ids.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {placeNewTimeline} from '#control/placement.ts';

export const restoreRoutes: readonly ApiRoute[] = [
  route({
    method: 'POST',
    path: '/projects/:project_id/branches/:branch_id/restore',
    body: restoreBranchBody,
    handler: restoreBranch,
  }),
];

interface RestoreBranch {
  readonly source_branch_id: string;
  readonly source_lsn?: string;
  readonly source_timestamp?: string;
  readonly preserve_under_name?: string;
}

export async function restoreBranch(
  context: ApiContext,
  {
    params,
    body,
    principal,
  }: {
    readonly params: {readonly project_id: string; readonly branch_id: string};
    readonly body: RestoreBranch;
    readonly principal: Principal;
  },
): Promise<ApiAnswer> {
  const project = await context.project(principal, params.project_id);
  const branch = await context.branch(project, params.branch_id);
  const source = await context.branch(project, body.source_branch_id);
  const isSelf = source.id === branch.id;
  const {preserve_under_name: keptName} = body;
  const point = await checkBranchPoint(context, project, source, {
    ...(body.source_lsn === undefined ? {} : {parent_lsn: body.source_lsn}),
    ...(body.source_timestamp === undefined ? {} : {parent_timestamp: body.source_timestamp}),
  });
  const isPast = point.lsn !== undefined || point.timestamp !== undefined;
  if (isSelf && !isPast)
    throw apiErrors.badRequest('a branch is restored from itself at source_lsn or source_timestamp; give one');
  if (isSelf && keptName === undefined)
    throw apiErrors.unprocessable('restoring a branch from itself needs preserve_under_name');
  if (branch.protected === 1 && keptName === undefined)
    throw apiErrors.unprocessable(`branch ${branch.name} is protected: it needs preserve_under_name`);

  const {random} = context;
  const keptId = newBranchId(random);
  const conflicts = [branchLock(branch.id), branchLock(source.id)];
  const {operations} = await context.mutate(project.id, conflicts, async (trx, nowMs) => {
    const children = await trx
      .selectFrom('branches')
      .select('name')
      .where('parent_id', '=', branch.id)
      .where('deleted_at', 'is', null)
      .executeTakeFirst();
    if (children && keptName === undefined)
      throw apiErrors.unprocessable(
        `branch ${branch.name} has child branches (${children.name}), which stay with its old state: preserve_under_name is needed`,
      );
    if (keptName !== undefined) await checkBranchName(trx, project.id, keptName);
    const endpoints = await trx
      .selectFrom('endpoints')
      .selectAll()
      .where('branch_id', '=', branch.id)
      .where('deleted_at', 'is', null)
      .execute();
    await trx
      .insertInto('branches')
      .values(
        newBranch(
          {
            id: keptId,
            project_id: project.id,
            name: keptName ?? branch.name,
            timeline_id: newId(random),
            parent_id: source.id,
            parent_timestamp: point.timestamp === undefined ? null : (parseTime(point.timestamp) ?? null),
            safekeepers: await placeNewTimeline(trx, context.storage.safekeepers),
            // What is not kept is never seen, and goes at the end.
            ...(keptName === undefined ? {deleted_at: nowMs, purge_at: nowMs} : {}),
          },
          nowMs,
        ),
      )
      .execute();
    await trx
      .updateTable('branches')
      .set({state: 'resetting', pending_state: 'ready', state_changed_at: nowMs, updated_at: nowMs})
      .where('id', '=', branch.id)
      .execute();
    const locks = [...new Set([...conflicts, branchLock(keptId), ...endpoints.map((e) => endpointLock(e.id))])];
    const drafts: OperationDraft[] = [
      {
        projectId: project.id,
        branchId: branch.id,
        action: 'create_branch',
        kind: 'restore_branch',
        locks,
        state: {keptId, sourceId: source.id, discard: keptName === undefined, isPast, ...point},
      },
      ...endpoints
        .filter((e) => e.current_state === 'active')
        .map((e) => ({
          projectId: project.id,
          branchId: branch.id,
          endpointId: e.id,
          action: 'start_compute',
          kind: 'start_compute',
          locks: [branchLock(branch.id), endpointLock(e.id)],
        })),
    ];
    return {operations: drafts, result: undefined};
  });
  const failed = operations.find((o) => o.kind === 'restore_branch' && o.status === 'failed');
  if (failed) throw apiErrors.unprocessable(`the branch could not be restored: ${failed.error ?? 'unknown reason'}`);
  const views = new Views(context.config);
  return {
    body: {
      branch: views.branch(await context.branch(project, branch.id)),
      operations: operations.map((o) => views.operation(o)),
    },
  };
}
