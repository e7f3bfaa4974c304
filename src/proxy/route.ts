/** Which endpoint a connection is for: `options`, then SNI, then a prefix of the password (reference: proxy.md 2). */
import {proxyErrors} from '#proxy/errors.ts';

export interface Route {
  /** As named by the client, without `-pooler`; undefined: not named. */
  readonly endpoint: string | undefined;
  readonly pooled: boolean;
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
  // Answering from the present would be a wrong answer.
  if (tokens.some((t) => /^neon_(lsn|timestamp):/.test(t))) throw proxyErrors.pointInTime();
  const kept = tokens.filter((t) => !/^(endpoint|project)=/.test(t) && !/^neon_\w+:/.test(t));
  const fromOptions = named.length === 1 ? named[0] : undefined;
  const fromHost = endpointOfHost(serverName, domains);
  if (fromOptions !== undefined && !idPattern.test(fromOptions)) throw proxyErrors.badEndpoint(fromOptions);
  if (fromOptions !== undefined && fromHost !== undefined && strip(fromOptions).id !== strip(fromHost).id)
    throw proxyErrors.twoEndpoints(fromHost, fromOptions);
  const {id, pooled} = strip(fromOptions ?? fromHost ?? '');
  return {endpoint: id === '' ? undefined : id, pooled, options: kept.length === 0 ? undefined : kept.join(' ')};
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

function strip(id: string): {id: string; pooled: boolean} {
  return id.endsWith('-pooler') ? {id: id.slice(0, -'-pooler'.length), pooled: true} : {id, pooled: false};
}

/** Splits as Postgres does (pg_split_opts): at white space, `\` escapes the next character. The escapes are kept. */
function splitOptions(text: string): string[] {
  return text.match(/(?:\\.|[^\s\\])+/gs) ?? [];
}
