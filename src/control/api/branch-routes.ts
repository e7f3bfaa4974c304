/** /projects/{id}/branches */
import {parseTime} from '#runtime/time-format.ts';
import {newId} from '#runtime/random.ts';
import {revealPassword} from '#control/api/catalog.ts';
import {type ApiContext, branchLock, endpointLock} from '#control/api/context.ts';
import {newEndpointRow} from '#control/api/endpoint-routes.ts';
import {apiErrors} from '#control/api/errors.ts';
import {detachLock} from '#control/branch-admin.ts';
import {cutPage} from '#control/api/pages.ts';
import type {Principal} from '#control/api/principal.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {branchListQuery, createBranchBody, deleteBranchQuery, updateBranchBody} from '#control/api/schemas.ts';
import {type StorageFacts, Views} from '#control/api/views.ts';
import {copyCatalog} from '#control/catalog-copy.ts';
import {newBranch} from '#control/branch-row.ts';
import {newBranchId, newEndpointId} from '#control/ids.ts';
import {type Lsn, parseLsn} from '#control/lsn.ts';
import {readCommittedPosition} from '#control/operations/branch-point.ts';
import {placeNewTimeline} from '#control/placement.ts';
import {readSafekeeperSet} from '#control/safekeeper-set.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {forgetBranch} from '#control/store/forget.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import type {
  BranchTable,
  EndpointTable,
  OperationTable,
  ProjectTable,
  StoreTransaction,
} from '#control/store/schema.ts';
import {readUsage} from '#control/usage.ts';

const listLimitDefault = 10_000;

export const branchRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: '/projects/:project_id/branches',
    query: branchListQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const sortBy = query.sort_by ?? 'updated_at';
      const order = query.sort_order ?? 'desc';
      const search = query.search?.toLowerCase();
      const branches = (await liveBranches(context, project, query.include_deleted)).filter(
        (b) => search === undefined || b.name.toLowerCase().includes(search) || b.id.includes(search),
      );
      const page = cutPage(branches, {
        key: (b) => [b[sortBy], b.id],
        descending: order === 'desc',
        limit: query.limit ?? listLimitDefault,
        cursor: query.cursor,
      });
      const facts = await storageFacts(context, project, page.items);
      const usage = await readUsage(context.store, project.id, context.clock.nowMs());
      const views = new Views(context.config);
      return {
        body: {
          branches: page.items.map((b, i) => views.branch(b, facts[i], usage.get(b.id))),
          annotations: {},
          pagination: {
            ...(page.next === undefined ? {} : {next: page.next}),
            sort_by: sortBy,
            sort_order: order.toUpperCase(),
          },
        },
      };
    },
  }),
  route({
    method: 'GET',
    path: '/projects/:project_id/branches/count',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      return {body: {count: (await liveBranches(context, project)).length}};
    },
  }),
  route({method: 'POST', path: '/projects/:project_id/branches', body: createBranchBody, handler: createBranch}),
  route({
    method: 'GET',
    path: '/projects/:project_id/branches/:branch_id',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      const [facts] = await storageFacts(context, project, [branch]);
      const usage = await readUsage(context.store, project.id, context.clock.nowMs());
      const wal = await walFacts(context, project, branch);
      return {
        body: {
          branch: new Views(context.config).branch(branch, {...facts, ...wal}, usage.get(branch.id)),
          annotation: {object: {type: 'console/branch', id: branch.id}, value: {}},
        },
      };
    },
  }),
  route({
    method: 'PATCH',
    path: '/projects/:project_id/branches/:branch_id',
    body: updateBranchBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      const {name, protected: isProtected} = body.branch;
      const expiresAt = body.branch.expires_at === undefined ? undefined : readExpiry(context, body.branch.expires_at);
      if (
        expiresAt !== undefined &&
        expiresAt !== null &&
        (branch.is_default === 1 || (isProtected ?? branch.protected === 1))
      )
        throw apiErrors.unprocessable('a default or protected branch cannot expire');
      await context.mutate(project.id, [branchLock(branch.id)], async (trx, nowMs) => {
        if (name !== undefined && name !== branch.name) await checkBranchName(trx, project.id, name);
        await trx
          .updateTable('branches')
          .set({
            updated_at: nowMs,
            ...(name === undefined ? {} : {name}),
            ...(isProtected === undefined ? {} : {protected: isProtected ? 1 : 0}),
            ...(expiresAt === undefined ? {} : {expires_at: expiresAt}),
          })
          .where('id', '=', branch.id)
          .execute();
        return {operations: [], result: undefined};
      });
      return {
        body: {branch: new Views(context.config).branch(await context.branch(project, branch.id)), operations: []},
      };
    },
  }),
  route({
    method: 'DELETE',
    path: '/projects/:project_id/branches/:branch_id',
    query: deleteBranchQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context
        .branch(project, params.branch_id)
        .catch((error: unknown) =>
          query.hard_delete === true ? context.recoverableBranch(project, params.branch_id) : Promise.reject(error),
        );
      const operations = await deleteBranch(context, project, branch, {
        detachChildren: query.detach_children ?? false,
        recoverMs: query.hard_delete === true ? 0 : context.recoveryMs,
        method: 'user',
      });
      const views = new Views(context.config);
      return {body: {branch: views.branch(branch), operations: operations.map((o) => views.operation(o))}};
    },
  }),
  route({
    method: 'POST',
    path: '/projects/:project_id/branches/:branch_id/set_as_default',
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      await context.mutate(project.id, [branchLock(branch.id)], async (trx, nowMs) => {
        await trx
          .updateTable('branches')
          .set({is_default: 0, updated_at: nowMs})
          .where('project_id', '=', project.id)
          .where('is_default', '=', 1)
          .execute();
        await trx
          .updateTable('branches')
          .set({is_default: 1, expires_at: null, updated_at: nowMs})
          .where('id', '=', branch.id)
          .execute();
        return {operations: [], result: undefined};
      });
      return {
        body: {branch: new Views(context.config).branch(await context.branch(project, branch.id)), operations: []},
      };
    },
  }),
];

/** Throws ApiError when it may not go: the default branch, a protected one, one with children, one that is busy. */
export async function deleteBranch(
  context: ApiContext,
  project: ProjectTable,
  branch: BranchTable,
  options: {readonly detachChildren: boolean; readonly recoverMs: number; readonly method: 'user' | 'ttl'},
): Promise<OperationTable[]> {
  const {detachChildren, recoverMs, method} = options;
  if (branch.is_default === 1)
    throw apiErrors.unprocessable('the default branch cannot be deleted; make another one the default first');
  if (branch.protected === 1) throw apiErrors.unprocessable(`branch ${branch.name} is protected`);
  const endpoints = await context.store
    .selectFrom('endpoints')
    .select('id')
    .where('branch_id', '=', branch.id)
    .where('deleted_at', 'is', null)
    .execute();
  const locks = [branchLock(branch.id), ...endpoints.map((e) => endpointLock(e.id))];
  const {operations} = await context.mutate(project.id, locks, async (trx, nowMs) => {
    const children = await trx
      .selectFrom('branches')
      .select(['id', 'name', 'hidden'])
      .where('parent_id', '=', branch.id)
      .where('deleted_at', 'is', null)
      .execute();
    if (children.some((child) => child.hidden === 1))
      throw apiErrors.unprocessable(`branch ${branch.name} has snapshots; delete them first`);
    if (children.length > 0 && !detachChildren)
      throw apiErrors.unprocessable(
        `branch ${branch.name} has child branches (${children[0]!.name}); delete them first, or ask for detach_children=true: they live on without a parent then`,
      );
    if (children.length > 0) {
      const draft = {projectId: project.id, branchId: branch.id, action: 'delete_timeline', kind: 'delete_parent'};
      const detaching = children.map((child) => detachLock(child.id));
      return {operations: [{...draft, locks: [...locks, ...detaching], state: {recoverMs}}], result: undefined};
    }
    await forgetBranch(trx, branch.id, nowMs, {purgeAt: nowMs + recoverMs, method});
    return {
      operations: [
        {projectId: project.id, branchId: branch.id, action: 'delete_timeline', kind: 'delete_branch', locks},
      ],
      result: undefined,
    };
  });
  return operations;
}

/** With those that are deleted and can be recovered, if asked for. */
export async function liveBranches(
  context: ApiContext,
  project: ProjectTable,
  includeDeleted = false,
): Promise<BranchTable[]> {
  const nowMs = context.clock.nowMs();
  return context.store
    .selectFrom('branches')
    .selectAll()
    .where('project_id', '=', project.id)
    .where('hidden', '=', 0)
    .where((e) => e.or([e('deleted_at', 'is', null), ...(includeDeleted ? [e('purge_at', '>', nowMs)] : [])]))
    .execute();
}

/** Best effort: a pageserver that does not answer in time leaves them out. */
async function storageFacts(
  context: ApiContext,
  project: ProjectTable,
  branches: readonly BranchTable[],
): Promise<(StorageFacts | undefined)[]> {
  if (branches.length > 100) return [];
  const pages = new TenantPages(context, project.tenant_id);
  return Promise.all(
    branches.map(async (branch) => {
      if (branch.state !== 'ready' && branch.state !== 'archived') return undefined;
      return pages.timeline(branch.timeline_id).catch(() => undefined);
    }),
  );
}

/** How far the branch's WAL is in the object store; a safekeeper that does not answer leaves it out. */
async function walFacts(
  {store, storage}: ApiContext,
  project: ProjectTable,
  branch: BranchTable,
): Promise<Pick<StorageFacts, 'archivedLsn' | 'restoredLsn'>> {
  const restore = await store
    .selectFrom('operations')
    .select('state')
    .where('branch_id', '=', branch.id)
    .where('kind', '=', 'restore_from_archive')
    .where('status', '=', 'finished')
    .orderBy('seq', 'desc')
    .executeTakeFirst();
  const {lsn} = JSON.parse(restore?.state ?? '{}') as {lsn?: number};
  const archived = await Promise.all(
    readSafekeeperSet(branch.safekeepers).members.map((nodeId) =>
      storage
        .safekeeper(nodeId)
        .status(project.tenant_id, branch.timeline_id)
        .then((status) => status?.archivedLsn)
        .catch(() => undefined),
    ),
  );
  const known = archived.filter((at) => at !== undefined);
  return {
    ...(known.length === 0 ? {} : {archivedLsn: Math.max(...known) as Lsn}),
    ...(lsn === undefined ? {} : {restoredLsn: lsn as Lsn}),
  };
}

export async function checkBranchName(trx: StoreTransaction, projectId: string, name: string): Promise<void> {
  const taken = await trx
    .selectFrom('branches')
    .select('id')
    .where('project_id', '=', projectId)
    .where('name', '=', name)
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (taken) throw apiErrors.conflict(`branch ${name} already exists`);
}

function readExpiry(context: ApiContext, text: string | null): number | null {
  if (text === null) return null;
  const timeMs = parseTime(text);
  if (timeMs === undefined) throw apiErrors.badRequest('expires_at is not an RFC 3339 time');
  if (timeMs <= context.clock.nowMs()) throw apiErrors.badRequest('expires_at must lie in the future');
  return timeMs;
}

interface CreateBranch {
  readonly branch?: {
    readonly name?: string;
    readonly parent_id?: string;
    readonly parent_lsn?: string;
    readonly parent_timestamp?: string;
    readonly protected?: boolean;
    readonly init_source?: string;
    readonly expires_at?: string;
    readonly archived?: boolean;
  };
  readonly endpoints?: readonly {
    readonly type: 'read_write' | 'read_only';
    readonly autoscaling_limit_min_cu?: number;
    readonly autoscaling_limit_max_cu?: number;
    readonly suspend_timeout_seconds?: number;
    readonly settings?: {readonly pg_settings?: Record<string, unknown>};
    readonly pooler_enabled?: boolean;
  }[];
}

export async function createBranch(
  context: ApiContext,
  {
    params,
    body,
    principal,
  }: {
    readonly params: {readonly project_id: string};
    readonly body: CreateBranch | null | undefined;
    readonly principal: Principal;
  },
  restored: Partial<Pick<BranchTable, 'restored_from' | 'restore_target' | 'restore_status'>> = {},
): Promise<{status: number; body: unknown}> {
  const project = await context.project(principal, params.project_id);
  const wanted = body?.branch ?? {};
  const parent =
    wanted.parent_id === undefined
      ? await context.defaultBranch(project)
      : await context.branch(project, wanted.parent_id);
  const isSchemaOnly = wanted.init_source === 'schema-only';
  if (!isSchemaOnly && wanted.init_source !== undefined && wanted.init_source !== 'parent-data')
    throw apiErrors.badRequest(`init_source is parent-data or schema-only, not ${wanted.init_source}`);
  const point = await checkBranchPoint(context, project, parent, wanted);
  const expiresAt = wanted.expires_at === undefined ? null : readExpiry(context, wanted.expires_at);

  const {random} = context;
  const branchId = newBranchId(random);
  const name = wanted.name ?? branchId;
  const {result: endpoints, operations} = await context.mutate(
    project.id,
    parent.state === 'ready' ? [] : [branchLock(parent.id)],
    async (trx, nowMs) => {
      await checkBranchName(trx, project.id, name);
      const parentNow = await trx
        .selectFrom('branches')
        .select('timeline_id')
        .where('id', '=', parent.id)
        .where('deleted_at', 'is', null)
        .where('state', '!=', 'resetting')
        .executeTakeFirst();
      // Restored or deleted since it was read: what was checked was about another timeline.
      if (parentNow?.timeline_id !== parent.timeline_id) throw apiErrors.locked('restore');
      // The parent's catalog of now; a branch of the past gets what is missing when its compute starts.
      const isApplied =
        parent.catalog_applied === parent.catalog_version && point.lsn === undefined && point.timestamp === undefined;
      const branch = newBranch(
        {
          id: branchId,
          project_id: project.id,
          name,
          timeline_id: newId(random),
          // One with the schema alone is a root: its pages are its own.
          ...(isSchemaOnly
            ? {parent_id: null, init_source: 'schema-only'}
            : {
                parent_id: parent.id,
                parent_lsn: point.lsn ?? null,
                parent_timestamp: point.timestamp === undefined ? null : (parseTime(point.timestamp) ?? null),
              }),
          protected: wanted.protected === true ? 1 : 0,
          safekeepers: await placeNewTimeline(trx, context.storage.safekeepers),
          catalog_version: parent.catalog_version,
          catalog_applied: isApplied && !isSchemaOnly ? parent.catalog_applied : parent.catalog_version - 1,
          // From its beginning.
          catalog_applied_lsn: isApplied && !isSchemaOnly ? 0 : null,
          expires_at: expiresAt,
          ...restored,
        },
        nowMs,
      );
      await trx.insertInto('branches').values(branch).execute();
      await copyCatalog(trx, context.vault, parent.id, branchId, nowMs);
      const rows: EndpointTable[] = [];
      for (const endpoint of body?.endpoints ?? [])
        rows.push(newEndpointRow(context, project, branchId, endpoint, nowMs));
      if (rows.filter((r) => r.type === 'read_write').length > 1)
        throw apiErrors.badRequest('a branch has at most one read_write endpoint');
      if (rows.length > 0) await trx.insertInto('endpoints').values(rows).execute();
      const drafts: OperationDraft[] = [
        {
          projectId: project.id,
          branchId,
          ...(isSchemaOnly
            ? {
                action: 'apply_schema_from_branch',
                kind: 'create_schema_only',
                state: {
                  ...point,
                  parentId: parent.id,
                  sourceEndpointId: newEndpointId(random),
                  targetEndpointId: newEndpointId(random),
                },
              }
            : {action: 'create_branch', kind: 'create_branch', state: {...point}}),
          locks: [branchLock(branchId)],
        },
        ...rows.map((row) => ({
          projectId: project.id,
          branchId,
          endpointId: row.id,
          action: 'start_compute',
          kind: 'start_compute',
          locks: [branchLock(branchId), endpointLock(row.id)],
        })),
      ];
      return {operations: drafts, result: rows};
    },
  );

  const failed = operations.find((o) => o.kind !== 'start_compute' && o.status === 'failed');
  if (failed) throw apiErrors.unprocessable(`the branch could not be made: ${failed.error ?? 'unknown reason'}`);
  const views = new Views(context.config);
  const roles = await context.store
    .selectFrom('roles')
    .selectAll()
    .where('branch_id', '=', branchId)
    .orderBy('name')
    .execute();
  const databases = await context.store
    .selectFrom('databases')
    .selectAll()
    .where('branch_id', '=', branchId)
    .orderBy('id')
    .execute();
  const writer = endpoints.find((e) => e.type === 'read_write');
  return {
    status: 201,
    body: {
      branch: views.branch(await context.branch(project, branchId)),
      endpoints: await Promise.all(endpoints.map(async (e) => views.endpoint(await context.endpoint(project, e.id)))),
      operations: operations.map((o) => views.operation(o)),
      roles: roles.map((r) => views.role(r)),
      databases: databases.map((d) => views.database(d)),
      ...(writer === undefined
        ? {}
        : {
            connection_uris: databases.map((database) => {
              const owner = roles.find((r) => r.name === database.owner_name);
              return views.connection({
                endpointId: writer.id,
                role: database.owner_name,
                password: owner === undefined ? undefined : revealPassword(context, owner),
                database: database.name,
              });
            }),
          }),
    },
  };
}

/** What the user asked for, judged by what is known now, so that a wrong LSN is an answer and not a failed operation. */
export async function checkBranchPoint(
  context: ApiContext,
  project: ProjectTable,
  parent: BranchTable,
  wanted: {readonly parent_lsn?: string; readonly parent_timestamp?: string},
): Promise<{lsn?: number; timestamp?: string}> {
  if (wanted.parent_lsn !== undefined && wanted.parent_timestamp !== undefined)
    throw apiErrors.badRequest('give parent_lsn or parent_timestamp, not both');
  if (wanted.parent_timestamp !== undefined) {
    const timeMs = parseTime(wanted.parent_timestamp);
    if (timeMs === undefined) throw apiErrors.badRequest('parent_timestamp is not an RFC 3339 time');
    if (timeMs > context.clock.nowMs()) throw apiErrors.badRequest('parent_timestamp lies in the future');
    return {timestamp: wanted.parent_timestamp};
  }
  if (wanted.parent_lsn === undefined) return {};
  const lsn = parseLsn(wanted.parent_lsn);
  if (lsn === undefined) throw apiErrors.badRequest('parent_lsn is not an LSN');
  if (lsn < (parent.parent_lsn ?? 0))
    throw apiErrors.badRequest(`parent_lsn ${wanted.parent_lsn} lies before the beginning of branch ${parent.name}`);
  const position = await readCommittedPosition(
    context.storage,
    readSafekeeperSet(parent.safekeepers),
    project.tenant_id,
    parent.timeline_id,
  );
  if (lsn > position.acknowledged)
    throw apiErrors.badRequest(`parent_lsn ${wanted.parent_lsn} lies beyond the end of branch ${parent.name}`);
  return {lsn};
}
