/** Branches without a parent: what initdb makes, or a data directory that somebody else made. */
import type {Lsn} from '#control/lsn.ts';
import {addImportedCatalog} from '#control/catalog-copy.ts';
import {buildSpec, liveEndpoint, recordStarted} from '#control/operations/compute-plans.ts';
import {pagesOf, pgVersionNumber, type PlanContext, whereIs} from '#control/operations/plan-context.ts';
import type {Plan, Step} from '#control/operations/plan.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {safekeeperEffects} from '#control/operations/safekeeper-effects.ts';
import {undoProject} from '#control/operations/undo.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import type {ImportedCatalog} from '#wire/compute-spec.ts';

/** A project with a fresh cluster. */
export function createRootPlan(context: PlanContext): Plan {
  return {
    kind: 'create_root',
    ...undoProject,
    steps: [...importSteps(context), ...safekeeperSteps(context), branchReady],
  };
}

/**
 * A project from a data directory on this machine. State in: `directory`, `superuser` (what role 10 is called there), `endpointId`.
 * Its roles and databases are known when a compute has run, and has taken the superusers' rights away.
 */
export function importRootPlan(context: PlanContext): Plan {
  const {store, launcher, clock} = context;
  return {
    kind: 'import_root',
    ...undoProject,
    // Half a minute: what passes by itself is over by then; a directory that Postgres refuses will be refused again.
    failuresMax: 8,
    steps: [
      ...importSteps(context),
      ...safekeeperSteps(context),
      {
        name: 'adopt',
        async effect({operation, state}) {
          const endpoint = await liveEndpoint(store, operation.endpoint_id);
          const {spec} = await buildSpec(context, endpoint);
          await launcher.start({...spec, adopt: {superuser: state['superuser'] as string}});
          return {catalog: await launcher.catalog(endpoint.id)};
        },
        async record(trx, {operation, state, nowMs}) {
          await addImportedCatalog(trx, operation.branch_id!, state['catalog'] as ImportedCatalog, clock.nowMs());
          await recordStarted(trx, operation.endpoint_id!, nowMs);
        },
      },
      branchReady,
    ],
  };
}

/** The branch's timeline with its first pages, of `state.directory` when there is one. Adds `lsn`: where its WAL begins. */
export function importSteps(context: PlanContext): Step[] {
  const {store, bootstrap} = context;
  const createEmpty = async (branchId: string | null) => {
    const {project, branch} = await whereIs(store, branchId);
    const pages = new TenantPages(context, project.tenant_id);
    await pages.createTimeline(branch.timeline_id, pgVersionNumber(project.pg_version), {kind: 'import'});
    return {project, branch, pages};
  };
  return [
    {
      name: 'attach',
      async effect({operation}) {
        await (await pagesOf(context, operation.branch_id)).attach();
        return undefined;
      },
    },
    {
      name: 'create-timeline',
      async effect({operation}) {
        await createEmpty(operation.branch_id);
        return undefined;
      },
    },
    {
      name: 'import',
      async effect({operation, state}) {
        // Again: a pageserver that died as it threw away what an earlier try had left finishes that when it is back.
        const {project, branch, pages} = await createEmpty(operation.branch_id);
        const directory = state['directory'] as string | undefined;
        return {
          lsn: await pages.importTimeline(branch.timeline_id, () =>
            bootstrap.dataDirectory(project.system_id, directory),
          ),
        };
      },
    },
  ];
}

/** Safekeepers hold the branch's WAL from `state.lsn` on; then the pageserver is told where to get it. */
export function safekeeperSteps(context: PlanContext): Step[] {
  const safekeepers = safekeeperEffects(context);
  return [
    {
      name: 'create-safekeeper-timelines',
      async effect({operation, state}) {
        return {follow: await safekeepers.createTimelines(operation.branch_id, state['lsn'] as Lsn)};
      },
      follow: (state) => state['follow'] as OperationDraft[],
    },
    {
      name: 'tell-pageserver',
      async effect({operation}) {
        await safekeepers.tellPageserver(operation.branch_id);
        return undefined;
      },
    },
  ];
}

/** The last step of every plan that makes a branch. */
export const branchReady: Step = {
  name: 'ready',
  async record(trx, {operation, nowMs}) {
    await trx
      .updateTable('branches')
      .set({state: 'ready', pending_state: null, state_changed_at: nowMs, updated_at: nowMs})
      .where('id', '=', operation.branch_id!)
      .execute();
  },
};
