/** Management HTTP of the pageserver: what the control plane (and a compute, for its own timeline) may ask. */
import {HttpError, type HttpRequest, type HttpResponse, type Route} from '#runtime/http.ts';
import {formatTime} from '#runtime/time-format.ts';
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {TarError} from '#postgres/tar.ts';
import {AuthError, type Claims, asHttpError, requireNode, requireTenant} from '#wire/auth.ts';
import type {PageErrorCode} from '#wire/pages.ts';
import {parseShardId, tenantOfShardId} from '#wire/shard.ts';
import {basebackup} from './basebackup.ts';
import {ImportError, importDataDirectory} from './ingest/import.ts';
import type {Pageserver} from './pageserver.ts';
import type {Secondary} from './secondary/secondary.ts';
import type {ArchivedTimeline} from './timeline/archived.ts';
import {parseRetention, parseSafekeepers} from './timeline/index-object.ts';
import {TimelineError} from './timeline/timeline-reader.ts';
import type {Timeline, TimelineInfo} from './timeline/timeline.ts';

const idPattern = /^[0-9a-f]{32}$/;
/** A basebackup may take so long before GC may overtake it. */
const basebackupMsMax = 300_000;
/** A request to detach a timeline answers after so long, finished or not. */
const detachMsMax = 10_000;
const statisticsBytesMax = 64 * 1024 * 1024;

/** HTTP status of each code of TimelineError. */
const statusOf: Readonly<Record<PageErrorCode, number>> = {
  internal: 500,
  'bad-request': 400,
  'not-found': 404,
  'beyond-end': 400,
  'lsn-timeout': 503,
  'lsn-too-old': 410,
  'redo-failed': 500,
  corrupt: 500,
  unavailable: 503,
  disconnected: 503,
  conflict: 409,
  'not-attached': 421,
  'wrong-shard': 400,
};

export function managementRoutes(pageserver: Pageserver, metricsText: () => string): Route[] {
  const tenantPath = '/v1/tenant/:tenant';
  const timelinePath = `${tenantPath}/timeline/:timeline`;
  return [
    {method: 'GET', path: '/v1/status', open: true, handler: async () => ({status: 200, json: {status: 'ok'}})},
    node('GET', '/metrics', async () => ({
      status: 200,
      body: Buffer.from(metricsText()),
      headers: {'content-type': 'text/plain; version=0.0.4'},
    })),
    node('GET', '/v1/held', async () => ({
      status: 200,
      json: {
        tenants: [
          ...pageserver.tenants().map(({tenantId: id, generation}) => ({id, mode: 'attached', generation})),
          ...pageserver.secondaries().map(({tenantId: id}) => ({id, mode: 'secondary'})),
        ],
      },
    })),
    // {generation, holds?}: attached (Pageserver.attach); {mode: 'secondary'}: kept ready.
    node('PUT', tenantPath, async (request) => {
      const {tenantId} = ids(request);
      const body = await request.json();
      if (field(body, 'mode') === 'secondary')
        return {status: 200, json: secondaryJson(await pageserver.keepReady(tenantId))};
      const generation = field(body, 'generation');
      if (
        typeof generation !== 'number' ||
        !Number.isSafeInteger(generation) ||
        generation < 1 ||
        generation > 0xffffffff
      )
        throw bad('generation must be a whole number from 1 to 4294967295');
      const tenant = await pageserver.attach(tenantId, generation, field(body, 'holds') === true);
      return {
        status: 200,
        json: {generation: tenant.generation, timelines: tenant.timelines().map((t) => t.timelineId)},
      };
    }),
    node('GET', tenantPath, async (request) => {
      const {tenantId} = ids(request);
      const secondary = pageserver.secondary(tenantId);
      if (secondary !== undefined) return {status: 200, json: secondaryJson(secondary)};
      const tenant = pageserver.tenant(tenantId);
      return {
        status: 200,
        json: {
          mode: 'attached',
          generation: tenant.generation,
          timelines: [
            ...tenant.timelines().map((t) => infoJson(t.info())),
            ...tenant.archivedTimelines().map(archivedJson),
          ],
        },
      };
    }),
    node('DELETE', tenantPath, async (request) => {
      const {tenantId} = ids(request);
      if (request.query.get('objects') === 'true') {
        await pageserver.tenant(tenantId).delete();
      }
      await pageserver.detach(tenantId);
      return {status: 200, json: {}};
    }),
    // Everything that is in memory goes to the object store, before the tenant moves.
    node('POST', `${tenantPath}/save`, async (request) => {
      await pageserver.save(ids(request).tenantId);
      return {status: 200, json: {}};
    }),
    node('POST', `${tenantPath}/timeline`, (request) => createTimeline(pageserver, request)),
    node('POST', `${timelinePath}/import`, (request) => importTimeline(pageserver, request)),
    tenant('GET', timelinePath, async (request) => {
      const {tenantId, timelineId} = ids(request);
      const archived = pageserver.tenant(tenantId).archivedTimeline(timelineId);
      if (archived === undefined) return {status: 200, json: infoJson(find(pageserver, request).info())};
      const index = await pageserver.tenant(tenantId).archivedIndex(timelineId);
      return {
        status: 200,
        json: {
          ...archivedJson(archived),
          // WAL behind its end, if there is any, is at the safekeepers.
          lastRecordLsn: formatLsn(index.diskConsistentLsn),
          initialLsn: formatLsn(index.initialLsn),
          pgVersion: index.pgVersion,
          systemId: index.systemId,
          logicalSizeBytes: index.logicalSizeBytes,
          layerBytes: index.layers.reduce((sum, layer) => sum + layer.size, 0),
        },
      };
    }),
    node('POST', `${timelinePath}/archive`, async (request) => {
      const {tenantId, timelineId} = ids(request);
      await pageserver.archive(tenantId, timelineId, lsnOf(field(await request.json(), 'lsn'), 'lsn'));
      return {status: 200, json: {}};
    }),
    node('POST', `${timelinePath}/unarchive`, async (request) => {
      const {tenantId, timelineId} = ids(request);
      return {status: 200, json: infoJson((await pageserver.tenant(tenantId).wake(timelineId)).info())};
    }),
    node('POST', `${timelinePath}/detach_ancestor`, async (request) => {
      const {tenantId, timelineId} = ids(request);
      return {status: 200, json: {detached: await pageserver.detachAncestor(tenantId, timelineId, detachMsMax)}};
    }),
    node('GET', `${timelinePath}/lsn_by_timestamp`, (request) => lsnByTimestamp(pageserver, request)),
    tenant('GET', `${timelinePath}/basebackup`, (request) => sendBasebackup(pageserver, request)),
    tenant('PUT', `${timelinePath}/pgstat`, (request) => putStatistics(pageserver, request)),
    node('PUT', `${timelinePath}/safekeepers`, async (request) => {
      // One that is archived needs none: it is told when it is awake.
      if (isArchived(pageserver, request)) return {status: 200, json: {}};
      const timeline = find(pageserver, request);
      let list;
      try {
        list = parseSafekeepers(field(await request.json(), 'safekeepers'));
      } catch (error) {
        throw error instanceof HttpError ? error : bad((error as Error).message);
      }
      await pageserver.setSafekeepers(timeline, list);
      return {status: 200, json: {}};
    }),
    node('PUT', `${timelinePath}/retention`, async (request) => {
      const timeline = find(pageserver, request);
      let retention;
      try {
        retention = parseRetention(await request.json());
      } catch (error) {
        throw error instanceof HttpError ? error : bad((error as Error).message);
      }
      await timeline.setRetention(retention);
      return {status: 200, json: {...retention}};
    }),
    tenant('PUT', `${timelinePath}/lease`, async (request) => {
      const timeline = find(pageserver, request);
      const body = await request.json();
      const ttlSeconds = field(body, 'ttlSeconds');
      if (typeof ttlSeconds !== 'number' || !(ttlSeconds > 0)) throw bad('ttlSeconds must be a number above zero');
      const granted = await timeline.lease(lsnOf(field(body, 'lsn'), 'lsn'), ttlSeconds * 1000);
      const {clock} = timeline.state.context;
      return {status: 200, json: {expiresAt: formatTime(clock.nowMs() + granted)}};
    }),
    node('POST', `${timelinePath}/checkpoint`, async (request) => {
      const timeline = find(pageserver, request);
      await timeline.checkpoint();
      return {status: 200, json: infoJson(timeline.info())};
    }),
    node('DELETE', timelinePath, async (request) => {
      const {tenantId, timelineId} = ids(request);
      const tenant = pageserver.tenant(tenantId);
      if (!isArchived(pageserver, request)) tenant.timeline(timelineId);
      await tenant.deleteTimeline(timelineId);
      return {status: 200, json: {}};
    }),
  ];
}

function secondaryJson({isReady, timelines, fetchedBytes}: Secondary): object {
  return {mode: 'secondary', isReady, timelines, fetchedBytes};
}

type Handler = (request: HttpRequest) => Promise<HttpResponse>;

/** For the control plane, and people with its key. */
function node(method: string, path: string, handler: Handler): Route {
  return guarded(method, path, handler, (claims) => requireNode(claims, 'control'));
}

/** Also for the compute of the timeline. */
function tenant(method: string, path: string, handler: Handler): Route {
  return guarded(method, path, handler, (claims, request) => {
    const {tenantId, timelineId} = ids(request);
    requireTenant(claims, ['control'], tenantOfShardId(tenantId), timelineId);
  });
}

function guarded(
  method: string,
  path: string,
  handler: Handler,
  check: (claims: Claims, request: HttpRequest) => void,
): Route {
  return {
    method,
    path,
    handler: async (request) => {
      try {
        check(request.claims as Claims, request);
        return await handler(request);
      } catch (error) {
        if (error instanceof TimelineError)
          throw new HttpError(statusOf[error.code], error.code.replaceAll('-', '_'), error.message);
        if (error instanceof ImportError || error instanceof TarError)
          throw new HttpError(400, 'bad_import', error.message);
        throw error instanceof AuthError ? asHttpError(error) : error;
      }
    },
  };
}

/** `tenantId`: of a shard (wire/shard.ts). */
function ids(request: HttpRequest): {tenantId: string; timelineId: string} {
  const {tenant: tenantId = '', timeline: timelineId} = request.params;
  try {
    parseShardId(tenantId);
  } catch (error) {
    throw bad((error as Error).message);
  }
  if (timelineId !== undefined && !idPattern.test(timelineId)) throw bad('timeline ids are 32 lowercase hex digits');
  return {tenantId, timelineId: timelineId ?? ''};
}

function find(pageserver: Pageserver, request: HttpRequest): Timeline {
  const {tenantId, timelineId} = ids(request);
  return pageserver.timeline(tenantId, timelineId);
}

function isArchived(pageserver: Pageserver, request: HttpRequest): boolean {
  const {tenantId, timelineId} = ids(request);
  return pageserver.tenant(tenantId).archivedTimeline(timelineId) !== undefined;
}

function bad(message: string): HttpError {
  return new HttpError(400, 'bad_request', message);
}

function field(body: unknown, name: string): unknown {
  return typeof body === 'object' && body !== null ? (body as Record<string, unknown>)[name] : undefined;
}

function lsnOf(value: unknown, name: string): Lsn {
  try {
    return parseLsn(String(value));
  } catch {
    throw bad(`${name} must be an LSN in the form HI/LO`);
  }
}

function infoJson(info: TimelineInfo): Record<string, unknown> {
  return {
    ...info,
    lastRecordLsn: formatLsn(info.lastRecordLsn),
    diskConsistentLsn: formatLsn(info.diskConsistentLsn),
    remoteConsistentLsn: formatLsn(info.remoteConsistentLsn),
    initialLsn: formatLsn(info.initialLsn),
    gcCutoffLsn: formatLsn(info.gcCutoffLsn),
    walNeededLsn: formatLsn(info.walNeededLsn),
    ...(info.ancestorLsn === undefined ? {} : {ancestorLsn: formatLsn(info.ancestorLsn)}),
  };
}

/** Of an archived timeline: its state, and what is in memory of it. */
function archivedJson({archivedAtMs, ...archived}: ArchivedTimeline): Record<string, unknown> {
  return {
    ...archived,
    state: 'archived',
    archivedAt: formatTime(archivedAtMs),
    walNeededLsn: formatLsn(archived.walNeededLsn),
    ...(archived.ancestorLsn === undefined ? {} : {ancestorLsn: formatLsn(archived.ancestorLsn)}),
  };
}

async function createTimeline(pageserver: Pageserver, request: HttpRequest): Promise<HttpResponse> {
  const {tenantId} = ids(request);
  const body = await request.json();
  const timelineId = field(body, 'timelineId');
  if (typeof timelineId !== 'string' || !idPattern.test(timelineId))
    throw bad('timelineId must be 32 lowercase hex digits');
  const tenant = pageserver.tenant(tenantId);
  const mode = field(body, 'mode');
  const kind = field(mode, 'kind');
  let timeline: Timeline;
  if (kind === 'import') {
    const pgVersion = field(body, 'pgVersion');
    if (typeof pgVersion !== 'number') throw bad('pgVersion must be a number');
    timeline = await tenant.createEmpty(timelineId, pgVersion);
  } else if (kind === 'branch') {
    const ancestor = field(mode, 'ancestorTimelineId');
    const ancestorLsn = field(mode, 'ancestorLsn');
    if (typeof ancestor !== 'string') throw bad('mode.ancestorTimelineId must be a timeline id');
    timeline = await tenant.createBranch(
      timelineId,
      ancestor,
      ancestorLsn === undefined ? undefined : lsnOf(ancestorLsn, 'mode.ancestorLsn'),
    );
  } else throw bad('mode.kind must be branch or import');
  return {status: 201, json: infoJson(timeline.info())};
}

async function importTimeline(pageserver: Pageserver, request: HttpRequest): Promise<HttpResponse> {
  const {tenantId, timelineId} = ids(request);
  const tenant = pageserver.tenant(tenantId);
  let timeline = tenant.timeline(timelineId);
  if (timeline.state.lifecycle === 'active')
    throw new HttpError(409, 'already_imported', `${timeline.state.name} holds data already`);
  if (timeline.isImporting) throw new HttpError(423, 'import_running', `${timeline.state.name} is being imported`);
  // What an import that failed has left is of no use, also when taking it away has failed.
  if (timeline.state.lifecycle !== 'creating') timeline = await tenant.recreateEmpty(timelineId);
  const lsn = await timeline.import(async (writer) => {
    const result = await importDataDirectory({
      source: request.body,
      sink: writer,
      pause: async () => {
        if (writer.importStep()) await timeline.waitForRoom();
      },
    });
    return {lsn: result.lsn, systemId: String(result.systemId), lastRecordStartLsn: result.lastRecordStartLsn};
  });
  tenant.imported(timeline);
  return {status: 200, json: {lsn: formatLsn(lsn), systemId: timeline.state.systemId}};
}

async function lsnByTimestamp(pageserver: Pageserver, request: HttpRequest): Promise<HttpResponse> {
  const timeline = find(pageserver, request);
  const text = request.query.get('timestamp') ?? '';
  const micros = parseTimestamp(text);
  if (micros === undefined)
    throw bad('timestamp must be an ISO 8601 time with a zone, for example 2026-01-31T12:00:00.123456Z');
  const {kind, lsn} = await timeline.lsnAtTime(micros);
  return {status: 200, json: {kind, lsn: formatLsn(lsn)}};
}

/** Microseconds since 1970, or undefined. Finer than Date, which stops at milliseconds. */
export function parseTimestamp(text: string): number | undefined {
  const match = /^(\d{4})-(\d{2})-(\d{2})[T ](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?(Z|[+-]\d{2}:?\d{2})$/i.exec(text);
  if (!match) return undefined;
  const [, year, month, day, hour, minute, second, fraction = '', zone = 'Z'] = match;
  const days = daysSince1970(Number(year), Number(month), Number(day));
  if (days === undefined || Number(hour) > 23 || Number(minute) > 59 || Number(second) > 60) return undefined;
  let seconds = days * 86_400 + Number(hour) * 3600 + Number(minute) * 60 + Number(second);
  if (zone.toUpperCase() !== 'Z') {
    const offset = Number(zone.slice(1, 3)) * 3600 + Number(zone.slice(-2)) * 60;
    seconds -= zone[0] === '-' ? -offset : offset;
  }
  return seconds * 1_000_000 + Number(fraction.padEnd(6, '0').slice(0, 6));
}

/** Proleptic Gregorian calendar, counted in eras of 400 years that begin in March. */
function daysSince1970(year: number, month: number, day: number): number | undefined {
  const leap = (year % 4 === 0 && year % 100 !== 0) || year % 400 === 0;
  const length = [31, leap ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1];
  if (length === undefined || day < 1 || day > length) return undefined;
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  const dayOfEra = yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear;
  return era * 146_097 + dayOfEra - 719_468;
}

async function sendBasebackup(pageserver: Pageserver, request: HttpRequest): Promise<HttpResponse> {
  const timeline = find(pageserver, request);
  const asked = request.query.get('lsn');
  const lsn = asked === null ? timeline.lastRecordLsn : lsnOf(asked, 'lsn');
  // What is being sent must not become history in the middle.
  await timeline.lease(lsn, basebackupMsMax);
  const {lastRecordStartLsn} = timeline.state;
  const known = lsn === timeline.lastRecordLsn && lastRecordStartLsn !== undefined;
  return {
    status: 200,
    headers: {
      'content-type': 'application/x-tar',
      'x-pagoda-lsn': formatLsn(lsn),
      ...(known ? {'x-pagoda-previous-lsn': formatLsn(lastRecordStartLsn)} : {}),
    },
    body: basebackup({
      source: timeline,
      lsn,
      ...(known ? {lastRecordStartLsn} : {}),
      withoutWal: request.query.get('wal') === 'none',
    }),
  };
}

/** A compute that stops cleanly leaves Postgres's statistics for the next one. */
async function putStatistics(pageserver: Pageserver, request: HttpRequest): Promise<HttpResponse> {
  const timeline = find(pageserver, request);
  const lsn = lsnOf(request.query.get('lsn'), 'lsn');
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of request.body) {
    bytes += part.length;
    if (bytes > statisticsBytesMax)
      throw new HttpError(413, 'too_large', `statistics above ${statisticsBytesMax} bytes`);
    parts.push(part);
  }
  await timeline.waitForLsn(lsn, 5000);
  const kept = (await timeline.writer()).putStatistics(Buffer.concat(parts), lsn);
  return {status: 200, json: {kept}};
}
