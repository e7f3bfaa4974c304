/** Who I am, organisations, API keys, regions, operations, connection strings. */
import {revealPassword} from '#control/api/catalog.ts';
import {findDatabase, findRole} from '#control/api/catalog-routes.ts';
import type {ApiContext} from '#control/api/context.ts';
import {apiErrors} from '#control/api/errors.ts';
import {cutPage} from '#control/api/pages.ts';
import {insertApiKey, makeApiKey, type Principal} from '#control/api/principal.ts';
import {type ApiAnswer, type ApiRoute, route} from '#control/api/route.ts';
import {connectionUriQuery, createApiKeyBody, listQuery} from '#control/api/schemas.ts';
import {Views} from '#control/api/views.ts';
import type {ApiKeyTable, EndpointTable, OrganizationTable, UserTable} from '#control/store/schema.ts';

const operationListLimitDefault = 100;

export const accountRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: '/auth',
    handler: (_context, {principal}) =>
      Promise.resolve({
        body: {
          account_id: principal.organizationId ?? principal.userId,
          auth_method: principal.kind === 'personal' ? 'api_key_user' : 'api_key_org',
          auth_data: String(principal.apiKeyId),
        },
      }),
  }),
  route({
    method: 'GET',
    path: '/users/me',
    handler: async (context, {principal}) => {
      const user = await currentUser(context, principal);
      return {
        body: {
          id: user.id,
          login: user.login,
          email: user.email,
          name: user.name,
          last_name: '',
          image: '',
          projects_limit: 10_000,
          branches_limit: 10_000,
          max_autoscaling_limit: 56,
          active_seconds_limit: 0,
          auth_accounts: [],
          plan: 'free',
        },
      };
    },
  }),
  route({
    method: 'GET',
    path: '/users/me/organizations',
    handler: async (context, {principal}) => {
      const views = new Views(context.config);
      const organizations = (
        await context.store.selectFrom('organizations').selectAll().orderBy('created_at').execute()
      ).filter((o) => principal.organizationId === undefined || o.id === principal.organizationId);
      return {body: {organizations: organizations.map((o) => views.organization(o))}};
    },
  }),
  route({
    method: 'GET',
    path: '/organizations/:org_id',
    handler: async (context, {params, principal}) => ({
      body: new Views(context.config).organization(await organization(context, principal, params.org_id)),
    }),
  }),
  route({
    method: 'GET',
    path: '/regions',
    handler: (context) =>
      Promise.resolve({
        body: {
          regions: [
            {region_id: context.config.regionId, name: 'This machine', default: true, geo_lat: '', geo_long: ''},
          ],
        },
      }),
  }),

  route({method: 'GET', path: '/api_keys', handler: (context, {principal}) => listKeys(context, principal, undefined)}),
  route({
    method: 'POST',
    path: '/api_keys',
    body: createApiKeyBody,
    handler: (context, {body, principal}) => createKey(context, principal, body, undefined),
  }),
  route({
    method: 'DELETE',
    path: '/api_keys/:key_id',
    handler: (context, {params, principal}) => revokeKey(context, principal, params.key_id, undefined),
  }),
  route({
    method: 'GET',
    path: '/organizations/:org_id/api_keys',
    handler: async (context, {params, principal}) =>
      listKeys(context, principal, await organization(context, principal, params.org_id)),
  }),
  route({
    method: 'POST',
    path: '/organizations/:org_id/api_keys',
    body: createApiKeyBody,
    handler: async (context, {params, body, principal}) =>
      createKey(context, principal, body, await organization(context, principal, params.org_id)),
  }),
  route({
    method: 'DELETE',
    path: '/organizations/:org_id/api_keys/:key_id',
    handler: async (context, {params, principal}) =>
      revokeKey(context, principal, params.key_id, await organization(context, principal, params.org_id)),
  }),

  route({
    method: 'GET',
    path: '/projects/:project_id/operations',
    query: listQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const all = await context.store
        .selectFrom('operations')
        .selectAll()
        .where('project_id', '=', project.id)
        .execute();
      const page = cutPage(all, {
        key: (o) => [o.seq, o.id],
        descending: true,
        limit: query.limit ?? operationListLimitDefault,
        cursor: query.cursor,
      });
      const views = new Views(context.config);
      return {
        body: {
          operations: page.items.map((o) => views.operation(o)),
          ...(page.next === undefined ? {} : {pagination: {cursor: page.next}}),
        },
      };
    },
  }),
  route({
    method: 'GET',
    path: '/projects/:project_id/operations/:operation_id',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const [operation] = await context.operations([params.operation_id]);
      if (!operation || operation.project_id !== project.id) throw apiErrors.notFound('operation', params.operation_id);
      return {body: {operation: new Views(context.config).operation(operation)}};
    },
  }),
  route({
    method: 'GET',
    path: '/projects/:project_id/connection_uri',
    query: connectionUriQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = query.branch_id === undefined ? undefined : await context.branch(project, query.branch_id);
      const endpoint = query.endpoint_id === undefined ? undefined : await context.endpoint(project, query.endpoint_id);
      if (branch && endpoint && endpoint.branch_id !== branch.id)
        throw apiErrors.badRequest(`endpoint ${endpoint.id} belongs to another branch than ${branch.id}`);
      const onBranch =
        branch ?? (endpoint ? await context.branch(project, endpoint.branch_id) : await context.defaultBranch(project));
      const target = endpoint ?? (await writerOf(context, onBranch.id));
      if (!target) throw apiErrors.notFound('endpoint of branch', onBranch.id);
      const role = await findRole(context, onBranch, query.role_name);
      const database = await findDatabase(context, onBranch, query.database_name);
      const address = context.config.proxy === undefined ? await directAddress(context, target.id) : undefined;
      const {connection_uri: uri, connection_parameters: parameters} = new Views(context.config).connection({
        endpointId: target.id,
        role: role.name,
        password: revealPassword(context, role),
        database: database.name,
        ...(address === undefined ? {} : {address}),
      });
      const pooled =
        query.pooled === true ? uri.replace(String(parameters['host']), String(parameters['pooler_host'])) : uri;
      return {body: {uri: pooled}};
    },
  }),
];

async function writerOf(context: ApiContext, branchId: string): Promise<EndpointTable | undefined> {
  return context.store
    .selectFrom('endpoints')
    .selectAll()
    .where('branch_id', '=', branchId)
    .where('type', '=', 'read_write')
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
}

/** Without a proxy nobody would wake the compute at connect: it is woken here. */
async function directAddress(context: ApiContext, endpointId: string): Promise<string> {
  const {host, port} = await context.endpoints.wake(endpointId);
  return `${host}:${port}`;
}

async function currentUser(context: ApiContext, principal: Principal): Promise<UserTable> {
  return context.store.selectFrom('users').selectAll().where('id', '=', principal.userId).executeTakeFirstOrThrow();
}

async function organization(context: ApiContext, principal: Principal, id: string): Promise<OrganizationTable> {
  const found = await context.store.selectFrom('organizations').selectAll().where('id', '=', id).executeTakeFirst();
  if (!found || (principal.organizationId !== undefined && principal.organizationId !== id))
    throw apiErrors.notFound('organization', id);
  return found;
}

/** A key must not make or see keys that can do more than itself. */
function requireKeyManager(principal: Principal, ofOrganization: OrganizationTable | undefined): void {
  if (principal.kind === 'project') throw apiErrors.forbidden('a key of one project cannot manage API keys');
  if (principal.kind === 'organization' && !ofOrganization)
    throw apiErrors.forbidden('this is not allowed for organization API keys');
}

async function keysOf(
  context: ApiContext,
  principal: Principal,
  of: OrganizationTable | undefined,
): Promise<ApiKeyTable[]> {
  const all = await context.store
    .selectFrom('api_keys')
    .selectAll()
    .where('revoked_at', 'is', null)
    .orderBy('id')
    .execute();
  return all.filter((key) =>
    of ? key.organization_id === of.id : key.kind === 'personal' && key.user_id === principal.userId,
  );
}

async function listKeys(
  context: ApiContext,
  principal: Principal,
  of: OrganizationTable | undefined,
): Promise<ApiAnswer> {
  requireKeyManager(principal, of);
  const views = new Views(context.config);
  const user = await currentUser(context, principal);
  return {body: (await keysOf(context, principal, of)).map((key) => views.apiKey(key, user.name))};
}

async function createKey(
  context: ApiContext,
  principal: Principal,
  body: {readonly key_name: string; readonly project_id?: string},
  of: OrganizationTable | undefined,
): Promise<ApiAnswer> {
  requireKeyManager(principal, of);
  const project = body.project_id === undefined ? undefined : await context.project(principal, body.project_id);
  if (project && of && project.organization_id !== of.id) throw apiErrors.notFound('project', project.id);
  const key = makeApiKey(context.random);
  const nowMs = context.clock.nowMs();
  const id = await context.store.transaction().execute((trx) =>
    insertApiKey(trx, {
      name: body.key_name,
      kind: project ? 'project' : of ? 'organization' : 'personal',
      user_id: principal.userId,
      organization_id: of?.id ?? project?.organization_id ?? null,
      project_id: project?.id ?? null,
      key,
      nowMs,
    }),
  );
  const row = await context.store.selectFrom('api_keys').selectAll().where('id', '=', id).executeTakeFirstOrThrow();
  const {last_used_from_addr: _address, ...view} = new Views(context.config).apiKey(row, '');
  // Lists name the maker as an object; the answers to creation and revocation by id alone.
  return {status: 200, body: {...view, key, created_by: row.user_id}};
}

async function revokeKey(
  context: ApiContext,
  principal: Principal,
  keyId: string,
  of: OrganizationTable | undefined,
): Promise<ApiAnswer> {
  requireKeyManager(principal, of);
  const key = (await keysOf(context, principal, of)).find((k) => String(k.id) === keyId);
  if (!key) throw apiErrors.notFound('API key', keyId);
  await context.store
    .updateTable('api_keys')
    .set({revoked_at: context.clock.nowMs()})
    .where('id', '=', key.id)
    .execute();
  return {body: {...new Views(context.config).apiKey(key, ''), created_by: key.user_id, revoked: true}};
}
