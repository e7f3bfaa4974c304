/**
 * A safekeeper that could not be reached when it was replaced is back, with files that nobody needs: they go. An operation of
 * its own with the lock `safekeepers:<branch>`: a change that brings the node back must not find them and lose them then.
 *
 * State in: `nodeId`, and `replacedBy`, the operation whose state names the node as not reached.
 */
import {type PlanContext, whereIs} from '#control/operations/plan-context.ts';
import type {Plan} from '#control/operations/plan.ts';
import type {ReplaceState} from '#control/operations/replace-safekeeper-plan.ts';
import {allNodes, membershipOf} from '#control/safekeeper-set.ts';
import {inStorage} from '#control/store/in-storage.ts';
import type {Store, StoreTransaction} from '#control/store/schema.ts';

export interface ExcludeState {
  readonly nodeId: number;
  readonly replacedBy: string;
}

export function excludeSafekeeperPlan({store, storage}: PlanContext): Plan {
  return {
    kind: 'exclude_safekeeper',
    // It is looked for again by safekeeper-farewells.ts.
    failuresMax: 3,
    steps: [
      {
        name: 'exclude',
        async effect({state}) {
          const {nodeId, replacedBy} = state as unknown as ExcludeState;
          const row = await store
            .selectFrom('operations')
            .select('state')
            .where('id', '=', replacedBy)
            .executeTakeFirstOrThrow();
          const {tenantId, timelineId} = JSON.parse(row.state) as ReplaceState;
          const branch = await store
            .selectFrom('branches')
            .select('id')
            .where('timeline_id', '=', timelineId)
            .where(inStorage)
            .executeTakeFirst();
          if (branch === undefined) {
            await storage.safekeeper(nodeId).deleteTimeline(tenantId, timelineId);
            return undefined;
          }
          const {safekeeperSet} = await whereIs(store, branch.id);
          if (!allNodes(safekeeperSet).includes(nodeId))
            await storage
              .safekeeper(nodeId)
              .exclude(tenantId, timelineId, membershipOf(safekeeperSet, storage.safekeepers));
          return undefined;
        },
        async record(trx, {state}) {
          const {nodeId, replacedBy} = state as unknown as ExcludeState;
          await noteReached(trx, replacedBy, nodeId);
        },
      },
    ],
  };
}

/** Nothing of the branch is at the node any more. */
async function noteReached(trx: StoreTransaction | Store, replacedBy: string, nodeId: number): Promise<void> {
  const row = await trx.selectFrom('operations').select('state').where('id', '=', replacedBy).executeTakeFirstOrThrow();
  const state = JSON.parse(row.state) as {readonly unreached: readonly number[]};
  await trx
    .updateTable('operations')
    .set({state: JSON.stringify({...state, unreached: state.unreached.filter((id) => id !== nodeId)})})
    .where('id', '=', replacedBy)
    .execute();
}
