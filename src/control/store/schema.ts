/**
 * The control plane's tables, as types. The same on SQLite and PostgreSQL: text, bigint (times in ms since 1970, LSNs, flags
 * as 0 and 1) and JSON in text. Deleted rows keep their id for ever (invariant 33: ids are never reused) and get `deleted_at`.
 */
import type {Kysely, Transaction} from 'kysely';

export interface MetaTable {
  readonly key: string;
  readonly value: string;
}

export interface UserTable {
  readonly id: string;
  readonly login: string;
  readonly email: string;
  readonly name: string;
  readonly created_at: number;
}

export interface OrganizationTable {
  readonly id: string;
  readonly name: string;
  readonly handle: string;
  readonly created_at: number;
  readonly updated_at: number;
}

export interface ApiKeyTable {
  readonly id: number;
  readonly name: string;
  /** Whose key: a user's (sees all of the user's organisations), an organisation's, or one project's. */
  readonly kind: 'personal' | 'organization' | 'project';
  readonly user_id: string;
  readonly organization_id: string | null;
  readonly project_id: string | null;
  /** SHA-256 of the key, hex. The key itself is shown once and never stored. */
  readonly key_hash: string;
  readonly created_at: number;
  last_used_at: number | null;
  revoked_at: number | null;
}

export interface ProjectTable {
  readonly id: string;
  name: string;
  readonly organization_id: string;
  readonly owner_id: string;
  readonly region_id: string;
  readonly pg_version: number;
  /** The project's tenant in storage, 32 hex digits. */
  readonly tenant_id: string;
  /** pg_control's system identifier, decimal. */
  readonly system_id: string;
  /** JSON as the API takes it. */
  settings: string;
  default_endpoint_settings: string;
  history_retention_seconds: number;
  readonly store_passwords: number;
  readonly created_at: number;
  updated_at: number;
  /** Set when deletion was asked for. */
  deleted_at: number | null;
  /** Of a deleted one whose storage is still there: when that goes. Until then it can be recovered. */
  purge_at: number | null;
}

/** Which pageserver holds a shard of a tenant. Changed only together with a higher generation, in one transaction (design D9). */
export interface AttachmentTable {
  readonly tenant_id: string;
  /** From 0; a tenant that is not sharded is shard 0 of 1. */
  readonly shard_number: number;
  readonly shard_count: number;
  pageserver_id: number;
  generation: number;
  /** The pageserver that keeps itself ready to take over. */
  secondary_id: number | null;
}

/** Pageservers that tenants may live on. */
export interface PageserverTable {
  readonly node_id: number;
  host: string;
  port: number;
  http_port: number;
  /** Availability zone; empty: its own. */
  zone: string;
  /** 1: takes no new tenants. */
  retired: number;
}

export interface BranchTable {
  readonly id: string;
  readonly project_id: string;
  name: string;
  /** Its own; changes only when the branch is restored (operations/restore-plan.ts). */
  timeline_id: string;
  parent_id: string | null;
  /** Where it forked; null until the operation that makes it has decided. */
  parent_lsn: number | null;
  parent_timestamp: number | null;
  state: 'init' | 'resetting' | 'ready' | 'archived';
  pending_state: string | null;
  is_default: number;
  protected: number;
  readonly init_source: 'parent-data' | 'schema-only';
  /** 1: what holds a snapshot; no user sees it. */
  readonly hidden: number;
  readonly creation_source: string;
  /** JSON: node ids of its safekeepers. */
  safekeepers: string;
  /** Counts changes of roles and databases; what a compute has applied to the branch follows it. */
  catalog_version: number;
  catalog_applied: number;
  /** From here on the timeline holds the roles and databases of `catalog_applied`; null: not known. */
  catalog_applied_lsn: number | null;
  expires_at: number | null;
  last_reset_at: number | null;
  /** JSON: {schedule, setAt} of regular snapshots (api/backup-schedule.ts). */
  backup_schedule: string | null;
  /** Made of this snapshot, to be put in the place of `restore_target` when its restore is finalized. */
  restored_from: string | null;
  restore_target: string | null;
  restore_status: 'restored' | 'finalized' | null;
  readonly created_at: number;
  updated_at: number;
  state_changed_at: number;
  deleted_at: number | null;
  /** Of a deleted one whose timeline is still there: when that goes. Until then it can be recovered (store/in-storage.ts). */
  purge_at: number | null;
  /** Who deleted it: somebody, the clock, or whoever deleted its project. */
  deletion_method: 'user' | 'ttl' | 'project' | null;
}

/** A timeline that a safekeeper, which was down then, has not been told to delete. */
export interface SafekeeperDebtTable {
  readonly node_id: number;
  readonly tenant_id: string;
  readonly timeline_id: string;
}

/** What a branch has used since it was made; sampled (usage.ts). Stays when the branch goes: its project has used it. */
export interface UsageTable {
  readonly branch_id: string;
  readonly project_id: string;
  /** Whose WAL `wal_lsn` is of; a restore gives the branch another one. */
  timeline_id: string;
  wal_lsn: number;
  written_bytes: number;
  transfer_bytes: number;
  storage_byte_hours: number;
  /** When it was sampled. */
  logical_bytes: number;
  sampled_at: number;
}

export interface EndpointTable {
  readonly id: string;
  readonly project_id: string;
  branch_id: string;
  readonly type: 'read_write' | 'read_only';
  name: string | null;
  autoscaling_limit_min_cu: number;
  autoscaling_limit_max_cu: number;
  suspend_timeout_seconds: number;
  /** JSON: pg_settings and pgbouncer_settings. */
  settings: string;
  pooler_enabled: number;
  disabled: number;
  current_state: 'init' | 'active' | 'idle';
  pending_state: 'active' | 'idle' | null;
  /** Of a compute at one point of the branch, made for a connection to that point; no user sees it in a list. */
  readonly static_lsn: number | null;
  /** How long its computes have run until the last suspend. */
  active_ms: number;
  last_active: number | null;
  started_at: number | null;
  suspended_at: number | null;
  readonly created_at: number;
  updated_at: number;
  deleted_at: number | null;
}

export interface RoleTable {
  readonly branch_id: string;
  readonly name: string;
  /** AES-256-GCM under the install key, base64; null when passwords are not kept. */
  password_sealed: string | null;
  scram_verifier: string | null;
  readonly no_login: number;
  readonly protected: number;
  readonly created_at: number;
  updated_at: number;
}

export interface DatabaseTable {
  readonly id: number;
  readonly branch_id: string;
  name: string;
  owner_name: string;
  readonly created_at: number;
  updated_at: number;
}

/** Roles and databases that are gone from the API but may still be in the branch, until a compute has dropped them. */
export interface DroppedObjectTable {
  readonly branch_id: string;
  readonly kind: 'role' | 'database';
  readonly name: string;
  /** The branch's catalog_version of the drop. */
  readonly version: number;
}

/** A point of a branch that stays, held by a hidden branch that begins there. */
export interface SnapshotTable {
  readonly id: string;
  readonly project_id: string;
  name: string;
  readonly source_branch_id: string;
  readonly branch_id: string;
  readonly manual: number;
  expires_at: number | null;
  readonly created_at: number;
  deleted_at: number | null;
}

export type OperationStatus = 'scheduling' | 'running' | 'finished' | 'failed' | 'skipped';

export interface OperationTable {
  readonly id: string;
  /** Order of submission; operations that share a lock run in this order. */
  readonly seq: number;
  readonly project_id: string;
  readonly branch_id: string | null;
  readonly endpoint_id: string | null;
  /** The word of Neon's API. */
  readonly action: string;
  /** Which plan (operations/plans.ts) carries it out. */
  readonly kind: string;
  /** JSON array: what it holds while unfinished, such as `branch:br-…`. */
  readonly locks: string;
  status: OperationStatus;
  /** The plan's next step. */
  step: number;
  /** JSON: what later steps need from earlier ones. */
  state: string;
  failures_count: number;
  error: string | null;
  retry_at: number | null;
  readonly created_at: number;
  updated_at: number;
  finished_at: number | null;
}

/** Safekeepers that timelines may live on. */
export interface SafekeeperTable {
  readonly node_id: number;
  host: string;
  port: number;
  http_port: number;
  /** Availability zone; empty: its own. */
  zone: string;
  /** 1: takes no new timelines. */
  retired: number;
}

export interface Tables {
  safekeepers: SafekeeperTable;
  safekeeper_debts: SafekeeperDebtTable;
  pageservers: PageserverTable;
  meta: MetaTable;
  users: UserTable;
  organizations: OrganizationTable;
  api_keys: ApiKeyTable;
  projects: ProjectTable;
  attachments: AttachmentTable;
  branches: BranchTable;
  endpoints: EndpointTable;
  roles: RoleTable;
  databases: DatabaseTable;
  dropped_objects: DroppedObjectTable;
  operations: OperationTable;
  usage: UsageTable;
  snapshots: SnapshotTable;
}

export type Store = Kysely<Tables>;
export type StoreTransaction = Transaction<Tables>;
