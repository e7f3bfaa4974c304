/** Request schemas of API v2: Fastify validates with them, handlers get their types. */
import {Type} from 'typebox';

const optional = Type.Optional;

/** Neon's clients send fields that we do not have (provisioner and the like): they are ignored, not refused. */
const open = {additionalProperties: true} as const;

export const identifier = Type.String({minLength: 1, maxLength: 63, pattern: '^[^\\u0000-\\u001f\\u007f]+$'});
export const displayName = Type.String({
  minLength: 1,
  maxLength: 256,
  pattern: '^[^\\u0000-\\u001f\\u007f]*\\S[^\\u0000-\\u001f\\u007f]*$',
});
export const lsnText = Type.String({pattern: '^[0-9a-fA-F]{1,8}/[0-9a-fA-F]{1,8}$'});
export const timestampText = Type.String({maxLength: 40});
const computeUnits = Type.Number({minimum: 0.25, maximum: 56});
const suspendTimeout = Type.Integer({minimum: -1, maximum: 604_800});
const historyRetention = Type.Integer({minimum: 0, maximum: 2_592_000});
/** Names and values of PostgreSQL settings; Postgres itself judges them. */
const pgSettings = Type.Record(
  Type.String({pattern: '^[A-Za-z_][A-Za-z0-9_.]*$'}),
  Type.Union([Type.String(), Type.Number(), Type.Boolean()]),
);

const endpointSettings = Type.Object(
  {pg_settings: optional(pgSettings), pgbouncer_settings: optional(Type.Record(Type.String(), Type.Unknown()))},
  open,
);
const defaultEndpointSettings = Type.Object(
  {
    pg_settings: optional(pgSettings),
    pgbouncer_settings: optional(Type.Record(Type.String(), Type.Unknown())),
    autoscaling_limit_min_cu: optional(computeUnits),
    autoscaling_limit_max_cu: optional(computeUnits),
    suspend_timeout_seconds: optional(suspendTimeout),
  },
  open,
);
const projectSettings = Type.Object(
  {
    quota: optional(Type.Object({}, open)),
    allowed_ips: optional(
      Type.Object(
        {
          ips: optional(Type.Array(Type.String({maxLength: 100}), {maxItems: 1000})),
          protected_branches_only: optional(Type.Boolean()),
        },
        open,
      ),
    ),
    enable_logical_replication: optional(Type.Boolean()),
    maintenance_window: optional(Type.Object({}, open)),
    block_public_connections: optional(Type.Boolean()),
    block_vpc_connections: optional(Type.Boolean()),
  },
  open,
);

export const listQuery = Type.Object({
  limit: optional(Type.Integer({minimum: 1, maximum: 400})),
  cursor: optional(Type.String({maxLength: 500})),
  search: optional(Type.String({maxLength: 256})),
  org_id: optional(Type.String({maxLength: 60})),
  recoverable: optional(Type.Boolean()),
});

export const branchListQuery = Type.Object({
  limit: optional(Type.Integer({minimum: 1, maximum: 10_000})),
  cursor: optional(Type.String({maxLength: 500})),
  search: optional(Type.String({maxLength: 256})),
  sort_by: optional(Type.Union([Type.Literal('name'), Type.Literal('created_at'), Type.Literal('updated_at')])),
  sort_order: optional(Type.Union([Type.Literal('asc'), Type.Literal('desc')])),
  include_deleted: optional(Type.Boolean()),
});

export const createProjectBody = Type.Object({
  project: Type.Object(
    {
      name: optional(displayName),
      region_id: optional(Type.String({maxLength: 60})),
      org_id: optional(Type.String({maxLength: 60})),
      pg_version: optional(Type.Integer()),
      branch: optional(
        Type.Object(
          {name: optional(displayName), role_name: optional(identifier), database_name: optional(identifier)},
          open,
        ),
      ),
      default_endpoint_settings: optional(defaultEndpointSettings),
      autoscaling_limit_min_cu: optional(computeUnits),
      autoscaling_limit_max_cu: optional(computeUnits),
      settings: optional(projectSettings),
      store_passwords: optional(Type.Boolean()),
      history_retention_seconds: optional(historyRetention),
    },
    open,
  ),
});

export const updateProjectBody = Type.Object({
  project: Type.Object(
    {
      name: optional(displayName),
      settings: optional(projectSettings),
      default_endpoint_settings: optional(defaultEndpointSettings),
      history_retention_seconds: optional(historyRetention),
    },
    open,
  ),
});

const endpointOptions = {
  autoscaling_limit_min_cu: optional(computeUnits),
  autoscaling_limit_max_cu: optional(computeUnits),
  suspend_timeout_seconds: optional(suspendTimeout),
  settings: optional(endpointSettings),
  pooler_enabled: optional(Type.Boolean()),
  disabled: optional(Type.Boolean()),
};
const endpointType = Type.Union([Type.Literal('read_write'), Type.Literal('read_only')]);

export const createBranchBody = optional(
  Type.Union([
    Type.Null(),
    Type.Object(
      {
        branch: optional(
          Type.Object(
            {
              name: optional(displayName),
              parent_id: optional(Type.String({maxLength: 60})),
              parent_lsn: optional(lsnText),
              parent_timestamp: optional(timestampText),
              protected: optional(Type.Boolean()),
              init_source: optional(Type.String({maxLength: 40})),
              expires_at: optional(timestampText),
              archived: optional(Type.Boolean()),
            },
            open,
          ),
        ),
        endpoints: optional(Type.Array(Type.Object({type: endpointType, ...endpointOptions}, open), {maxItems: 10})),
      },
      open,
    ),
  ]),
);

export const updateBranchBody = Type.Object({
  branch: Type.Object(
    {
      name: optional(displayName),
      protected: optional(Type.Boolean()),
      expires_at: optional(Type.Union([timestampText, Type.Null()])),
    },
    open,
  ),
});

export const createEndpointBody = Type.Object({
  endpoint: Type.Object(
    {branch_id: Type.String({maxLength: 60}), type: endpointType, name: optional(displayName), ...endpointOptions},
    open,
  ),
});

export const updateEndpointBody = Type.Object({
  endpoint: Type.Object({name: optional(displayName), ...endpointOptions}, open),
});

export const createRoleBody = Type.Object({
  role: Type.Object({name: identifier, no_login: optional(Type.Boolean())}, open),
});
export const createDatabaseBody = Type.Object({
  database: Type.Object({name: identifier, owner_name: identifier}, open),
});
export const updateDatabaseBody = Type.Object({
  database: Type.Object({name: optional(identifier), owner_name: optional(identifier)}, open),
});
export const createApiKeyBody = Type.Object(
  {key_name: Type.String({minLength: 1, maxLength: 64}), project_id: optional(Type.String({maxLength: 60}))},
  open,
);

export const restoreBranchBody = Type.Object(
  {
    source_branch_id: Type.String({maxLength: 60}),
    source_lsn: optional(lsnText),
    source_timestamp: optional(timestampText),
    preserve_under_name: optional(displayName),
  },
  open,
);

export const schemaQuery = Type.Object({
  db_name: identifier,
  lsn: optional(lsnText),
  timestamp: optional(timestampText),
  format: optional(Type.String({maxLength: 20})),
});

export const compareSchemaQuery = Type.Object({
  db_name: identifier,
  base_branch_id: optional(Type.String({maxLength: 60})),
  lsn: optional(lsnText),
  timestamp: optional(timestampText),
  base_lsn: optional(lsnText),
  base_timestamp: optional(timestampText),
});

/** detach_children: our own. The children live on, without a parent. */
export const deleteBranchQuery = Type.Object({
  detach_children: optional(Type.Boolean()),
  hard_delete: optional(Type.Boolean()),
});
export const createSnapshotQuery = Type.Object({
  name: optional(displayName),
  lsn: optional(lsnText),
  timestamp: optional(timestampText),
  expires_at: optional(timestampText),
});
export const updateSnapshotBody = Type.Object({snapshot: Type.Object({name: optional(displayName)}, open)});
export const restoreSnapshotBody = optional(
  Type.Union([
    Type.Null(),
    Type.Object(
      {
        name: optional(displayName),
        target_branch_id: optional(Type.String({maxLength: 60})),
        finalize_restore: optional(Type.Boolean()),
      },
      open,
    ),
  ]),
);

export const connectionUriQuery = Type.Object({
  database_name: identifier,
  role_name: identifier,
  branch_id: optional(Type.String({maxLength: 60})),
  endpoint_id: optional(Type.String({maxLength: 60})),
  pooled: optional(Type.Boolean()),
});

export const finalizeRestoreBody = optional(
  Type.Union([Type.Null(), Type.Object({name: optional(displayName)}, open)]),
);

export const backupScheduleBody = Type.Object(
  {
    schedule: Type.Array(
      Type.Object(
        {
          frequency: Type.Union(
            (['hourly', 'daily', 'weekly', 'monthly', 'yearly'] as const).map((name) => Type.Literal(name)),
          ),
          hour: optional(Type.Integer({minimum: 0, maximum: 23})),
          day: optional(Type.Integer({minimum: 1, maximum: 31})),
          month: optional(Type.Integer({minimum: 1, maximum: 12})),
          retention_seconds: optional(Type.Integer({minimum: 3600, maximum: 3_153_600_000})),
        },
        open,
      ),
      {maxItems: 20},
    ),
  },
  open,
);
