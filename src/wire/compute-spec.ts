/** What the control plane tells a compute agent to run. */

export interface RoleSpec {
  readonly name: string;
  /** `SCRAM-SHA-256$…` as stored in pg_authid; never a password. Absent: the role cannot log in with a password. */
  readonly scramVerifier?: string;
  readonly canLogin: boolean;
}

export interface DatabaseSpec {
  readonly name: string;
  readonly owner: string;
}

export interface PageserverAddress {
  readonly host: string;
  /** Page service. */
  readonly port: number;
  /** Management HTTP. */
  readonly httpPort: number;
}

/** Where one shard of the tenant is (wire/shard.ts); also the answer's form of `GET /internal/v1/tenants/:tenant/locations`. */
export interface ShardLocation extends PageserverAddress {
  readonly shardId: string;
}

export interface SafekeeperAddress {
  readonly nodeId: number;
  readonly host: string;
  readonly port: number;
}

export interface ComputeSpec {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly projectId: string;
  readonly branchId: string;
  readonly endpointId: string;
  /** primary: the branch's one writer. replica: reads, and follows the branch. static: reads, at `startLsn` for ever. */
  readonly mode: 'primary' | 'replica' | 'static';
  readonly startLsn?: string;
  readonly pgVersion: number;
  /** pg_control's system identifier, decimal. */
  readonly systemId: string;
  /** That of shard 0. */
  readonly pageserver: PageserverAddress;
  /** Every shard in order, where it was when this was written; absent: one, at `pageserver`. */
  readonly shards?: readonly ShardLocation[];
  readonly safekeepers: readonly SafekeeperAddress[];
  /** Of the membership that the list belongs to (wire/membership.ts); absent: 1. */
  readonly safekeeperGeneration?: number;
  /** While the safekeepers are being changed: those that will be. */
  readonly newSafekeepers?: readonly SafekeeperAddress[];
  /** Tenant token for pageserver and safekeepers, at most an hour old; see tokenRefreshUrl. */
  readonly token: string;
  /** `POST` with the current token answers `{token}`. Absent in tests. */
  readonly tokenRefreshUrl?: string;
  /** `GET` with the token answers `{shards: [ShardLocation]}`: where the pages are now. Absent in tests. */
  readonly locationsUrl?: string;
  readonly roles: readonly RoleSpec[];
  readonly databases: readonly DatabaseSpec[];
  /** Roles and databases that were there at an earlier start and must go. */
  readonly droppedRoles?: readonly string[];
  readonly droppedDatabases?: readonly string[];
  /** The roles and databases above are in the branch already, at the point where this compute reads it: skip the work. */
  readonly alreadyApplied?: boolean;
  /** The branch is a cluster that somebody else made: what its first superuser is called there (compute/adopt.ts). */
  readonly adopt?: {readonly superuser: string};
  /** Further postgresql.conf settings, by name. */
  readonly settings: Readonly<Record<string, string>>;
}

/** Every shard in order. */
export function shardsOf(spec: ComputeSpec): readonly ShardLocation[] {
  return spec.shards ?? [{...spec.pageserver, shardId: spec.tenantId}];
}

/** What a branch was found to have, once its compute ran. */
export interface ImportedCatalog {
  readonly roles: readonly RoleSpec[];
  readonly databases: readonly DatabaseSpec[];
  /** In use, and not installed where the compute runs. */
  readonly missingExtensions: readonly string[];
}

/** Where a schema is copied from: a compute that lets `user` in, who may read everything. */
export interface SchemaSource {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly databases: readonly DatabaseSpec[];
}
