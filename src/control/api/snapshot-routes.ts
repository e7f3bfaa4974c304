/**
 * Snapshots: points of a branch that stay when the restore window has passed them. A hidden branch begins there and has no
 * compute; it costs what the history it holds costs. Restoring makes an ordinary branch of that point, or puts it in a branch's
 * place.
 */
import {newId} from '#runtime/random.ts';
import {formatTime, parseTime} from '#runtime/time-format.ts';
import {checkBranchName, checkBranchPoint, createBranch} from '#control/api/branch-routes.ts';
import {type ApiContext, branchLock, endpointLock} from '#control/api/context.ts';
import {apiErrors} from '#control/api/errors.ts';
import {restoreBranch} from '#control/api/restore-routes.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {
  createSnapshotQuery,
  finalizeRestoreBody,
  restoreSnapshotBody,
  updateSnapshotBody,
} from '#control/api/schemas.ts';
import {Views} from '#control/api/views.ts';
import {newBranch} from '#control/branch-row.ts';
import {newBranchId, newSnapshotId} from '#control/ids.ts';
import {formatLsn, type Lsn} from '#control/lsn.ts';
import {placeNewTimeline} from '#control/placement.ts';
import {forgetBranch} from '#control/store/forget.ts';
import type {BranchTable, OperationTable, ProjectTable, SnapshotTable} from '#control/store/schema.ts';

export const snapshotRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: '/projects/:project_id/snapshots',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const rows = await context.store
        .selectFrom('snapshots')
        .selectAll()
        .where('project_id', '=', project.id)
        .where('deleted_at', 'is', null)
        .orderBy('created_at', 'desc')
        .execute();
      return {body: {snapshots: await Promise.all(rows.map((row) => view(context, row)))}};
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/branches/:branch_id/snapshot',
    query: createSnapshotQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      const point = await checkBranchPoint(context, project, branch, {
        ...(query.lsn === undefined ? {} : {parent_lsn: query.lsn}),
        ...(query.timestamp === undefined ? {} : {parent_timestamp: query.timestamp}),
      });
      const expiresAt = query.expires_at === undefined ? null : (parseTime(query.expires_at) ?? null);
      if (query.expires_at !== undefined && (expiresAt === null || expiresAt <= context.clock.nowMs()))
        throw apiErrors.badRequest('expires_at is not an RFC 3339 time in the future');
      const {row, operations} = await makeSnapshot(context, project, branch, {
        point,
        name: query.name ?? `${branch.name} at ${point.timestamp ?? query.lsn ?? formatTime(context.clock.nowMs())}`,
        expiresAt,
        isManual: true,
      });
      const views = new Views(context.config);
      return {body: {snapshot: await view(context, row), operations: operations.map((o) => views.operation(o))}};
    },
  }),
  route({
    method: 'PATCH',
    path: '/projects/:project_id/snapshots/:snapshot_id',
    body: updateSnapshotBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const row = await find(context, project, params.snapshot_id);
      if (body.snapshot.name !== undefined)
        await context.store.updateTable('snapshots').set({name: body.snapshot.name}).where('id', '=', row.id).execute();
      return {body: {snapshot: await view(context, await find(context, project, row.id))}};
    },
  }),
  route({
    method: 'DELETE',
    path: '/projects/:project_id/snapshots/:snapshot_id',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const operations = await deleteSnapshot(context, project, await find(context, project, params.snapshot_id));
      const views = new Views(context.config);
      return {status: 202, body: {operations: operations.map((o) => views.operation(o))}};
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/snapshots/:snapshot_id/restore',
    body: restoreSnapshotBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const row = await find(context, project, params.snapshot_id);
      const hidden = await hiddenBranch(context, row);
      if (!['ready', 'archived'].includes(hidden.state) || hidden.parent_id === null || hidden.parent_lsn === null)
        throw apiErrors.locked('create_branch');
      const lsn = formatLsn(hidden.parent_lsn as Lsn);
      const targetId = body?.target_branch_id ?? row.source_branch_id;
      if (body?.finalize_restore !== true) {
        // To be looked at first; finalize_restore puts it in the target's place.
        const made = await createBranch(
          context,
          {
            params: {project_id: project.id},
            body: {
              branch: {
                parent_id: hidden.parent_id,
                parent_lsn: lsn,
                ...(body?.name === undefined ? {} : {name: body.name}),
              },
              endpoints: [{type: 'read_write'}],
            },
            principal,
          },
          {restored_from: row.id, restore_target: targetId, restore_status: 'restored'},
        );
        return {status: 200, body: made.body};
      }
      const target = await context.branch(project, targetId);
      return restoreBranch(context, {
        params: {project_id: project.id, branch_id: target.id},
        body: {
          source_branch_id: hidden.parent_id,
          source_lsn: lsn,
          preserve_under_name: body.name ?? `${target.name} before ${formatTime(context.clock.nowMs())}`,
        },
        principal,
      });
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/branches/:branch_id/finalize_restore',
    body: finalizeRestoreBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      if (branch.restore_status !== 'restored' || branch.restore_target === null)
        throw apiErrors.unprocessable(
          `branch ${branch.name} was not restored from a snapshot, or its restore is finalized already`,
        );
      const target = await context.branch(project, branch.restore_target);
      const replacedName = body?.name ?? `${target.name} before ${formatTime(context.clock.nowMs())}`;
      const endpoints = await context.store
        .selectFrom('endpoints')
        .selectAll()
        .where('branch_id', 'in', [branch.id, target.id])
        .where('deleted_at', 'is', null)
        .execute();
      const locks = [branchLock(branch.id), branchLock(target.id), ...endpoints.map((e) => endpointLock(e.id))];
      const {operations} = await context.mutate(project.id, locks, async (trx) => {
        await checkBranchName(trx, project.id, replacedName);
        return {
          operations: [
            {
              projectId: project.id,
              branchId: branch.id,
              action: 'apply_config',
              kind: 'finalize_restore',
              locks,
              state: {replacedId: target.id, replacedName},
            },
            ...endpoints
              .filter((e) => e.branch_id === target.id && e.current_state === 'active')
              .map((e) => ({
                projectId: project.id,
                branchId: branch.id,
                endpointId: e.id,
                action: 'start_compute',
                kind: 'start_compute',
                locks: [branchLock(branch.id), endpointLock(e.id)],
              })),
          ],
          result: undefined,
        };
      });
      const views = new Views(context.config);
      return {body: {operations: operations.map((o) => views.operation(o))}};
    },
  }),
];

/** By hand, or by the clock. ApiError when it could not be made. */
export async function makeSnapshot(
  context: ApiContext,
  project: ProjectTable,
  branch: BranchTable,
  wanted: {
    readonly point: {readonly lsn?: number; readonly timestamp?: string};
    readonly name: string;
    readonly expiresAt: number | null;
    readonly isManual: boolean;
  },
): Promise<{row: SnapshotTable; operations: OperationTable[]}> {
  const {random} = context;
  const {point} = wanted;
  const hiddenId = newBranchId(random);
  const {result: row, operations} = await context.mutate(
    project.id,
    branch.state === 'ready' ? [] : [branchLock(branch.id)],
    async (trx, nowMs) => {
      const hidden = newBranch(
        {
          id: hiddenId,
          project_id: project.id,
          name: hiddenId,
          timeline_id: newId(random),
          parent_id: branch.id,
          parent_lsn: point.lsn ?? null,
          parent_timestamp: point.timestamp === undefined ? null : (parseTime(point.timestamp) ?? null),
          hidden: 1,
          safekeepers: await placeNewTimeline(trx, context.storage.safekeepers),
        },
        nowMs,
      );
      await trx.insertInto('branches').values(hidden).execute();
      const snapshot: SnapshotTable = {
        id: newSnapshotId(random),
        project_id: project.id,
        name: wanted.name,
        source_branch_id: branch.id,
        branch_id: hiddenId,
        manual: wanted.isManual ? 1 : 0,
        expires_at: wanted.expiresAt,
        created_at: nowMs,
        deleted_at: null,
      };
      await trx.insertInto('snapshots').values(snapshot).execute();
      return {
        operations: [
          {
            projectId: project.id,
            branchId: hiddenId,
            action: 'create_branch',
            kind: 'create_branch',
            locks: [branchLock(hiddenId)],
            state: {...point},
          },
        ],
        result: snapshot,
      };
    },
  );
  const failed = operations.find((o) => o.status === 'failed');
  if (failed) {
    await forgetSnapshot(context, row);
    throw apiErrors.unprocessable(`the snapshot could not be made: ${failed.error ?? 'unknown reason'}`);
  }
  return {row, operations};
}

async function find(context: ApiContext, project: ProjectTable, id: string): Promise<SnapshotTable> {
  const row = await context.store
    .selectFrom('snapshots')
    .selectAll()
    .where('project_id', '=', project.id)
    .where('id', '=', id)
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (!row) throw apiErrors.notFound('snapshot', id);
  return row;
}

function hiddenBranch(context: ApiContext, row: SnapshotTable): Promise<BranchTable> {
  return context.store.selectFrom('branches').selectAll().where('id', '=', row.branch_id).executeTakeFirstOrThrow();
}

/** By hand, or because its time has come. */
export async function deleteSnapshot(
  context: ApiContext,
  project: ProjectTable,
  row: SnapshotTable,
): Promise<OperationTable[]> {
  const locks = [branchLock(row.branch_id)];
  const {operations} = await context.mutate(project.id, locks, async (trx, nowMs) => {
    await forgetBranch(trx, row.branch_id, nowMs);
    await trx.updateTable('snapshots').set({deleted_at: nowMs}).where('id', '=', row.id).execute();
    return {
      operations: [
        {projectId: project.id, branchId: row.branch_id, action: 'delete_timeline', kind: 'delete_branch', locks},
      ],
      result: undefined,
    };
  });
  return operations;
}

async function forgetSnapshot({store, clock}: ApiContext, row: SnapshotTable): Promise<void> {
  await store.updateTable('snapshots').set({deleted_at: clock.nowMs()}).where('id', '=', row.id).execute();
}

async function view(context: ApiContext, row: SnapshotTable): Promise<Record<string, unknown>> {
  const hidden = await hiddenBranch(context, row);
  return {
    id: row.id,
    name: row.name,
    slug: row.id,
    ...(hidden.parent_lsn === null ? {} : {lsn: formatLsn(hidden.parent_lsn as Lsn)}),
    ...(hidden.parent_timestamp === null ? {} : {timestamp: formatTime(hidden.parent_timestamp)}),
    source_branch_id: row.source_branch_id,
    created_at: formatTime(row.created_at),
    ...(row.expires_at === null ? {} : {expires_at: formatTime(row.expires_at)}),
    manual: row.manual === 1,
  };
}
