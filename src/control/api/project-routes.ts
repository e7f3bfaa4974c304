/** /projects */
import {newId} from '#runtime/random.ts';
import {apiErrors} from '#control/api/errors.ts';
import {checkDatabaseName, checkRoleName, newPassword} from '#control/api/catalog.ts';
import {nextDatabaseId} from '#control/catalog-copy.ts';
import {type ApiContext, branchLock, endpointLock, projectLock} from '#control/api/context.ts';
import {newEndpointRow} from '#control/api/endpoint-routes.ts';
import {cutPage} from '#control/api/pages.ts';
import type {Principal} from '#control/api/principal.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {createProjectBody, listQuery, updateProjectBody} from '#control/api/schemas.ts';
import {Views} from '#control/api/views.ts';
import {newBranch} from '#control/branch-row.ts';
import {newSystemId} from '#control/bootstrap.ts';
import {nextGeneration} from '#control/generations.ts';
import {newBranchId, newProjectId} from '#control/ids.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {pageserverLoad, placeNewTimeline, placeShards} from '#control/placement.ts';
import {forgetProject} from '#control/store/forget.ts';
import type {ProjectTable} from '#control/store/schema.ts';
import {readUsage, totalUsage, type Usage} from '#control/usage.ts';

/** What is installed; more majors follow. */
const pgVersion = 15;
const historyRetentionSecondsDefault = 86_400;
const listLimitDefault = 10;

export const projectRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: '/projects',
    query: listQuery,
    handler: async (context, {query, principal}) => {
      const views = new Views(context.config);
      const organizations = await context.store.selectFrom('organizations').selectAll().execute();
      let projects = await visibleProjects(context, principal, query.recoverable);
      if (query.org_id !== undefined) projects = projects.filter((p) => p.organization_id === query.org_id);
      if (query.search !== undefined) {
        const search = query.search.toLowerCase();
        projects = projects.filter((p) => p.name.toLowerCase().includes(search) || p.id.includes(search));
      }
      const page = cutPage(projects, {
        key: (p) => [p.created_at, p.id],
        descending: true,
        limit: query.limit ?? listLimitDefault,
        cursor: query.cursor,
      });
      return {
        body: {
          projects: await Promise.all(
            page.items.map(async (p) =>
              views.projectListItem(
                p,
                organizations.find((o) => o.id === p.organization_id),
                await projectUsage(context, p),
              ),
            ),
          ),
          ...(page.next === undefined ? {} : {pagination: {cursor: page.next}}),
          applications: {},
          integrations: {},
        },
      };
    },
  }),
  route({
    method: 'GET',
    path: '/projects/shared',
    query: listQuery,
    handler: () => Promise.resolve({body: {projects: []}}),
  }),
  route({
    method: 'POST',
    path: '/projects',
    body: createProjectBody,
    handler: (context, request) => createProject(context, request),
  }),
  route({
    method: 'GET',
    path: '/projects/:project_id',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      return {body: {project: await projectView(context, project)}};
    },
  }),
  route({
    method: 'PATCH',
    path: '/projects/:project_id',
    body: updateProjectBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const change = body.project;
      const {operations} = await context.mutate(project.id, [], async (trx, nowMs) => {
        await trx
          .updateTable('projects')
          .set({
            updated_at: nowMs,
            ...(change.name === undefined ? {} : {name: change.name}),
            ...(change.settings === undefined
              ? {}
              : {settings: JSON.stringify({...(JSON.parse(project.settings) as object), ...change.settings})}),
            ...(change.default_endpoint_settings === undefined
              ? {}
              : {default_endpoint_settings: JSON.stringify(change.default_endpoint_settings)}),
            ...(change.history_retention_seconds === undefined
              ? {}
              : {history_retention_seconds: change.history_retention_seconds}),
          })
          .where('id', '=', project.id)
          .execute();
        const window = change.history_retention_seconds;
        const operations: OperationDraft[] =
          window === undefined || window === project.history_retention_seconds
            ? []
            : [
                {
                  projectId: project.id,
                  action: 'apply_storage_config',
                  kind: 'apply_retention',
                  locks: [`retention:${project.id}`],
                },
              ];
        return {operations, result: undefined};
      });
      const views = new Views(context.config);
      const now = await context.project(principal, project.id);
      return {
        body: {
          project: await projectView(context, now),
          operations: operations.map((o) => views.operation(o)),
        },
      };
    },
  }),
  route({
    method: 'DELETE',
    path: '/projects/:project_id',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branches = await context.store
        .selectFrom('branches')
        .select('id')
        .where('project_id', '=', project.id)
        .execute();
      const endpoints = await context.store
        .selectFrom('endpoints')
        .select('id')
        .where('project_id', '=', project.id)
        .execute();
      const locks = [
        projectLock(project.id),
        ...branches.map((b) => branchLock(b.id)),
        ...endpoints.map((e) => endpointLock(e.id)),
      ];
      await context.mutate(project.id, locks, async (trx, nowMs) => {
        await forgetProject(trx, project.id, nowMs, nowMs + context.recoveryMs);
        return {
          operations: [{projectId: project.id, action: 'delete_timeline', kind: 'delete_project', locks}],
          result: undefined,
        };
      });
      return {body: {project: await projectView(context, project)}};
    },
  }),
];

async function projectUsage(context: ApiContext, project: ProjectTable): Promise<Usage> {
  return totalUsage((await readUsage(context.store, project.id, context.clock.nowMs())).values());
}

export async function projectView(context: ApiContext, project: ProjectTable): Promise<Record<string, unknown>> {
  return new Views(context.config).project(project, context.clock.nowMs(), await projectUsage(context, project));
}

/** Those that live, or instead those that are deleted and can be recovered. */
async function visibleProjects(
  context: ApiContext,
  principal: Principal,
  recoverable = false,
): Promise<ProjectTable[]> {
  let query = context.store.selectFrom('projects').selectAll();
  query = recoverable
    ? query.where('deleted_at', 'is not', null).where('purge_at', '>', context.clock.nowMs())
    : query.where('deleted_at', 'is', null);
  if (principal.organizationId !== undefined) query = query.where('organization_id', '=', principal.organizationId);
  if (principal.projectId !== undefined) query = query.where('id', '=', principal.projectId);
  return query.execute();
}

/** A data directory on this machine, and what its role 10 is called. */
export interface ImportSource {
  readonly directory: string;
  readonly superuser: string;
}

/** A fresh project, or one from a data directory: then its roles and databases are found in there. */
export async function createProject(
  context: ApiContext,
  {
    body,
    principal,
  }: {
    readonly body: {readonly project: CreateProject};
    readonly principal: Pick<Principal, 'kind' | 'userId' | 'organizationId'>;
  },
  source?: ImportSource,
): Promise<{status: number; body: unknown}> {
  const wanted = body.project;
  if (principal.kind === 'project') throw apiErrors.forbidden('a key of one project cannot make projects');
  if (wanted.pg_version !== undefined && wanted.pg_version !== pgVersion)
    throw apiErrors.badRequest(`PostgreSQL ${wanted.pg_version} is not installed here; ${pgVersion} is`);
  if (wanted.region_id !== undefined && wanted.region_id !== context.config.regionId)
    throw apiErrors.badRequest(`there is no region ${wanted.region_id} here; the region is ${context.config.regionId}`);
  const organization = await chooseOrganization(context, principal, wanted.org_id);
  const databaseName = wanted.branch?.database_name ?? 'neondb';
  const roleName = wanted.branch?.role_name ?? `${databaseName}_owner`;
  checkRoleName(roleName);
  checkDatabaseName(databaseName);
  const places = placeShards({
    nodes: context.storage.pageservers,
    count: context.config.shardsPerTenant ?? 1,
    avoid: context.deadPageservers(),
    load: await pageserverLoad(context.store),
  });
  if (places.length === 0 || context.storage.safekeepers.length === 0)
    throw apiErrors.notReady('the control plane knows no pageserver or no safekeeper');

  const {random} = context;
  const projectId = newProjectId(random);
  const branchId = newBranchId(random);
  const nowMs = context.clock.nowMs();
  const defaults = wanted.default_endpoint_settings ?? {};
  const minCu = wanted.autoscaling_limit_min_cu ?? defaults.autoscaling_limit_min_cu ?? 0.25;
  const maxCu = Math.max(minCu, wanted.autoscaling_limit_max_cu ?? defaults.autoscaling_limit_max_cu ?? minCu);
  const project: ProjectTable = {
    id: projectId,
    name: wanted.name ?? projectId,
    organization_id: organization,
    owner_id: principal.userId,
    region_id: context.config.regionId,
    pg_version: pgVersion,
    tenant_id: newId(random),
    system_id: newSystemId(nowMs, random),
    settings: JSON.stringify(wanted.settings ?? {}),
    default_endpoint_settings: JSON.stringify({
      autoscaling_limit_min_cu: minCu,
      autoscaling_limit_max_cu: maxCu,
      suspend_timeout_seconds: 0,
      ...defaults,
    }),
    history_retention_seconds: wanted.history_retention_seconds ?? historyRetentionSecondsDefault,
    store_passwords: wanted.store_passwords === false ? 0 : 1,
    created_at: nowMs,
    updated_at: nowMs,
    deleted_at: null,
    purge_at: null,
  };
  const endpointRow = newEndpointRow(
    context,
    project,
    branchId,
    {autoscaling_limit_min_cu: minCu, autoscaling_limit_max_cu: maxCu},
    nowMs,
  );
  const endpointId = endpointRow.id;
  const secret = source ? undefined : await newPassword(context, project, branchId, roleName);
  const {operations} = await context.mutate(projectId, [], async (trx) => {
    await trx.insertInto('projects').values(project).execute();
    await trx
      .insertInto('attachments')
      .values(
        places.map(({pageserverId, secondaryId}, number) => ({
          tenant_id: project.tenant_id,
          shard_number: number,
          shard_count: places.length,
          pageserver_id: pageserverId,
          generation: nextGeneration(0, context.clock),
          secondary_id: secondaryId ?? null,
        })),
      )
      .execute();
    await trx
      .insertInto('branches')
      .values(
        newBranch(
          {
            id: branchId,
            project_id: projectId,
            name: wanted.branch?.name ?? 'main',
            timeline_id: newId(random),
            parent_id: null,
            is_default: 1,
            safekeepers: await placeNewTimeline(trx, context.storage.safekeepers),
            catalog_version: 1,
          },
          nowMs,
        ),
      )
      .execute();
    if (secret) {
      await trx
        .insertInto('roles')
        .values({
          branch_id: branchId,
          name: roleName,
          password_sealed: secret.sealed,
          scram_verifier: secret.verifier,
          no_login: 0,
          protected: 0,
          created_at: nowMs,
          updated_at: nowMs,
        })
        .execute();
      await trx
        .insertInto('databases')
        .values({
          id: await nextDatabaseId(trx),
          branch_id: branchId,
          name: databaseName,
          owner_name: roleName,
          created_at: nowMs,
          updated_at: nowMs,
        })
        .execute();
    }
    await trx.insertInto('endpoints').values(endpointRow).execute();
    return {
      operations: source
        ? [
            {
              projectId,
              branchId,
              endpointId,
              action: 'create_timeline',
              kind: 'import_root',
              locks: [branchLock(branchId), endpointLock(endpointId)],
              state: {...source},
            },
          ]
        : [
            {projectId, branchId, action: 'create_timeline', kind: 'create_root', locks: [branchLock(branchId)]},
            {
              projectId,
              branchId,
              endpointId,
              action: 'start_compute',
              kind: 'start_compute',
              locks: [branchLock(branchId), endpointLock(endpointId)],
            },
          ],
      result: undefined,
    };
  });
  const failed = operations.find((o) => o.kind.endsWith('_root') && o.status === 'failed');
  if (failed) throw apiErrors.unprocessable(`the project could not be made: ${failed.error ?? 'unknown reason'}`);
  const views = new Views(context.config);
  const branch = await context.branch(project, branchId);
  const endpoint = await context.endpoint(project, endpointId);
  const roles = await context.store.selectFrom('roles').selectAll().where('branch_id', '=', branchId).execute();
  const databases = await context.store.selectFrom('databases').selectAll().where('branch_id', '=', branchId).execute();
  return {
    status: 201,
    body: {
      project: await projectView(context, project),
      connection_uris: secret
        ? [views.connection({endpointId, role: roleName, password: secret.password, database: databaseName})]
        : [],
      roles: roles.map((r) => views.role(r, secret?.password)),
      databases: databases.map((d) => views.database(d)),
      operations: operations.map((o) => views.operation(o)),
      branch: views.branch(branch),
      endpoints: [views.endpoint(endpoint)],
    },
  };
}

interface CreateProject {
  readonly name?: string;
  readonly region_id?: string;
  readonly org_id?: string;
  readonly pg_version?: number;
  readonly branch?: {readonly name?: string; readonly role_name?: string; readonly database_name?: string};
  readonly default_endpoint_settings?: {
    readonly pg_settings?: Record<string, unknown>;
    readonly autoscaling_limit_min_cu?: number;
    readonly autoscaling_limit_max_cu?: number;
    readonly suspend_timeout_seconds?: number;
  };
  readonly autoscaling_limit_min_cu?: number;
  readonly autoscaling_limit_max_cu?: number;
  readonly settings?: unknown;
  readonly store_passwords?: boolean;
  readonly history_retention_seconds?: number;
}

async function chooseOrganization(
  context: ApiContext,
  principal: Pick<Principal, 'organizationId'>,
  wanted: string | undefined,
): Promise<string> {
  if (principal.organizationId !== undefined && wanted !== undefined && wanted !== principal.organizationId)
    throw apiErrors.forbidden('this API key belongs to another organization');
  const id = wanted ?? principal.organizationId;
  const organizations = await context.store.selectFrom('organizations').selectAll().execute();
  if (id === undefined) {
    const only = organizations[0];
    // The words that make the CLI ask which one.
    if (organizations.length !== 1 || !only) throw apiErrors.badRequest('org_id is required');
    return only.id;
  }
  if (!organizations.some((o) => o.id === id)) throw apiErrors.notFound('organization', id);
  return id;
}
