/** For commands that speak with the running parts of this machine: control plane and pageserver, as an internal peer. */
import {systemClock} from '#runtime/clock.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import {TokenIssuer} from '#wire/auth.ts';
import type {ShardLocation} from '#wire/compute-spec.ts';
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
  /** Shard 0, which knows everything but pages of others, comes first. */
  readonly shards: readonly ShardLocation[];
}

/** A node, and whether the control plane has heard of it lately. */
export interface PageserverPlace {
  readonly nodeId: number;
  readonly host: string;
  readonly httpPort: number;
  readonly answers: boolean;
}

export interface InternalClient {
  /** Branches with this id or name; all without one. */
  readonly places: (branch: string | undefined) => Promise<BranchPlace[]>;
  /** A call of the control plane's internal routes. Throws UsageError with what it said. */
  readonly askControl: (method: string, path: string, body?: unknown) => Promise<Json>;
  readonly pageservers: () => Promise<PageserverPlace[]>;
  /** The same of a pageserver's management HTTP. */
  readonly ask: (node: PageserverPlace, method: string, path: string, body?: unknown) => Promise<Json>;
  /** Of the timeline of a place: `path` is what follows; at its first shard, or another. */
  readonly askTimeline: (
    place: BranchPlace,
    method: string,
    path: string,
    body?: unknown,
    shard?: ShardLocation,
  ) => Promise<Json>;
  readonly streamTimeline: (
    place: BranchPlace,
    path: string,
    shard?: ShardLocation,
  ) => Promise<{headers: Readonly<Record<string, string | undefined>>; body: AsyncIterable<Buffer>}>;
  /** A token for page services. */
  readonly pageToken: () => Promise<string>;
}

type Json = Readonly<Record<string, unknown>>;

/** What takes long here is bounded by the user's patience. */
const longMsMax = 24 * 3_600_000;
const host = '127.0.0.1';

/** UsageError when nothing runs. */
export async function connectInternally(layout: Layout): Promise<InternalClient> {
  const notes = readSupervisor(layout);
  if (notes === undefined) throw new UsageError(`nothing runs on ${layout.data}. Start it with \`pagoda up\``);
  const issuer = await TokenIssuer.load(layout.keys, 'control', systemClock);
  const ports = internalPorts(notes.ports.internal);
  const controlUrl = `http://${host}:${ports.control}`;
  const nodeUrl = (node: {readonly host: string; readonly httpPort: number}): string =>
    `http://${node.host}:${node.httpPort}`;
  const timelineUrl = (place: BranchPlace, path: string, shard = place.shards[0]!): string =>
    `${nodeUrl(shard)}/v1/tenant/${shard.shardId}/timeline/${place.timelineId}${path}`;
  const call = async (aud: 'control' | 'pageserver', method: string, url: string, body?: unknown): Promise<Json> => {
    const {status, json} = await requestJson({
      method,
      url,
      token: await issuer.sign({aud, scope: 'node'}),
      ...(body === undefined ? {} : {body}),
      timeoutMs: longMsMax,
    });
    const answer = (json ?? {}) as Json;
    if (status >= 300) throw new UsageError(String(answer['message'] ?? `status ${status}`));
    return answer;
  };
  return {
    askControl: (method, path, body) => call('control', method, `${controlUrl}/internal/v1${path}`, body),
    async pageservers() {
      const answer = await call('control', 'GET', `${controlUrl}/internal/v1/pageservers`);
      return (answer['pageservers'] as PageserverPlace[]).toSorted((a, b) => a.nodeId - b.nodeId);
    },
    ask: (node, method, path, body) => call('pageserver', method, `${nodeUrl(node)}${path}`, body),
    askTimeline: (place, method, path, body, shard) =>
      call('pageserver', method, timelineUrl(place, path, shard), body),
    async places(branch) {
      const query = branch === undefined ? '' : `?branch=${encodeURIComponent(branch)}`;
      const answer = await call('control', 'GET', `${controlUrl}/internal/v1/branch_places${query}`);
      return answer['branches'] as BranchPlace[];
    },
    async streamTimeline(place, path, shard) {
      const token = await issuer.sign({aud: 'pageserver', scope: 'node'});
      const {status, headers, body} = await requestStream({
        method: 'GET',
        url: timelineUrl(place, path, shard),
        token,
      });
      if (status < 300) return {headers, body};
      const parts: Buffer[] = [];
      for await (const part of body) parts.push(part);
      throw new UsageError(Buffer.concat(parts).toString('utf8'));
    },
    pageToken: () => issuer.sign({aud: 'pageserver', scope: 'node'}),
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

/** `at` as an LSN: it is one, or a time within the branch's history. Undefined without `at`. */
export async function lsnAt(
  client: InternalClient,
  place: BranchPlace,
  at: string | undefined,
): Promise<string | undefined> {
  if (at === undefined || /^[0-9A-Fa-f]+\/[0-9A-Fa-f]+$/.test(at)) return at;
  const query = `timestamp=${encodeURIComponent(at)}`;
  const answer = await client.askTimeline(place, 'GET', `/lsn_by_timestamp?${query}`);
  if (answer['kind'] === 'past' || answer['kind'] === 'nodata')
    throw new UsageError(`branch ${place.name} has no history at ${at} (${String(answer['kind'])})`);
  return String(answer['lsn']);
}
