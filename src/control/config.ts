/** What `pagoda control --config FILE` reads. */
import type {AutoArchiveConfig} from '#control/auto-archive.ts';
import type {WalTrimConfig} from '#control/wal-trim.ts';

export interface PageserverNode {
  readonly nodeId: number;
  readonly host: string;
  /** Page service. */
  readonly port: number;
  /** Management. */
  readonly httpPort: number;
  /** Availability zone: who takes over when it dies is in another one. Without one a node is a zone of its own. */
  readonly zone?: string;
  /** Takes no new tenants: it is to go. */
  readonly retired?: boolean;
}

export interface SafekeeperNode {
  readonly nodeId: number;
  readonly host: string;
  /** WAL protocol. */
  readonly port: number;
  /** Management. */
  readonly httpPort: number;
  /** Availability zone: members of one timeline are spread over zones. Without one a node is a zone of its own. */
  readonly zone?: string;
  /** Takes no new timelines: it was replaced, or is about to be. */
  readonly retired?: boolean;
}

export interface ControlConfig {
  /** API v2. */
  readonly apiHost: string;
  readonly apiPort: number;
  /** For pageservers, proxies and computes; needs internal tokens. */
  readonly internalHost: string;
  readonly internalPort: number;
  /** Path of a SQLite file, or `postgres://…`. */
  readonly database: string;
  readonly keysDir: string;
  /** 32 bytes in hex, made at first start: encrypts stored role passwords. */
  readonly installKeyFile: string;
  /** The initdb template lies here. */
  readonly cacheDir: string;
  readonly regionId: string;
  /** Noted in the database at every start; others can be added there (`PUT /internal/v1/pageservers/:id`). */
  readonly pageservers: readonly PageserverNode[];
  /** Noted in the database at every start; others can be added there (`PUT /internal/v1/safekeepers/:id`). */
  readonly safekeepers: readonly SafekeeperNode[];
  readonly computes: {
    readonly computesDir: string;
    readonly logsDir: string;
    /** This program: command and the arguments before a role's name. */
    readonly pagodaCommand: {readonly command: string; readonly args: readonly string[]};
    readonly systemUser: string;
    readonly binDir: string;
    readonly extensionLibrary: string;
  };
  /** Shards of a project made from now on (wire/shard.ts), spread over the pageservers; for good. Default 1. */
  readonly shardsPerTenant?: number;
  /** What an endpoint's suspend_timeout_seconds 0 means; -1 never. Default 300. */
  readonly suspendTimeoutSeconds?: number;
  /** How long a deleted project or branch can be recovered; 0: it is gone at once. Default 7 days. */
  readonly recoverySeconds?: number;
  readonly archive?: AutoArchiveConfig;
  readonly walTrim?: WalTrimConfig;
  /** How clients reach computes: hosts are `<endpoint>.<domain>:<port>`. Without a proxy: the compute's own loopback port. */
  readonly proxy?: {readonly domain: string; readonly port: number};
  /** The first user's API key is written here (mode 0600) when the database is new. */
  readonly firstApiKeyFile: string;
}
