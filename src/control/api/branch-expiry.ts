/** Branches whose time has come are deleted, by the same rules as by hand. One that cannot go yet is tried again. */
import {deleteBranch} from '#control/api/branch-routes.ts';
import type {ApiContext} from '#control/api/context.ts';
import {deleteSnapshot} from '#control/api/snapshot-routes.ts';
import {startSweep, type Sweep} from '#control/sweep.ts';

const sweepEveryMs = 2_000;
/** After a refusal (its children go soon, an operation runs) the next try waits this long. */
const refusedMs = 60_000;
/** A branch whose children expire within this time waits for them. */
const soonMs = 3_600_000;

export function startBranchExpiry(context: ApiContext): Sweep {
  const {clock, log} = context;
  const refusedUntil = new Map<string, number>();
  return startSweep({
    clock,
    log,
    everyMs: sweepEveryMs,
    what: 'looking for expired branches',
    sweep: () => sweepExpiredBranches(context, refusedUntil),
  });
}

/** `refusedUntil`: branch id → when it may be tried again, ms. */
export async function sweepExpiredBranches(context: ApiContext, refusedUntil: Map<string, number>): Promise<void> {
  const {store, clock, log} = context;
  const nowMs = clock.nowMs();
  const expired = await store
    .selectFrom('branches')
    .selectAll()
    .where('expires_at', '<=', nowMs)
    .where('deleted_at', 'is', null)
    // Children before parents.
    .orderBy('created_at', 'desc')
    .execute();
  await sweepExpiredSnapshots(context, refusedUntil);
  for (const branch of expired) {
    if ((refusedUntil.get(branch.id) ?? 0) > nowMs) continue;
    const project = await store
      .selectFrom('projects')
      .selectAll()
      .where('id', '=', branch.project_id)
      .executeTakeFirstOrThrow();
    try {
      await deleteBranch(context, project, branch, {
        detachChildren: await childrenStay(context, branch.id),
        recoverMs: context.recoveryMs,
        method: 'ttl',
      });
      refusedUntil.delete(branch.id);
      log.info('branch expired', {project: project.id, branch: branch.id});
    } catch (error) {
      refusedUntil.set(branch.id, nowMs + refusedMs);
      log.warn('an expired branch cannot be deleted yet', {project: project.id, branch: branch.id, error});
    }
  }
}

/** Children that go soon are waited for; those that stay live on without their parent. */
async function childrenStay({store, clock}: ApiContext, branchId: string): Promise<boolean> {
  const soon = await store
    .selectFrom('branches')
    .select('id')
    .where('parent_id', '=', branchId)
    .where('deleted_at', 'is', null)
    .where('expires_at', '<=', clock.nowMs() + soonMs)
    .executeTakeFirst();
  return soon === undefined;
}

async function sweepExpiredSnapshots(context: ApiContext, refusedUntil: Map<string, number>): Promise<void> {
  const {store, clock, log} = context;
  const nowMs = clock.nowMs();
  const expired = await store
    .selectFrom('snapshots')
    .selectAll()
    .where('expires_at', '<=', nowMs)
    .where('deleted_at', 'is', null)
    .execute();
  for (const snapshot of expired) {
    if ((refusedUntil.get(snapshot.id) ?? 0) > nowMs) continue;
    const project = await store
      .selectFrom('projects')
      .selectAll()
      .where('id', '=', snapshot.project_id)
      .executeTakeFirstOrThrow();
    try {
      await deleteSnapshot(context, project, snapshot);
      log.info('snapshot expired', {project: project.id, snapshot: snapshot.id});
    } catch (error) {
      refusedUntil.set(snapshot.id, nowMs + refusedMs);
      log.warn('an expired snapshot cannot be deleted yet', {project: project.id, snapshot: snapshot.id, error});
    }
  }
}
