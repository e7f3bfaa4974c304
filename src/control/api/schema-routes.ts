/** The schema of a branch, now or at a point of its past, and the difference of two: `neon branches schema-diff`. */
import {revealPassword} from '#control/api/catalog.ts';
import type {ApiContext} from '#control/api/context.ts';
import {apiErrors} from '#control/api/errors.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {compareSchemaQuery, schemaQuery} from '#control/api/schemas.ts';
import {unifiedDiff} from '#control/line-diff.ts';
import {type PointInTime, staticEndpoint} from '#control/static-endpoints.ts';
import type {BranchTable} from '#control/store/schema.ts';

export const schemaRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: '/projects/:project_id/branches/:branch_id/schema',
    query: schemaQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      if (query.format !== undefined && query.format !== 'sql')
        throw apiErrors.unprocessable(`a schema as ${query.format} is not available; sql is`);
      return {body: {sql: await readSchema(context, branch, query.db_name, pointOf(query.lsn, query.timestamp))}};
    },
  }),
  route({
    method: 'GET',
    path: '/projects/:project_id/branches/:branch_id/compare_schema',
    query: compareSchemaQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      const baseId = query.base_branch_id ?? branch.parent_id;
      if (baseId === null)
        throw apiErrors.badRequest(
          `branch ${branch.name} has no parent; name the branch to compare with: base_branch_id`,
        );
      const base = await context.branch(project, baseId);
      const [before, after] = await Promise.all([
        readSchema(context, base, query.db_name, pointOf(query.base_lsn, query.base_timestamp)),
        readSchema(context, branch, query.db_name, pointOf(query.lsn, query.timestamp)),
      ]);
      return {body: {diff: unifiedDiff(before, after, `a/${query.db_name}`, `b/${query.db_name}`)}};
    },
  }),
];

function pointOf(lsn: string | undefined, timestamp: string | undefined): PointInTime | undefined {
  if (lsn !== undefined && timestamp !== undefined) throw apiErrors.badRequest('give an LSN or a timestamp, not both');
  if (lsn !== undefined) return {lsn};
  return timestamp === undefined ? undefined : {timestamp};
}

async function readSchema(
  context: ApiContext,
  branch: BranchTable,
  databaseName: string,
  point: PointInTime | undefined,
): Promise<string> {
  const {store} = context;
  const database = await store
    .selectFrom('databases')
    .selectAll()
    .where('branch_id', '=', branch.id)
    .where('name', '=', databaseName)
    .executeTakeFirst();
  if (!database) throw apiErrors.notFound('database', databaseName);
  const owner = await store
    .selectFrom('roles')
    .selectAll()
    .where('branch_id', '=', branch.id)
    .where('name', '=', database.owner_name)
    .executeTakeFirstOrThrow();
  const password = revealPassword(context, owner);
  if (password === undefined) throw apiErrors.passwordNotStored(owner.name);
  const endpointId =
    point === undefined ? await writerOf(context, branch) : await staticEndpoint(context, branch.id, point);
  const {host, port} = await context.endpoints.wake(endpointId);
  const target = {host, port, user: owner.name, password, database: database.name};
  return context.dumpSchema(target).catch((error: unknown) => {
    throw apiErrors.notReady(`the schema of ${database.name} could not be read: ${(error as Error).message}`);
  });
}

async function writerOf(context: ApiContext, branch: BranchTable): Promise<string> {
  const endpoint = await context.store
    .selectFrom('endpoints')
    .select('id')
    .where('branch_id', '=', branch.id)
    .where('type', '=', 'read_write')
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (!endpoint)
    throw apiErrors.unprocessable(
      `branch ${branch.name} has no compute, and its schema is read through one; add it with \`neon branches add-compute ${branch.name} --type read_write\``,
    );
  return endpoint.id;
}
