/**
 * For tests: a control plane over a database of its own, with storage and computes that only remember what was asked of them. The database
 * is SQLite in memory; PAGODA_TEST_DATABASE=postgres://… makes it a fresh one of that server.
 */
import {PermanentError} from '#control/operations/plan.ts';
import type {FastifyInstance} from 'fastify';
import {type Clock, systemClock} from '#runtime/clock.ts';
import {newUuid} from '#runtime/crypto.ts';
import {silentLog} from '#runtime/log.ts';
import {environment} from '#runtime/process.ts';
import {SeededRandom} from '#runtime/random.ts';
import {ApiContext} from '#control/api/context.ts';
import {insertApiKey, makeApiKey} from '#control/api/principal.ts';
import {buildApi} from '#control/api/server.ts';
import type {Bootstrap} from '#control/bootstrap.ts';
import type {PageserverNode, SafekeeperNode} from '#control/config.ts';
import type {SafekeeperPosition} from '#wire/membership.ts';
import {Endpoints} from '#control/endpoints.ts';
import type {ComputeSpec} from '#wire/compute-spec.ts';
import type {ComputeLauncher, RunningCompute} from '#control/launcher.ts';
import type {Lsn} from '#control/lsn.ts';
import {makePlans} from '#control/operations/plans.ts';
import {OperationRunner} from '#control/operations/runner.ts';
import {PasswordVault} from '#control/scram.ts';
import type {
  HeldShard,
  NewSafekeeperTimeline,
  PageserverClient,
  SafekeeperClient,
  StorageClients,
  TimelineMode,
} from '#control/storage-client.ts';
import {type RawBuilder, sql} from 'kysely';
import {connectStore, openStore} from '#control/store/open.ts';
import type {Store} from '#control/store/schema.ts';

export const importLsn = 0x150_0000 as Lsn;

/** Everything outside the control plane; survives a "crash" of it. */
export class FakeWorld implements StorageClients {
  pageservers: PageserverNode[] = [{nodeId: 1, host: '127.0.0.1', port: 1, httpPort: 2}];
  /** The fourth takes no timeline unless it is told to. */
  readonly safekeepers: SafekeeperNode[] = [1, 2, 3, 4].map((nodeId) => ({
    nodeId,
    ...(nodeId === 4 ? {retired: true} : {}),
    host: '127.0.0.1',
    port: 10 + nodeId,
    httpPort: 20 + nodeId,
  }));
  readonly tenants = new Map<string, number>();
  /** `nodeId/shard` → what the pageserver has of it. */
  readonly places = new Map<string, HeldShard>();
  readonly timelines = new Map<
    string,
    {mode: TimelineMode; imports: number; lastRecordLsn: Lsn; safekeepers: number}
  >();
  /** `nodeId/timeline` → its start. */
  readonly walTimelines = new Map<
    string,
    {startLsn: Lsn; commitLsn: Lsn; flushLsn: Lsn; generation?: number; term?: number}
  >();
  /** Timelines whose WAL has left the object store. */
  readonly archivesDeleted = new Set<string>();
  readonly computes = new Map<string, ComputeSpec>();
  /** Endpoints of which something is kept where computes run. */
  readonly leftovers = new Set<string>();
  readonly configured: ComputeSpec[] = [];
  readonly schemaCopies: {endpointId: string; databases: string[]}[] = [];
  /** Timeline id → seconds of history. */
  readonly retention = new Map<string, number>();
  /** Timelines that have left their ancestor. */
  readonly detached = new Set<string>();
  /** From where every timeline's WAL is needed, as pageservers say. */
  walNeeded: Lsn | undefined;
  readonly trims: {nodeId: number; timelineId: string; lsn: Lsn}[] = [];
  /** Timelines that are asleep. */
  readonly asleep = new Set<string>();
  /** Endpoint id → when its compute was last used, ms. */
  readonly lastActive = new Map<string, number>();
  /** How far every timeline is in the object store. */
  archived: Lsn | undefined;
  starts = 0;
  /** Makes every call whose name is in here fail. */
  readonly broken = new Set<string>();
  /** The same, and trying again does not help. */
  readonly refused = new Set<string>();
  startDelayMs = 0;
  /** Something that happens between a decision to attach and its arrival. */
  beforeAttach: ((tenantId: string) => Promise<void>) | undefined;
  beforeImport: ((timelineId: string) => void) | undefined;

  #maybeFail(call: string): void {
    if (this.refused.has(call)) throw new PermanentError(`${call} is refused`);
    if (this.broken.has(call)) throw new Error(`${call} is broken`);
  }

  pageserver(nodeId = 1): PageserverClient {
    return {
      attachTenant: async (tenantId, generation) => {
        this.#maybeFail('attachTenant');
        this.#maybeFail(`pageserver-${nodeId}`);
        await this.beforeAttach?.(tenantId);
        const held = this.tenants.get(tenantId) ?? 0;
        if (generation < held) throw new PermanentError(`attached with generation ${held}; ${generation} is older`);
        this.tenants.set(tenantId, generation);
        this.places.set(`${nodeId}/${tenantId}`, {shardId: tenantId, mode: 'attached', generation});
      },
      tenantGeneration: async (tenantId) => this.tenants.get(tenantId),
      keepReady: async (tenantId) => {
        this.#maybeFail('keepReady');
        this.places.set(`${nodeId}/${tenantId}`, {shardId: tenantId, mode: 'secondary'});
      },
      detachTenant: async (tenantId) => void this.places.delete(`${nodeId}/${tenantId}`),
      saveTenant: async () => this.#maybeFail('saveTenant'),
      tenantStatus: async (tenantId) => {
        const place = this.places.get(`${nodeId}/${tenantId}`);
        return place && {mode: place.mode, isReady: true, reached: new Map()};
      },
      held: async () => [...this.places].filter(([key]) => key.startsWith(`${nodeId}/`)).map(([, place]) => place),
      alive: async () => this.#maybeFail(`pageserver-${nodeId}`),
      deleteTenant: async (tenantId) => {
        this.tenants.delete(tenantId);
        this.places.delete(`${nodeId}/${tenantId}`);
      },
      createTimeline: async (tenantId, timelineId, _pgVersion, mode) => {
        this.#maybeFail('createTimeline');
        if (!this.tenants.has(tenantId)) throw new Error('tenant is not attached');
        if (this.timelines.has(timelineId)) return;
        const lastRecordLsn = mode.kind === 'branch' ? mode.ancestorLsn : (0 as Lsn);
        this.timelines.set(timelineId, {mode, imports: 0, lastRecordLsn, safekeepers: 0});
      },
      importTimeline: async (_tenantId, timelineId, body) => {
        this.beforeImport?.(timelineId);
        let bytes = 0;
        for await (const part of body) bytes += part.length;
        const timeline = this.timelines.get(timelineId);
        if (!timeline || bytes === 0) throw new Error('nothing to import into, or nothing to import');
        timeline.imports++;
        timeline.lastRecordLsn = importLsn;
        return importLsn;
      },
      timeline: async (_tenantId, timelineId) => {
        const timeline = this.timelines.get(timelineId);
        return (
          timeline && {
            state: 'active',
            lastRecordLsn: timeline.lastRecordLsn,
            ...(this.walNeeded === undefined ? {} : {walNeededLsn: this.walNeeded}),
            initialLsn: importLsn,
            logicalSizeBytes: 1234,
          }
        );
      },
      lsnByTimestamp: async () => ({kind: 'present', lsn: (importLsn + 0x100) as Lsn}),
      setSafekeepers: async (_tenantId, timelineId, safekeepers) => {
        this.#maybeFail('setSafekeepers');
        this.timelines.get(timelineId)!.safekeepers = safekeepers.length;
      },
      setRetention: async (_tenantId, timelineId, windowSeconds) => {
        this.#maybeFail('setRetention');
        this.retention.set(timelineId, windowSeconds);
      },
      archiveTimeline: async (_tenantId, timelineId) => {
        this.#maybeFail('archiveTimeline');
        this.asleep.add(timelineId);
      },
      detachTimeline: async (_tenantId, timelineId) => {
        this.#maybeFail('detachTimeline');
        if (!this.timelines.has(timelineId)) throw new Error(`no timeline ${timelineId}`);
        // Not done at the first request.
        const done = this.detached.has(timelineId);
        this.detached.add(timelineId);
        return done;
      },
      unarchiveTimeline: async (_tenantId, timelineId) => {
        this.#maybeFail('unarchiveTimeline');
        this.asleep.delete(timelineId);
      },
      deleteTimeline: async (_tenantId, timelineId) => {
        this.#maybeFail('deleteTimeline');
        for (const [child, {mode}] of this.timelines)
          if (mode.kind === 'branch' && mode.ancestorTimelineId === timelineId && !this.detached.has(child))
            throw new Error(`timeline ${child} begins on ${timelineId}`);
        this.timelines.delete(timelineId);
        this.asleep.delete(timelineId);
      },
    };
  }

  safekeeper(nodeId: number): SafekeeperClient {
    return {
      createTimeline: async ({timelineId, startLsn}: NewSafekeeperTimeline) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        if (!this.walTimelines.has(`${nodeId}/${timelineId}`))
          this.walTimelines.set(`${nodeId}/${timelineId}`, {startLsn, commitLsn: startLsn, flushLsn: startLsn});
      },
      status: async (_tenantId, timelineId) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        const timeline = this.walTimelines.get(`${nodeId}/${timelineId}`);
        return timeline && {term: 1, flushLsn: timeline.flushLsn, commitLsn: timeline.commitLsn};
      },
      deleteTimeline: async (_tenantId, timelineId) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        this.walTimelines.delete(`${nodeId}/${timelineId}`);
        this.archivesDeleted.add(timelineId);
      },
      setMembership: async (_tenantId, timelineId, {generation}, minTerm) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        const timeline = this.walTimelines.get(`${nodeId}/${timelineId}`);
        if (timeline === undefined) throw new Error(`safekeeper ${nodeId} has no timeline ${timelineId}`);
        if (generation < (timeline.generation ?? 1)) throw new PermanentError('stale generation');
        timeline.generation = generation;
        timeline.term = Math.max(timeline.term ?? 1, minTerm);
        return this.#position(timeline);
      },
      pull: async (_tenantId, timelineId, _membership, from) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        const key = `${nodeId}/${timelineId}`;
        const donor = from.map((m) => this.walTimelines.get(`${m.nodeId}/${timelineId}`)).find((t) => t !== undefined);
        if (donor === undefined) throw new Error('nobody has it');
        const timeline = this.walTimelines.get(key) ?? {...donor};
        this.walTimelines.set(key, timeline);
        return this.#position(timeline);
      },
      exclude: async (_tenantId, timelineId) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        this.walTimelines.delete(`${nodeId}/${timelineId}`);
      },
      archive: async () =>
        this.archived && {startLsn: importLsn, archivedLsn: this.archived, restoreLsn: this.archived},
      trimArchive: async (_tenantId, timelineId, lsn) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        this.trims.push({nodeId, timelineId, lsn});
        return lsn;
      },
      restoreFromArchive: async (_tenantId, timelineId, {generation}, lsn) => {
        this.#maybeFail(`safekeeper-${nodeId}`);
        const at = lsn ?? this.archived!;
        this.walTimelines.set(`${nodeId}/${timelineId}`, {
          startLsn: importLsn,
          commitLsn: at,
          flushLsn: at,
          generation,
        });
        return {term: 1, flushLsn: at, commitLsn: at};
      },
    };
  }

  #position(timeline: {generation?: number; term?: number; flushLsn: Lsn; commitLsn: Lsn}): SafekeeperPosition {
    const {generation = 1, term = 1, flushLsn, commitLsn} = timeline;
    return {
      generation,
      term,
      lastLogTerm: 1,
      flushLsn: flushLsn as number as SafekeeperPosition['flushLsn'],
      commitLsn: commitLsn as number as SafekeeperPosition['commitLsn'],
    };
  }

  /** WAL is written, committed and ingested. */
  advance(timelineId: string, bytes: number): void {
    for (const [key, timeline] of this.walTimelines)
      if (key.endsWith(`/${timelineId}`)) timeline.flushLsn = timeline.commitLsn = (timeline.commitLsn + bytes) as Lsn;
    const pages = this.timelines.get(timelineId)!;
    pages.lastRecordLsn = (pages.lastRecordLsn + bytes) as Lsn;
  }

  readonly launcher: ComputeLauncher = {
    onExit: () => {},
    start: async (spec) => {
      this.#maybeFail('start');
      if (this.startDelayMs > 0) await systemClock.sleep(this.startDelayMs);
      if (!this.computes.has(spec.endpointId)) this.starts++;
      this.computes.set(spec.endpointId, spec);
      this.leftovers.add(spec.endpointId);
      return this.#address(spec.endpointId);
    },
    find: async (endpointId) => (this.computes.has(endpointId) ? this.#address(endpointId) : undefined),
    configure: async (spec) => {
      this.#maybeFail('configure');
      this.configured.push(spec);
      this.computes.set(spec.endpointId, spec);
    },
    stop: async (endpointId, {idleSinceMs} = {}) => {
      this.#maybeFail('stop');
      if (idleSinceMs !== undefined && (this.lastActive.get(endpointId) ?? 0) > idleSinceMs) return false;
      this.computes.delete(endpointId);
      return true;
    },
    kept: () => [...this.leftovers],
    discard: async (endpointId) => {
      this.computes.delete(endpointId);
      this.leftovers.delete(endpointId);
    },
    removeOldLogs: () => {},
    report: async (endpointId) =>
      this.computes.has(endpointId) ? {lastActiveMs: this.lastActive.get(endpointId) ?? 0} : undefined,
    catalog: async () => {
      this.#maybeFail('catalog');
      return {
        roles: [{name: 'postgres', scramVerifier: 'SCRAM-SHA-256$of-theirs', canLogin: true}],
        databases: [{name: 'shop', owner: 'postgres'}],
        missingExtensions: [],
      };
    },
    copySchema: async (endpointId, {databases}) => {
      this.#maybeFail('copySchema');
      if (!this.computes.has(endpointId)) throw new Error('it does not run');
      this.schemaCopies.push({endpointId, databases: databases.map(({name}) => name)});
    },
    close: () => {},
  };

  #address(endpointId: string): RunningCompute {
    return {host: '127.0.0.1', port: 40_000 + [...this.computes.keys()].indexOf(endpointId)};
  }
}

const bootstrap: Bootstrap = {
  dataDirectory: async () =>
    (async function* () {
      yield Buffer.from('a data directory');
    })(),
};

export interface TestControl extends AsyncDisposable {
  readonly store: Store;
  readonly app: FastifyInstance;
  readonly context: ApiContext;
  readonly runner: OperationRunner;
  readonly endpoints: Endpoints;
  /** Of the first user. */
  readonly key: string;
  stop(): Promise<void>;
}

/** Stores in a database of their own → how it is taken away. */
const droppers = new WeakMap<Store, () => Promise<void>>();

/** An empty database in memory, or one of the server that tests shall use; `closeTestStore` takes it away. */
async function openTestStore(): Promise<Store> {
  const url = environment['PAGODA_TEST_DATABASE'];
  if (url === undefined || url === '') return openStore(':memory:');
  const name = `test_${newUuid().replaceAll('-', '')}`;
  const onServer = async (statement: RawBuilder<unknown>): Promise<void> => {
    const server = await connectStore(url);
    await statement.execute(server);
    await server.destroy();
  };
  await onServer(sql`create database ${sql.id(name)} template template0`);
  const own = new URL(url);
  own.pathname = `/${name}`;
  const store = await openStore(own.href);
  droppers.set(store, () => onServer(sql`drop database ${sql.id(name)} with (force)`));
  return store;
}

async function closeTestStore(store: Store): Promise<void> {
  await store.destroy();
  await droppers.get(store)?.();
}

/** Starts a control plane; give it the store of an earlier one to see it take up where that one was killed. */
export async function startControl(
  world: FakeWorld,
  options: {
    store?: Store;
    key?: string;
    checkpoint?: (point: string) => Promise<void>;
    clock?: Clock;
    seed?: number;
    waitMsMax?: number;
    recoverySeconds?: number;
    /** A file of SQLite, for a test that copies it. */
    database?: string;
  } = {},
): Promise<TestControl> {
  const random = new SeededRandom(options.seed ?? 1);
  const clock = options.clock ?? systemClock;
  const store =
    options.store ?? (await (options.database === undefined ? openTestStore() : openStore(options.database)));
  const key = options.key ?? makeApiKey(random);
  if (options.store === undefined) {
    await store.transaction().execute(async (trx) => {
      await trx
        .insertInto('users')
        .values({
          id: '00000000-0000-4000-8000-000000000001',
          login: 'admin',
          email: 'admin@localhost',
          name: 'Admin',
          created_at: 1,
        })
        .execute();
      await trx
        .insertInto('organizations')
        .values({id: 'org-test-12345678', name: 'Test', handle: 'test', created_at: 1, updated_at: 1})
        .execute();
      await insertApiKey(trx, {
        name: 'first',
        kind: 'personal',
        user_id: '00000000-0000-4000-8000-000000000001',
        organization_id: null,
        project_id: null,
        key,
        nowMs: 1,
      });
    });
  }
  const vault = new PasswordVault(Buffer.alloc(32, 7));
  const plans = makePlans({
    store,
    storage: world,
    launcher: world.launcher,
    bootstrap,
    vault,
    clock,
    random,
    log: silentLog,
    mintComputeToken: async (tenant, timeline) => `token for ${tenant}/${timeline}`,
    tokenRefreshUrl: 'http://127.0.0.1:1/internal/v1/token',
    locationsUrl: (tenantId) => `http://127.0.0.1:1/internal/v1/tenants/${tenantId}/locations`,
  });
  const runner = new OperationRunner({
    store,
    clock,
    log: silentLog,
    plans,
    ...(options.checkpoint === undefined ? {} : {checkpoint: options.checkpoint}),
  });
  const endpoints = new Endpoints({store, runner, launcher: world.launcher, clock, log: silentLog});
  await endpoints.reconcile();
  await runner.kick();
  const context = new ApiContext({
    store,
    runner,
    endpoints,
    storage: world,
    vault,
    dumpSchema: async ({user, database}) => `-- schema of ${database} as ${user}\n`,
    clock,
    random,
    log: silentLog,
    config: {
      regionId: 'local',
      proxy: {domain: 'localhost', port: 54320},
      // Most tests look at what a deletion leaves.
      recoverySeconds: options.recoverySeconds ?? 0,
    },
    // For a machine that is busy: what ends, ends in milliseconds.
    operationWaitMsMax: options.waitMsMax ?? 120_000,
  });
  const app = buildApi(context);
  const stop = async (): Promise<void> => {
    await app.close();
    await runner.stop();
    await closeTestStore(store);
  };
  return {
    store,
    app,
    context,
    runner,
    endpoints,
    key,
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

/** Resolves when an operation has failed once and will try again. */
export async function hasFailed({store}: TestControl, operationId: string): Promise<void> {
  for (;;) {
    const row = await store
      .selectFrom('operations')
      .select(['failures_count', 'status'])
      .where('id', '=', operationId)
      .executeTakeFirstOrThrow();
    if (row.failures_count > 0 && row.status === 'running') return;
    await systemClock.sleep(10);
  }
}

export interface Answer {
  readonly status: number;
  readonly json: Record<string, never>;
  readonly headers: Readonly<Record<string, unknown>>;
}

/** One API call as the first user (or with another key, or none). */
export async function call(
  control: TestControl,
  method: 'GET' | 'POST' | 'PATCH' | 'DELETE' | 'PUT',
  path: string,
  body?: unknown,
  key: string | null = control.key,
): Promise<Answer> {
  const response = await control.app.inject({
    method,
    url: `/api/v2${path}`,
    headers: key === null ? {} : {authorization: `Bearer ${key}`},
    ...(body === undefined ? {} : {payload: body as object}),
  });
  return {
    status: response.statusCode,
    json: response.body === '' ? ({} as never) : (response.json() as never),
    headers: response.headers,
  };
}
