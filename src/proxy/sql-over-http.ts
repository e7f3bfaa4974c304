/**
 * `POST /sql`: the HTTP mode of `@neondatabase/serverless` (reference: serverless-driver.md 1). One query, or a batch in one
 * transaction; the connection string with its password comes in a header; errors of Postgres are 400 with all their fields.
 */
import type {WebRequest, WebResponse} from '#runtime/web-server.ts';
import {ComputeRefused} from '#proxy/compute-login.ts';
import {type ConnectionTarget, parseConnectionString} from '#proxy/connection-string.ts';
import {ProxyError} from '#proxy/errors.ts';
import {fromText, toParameter} from '#proxy/json-values.ts';
import {loginWithPassword, splitPassword} from '#proxy/login.ts';
import {decodeErrorFields} from '#proxy/messages.ts';
import {reachCompute} from '#proxy/reach-compute.ts';
import {endpointOfHost, routeOf} from '#proxy/route.ts';
import type {ScramKeys} from '#proxy/scram.ts';
import type {SessionContext} from '#proxy/session.ts';
import type {SqlPool} from '#proxy/sql-pool.ts';
import {ResultTooLarge, SqlError, type SqlResult, SqlSession} from '#proxy/sql-session.ts';

const requestBytesMax = 10 * 1024 * 1024;
const responseBytesMax = 10 * 1024 * 1024;
const batchMax = 10_000;

const corsHeaders = {
  'access-control-allow-origin': '*',
  'access-control-allow-headers':
    'Authorization, Neon-Connection-String, Neon-Raw-Text-Output, Neon-Array-Mode, Neon-Pool-Opt-In, Neon-Batch-Read-Only, Neon-Batch-Isolation-Level, Neon-Batch-Deferrable',
  'access-control-max-age': '86400',
};

const isolationLevels: Readonly<Record<string, string>> = {
  ReadUncommitted: 'read uncommitted',
  ReadCommitted: 'read committed',
  RepeatableRead: 'repeatable read',
  Serializable: 'serializable',
};

interface Query {
  readonly query: string;
  readonly params: readonly (string | null)[];
  readonly arrayMode: boolean | undefined;
}

class BadRequest extends Error {}

export async function answerSqlRequest(
  request: WebRequest,
  context: SessionContext,
  pool: SqlPool,
): Promise<WebResponse> {
  const path = request.url.split('?')[0];
  if (path !== '/sql') return text(400, `this path is not served here: ${path}; queries go to /sql`);
  if (request.method === 'OPTIONS') return {status: 200, headers: {...corsHeaders, allow: 'OPTIONS, POST'}};
  if (request.method !== 'POST')
    return {...text(405, 'queries are sent with POST'), headers: {...corsHeaders, allow: 'OPTIONS, POST'}};
  try {
    // The headers say who it is: a body is held for those who may come in only.
    const caller = await authenticate(request, parseTarget(request), context);
    const body = await request.body(requestBytesMax);
    if (body === undefined) return text(413, `the request is larger than ${requestBytesMax} bytes`);
    const {queries, batch} = parseBody(body);
    return await execute(request, caller, queries, batch, context, pool);
  } catch (error) {
    return failure(error, context);
  }
}

interface Caller {
  readonly endpointId: string;
  readonly keys: ScramKeys;
  /** Startup parameters of the session. */
  readonly parameters: ReadonlyMap<string, string>;
}

async function execute(
  request: WebRequest,
  caller: Caller,
  queries: readonly Query[],
  batch: boolean,
  context: SessionContext,
  pool: SqlPool,
): Promise<WebResponse> {
  const {key, session} = await openSession(caller, context, pool);
  const raw = request.headers['neon-raw-text-output'] === 'true';
  const arrays = request.headers['neon-array-mode'] === 'true';
  const results: SqlResult[] = [];
  let left = responseBytesMax;
  const run = async (sql: string, params: readonly (string | null)[] = []): Promise<SqlResult> =>
    session.query(sql, params, left);
  try {
    if (batch) await run(beginStatement(request));
    for (const {query, params} of queries) {
      const result = await run(query, params);
      for (const row of result.rows) for (const value of row) left -= value?.length ?? 4;
      results.push(result);
    }
    if (batch) await run('commit');
    await run('discard all');
    pool.put(key, session);
  } catch (error) {
    session.close(); // its transaction, if any, ends with it
    throw error;
  }
  const shaped = results.map((result, i) => shape(result, raw, queries[i]!.arrayMode ?? arrays));
  const echoed = Object.fromEntries(
    ['neon-batch-isolation-level', 'neon-batch-read-only', 'neon-batch-deferrable']
      .filter((name) => batch && request.headers[name] !== undefined)
      .map((name) => [name, request.headers[name]!]),
  );
  const answer = JSON.stringify(batch ? {results: shaped} : shaped[0]);
  return {status: 200, headers: {...corsHeaders, ...echoed, 'content-type': 'application/json'}, body: answer};
}

async function authenticate(request: WebRequest, target: ConnectionTarget, context: SessionContext): Promise<Caller> {
  const {user, database} = target;
  const route = routeOf(target.options, target.host, [...context.domains, ...domainOf(target.host)]);
  const named = route.endpoint === undefined ? splitPassword(target.password) : undefined;
  const {access, keys} = await loginWithPassword(
    named?.endpoint ?? route.endpoint,
    user,
    named?.password ?? target.password,
    request.clientIp,
    context,
  );
  const parameters = new Map([
    ['user', user],
    ['database', database],
    ['client_encoding', 'UTF8'],
    ['application_name', target.applicationName ?? 'pagoda-sql-over-http'],
  ]);
  if (route.options !== undefined) parameters.set('options', route.options);
  return {endpointId: access.endpointId, keys, parameters};
}

async function openSession(
  {endpointId, keys, parameters}: Caller,
  context: SessionContext,
  pool: SqlPool,
): Promise<{key: string; session: SqlSession}> {
  // The verifier is in the key: after a change of password old sessions are not found any more.
  const key = JSON.stringify([endpointId, keys.serverKey.toString('base64'), ...parameters]);
  const kept = pool.take(key);
  if (kept !== undefined) return {key, session: kept};
  const {session} = await reachCompute(endpointId, parameters, keys, context);
  return {key, session: new SqlSession(session)};
}

/** Any host whose first label looks like an endpoint names it: the URL here is data, not where the request went. */
function domainOf(host: string): string[] {
  const dot = host.indexOf('.');
  return dot > 0 && endpointOfHost(host, [host.slice(dot + 1)])?.startsWith('ep-') ? [host.slice(dot + 1)] : [];
}

function parseTarget(request: WebRequest): ConnectionTarget {
  const header = request.headers['neon-connection-string'];
  if (header === undefined) throw new BadRequest('the header Neon-Connection-String is missing');
  try {
    return parseConnectionString(header);
  } catch (error) {
    throw new BadRequest((error as Error).message, {cause: error});
  }
}

function parseBody(body: Buffer): {queries: Query[]; batch: boolean} {
  let json: unknown;
  try {
    json = JSON.parse(body.toString('utf8'));
  } catch {
    throw new BadRequest('the body is not JSON');
  }
  const value = json as {query?: unknown; queries?: unknown} | null;
  try {
    return queriesOf(value);
  } catch (error) {
    // The stack is short before JSON's nesting is deep.
    if (error instanceof RangeError) throw new BadRequest('the parameters are nested too deep');
    throw error;
  }
}

function queriesOf(value: {query?: unknown; queries?: unknown} | null): {queries: Query[]; batch: boolean} {
  if (Array.isArray(value?.queries)) {
    if (value.queries.length > batchMax)
      throw new BadRequest(`a batch of ${value.queries.length} queries; ${batchMax} are allowed`);
    return {queries: value.queries.map(parseQuery), batch: true};
  }
  return {queries: [parseQuery(value)], batch: false};
}

function parseQuery(value: unknown): Query {
  const {query, params, arrayMode} = (value ?? {}) as {query?: unknown; params?: unknown; arrayMode?: unknown};
  if (typeof query !== 'string')
    throw new BadRequest('the body must be {"query": "…", "params": […]} or {"queries": […]}');
  if (params !== undefined && !Array.isArray(params)) throw new BadRequest('params must be an array');
  return {
    query,
    params: (params ?? []).map(toParameter),
    arrayMode: typeof arrayMode === 'boolean' ? arrayMode : undefined,
  };
}

function beginStatement(request: WebRequest): string {
  const level = request.headers['neon-batch-isolation-level'];
  const words = ['begin'];
  if (level !== undefined) {
    const name = isolationLevels[level];
    if (name === undefined)
      throw new BadRequest(
        `unknown isolation level ${JSON.stringify(level)}; there are ${Object.keys(isolationLevels).join(', ')}`,
      );
    words.push(`isolation level ${name}`);
  }
  const readOnly = request.headers['neon-batch-read-only'];
  if (readOnly !== undefined) words.push(readOnly === 'true' ? 'read only' : 'read write');
  if (request.headers['neon-batch-deferrable'] === 'true') words.push('deferrable');
  return words.join(' ');
}

function shape(result: SqlResult, raw: boolean, arrays: boolean): Record<string, unknown> {
  const {fields, command, rowCount} = result;
  const rows = result.rows.map((row) => {
    const values: unknown[] = raw ? [...row] : row.map((value, i) => fromText(value, fields[i]!.dataTypeID));
    return arrays ? values : Object.fromEntries(fields.map((field, i) => [field.name, values[i]]));
  });
  return {fields, rows, command, rowCount, rowAsArray: arrays};
}

/** The letters of an ErrorResponse (protocol-error-fields), by the names the driver knows. */
const errorFields: Readonly<Record<string, string>> = {
  M: 'message',
  C: 'code',
  D: 'detail',
  H: 'hint',
  P: 'position',
  p: 'internalPosition',
  q: 'internalQuery',
  S: 'severity',
  W: 'where',
  t: 'table',
  c: 'column',
  s: 'schema',
  d: 'dataType',
  n: 'constraint',
  F: 'file',
  L: 'line',
  R: 'routine',
};

function failure(error: unknown, context: SessionContext): WebResponse {
  if (error instanceof SqlError) return json(400, postgresError(error.fields));
  if (error instanceof ComputeRefused) return json(400, postgresError(decodeErrorFields(error.response.subarray(5))));
  if (error instanceof ProxyError) {
    const fields = new Map([
      ['S', 'FATAL'],
      ['C', error.sqlState],
      ['M', error.message],
      ...(error.hint === undefined ? [] : [['H', error.hint] as [string, string]]),
    ] as [string, string][]);
    return json(error.sqlState.startsWith('57') ? 500 : 400, postgresError(fields));
  }
  if (error instanceof BadRequest)
    return json(
      400,
      postgresError(
        new Map([
          ['S', 'ERROR'],
          ['C', '08P01'],
          ['M', error.message],
        ]),
      ),
    );
  if (error instanceof ResultTooLarge) return text(507, error.message);
  context.log.warn('a query over HTTP failed', {error});
  return text(500, 'the connection to the compute was lost');
}

function postgresError(fields: ReadonlyMap<string, string>): Record<string, string | null> {
  return Object.fromEntries(Object.entries(errorFields).map(([letter, name]) => [name, fields.get(letter) ?? null]));
}

function json(status: number, value: unknown): WebResponse {
  return {status, headers: {...corsHeaders, 'content-type': 'application/json'}, body: JSON.stringify(value)};
}

function text(status: number, message: string): WebResponse {
  return {status, headers: {...corsHeaders, 'content-type': 'text/plain; charset=utf-8'}, body: message};
}
