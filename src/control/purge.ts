/** What was deleted long enough ago leaves storage: the time to recover it is over. */
import {branchLock, endpointLock, projectLock} from '#control/api/context.ts';
import type {OperationDraft, OperationRunner} from '#control/operations/runner.ts';
import {childrenInStorage} from '#control/store/in-storage.ts';
import {startSweep, type Sweep} from '#control/sweep.ts';
import type {Store, StoreTransaction} from '#control/store/schema.ts';
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';

const sweepMsMin = 500;
const sweepMsMax = 15_000;

export interface PurgeContext {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly clock: Clock;
  readonly log: Log;
}

/** `recoveryMs`: how long what is deleted can be recovered. */
export function startPurging(context: PurgeContext & {readonly recoveryMs: number}): Sweep {
  const {clock, log, recoveryMs} = context;
  return startSweep({
    clock,
    log,
    everyMs: Math.min(sweepMsMax, Math.max(sweepMsMin, recoveryMs / 2)),
    what: 'looking for deleted branches whose time is over',
    sweep: () => sweepDeleted(context),
  });
}

export async function sweepDeleted({store, runner, clock, log}: PurgeContext): Promise<void> {
  const nowMs = clock.nowMs();
  const submit = (projectId: string, draft: (trx: StoreTransaction) => Promise<OperationDraft | undefined>) =>
    store.transaction().execute(async (trx) => {
      const operation = await draft(trx);
      // One that is being deleted already, or recovered.
      if (
        operation === undefined ||
        (await runner.holder(trx, projectId, [projectLock(projectId), ...operation.locks]))
      )
        return;
      await runner.submit(trx, [operation]);
      log.info('removing what was deleted', {project: projectId, branch: operation.branchId});
    });
  const dueProjects = (trx: Store | StoreTransaction) =>
    trx.selectFrom('projects').select('id').where('deleted_at', 'is not', null).where('purge_at', '<=', nowMs);
  const dueBranches = (trx: Store | StoreTransaction) =>
    trx
      .selectFrom('branches')
      .select(['id', 'project_id'])
      .where('deleted_at', 'is not', null)
      .where('purge_at', '<=', nowMs);

  for (const {id} of await dueProjects(store).execute())
    await submit(id, async (trx) => {
      if ((await dueProjects(trx).where('id', '=', id).executeTakeFirst()) === undefined) return undefined;
      return {
        projectId: id,
        action: 'delete_timeline',
        kind: 'delete_project',
        locks: [projectLock(id), ...(await locksOf(trx, 'project_id', id))],
      };
    });
  // Of a project that goes, the branches go with it.
  for (const {id, project_id: projectId} of await dueBranches(store).execute())
    await submit(projectId, async (trx) => {
      const branch = await dueBranches(trx).where('id', '=', id).executeTakeFirst();
      const project = await dueProjects(trx).where('id', '=', projectId).executeTakeFirst();
      if (branch === undefined || project !== undefined || (await childrenInStorage(trx, id)).length > 0)
        return undefined;
      return {
        projectId,
        branchId: id,
        action: 'delete_timeline',
        kind: 'delete_branch',
        locks: [branchLock(id), ...(await locksOf(trx, 'branch_id', id))],
      };
    });
  await runner.kick();
}

async function locksOf(trx: StoreTransaction, column: 'project_id' | 'branch_id', id: string): Promise<string[]> {
  const endpoints = await trx.selectFrom('endpoints').select(['id', 'branch_id']).where(column, '=', id).execute();
  const branches =
    column === 'branch_id' ? [] : await trx.selectFrom('branches').select('id').where('project_id', '=', id).execute();
  return [...branches.map((row) => branchLock(row.id)), ...endpoints.map((row) => endpointLock(row.id))];
}
