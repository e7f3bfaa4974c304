/** A route of API v2 as a value: the server registers the table of all, tests walk over it. */
import type {Static, TSchema} from 'typebox';
import type {ApiContext} from '#control/api/context.ts';
import type {Principal} from '#control/api/principal.ts';

export interface ApiRequest<Params, Query, Body> {
  readonly params: Params;
  readonly query: Query;
  readonly body: Body;
  readonly principal: Principal;
}

export interface ApiAnswer {
  /** Default 200. */
  readonly status?: number;
  readonly body?: unknown;
}

export interface ApiRoute {
  readonly method: 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE';
  /** Below /api/v2; `:name` is a parameter. */
  readonly path: string;
  readonly query?: TSchema;
  readonly body?: TSchema;
  handler(
    context: ApiContext,
    request: ApiRequest<Readonly<Record<string, string>>, unknown, unknown>,
  ): Promise<ApiAnswer>;
}

type Parameters<Path extends string> = Path extends `${string}:${infer Name}/${infer Rest}`
  ? {readonly [key in Name]: string} & Parameters<`/${Rest}`>
  : Path extends `${string}:${infer Name}`
    ? {readonly [key in Name]: string}
    : unknown;

/** Gives a route's handler the types of its path and schemas. The server has validated the request before. */
export function route<
  const Path extends string,
  Query extends TSchema = TSchema,
  Body extends TSchema = TSchema,
>(definition: {
  readonly method: ApiRoute['method'];
  readonly path: Path;
  readonly query?: Query;
  readonly body?: Body;
  readonly handler: (
    context: ApiContext,
    request: ApiRequest<Parameters<Path>, Static<Query>, Static<Body>>,
  ) => Promise<ApiAnswer>;
}): ApiRoute {
  return definition as unknown as ApiRoute;
}
