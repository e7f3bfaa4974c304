/** /projects/{id}/endpoints */
import {type ApiContext, branchLock, endpointLock} from '#control/api/context.ts';
import {apiErrors} from '#control/api/errors.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {createEndpointBody, updateEndpointBody} from '#control/api/schemas.ts';
import {Views} from '#control/api/views.ts';
import {newEndpoint} from '#control/endpoint-row.ts';
import {newEndpointId} from '#control/ids.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import type {EndpointTable, OperationTable, ProjectTable} from '#control/store/schema.ts';

export interface EndpointChoices {
  readonly type?: 'read_write' | 'read_only';
  readonly name?: string;
  readonly autoscaling_limit_min_cu?: number;
  readonly autoscaling_limit_max_cu?: number;
  readonly suspend_timeout_seconds?: number;
  readonly settings?: {
    readonly pg_settings?: Record<string, unknown>;
    readonly pgbouncer_settings?: Record<string, unknown>;
  };
  readonly pooler_enabled?: boolean;
  readonly disabled?: boolean;
}

export const endpointRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: '/projects/:project_id/endpoints',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      return {body: {endpoints: await listEndpoints(context, project)}};
    },
  }),
  route({
    method: 'GET',
    path: '/projects/:project_id/branches/:branch_id/endpoints',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      return {body: {endpoints: await listEndpoints(context, project, branch.id)}};
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/endpoints',
    body: createEndpointBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, body.endpoint.branch_id);
      const {result: row, operations} = await context.mutate(
        project.id,
        [branchLock(branch.id)],
        async (trx, nowMs) => {
          const created = newEndpointRow(context, project, branch.id, body.endpoint, nowMs);
          const writer = await trx
            .selectFrom('endpoints')
            .select('id')
            .where('branch_id', '=', branch.id)
            .where('type', '=', 'read_write')
            .where('deleted_at', 'is', null)
            .executeTakeFirst();
          if (writer && created.type === 'read_write')
            throw apiErrors.conflict(`read-write endpoint already exists on branch ${branch.name} (${writer.id})`);
          await trx.insertInto('endpoints').values(created).execute();
          return {operations: [startDraft(created)], result: created};
        },
      );
      return {status: 201, body: await answer(context, project, row.id, operations)};
    },
  }),
  route({
    method: 'GET',
    path: '/projects/:project_id/endpoints/:endpoint_id',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const endpoint = await context.endpoint(project, params.endpoint_id);
      // How far a replica is behind is known to its compute alone.
      const report = endpoint.type === 'read_only' ? await context.endpoints.report(endpoint.id) : undefined;
      return {body: {endpoint: new Views(context.config).endpoint(endpoint, report)}};
    },
  }),
  route({
    method: 'PATCH',
    path: '/projects/:project_id/endpoints/:endpoint_id',
    body: updateEndpointBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const endpoint = await context.endpoint(project, params.endpoint_id);
      const change: EndpointChoices = body.endpoint;
      const minCu = change.autoscaling_limit_min_cu ?? endpoint.autoscaling_limit_min_cu;
      const maxCu = change.autoscaling_limit_max_cu ?? Math.max(minCu, endpoint.autoscaling_limit_max_cu);
      if (minCu > maxCu) throw apiErrors.badRequest('autoscaling_limit_min_cu is above autoscaling_limit_max_cu');
      const {operations} = await context.mutate(project.id, [endpointLock(endpoint.id)], async (trx, nowMs) => {
        await trx
          .updateTable('endpoints')
          .set({
            updated_at: nowMs,
            autoscaling_limit_min_cu: minCu,
            autoscaling_limit_max_cu: maxCu,
            ...(change.name === undefined ? {} : {name: change.name}),
            ...(change.suspend_timeout_seconds === undefined
              ? {}
              : {suspend_timeout_seconds: checkSuspendTimeout(change.suspend_timeout_seconds)}),
            ...(change.settings === undefined ? {} : {settings: settingsText(change.settings)}),
            ...(change.pooler_enabled === undefined ? {} : {pooler_enabled: change.pooler_enabled ? 1 : 0}),
            ...(change.disabled === undefined ? {} : {disabled: change.disabled ? 1 : 0}),
          })
          .where('id', '=', endpoint.id)
          .execute();
        // Settings of Postgres take effect at a start; a disabled endpoint must not go on running.
        const wasActive = endpoint.current_state === 'active';
        const operations: OperationDraft[] =
          change.disabled === true && wasActive
            ? [suspendDraft(endpoint)]
            : change.settings !== undefined && wasActive
              ? [suspendDraft(endpoint), startDraft(endpoint)]
              : [];
        return {operations, result: undefined};
      });
      return {body: await answer(context, project, endpoint.id, operations)};
    },
  }),
  route({
    method: 'DELETE',
    path: '/projects/:project_id/endpoints/:endpoint_id',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const endpoint = await context.endpoint(project, params.endpoint_id);
      const {operations} = await context.mutate(project.id, [endpointLock(endpoint.id)], async (trx, nowMs) => {
        await trx
          .updateTable('endpoints')
          .set({deleted_at: nowMs, updated_at: nowMs})
          .where('id', '=', endpoint.id)
          .execute();
        return {operations: [suspendDraft(endpoint)], result: undefined};
      });
      const views = new Views(context.config);
      return {
        body: {
          endpoint: views.endpoint({...endpoint, current_state: 'idle'}),
          operations: operations.map((o) => views.operation(o)),
        },
      };
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/endpoints/:endpoint_id/start',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const endpoint = await context.endpoint(project, params.endpoint_id);
      if (endpoint.disabled === 1) throw apiErrors.endpointDisabled(endpoint.id);
      const {operations} = await context.mutate(project.id, [endpointLock(endpoint.id)], async (trx, nowMs) => {
        if (endpoint.current_state === 'active') return {operations: [], result: undefined};
        await trx
          .updateTable('endpoints')
          .set({pending_state: 'active', updated_at: nowMs})
          .where('id', '=', endpoint.id)
          .execute();
        return {operations: [startDraft(endpoint)], result: undefined};
      });
      const failed = operations.find((o) => o.status === 'failed');
      if (failed)
        throw apiErrors.notReady(`endpoint ${endpoint.id} could not be started: ${failed.error ?? 'unknown reason'}`);
      return {body: await answer(context, project, endpoint.id, operations)};
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/endpoints/:endpoint_id/suspend',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const endpoint = await context.endpoint(project, params.endpoint_id);
      const {operations} = await context.mutate(project.id, [endpointLock(endpoint.id)], async (trx, nowMs) => {
        if (endpoint.current_state === 'idle') return {operations: [], result: undefined};
        await trx
          .updateTable('endpoints')
          .set({pending_state: 'idle', updated_at: nowMs})
          .where('id', '=', endpoint.id)
          .execute();
        return {operations: [suspendDraft(endpoint)], result: undefined};
      });
      return {body: await answer(context, project, endpoint.id, operations)};
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/endpoints/:endpoint_id/restart',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const endpoint = await context.endpoint(project, params.endpoint_id);
      if (endpoint.disabled === 1) throw apiErrors.endpointDisabled(endpoint.id);
      const {operations} = await context.mutate(project.id, [endpointLock(endpoint.id)], async (trx, nowMs) => {
        await trx
          .updateTable('endpoints')
          .set({pending_state: 'active', updated_at: nowMs})
          .where('id', '=', endpoint.id)
          .execute();
        return {operations: [suspendDraft(endpoint), startDraft(endpoint)], result: undefined};
      });
      return {body: await answer(context, project, endpoint.id, operations)};
    },
  }),
];

/** A row for a new endpoint; ApiError for what we cannot run. */
export function newEndpointRow(
  context: ApiContext,
  project: ProjectTable,
  branchId: string,
  wanted: EndpointChoices,
  nowMs: number,
): EndpointTable {
  const defaults = JSON.parse(project.default_endpoint_settings) as EndpointChoices & {
    pg_settings?: Record<string, unknown>;
  };
  const minCu = wanted.autoscaling_limit_min_cu ?? defaults.autoscaling_limit_min_cu ?? 0.25;
  const maxCu = wanted.autoscaling_limit_max_cu ?? Math.max(minCu, defaults.autoscaling_limit_max_cu ?? minCu);
  if (minCu > maxCu) throw apiErrors.badRequest('autoscaling_limit_min_cu is above autoscaling_limit_max_cu');
  return newEndpoint(
    {
      id: newEndpointId(context.random),
      project_id: project.id,
      branch_id: branchId,
      type: wanted.type ?? 'read_write',
      name: wanted.name ?? null,
      autoscaling_limit_min_cu: minCu,
      autoscaling_limit_max_cu: maxCu,
      suspend_timeout_seconds: checkSuspendTimeout(
        wanted.suspend_timeout_seconds ?? defaults.suspend_timeout_seconds ?? 0,
      ),
      settings: settingsText(
        wanted.settings ?? (defaults.pg_settings === undefined ? {} : {pg_settings: defaults.pg_settings}),
      ),
      pooler_enabled: wanted.pooler_enabled === true ? 1 : 0,
      disabled: wanted.disabled === true ? 1 : 0,
    },
    nowMs,
  );
}

/** -1 never, 0 the default, else 60 s to 7 days. */
function checkSuspendTimeout(seconds: number): number {
  if (seconds > 0 && seconds < 60)
    throw apiErrors.badRequest('suspend_timeout_seconds is -1 (never), 0 (default) or at least 60');
  return seconds;
}

/** Values of settings as Postgres reads them: text. */
function settingsText(settings: NonNullable<EndpointChoices['settings']>): string {
  const {pg_settings: values, ...rest} = settings;
  return JSON.stringify(
    values === undefined
      ? rest
      : {
          ...rest,
          pg_settings: Object.fromEntries(Object.entries(values).map(([name, value]) => [name, String(value)])),
        },
  );
}

function startDraft(endpoint: EndpointTable): OperationDraft {
  const {project_id: projectId, branch_id: branchId, id: endpointId} = endpoint;
  return {
    projectId,
    branchId,
    endpointId,
    action: 'start_compute',
    kind: 'start_compute',
    locks: [branchLock(branchId), endpointLock(endpointId)],
  };
}

function suspendDraft(endpoint: EndpointTable): OperationDraft {
  const {project_id: projectId, branch_id: branchId, id: endpointId} = endpoint;
  return {
    projectId,
    branchId,
    endpointId,
    action: 'suspend_compute',
    kind: 'suspend_compute',
    locks: [endpointLock(endpointId)],
  };
}

export async function listEndpoints(
  context: ApiContext,
  project: ProjectTable,
  branchId?: string,
): Promise<Record<string, unknown>[]> {
  let query = context.store
    .selectFrom('endpoints')
    .selectAll()
    .where('project_id', '=', project.id)
    .where('static_lsn', 'is', null)
    .where('deleted_at', 'is', null);
  if (branchId !== undefined) query = query.where('branch_id', '=', branchId);
  const views = new Views(context.config);
  return (await query.orderBy('created_at').orderBy('id').execute()).map((e) => views.endpoint(e));
}

async function answer(
  context: ApiContext,
  project: ProjectTable,
  endpointId: string,
  operations: readonly OperationTable[],
): Promise<unknown> {
  const views = new Views(context.config);
  return {
    endpoint: views.endpoint(await context.endpoint(project, endpointId)),
    operations: operations.map((o) => views.operation(o)),
  };
}
