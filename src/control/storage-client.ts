/** What the control plane asks of pageservers and safekeepers. */
import type {TokenIssuer} from '#wire/auth.ts';
import {requestJson, requestStream} from '#runtime/http.ts';
import type {PageserverNode, SafekeeperNode} from '#control/config.ts';
import {formatLsn, type Lsn, parseLsn} from '#control/lsn.ts';
import {PermanentError} from '#control/operations/plan.ts';
import {parseMembership, parsePosition, type SafekeeperPosition} from '#wire/membership.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';

export type TimelineMode =
  | {readonly kind: 'import'}
  | {readonly kind: 'branch'; readonly ancestorTimelineId: string; readonly ancestorLsn: Lsn};

export interface TimelineInfo {
  readonly state: string;
  /** WAL up to here is ingested and can be read. */
  readonly lastRecordLsn: Lsn;
  /** Where its own WAL begins. */
  readonly initialLsn?: Lsn;
  /** Nobody needs WAL below; absent: not known. */
  readonly walNeededLsn?: Lsn;
  readonly ancestorTimelineId?: string;
  readonly ancestorLsn?: Lsn;
  readonly logicalSizeBytes?: number;
  readonly ingestError?: string;
}

export interface SafekeeperStatus {
  readonly term: number;
  readonly flushLsn: Lsn;
  readonly commitLsn: Lsn;
  readonly archivedLsn?: Lsn;
  readonly membership?: Membership;
}

export type TimestampAnswer = {readonly kind: 'present' | 'future' | 'past' | 'nodata'; readonly lsn?: Lsn};

/**
 * One pageserver; `tenantId` is a shard id (wire/shard.ts) in every call. Every call may be repeated: creating what exists and
 * deleting what is gone succeed. NotAttachedError when it does not hold the shard. See tenant-pages.ts, which knows where it is.
 */
export interface PageserverClient {
  /** `holds`: nothing is deleted yet (another pageserver is still read); asking without it ends that. */
  attachTenant(tenantId: string, generation: number, holds?: boolean): Promise<void>;
  /** It keeps what the holder uploads ready, and holds the tenant no more if it did. */
  keepReady(tenantId: string): Promise<void>;
  detachTenant(tenantId: string): Promise<void>;
  /** What is in memory goes to the object store. */
  saveTenant(tenantId: string): Promise<void>;
  /** undefined: it has nothing to do with the tenant. */
  tenantStatus(tenantId: string): Promise<TenantStatus | undefined>;
  /** Everything it has to do with. */
  held(): Promise<HeldShard[]>;
  /** Rejects when it does not answer within `timeoutMs`. */
  alive(timeoutMs: number): Promise<void>;
  /** undefined: it does not hold the tenant. */
  tenantGeneration(tenantId: string): Promise<number | undefined>;
  /** With all its objects. */
  deleteTenant(tenantId: string): Promise<void>;
  createTimeline(tenantId: string, timelineId: string, pgVersion: number, mode: TimelineMode): Promise<void>;
  /** Streams the first pages in; answers the LSN where the branch's WAL begins. */
  importTimeline(tenantId: string, timelineId: string, body: AsyncIterable<Buffer>): Promise<Lsn>;
  /** undefined: there is no such timeline. */
  timeline(tenantId: string, timelineId: string): Promise<TimelineInfo | undefined>;
  lsnByTimestamp(tenantId: string, timelineId: string, timestamp: string): Promise<TimestampAnswer>;
  setSafekeepers(tenantId: string, timelineId: string, safekeepers: readonly SafekeeperNode[]): Promise<void>;
  deleteTimeline(tenantId: string, timelineId: string): Promise<void>;
  /** Saves everything up to `lsn` and drops it from memory; throws while a child is not archived. */
  archiveTimeline(tenantId: string, timelineId: string, lsn: Lsn): Promise<void>;
  /** With its ancestors. */
  unarchiveTimeline(tenantId: string, timelineId: string): Promise<void>;
  /** Goes on with making the timeline independent of its ancestor, for some seconds; true: it is. */
  detachTimeline(tenantId: string, timelineId: string): Promise<boolean>;
  /** History of at least this long stays readable. */
  setRetention(tenantId: string, timelineId: string, windowSeconds: number): Promise<void>;
}

/** The pageserver does not hold the shard, or not under its present generation. */
export class NotAttachedError extends Error {}

/** A pageserver's status for what it does not hold. */
const misdirected = 421;

export interface NewSafekeeperTimeline {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly systemId: string;
  readonly pgVersion: number;
  readonly startLsn: Lsn;
  readonly members: readonly SafekeeperNode[];
}

export interface SafekeeperClient {
  createTimeline(timeline: NewSafekeeperTimeline): Promise<void>;
  status(tenantId: string, timelineId: string): Promise<SafekeeperStatus | undefined>;
  deleteTimeline(tenantId: string, timelineId: string): Promise<void>;
  /** The next three: wire/membership.ts. */
  setMembership(
    tenantId: string,
    timelineId: string,
    membership: Membership,
    minTerm: number,
  ): Promise<SafekeeperPosition>;
  pull(
    tenantId: string,
    timelineId: string,
    membership: Membership,
    from: readonly Member[],
    timeoutMs: number,
  ): Promise<SafekeeperPosition>;
  exclude(tenantId: string, timelineId: string, membership: Membership): Promise<void>;
  /** What the object store has of the timeline; undefined: nothing. */
  archive(tenantId: string, timelineId: string): Promise<WalArchiveStatus | undefined>;
  /** Nobody needs WAL below `lsn`: whole segments of it leave the object store. Answers up to where they have. */
  trimArchive(tenantId: string, timelineId: string, lsn: Lsn): Promise<Lsn>;
  /** The timeline comes back from the object store on a node that has lost it; answers the LSN where the branch goes on. */
  restoreFromArchive(
    tenantId: string,
    timelineId: string,
    membership: Membership,
    lsn: Lsn | undefined,
  ): Promise<SafekeeperStatus>;
}

export interface HeldShard {
  readonly shardId: string;
  readonly mode: 'attached' | 'secondary';
  /** Of one that is attached. */
  readonly generation?: number;
}

export interface TenantStatus {
  readonly mode: 'attached' | 'secondary';
  /** A secondary: it has followed what the holder has uploaded. */
  readonly isReady: boolean;
  /** Attached: the timelines that are awake, and up to where each has ingested. */
  readonly reached: ReadonlyMap<string, Lsn>;
}

/** restoreLsn: the end of the last whole record in the object store. */
export interface WalArchiveStatus {
  readonly startLsn: Lsn;
  readonly archivedLsn: Lsn;
  readonly restoreLsn: Lsn;
}

export interface StorageClients {
  /** All that are known now, retired ones too. */
  readonly pageservers: readonly PageserverNode[];
  /** All that are known now, retired ones too. */
  readonly safekeepers: readonly SafekeeperNode[];
  /** Throws when the configuration names no such node. */
  pageserver(nodeId: number): PageserverClient;
  safekeeper(nodeId: number): SafekeeperClient;
}

export class HttpStorageClients implements StorageClients {
  #pageservers: readonly PageserverNode[];
  #safekeepers: readonly SafekeeperNode[];
  readonly #issuer: TokenIssuer;

  constructor(options: {
    pageservers: readonly PageserverNode[];
    safekeepers: readonly SafekeeperNode[];
    issuer: TokenIssuer;
  }) {
    this.#pageservers = options.pageservers;
    this.#safekeepers = options.safekeepers;
    this.#issuer = options.issuer;
  }

  get pageservers(): readonly PageserverNode[] {
    return this.#pageservers;
  }

  get safekeepers(): readonly SafekeeperNode[] {
    return this.#safekeepers;
  }

  /** The list in the database has changed. */
  usePageservers(nodes: readonly PageserverNode[]): void {
    this.#pageservers = nodes;
  }
  useSafekeepers(nodes: readonly SafekeeperNode[]): void {
    this.#safekeepers = nodes;
  }

  pageserver(nodeId: number): PageserverClient {
    return new HttpPageserver(
      new NodeHttp(nodeById(this.pageservers, nodeId, 'pageserver'), 'pageserver', this.#issuer),
    );
  }

  safekeeper(nodeId: number): SafekeeperClient {
    return new HttpSafekeeper(
      new NodeHttp(nodeById(this.safekeepers, nodeId, 'safekeeper'), 'safekeeper', this.#issuer),
    );
  }
}

function nodeById<T extends {readonly nodeId: number}>(nodes: readonly T[], nodeId: number, what: string): T {
  const node = nodes.find((n) => n.nodeId === nodeId);
  if (!node)
    throw new Error(`the configuration of the control plane has no ${what} ${nodeId}, but a project lives there`);
  return node;
}

interface Answer {
  readonly status: number;
  readonly json: Readonly<Record<string, unknown>>;
}

/** One node's management HTTP. */
class NodeHttp {
  readonly #node: {readonly nodeId: number; readonly host: string; readonly httpPort: number};
  readonly #role: 'pageserver' | 'safekeeper';
  readonly #issuer: TokenIssuer;

  constructor(
    node: {readonly nodeId: number; readonly host: string; readonly httpPort: number},
    role: 'pageserver' | 'safekeeper',
    issuer: TokenIssuer,
  ) {
    this.#node = node;
    this.#role = role;
    this.#issuer = issuer;
  }

  /** Answers below 300, and those of `expected`; others throw with the node's own message. */
  async call(
    method: string,
    path: string,
    options: {body?: unknown; expected?: readonly number[]; timeoutMs?: number} = {},
  ): Promise<Answer> {
    const {status, json} = await requestJson({
      method,
      url: this.#url(path),
      token: await this.#token(),
      ...(options.body === undefined ? {} : {body: options.body}),
      timeoutMs: options.timeoutMs ?? 30_000,
    });
    return this.#check(method, path, status, json, options.expected ?? []);
  }

  async stream(
    method: string,
    path: string,
    body: AsyncIterable<Buffer>,
    expected: readonly number[],
  ): Promise<Answer> {
    const response = await requestStream({
      method,
      url: this.#url(path),
      token: await this.#token(),
      body,
      timeoutMs: 300_000,
    });
    const parts: Buffer[] = [];
    for await (const part of response.body) parts.push(part);
    const text = Buffer.concat(parts).toString('utf8');
    let json: unknown;
    try {
      json = text === '' ? {} : JSON.parse(text);
    } catch {
      json = {message: text.slice(0, 500)};
    }
    return this.#check(method, path, response.status, json, expected);
  }

  #check(method: string, path: string, status: number, json: unknown, expected: readonly number[]): Answer {
    const answer = (json ?? {}) as Readonly<Record<string, unknown>>;
    if (status < 300 || expected.includes(status)) return {status, json: answer};
    const message = `${this.#role} ${this.#node.nodeId}: ${method} ${path}: ${String(answer['message'] ?? `status ${status}`)}`;
    if (status === misdirected) throw new NotAttachedError(message);
    // 4xx other than these will be the same next time.
    if (status >= 400 && status < 500 && ![401, 404, 408, 409, 423, 429].includes(status))
      throw new PermanentError(message);
    throw new Error(message);
  }

  #url(path: string): string {
    return `http://${this.#node.host}:${this.#node.httpPort}${path}`;
  }
  #token(): Promise<string> {
    return this.#issuer.sign({aud: this.#role, scope: 'node'});
  }
}

class HttpPageserver implements PageserverClient {
  readonly #http: NodeHttp;
  constructor(http: NodeHttp) {
    this.#http = http;
  }

  async attachTenant(tenantId: string, generation: number, holds = false): Promise<void> {
    await this.#http.call('PUT', `/v1/tenant/${tenantId}`, {body: {generation, ...(holds ? {holds} : {})}});
  }

  async keepReady(tenantId: string): Promise<void> {
    await this.#http.call('PUT', `/v1/tenant/${tenantId}`, {body: {mode: 'secondary'}});
  }

  async detachTenant(tenantId: string): Promise<void> {
    await this.#http.call('DELETE', `/v1/tenant/${tenantId}`);
  }

  async saveTenant(tenantId: string): Promise<void> {
    await this.#http.call('POST', `/v1/tenant/${tenantId}/save`, {timeoutMs: 10_000});
  }

  async tenantStatus(tenantId: string): Promise<TenantStatus | undefined> {
    const {status, json} = await this.#http.call('GET', `/v1/tenant/${tenantId}`, {
      expected: [404, misdirected],
      timeoutMs: 10_000,
    });
    if (status !== 200) return undefined;
    const timelines = (json['timelines'] ?? []) as {timelineId: string; state: string; lastRecordLsn: unknown}[];
    return {
      mode: json['mode'] === 'secondary' ? 'secondary' : 'attached',
      isReady: json['isReady'] === true,
      reached: new Map(
        (Array.isArray(timelines) ? timelines : [])
          .filter(({state}) => state === 'active')
          .map(({timelineId, lastRecordLsn}) => [timelineId, readLsn(lastRecordLsn, `timeline ${timelineId}`)]),
      ),
    };
  }

  async held(): Promise<HeldShard[]> {
    const {json} = await this.#http.call('GET', '/v1/held', {timeoutMs: 10_000});
    const tenants = json['tenants'] as {id: string; mode: HeldShard['mode']; generation?: number}[];
    return tenants.map(({id, mode, generation}) => ({
      shardId: id,
      mode,
      ...(generation === undefined ? {} : {generation}),
    }));
  }

  async alive(timeoutMs: number): Promise<void> {
    await this.#http.call('GET', '/v1/status', {timeoutMs});
  }

  async tenantGeneration(tenantId: string): Promise<number | undefined> {
    const {status, json} = await this.#http.call('GET', `/v1/tenant/${tenantId}`, {expected: [404, misdirected]});
    return status !== 200 || typeof json['generation'] !== 'number' ? undefined : json['generation'];
  }

  async deleteTenant(tenantId: string): Promise<void> {
    await this.#http.call('DELETE', `/v1/tenant/${tenantId}?objects=true`, {expected: [404], timeoutMs: 120_000});
  }

  async createTimeline(tenantId: string, timelineId: string, pgVersion: number, mode: TimelineMode): Promise<void> {
    const body = {
      timelineId,
      pgVersion,
      mode: mode.kind === 'branch' ? {...mode, ancestorLsn: formatLsn(mode.ancestorLsn)} : mode,
    };
    await this.#http.call('POST', `/v1/tenant/${tenantId}/timeline`, {body, expected: [409]});
  }

  async importTimeline(tenantId: string, timelineId: string, body: AsyncIterable<Buffer>): Promise<Lsn> {
    const {status, json} = await this.#http.stream(
      'POST',
      `/v1/tenant/${tenantId}/timeline/${timelineId}/import`,
      body,
      [409],
    );
    if (status !== 409) return readLsn(json['lsn'], 'the import');
    // Imported by an earlier try whose answer was lost.
    const info = await this.timeline(tenantId, timelineId);
    if (!info) throw new Error(`the pageserver says timeline ${timelineId} is imported, and that it does not exist`);
    return info.initialLsn ?? info.lastRecordLsn;
  }

  async timeline(tenantId: string, timelineId: string): Promise<TimelineInfo | undefined> {
    const {status, json} = await this.#http.call('GET', `/v1/tenant/${tenantId}/timeline/${timelineId}`, {
      expected: [404],
    });
    if (status === 404) return undefined;
    const {ancestorLsn, initialLsn} = json;
    return {
      state: String(json['state']),
      lastRecordLsn: readLsn(json['lastRecordLsn'], `timeline ${timelineId}`),
      ...(typeof initialLsn === 'string' ? {initialLsn: readLsn(initialLsn, `timeline ${timelineId}`)} : {}),
      ...(typeof json['walNeededLsn'] === 'string'
        ? {walNeededLsn: readLsn(json['walNeededLsn'], `timeline ${timelineId}`)}
        : {}),
      ...(typeof json['ancestorTimelineId'] === 'string' ? {ancestorTimelineId: json['ancestorTimelineId']} : {}),
      ...(ancestorLsn === undefined || ancestorLsn === null
        ? {}
        : {ancestorLsn: readLsn(ancestorLsn, `timeline ${timelineId}`)}),
      ...(typeof json['logicalSizeBytes'] === 'number' ? {logicalSizeBytes: json['logicalSizeBytes']} : {}),
      ...(typeof json['ingestError'] === 'string' ? {ingestError: json['ingestError']} : {}),
    };
  }

  async lsnByTimestamp(tenantId: string, timelineId: string, timestamp: string): Promise<TimestampAnswer> {
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}/lsn_by_timestamp?timestamp=${encodeURIComponent(timestamp)}`;
    const {json} = await this.#http.call('GET', path, {timeoutMs: 60_000});
    const kind = json['kind'];
    if (kind !== 'present' && kind !== 'future' && kind !== 'past' && kind !== 'nodata')
      throw new Error(`the pageserver answers lsn_by_timestamp with ${JSON.stringify(kind)}`);
    return {
      kind,
      ...(json['lsn'] === undefined || json['lsn'] === null ? {} : {lsn: readLsn(json['lsn'], 'lsn_by_timestamp')}),
    };
  }

  async setRetention(tenantId: string, timelineId: string, windowSeconds: number): Promise<void> {
    await this.#http.call('PUT', `/v1/tenant/${tenantId}/timeline/${timelineId}/retention`, {body: {windowSeconds}});
  }

  async archiveTimeline(tenantId: string, timelineId: string, lsn: Lsn): Promise<void> {
    await this.#http.call('POST', `/v1/tenant/${tenantId}/timeline/${timelineId}/archive`, {
      body: {lsn: formatLsn(lsn)},
      timeoutMs: 120_000,
    });
  }

  async unarchiveTimeline(tenantId: string, timelineId: string): Promise<void> {
    await this.#http.call('POST', `/v1/tenant/${tenantId}/timeline/${timelineId}/unarchive`);
  }

  async detachTimeline(tenantId: string, timelineId: string): Promise<boolean> {
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}/detach_ancestor`;
    return (await this.#http.call('POST', path, {timeoutMs: 120_000})).json['detached'] === true;
  }

  async setSafekeepers(tenantId: string, timelineId: string, safekeepers: readonly SafekeeperNode[]): Promise<void> {
    await this.#http.call('PUT', `/v1/tenant/${tenantId}/timeline/${timelineId}/safekeepers`, {
      body: {safekeepers: safekeepers.map(member)},
    });
  }

  async deleteTimeline(tenantId: string, timelineId: string): Promise<void> {
    await this.#http.call('DELETE', `/v1/tenant/${tenantId}/timeline/${timelineId}`, {
      expected: [404],
      timeoutMs: 120_000,
    });
  }
}

class HttpSafekeeper implements SafekeeperClient {
  readonly #http: NodeHttp;
  constructor(http: NodeHttp) {
    this.#http = http;
  }

  async createTimeline(timeline: NewSafekeeperTimeline): Promise<void> {
    const {tenantId, timelineId, systemId, pgVersion, startLsn, members} = timeline;
    const body = {timelineId, systemId, pgVersion, startLsn: formatLsn(startLsn), members: members.map(member)};
    await this.#http.call('POST', `/v1/tenant/${tenantId}/timeline`, {body});
  }

  async status(tenantId: string, timelineId: string): Promise<SafekeeperStatus | undefined> {
    const {status, json} = await this.#http.call('GET', `/v1/tenant/${tenantId}/timeline/${timelineId}`, {
      expected: [404],
      timeoutMs: 3000,
    });
    return status === 404 ? undefined : readStatus(json, timelineId);
  }

  async setMembership(
    tenantId: string,
    timelineId: string,
    membership: Membership,
    minTerm: number,
  ): Promise<SafekeeperPosition> {
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}/membership`;
    return parsePosition((await this.#http.call('PUT', path, {body: {membership, minTerm}, timeoutMs: 5000})).json);
  }

  async pull(
    tenantId: string,
    timelineId: string,
    membership: Membership,
    from: readonly Member[],
    timeoutMs: number,
  ): Promise<SafekeeperPosition> {
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}/pull`;
    return parsePosition((await this.#http.call('POST', path, {body: {membership, from}, timeoutMs})).json);
  }

  async exclude(tenantId: string, timelineId: string, membership: Membership): Promise<void> {
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}/exclude`;
    await this.#http.call('POST', path, {body: {membership}, timeoutMs: 5000});
  }

  async archive(tenantId: string, timelineId: string): Promise<WalArchiveStatus | undefined> {
    const {status, json} = await this.#http.call('GET', `/v1/tenant/${tenantId}/timeline/${timelineId}/archive`, {
      expected: [404],
    });
    if (status === 404) return undefined;
    const where = `the WAL archive of timeline ${timelineId}`;
    return {
      startLsn: readLsn(json['startLsn'], where),
      archivedLsn: readLsn(json['archivedLsn'], where),
      restoreLsn: readLsn(json['restoreLsn'], where),
    };
  }

  async trimArchive(tenantId: string, timelineId: string, lsn: Lsn): Promise<Lsn> {
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}/archive/trim`;
    const {json} = await this.#http.call('POST', path, {body: {lsn: formatLsn(lsn)}, timeoutMs: 120_000});
    return readLsn(json['trimmedLsn'], `the WAL archive of timeline ${timelineId}`);
  }

  async restoreFromArchive(
    tenantId: string,
    timelineId: string,
    membership: Membership,
    lsn: Lsn | undefined,
  ): Promise<SafekeeperStatus> {
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}/restore_from_archive`;
    const body = {membership, ...(lsn === undefined ? {} : {lsn: formatLsn(lsn)})};
    return readStatus((await this.#http.call('POST', path, {body, timeoutMs: 300_000})).json, timelineId);
  }

  async deleteTimeline(tenantId: string, timelineId: string): Promise<void> {
    // The branch is deleted, not only this copy of its WAL: what was archived goes too.
    const path = `/v1/tenant/${tenantId}/timeline/${timelineId}?archive=delete`;
    await this.#http.call('DELETE', path, {expected: [404], timeoutMs: 120_000});
  }
}

function readStatus(json: Readonly<Record<string, unknown>>, timelineId: string): SafekeeperStatus {
  const where = `safekeeper timeline ${timelineId}`;
  return {
    term: Number(json['term']),
    flushLsn: readLsn(json['flushLsn'], where),
    commitLsn: readLsn(json['commitLsn'], where),
    ...(typeof json['archivedLsn'] === 'string' ? {archivedLsn: readLsn(json['archivedLsn'], where)} : {}),
    ...(json['membership'] === undefined ? {} : {membership: parseMembership(json['membership'])}),
  };
}

function member({nodeId, host, port}: SafekeeperNode): {nodeId: number; host: string; port: number} {
  return {nodeId, host, port};
}

function readLsn(value: unknown, what: string): Lsn {
  const lsn = typeof value === 'string' ? parseLsn(value) : undefined;
  if (lsn === undefined) throw new Error(`${what} names ${JSON.stringify(value)} where an LSN belongs`);
  return lsn;
}
