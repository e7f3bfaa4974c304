/** The management HTTP of a safekeeper. */
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {HttpError, type HttpRequest, type HttpResponse, type Route} from '#runtime/http.ts';
import {readRestorePoint, restoreState} from '#safekeeper/restore.ts';
import type {WalArchive} from '#objectstore/wal-archive.ts';
import type {Timeline} from '#safekeeper/timeline.ts';
import type {TimelineRegistry} from '#safekeeper/timeline-registry.ts';
import {type Claims, asHttpError, requireNode, requireTenant} from '#wire/auth.ts';
import {compareMembership, isMember, parseMembers, parseMembership, positionJson} from '#wire/membership.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';

const idPattern = /^[0-9a-f]{32}$/;

export interface ManagementOptions {
  readonly nodeId: number;
  readonly registry: TimelineRegistry;
  readonly metricsText: () => string;
  /** Copies a timeline from the first of these that has it; returns when it is here. */
  readonly pull: (
    tenantId: string,
    timelineId: string,
    membership: Membership,
    from: readonly Member[],
  ) => Promise<void>;
}

/**
 * Below /v1/tenant/:tenant/timeline:
 *
 *   POST   (…)                  {timelineId, startLsn, members, systemId?, pgVersion?, generation?}: 201; 200 when it was there
 *   GET    /:timeline           status
 *   DELETE /:timeline           200, also when it is gone; the id can never be used again. With ?archive=delete its WAL leaves
 *                               the object store too: only when the branch itself is deleted, never for one member
 *   PUT    /:timeline/membership, POST /:timeline/pull, POST /:timeline/exclude     see wire/membership.ts
 *   POST   /:timeline/archive/trim   {lsn}: nobody needs WAL below any more; whole segments of it leave the object store.
 *                               {trimmedLsn, objects}; may be repeated, at any member
 *   GET    /:timeline/archive   {startLsn, archivedLsn, restoreLsn, objects, bytes}: what the object store has, whether the
 *                               timeline is here or not; a branch restored from it goes on at restoreLsn
 *   POST   /:timeline/restore_from_archive   {membership, lsn?}: when all members have lost their disks. 201 {lsn, …status}:
 *                               the branch goes on there. `lsn`, when later than the archive's end: a pageserver has everything
 *                               up to there, so the branch goes on there. 200 when it was here already
 *
 * and GET /v1/status, /metrics.
 */
export function managementRoutes({nodeId, registry, metricsText, pull}: ManagementOptions): Route[] {
  const allowed = (request: HttpRequest, timelineId?: string): string => {
    const tenantId = request.params['tenant'];
    if (!isId(tenantId)) throw new HttpError(400, 'bad_request', 'tenant must be 32 hex digits');
    try {
      requireTenant(request.claims as Claims, ['control'], tenantId, timelineId);
    } catch (error) {
      throw asHttpError(error);
    }
    return tenantId;
  };
  const node = (request: HttpRequest): void => {
    try {
      requireNode(request.claims as Claims, 'control');
    } catch (error) {
      throw asHttpError(error);
    }
  };
  const timelineId = (request: HttpRequest): string => {
    const id = request.params['timeline'];
    if (!isId(id)) throw new HttpError(400, 'bad_request', 'timeline must be 32 hex digits');
    return id;
  };
  const existing = (tenantId: string, id: string): Timeline => {
    const timeline = registry.get(tenantId, id);
    if (timeline === undefined)
      throw new HttpError(404, 'not_found', `no timeline ${id} of tenant ${tenantId} on this safekeeper`);
    return timeline;
  };
  const archive = (tenantId: string, id: string): WalArchive => {
    const found = registry.archiveOf(tenantId, id);
    if (found === undefined)
      throw new HttpError(409, 'no_archive', 'this safekeeper has no object store (objectStore in its configuration)');
    return found.wal;
  };
  return [
    {method: 'GET', path: '/v1/status', open: true, handler: async () => ({status: 200, json: {status: 'ok'}})},
    {
      method: 'GET',
      path: '/metrics',
      open: true,
      handler: async () => ({
        status: 200,
        body: Buffer.from(metricsText()),
        headers: {'content-type': 'text/plain; version=0.0.4'},
      }),
    },
    {
      method: 'POST',
      path: '/v1/tenant/:tenant/timeline',
      handler: async (request): Promise<HttpResponse> => {
        node(request);
        const tenantId = allowed(request);
        const body = parseCreate(await request.json());
        const {created, timeline} = registry.create({tenantId, ...body});
        if (!created && timeline.acceptor.state.startLsn !== body.startLsn)
          throw new HttpError(
            409,
            'conflict',
            `timeline ${body.timelineId} exists with start LSN ${formatLsn(timeline.acceptor.state.startLsn)}`,
          );
        return {status: created ? 201 : 200, json: timeline.status()};
      },
    },
    {
      method: 'GET',
      path: '/v1/tenant/:tenant/timeline/:timeline',
      handler: async (request) => {
        const id = timelineId(request);
        const tenantId = allowed(request, id);
        return {status: 200, json: existing(tenantId, id).status()};
      },
    },
    {
      method: 'DELETE',
      path: '/v1/tenant/:tenant/timeline/:timeline',
      handler: async (request) => {
        node(request);
        const id = timelineId(request);
        const tenantId = allowed(request, id);
        await registry.delete(tenantId, id)?.archiveClosed;
        if (request.query.get('archive') === 'delete') await registry.archiveOf(tenantId, id)?.wal.deleteAll();
        return {status: 200, json: {}};
      },
    },
    {
      method: 'PUT',
      path: '/v1/tenant/:tenant/timeline/:timeline/membership',
      handler: async (request) => {
        node(request);
        const id = timelineId(request);
        const timeline = existing(allowed(request, id), id);
        const body = (await request.json()) as {membership?: unknown; minTerm?: unknown} | null;
        const membership = valid(() => parseMembership(body?.membership));
        const minTerm = body?.minTerm ?? 0;
        if (!isWhole(minTerm)) throw new HttpError(400, 'bad_request', 'minTerm must be a whole number');
        const own = timeline.acceptor.state.membership;
        const compared = compareMembership(own, membership);
        if (compared === 'stale')
          throw new HttpError(409, 'stale-generation', `the configuration here is of generation ${own.generation}`);
        if (compared === 'conflict')
          throw new HttpError(
            409,
            'generation-conflict',
            `generation ${own.generation} has other members here: ${JSON.stringify(own)}`,
          );
        if (!timeline.setMembership(membership, minTerm))
          throw new HttpError(503, 'not_saved', 'the configuration could not be made durable; try again');
        return {status: 200, json: positionJson(timeline.acceptor.position)};
      },
    },
    {
      method: 'POST',
      path: '/v1/tenant/:tenant/timeline/:timeline/pull',
      handler: async (request) => {
        node(request);
        const id = timelineId(request);
        const tenantId = allowed(request, id);
        const body = (await request.json()) as {membership?: unknown; from?: unknown} | null;
        const membership = valid(() => parseMembership(body?.membership));
        const from = valid(() => parseMembers(body?.from, 'from'));
        if (registry.get(tenantId, id) === undefined) await pull(tenantId, id, membership, from);
        return {status: 200, json: positionJson(existing(tenantId, id).acceptor.position)};
      },
    },
    {
      method: 'POST',
      path: '/v1/tenant/:tenant/timeline/:timeline/exclude',
      handler: async (request) => {
        node(request);
        const id = timelineId(request);
        const tenantId = allowed(request, id);
        const body = (await request.json()) as {membership?: unknown} | null;
        const membership = valid(() => parseMembership(body?.membership));
        const own = registry.get(tenantId, id)?.acceptor.state.membership;
        if (isMember(membership, nodeId))
          throw new HttpError(
            409,
            'still_member',
            `safekeeper ${nodeId} is a member of generation ${membership.generation}`,
          );
        if (own !== undefined && own.generation > membership.generation)
          throw new HttpError(409, 'stale-generation', `the configuration here is of generation ${own.generation}`);
        registry.exclude(tenantId, id, membership.generation);
        return {status: 200, json: {}};
      },
    },
    {
      method: 'GET',
      path: '/v1/tenant/:tenant/timeline/:timeline/archive',
      handler: async (request) => {
        const id = timelineId(request);
        const point = await readRestorePoint(archive(allowed(request, id), id));
        if (point === undefined)
          throw new HttpError(404, 'not_found', `nothing of timeline ${id} is in the object store`);
        return {
          status: 200,
          json: {
            startLsn: formatLsn(point.firstLsn),
            archivedLsn: formatLsn(point.archivedLsn),
            restoreLsn: formatLsn(point.restoreLsn),
            objects: point.objects,
            bytes: point.bytes,
          },
        };
      },
    },
    {
      method: 'POST',
      path: '/v1/tenant/:tenant/timeline/:timeline/archive/trim',
      handler: async (request) => {
        node(request);
        const id = timelineId(request);
        const tenantId = allowed(request, id);
        const body = (await request.json()) as {lsn?: unknown} | null;
        const lsn = valid(() => parseLsn(String(body?.lsn)));
        const {archivedLsn} = existing(tenantId, id).acceptor.state;
        // One segment more than is needed stays: the record that the needed WAL begins in has its beginning there.
        const segment = Math.floor(Math.min(lsn, archivedLsn) / walSegmentSizeDefault) - 1;
        const wal = archive(tenantId, id);
        const objects = segment > 0 ? await wal.trim((segment * walSegmentSizeDefault) as Lsn) : 0;
        return {status: 200, json: {trimmedLsn: formatLsn(await wal.trimmedLsn()), objects}};
      },
    },
    {
      method: 'POST',
      path: '/v1/tenant/:tenant/timeline/:timeline/restore_from_archive',
      handler: async (request) => {
        node(request);
        const id = timelineId(request);
        const tenantId = allowed(request, id);
        const body = (await request.json()) as {membership?: unknown; lsn?: unknown} | null;
        const membership = valid(() => parseMembership(body?.membership));
        const lsn = body?.lsn === undefined ? undefined : valid(() => parseLsn(String(body.lsn)));
        const before = registry.get(tenantId, id);
        if (before !== undefined)
          return {status: 200, json: {lsn: formatLsn(before.acceptor.commitLsn), ...before.status()}};
        if (!isMember(membership, nodeId))
          throw new HttpError(409, 'no_member', `safekeeper ${nodeId} is in neither list of the membership`);
        const state = await restoreState(archive(tenantId, id), membership, lsn);
        const {timeline} = registry.adopt(state);
        return {status: 201, json: {lsn: formatLsn(state.commitLsn), ...timeline.status()}};
      },
    },
  ];
}

function parseCreate(body: unknown): {
  timelineId: string;
  systemId: string;
  pgVersion: number;
  startLsn: Lsn;
  membership: Membership;
} {
  const bad = (message: string): never => {
    throw new HttpError(400, 'bad_request', message);
  };
  const b = (body ?? {}) as Record<string, unknown>;
  const {timelineId, systemId, pgVersion, startLsn, members, generation} = b;
  if (!isId(timelineId)) return bad('timelineId must be 32 hex digits');
  if (typeof startLsn !== 'string') return bad('startLsn must be HI/LO: where the WAL of this timeline begins');
  let start: Lsn;
  try {
    start = parseLsn(startLsn);
  } catch (error) {
    return bad((error as Error).message);
  }
  if (start === 0) return bad('startLsn must not be 0/0');
  if (!Array.isArray(members) || members.length === 0 || members.length > 32)
    return bad('members must be a list of 1 to 32 safekeepers {nodeId, host, port}');
  const list = members.map((entry: unknown): Member => {
    const m = (entry ?? {}) as Record<string, unknown>;
    if (!isWhole(m['nodeId']) || typeof m['host'] !== 'string' || !isWhole(m['port']))
      return bad('a member is {nodeId, host, port}');
    return {nodeId: m['nodeId'], host: m['host'], port: m['port']};
  });
  if (new Set(list.map((m) => m.nodeId)).size !== list.length) return bad('members must have different nodeIds');
  if (systemId !== undefined && (typeof systemId !== 'string' || !/^\d{0,20}$/.test(systemId)))
    return bad('systemId must be decimal digits in a string');
  if (pgVersion !== undefined && !isWhole(pgVersion)) return bad('pgVersion must be a number such as 150018');
  if (generation !== undefined && !isWhole(generation)) return bad('generation must be a whole number');
  return {
    timelineId,
    systemId: systemId ?? '',
    // A bare major (15) is taken too.
    pgVersion: pgVersion === undefined ? 0 : pgVersion < 10_000 ? pgVersion * 10_000 : pgVersion,
    startLsn: start,
    membership: {generation: generation ?? 1, members: list, newMembers: []},
  };
}

/** What a parser throws is the caller's mistake. */
function valid<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new HttpError(400, 'bad_request', (error as Error).message);
  }
}

function isId(value: unknown): value is string {
  return typeof value === 'string' && idPattern.test(value);
}

function isWhole(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}
