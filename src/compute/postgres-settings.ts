/** How a compute's Postgres is configured, and why. */
import type {ComputeSpec} from '#wire/compute-spec.ts';

/** Bootstrap superuser of every project: the agent's own. Customers never log in as it. */
export const adminRole = 'pagoda_admin';
/** application_name of the proposer, the one synchronous standby. */
export const standbyName = 'pagoda';

/** Settings that make a compute a compute; neither the project nor a user can change them. */
export function storageSettings(options: {
  extensionLibrary: string;
  agentSocket: string;
  socketDir: string;
  port: number;
  /** Further ones, each a name or a list with commas. */
  preloadLibraries?: readonly (string | undefined)[];
}): Record<string, string> {
  const libraries = [options.extensionLibrary, ...(options.preloadLibraries ?? [])].flatMap((l) =>
    (l ?? '').split(','),
  );
  return {
    shared_preload_libraries: [...new Set(libraries.map((l) => l.trim()))].filter((l) => l !== '').join(','),
    'pagoda.agent_socket': options.agentSocket,
    listen_addresses: '127.0.0.1',
    port: String(options.port),
    unix_socket_directories: options.socketDir,
    unix_socket_permissions: '0700',
    // A commit is durable when a quorum of safekeepers has it; the local disk is a cache (design D4).
    fsync: 'off',
    full_page_writes: 'off',
    wal_init_zero: 'off',
    synchronous_standby_names: standbyName,
    synchronous_commit: 'on',
    max_slot_wal_keep_size: '-1',
    wal_keep_size: '64MB',
    archive_mode: 'off',
    // A crashed Postgres is started anew from storage by the agent (design D3).
    restart_after_crash: 'off',
    data_sync_retry: 'off',
    hot_standby: 'off',
    logging_collector: 'off',
    log_destination: 'stderr',
    password_encryption: 'scram-sha-256',
    ssl: 'off',
  };
}

/** What a project may override through its settings. */
export function defaultSettings(): Record<string, string> {
  return {
    wal_level: 'replica',
    max_wal_senders: '10',
    max_replication_slots: '10',
    max_connections: '112',
    shared_buffers: '128MB',
    max_prepared_transactions: '64',
    max_wal_size: '1GB',
    checkpoint_timeout: '10min',
    // The extension turns prefetch hints into fetches that run ahead of the reader.
    effective_io_concurrency: '16',
    log_line_prefix: '%m [%p] %q%u@%d ',
    log_checkpoints: 'off',
    timezone: 'UTC',
    log_timezone: 'UTC',
  };
}

const refused = new Set([
  ...Object.keys(storageSettings({extensionLibrary: '', agentSocket: '', socketDir: '', port: 0})),
  'data_directory',
  'hba_file',
  'ident_file',
  'config_file',
]);

/** postgresql.conf: defaults, then what the project asks for. Throws an Error that names a setting that storage owns. */
export function postgresqlConf(spec: ComputeSpec): string {
  const settings = defaultSettings();
  for (const [name, value] of Object.entries(spec.settings)) {
    if (name === 'shared_preload_libraries') continue; // joined with ours on the command line
    if (!/^[a-z_][a-z0-9_.]*$/i.test(name))
      throw new Error(`compute ${spec.endpointId}: ${JSON.stringify(name)} is not the name of a setting`);
    if (refused.has(name.toLowerCase()) || name.toLowerCase().startsWith('pagoda.'))
      throw new Error(`compute ${spec.endpointId}: the setting ${name} belongs to storage and cannot be changed`);
    settings[name] = value;
  }
  const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'`);
  return `# Written by the compute agent at every start.\n${lines.join('\n')}\n`;
}

/** The socket directory is 0700: only the agent and Postgres itself get in there without a password. */
export const hostBasedAuthentication = `# Written by the compute agent at every start.
local all all trust
local replication ${adminRole} trust
host all ${adminRole} all reject
# Physical replication would copy relation files that are not there; logical replication connects to a database.
host replication all all reject
host all all 127.0.0.1/32 scram-sha-256
`;
