/** /projects/{id}/branches/{id}/schema: what `neon branches schema-diff` compares. */
import {revealPassword} from '#control/api/catalog.ts';
import {apiErrors} from '#control/api/errors.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {schemaQuery} from '#control/api/schemas.ts';

export const schemaRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: '/projects/:project_id/branches/:branch_id/schema',
    query: schemaQuery,
    handler: async (context, {params, query, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      if (query.lsn !== undefined || query.timestamp !== undefined)
        throw apiErrors.unprocessable(
          'the schema of a point in the past is not available; make a branch of that point and ask for its schema',
        );
      if (query.format !== undefined && query.format !== 'sql')
        throw apiErrors.unprocessable(`a schema as ${query.format} is not available; sql is`);
      const database = await context.store
        .selectFrom('databases')
        .selectAll()
        .where('branch_id', '=', branch.id)
        .where('name', '=', query.db_name)
        .executeTakeFirst();
      if (!database) throw apiErrors.notFound('database', query.db_name);
      const owner = await context.store
        .selectFrom('roles')
        .selectAll()
        .where('branch_id', '=', branch.id)
        .where('name', '=', database.owner_name)
        .executeTakeFirstOrThrow();
      const password = revealPassword(context, owner);
      if (password === undefined) throw apiErrors.passwordNotStored(owner.name);
      const endpoint = await context.store
        .selectFrom('endpoints')
        .select('id')
        .where('branch_id', '=', branch.id)
        .where('type', '=', 'read_write')
        .where('deleted_at', 'is', null)
        .executeTakeFirst();
      if (!endpoint)
        throw apiErrors.unprocessable(
          `branch ${branch.name} has no compute, and its schema is read through one; add it with \`neon branches add-compute ${branch.name}\``,
        );
      const {host, port} = await context.endpoints.wake(endpoint.id);
      const target = {host, port, user: owner.name, password, database: database.name};
      const sql = await context.dumpSchema(target).catch((error: unknown) => {
        throw apiErrors.notReady(`the schema of ${database.name} could not be read: ${(error as Error).message}`);
      });
      return {body: {sql}};
    },
  }),
];
