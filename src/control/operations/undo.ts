/** What is left of a project or branch that could not be made is forgotten, and removed from storage by an operation of its own. */
import type {Plan} from '#control/operations/plan.ts';
import {forgetBranch, forgetProject} from '#control/store/forget.ts';

export const undoProject: Pick<Plan, 'onFailed' | 'cleanUp'> = {
  onFailed: (trx, {operation, nowMs}) => forgetProject(trx, operation.project_id, nowMs),
  cleanUp: ({project_id: projectId, branch_id: branchId, locks}) => [
    {
      projectId,
      ...(branchId === null ? {} : {branchId}),
      action: 'delete_timeline',
      kind: 'delete_project',
      locks: JSON.parse(locks) as string[],
    },
  ],
};

export const undoBranch: Pick<Plan, 'onFailed' | 'cleanUp'> = {
  onFailed: (trx, {operation, nowMs}) => forgetBranch(trx, operation.branch_id!, nowMs),
  cleanUp: ({project_id: projectId, branch_id: branchId, locks}) => [
    {
      projectId,
      branchId: branchId!,
      action: 'delete_timeline',
      kind: 'delete_branch',
      locks: JSON.parse(locks) as string[],
    },
  ],
};
