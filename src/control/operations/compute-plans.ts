/** Computes: what one shall run, and the plans that start, suspend and configure it. */
import type {ComputeSpec} from '#wire/compute-spec.ts';
import {shardLocations} from '#control/attachments.ts';
import {formatLsn, type Lsn} from '#control/lsn.ts';
import {wakeBranch} from '#control/operations/archive-plan.ts';
import {pgVersionNumber, type PlanContext, setIdle, whereIs} from '#control/operations/plan-context.ts';
import {readCommittedPosition} from '#control/operations/branch-point.ts';
import {type OperationState, PermanentError, type Plan, SkippedError} from '#control/operations/plan.ts';
import {membershipOf} from '#control/safekeeper-set.ts';
import type {BranchTable, EndpointTable, Store, StoreTransaction} from '#control/store/schema.ts';

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
    locationsUrl: context.locationsUrl(project.tenant_id),
    roles: roles.map((role) => ({
      name: role.name,
      ...(role.scram_verifier === null ? {} : {scramVerifier: role.scram_verifier}),
      canLogin: role.no_login === 0,
    })),
    databases: databases.map(({name, owner_name}) => ({name, owner: owner_name})),
    droppedRoles: dropped.filter((d) => d.kind === 'role').map((d) => d.name),
    droppedDatabases: dropped.filter((d) => d.kind === 'database').map((d) => d.name),
    alreadyApplied: branch.catalog_applied === branch.catalog_version && holdsCatalog(branch, endpoint),
    settings: settings.pg_settings ?? {},
  };
  return {spec, catalogVersion: branch.catalog_version};
}

/** At one point of the past only when the roles of now had been applied by then. */
function holdsCatalog(branch: BranchTable, {static_lsn: lsn}: EndpointTable): boolean {
  return lsn === null || (branch.catalog_applied_lsn !== null && lsn >= branch.catalog_applied_lsn);
}

function modeOf(endpoint: EndpointTable): Pick<ComputeSpec, 'mode' | 'startLsn'> {
  if (endpoint.static_lsn !== null) return {mode: 'static', startLsn: formatLsn(endpoint.static_lsn as Lsn)};
  return {mode: endpoint.type === 'read_only' ? 'replica' : 'primary'};
}

/** What was applied, and by which LSN; for the record of a step. */
interface AppliedCatalog extends OperationState {
  readonly branchId: string;
  readonly catalogVersion: number;
  readonly catalogLsn?: number;
}

async function appliedCatalog(context: PlanContext, branchId: string, catalogVersion: number): Promise<AppliedCatalog> {
  const {project, branch, safekeeperSet} = await whereIs(context.store, branchId);
  if (branch.catalog_applied >= catalogVersion) return {branchId, catalogVersion};
  // It was committed before it was reported: the quorum has it. Not to know where costs a static compute a second start.
  const position = await readCommittedPosition(
    context.storage,
    safekeeperSet,
    project.tenant_id,
    branch.timeline_id,
  ).catch(() => undefined);
  return {branchId, catalogVersion, ...(position === undefined ? {} : {catalogLsn: position.acknowledged})};
}

/** The branch's catalog now holds everything up to this version. */
async function recordCatalogApplied(trx: StoreTransaction, state: OperationState): Promise<void> {
  if (state['catalogVersion'] === undefined) return;
  const {branchId, catalogVersion: version, catalogLsn} = state as AppliedCatalog;
  await trx
    .updateTable('branches')
    .set({catalog_applied: version, catalog_applied_lsn: catalogLsn ?? null})
    .where('id', '=', branchId)
    .where('catalog_applied', '<', version)
    .execute();
  await trx.deleteFrom('dropped_objects').where('branch_id', '=', branchId).where('version', '<=', version).execute();
}

export async function recordStarted(trx: StoreTransaction, endpointId: string, nowMs: number): Promise<void> {
  await trx
    .updateTable('endpoints')
    .set({current_state: 'active', pending_state: null, started_at: nowMs, last_active: nowMs, updated_at: nowMs})
    .where('id', '=', endpointId)
    .execute();
}

/** SkippedError when it is gone. */
export async function liveEndpoint(store: Store, endpointId: string | null): Promise<EndpointTable> {
  const endpoint = await store
    .selectFrom('endpoints')
    .selectAll()
    .where('id', '=', endpointId ?? '')
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (!endpoint) throw new SkippedError(`endpoint ${endpointId} is gone`);
  return endpoint;
}

export function startComputePlan(context: PlanContext): Plan {
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
          return spec.mode === 'primary' ? await appliedCatalog(context, branch.id, catalogVersion) : {};
        },
        async record(trx, {operation, state, nowMs}) {
          await recordStarted(trx, operation.endpoint_id!, nowMs);
          await recordCatalogApplied(trx, state);
        },
      },
    ],
    async onFailed(trx, {operation, nowMs}) {
      await setIdle(trx, operation.endpoint_id!, nowMs);
    },
  };
}

export function suspendComputePlan({launcher}: PlanContext): Plan {
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
export function applyConfigPlan(context: PlanContext): Plan {
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
          return appliedCatalog(context, endpoint.branch_id, catalogVersion);
        },
        record: (trx, {state}) => recordCatalogApplied(trx, state),
      },
    ],
  };
}
