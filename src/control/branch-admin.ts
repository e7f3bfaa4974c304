/**
 * What an operator does with branches; internal routes, for tokens that the control plane's own key has signed (`pagoda branches …`).
 *
 *   POST /internal/v1/branches/:id/detach   cuts the branch off from its parent, so that the parent can be deleted: {operationId?}; none: it
 *                                           has no parent, or is being detached already
 *   GET  /internal/v1/branches/:id/detach   {parentId?, status?, error?}: its parent now, and how the newest detaching stands
 */
import {HttpError, type HttpRequest, type HttpResponse, type Route} from '#runtime/http.ts';
import type {OperationRunner} from '#control/operations/runner.ts';
import {type BranchTable, type Store} from '#control/store/schema.ts';
import {asHttpError, type Claims, requireNode} from '#wire/auth.ts';

export interface BranchAdminOptions {
  readonly store: Store;
  readonly runner: OperationRunner;
}

export function branchAdminRoutes(options: BranchAdminOptions): Route[] {
  const path = '/internal/v1/branches/:id/detach';
  const guarded =
    (handler: (options: BranchAdminOptions, branch: BranchTable) => Promise<HttpResponse>) =>
    async (request: HttpRequest): Promise<HttpResponse> => {
      try {
        requireNode(request.claims as Claims, 'control');
      } catch (error) {
        throw asHttpError(error);
      }
      return handler(options, await find(options.store, request.params['id'] ?? ''));
    };
  return [
    {method: 'POST', path, handler: guarded(detach)},
    {method: 'GET', path, handler: guarded(standing)},
  ];
}

async function find(store: Store, id: string): Promise<BranchTable> {
  const branch = await store
    .selectFrom('branches')
    .selectAll()
    .where('id', '=', id)
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (branch === undefined) throw new HttpError(404, 'not_found', `there is no branch ${id}`);
  if (branch.hidden === 1)
    throw new HttpError(400, 'bad_request', `branch ${id} holds a snapshot; it goes with the snapshot`);
  return branch;
}

async function detach({store, runner}: BranchAdminOptions, branch: BranchTable): Promise<HttpResponse> {
  const locks = [detachLock(branch.id)];
  const ids = await store.transaction().execute(async (trx) => {
    if (branch.parent_id === null || (await runner.holder(trx, branch.project_id, locks))) return [];
    return runner.submit(trx, [
      {
        projectId: branch.project_id,
        branchId: branch.id,
        action: 'detach_parent_branch',
        kind: 'detach_branch',
        locks,
      },
    ]);
  });
  await runner.kick();
  return {status: 200, json: ids.length === 0 ? {} : {operationId: ids[0]}};
}

async function standing({store}: BranchAdminOptions, branch: BranchTable): Promise<HttpResponse> {
  const operation = await store
    .selectFrom('operations')
    .select(['status', 'error'])
    .where('branch_id', '=', branch.id)
    .where('kind', '=', 'detach_branch')
    .orderBy('seq', 'desc')
    .executeTakeFirst();
  return {
    status: 200,
    json: {
      ...(branch.parent_id === null ? {} : {parentId: branch.parent_id}),
      ...(operation === undefined ? {} : {status: operation.status}),
      ...(operation?.error == null ? {} : {error: operation.error}),
    },
  };
}

/** Held while the branch is being detached; it is used, started and written to meanwhile. */
export function detachLock(branchId: string): string {
  return `detach:${branchId}`;
}
