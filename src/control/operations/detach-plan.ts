/**
 * Detaching a branch: its storage becomes independent of its parent's, so that the parent can be deleted; its history begins at its
 * branch point then. It is used meanwhile. And deleting a branch whose children live on: they are detached first.
 *
 * Where the work stands is in the pageserver's indexes: a killed control plane asks again, and the pageserver goes on.
 */
import {wakeBranch} from '#control/operations/archive-plan.ts';
import {deleteBranchSteps} from '#control/operations/delete-plans.ts';
import {type PlanContext, whereIs} from '#control/operations/plan-context.ts';
import {type Plan, SkippedError, type StepContext} from '#control/operations/plan.ts';
import {forgetBranch} from '#control/store/forget.ts';
import type {BranchTable, StoreTransaction} from '#control/store/schema.ts';
import {TenantPages} from '#control/tenant-pages.ts';

export function detachBranchPlan(context: PlanContext): Plan {
  const {store} = context;
  return {
    kind: 'detach_branch',
    steps: [
      {
        name: 'detach',
        async effect({operation}) {
          const {branch} = await whereIs(store, operation.branch_id);
          if (branch.deleted_at !== null) throw new SkippedError('the branch was deleted');
          return {detached: [await detach(context, branch.id)]};
        },
        record: recordDetached,
      },
    ],
  };
}

/** The branch stays in the API until its children live without it. State in: `recoverMs`, how long it can be recovered afterwards. */
export function deleteParentPlan(context: PlanContext): Plan {
  const {store} = context;
  return {
    kind: 'delete_parent',
    steps: [
      {
        name: 'detach-children',
        async effect({operation}) {
          const detached: string[] = [];
          for (const {id} of await childrenOf(store, operation.branch_id!)) detached.push(await detach(context, id));
          return {detached};
        },
        async record(trx, step) {
          await recordDetached(trx, step);
          const [late] = await childrenOf(trx, step.operation.branch_id!);
          if (late !== undefined) throw new Error(`branch ${late.id} was made meanwhile; it is detached next`);
          const recoverMs = (step.state['recoverMs'] as number | undefined) ?? 0;
          await forgetBranch(trx, step.operation.branch_id!, step.nowMs, {purgeAt: step.nowMs + recoverMs});
        },
      },
      ...deleteBranchSteps(context),
    ],
  };
}

/** Answers the id of the timeline that is detached now: a restore may put another one into the branch's place. */
async function detach(context: PlanContext, branchId: string): Promise<string> {
  await wakeBranch(context, branchId);
  const {project, branch} = await whereIs(context.store, branchId);
  const pages = new TenantPages(context, project.tenant_id);
  while (!(await pages.detachTimeline(branch.timeline_id)));
  return branch.timeline_id;
}

async function recordDetached(
  trx: StoreTransaction,
  {state, nowMs}: StepContext & {readonly nowMs: number},
): Promise<void> {
  const detached = state['detached'] as string[];
  if (detached.length === 0) return;
  await trx
    .updateTable('branches')
    .set({parent_id: null, parent_lsn: null, parent_timestamp: null, updated_at: nowMs})
    .where('timeline_id', 'in', detached)
    .execute();
}

function childrenOf(store: Pick<StoreTransaction, 'selectFrom'>, branchId: string): Promise<BranchTable[]> {
  return store
    .selectFrom('branches')
    .selectAll()
    .where('parent_id', '=', branchId)
    .where('deleted_at', 'is', null)
    .execute();
}
