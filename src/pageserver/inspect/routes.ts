/** Management routes for looking: verify, sizes, layer picture, scrub. For nodes (the operator's command line) only. */
import type {HttpRequest, HttpResponse, Route} from '#runtime/http.ts';
import {HttpError} from '#runtime/http.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {type ObjectStoreConfig, openObjectStore, type ObjectStoreDeps} from '#objectstore/open.ts';
import {formatLsn, parseLsn} from '#postgres/lsn.ts';
import {asHttpError, type Claims, requireNode} from '#wire/auth.ts';
import type {Pageserver} from '../pageserver.ts';
import {TimelineError} from '../timeline/timeline-reader.ts';
import type {Timeline} from '../timeline/timeline.ts';
import {layerPicture} from './layer-picture.ts';
import {scrubTenant} from './scrub.ts';
import {branchSizes, relationSizes} from './sizes.ts';
import {verifyTimeline} from './verify.ts';

/** A verification holds its LSN so long, again and again. */
const holdMs = 120_000;
/** A chunk of the cache on local disk. */
const partBytes = 64 * 1024;

export interface InspectOptions {
  readonly pageserver: Pageserver;
  /** Past all caches. */
  readonly store: ObjectStore;
  /** The cache on local disk, in front of it. */
  readonly local?: ObjectStore | undefined;
  readonly storeDeps: ObjectStoreDeps;
}

export function inspectRoutes(options: InspectOptions): Route[] {
  const {pageserver} = options;
  const pause = (): Promise<void> => options.storeDeps.clock.sleep(0);
  const timelinePath = '/v1/tenant/:tenant/timeline/:timeline';
  const find = ({params}: HttpRequest): Timeline =>
    pageserver.timeline(params['tenant'] ?? '', params['timeline'] ?? '');
  return [
    // Each takes as long as it takes, and pauses so that nothing else of the pageserver waits for it.
    guarded('POST', `${timelinePath}/verify`, async (request) => {
      const timeline = find(request);
      const wanted = request.query.get('lsn');
      let at = timeline.lastRecordLsn;
      try {
        if (wanted !== null) at = parseLsn(wanted);
      } catch {
        throw new HttpError(400, 'bad_request', `lsn=${wanted} is not an LSN (HI/LO)`);
      }
      // GC must not overtake what is being read.
      const {clock} = options.storeDeps;
      let heldMs = -Infinity;
      const hold = async (): Promise<void> => {
        if (clock.monotonicMs() - heldMs > holdMs / 4) {
          await timeline.lease(at, holdMs);
          heldMs = clock.monotonicMs();
        }
        await pause();
      };
      await hold();
      return {status: 200, json: await verifyTimeline(timeline, at, hold)};
    }),
    guarded('GET', `${timelinePath}/sizes`, async (request) => {
      const timeline = find(request);
      const relations = request.query.get('relations') === 'true' ? await relationSizes(timeline, pause) : undefined;
      return {status: 200, json: {...branchSizes(timeline), ...(relations === undefined ? {} : {relations})}};
    }),
    guarded('GET', `${timelinePath}/layers.svg`, async (request) => {
      const {state} = find(request);
      const svg = layerPicture({
        name: request.query.get('name') ?? state.timelineId,
        layers: state.layers.descriptions(),
        gcCutoffLsn: state.gcCutoffLsn,
        lastRecordLsn: state.lastRecordLsn,
        held: [
          ...[...state.branchPoints].map(([child, lsn]) => ({lsn, what: `branch ${child.slice(0, 8)}`})),
          ...[...state.leases.keys()].map((lsn) => ({lsn, what: `lease ${formatLsn(lsn)}`})),
        ],
      });
      return {status: 200, body: Buffer.from(svg), headers: {'content-type': 'image/svg+xml'}};
    }),
    guarded('GET', '/v1/tenants', async (request) => {
      const attached = pageserver.tenants().map(({tenantId, generation}) => ({tenantId, generation}));
      if (request.query.get('stored') !== 'true') return {status: 200, json: {tenants: attached}};
      const known = new Set(attached.map(({tenantId}) => tenantId));
      const stored = new Set((await options.store.list('tenants/')).map(({key}) => key.split('/')[1]!));
      const others = [...stored].filter((tenantId) => !known.has(tenantId)).map((tenantId) => ({tenantId}));
      return {status: 200, json: {tenants: [...attached, ...others]}};
    }),
    guarded('POST', '/v1/tenant/:tenant/scrub', async (request) => {
      const tenantId = request.params['tenant'] ?? '';
      const tenant = pageserver.tenants().find((t) => t.tenantId === tenantId);
      const body = ((await request.json()) ?? {}) as {copy?: ObjectStoreConfig};
      const copy = body.copy === undefined ? undefined : openObjectStore(body.copy, options.storeDeps);
      const report = await scrubTenant({
        store: options.store,
        tenantId,
        pause,
        ...(copy === undefined ? {} : {copy}),
        ...(options.local === undefined ? {} : {cached: (object, bytes) => wholeObject(options.local!, object, bytes)}),
        elsewhere: tenant === undefined,
        known: () =>
          (tenant?.timelines() ?? []).flatMap((timeline) => [...timeline.state.writing, ...timeline.neededObjects()]),
      });
      return {status: 200, json: report};
    }),
  ];
}

/** In parts, so that those in the cache are taken from there. */
async function wholeObject(store: ObjectStore, object: string, bytes: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes; at += partBytes)
    parts.push(await store.getRange(object, at, Math.min(partBytes, bytes - at), {objectBytes: bytes}));
  return Buffer.concat(parts);
}

function guarded(method: string, path: string, handler: (request: HttpRequest) => Promise<HttpResponse>): Route {
  return {
    method,
    path,
    handler: async (request) => {
      try {
        requireNode(request.claims as Claims, 'control');
        return await handler(request);
      } catch (error) {
        if (error instanceof TimelineError)
          throw new HttpError(error.code === 'not-found' ? 404 : 503, error.code.replaceAll('-', '_'), error.message);
        throw asHttpError(error);
      }
    },
  };
}
