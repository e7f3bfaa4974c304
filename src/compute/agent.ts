/**
 * The compute agent: one Postgres of one branch, from election to graceful stop.
 *
 *   electing ──► unpacking ──► starting ──► running ──► stopping ──► stopped
 *       ▲                                     │  └─► fenced (another compute has the branch: never again)
 *       └──────── Postgres or proposer died ◄─┘
 *
 * 1. The proposer wins a term and commits what the safekeepers hold: X.
 * 2. A data directory without relation files is made from a basebackup at exactly X.
 * 3. Postgres starts from the synthesised checkpoint at X; the extension hydrates what is touched.
 * 4. The proposer is Postgres's synchronous standby: a commit returns when a quorum of safekeepers has it.
 * A crash of Postgres is answered by starting again from 1: nothing local is ever recovered (design D3).
 */
import type {Clock} from '#runtime/clock.ts';
import {systemClock} from '#runtime/clock.ts';
import type {Disk} from '#runtime/disk.ts';
import {joinPath, replaceFile, systemDisk} from '#runtime/disk.ts';
import {HttpError, startHttpServer} from '#runtime/http.ts';
import {type Log, createLog} from '#runtime/log.ts';
import {Metrics} from '#runtime/metrics.ts';
import {freePort} from '#runtime/net.ts';
import {changeOwner} from '#runtime/permissions.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {formatLsn, parseLsn} from '#postgres/lsn.ts';
import {ActivityWatch} from '#compute/activity.ts';
import {type AgentApi, agentRoutes} from '#compute/agent-routes.ts';
import {adoptCluster, readCatalog, waitForQuorum} from '#compute/adopt.ts';
import {applyCatalog, type PostgresAddress, requireRoles} from '#compute/catalog.ts';
import {type DataDirectory, makeDataDirectory} from '#compute/data-directory.ts';
import {hotBlockSettings, keepHotBlocks, restoreHotBlocks} from '#compute/hot-blocks.ts';
import {HydrationServer} from '#compute/hydration-server.ts';
import {PostgresProcess} from '#compute/postgres-process.ts';
import {adminRole, storageSettings} from '#compute/postgres-settings.ts';
import {ProposerProcess} from '#compute/proposer-process.ts';
import type {ComputeConfig} from '#compute/spec.ts';
import {type StoppableSource, openPageSource} from '#compute/sharded-page-source.ts';
import {Lease, relayPort, type ReplicaBase, standbySettings} from '#compute/standby.ts';
import {WalRelay} from '#compute/wal-relay.ts';
import type {ComputeSpec, SchemaSource} from '#wire/compute-spec.ts';
import {copySchema} from '#compute/schema-copy.ts';
import {type HotBlock, WarmSource} from '#compute/warm-source.ts';
import {uploadStatistics} from '#compute/graceful-stop.ts';
import {Locations} from '#compute/locations.ts';
import {TokenSource} from '#compute/token-source.ts';

export type ComputeState =
  | 'electing'
  | 'unpacking'
  | 'starting'
  | 'running'
  | 'stopping'
  | 'stopped'
  | 'fenced'
  | 'failed';

/** After this many starts in a row that never reached `running` the agent gives up; the control plane sees why. */
const failedStartsMax = 5;
const stopFastMsMax = 60_000;
const finalWalMsMax = 30_000;

/** What is alive between one election and the end of that Postgres. */
interface Incarnation extends Base {
  readonly lsn: Lsn;
  /** Of a primary. */
  readonly term: number | undefined;
  readonly proposer: ProposerProcess | undefined;
  /** Of a replica. */
  readonly relay: WalRelay | undefined;
  readonly postgres: PostgresProcess;
  readonly activity: ActivityWatch;
}

interface Base {
  readonly lease: Lease;
  readonly pages: StoppableSource;
  readonly warm: WarmSource;
  readonly hydration: HydrationServer;
}

async function closeBase({lease, pages, warm, hydration}: Base): Promise<void> {
  lease.stop();
  warm.stop();
  pages.stop();
  await hydration.close();
}

export interface RunningCompute {
  readonly pgPort: number;
  readonly httpPort: number;
  /** Resolves after a stop; rejects with the reason when the compute ended by itself (fenced, or failed for good). */
  readonly finished: Promise<void>;
  stop(): Promise<void>;
}

/** What a spare agent has at hand before it knows its branch: a proposer, started and waiting. */
export interface PreparedCompute {
  readonly proposer: ProposerProcess;
  discard(): void;
}

/** `mark` names the processes in the machine's process table (wire/spare.ts). */
export async function prepareCompute(options: {
  proposerCommand: ComputeConfig['proposerCommand'];
  mark: string;
}): Promise<PreparedCompute> {
  const {command, args} = options.proposerCommand;
  const proposer = await ProposerProcess.start({
    command,
    args: [...args, '--config', options.mark, '--spare'],
    log: createLog({component: 'compute'}),
    onFenced: () => {},
  });
  return {proposer, discard: () => proposer.kill()};
}

/** Resolves when Postgres accepts connections and has the roles and databases of the spec. */
export async function runCompute(config: ComputeConfig, prepared?: PreparedCompute): Promise<RunningCompute> {
  const {spec} = config;
  const log = createLog({
    component: 'compute',
    fields: {tenant: spec.tenantId, branch: spec.branchId, endpoint: spec.endpointId},
  });
  const agent = new ComputeAgent(config, {clock: systemClock, disk: systemDisk, log}, prepared?.proposer);
  try {
    await agent.start();
  } catch (error) {
    await agent.abandon();
    throw error;
  }
  const finished = agent.ended.then(({state, reason}) => {
    if (state !== 'stopped') throw new Error(`compute ${spec.endpointId} ${state}: ${reason}`);
  });
  return {pgPort: agent.pgPort, httpPort: agent.httpPort, finished, stop: () => agent.stop()};
}

class ComputeAgent implements AgentApi {
  readonly ended: Promise<{state: ComputeState; reason: string}>;
  readonly #config: ComputeConfig;
  readonly #clock: Clock;
  readonly #disk: Disk;
  readonly #log: Log;
  readonly #metrics = new Metrics();
  readonly #lagBytes = this.#metrics.gauge(
    'pagoda_compute_ingest_lag_bytes',
    'WAL that the pageserver does not have yet',
  );
  readonly #throttle = this.#metrics.gauge(
    'pagoda_compute_throttle_us_per_mib',
    'How long writers wait for each MiB of WAL, microseconds; 4294967295: until the pageserver has caught up',
  );
  readonly #tokens: TokenSource;
  readonly #locations: Locations;
  #spec: ComputeSpec;
  #state: ComputeState = 'electing';
  #current: Incarnation | undefined;
  /** Set as soon as it runs, so that a failed start can be cleaned up. */
  #proposer: ProposerProcess | undefined;
  /** Waits for its task: of a spare agent, or started as soon as a new incarnation was needed. */
  #spareProposer: ProposerProcess | undefined;
  #isFirstStart = true;
  #http: {port: number; close(): Promise<void>} | undefined;
  #pgPort = 0;
  #catalogApplied: boolean;
  #prewarming = false;
  /** Where a replica's next base must at least be. */
  #rebaseLsn: Lsn | undefined;
  #stopping: Promise<void> | undefined;
  #end: (end: {state: ComputeState; reason: string}) => void = () => {};

  constructor(
    config: ComputeConfig,
    machine: {clock: Clock; disk: Disk; log: Log},
    spareProposer: ProposerProcess | undefined,
  ) {
    this.#config = config;
    this.#spareProposer = spareProposer;
    this.#spec = config.spec;
    this.#catalogApplied = config.spec.alreadyApplied ?? false;
    this.#clock = machine.clock;
    this.#disk = machine.disk;
    this.#log = machine.log;
    this.ended = new Promise((resolve) => (this.#end = resolve));
    this.#tokens = new TokenSource({
      token: config.spec.token,
      url: config.spec.tokenRefreshUrl,
      clock: machine.clock,
      log: machine.log,
      onChange: (token) => this.#proposer?.refreshToken(token),
    });
    this.#locations = new Locations({
      spec: config.spec,
      token: () => this.#tokens.current,
      clock: machine.clock,
      log: machine.log,
    });
  }

  get pgPort(): number {
    return this.#pgPort;
  }

  get httpPort(): number {
    return this.#http?.port ?? 0;
  }

  get #paths(): {pgdata: string; run: string; proposerConfig: string; hydrationSocket: string; hotBlocks: string} {
    const {dataDir} = this.#config;
    return {
      pgdata: joinPath(dataDir, 'pgdata'),
      run: joinPath(dataDir, 'run'),
      proposerConfig: joinPath(dataDir, 'proposer.json'),
      hydrationSocket: joinPath(dataDir, 'run', 'hydration.sock'),
      hotBlocks: joinPath(dataDir, 'hot-blocks'),
    };
  }

  async start(): Promise<void> {
    this.#pgPort = this.#config.pgPort === 0 ? await freePort() : this.#config.pgPort;
    this.#http = await startHttpServer({
      host: '127.0.0.1',
      port: this.#config.httpPort,
      log: this.#log,
      routes: agentRoutes(this),
      authenticate: async (token) => {
        if (token !== this.#config.httpToken)
          throw new HttpError(401, 'unauthorized', 'this agent wants the token of its control plane');
      },
    });
    await this.#launch();
  }

  stop(): Promise<void> {
    return (this.#stopping ??= this.#stopGracefully());
  }

  /** Ends whatever a failed start has left running. */
  async abandon(): Promise<void> {
    this.#state = 'failed';
    this.#tokens.stop();
    this.#spareProposer?.kill();
    await this.#tearDown();
    await this.#http?.close();
  }

  /** Steps 1 to 4; a compute that only reads has no proposer and starts at what the pageserver has. */
  async #launch(): Promise<void> {
    const paths = this.#paths;
    const started = this.#clock.monotonicMs();
    this.#prepareDirectories();
    const election = this.#spec.mode === 'primary' ? this.#elect() : undefined;
    election?.catch(() => {}); // awaited below
    // A branch that rested is at the pageserver up to where the election will find it: that basebackup need not wait for it.
    const early = election && this.#isFirstStart ? await this.#unpack(undefined).catch(() => undefined) : undefined;
    this.#isFirstStart = false;
    const primary = await election;
    const electedMs = this.#clock.monotonicMs() - started;

    this.#state = 'unpacking';
    const isEarlyGood = early !== undefined && early.lsn === primary?.lsn;
    const {lsn, replica} = isEarlyGood ? early : await this.#unpack(primary?.lsn);
    const {prewarmed, settings} = this.#prepareHotBlocks();
    const base = await this.#openBase(lsn);
    base.warm.warm(prewarmed);
    const unpackedMs = this.#clock.monotonicMs() - started;

    this.#state = 'starting';
    const address = this.#address;
    const {adopt} = this.#spec;
    const hasRolesOfNow = this.#spec.mode === 'static' && this.#spec.alreadyApplied !== true;
    let relay: WalRelay | undefined;
    let postgres: PostgresProcess;
    try {
      if (hasRolesOfNow) await this.#inPrivate(() => this.#applyRolesOfNow(address));
      if (adopt && !this.#catalogApplied) await this.#inPrivate(() => adoptCluster(address, adopt.superuser));
      if (replica) relay = await this.#startRelay(lsn, replica);
      if (this.#spec.mode !== 'primary') {
        const relayDir = replica && paths.run;
        Object.assign(settings, standbySettings(this.#disk, paths.pgdata, this.#spec, relayDir));
        replaceFile(this.#disk, joinPath(paths.pgdata, 'standby.signal'), Buffer.alloc(0));
        changeOwner(joinPath(paths.pgdata, 'standby.signal'), this.#config.systemUser);
      }
      postgres = await this.#startPostgres(settings);
    } catch (error) {
      await relay?.stop();
      await closeBase(base);
      throw error;
    }
    const activity = new ActivityWatch({address, clock: this.#clock, log: this.#log});
    const incarnation: Incarnation = {
      lsn,
      term: primary?.term,
      proposer: primary?.proposer,
      relay,
      postgres,
      ...base,
      activity,
    };
    this.#current = incarnation;
    void postgres.exited.then(() => this.#onDeath(incarnation, 'Postgres'));
    if (primary) {
      void primary.proposer.exited.then(() => this.#onDeath(incarnation, 'the proposer'));
      primary.proposer.stream({
        ...address,
        user: adminRole,
        throttlePath: joinPath(this.#paths.pgdata, 'pagoda_throttle'),
      });
      if (!this.#catalogApplied) {
        const applied = applyCatalog(address, this.#spec).then(async () => {
          // Were it lost, nothing of the branch could be used: it is not called adopted before the safekeepers have it.
          if (adopt) await waitForQuorum(address);
        });
        // Its commits would wait for ever.
        const died = primary.proposer.exited.then(() => {
          throw new Error('the proposer ended while roles and databases were brought in');
        });
        await Promise.race([applied, died]);
        this.#catalogApplied = true;
      }
    } else if (hasRolesOfNow) await requireRoles(address, this.#spec);
    this.#state = 'running';
    this.#log.info('running', {
      mode: this.#spec.mode,
      lsn: formatLsn(lsn),
      term: primary?.term,
      pgPort: this.#pgPort,
      electedMs: Math.round(electedMs),
      ...(early === undefined ? {} : {earlyBasebackup: isEarlyGood}),
      unpackedMs: Math.round(unpackedMs),
      prewarmed: prewarmed.length,
      totalMs: Math.round(this.#clock.monotonicMs() - started),
    });
  }

  #prepareDirectories(): void {
    const {dataDir, systemUser} = this.#config;
    const {run} = this.#paths;
    this.#disk.makeDirectory(dataDir);
    this.#disk.remove(run);
    this.#disk.makeDirectory(run);
    changeOwner(dataDir, systemUser);
    changeOwner(run, systemUser);
  }

  async #elect(): Promise<{proposer: ProposerProcess; lsn: Lsn; term: number}> {
    const {proposerConfig} = this.#paths;
    this.#state = 'electing';
    replaceFile(this.#disk, proposerConfig, Buffer.from(JSON.stringify(this.#proposerConfig())));
    const proposer = await this.#startProposer(proposerConfig);
    this.#proposer = proposer;
    return {proposer, ...(await proposer.elected)};
  }

  #unpack(electedLsn: Lsn | undefined): Promise<DataDirectory> {
    const {mode, startLsn} = this.#spec;
    const asked = mode === 'static' && startLsn !== undefined ? parseLsn(startLsn) : electedLsn;
    return makeDataDirectory({
      disk: this.#disk,
      path: this.#paths.pgdata,
      spec: this.#spec,
      locations: this.#locations,
      lsn: mode === 'replica' ? this.#rebaseLsn : asked,
      token: this.#tokens.current,
      owner: this.#config.systemUser,
      forReplica: mode === 'replica',
    });
  }

  /** What Postgres reads its pages from: one LSN, under a lease. */
  async #openBase(lsn: Lsn): Promise<Base> {
    const {hydrationSocket} = this.#paths;
    const token = (): string => this.#tokens.current;
    const shared = {spec: this.#spec, locations: this.#locations, lsn, token, clock: this.#clock, log: this.#log};
    const lease = new Lease(shared);
    // Of the newest LSN nobody has to wait for it.
    if (this.#spec.mode === 'static') await lease.granted;
    const pages = openPageSource(shared);
    const warm = new WarmSource(pages, this.#clock);
    const hydration = await HydrationServer.start({
      path: hydrationSocket,
      pages: warm,
      log: this.#log,
      metrics: this.#metrics,
    });
    changeOwner(hydrationSocket, this.#config.systemUser);
    return {lease, pages, warm, hydration};
  }

  #prepareHotBlocks(): {prewarmed: readonly HotBlock[]; settings: Record<string, string>} {
    const {pgdata, hotBlocks, run, hydrationSocket} = this.#paths;
    const {library, settings} = hotBlockSettings(this.#disk, this.#config.binDir);
    const prewarmed = restoreHotBlocks(this.#disk, pgdata, hotBlocks);
    this.#prewarming = prewarmed.length > 0;
    if (prewarmed.length > 0) changeOwner(joinPath(pgdata, 'autoprewarm.blocks'), this.#config.systemUser);
    return {
      prewarmed,
      settings: {
        ...storageSettings({
          extensionLibrary: this.#config.extensionLibrary,
          agentSocket: hydrationSocket,
          socketDir: run,
          port: this.#pgPort,
          preloadLibraries: [library, this.#spec.settings['shared_preload_libraries']],
        }),
        ...settings,
      },
    };
  }

  #startPostgres(settings: Readonly<Record<string, string>>): Promise<PostgresProcess> {
    return PostgresProcess.start({
      binDir: this.#config.binDir,
      dataDir: this.#paths.pgdata,
      user: this.#config.systemUser,
      settings,
      clock: this.#clock,
      log: this.#log,
      onLine: (line) => {
        this.#log.info(`postgres: ${line}`);
        if (line.includes('autoprewarm successfully prewarmed')) this.#prewarming = false;
      },
    });
  }

  /** Postgres runs for a moment as a primary that nobody can reach and that waits for nobody. */
  async #inPrivate(work: () => Promise<void>): Promise<void> {
    const {settings} = this.#prepareHotBlocks();
    const postgres = await this.#startPostgres({
      ...settings,
      'pg_prewarm.autoprewarm': 'off',
      listen_addresses: '',
      synchronous_standby_names: '',
      // Nothing that a superuser has left may begin to run.
      max_logical_replication_workers: '0',
    });
    try {
      await work();
      postgres.stopFast();
    } catch (error) {
      postgres.stopImmediately();
      throw error;
    } finally {
      await postgres.exited;
    }
  }

  /** The roles of the past have the passwords of the past, and some are missing. What is put in here, nobody gets by WAL. */
  #applyRolesOfNow(address: PostgresAddress): Promise<void> {
    return applyCatalog(address, {...this.#spec, databases: [], droppedRoles: [], droppedDatabases: []});
  }

  async #startRelay(lsn: Lsn, replica: ReplicaBase): Promise<WalRelay> {
    const {tenantId, timelineId, systemId, safekeepers} = this.#spec;
    const path = joinPath(this.#paths.run, `.s.PGSQL.${relayPort}`);
    const relay = await WalRelay.start({
      path,
      tenantId,
      timelineId,
      systemId,
      safekeepers,
      token: () => this.#tokens.current,
      startLsn: lsn,
      previousLsn: replica.previousLsn,
      localWal: replica.localWal,
      clock: this.#clock,
      log: this.#log,
      onRebase: (rebaseLsn, why) => {
        this.#log.info('the replica starts from a newer base', {lsn: formatLsn(rebaseLsn), reason: why});
        this.#rebaseLsn = rebaseLsn > lsn ? rebaseLsn : undefined;
        const current = this.#current;
        if (current?.relay === relay) void this.#onDeath(current, 'the base of the replica');
      },
    });
    changeOwner(path, this.#config.systemUser);
    return relay;
  }

  async #prepareProposer(): Promise<void> {
    if (this.#spareProposer) return;
    const {proposerCommand} = this.#config;
    try {
      this.#spareProposer = (await prepareCompute({proposerCommand, mark: this.#paths.proposerConfig})).proposer;
    } catch (error) {
      this.#log.warn('a proposer could not be prepared', {error});
    }
  }

  async #startProposer(config: string): Promise<ProposerProcess> {
    const onFenced = (reason: string): void => void this.#fence(reason);
    const spare = this.#spareProposer;
    this.#spareProposer = undefined;
    if (spare) {
      spare.assign({config, log: this.#log, onFenced});
      return spare;
    }
    const {command, args} = this.#config.proposerCommand;
    return ProposerProcess.start({command, args: [...args, '--config', config], log: this.#log, onFenced});
  }

  #proposerConfig(): unknown {
    const {tenantId, timelineId, systemId, pgVersion, safekeepers, newSafekeepers, safekeeperGeneration} = this.#spec;
    return {
      tenantId,
      timelineId,
      systemId,
      pgVersion,
      safekeepers,
      ...(safekeeperGeneration === undefined ? {} : {generation: safekeeperGeneration}),
      ...(newSafekeepers === undefined ? {} : {newSafekeepers}),
      token: this.#tokens.current,
    };
  }

  /** A part died that nobody asked to stop: everything of this incarnation goes, and a new one starts from storage. */
  async #onDeath(incarnation: Incarnation, who: string): Promise<void> {
    if (this.#current !== incarnation || this.#state !== 'running') return;
    this.#log.error(`${who} died; starting anew from storage`, {
      lsn: formatLsn(incarnation.lsn),
      term: incarnation.term,
    });
    await this.#restart();
  }

  async #restart(): Promise<void> {
    this.#state = 'electing';
    for (let failures = 0; this.#stopping === undefined; failures++) {
      // Starting Node takes longer than ending Postgres: both at once.
      const spare = this.#spec.mode === 'primary' ? this.#prepareProposer() : undefined;
      await this.#tearDown();
      await spare;
      try {
        await this.#launch();
        return;
      } catch (error) {
        if (this.#hasEnded()) return;
        this.#log.error('start from storage failed', {error, attempt: failures + 1});
        if (failures + 1 >= failedStartsMax) {
          await this.#tearDown();
          this.#finish('failed', `Postgres could not be started ${failedStartsMax} times: ${(error as Error).message}`);
          return;
        }
        await this.#clock.sleep(500 * 2 ** failures);
      }
    }
  }

  #hasEnded(): boolean {
    return this.#state === 'fenced' || this.#state === 'failed' || this.#state === 'stopped';
  }

  /** Another compute owns the branch: our Postgres must not answer anyone any more (invariant 12). */
  async #fence(reason: string): Promise<void> {
    if (this.#hasEnded()) return;
    this.#log.error('fenced: another compute has this branch', {reason});
    this.#state = 'fenced';
    this.#current?.postgres.stopImmediately();
    await this.#tearDown();
    this.#finish('fenced', reason);
  }

  #finish(state: ComputeState, reason: string): void {
    this.#state = state;
    this.#tokens.stop();
    this.#end({state, reason});
  }

  /** Ends all processes and sockets of the present incarnation, without grace. */
  async #tearDown(): Promise<void> {
    const current = this.#current;
    const proposer = this.#proposer;
    this.#current = undefined;
    this.#proposer = undefined;
    if (current) {
      current.activity.stop();
      current.postgres.stopImmediately();
      const timer = this.#clock.setTimer(5000, () => current.postgres.kill());
      await current.postgres.exited;
      timer.cancel();
      await current.relay?.stop();
      await closeBase(current);
    }
    if (proposer) {
      proposer.kill();
      await proposer.exited;
    }
  }

  async #stopGracefully(): Promise<void> {
    const current = this.#current;
    if (current && this.#state === 'running') {
      this.#state = 'stopping';
      const {postgres, proposer} = current;
      current.activity.stop();
      // The extension's keeper logs the free-space map and sequences before the shutdown checkpoint.
      postgres.stopFast();
      const timer = this.#clock.setTimer(stopFastMsMax, () => postgres.stopImmediately());
      await postgres.exited;
      timer.cancel();
      // A list that was not read to its end is still better than what was read of it.
      if (!this.#prewarming) keepHotBlocks(this.#disk, this.#paths.pgdata, this.#paths.hotBlocks);
      const committed =
        proposer &&
        (await Promise.race([
          proposer.stopped,
          proposer.exited.then(() => undefined),
          this.#clock.sleep(finalWalMsMax).then(() => undefined),
        ]));
      if (!proposer) this.#log.info('stopped');
      else if (committed === undefined)
        this.#log.warn('stopped before the shutdown checkpoint was committed; nothing acknowledged is lost');
      else {
        try {
          await uploadStatistics({
            disk: this.#disk,
            pgdata: this.#paths.pgdata,
            spec: this.#spec,
            locations: this.#locations,
            lsn: committed,
            token: this.#tokens.current,
          });
        } catch (error) {
          this.#log.warn('statistics were not kept', {error});
        }
      }
    }
    this.#state = 'stopping';
    await this.#tearDown();
    this.#spareProposer?.kill();
    this.#disk.remove(this.#paths.pgdata);
    this.#finish('stopped', 'asked to stop');
    await this.#clock.sleep(20); // the answer to POST /stop leaves first
    await this.#http?.close();
  }

  status(): Record<string, unknown> {
    return {
      state: this.#state,
      pgPort: this.#pgPort,
      pid: this.#current?.postgres.pid,
      startLsn: this.#current && formatLsn(this.#current.lsn),
      term: this.#current?.term,
      pagesFetched: this.#current?.hydration.pagesFetched,
      // While it starts, or starts again, somebody waits for it.
      mode: this.#spec.mode,
      ...this.#replicaStatus(),
      // What the proposer said last: how far the pageserver is, and how long writers wait for it.
      storage: this.#current?.proposer?.progress,
      lastActiveMs: this.#current?.activity.lastActiveMs ?? this.#clock.nowMs(),
    };
  }

  get #address(): PostgresAddress {
    return {socketDir: this.#paths.run, port: this.#pgPort};
  }

  catalog(): Promise<unknown> {
    return readCatalog(this.#address);
  }

  metricsText(): string {
    const progress = this.#current?.proposer?.progress;
    this.#lagBytes.set(progress?.lagBytes ?? 0);
    this.#throttle.set(progress?.throttleUsPerMib ?? 0);
    return this.#metrics.text();
  }

  #replicaStatus(): {replica?: {replayLsn: string; lagBytes: number; lagSeconds: number}} {
    const position = this.#current?.relay?.position;
    if (!position) return {};
    const {replayLsn, commitLsn, lagSeconds} = position;
    return {replica: {replayLsn: formatLsn(replayLsn), lagBytes: Math.max(0, commitLsn - replayLsn), lagSeconds}};
  }

  copySchema(source: SchemaSource): Promise<void> {
    const {binDir, systemUser} = this.#config;
    return copySchema({address: this.#address, binDir, systemUser, disk: this.#disk, scratch: this.#paths.run}, source);
  }

  async stopUnlessUsed(idleSinceMs: number | undefined): Promise<ComputeState> {
    if (idleSinceMs !== undefined) await this.#refuseIfUsed(idleSinceMs);
    void this.stop();
    await this.ended;
    return this.#state;
  }

  async #refuseIfUsed(idleSinceMs: number): Promise<void> {
    const activity = this.#current?.activity;
    await activity?.look();
    const lastActiveMs = activity?.lastActiveMs ?? this.#clock.nowMs();
    if (lastActiveMs > idleSinceMs + 1)
      throw new HttpError(409, 'active', `compute ${this.#spec.endpointId} is in use`);
  }

  async configure(change: Partial<ComputeSpec>): Promise<ComputeState> {
    this.#spec = {
      ...this.#spec,
      ...(change.roles && {roles: change.roles}),
      ...(change.databases && {databases: change.databases}),
      droppedRoles: change.droppedRoles ?? [],
      droppedDatabases: change.droppedDatabases ?? [],
    };
    if (this.#state !== 'running')
      throw new HttpError(
        409,
        'not_running',
        `compute ${this.#spec.endpointId} is ${this.#state}; the change applies at its next start`,
      );
    // A replica gets it by replay.
    if (this.#spec.mode !== 'primary') return this.#state;
    try {
      await applyCatalog(this.#address, this.#spec);
    } catch (error) {
      throw new HttpError(422, 'not_applied', `compute ${this.#spec.endpointId}: ${(error as Error).message}`);
    }
    return this.#state;
  }
}
