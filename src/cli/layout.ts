/** Where everything of one installation lies. */
import {joinPath} from '#runtime/disk.ts';
import {environment, runsAsRoot} from '#runtime/process.ts';
import {reachableByAll, realPath} from '#runtime/permissions.ts';
import {parsePort} from '#cli/arguments.ts';

/** The repository (or installed package) that this program runs from. */
export const packageRoot = realPath(joinPath(import.meta.dirname, '..', '..'));
export const mainFile = joinPath(packageRoot, 'src', 'cli', 'main.ts');

/** Where root's data and built files go when the project itself lies in a private directory. */
const sharedData = '/var/lib/pagoda';
export const sharedCache = '/var/cache/pagoda';

/** Of Node; beside the code, and as trusted as it. Where it cannot be written it is not used. */
export const compileCache = joinPath(packageRoot, '.cache', 'node');

export const safekeeperCount = 3;
/** On one machine: more have no port in the block. */
export const pageserversMax = 6;

export interface Ports {
  /** Postgres, and HTTP and WebSocket for the serverless driver, on one port. */
  readonly proxy: number;
  /** API v2. */
  readonly api: number;
  /** First of a block of 20 for the roles among themselves. */
  readonly internal: number;
}

/** Above the well-known ones and away from 5432, so that a Postgres of the machine is not in the way. */
const defaultPorts: Ports = {proxy: 54320, api: 54321, internal: 54330};

/** Ports inside the internal block. */
export function internalPorts(base: number): {
  broker: number;
  safekeeper: (nodeId: number) => number;
  safekeeperHttp: (nodeId: number) => number;
  /** Of the first. */
  pageserver: number;
  pageserverHttp: number;
  /** Page service and management HTTP of any. */
  pageserverOf: (nodeId: number) => {readonly port: number; readonly httpPort: number};
  control: number;
} {
  return {
    broker: base,
    safekeeper: (nodeId) => base + nodeId,
    safekeeperHttp: (nodeId) => base + safekeeperCount + nodeId,
    pageserver: base + 7,
    pageserverHttp: base + 8,
    pageserverOf: (nodeId) => {
      const port = nodeId === 1 ? base + 7 : base + 6 + 2 * nodeId;
      return {port, httpPort: port + 1};
    },
    control: base + 9,
  };
}

export const portOptions = {'--port': 'value', '--api-port': 'value', '--internal-port': 'value'} as const;

/** Flags win over PAGODA_PORT, PAGODA_API_PORT and PAGODA_INTERNAL_PORT, and these over the defaults. */
export function choosePorts(options: ReadonlyMap<string, string>): Ports {
  const pick = (flag: string, variable: string, otherwise: number): number => {
    const fromFlag = options.get(flag);
    if (fromFlag !== undefined) return parsePort(flag, fromFlag);
    const fromEnvironment = environment[variable];
    return fromEnvironment === undefined || fromEnvironment === '' ? otherwise : parsePort(variable, fromEnvironment);
  };
  return {
    proxy: pick('--port', 'PAGODA_PORT', defaultPorts.proxy),
    api: pick('--api-port', 'PAGODA_API_PORT', defaultPorts.api),
    internal: pick('--internal-port', 'PAGODA_INTERNAL_PORT', defaultPorts.internal),
  };
}

/** The folders and files below one data directory. */
export class Layout {
  readonly data: string;

  constructor(data: string) {
    this.data = data;
  }

  /**
   * `--data DIR`, else PAGODA_DATA, else ./.pagoda; absolute. Started by root below a private directory (a clone in /root), where
   * Postgres as another user cannot come: /var/lib/pagoda.
   */
  static choose(options: ReadonlyMap<string, string>, workingDirectory: string): Layout {
    const chosen = options.get('--data') ?? environment['PAGODA_DATA'] ?? '';
    if (chosen === '' && runsAsRoot && !reachableByAll(workingDirectory)) return new Layout(sharedData);
    const path = chosen === '' ? '.pagoda' : chosen;
    return new Layout(realPath(path.startsWith('/') ? joinPath(path) : joinPath(workingDirectory, path)));
  }

  get keys(): string {
    return joinPath(this.data, 'keys');
  }
  /** The supervisor's own notes: its pid and ports while it runs. */
  get supervisorFile(): string {
    return joinPath(this.data, 'supervisor.json');
  }
  /** The key of the first user, for the banner and `pagoda status`; mode 0600. */
  get apiKeyFile(): string {
    return joinPath(this.keys, 'api-key');
  }
  /** Encrypts stored role passwords. */
  get installKeyFile(): string {
    return joinPath(this.keys, 'install.key');
  }
  get logs(): string {
    return joinPath(this.data, 'logs');
  }
  get computes(): string {
    return joinPath(this.data, 'computes');
  }
  get cache(): string {
    return joinPath(this.data, 'cache');
  }
  get objects(): string {
    return joinPath(this.data, 'objects');
  }
  get config(): string {
    return joinPath(this.data, 'config');
  }
  get database(): string {
    return joinPath(this.data, 'control', 'control.sqlite');
  }
  /** Local state of a storage node. */
  node(name: string): string {
    return joinPath(this.data, name);
  }
  configFile(name: string): string {
    return joinPath(this.config, `${name}.json`);
  }
  logFile(name: string): string {
    return joinPath(this.logs, `${name}.log`);
  }
  pidFile(name: string): string {
    return joinPath(this.data, 'run', `${name}.pid`);
  }
}
