/**
 * `pagoda import DIRECTORY`: internal routes, for tokens that the control plane's own key has signed.
 *
 *   POST /internal/v1/imports       {directory, superuser, name?}: a new project of the data directory on this machine, whose role 10
 *                                   is called so. Answers {operationId, projectId, branchId, endpointId}
 *   GET  /internal/v1/imports/:id   {status, error?, missingExtensions?}
 */
import {HttpError, type Route} from '#runtime/http.ts';
import {ApiError} from '#control/api/errors.ts';
import type {ApiContext} from '#control/api/context.ts';
import {createProject} from '#control/api/project-routes.ts';
import type {Store} from '#control/store/schema.ts';
import {asHttpError, type Claims, requireNode} from '#wire/auth.ts';
import type {ImportedCatalog} from '#wire/compute-spec.ts';

export function projectImportRoutes(api: ApiContext): Route[] {
  const route = (method: string, path: string, handler: Route['handler']): Route => ({
    method,
    path,
    handler: async (request) => {
      try {
        requireNode(request.claims as Claims, 'control');
      } catch (error) {
        throw asHttpError(error);
      }
      try {
        return await handler(request);
      } catch (error) {
        if (error instanceof ApiError) throw new HttpError(error.status, error.code, error.message);
        throw error;
      }
    },
  });
  return [
    route('POST', '/internal/v1/imports', async (request) => {
      const {directory, superuser, name} = ((await request.json()) ?? {}) as Partial<Record<string, unknown>>;
      if (typeof directory !== 'string' || !directory.startsWith('/') || typeof superuser !== 'string')
        throw new HttpError(
          400,
          'bad_request',
          'the body must be {directory, superuser, name?}, the directory absolute',
        );
      const user = await api.store.selectFrom('users').select('id').orderBy('created_at').executeTakeFirstOrThrow();
      const {body} = await createProject(
        api,
        {
          body: {project: typeof name === 'string' ? {name} : {}},
          principal: {kind: 'personal', userId: user.id},
        },
        {directory, superuser},
      );
      const {project, branch, endpoints, operations} = body as Record<'project' | 'branch', {id: string}> &
        Record<'endpoints' | 'operations', {id: string}[]>;
      return {
        status: 202,
        json: {
          operationId: operations[0]!.id,
          projectId: project.id,
          branchId: branch.id,
          endpointId: endpoints[0]!.id,
        },
      };
    }),
    route('GET', '/internal/v1/imports/:id', async (request) => ({
      status: 200,
      json: await importStatus(api.store, request.params['id'] ?? ''),
    })),
  ];
}

async function importStatus(store: Store, id: string): Promise<Record<string, unknown>> {
  const operation = await store
    .selectFrom('operations')
    .selectAll()
    .where('id', '=', id)
    .where('kind', '=', 'import_root')
    .executeTakeFirst();
  if (!operation) throw new HttpError(404, 'not_found', `there is no import ${id}`);
  const {catalog} = JSON.parse(operation.state) as {catalog?: ImportedCatalog};
  return {
    status: operation.status,
    ...(operation.error === null ? {} : {error: operation.error}),
    ...(catalog === undefined ? {} : {missingExtensions: catalog.missingExtensions}),
  };
}
