/**
 * A branch with its parent's schema and none of its rows: a root of its own, whose schema a compute of it copies from a compute of
 * the parent at one LSN, by pg_dump and pg_restore (compute/schema-copy.ts). The parent may go afterwards.
 *
 * Both computes are of this operation alone: no endpoint has them, and nobody can connect to them. State in: `parentId`,
 * `sourceEndpointId`, `targetEndpointId`, and `lsn?` or `timestamp?` (ISO), neither = now.
 */
import {newEndpoint} from '#control/endpoint-row.ts';
import {alignDown, type Lsn} from '#control/lsn.ts';
import {wakeBranch} from '#control/operations/archive-plan.ts';
import {chooseBranchPoint} from '#control/operations/branch-point.ts';
import {buildSpec} from '#control/operations/compute-plans.ts';
import {type PlanContext, whereIs} from '#control/operations/plan-context.ts';
import type {OperationState, Plan} from '#control/operations/plan.ts';
import {undoBranch} from '#control/operations/undo.ts';
import {branchReady, importSteps, safekeeperSteps} from '#control/operations/root-plan.ts';
import {makePassword, makeScramVerifier} from '#control/scram.ts';

/** Reads everything at the parent, as a customer's role: its computes know it for as long as they run, its branch never. */
const reader = 'pagoda_schema_reader';

interface SchemaState extends OperationState {
  readonly parentId: string;
  readonly sourceEndpointId: string;
  readonly targetEndpointId: string;
  readonly parentLsn: number;
}

export function schemaOnlyPlan(context: PlanContext): Plan {
  const {store, launcher, clock} = context;
  const read = (state: OperationState): SchemaState => state as SchemaState;
  return {
    kind: 'create_schema_only',
    failuresMax: 6,
    ...undoBranch,
    steps: [
      {
        name: 'choose-lsn',
        async effect({operation, state}) {
          const parent = await whereIs(store, read(state).parentId);
          if (parent.branch.state === 'archived' || operation.failures_count > 0)
            await wakeBranch(context, parent.branch.id);
          return {parentLsn: alignDown(await chooseBranchPoint(context, parent, state))};
        },
      },
      ...importSteps(context),
      ...safekeeperSteps(context),
      {
        name: 'copy-schema',
        async effect({operation, state}) {
          const {parentId, sourceEndpointId, targetEndpointId, parentLsn} = read(state);
          // Of an earlier try: nobody knows its password any more.
          for (const id of [sourceEndpointId, targetEndpointId]) await launcher.stop(id);
          const {project, branch} = await whereIs(store, operation.branch_id);
          const row = {project_id: project.id, settings: '{}'};
          try {
            const source = await buildSpec(
              context,
              newEndpoint(
                {...row, id: sourceEndpointId, branch_id: parentId, type: 'read_only', static_lsn: parentLsn as Lsn},
                clock.nowMs(),
              ),
            );
            const target = await buildSpec(
              context,
              newEndpoint({...row, id: targetEndpointId, branch_id: branch.id, type: 'read_write'}, clock.nowMs()),
            );
            const password = makePassword(context.random);
            const scramVerifier = await makeScramVerifier(password, context.random);
            const address = await launcher.start({
              ...source.spec,
              alreadyApplied: false,
              roles: [...source.spec.roles, {name: reader, scramVerifier, canLogin: true}],
            });
            // Databases are made as they are at the parent, by the copy.
            await launcher.start({...target.spec, databases: [], droppedDatabases: [], droppedRoles: []});
            await launcher.copySchema(targetEndpointId, {
              ...address,
              user: reader,
              password,
              databases: target.spec.databases,
            });
            return {catalogVersion: target.catalogVersion};
          } finally {
            for (const id of [targetEndpointId, sourceEndpointId]) await launcher.discard(id);
          }
        },
        async record(trx, {operation, state}) {
          await trx
            .updateTable('branches')
            .set({catalog_applied: state['catalogVersion'] as number})
            .where('id', '=', operation.branch_id!)
            .execute();
          await trx.deleteFrom('dropped_objects').where('branch_id', '=', operation.branch_id!).execute();
        },
      },
      branchReady,
    ],
  };
}
