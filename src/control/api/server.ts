/** API v2 over Fastify: the table of routes, with validation, authentication, and errors in Neon's form. */
import type {TSchema} from 'typebox';
import {fastify, type FastifyError, type FastifyInstance} from 'fastify';
import {newUuid} from '#runtime/crypto.ts';
import {accountRoutes} from '#control/api/account-routes.ts';
import {branchRoutes} from '#control/api/branch-routes.ts';
import {catalogRoutes} from '#control/api/catalog-routes.ts';
import type {ApiContext} from '#control/api/context.ts';
import {endpointRoutes} from '#control/api/endpoint-routes.ts';
import {ApiError, apiErrors} from '#control/api/errors.ts';
import {authenticate} from '#control/api/principal.ts';
import {openApiDocument} from '#control/api/openapi.ts';
import {projectRoutes} from '#control/api/project-routes.ts';
import {recoveryRoutes} from '#control/api/recovery-routes.ts';
import {restoreRoutes} from '#control/api/restore-routes.ts';
import type {ApiRoute} from '#control/api/route.ts';
import {schemaRoutes} from '#control/api/schema-routes.ts';
import {backupScheduleRoutes} from '#control/api/backup-schedule.ts';
import {snapshotRoutes} from '#control/api/snapshot-routes.ts';
import {validatorOf} from '#control/api/validation.ts';

export const apiRoutes: readonly ApiRoute[] = [
  ...accountRoutes,
  ...projectRoutes,
  ...branchRoutes,
  ...restoreRoutes,
  ...recoveryRoutes,
  ...schemaRoutes,
  ...snapshotRoutes,
  ...backupScheduleRoutes,
  ...endpointRoutes,
  ...catalogRoutes,
];

const basePath = '/api/v2';
const bodyBytesMax = 1024 * 1024;
const requestIdHeader = 'x-neon-ret-request-id';

export function buildApi(context: ApiContext): FastifyInstance {
  const app = fastify({
    logger: false,
    bodyLimit: bodyBytesMax,
    genReqId: () => newUuid(),
    routerOptions: {maxParamLength: 256},
  });
  app.setValidatorCompiler(({schema, httpPart}) => validatorOf(schema as TSchema, httpPart ?? 'request'));
  // Clients send `content-type: application/json` with an empty body on POSTs that need none.
  app.removeContentTypeParser('application/json');
  app.addContentTypeParser('application/json', {parseAs: 'string'}, (_request, text, done) => {
    if (text === '') {
      done(null, undefined);
      return;
    }
    try {
      done(null, JSON.parse(text as string));
    } catch {
      done(apiErrors.badRequest('the request body is not JSON'));
    }
  });
  app.addContentTypeParser('*', {parseAs: 'string'}, (_request, text, done) => {
    if (text === '') done(null, undefined);
    else done(apiErrors.badRequest('the request body must be JSON (content-type: application/json)'));
  });

  app.addHook('onSend', (request, reply, _payload, done) => {
    reply.header(requestIdHeader, request.id);
    reply.header('x-request-id', request.id);
    reply.header('cache-control', 'no-store');
    done();
  });

  for (const definition of apiRoutes) {
    app.route({
      method: definition.method,
      url: basePath + definition.path,
      schema: {
        ...(definition.query === undefined ? {} : {querystring: definition.query}),
        ...(definition.body === undefined ? {} : {body: definition.body}),
      },
      // Before the body is read: an unknown caller costs nothing and learns nothing.
      onRequest: async (request) => {
        request.setDecorator(
          'principal',
          await authenticate(context.store, context.clock, request.headers.authorization),
        );
      },
      // No body at all is what the schemas call null.
      preValidation: (request, _reply, done) => {
        if (definition.body !== undefined) request.body ??= null;
        done();
      },
      handler: async (request, reply) => {
        const answer = await definition.handler(context, {
          params: request.params as Record<string, string>,
          query: request.query,
          body: request.body,
          principal: request.getDecorator('principal'),
        });
        return reply.status(answer.status ?? 200).send(answer.body ?? {});
      },
    });
  }
  app.decorateRequest('principal', null);
  // Open to all: it says nothing about what is stored.
  const document = JSON.stringify(openApiDocument(apiRoutes, basePath));
  app.get(`${basePath}/openapi.json`, (_request, reply) => reply.type('application/json').send(document));

  app.setNotFoundHandler((request, reply) => {
    void reply.status(404).send(errorBody(apiErrors.noRoute(), request.id));
  });
  app.setErrorHandler((error: FastifyError, request, reply) => {
    const known = asApiError(error, request.id);
    if (known.status >= 500 && !(error instanceof ApiError))
      context.log.error('a request failed', {
        request: request.id,
        method: request.method,
        path: request.routeOptions.url ?? '',
        error: error.stack ?? error.message,
      });
    if (known.status === 423 || known.status === 503) reply.header('retry-after', '1');
    void reply.status(known.status).send(errorBody(known, request.id));
  });
  return app;
}

function asApiError(error: FastifyError, requestId: string): ApiError {
  if (error instanceof ApiError) return error;
  if (error.statusCode === 413) return apiErrors.tooLarge();
  if (error.statusCode !== undefined && error.statusCode >= 400 && error.statusCode < 500)
    return apiErrors.badRequest(error.message);
  return apiErrors.internal(requestId);
}

function errorBody(error: ApiError, requestId: string): Record<string, string> {
  return {request_id: requestId, code: error.code, message: error.message};
}
