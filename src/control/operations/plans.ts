/** The plans: each kind of operation step by step. See plan.ts for the rules. */
import {alignDown, type Lsn} from '#control/lsn.ts';
import {archiveBranchPlan, wakeBranch} from '#control/operations/archive-plan.ts';
import {chooseBranchPoint} from '#control/operations/branch-point.ts';
import {applyConfigPlan, startComputePlan, suspendComputePlan} from '#control/operations/compute-plans.ts';
import {deleteBranchPlan, deleteProjectPlan} from '#control/operations/delete-plans.ts';
import {pgVersionNumber, type PlanContext, whereIs} from '#control/operations/plan-context.ts';
import {deleteParentPlan, detachBranchPlan} from '#control/operations/detach-plan.ts';
import {excludeSafekeeperPlan} from '#control/operations/exclude-safekeeper-plan.ts';
import {completeTimelinePlan} from '#control/operations/complete-timeline-plan.ts';
import {finalizeRestorePlan} from '#control/operations/finalize-restore-plan.ts';
import type {Plan} from '#control/operations/plan.ts';
import {migratePlan} from '#control/operations/migrate-plan.ts';
import {replaceSafekeeperPlan} from '#control/operations/replace-safekeeper-plan.ts';
import {restoreFromArchivePlan} from '#control/operations/restore-from-archive-plan.ts';
import {restoreBranchPlan} from '#control/operations/restore-plan.ts';
import {branchReady, createRootPlan, importRootPlan, safekeeperSteps} from '#control/operations/root-plan.ts';
import {schemaOnlyPlan} from '#control/operations/schema-only-plan.ts';
import {undoBranch} from '#control/operations/undo.ts';
import {TenantPages} from '#control/tenant-pages.ts';

export function makePlans(context: PlanContext): Plan[] {
  return [
    createRootPlan(context),
    importRootPlan(context),
    schemaOnlyPlan(context),
    createBranchPlan(context),
    restoreBranchPlan(context),
    finalizeRestorePlan(context),
    startComputePlan(context),
    suspendComputePlan(context),
    applyConfigPlan(context),
    deleteBranchPlan(context),
    deleteProjectPlan(context),
    applyRetentionPlan(context),
    replaceSafekeeperPlan(context),
    excludeSafekeeperPlan(context),
    restoreFromArchivePlan(context),
    archiveBranchPlan(context),
    detachBranchPlan(context),
    deleteParentPlan(context),
    migratePlan(context),
    completeTimelinePlan(context),
  ];
}

/** State in: `lsn?` (asked for) or `timestamp?` (ISO), neither = now. */
function createBranchPlan(context: PlanContext): Plan {
  const {store} = context;
  return {
    kind: 'create_branch',
    ...undoBranch,
    steps: [
      {
        name: 'choose-lsn',
        async effect({operation, state}) {
          const {branch} = await whereIs(store, operation.branch_id);
          const parent = await whereIs(store, branch.parent_id);
          if (parent.branch.state === 'archived' || operation.failures_count > 0)
            await wakeBranch(context, parent.branch.id);
          return {lsn: alignDown(await chooseBranchPoint(context, parent, state))};
        },
        async record(trx, {operation, state, nowMs}) {
          await trx
            .updateTable('branches')
            .set({parent_lsn: state['lsn'] as number, updated_at: nowMs})
            .where('id', '=', operation.branch_id!)
            .execute();
        },
      },
      {
        name: 'create-timeline',
        async effect({operation, state}) {
          const {project, branch} = await whereIs(store, operation.branch_id);
          const parent = await whereIs(store, branch.parent_id);
          // It may have been archived a moment ago.
          if (operation.failures_count > 0) await wakeBranch(context, parent.branch.id);
          await new TenantPages(context, project.tenant_id).createTimeline(
            branch.timeline_id,
            pgVersionNumber(project.pg_version),
            {
              kind: 'branch',
              ancestorTimelineId: parent.branch.timeline_id,
              ancestorLsn: state['lsn'] as Lsn,
            },
          );
          return undefined;
        },
      },
      ...safekeeperSteps(context),
      branchReady,
    ],
  };
}

/** The project's restore window has changed: every timeline of it gets the new one. */
function applyRetentionPlan(context: PlanContext): Plan {
  const {store} = context;
  return {
    kind: 'apply_retention',
    steps: [
      {
        name: 'set-retention',
        async effect({operation}) {
          const branches = await store
            .selectFrom('branches')
            .select('id')
            .where('project_id', '=', operation.project_id)
            .where('deleted_at', 'is', null)
            .where('state', '=', 'ready')
            .execute();
          for (const {id} of branches) {
            const {project, branch} = await whereIs(store, id);
            await new TenantPages(context, project.tenant_id).setRetention(
              branch.timeline_id,
              project.history_retention_seconds,
            );
          }
          return undefined;
        },
      },
    ],
  };
}
