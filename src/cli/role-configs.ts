/** The configuration of every role in an installation on one machine: what the supervisor writes before it starts them. */
import {internalPorts, type Layout, type Ports, safekeeperCount} from '#cli/layout.ts';
import {environment} from '#runtime/process.ts';
import {UsageError} from '#cli/arguments.ts';
import {pagodaCommand} from '#cli/role-process.ts';
import type {Installation} from '#cli/setup.ts';
import type {BrokerConfig} from '#broker/config.ts';
import type {ControlConfig} from '#control/config.ts';
import type {ObjectStoreConfig} from '#objectstore/open.ts';
import type {PageserverConfig} from '#pageserver/config.ts';
import type {ProxyConfig} from '#proxy/config.ts';
import type {SafekeeperConfig} from '#safekeeper/config.ts';

const loopback = '127.0.0.1';

/** Name (also of log and pid file), role, configuration; in the order in which they start. */
export interface RoleConfig {
  readonly name: string;
  readonly role: string;
  /** Roles of one phase start together, when those of the phase before serve. */
  readonly phase: number;
  readonly config: unknown;
}

export interface InstallationChoices {
  readonly layout: Layout;
  readonly ports: Ports;
  readonly installation: Installation;
  /** Where API and proxy listen; everything else stays on loopback. */
  readonly listen: string;
  /** The proxy serves Postgres clients; without it computes are reached directly on loopback. */
  readonly withProxy: boolean;
  /** Of projects made from now on. */
  readonly shards?: number;
  /** How many; each a process of its own. */
  readonly pageservers: number;
  /** Of the pageservers and the safekeepers. */
  readonly objectStore: ObjectStoreConfig;
}

export function roleConfigs(choices: InstallationChoices): RoleConfig[] {
  const {layout, ports, objectStore} = choices;
  const internal = internalPorts(ports.internal);
  const broker = {host: loopback, port: internal.broker};
  const nodeIds = Array.from({length: safekeeperCount}, (_, i) => i + 1);
  const controlUrl = `http://${loopback}:${internal.control}`;
  const roles: RoleConfig[] = [
    {
      name: 'broker',
      role: 'broker',
      phase: 0,
      config: {host: loopback, port: internal.broker, keysDir: layout.keys} satisfies BrokerConfig,
    },
    ...nodeIds.map((nodeId) => ({
      name: `safekeeper-${nodeId}`,
      role: 'safekeeper',
      phase: 1,
      config: {
        nodeId,
        host: loopback,
        port: internal.safekeeper(nodeId),
        httpPort: internal.safekeeperHttp(nodeId),
        dataDir: layout.node(`safekeeper-${nodeId}`),
        keysDir: layout.keys,
        broker,
        objectStore,
      } satisfies SafekeeperConfig,
    })),
    ...pageserverIds(choices).map((nodeId) => {
      const name = nodeId === 1 ? 'pageserver' : `pageserver-${nodeId}`;
      return {
        name,
        role: 'pageserver',
        // It asks control what it holds.
        phase: 1,
        config: {
          nodeId,
          host: loopback,
          ...internal.pageserverOf(nodeId),
          dataDir: layout.node(name),
          keysDir: layout.keys,
          broker,
          objectStore,
          controlUrl,
        } satisfies PageserverConfig,
      };
    }),
    {name: 'control', role: 'control', phase: 0, config: controlConfig(choices)},
  ];
  if (choices.withProxy)
    roles.push({
      name: 'proxy',
      role: 'proxy',
      phase: 1,
      config: {
        host: choices.listen,
        port: ports.proxy,
        keysDir: layout.keys,
        dataDir: layout.node('proxy'),
        controlUrl,
        domain: 'localhost',
      } satisfies ProxyConfig,
    });
  return roles;
}

function pageserverIds({pageservers}: InstallationChoices): number[] {
  return Array.from({length: pageservers}, (_, i) => i + 1);
}

/** Computes are started by control, and stopped by the supervisor at the end. */
export function localComputes(choices: InstallationChoices): ControlConfig['computes'] {
  const {layout, installation} = choices;
  return {
    computesDir: layout.computes,
    logsDir: layout.logs,
    pagodaCommand,
    systemUser: installation.systemUser,
    binDir: installation.binDir,
    extensionLibrary: installation.extensionLibrary,
  };
}

function controlConfig(choices: InstallationChoices): ControlConfig {
  const suspendSeconds = readSuspendSeconds(environment['PAGODA_SUSPEND_SECONDS']);
  const recoverySeconds = readSeconds('PAGODA_RECOVERY_SECONDS', 0);
  const ageSeconds = readSeconds('PAGODA_ARCHIVE_AGE_SECONDS', -1);
  const idleSeconds = readSeconds('PAGODA_ARCHIVE_IDLE_SECONDS', 1);
  const {layout, ports} = choices;
  const internal = internalPorts(ports.internal);
  return {
    apiHost: choices.listen,
    apiPort: ports.api,
    internalHost: loopback,
    internalPort: internal.control,
    database: layout.database,
    keysDir: layout.keys,
    installKeyFile: layout.installKeyFile,
    cacheDir: layout.cache,
    regionId: 'local',
    pageservers: pageserverIds(choices).map((nodeId) => ({nodeId, host: loopback, ...internal.pageserverOf(nodeId)})),
    safekeepers: Array.from({length: safekeeperCount}, (_, i) => ({
      nodeId: i + 1,
      host: loopback,
      port: internal.safekeeper(i + 1),
      httpPort: internal.safekeeperHttp(i + 1),
    })),
    computes: localComputes(choices),
    ...(choices.withProxy ? {proxy: {domain: 'localhost', port: ports.proxy}} : {}),
    ...(choices.shards === undefined ? {} : {shardsPerTenant: choices.shards}),
    ...(suspendSeconds === undefined ? {} : {suspendTimeoutSeconds: suspendSeconds}),
    ...(recoverySeconds === undefined ? {} : {recoverySeconds}),
    archive: {
      ...(ageSeconds === undefined ? {} : {ageSeconds}),
      ...(idleSeconds === undefined ? {} : {idleSeconds}),
    },
    firstApiKeyFile: layout.apiKeyFile,
  };
}

/** When branches are archived by themselves (age, where -1 is never, and time without use); how long what is deleted can be recovered. */
function readSeconds(name: string, min: number): number | undefined {
  const text = environment[name] ?? '';
  if (text === '') return undefined;
  const seconds = Number(text);
  if (!Number.isInteger(seconds) || seconds < min)
    throw new UsageError(`${name} must be a number of seconds, at least ${min}, not ${JSON.stringify(text)}`);
  return seconds;
}

/** What endpoints without a suspend timeout of their own have, for this installation. */
function readSuspendSeconds(text: string | undefined): number | undefined {
  if (text === undefined || text === '') return undefined;
  const seconds = Number(text);
  if (!Number.isInteger(seconds) || (seconds < 1 && seconds !== -1))
    throw new UsageError(
      `PAGODA_SUSPEND_SECONDS must be a number of seconds, or -1 for never, not ${JSON.stringify(text)}`,
    );
  return seconds;
}

/** Every port that must be free, with the flag that moves it. */
export function portsInUse(choices: InstallationChoices): {host: string; port: number; what: string; flag: string}[] {
  const {ports} = choices;
  const internal = internalPorts(ports.internal);
  const inBlock = (port: number, what: string): {host: string; port: number; what: string; flag: string} => ({
    host: loopback,
    port,
    what,
    flag: '--internal-port',
  });
  return [
    ...(choices.withProxy ? [{host: choices.listen, port: ports.proxy, what: 'Postgres', flag: '--port'}] : []),
    {host: choices.listen, port: ports.api, what: 'the API', flag: '--api-port'},
    inBlock(internal.broker, 'the broker'),
    ...Array.from({length: safekeeperCount}, (_, i) => i + 1).flatMap((nodeId) => [
      inBlock(internal.safekeeper(nodeId), `safekeeper ${nodeId}`),
      inBlock(internal.safekeeperHttp(nodeId), `safekeeper ${nodeId} (HTTP)`),
    ]),
    ...pageserverIds(choices).flatMap((nodeId) => [
      inBlock(internal.pageserverOf(nodeId).port, `pageserver ${nodeId}`),
      inBlock(internal.pageserverOf(nodeId).httpPort, `pageserver ${nodeId} (HTTP)`),
    ]),
    inBlock(internal.control, 'the control plane'),
  ];
}
