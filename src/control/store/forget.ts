/**
 * What is deleted disappears from the API at once, and what hangs on it; ids stay used. Its storage stays until `purgeAt`, and until then
 * it can be recovered with all that went with it. Then an operation removes it (operations/delete-plans.ts), submitted by whoever
 * deletes, or by the clock (purge.ts).
 */
import {stopped} from '#control/store/endpoint-stopped.ts';
import type {BranchTable, ProjectTable, StoreTransaction} from '#control/store/schema.ts';

/** The project and everything in it disappear from the API. */
export async function forgetProject(
  trx: StoreTransaction,
  projectId: string,
  nowMs: number,
  purgeAt = nowMs,
): Promise<void> {
  await trx
    .updateTable('projects')
    .set({deleted_at: nowMs, purge_at: purgeAt, updated_at: nowMs})
    .where('id', '=', projectId)
    .execute();
  await trx
    .updateTable('branches')
    .set({deleted_at: nowMs, purge_at: purgeAt, deletion_method: 'project'})
    .where('project_id', '=', projectId)
    .where('deleted_at', 'is', null)
    .execute();
  await trx
    .updateTable('endpoints')
    .set((e) => ({...stopped(nowMs)(e), deleted_at: nowMs}))
    .where('project_id', '=', projectId)
    .where('deleted_at', 'is', null)
    .execute();
  // Nothing of it may be opened with a project's key any more.
  await trx
    .updateTable('api_keys')
    .set({revoked_at: nowMs})
    .where('project_id', '=', projectId)
    .where('revoked_at', 'is', null)
    .execute();
}

/** The branch and what hangs on it disappear from the API. */
export async function forgetBranch(
  trx: StoreTransaction,
  branchId: string,
  nowMs: number,
  options: {readonly purgeAt?: number; readonly method?: 'user' | 'ttl'} = {},
): Promise<void> {
  await trx
    .updateTable('branches')
    .set({
      deleted_at: nowMs,
      purge_at: options.purgeAt ?? nowMs,
      deletion_method: options.method ?? 'user',
      updated_at: nowMs,
    })
    .where('id', '=', branchId)
    .execute();
  await trx
    .updateTable('endpoints')
    .set((e) => ({...stopped(nowMs)(e), deleted_at: nowMs}))
    .where('branch_id', '=', branchId)
    .where('deleted_at', 'is', null)
    .execute();
}

const alive = {deleted_at: null, purge_at: null};

/** The project as it was, without its API keys; branches that had been deleted before it stay so. */
export async function recoverProject(trx: StoreTransaction, project: ProjectTable, nowMs: number): Promise<void> {
  await trx
    .updateTable('projects')
    .set({...alive, updated_at: nowMs})
    .where('id', '=', project.id)
    .execute();
  const branches = await trx
    .selectFrom('branches')
    .selectAll()
    .where('project_id', '=', project.id)
    .where('deletion_method', '=', 'project')
    .execute();
  for (const branch of branches) await recover(trx, branch, {}, nowMs);
}

/** The branch and its endpoints as they were; it does not expire any more. */
export async function recoverBranch(trx: StoreTransaction, branch: BranchTable, nowMs: number): Promise<void> {
  await recover(trx, branch, {expires_at: null}, nowMs);
}

async function recover(
  trx: StoreTransaction,
  branch: BranchTable,
  change: {readonly expires_at?: null},
  nowMs: number,
): Promise<void> {
  await trx
    .updateTable('branches')
    .set({...alive, ...change, deletion_method: null, updated_at: nowMs, state_changed_at: nowMs})
    .where('id', '=', branch.id)
    .execute();
  await trx
    .updateTable('endpoints')
    .set({deleted_at: null, pending_state: null, updated_at: nowMs})
    .where('branch_id', '=', branch.id)
    .where('deleted_at', '=', branch.deleted_at)
    .execute();
}
