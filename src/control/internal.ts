/** What pageservers, proxies and computes ask of the control plane. Internal tokens; loopback or the cell's own network. */
import {sql} from 'kysely';
import {asHttpError, type Claims, requireNode, requireTenant, type TokenVerifier} from '#wire/auth.ts';
import {HttpError, type HttpRequest, type HttpResponse, type Route} from '#runtime/http.ts';
import {tenantOfShardId} from '#wire/shard.ts';
import {attachmentOf, readAttachments, shardLocations} from '#control/attachments.ts';
import {ApiError} from '#control/api/errors.ts';
import type {Endpoints} from '#control/endpoints.ts';
import {nextGeneration} from '#control/generations.ts';
import {branchOf, staticEndpoint, type StaticEndpointContext} from '#control/static-endpoints.ts';
import type {EndpointTable, Store} from '#control/store/schema.ts';
import {addTransfer} from '#control/usage.ts';

export interface InternalOptions extends StaticEndpointContext {
  readonly endpoints: Endpoints;
  readonly mintComputeToken: (tenantId: string, timelineId: string) => Promise<string>;
}

export function internalRoutes(options: InternalOptions): Route[] {
  return [
    {
      method: 'GET',
      path: '/internal/v1/alive',
      open: true,
      handler: () => Promise.resolve({status: 200, json: {alive: true}}),
    },
    guarded('POST', '/internal/v1/validate', (request, claims) => validate(options, request, claims)),
    guarded('POST', '/internal/v1/re-attach', (request, claims) => reAttach(options, request, claims)),
    guarded('GET', '/internal/v1/endpoint_access', (request, claims) => endpointAccess(options, request, claims)),
    guarded('POST', '/internal/v1/endpoints/:id/wake', (request, claims) => wake(options, request, claims)),
    guarded('POST', '/internal/v1/point_in_time', (request, claims) => pointInTime(options, request, claims)),
    guarded('GET', '/internal/v1/tenants/:tenant/locations', (request, claims) => locations(options, request, claims)),
    guarded('POST', '/internal/v1/transfer', (request, claims) => noteTransfer(options, request, claims)),
    guarded('POST', '/internal/v1/token', (_request, claims) => refreshToken(options, claims)),
  ];
}

/** AuthErrors and ApiErrors of a handler become answers of their own status. */
function guarded(
  method: string,
  path: string,
  handler: (request: HttpRequest, claims: Claims) => Promise<HttpResponse>,
): Route {
  return {
    method,
    path,
    handler: async (request) => {
      try {
        return await handler(request, request.claims as Claims);
      } catch (error) {
        if (error instanceof ApiError) throw new HttpError(error.status, error.code, error.message);
        throw asHttpError(error);
      }
    },
  };
}

export function authenticateInternal(verifier: TokenVerifier): (token: string | undefined) => Promise<Claims> {
  return async (token) => {
    try {
      return await verifier.verify(token);
    } catch (error) {
      throw asHttpError(error);
    }
  };
}

interface TenantGeneration {
  /** A shard id. */
  readonly id: string;
  readonly generation: number;
}

/**
 * Before a pageserver deletes anything: is each of these generations still the newest? Body `{tenants: [{id, generation}]}`,
 * answer `{tenants: [{id, generation, valid}]}`.
 */
async function validate({store}: InternalOptions, request: HttpRequest, claims: Claims): Promise<HttpResponse> {
  requireNode(claims, 'pageserver');
  const tenants = readTenants(await request.json());
  const known = await store
    .selectFrom('attachments')
    .selectAll()
    .where('tenant_id', 'in', tenants.length === 0 ? [''] : [...new Set(tenants.map((t) => tenantOf(t.id)))])
    .execute();
  const newest = new Map(known.map(attachmentOf).map(({shardId, generation}) => [shardId, generation]));
  return {
    status: 200,
    json: {tenants: tenants.map(({id, generation}) => ({id, generation, valid: newest.get(id) === generation}))},
  };
}

function tenantOf(shardId: string): string {
  try {
    return tenantOfShardId(shardId);
  } catch (error) {
    throw new HttpError(400, 'bad_request', (error as Error).message);
  }
}

function readTenants(body: unknown): TenantGeneration[] {
  const tenants = typeof body === 'object' && body !== null && 'tenants' in body ? body.tenants : undefined;
  const good =
    Array.isArray(tenants) &&
    tenants.length <= 10_000 &&
    tenants.every((t: Partial<TenantGeneration>) => typeof t?.id === 'string' && Number.isSafeInteger(t.generation));
  if (!good)
    throw new HttpError(400, 'bad_request', 'the body must be {tenants: [{id, generation}]}, at most 10,000 of them');
  return tenants as TenantGeneration[];
}

/**
 * A pageserver that starts asks what it holds. Every tenant gets a new generation, in the transaction that reads it: whatever
 * an earlier process of the same node may still do is stale from here on. Body `{nodeId}`, answer `{tenants: [{id, generation}],
 * secondaries: [id]}`: the latter are only to be kept ready.
 */
async function reAttach({store, clock}: InternalOptions, request: HttpRequest, claims: Claims): Promise<HttpResponse> {
  requireNode(claims, 'pageserver');
  const floor = nextGeneration(0, clock);
  const body = await request.json();
  const nodeId = typeof body === 'object' && body !== null && 'nodeId' in body ? body.nodeId : undefined;
  if (typeof nodeId !== 'number') throw new HttpError(400, 'bad_request', 'the body must be {nodeId}');
  const tenants = await store.transaction().execute(async (trx) => {
    await trx
      .updateTable('attachments')
      .set({generation: sql<number>`case when generation + 1 > ${floor} then generation + 1 else ${floor} end`})
      .where('pageserver_id', '=', nodeId)
      .execute();
    const rows = await trx.selectFrom('attachments').selectAll().where('pageserver_id', '=', nodeId).execute();
    return rows.map(attachmentOf).map(({shardId, generation}) => ({id: shardId, generation}));
  });
  const ready = await store.selectFrom('attachments').selectAll().where('secondary_id', '=', nodeId).execute();
  return {status: 200, json: {tenants, secondaries: ready.map((row) => attachmentOf(row).shardId)}};
}

/**
 * What the proxy needs to let somebody in: `?endpoint=&role=`. An unknown endpoint is 404; an unknown role has no verifier.
 * Without `endpoint`: the only one that there is, so that a laptop's connection string needs no endpoint in it.
 */
async function endpointAccess({store}: InternalOptions, request: HttpRequest, claims: Claims): Promise<HttpResponse> {
  requireNode(claims, 'proxy');
  const endpointId = request.query.get('endpoint');
  const roleName = request.query.get('role') ?? '';
  // Roles belong to the branch: somebody who connects to a point of a branch is asked for the password of now.
  const endpoint: Pick<EndpointTable, 'id' | 'branch_id' | 'project_id'> | undefined =
    (await findEndpoint(store, endpointId)) ?? (await branchAsEndpoint(store, endpointId));
  if (!endpoint)
    throw new HttpError(
      404,
      'endpoint_not_found',
      endpointId === null ? 'there is not exactly one endpoint; name one' : `there is no endpoint ${endpointId}`,
    );
  const project = await store
    .selectFrom('projects')
    .selectAll()
    .where('id', '=', endpoint.project_id)
    .executeTakeFirstOrThrow();
  const role = await store
    .selectFrom('roles')
    .selectAll()
    .where('branch_id', '=', endpoint.branch_id)
    .where('name', '=', roleName)
    .executeTakeFirst();
  const branch = await store
    .selectFrom('branches')
    .select('protected')
    .where('id', '=', endpoint.branch_id)
    .executeTakeFirstOrThrow();
  const {allowed_ips: allowed} = JSON.parse(project.settings) as {
    allowed_ips?: {ips?: string[]; protected_branches_only?: boolean};
  };
  const applies = allowed?.protected_branches_only !== true || branch.protected === 1;
  return {
    status: 200,
    json: {
      endpointId: endpoint.id,
      ...(role?.scram_verifier == null || role.no_login === 1 ? {} : {scramVerifier: role.scram_verifier}),
      projectId: endpoint.project_id,
      branchId: endpoint.branch_id,
      allowedIps: applies ? (allowed?.ips ?? []) : [],
    },
  };
}

async function branchAsEndpoint(
  store: Store,
  id: string | null,
): Promise<Pick<EndpointTable, 'id' | 'branch_id' | 'project_id'> | undefined> {
  const branch = id?.startsWith('br-') === true ? await branchOf(store, id) : undefined;
  return branch && {id: branch.id, branch_id: branch.id, project_id: branch.project_id};
}

async function findEndpoint(store: Store, endpointId: string | null): Promise<EndpointTable | undefined> {
  const live = store.selectFrom('endpoints').selectAll().where('deleted_at', 'is', null);
  if (endpointId !== null) return live.where('id', '=', endpointId).executeTakeFirst();
  const some = await live.where('type', '=', 'read_write').limit(2).execute();
  return some.length === 1 ? some[0] : undefined;
}

async function wake({endpoints}: InternalOptions, request: HttpRequest, claims: Claims): Promise<HttpResponse> {
  requireNode(claims, 'proxy');
  return {status: 200, json: await endpoints.wake(request.params['id'] ?? '')};
}

/**
 * An endpoint for a branch (or an endpoint's branch) at a point of its past: body `{target, lsn}` or `{target, timestamp}`, answer
 * `{endpointId}`. The proxy asks when it knows the caller: each answer may be a compute.
 */
async function pointInTime(options: InternalOptions, request: HttpRequest, claims: Claims): Promise<HttpResponse> {
  requireNode(claims, 'proxy');
  const {target, lsn, timestamp} = ((await request.json()) ?? {}) as Partial<Record<string, unknown>>;
  const point =
    typeof lsn === 'string' ? {lsn} : typeof timestamp === 'string' ? {timestamp: String(timestamp)} : undefined;
  if (typeof target !== 'string' || point === undefined)
    throw new HttpError(400, 'bad_request', 'the body must be {target, lsn} or {target, timestamp}');
  return {status: 200, json: {endpointId: await staticEndpoint(options, target, point)}};
}

/** Where the tenant's pages are now, for a compute whose pageserver does not hold them any more: `{shards: [ShardLocation]}`. */
async function locations(
  {store, storage}: InternalOptions,
  request: HttpRequest,
  claims: Claims,
): Promise<HttpResponse> {
  const tenantId = request.params['tenant'] ?? '';
  requireTenant(claims, ['control'], tenantId, claims.timeline);
  if ((await readAttachments(store, tenantId)).length === 0)
    throw new HttpError(404, 'tenant_not_found', `there is no tenant ${tenantId}`);
  return {status: 200, json: {shards: await shardLocations({store, storage}, tenantId)}};
}

/** A proxy tells what it has passed on to clients since the last time: body `{bytes: {endpoint id: bytes}}`. */
async function noteTransfer(
  {store, clock}: InternalOptions,
  request: HttpRequest,
  claims: Claims,
): Promise<HttpResponse> {
  requireNode(claims, 'proxy');
  const {bytes} = ((await request.json()) ?? {}) as {bytes?: unknown};
  const counts = Object.entries(typeof bytes === 'object' && bytes !== null ? bytes : {});
  if (!counts.every(([, count]) => Number.isSafeInteger(count) && (count as number) >= 0))
    throw new HttpError(400, 'bad_request', 'the body must be {bytes: {endpoint id: bytes}}');
  await addTransfer(store, clock.nowMs(), Object.fromEntries(counts) as Record<string, number>);
  return {status: 200, json: {}};
}

/** A compute changes its token for a fresh one while its branch exists. */
async function refreshToken({store, mintComputeToken}: InternalOptions, claims: Claims): Promise<HttpResponse> {
  if (claims.scope !== 'tenant' || claims.tenant === undefined || claims.timeline === undefined)
    throw new HttpError(403, 'token_scope', 'only a compute may ask for a new token');
  const branch = await store
    .selectFrom('branches')
    .select('id')
    .where('timeline_id', '=', claims.timeline)
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (!branch) throw new HttpError(403, 'branch_gone', 'the branch of this compute was deleted');
  return {status: 200, json: {token: await mintComputeToken(claims.tenant, claims.timeline)}};
}
