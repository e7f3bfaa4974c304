/** For commands that speak with the running parts of this machine: control plane and pageserver, as an internal peer. */
import {systemClock} from '#runtime/clock.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {UsageError} from '#cli/arguments.ts';
import {internalPorts, type Layout} from '#cli/layout.ts';
import {readSupervisor} from '#cli/up.ts';

/** A branch, in the API's words and in storage's. */
export interface BranchPlace {
  readonly branchId: string;
  readonly name: string;
  readonly projectId: string;
  readonly tenantId: string;
  readonly timelineId: string;
  readonly isDefault: boolean;
}

export interface InternalClient {
  /** Branches with this id or name; all without one. */
  readonly places: (branch: string | undefined) => Promise<BranchPlace[]>;
  /** A call of the control plane's internal routes. Throws UsageError with what it said. */
  readonly askControl: (method: string, path: string, body?: unknown) => Promise<Readonly<Record<string, unknown>>>;
  /** The same of the pageserver's management HTTP. */
  readonly ask: (method: string, path: string, body?: unknown) => Promise<Readonly<Record<string, unknown>>>;
  readonly stream: (
    path: string,
  ) => Promise<{headers: Readonly<Record<string, string | undefined>>; body: AsyncIterable<Buffer>}>;
  /** Where the page service listens, and a token for it. */
  readonly pages: () => Promise<{host: string; port: number; token: string}>;
}

/** What takes long here is bounded by the user's patience. */
const longMsMax = 24 * 3_600_000;
const host = '127.0.0.1';

/** UsageError when nothing runs. */
export async function connectInternally(layout: Layout): Promise<InternalClient> {
  const notes = readSupervisor(layout);
  if (notes === undefined) throw new UsageError(`nothing runs on ${layout.data}. Start it with \`pagoda up\``);
  const issuer = await TokenIssuer.load(layout.keys, 'control', systemClock);
  const ports = internalPorts(notes.ports.internal);
  const url = (aud: 'control' | 'pageserver', path: string): string =>
    `http://${host}:${aud === 'control' ? ports.control : ports.pageserverHttp}${path}`;
  const call = async (
    aud: 'control' | 'pageserver',
    method: string,
    path: string,
    body?: unknown,
  ): Promise<Readonly<Record<string, unknown>>> => {
    const {status, json} = await requestJson({
      method,
      url: url(aud, path),
      token: await issuer.sign({aud, scope: 'node'}),
      ...(body === undefined ? {} : {body}),
      timeoutMs: longMsMax,
    });
    const answer = (json ?? {}) as Readonly<Record<string, unknown>>;
    if (status >= 300) throw new UsageError(String(answer['message'] ?? `status ${status}`));
    return answer;
  };
  return {
    askControl: (method, path, body) => call('control', method, `/internal/v1${path}`, body),
    ask: (method, path, body) => call('pageserver', method, path, body),
    async places(branch) {
      const query = branch === undefined ? '' : `?branch=${encodeURIComponent(branch)}`;
      return (await call('control', 'GET', `/internal/v1/branch_places${query}`))['branches'] as BranchPlace[];
    },
    async stream(path) {
      const token = await issuer.sign({aud: 'pageserver', scope: 'node'});
      const {status, headers, body} = await requestStream({method: 'GET', url: url('pageserver', path), token});
      if (status < 300) return {headers, body};
      const parts: Buffer[] = [];
      for await (const part of body) parts.push(part);
      throw new UsageError(Buffer.concat(parts).toString('utf8'));
    },
    pages: async () => ({
      host,
      port: ports.pageserver,
      token: await issuer.sign({aud: 'pageserver', scope: 'node'}),
    }),
  };
}

/** The branch asked for; without one, the only default branch there is. UsageError otherwise. */
export async function onePlace(client: InternalClient, branch: string | undefined): Promise<BranchPlace> {
  const places = await client.places(branch);
  const chosen = branch === undefined ? places.filter((place) => place.isDefault) : places;
  if (chosen.length === 1) return chosen[0]!;
  const names = (chosen.length === 0 ? places : chosen).map((p) => `${p.branchId} (${p.name}, project ${p.projectId})`);
  throw new UsageError(`name one branch with --branch: ${names.join(', ')}`);
}

export const timelinePath = (place: BranchPlace): string => `/v1/tenant/${place.tenantId}/timeline/${place.timelineId}`;

/** `at` as an LSN: it is one, or a time within the branch's history. Undefined without `at`. */
export async function lsnAt(
  client: InternalClient,
  place: BranchPlace,
  at: string | undefined,
): Promise<string | undefined> {
  if (at === undefined || /^[0-9A-Fa-f]+\/[0-9A-Fa-f]+$/.test(at)) return at;
  const query = `timestamp=${encodeURIComponent(at)}`;
  const answer = await client.ask('GET', `${timelinePath(place)}/lsn_by_timestamp?${query}`);
  if (answer['kind'] === 'past' || answer['kind'] === 'nodata')
    throw new UsageError(`branch ${place.name} has no history at ${at} (${String(answer['kind'])})`);
  return String(answer['lsn']);
}
