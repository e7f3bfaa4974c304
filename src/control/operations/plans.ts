/** The plans: each kind of operation step by step. See plan.ts for the rules. */
import type {ComputeSpec} from '#wire/compute-spec.ts';
import {readAttachments, shardLocations} from '#control/attachments.ts';
import {alignDown, formatLsn, type Lsn} from '#control/lsn.ts';
import {archiveBranchPlan, wakeBranch} from '#control/operations/archive-plan.ts';
import {chooseBranchPoint} from '#control/operations/branch-point.ts';
import {
  deleteTimelines,
  pagesOf,
  pgVersionNumber,
  type PlanContext,
  setIdle,
  stopComputes,
  whereIs,
} from '#control/operations/plan-context.ts';
import {deleteParentPlan, detachBranchPlan} from '#control/operations/detach-plan.ts';
import {PermanentError, type Plan, SkippedError, type Step} from '#control/operations/plan.ts';
import {excludeSafekeeperPlan} from '#control/operations/exclude-safekeeper-plan.ts';
import {replaceSafekeeperPlan} from '#control/operations/replace-safekeeper-plan.ts';
import {restoreFromArchivePlan} from '#control/operations/restore-from-archive-plan.ts';
import {safekeeperEffects} from '#control/operations/safekeeper-effects.ts';
import {restoreBranchPlan} from '#control/operations/restore-plan.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {membershipOf} from '#control/safekeeper-set.ts';
import {forgetBranch, forgetProject} from '#control/store/forget.ts';
import type {EndpointTable, Store, StoreTransaction} from '#control/store/schema.ts';

export function makePlans(context: PlanContext): Plan[] {
  return [
    createRootPlan(context),
    createBranchPlan(context),
    restoreBranchPlan(context),
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
  ];
}

/** Safekeepers hold the branch's WAL from `state.lsn` on; then the pageserver is told where to get it. */
function safekeeperSteps(context: PlanContext): Step[] {
  const safekeepers = safekeeperEffects(context);
  return [
    {
      name: 'create-safekeeper-timelines',
      async effect({operation, state}) {
        await safekeepers.createTimelines(operation.branch_id, state['lsn'] as Lsn);
        return undefined;
      },
    },
    {
      name: 'tell-pageserver',
      async effect({operation}) {
        await safekeepers.tellPageserver(operation.branch_id);
        return undefined;
      },
      async record(trx, {operation, nowMs}) {
        await trx
          .updateTable('branches')
          .set({state: 'ready', pending_state: null, state_changed_at: nowMs, updated_at: nowMs})
          .where('id', '=', operation.branch_id!)
          .execute();
      },
    },
  ];
}

function createRootPlan(context: PlanContext): Plan {
  const {store, bootstrap} = context;
  return {
    kind: 'create_root',
    async onFailed(trx, {operation, nowMs}) {
      await forgetProject(trx, operation.project_id, nowMs);
    },
    cleanUp: ({project_id: projectId, branch_id: branchId, locks}) => [
      {
        projectId,
        ...(branchId === null ? {} : {branchId}),
        action: 'delete_timeline',
        kind: 'delete_project',
        locks: JSON.parse(locks) as string[],
      },
    ],
    steps: [
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
          const {project, branch} = await whereIs(store, operation.branch_id);
          await new TenantPages(context, project.tenant_id).createTimeline(
            branch.timeline_id,
            pgVersionNumber(project.pg_version),
            {kind: 'import'},
          );
          return undefined;
        },
      },
      {
        name: 'import',
        async effect({operation}) {
          const {project, branch} = await whereIs(store, operation.branch_id);
          const pages = new TenantPages(context, project.tenant_id);
          return {
            lsn: await pages.importTimeline(branch.timeline_id, () => bootstrap.dataDirectory(project.system_id)),
          };
        },
      },
      ...safekeeperSteps(context),
    ],
  };
}

/** State in: `lsn?` (asked for) or `timestamp?` (ISO), neither = now. */
function createBranchPlan(context: PlanContext): Plan {
  const {store} = context;
  return {
    kind: 'create_branch',
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
    ],
    async onFailed(trx, {operation, nowMs}) {
      await forgetBranch(trx, operation.branch_id!, nowMs);
    },
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
}

/** What the compute of an endpoint shall run, with the catalog version that it brings the branch to. */
export async function buildSpec(
  context: PlanContext,
  endpoint: EndpointTable,
): Promise<{spec: ComputeSpec; catalogVersion: number}> {
  const {store, storage} = context;
  const where = await whereIs(store, endpoint.branch_id);
  const {project, branch} = where;
  const roles = await store
    .selectFrom('roles')
    .selectAll()
    .where('branch_id', '=', branch.id)
    .orderBy('name')
    .execute();
  const databases = await store
    .selectFrom('databases')
    .selectAll()
    .where('branch_id', '=', branch.id)
    .orderBy('id')
    .execute();
  const dropped = await store.selectFrom('dropped_objects').selectAll().where('branch_id', '=', branch.id).execute();
  const shards = await shardLocations(context, project.tenant_id);
  const membership = membershipOf(where.safekeeperSet, storage.safekeepers);
  const settings = JSON.parse(endpoint.settings) as {pg_settings?: Record<string, string>};
  const spec: ComputeSpec = {
    tenantId: project.tenant_id,
    timelineId: branch.timeline_id,
    projectId: project.id,
    branchId: branch.id,
    endpointId: endpoint.id,
    ...modeOf(endpoint),
    pgVersion: pgVersionNumber(project.pg_version),
    systemId: project.system_id,
    pageserver: shards[0]!,
    shards,
    safekeepers: membership.members,
    safekeeperGeneration: membership.generation,
    ...(membership.newMembers.length === 0 ? {} : {newSafekeepers: membership.newMembers}),
    token: await context.mintComputeToken(project.tenant_id, branch.timeline_id),
    tokenRefreshUrl: context.tokenRefreshUrl,
    roles: roles.map((role) => ({
      name: role.name,
      ...(role.scram_verifier === null ? {} : {scramVerifier: role.scram_verifier}),
      canLogin: role.no_login === 0,
    })),
    databases: databases.map(({name, owner_name}) => ({name, owner: owner_name})),
    droppedRoles: dropped.filter((d) => d.kind === 'role').map((d) => d.name),
    droppedDatabases: dropped.filter((d) => d.kind === 'database').map((d) => d.name),
    alreadyApplied: branch.catalog_applied === branch.catalog_version,
    settings: settings.pg_settings ?? {},
  };
  return {spec, catalogVersion: branch.catalog_version};
}

function modeOf(endpoint: EndpointTable): Pick<ComputeSpec, 'mode' | 'startLsn'> {
  if (endpoint.static_lsn !== null) return {mode: 'static', startLsn: formatLsn(endpoint.static_lsn as Lsn)};
  return {mode: endpoint.type === 'read_only' ? 'replica' : 'primary'};
}

/** The branch's catalog now holds everything up to this version. */
async function recordCatalogApplied(trx: StoreTransaction, branchId: string, version: number): Promise<void> {
  await trx
    .updateTable('branches')
    .set({catalog_applied: version})
    .where('id', '=', branchId)
    .where('catalog_applied', '<', version)
    .execute();
  await trx.deleteFrom('dropped_objects').where('branch_id', '=', branchId).where('version', '<=', version).execute();
}

async function liveEndpoint(store: Store, endpointId: string | null): Promise<EndpointTable> {
  const endpoint = await store
    .selectFrom('endpoints')
    .selectAll()
    .where('id', '=', endpointId ?? '')
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (!endpoint) throw new SkippedError(`endpoint ${endpointId} is gone`);
  return endpoint;
}

function startComputePlan(context: PlanContext): Plan {
  const {store, launcher} = context;
  return {
    kind: 'start_compute',
    // Three seconds of pauses: storage that comes up at the same time is there by then.
    failuresMax: 5,
    steps: [
      {
        name: 'start',
        async effect({operation}) {
          const endpoint = await liveEndpoint(store, operation.endpoint_id);
          const branch = await store
            .selectFrom('branches')
            .selectAll()
            .where('id', '=', endpoint.branch_id)
            .executeTakeFirstOrThrow();
          if (branch.deleted_at !== null) throw new SkippedError(`branch ${branch.id} is gone`);
          // After a failure too: a pageserver knows better than the table what is asleep.
          if (branch.state === 'archived' || (branch.state === 'ready' && operation.failures_count > 0))
            await wakeBranch(context, branch.id);
          else if (branch.state !== 'ready')
            throw new PermanentError(`branch ${branch.id} is not ready (${branch.state})`);
          const {spec, catalogVersion} = await buildSpec(context, endpoint);
          await launcher.start(spec);
          // Only a writer has brought roles and databases into the branch.
          return spec.mode === 'primary' ? {catalogVersion, branchId: branch.id} : {};
        },
        async record(trx, {operation, state, nowMs}) {
          await trx
            .updateTable('endpoints')
            .set({
              current_state: 'active',
              pending_state: null,
              started_at: nowMs,
              last_active: nowMs,
              updated_at: nowMs,
            })
            .where('id', '=', operation.endpoint_id!)
            .execute();
          if (typeof state['catalogVersion'] === 'number')
            await recordCatalogApplied(trx, state['branchId'] as string, state['catalogVersion']);
        },
      },
    ],
    async onFailed(trx, {operation, nowMs}) {
      await setIdle(trx, operation.endpoint_id!, nowMs);
    },
  };
}

function suspendComputePlan({launcher}: PlanContext): Plan {
  return {
    kind: 'suspend_compute',
    steps: [
      {
        name: 'stop',
        /** State in: `idleSinceMs?`: only if nobody has used it since then. */
        async effect({operation, state}) {
          const {idleSinceMs} = state;
          const stopped = await launcher.stop(
            operation.endpoint_id!,
            typeof idleSinceMs === 'number' ? {idleSinceMs} : {},
          );
          if (!stopped) throw new SkippedError('somebody has used the endpoint again');
          return undefined;
        },
        async record(trx, {operation, nowMs}) {
          await setIdle(trx, operation.endpoint_id!, nowMs);
        },
      },
    ],
  };
}

/** Brings roles and databases into a running compute; a stopped one gets them at its next start. */
function applyConfigPlan(context: PlanContext): Plan {
  const {store, launcher} = context;
  return {
    kind: 'apply_config',
    failuresMax: 5,
    steps: [
      {
        name: 'configure',
        async effect({operation}) {
          const endpoint = await liveEndpoint(store, operation.endpoint_id);
          if (endpoint.type === 'read_only' || (await launcher.find(endpoint.id)) === undefined) return {};
          const {spec, catalogVersion} = await buildSpec(context, endpoint);
          await launcher.configure(spec);
          return {catalogVersion, branchId: endpoint.branch_id};
        },
        async record(trx, {state}) {
          if (typeof state['catalogVersion'] === 'number')
            await recordCatalogApplied(trx, state['branchId'] as string, state['catalogVersion']);
        },
      },
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

function deleteBranchPlan(context: PlanContext): Plan {
  const {store} = context;
  return {
    kind: 'delete_branch',
    steps: [
      {
        name: 'stop-computes',
        async effect({operation}) {
          await stopComputes(context, [operation.branch_id!]);
          return undefined;
        },
      },
      {
        name: 'delete-timelines',
        async effect({operation}) {
          await deleteTimelines(context, await whereIs(store, operation.branch_id));
          return undefined;
        },
      },
    ],
  };
}

function deleteProjectPlan(context: PlanContext): Plan {
  const {store} = context;
  /** Children before parents: a timeline with children cannot go. */
  const branchIds = async (projectId: string): Promise<string[]> => {
    const branches = await store
      .selectFrom('branches')
      .select(['id', 'parent_id'])
      .where('project_id', '=', projectId)
      .orderBy('id')
      .execute();
    const parents = new Map(branches.map((b) => [b.id, b.parent_id]));
    const depth = (id: string): number => {
      const parent = parents.get(id);
      return parent == null ? 0 : 1 + depth(parent);
    };
    return branches.map((b) => b.id).toSorted((a, b) => depth(b) - depth(a));
  };
  return {
    kind: 'delete_project',
    steps: [
      {
        name: 'stop-computes',
        async effect({operation}) {
          await stopComputes(context, await branchIds(operation.project_id));
          return undefined;
        },
      },
      {
        name: 'delete-timelines',
        async effect({operation}) {
          for (const branchId of await branchIds(operation.project_id))
            await deleteTimelines(context, await whereIs(store, branchId));
          return undefined;
        },
      },
      {
        name: 'delete-tenant',
        async effect({operation}) {
          const project = await store
            .selectFrom('projects')
            .selectAll()
            .where('id', '=', operation.project_id)
            .executeTakeFirstOrThrow();
          if ((await readAttachments(store, project.tenant_id)).length > 0)
            await new TenantPages(context, project.tenant_id).delete();
          return {tenantId: project.tenant_id};
        },
        // Until here a pageserver that starts anew is told to hold the tenant: what is not attached cannot be deleted.
        async record(trx, {state}) {
          await trx
            .deleteFrom('attachments')
            .where('tenant_id', '=', state['tenantId'] as string)
            .execute();
        },
      },
    ],
  };
}
