/**
 * The safekeeper: one process, many timelines. Frames for proposers and readers of WAL (wire/safekeeper.ts), HTTP for
 * the control plane. Timelines are made explicitly, with a start LSN, and loaded when somebody asks for them.
 */
import {parseLsn} from '#postgres/lsn.ts';
import {type Clock, systemClock} from '#runtime/clock.ts';
import {type Disk, systemDisk} from '#runtime/disk.ts';
import {startHttpServer} from '#runtime/http.ts';
import {type Log, createLog} from '#runtime/log.ts';
import {type FrameConnection, listenFrames, parseJsonFrame, sendJson} from '#runtime/net.ts';
import {systemRandom} from '#runtime/random.ts';
import {exitProcess} from '#runtime/process.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {openObjectStore} from '#objectstore/open.ts';
import {managementRoutes} from '#safekeeper/management.ts';
import {pullTimeline} from '#safekeeper/pull.ts';
import {peerStateWelcome} from '#safekeeper/peer-state.ts';
import type {SafekeeperConfig} from '#safekeeper/config.ts';
import {safekeeperMetrics, timelineMetricsText} from '#safekeeper/metrics.ts';
import {TimelineRegistry} from '#safekeeper/timeline-registry.ts';
import type {Timeline} from '#safekeeper/timeline.ts';
import {
  AuthError,
  type KeyRole,
  TokenIssuer,
  TokenVerifier,
  httpAuthenticator,
  requireNode,
  requireTenant,
} from '#wire/auth.ts';
import {BrokerPublisher, BrokerSubscriber, type SafekeeperInfo} from '#wire/broker.ts';
import {
  type Refusal,
  type RefusalCode,
  type SafekeeperHello,
  frameHello,
  frameRefused,
  frameWelcome,
} from '#wire/safekeeper.ts';
import type {ShardReporter} from '#wire/shard-feedback.ts';
import {shardCountMax} from '#wire/shard.ts';

const helloTimeoutMs = 15_000;
const publishMs = 1000;
/** A timeline that nobody has used for so long, and that has nothing left to do, leaves memory. */
const unloadAfterMsDefault = 60_000;
/** At start all timelines are looked at one by one, so far apart: whether a peer has more, and what to archive. */
const lookMs = 20;
const idPattern = /^[0-9a-f]{32}$/;
/** Exit code after a disk failure (EX_IOERR). */
const exitDiskFailure = 74;

export interface SafekeeperOptions {
  readonly disk?: Disk;
  /** Instead of the one of the configuration. */
  readonly objectStore?: ObjectStore;
  readonly clock?: Clock;
  readonly log?: Log;
  /** Instead of ending the process when the disk fails. */
  readonly onDiskFailure?: (error: Error) => void;
}

export interface RunningSafekeeper {
  readonly port: number;
  readonly httpPort: number;
  stop(): Promise<void>;
}

export async function runSafekeeper(
  config: SafekeeperConfig,
  options: SafekeeperOptions = {},
): Promise<RunningSafekeeper> {
  const log = options.log ?? createLog({component: `safekeeper-${config.nodeId}`});
  const clock = options.clock ?? systemClock;
  const disk = options.disk ?? systemDisk;
  const metrics = safekeeperMetrics();
  const verifier = await TokenVerifier.load(config.keysDir, 'safekeeper', clock);
  const issuer = await TokenIssuer.load(config.keysDir, 'safekeeper', clock);
  const publisher =
    config.broker === undefined
      ? undefined
      : new BrokerPublisher({
          address: config.broker,
          token: async () => await issuer.sign({aud: 'broker', scope: 'node'}),
          clock,
          log,
        });
  const host = config.advertiseHost ?? config.host;
  let port = config.port;
  /** Published in the last second: the next news of it (`changed`) can wait for the timer. */
  const fresh = new Set<Timeline>();
  const changed = new Set<Timeline>();
  const info = (timeline: Timeline): SafekeeperInfo => ({
    tenantId: timeline.tenantId,
    timelineId: timeline.timelineId,
    nodeId: config.nodeId,
    host,
    port: config.advertisePort ?? port,
    term: timeline.acceptor.term,
    flushLsn: timeline.acceptor.flushLsn,
    commitLsn: timeline.acceptor.commitLsn,
    archivedLsn: timeline.acceptor.state.archivedLsn,
    remoteConsistentLsn: timeline.acceptor.feedback.remoteConsistentLsn,
    ...(timeline.shardLsns === undefined ? {} : {shardLsns: timeline.shardLsns}),
  });
  const store =
    options.objectStore ??
    (config.objectStore === undefined
      ? undefined
      : openObjectStore(config.objectStore, {
          clock,
          random: systemRandom,
          disk: systemDisk,
          log,
          metrics: metrics.registry,
        }));
  const peerToken = async (): Promise<string> => await issuer.sign({aud: 'safekeeper', scope: 'node'});

  const registry = new TimelineRegistry({
    nodeId: config.nodeId,
    dataDir: config.dataDir,
    disk,
    clock,
    log,
    metrics,
    onProgress: (timeline) => {
      if (fresh.has(timeline)) {
        changed.add(timeline);
        return;
      }
      fresh.add(timeline);
      publisher?.publish([info(timeline)]);
    },
    onDiskFailure: (error) => {
      log.error('the disk failed; stopping, so that the next start finds out what is durable', {error: error.message});
      if (options.onDiskFailure) options.onDiskFailure(error);
      else exitProcess(exitDiskFailure);
    },
    archive: store === undefined ? undefined : {store, times: config.archive ?? {}},
    peerToken,
  });
  const subscriber =
    config.broker === undefined
      ? undefined
      : new BrokerSubscriber(
          {
            address: config.broker,
            token: async () => await issuer.sign({aud: 'broker', scope: 'node'}),
            clock,
            log,
          },
          (news) => {
            if (news.nodeId === config.nodeId) return;
            const ahead = registry.heard(news.tenantId, news.timelineId, news);
            if (ahead !== undefined) changed.add(ahead);
          },
        );

  const listener = await listenFrames({host: config.host, port: config.port}, (connection) => {
    acceptConnection(connection, {
      verifier,
      registry,
      clock,
      log,
      nodeId: config.nodeId,
      onRefused: () => metrics.refusedConnections.inc(),
    });
  });
  port = listener.port;
  const http = await startHttpServer({
    host: config.host,
    port: config.httpPort,
    log,
    authenticate: httpAuthenticator(verifier),
    routes: managementRoutes({
      nodeId: config.nodeId,
      registry,
      metricsText: () => {
        const figures = registry.loaded().map((timeline) => timeline.figures());
        metrics.localBytes.set(figures.reduce((sum, {localBytes}) => sum + localBytes, 0));
        return metrics.registry.text() + timelineMetricsText(figures);
      },
      pull: async (tenantId, timelineId, membership, from) =>
        await pullTimeline({
          registry,
          nodeId: config.nodeId,
          token: peerToken,
          clock,
          log,
          tenantId,
          timelineId,
          membership,
          from,
        }),
    }),
  });

  let timer = clock.setTimer(publishMs, everySecond);
  function everySecond(): void {
    timer = clock.setTimer(publishMs, everySecond);
    fresh.clear();
    for (const timeline of registry.loaded()) if (timeline.isActive || !timeline.isAtRest) changed.add(timeline);
    publisher?.publish([...changed].map(info));
    changed.clear();
    registry.lookAtNext();
    registry.unloadIdle(config.unloadAfterMs ?? unloadAfterMsDefault);
    metrics.timelines.set(registry.loaded().length);
  }

  let lookTimer = clock.setTimer(lookMs, lookAtNext);
  function lookAtNext(): void {
    if (registry.lookAtNext()) lookTimer = clock.setTimer(lookMs, lookAtNext);
  }

  return {
    port,
    httpPort: http.port,
    async stop() {
      timer.cancel();
      lookTimer.cancel();
      publisher?.close();
      subscriber?.close();
      registry.close();
      await Promise.all([listener.close(), http.close()]);
    },
  };
}

interface Door {
  readonly verifier: TokenVerifier;
  readonly registry: TimelineRegistry;
  readonly clock: Clock;
  readonly log: Log;
  readonly nodeId: number;
  readonly onRefused: () => void;
}

class HelloError extends Error {
  readonly code: RefusalCode;
  constructor(code: RefusalCode, message: string) {
    super(message);
    this.code = code;
  }
}

function acceptConnection(connection: FrameConnection, door: Door): void {
  let closed = false;
  const deadline = door.clock.setTimer(helloTimeoutMs, () => connection.destroy());
  connection.onClose = () => {
    closed = true;
    deadline.cancel();
  };
  connection.onFrame = (type, payload) => {
    // Nothing more until the hello is answered: a client waits for its welcome.
    connection.onFrame = () => connection.destroy();
    hello(type, payload).then(
      () => deadline.cancel(),
      (error: unknown) => {
        deadline.cancel();
        door.onRefused();
        const message = error instanceof Error ? error.message : String(error);
        const code: RefusalCode =
          error instanceof HelloError ? error.code : error instanceof AuthError ? 'unauthorized' : 'bad-request';
        door.log.warn('refused a connection', {peer: connection.peer, code, reason: message});
        sendJson(connection, frameRefused, {code, message} satisfies Refusal);
        connection.close();
      },
    );
  };

  async function hello(type: number, payload: Buffer): Promise<void> {
    if (type !== frameHello || payload.length > 64 * 1024)
      throw new HelloError('bad-request', 'the first frame must be a hello');
    const message = parseJsonFrame(payload) as Partial<
      Record<keyof SafekeeperHello | 'startLsn' | 'term' | 'copy' | 'shard', unknown>
    > | null;
    const {token, service, tenantId, timelineId, startLsn, term, copy, shard} = message ?? {};
    const claims = await door.verifier.verify(typeof token === 'string' ? token : undefined);
    if (!isId(tenantId) || !isId(timelineId))
      throw new HelloError('bad-request', 'hello must name tenantId and timelineId (32 hex digits each)');
    requireTenant(claims, peersOf(service, copy === true), tenantId, timelineId);
    const timeline = door.registry.get(tenantId, timelineId);
    if (timeline === undefined)
      throw new HelloError(
        'no-timeline',
        `safekeeper ${door.nodeId} has no timeline ${timelineId} of tenant ${tenantId}; the control plane has to create it`,
      );
    if (closed) return;
    if (service === 'proposer') {
      timeline.attachProposer(connection);
      sendJson(connection, frameWelcome, {nodeId: door.nodeId});
    } else if (service === 'state') {
      requireNode(claims, 'safekeeper', 'control');
      sendJson(connection, frameWelcome, peerStateWelcome(timeline.acceptor));
      connection.close();
    } else if (service === 'wal') {
      if (
        typeof startLsn !== 'string' ||
        !(term === undefined || (typeof term === 'number' && Number.isSafeInteger(term)))
      )
        throw new HelloError('bad-request', 'a wal hello needs startLsn as HI/LO, and term as a number if any');
      const from = parseLsn(startLsn);
      if (copy === true) requireNode(claims, 'safekeeper');
      sendJson(connection, frameWelcome, {nodeId: door.nodeId});
      timeline.attachReader(connection, {
        startLsn: from,
        term,
        copy: copy === true,
        reporter: claims.scope === 'node' && claims.iss === 'pageserver' ? reporterOf(shard) : undefined,
      });
    } else {
      throw new HelloError('bad-request', 'hello must name the service proposer, wal or state');
    }
  }
}

/** Who of the internal peers may use a service; the compute of the timeline may write and read its WAL besides. */
function peersOf(service: unknown, isCopy: boolean): readonly KeyRole[] {
  switch (service) {
    case 'wal':
      return isCopy ? ['safekeeper'] : ['pageserver', 'safekeeper', 'control']; // a safekeeper that lags reads its peers
    case 'state':
      return ['safekeeper', 'control'];
    default:
      // Nobody else writes WAL: a pageserver that was taken over must not.
      return ['control'];
  }
}

/** Of a hello; one that names no shard is of a tenant that has only one. */
function reporterOf(value: unknown): ShardReporter {
  if (value === undefined) return {number: 0, count: 1, generation: 0};
  const {number, count, generation} = (value ?? {}) as Readonly<Record<string, unknown>>;
  if (
    !isWhole(number) ||
    !isWhole(count) ||
    !isWhole(generation) ||
    count < 1 ||
    count > shardCountMax ||
    number >= count
  )
    throw new HelloError('bad-request', 'the shard of a wal hello is {number, count, generation}');
  return {number, count, generation};
}

function isWhole(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

function isId(value: unknown): value is string {
  return typeof value === 'string' && idPattern.test(value);
}
