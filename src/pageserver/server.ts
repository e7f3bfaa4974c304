/** The pageserver process: puts the parts together. See README.md for the way of a record and of a page through them. */
import {systemClock} from '#runtime/clock.ts';
import {joinPath, systemDisk} from '#runtime/disk.ts';
import {requestJson, startHttpServer} from '#runtime/http.ts';
import {type Log, createLog} from '#runtime/log.ts';
import {listenFrames} from '#runtime/net.ts';
import {systemRandom} from '#runtime/random.ts';
import {CachingObjectStore} from '#objectstore/caching-object-store.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {openObjectStore, wrapObjectStore} from '#objectstore/open.ts';
import {TokenIssuer, TokenVerifier, httpAuthenticator} from '#wire/auth.ts';
import {BrokerSubscriber} from '#wire/broker.ts';
import type {PageserverConfig} from './config.ts';
import {HttpGenerationValidator, alwaysValid} from './generation-validator.ts';
import {inspectRoutes} from './inspect/routes.ts';
import {BlockCache} from './layers/block-cache.ts';
import {managementRoutes} from './management.ts';
import {PageserverMetrics} from './metrics.ts';
import {Pageserver} from './pageserver.ts';
import {Readers} from './pages/readers.ts';
import {servePages} from './pages/service.ts';
import {type HeldTenants, reAttach} from './re-attach.ts';
import {Rounds} from './secondary/rounds.ts';
import {MemoryBudget} from './timeline/memory-budget.ts';
import {type PageserverContext, limitsWith} from './timeline/state.ts';

const blockCacheBytesDefault = 256 * 1024 * 1024;
const localCacheBytesDefault = 10 * 1024 * 1024 * 1024;
const memoryLayerBytesDefault = 512 * 1024 * 1024;
/** At a stop, for saving what is in memory. */
const saveMsMax = 5000;

export interface RunningPageserver {
  readonly port: number;
  readonly httpPort: number;
  stop(): Promise<void>;
}

export interface PageserverOptions {
  readonly log?: Log;
  /** Instead of the configured one; tests. */
  readonly store?: ObjectStore;
}

export async function runPageserver(
  config: PageserverConfig,
  options: PageserverOptions = {},
): Promise<RunningPageserver> {
  const log = options.log ?? createLog({component: `pageserver-${config.nodeId}`});
  const clock = systemClock;
  const random = systemRandom;
  const verifier = await TokenVerifier.load(config.keysDir, 'pageserver', clock);
  const issuer = await TokenIssuer.load(config.keysDir, 'pageserver', clock);
  const metrics = new PageserverMetrics();
  const storeDeps = {clock, random, disk: systemDisk, log, metrics: metrics.registry};
  const remote =
    options.store === undefined
      ? openObjectStore(config.objectStore, storeDeps)
      : wrapObjectStore(options.store, config.objectStore, storeDeps);
  const localBytes = config.localCacheBytes ?? (config.objectStore.kind === 's3' ? localCacheBytesDefault : 0);
  const local =
    localBytes === 0
      ? undefined
      : new CachingObjectStore(remote, {
          disk: systemDisk,
          directory: joinPath(config.dataDir, 'cache'),
          bytesMax: localBytes,
          log,
        });
  const store = local ?? remote;
  const cache = new BlockCache(config.blockCacheBytes ?? blockCacheBytesDefault);
  const context: PageserverContext = {
    clock,
    random,
    store,
    cache,
    log,
    metrics,
    limits: limitsWith(config.limits),
    memory: new MemoryBudget(config.memoryLayerBytes ?? memoryLayerBytesDefault),
  };
  const controlToken = (): Promise<string> => issuer.sign({aud: 'control', scope: 'node'});
  const validator =
    config.controlUrl === undefined
      ? alwaysValid
      : new HttpGenerationValidator({url: `${config.controlUrl}/internal/v1/validate`, token: controlToken, clock});
  const pageserver = new Pageserver({
    context,
    validator,
    clock,
    log,
    hasLocalCache: local !== undefined,
    safekeeperToken: () => issuer.sign({aud: 'safekeeper', scope: 'node'}),
  });
  let stopped = false;

  const metricsText = (): string => {
    if (local !== undefined) {
      metrics.localCacheHits.set(local.counts.hits);
      metrics.localCacheMisses.set(local.counts.misses);
      metrics.localCacheBytes.set(local.bytes);
      metrics.localCacheDamaged.set(local.counts.damaged);
      metrics.localCacheEvictions.set(local.counts.evictions);
    }
    metrics.cacheHits.set(cache.hits);
    metrics.cacheMisses.set(cache.misses);
    metrics.cacheBytes.set(cache.bytes);
    metrics.cacheEvictions.set(cache.evictions);
    let timelines = 0;
    for (const tenant of pageserver.tenants()) timelines += tenant.timelines().length;
    metrics.timelines.set(timelines);
    metrics.secondaries.set(pageserver.secondaries().length);
    metrics.memoryLayerBytes.set(context.memory.bytes);
    let l0 = 0;
    let ingestStopped = 0;
    for (const tenant of pageserver.tenants())
      for (const timeline of tenant.timelines()) {
        l0 = Math.max(l0, timeline.compactionDebt);
        if (timeline.state.ingestError !== undefined) ingestStopped++;
      }
    metrics.l0LayersMax.set(l0);
    metrics.ingestStopped.set(ingestStopped);
    metrics.ingestLagBytes.set(pageserver.ingests().reduce((lag, ingest) => Math.max(lag, ingest.lagBytes), 0));
    return metrics.registry.text();
  };

  if (config.controlUrl === undefined) await pageserver.attachAllStored();
  else {
    const {controlUrl} = config;
    const ask = async (): Promise<HeldTenants> => {
      const {status, json} = await requestJson({
        method: 'POST',
        url: `${controlUrl}/internal/v1/re-attach`,
        token: await controlToken(),
        body: {nodeId: config.nodeId},
        timeoutMs: 10_000,
      });
      if (status !== 200)
        throw new Error(`the control plane answered ${status}: ${JSON.stringify(json).slice(0, 300)}`);
      return json as HeldTenants;
    };
    void reAttach({pageserver, ask, clock, log, isStopped: () => stopped});
  }

  const readers = new Readers();
  pageserver.onLetGo = (tenantId) => readers.sendAway(tenantId);
  const rounds = config.controlUrl === undefined ? undefined : new Rounds(pageserver, context, local !== undefined);
  const pages = await listenFrames({host: config.host, port: config.port}, (connection) =>
    servePages(connection, {
      verifier,
      findTimeline: (tenantId, timelineId) => pageserver.timeline(tenantId, timelineId),
      isLatest: (tenantId, generation) => pageserver.isLatest(tenantId, generation),
      readers,
      clock,
      log,
      metrics,
    }),
  );
  const http = await startHttpServer({
    host: config.host,
    port: config.httpPort,
    routes: [
      ...managementRoutes(pageserver, metricsText),
      ...inspectRoutes({pageserver, store: remote, local, storeDeps}),
    ],
    authenticate: httpAuthenticator(verifier),
    log,
  });
  const broker =
    config.broker === undefined
      ? undefined
      : new BrokerSubscriber(
          {address: config.broker, token: () => issuer.sign({aud: 'broker', scope: 'node'}), clock, log},
          (info) => pageserver.heard(info),
        );
  log.info('pageserver serves', {port: pages.port, httpPort: http.port});

  return {
    port: pages.port,
    httpPort: http.port,
    async stop() {
      stopped = true;
      rounds?.stop();
      broker?.close();
      await Promise.all([pages.close(), http.close()]);
      await pageserver.stop(saveMsMax);
    },
  };
}
