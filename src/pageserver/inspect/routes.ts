/** Management routes for looking: verify, sizes, layer picture, scrub. For nodes (the operator's command line) only. */
import type {HttpRequest, HttpResponse, Route} from '#runtime/http.ts';
import {HttpError} from '#runtime/http.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {type ObjectStoreConfig, openObjectStore, type ObjectStoreDeps} from '#objectstore/open.ts';
import {formatLsn, parseLsn} from '#postgres/lsn.ts';
import {asHttpError, type Claims, requireNode} from '#wire/auth.ts';
import type {Pageserver} from '../pageserver.ts';
import {timelinePrefix} from '../timeline/index-object.ts';
import {TimelineError} from '../timeline/timeline-reader.ts';
import type {Timeline} from '../timeline/timeline.ts';
import {layerPicture} from './layer-picture.ts';
import {scrubTenant} from './scrub.ts';
import {branchSizes, relationSizes} from './sizes.ts';
import {verifyTimeline} from './verify.ts';

export interface InspectOptions {
  readonly pageserver: Pageserver;
  /** Past all caches. */
  readonly store: ObjectStore;
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
      return {status: 200, json: await verifyTimeline(timeline, at, pause)};
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
    guarded('GET', '/v1/tenants', async () => ({
      status: 200,
      json: {tenants: pageserver.tenants().map(({tenantId, generation}) => ({tenantId, generation}))},
    })),
    guarded('POST', '/v1/tenant/:tenant/scrub', async (request) => {
      const tenant = pageserver.tenant(request.params['tenant'] ?? '');
      const body = ((await request.json()) ?? {}) as {copy?: ObjectStoreConfig};
      const copy = body.copy === undefined ? undefined : openObjectStore(body.copy, options.storeDeps);
      const report = await scrubTenant({
        store: options.store,
        tenantId: tenant.tenantId,
        pause,
        ...(copy === undefined ? {} : {copy}),
        known: () =>
          tenant
            .timelines()
            .flatMap((timeline) => [
              ...timeline.state.writing,
              ...timeline.layerObjects().map(({name, owner}) => timelinePrefix(tenant.tenantId, owner) + name),
            ]),
      });
      return {status: 200, json: report};
    }),
  ];
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
