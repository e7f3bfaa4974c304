/** What is deleted disappears from the API at once; its ids stay used, and an operation cleans up behind it. */
import {stopped} from '#control/store/endpoint-stopped.ts';
import type {StoreTransaction} from '#control/store/schema.ts';

/** The project and everything in it disappear from the API. */
export async function forgetProject(trx: StoreTransaction, projectId: string, nowMs: number): Promise<void> {
  await trx.updateTable('projects').set({deleted_at: nowMs, updated_at: nowMs}).where('id', '=', projectId).execute();
  await trx
    .updateTable('branches')
    .set({deleted_at: nowMs})
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

/** The branch and what hangs on it disappear from the API; ids stay used. */
export async function forgetBranch(trx: StoreTransaction, branchId: string, nowMs: number): Promise<void> {
  await trx.updateTable('branches').set({deleted_at: nowMs, updated_at: nowMs}).where('id', '=', branchId).execute();
  await trx
    .updateTable('endpoints')
    .set((e) => ({...stopped(nowMs)(e), deleted_at: nowMs}))
    .where('branch_id', '=', branchId)
    .where('deleted_at', 'is', null)
    .execute();
}
