/**
 * A branch that was made of a snapshot takes the place of the one it shall replace: name, default mark and computes change sides,
 * in one transaction, when no compute of either runs. What was replaced stays, under another name, with the computes that the
 * restored one had. Timelines and children stay where they are. State in: `replacedId`, `replacedName`.
 */
import {type PlanContext, stopComputes} from '#control/operations/plan-context.ts';
import {PermanentError, type Plan} from '#control/operations/plan.ts';
import {stopped} from '#control/store/endpoint-stopped.ts';

export function finalizeRestorePlan(context: PlanContext): Plan {
  return {
    kind: 'finalize_restore',
    steps: [
      {
        name: 'stop-computes',
        async effect({operation, state}) {
          await stopComputes(context, [operation.branch_id!, state['replacedId'] as string]);
          return undefined;
        },
        async record(trx, {operation, state, nowMs}) {
          await trx
            .updateTable('endpoints')
            .set(stopped(nowMs))
            .where('branch_id', 'in', [operation.branch_id!, state['replacedId'] as string])
            .where('current_state', '=', 'active')
            .execute();
        },
      },
      {
        name: 'swap',
        async record(trx, {operation, state, nowMs}) {
          const row = (id: string) =>
            trx
              .selectFrom('branches')
              .selectAll()
              .where('id', '=', id)
              .where('deleted_at', 'is', null)
              .executeTakeFirst();
          const restored = await row(operation.branch_id!);
          const replaced = await row(state['replacedId'] as string);
          if (!restored || !replaced) throw new PermanentError('one of the two branches was deleted');
          const endpoints = await trx
            .selectFrom('endpoints')
            .select(['id', 'branch_id'])
            .where('branch_id', 'in', [restored.id, replaced.id])
            .where('static_lsn', 'is', null)
            .where('deleted_at', 'is', null)
            .execute();
          // Out of the way first: two writers of one branch cannot be, not even between two statements.
          const ids = endpoints.map((e) => e.id);
          if (ids.length > 0)
            await trx.updateTable('endpoints').set({deleted_at: nowMs}).where('id', 'in', ids).execute();
          for (const {id, branch_id: from} of endpoints)
            await trx
              .updateTable('endpoints')
              .set({branch_id: from === restored.id ? replaced.id : restored.id, updated_at: nowMs})
              .where('id', '=', id)
              .execute();
          if (ids.length > 0)
            await trx.updateTable('endpoints').set({deleted_at: null}).where('id', 'in', ids).execute();
          const common = {updated_at: nowMs, state_changed_at: nowMs};
          await trx
            .updateTable('branches')
            .set({name: state['replacedName'] as string, is_default: 0, protected: 0, backup_schedule: null, ...common})
            .where('id', '=', replaced.id)
            .execute();
          await trx
            .updateTable('branches')
            .set({
              name: replaced.name,
              is_default: replaced.is_default,
              protected: replaced.protected,
              backup_schedule: replaced.backup_schedule,
              expires_at: replaced.expires_at,
              restore_status: 'finalized',
              ...common,
            })
            .where('id', '=', restored.id)
            .execute();
        },
      },
    ],
  };
}
