/** The control plane as a process: API v2 on one port, internal routes on another, operations taken up again at start. */
import {TokenIssuer, TokenVerifier} from '#wire/auth.ts';
import {shardCountMax} from '#wire/shard.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {type Route, startHttpServer} from '#runtime/http.ts';
import {createLog} from '#runtime/log.ts';
import {systemRandom} from '#runtime/random.ts';
import {readSecretFile} from '#runtime/secret-file.ts';
import {ApiContext} from '#control/api/context.ts';
import {startBackups} from '#control/api/backup-schedule.ts';
import {startBranchExpiry} from '#control/api/branch-expiry.ts';
import {buildApi} from '#control/api/server.ts';
import {AutoArchive} from '#control/auto-archive.ts';
import {WalTrim} from '#control/wal-trim.ts';
import {Autosuspend} from '#control/autosuspend.ts';
import {InitdbBootstrap} from '#control/bootstrap.ts';
import type {ControlConfig} from '#control/config.ts';
import {Endpoints} from '#control/endpoints.ts';
import {ensureFirstUser} from '#control/first-user.ts';
import {branchAdminRoutes} from '#control/branch-admin.ts';
import {branchPlaceRoutes} from '#control/branch-places.ts';
import {authenticateInternal, type InternalOptions, internalRoutes} from '#control/internal.ts';
import {startDiscarding} from '#control/compute-leftovers.ts';
import {LocalComputeLauncher} from '#control/local-launcher.ts';
import {makePlans} from '#control/operations/plans.ts';
import {OperationRunner} from '#control/operations/runner.ts';
import {type SafekeeperAdminOptions, safekeeperAdminRoutes} from '#control/safekeeper-admin.ts';
import {SafekeeperFarewells} from '#control/safekeeper-farewells.ts';
import {noteSafekeeper, readSafekeepers} from '#control/safekeeper-nodes.ts';
import {projectImportRoutes} from '#control/project-import.ts';
import {Failover} from '#control/failover.ts';
import {type PageserverAdminOptions, pageserverAdminRoutes} from '#control/pageserver-admin.ts';
import {notePageserver, readPageservers} from '#control/pageserver-nodes.ts';
import {startPurging} from '#control/purge.ts';
import {schemaDumper} from '#control/schema-dump.ts';
import {PasswordVault} from '#control/scram.ts';
import {HttpStorageClients} from '#control/storage-client.ts';
import {openStore} from '#control/store/open.ts';
import {startUsageSampling} from '#control/usage.ts';

export interface RunningControl {
  readonly apiPort: number;
  readonly internalPort: number;
  /** Operations under way finish their present step; computes go on. */
  stop(): Promise<void>;
}

/** Neon's default. */
const suspendTimeoutSecondsDefault = 300;

/** The table of the internal port; test/system/authorization.test.ts has a row for each of them. */
export function allInternalRoutes(
  options: InternalOptions & SafekeeperAdminOptions & PageserverAdminOptions,
  api: ApiContext,
): Route[] {
  return [
    ...internalRoutes(options),
    ...safekeeperAdminRoutes(options),
    ...pageserverAdminRoutes(options),
    ...branchAdminRoutes(options),
    ...branchPlaceRoutes(options),
    ...projectImportRoutes(api),
  ];
}

export async function runControl(config: ControlConfig): Promise<RunningControl> {
  const {shardsPerTenant = 1} = config;
  if (!Number.isInteger(shardsPerTenant) || shardsPerTenant < 1 || shardsPerTenant > shardCountMax)
    throw new Error(`shardsPerTenant is ${shardsPerTenant}: a tenant has 1 to ${shardCountMax} shards`);
  const log = createLog({component: 'control'});
  const [clock, random, disk] = [systemClock, systemRandom, systemDisk];
  const issuer = await TokenIssuer.load(config.keysDir, 'control', clock);
  const verifier = await TokenVerifier.load(config.keysDir, 'control', clock);
  const vault = new PasswordVault(Buffer.from(readSecretFile(config.installKeyFile).trim(), 'hex'));
  const store = await openStore(config.database);
  await ensureFirstUser(store, {keyFile: config.firstApiKeyFile, disk, clock, random});

  await store.transaction().execute(async (trx) => {
    for (const node of config.safekeepers) await noteSafekeeper(trx, node);
    for (const node of config.pageservers) await notePageserver(trx, node);
  });
  const storage = new HttpStorageClients({
    pageservers: await readPageservers(store),
    safekeepers: await readSafekeepers(store),
    issuer,
  });
  const launcher = new LocalComputeLauncher({...config.computes, clock, random, disk, log});
  const bootstrap = new InitdbBootstrap({
    binDir: config.computes.binDir,
    cacheDir: config.cacheDir,
    systemUser: config.computes.systemUser,
    disk,
    random,
    log,
  });
  const mintComputeToken = (tenant: string, timeline: string): Promise<string> =>
    issuer.sign({aud: ['pageserver', 'safekeeper', 'control'], scope: 'tenant', tenant, timeline});
  const plans = makePlans({
    store,
    storage,
    launcher,
    bootstrap,
    vault,
    clock,
    random,
    log,
    mintComputeToken,
    tokenRefreshUrl: `http://${config.internalHost}:${config.internalPort}/internal/v1/token`,
    locationsUrl: (tenantId) =>
      `http://${config.internalHost}:${config.internalPort}/internal/v1/tenants/${tenantId}/locations`,
  });
  const runner = new OperationRunner({store, clock, log, plans});
  const endpoints = new Endpoints({store, runner, launcher, clock, log});
  await endpoints.reconcile();
  await runner.kick();
  const failover = new Failover({store, storage, clock, log});
  const isDeadPageserver = (nodeId: number): boolean => failover.isDead(nodeId);

  const dumpSchema = schemaDumper(config.computes);
  const context = new ApiContext({
    store,
    runner,
    endpoints,
    storage,
    vault,
    dumpSchema,
    clock,
    random,
    log,
    config,
    isDeadPageserver,
  });
  const internal = await startHttpServer({
    host: config.internalHost,
    port: config.internalPort,
    routes: allInternalRoutes(
      {store, endpoints, mintComputeToken, storage, runner, clock, random, log, isDeadPageserver},
      context,
    ),
    authenticate: authenticateInternal(verifier),
    log,
  });
  const api = buildApi(context);
  await api.listen({host: config.apiHost, port: config.apiPort});
  const bound = api.server.address();
  const apiPort = typeof bound === 'object' && bound !== null ? bound.port : config.apiPort;
  const sweeps = [
    startBranchExpiry(context),
    startUsageSampling({store, storage, clock, log}),
    startBackups(context),
    startPurging(context),
    startDiscarding({store, runner, launcher, clock, log}),
    new AutoArchive({store, runner, clock, log, config: config.archive}).start(),
    new Autosuspend({
      store,
      runner,
      launcher,
      clock,
      log,
      defaultSeconds: config.suspendTimeoutSeconds ?? suspendTimeoutSecondsDefault,
    }).start(),
  ];
  const walTrim = new WalTrim({store, storage, clock, log, config: config.walTrim});
  walTrim.start();
  const farewells = new SafekeeperFarewells({store, runner, storage, clock, log});
  farewells.start();
  failover.start();
  launcher.keepSpare();
  log.info('serving', {api: `${config.apiHost}:${apiPort}`, internal: internal.port});
  return {
    apiPort,
    internalPort: internal.port,
    async stop() {
      await failover.stop();
      await walTrim.stop();
      for (const sweep of sweeps) await sweep?.stop();
      await farewells.stop();
      await api.close();
      await internal.close();
      await runner.stop();
      launcher.close();
      await store.destroy();
    },
  };
}
