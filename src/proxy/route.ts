/** Which endpoint a connection is for: `options`, then SNI, then a prefix of the password (reference: proxy.md 2). */
import {proxyErrors} from '#proxy/errors.ts';

export interface Route {
  /** As named by the client, without `-pooler`; undefined: not named. */
  readonly endpoint: string | undefined;
  readonly pooled: boolean;
  /** The branch as it was; undefined: as it is. */
  readonly point?: {readonly lsn?: string; readonly timestamp?: string};
  /** `options` without what was for the proxy; undefined when nothing is left. */
  readonly options: string | undefined;
}

const idPattern = /^[A-Za-z0-9-]{1,60}$/;

/** Throws ProxyError when host name and options disagree, or an id cannot be one. */
export function routeOf(
  options: string | undefined,
  serverName: string | undefined,
  domains: readonly string[],
): Route {
  const tokens = splitOptions(options ?? '');
  const named = tokens.map((t) => /^(?:endpoint|project)=(.*)$/.exec(t)?.[1]).filter((v) => v !== undefined);
  const point = pointOf(tokens);
  const kept = tokens.filter((t) => !/^(endpoint|project)=/.test(t) && !/^neon_\w+:/.test(t));
  const fromOptions = named.length === 1 ? named[0] : undefined;
  const fromHost = endpointOfHost(serverName, domains);
  if (fromOptions !== undefined && !idPattern.test(fromOptions)) throw proxyErrors.badEndpoint(fromOptions);
  if (
    fromOptions !== undefined &&
    fromHost !== undefined &&
    splitPooler(fromOptions).endpoint !== splitPooler(fromHost).endpoint
  )
    throw proxyErrors.twoEndpoints(fromHost, fromOptions);
  const {endpoint, pooled} = splitPooler(fromOptions ?? fromHost ?? '');
  return {
    endpoint: endpoint === '' ? undefined : endpoint,
    pooled,
    options: kept.length === 0 ? undefined : kept.join(' '),
    ...(point === undefined ? {} : {point}),
  };
}

/** `neon_lsn:0/15B3F48`, `neon_timestamp:2026-01-01T00:00:00Z`. Two points are none: answering one of them would be a guess. */
function pointOf(tokens: readonly string[]): Route['point'] {
  const points = tokens.map((t) => /^neon_(lsn|timestamp):(.*)$/.exec(t)).filter((m) => m !== null);
  const [first] = points;
  if (!first) return undefined;
  if (points.length > 1) throw proxyErrors.pointInTime('two points are named');
  return first[1] === 'lsn' ? {lsn: first[2]!} : {timestamp: first[2]!};
}

/** `ep-x.DOMAIN` → `ep-x`. */
export function endpointOfHost(serverName: string | undefined, domains: readonly string[]): string | undefined {
  if (serverName === undefined) return undefined;
  const host = serverName.toLowerCase();
  for (const domain of domains) {
    if (!host.endsWith(`.${domain.toLowerCase()}`)) continue;
    const label = host.slice(0, -domain.length - 1);
    if (!label.includes('.') && label !== 'api' && label !== 'apiauth' && idPattern.test(label)) return label;
  }
  return undefined;
}

/** `ep-x-pooler` is endpoint `ep-x` by way of its pool. */
export function splitPooler(id: string): {endpoint: string; pooled: boolean} {
  return id.endsWith('-pooler')
    ? {endpoint: id.slice(0, -'-pooler'.length), pooled: true}
    : {endpoint: id, pooled: false};
}

/** Splits as Postgres does (pg_split_opts): at white space, `\` escapes the next character. The escapes are kept. */
function splitOptions(text: string): string[] {
  return text.match(/(?:\\.|[^\s\\])+/gs) ?? [];
}
