/** The OpenAPI document of what this control plane has, from the table of routes: the schemas that validate are the ones it shows. */
import type {TSchema} from 'typebox';
import type {ApiRoute} from '#control/api/route.ts';

type Json = Readonly<Record<string, unknown>>;

const error = {
  description: 'what went wrong, in words and as a code; the request id finds it in the log',
  content: {
    'application/json': {
      schema: {
        type: 'object',
        required: ['request_id', 'code', 'message'],
        properties: {request_id: {type: 'string'}, code: {type: 'string'}, message: {type: 'string'}},
      },
    },
  },
};

/** OpenAPI 3.1: its schemas are JSON Schema, which those of the routes are. */
export function openApiDocument(routes: readonly ApiRoute[], basePath: string): Json {
  const paths: Record<string, Record<string, Json>> = {};
  for (const route of routes) {
    const path = route.path.replaceAll(/:(\w+)/g, '{$1}');
    (paths[path] ??= {})[route.method.toLowerCase()] = operation(route);
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Pagoda API v2',
      version: 'v2',
      description:
        "The part of Neon's API v2 that Pagoda has. Answers have the form of Neon's own document; other routes answer 404.",
    },
    servers: [{url: basePath}],
    security: [{key: []}],
    components: {securitySchemes: {key: {type: 'http', scheme: 'bearer'}}},
    paths,
  };
}

function operation(route: ApiRoute): Json {
  const names = [...route.path.matchAll(/:(\w+)/g)].map(([, name]) => name!);
  const inPath = names.map((name) => ({name, in: 'path', required: true, schema: {type: 'string'}}));
  const query = route.query as (TSchema & {properties?: Record<string, TSchema>; required?: string[]}) | undefined;
  const inQuery = Object.entries(query?.properties ?? {}).map(([name, schema]) => ({
    name,
    in: 'query',
    required: query?.required?.includes(name) ?? false,
    schema,
  }));
  return {
    operationId: `${route.method.toLowerCase()}${route.path.replaceAll(/[/:_]+(\w)/g, (_all, letter: string) => letter.toUpperCase())}`,
    parameters: [...inPath, ...inQuery],
    ...(route.body === undefined ? {} : {requestBody: {content: {'application/json': {schema: route.body}}}}),
    responses: {'2XX': {description: 'done, or begun'}, default: error},
  };
}
