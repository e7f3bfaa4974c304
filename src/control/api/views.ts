/** Rows → objects of API v2. What has no value is left out: clients stumble over null (neon-api.md §1.3). */
import {formatTime} from '#runtime/time-format.ts';
import {formatLsn, type Lsn} from '#control/lsn.ts';
import type {ControlConfig} from '#control/config.ts';
import type {ComputeReport} from '#control/launcher.ts';
import type {
  ApiKeyTable,
  BranchTable,
  DatabaseTable,
  EndpointTable,
  OperationTable,
  OrganizationTable,
  ProjectTable,
  RoleTable,
} from '#control/store/schema.ts';
import type {Usage} from '#control/usage.ts';

const provisioner = 'k8s-neonvm';
const platformId = 'pagoda';
const creationSource = 'console';

/** The object without keys that have no value. */
function present(fields: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== null));
}

function time(timeMs: number | null): string | undefined {
  return timeMs === null ? undefined : formatTime(timeMs);
}

/** Start and end of the present month, UTC. */
function consumptionPeriod(nowMs: number): {start: string; end: string} {
  const [year, month] = formatTime(nowMs).split('-').map(Number) as [number, number];
  const first = (y: number, m: number): string => `${y}-${String(m).padStart(2, '0')}-01T00:00:00Z`;
  return {start: first(year, month), end: month === 12 ? first(year + 1, 1) : first(year, month + 1)};
}

/** What the pageserver says of a branch. */
export interface StorageFacts {
  readonly logicalSizeBytes?: number;
  /** Why it takes no more WAL of the branch. Not a field of Neon's: there only while it is so. */
  readonly ingestError?: string;
  /** WAL up to here is in the object store, as a safekeeper knows it. */
  readonly archivedLsn?: Lsn;
  /** Where the branch went on after its last restore from the object store. */
  readonly restoredLsn?: Lsn;
}

function restoredLsn(operation: OperationTable): string | undefined {
  const {lsn} = JSON.parse(operation.state) as {lsn?: number};
  return lsn === undefined ? undefined : formatLsn(lsn as Lsn);
}

export class Views {
  readonly #config: Pick<ControlConfig, 'regionId' | 'proxy'>;

  constructor(config: Pick<ControlConfig, 'regionId' | 'proxy'>) {
    this.#config = config;
  }

  get #proxyHost(): string {
    const proxy = this.#config.proxy;
    return proxy === undefined ? 'localhost' : `${proxy.domain}:${proxy.port}`;
  }

  /** `<endpoint>.<domain>:<port>`: its first label is the endpoint's id, once, from which clients derive other names. */
  endpointHost(endpointId: string): string {
    return `${endpointId}.${this.#proxyHost}`;
  }

  /** Usage counts from the project's beginning, not from the period's. */
  project(project: ProjectTable, nowMs: number, usage: Usage): Record<string, unknown> {
    const period = consumptionPeriod(nowMs);
    return {
      ...this.#projectCommon(project, usage),
      data_storage_bytes_hour: usage.storageByteHours,
      data_transfer_bytes: usage.transferBytes,
      written_data_bytes: usage.writtenBytes,
      compute_time_seconds: Math.round(usage.computeSeconds),
      active_time_seconds: Math.round(usage.activeSeconds),
      consumption_period_start: period.start,
      consumption_period_end: period.end,
    };
  }

  projectListItem(
    project: ProjectTable,
    organization: OrganizationTable | undefined,
    usage: Usage,
  ): Record<string, unknown> {
    return present({
      ...this.#projectCommon(project, usage),
      active_time: Math.round(usage.activeSeconds),
      org_name: organization?.name,
      deleted_at: time(project.deleted_at),
      recoverable_until: time(project.purge_at),
    });
  }

  #projectCommon(project: ProjectTable, usage: Usage): Record<string, unknown> {
    return {
      id: project.id,
      name: project.name,
      platform_id: platformId,
      region_id: project.region_id,
      pg_version: project.pg_version,
      org_id: project.organization_id,
      owner_id: project.owner_id,
      provisioner,
      proxy_host: this.#proxyHost,
      settings: {
        allowed_ips: {ips: [], protected_branches_only: false},
        enable_logical_replication: false,
        ...(JSON.parse(project.settings) as object),
      },
      default_endpoint_settings: JSON.parse(project.default_endpoint_settings) as object,
      store_passwords: project.store_passwords === 1,
      history_retention_seconds: project.history_retention_seconds,
      branch_logical_size_limit: 0,
      branch_logical_size_limit_bytes: 0,
      cpu_used_sec: Math.round(usage.computeSeconds),
      synthetic_storage_size: usage.syntheticBytes,
      ...(usage.lastActiveMs === undefined ? {} : {compute_last_active_at: formatTime(usage.lastActiveMs)}),
      creation_source: creationSource,
      created_at: formatTime(project.created_at),
      updated_at: formatTime(project.updated_at),
    };
  }

  /** `usage`: undefined for one that was made a moment ago. */
  branch(branch: BranchTable, facts: StorageFacts = {}, usage?: Usage): Record<string, unknown> {
    return present({
      id: branch.id,
      project_id: branch.project_id,
      parent_id: branch.parent_id,
      parent_lsn: branch.parent_lsn === null ? undefined : formatLsn(branch.parent_lsn as Lsn),
      parent_timestamp: time(branch.parent_timestamp),
      name: branch.name,
      current_state: branch.state,
      pending_state: branch.pending_state,
      state_changed_at: formatTime(branch.state_changed_at),
      logical_size: facts.logicalSizeBytes,
      ingest_error: facts.ingestError,
      creation_source: branch.creation_source,
      primary: branch.is_default === 1,
      default: branch.is_default === 1,
      protected: branch.protected === 1,
      init_source: branch.parent_id === null && branch.init_source === 'parent-data' ? undefined : branch.init_source,
      cpu_used_sec: Math.round(usage?.computeSeconds ?? 0),
      compute_time_seconds: Math.round(usage?.computeSeconds ?? 0),
      active_time_seconds: Math.round(usage?.activeSeconds ?? 0),
      written_data_bytes: usage?.writtenBytes ?? 0,
      data_transfer_bytes: usage?.transferBytes ?? 0,
      restored_from: branch.restored_from,
      restored_as: branch.restore_target,
      restore_status: branch.restore_status,
      // Not of Neon's API: what comes back if all safekeepers' disks are lost, and where the branch went on when they were.
      wal_archived_lsn: facts.archivedLsn === undefined ? undefined : formatLsn(facts.archivedLsn),
      wal_restored_lsn: facts.restoredLsn === undefined ? undefined : formatLsn(facts.restoredLsn),
      created_at: formatTime(branch.created_at),
      updated_at: formatTime(branch.updated_at),
      expires_at: time(branch.expires_at),
      ttl_interval_seconds:
        branch.expires_at === null
          ? undefined
          : Math.max(0, Math.round((branch.expires_at - branch.created_at) / 1000)),
      last_reset_at: time(branch.last_reset_at),
      recovery:
        branch.deleted_at === null || branch.purge_at === null
          ? undefined
          : {
              deleted_at: formatTime(branch.deleted_at),
              recoverable_until: formatTime(branch.purge_at),
              deletion_method: branch.deletion_method === 'ttl' ? 'ttl' : 'user',
            },
    });
  }

  /** `report`: what its compute says, for a replica's lag. */
  endpoint(endpoint: EndpointTable, report?: ComputeReport): Record<string, unknown> {
    const {replica} = report ?? {};
    return present({
      // Not of Neon's API.
      replication:
        replica === undefined
          ? undefined
          : {replay_lsn: replica.replayLsn, lag_bytes: replica.lagBytes, lag_seconds: replica.lagSeconds},
      host: this.endpointHost(endpoint.id),
      id: endpoint.id,
      name: endpoint.name,
      project_id: endpoint.project_id,
      branch_id: endpoint.branch_id,
      autoscaling_limit_min_cu: endpoint.autoscaling_limit_min_cu,
      autoscaling_limit_max_cu: endpoint.autoscaling_limit_max_cu,
      region_id: this.#config.regionId,
      type: endpoint.type,
      current_state: endpoint.current_state,
      pending_state: endpoint.pending_state,
      settings: JSON.parse(endpoint.settings) as object,
      pooler_enabled: endpoint.pooler_enabled === 1,
      pooler_mode: 'transaction',
      disabled: endpoint.disabled === 1,
      passwordless_access: false,
      last_active: time(endpoint.last_active),
      creation_source: creationSource,
      created_at: formatTime(endpoint.created_at),
      updated_at: formatTime(endpoint.updated_at),
      started_at: time(endpoint.started_at),
      suspended_at: time(endpoint.suspended_at),
      proxy_host: this.#proxyHost,
      suspend_timeout_seconds: endpoint.suspend_timeout_seconds,
      provisioner,
    });
  }

  operation(operation: OperationTable): Record<string, unknown> {
    return present({
      id: operation.id,
      project_id: operation.project_id,
      branch_id: operation.branch_id,
      endpoint_id: operation.endpoint_id,
      action: operation.action,
      status: operation.status,
      error: operation.error,
      failures_count: operation.failures_count,
      retry_at: time(operation.retry_at),
      created_at: formatTime(operation.created_at),
      updated_at: formatTime(operation.updated_at),
      // Not of Neon's API: where a branch goes on that came back from the object store.
      restored_lsn: operation.kind === 'restore_from_archive' ? restoredLsn(operation) : undefined,
      total_duration_ms: (operation.finished_at ?? operation.updated_at) - operation.created_at,
    });
  }

  role(role: RoleTable, password?: string): Record<string, unknown> {
    return present({
      branch_id: role.branch_id,
      name: role.name,
      password,
      protected: role.protected === 1,
      created_at: formatTime(role.created_at),
      updated_at: formatTime(role.updated_at),
    });
  }

  database(database: DatabaseTable): Record<string, unknown> {
    return {
      id: database.id,
      branch_id: database.branch_id,
      name: database.name,
      owner_name: database.owner_name,
      created_at: formatTime(database.created_at),
      updated_at: formatTime(database.updated_at),
    };
  }

  organization(organization: OrganizationTable): Record<string, unknown> {
    return {
      id: organization.id,
      name: organization.name,
      handle: organization.handle,
      plan: 'free',
      created_at: formatTime(organization.created_at),
      updated_at: formatTime(organization.updated_at),
      managed_by: 'console',
      allow_hipaa_projects: false,
      require_mfa: false,
    };
  }

  apiKey(key: ApiKeyTable, userName: string): Record<string, unknown> {
    return present({
      id: key.id,
      name: key.name,
      created_at: formatTime(key.created_at),
      created_by: {id: key.user_id, name: userName, image: ''},
      last_used_at: time(key.last_used_at),
      last_used_from_addr: '',
      project_id: key.project_id,
    });
  }

  /** The host and the pooled host stand literally inside the URI: clients replace one by the other. */
  connection(options: {
    endpointId: string;
    role: string;
    password: string | undefined;
    database: string;
    address?: string;
  }): {
    connection_uri: string;
    connection_parameters: Record<string, unknown>;
  } {
    const {endpointId, role, password, database} = options;
    const host = options.address ?? this.endpointHost(endpointId);
    const user = encodeURIComponent(role) + (password === undefined ? '' : `:${encodeURIComponent(password)}`);
    const parameters = options.address === undefined ? '?sslmode=require&channel_binding=require' : '';
    return {
      connection_uri: `postgresql://${user}@${host}/${encodeURIComponent(database)}${parameters}`,
      connection_parameters: present({
        database,
        password,
        role,
        host,
        pooler_host: options.address ?? host.replace(endpointId, `${endpointId}-pooler`),
      }),
    };
  }
}
