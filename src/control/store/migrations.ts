/** The tables' history. A released step is never edited: what is wrong is put right by a further one. */
import type {Kysely} from 'kysely';
import {sql} from 'kysely';

interface ForwardMigration {
  up(db: Kysely<unknown>): Promise<void>;
}

export const migrations: Readonly<Record<string, ForwardMigration>> = {
  '0001_start': {
    async up(db) {
      await db.schema
        .createTable('meta')
        .addColumn('key', 'text', (c) => c.primaryKey())
        .addColumn('value', 'text', (c) => c.notNull())
        .execute();
      await db.schema
        .createTable('users')
        .addColumn('id', 'text', (c) => c.primaryKey())
        .addColumn('login', 'text', (c) => c.notNull())
        .addColumn('email', 'text', (c) => c.notNull())
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .execute();
      await db.schema
        .createTable('organizations')
        .addColumn('id', 'text', (c) => c.primaryKey())
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('handle', 'text', (c) => c.notNull())
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('updated_at', 'bigint', (c) => c.notNull())
        .execute();
      await db.schema
        .createTable('api_keys')
        .addColumn('id', 'bigint', (c) => c.primaryKey())
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('kind', 'text', (c) => c.notNull())
        .addColumn('user_id', 'text', (c) => c.notNull().references('users.id'))
        .addColumn('organization_id', 'text', (c) => c.references('organizations.id'))
        .addColumn('project_id', 'text')
        .addColumn('key_hash', 'text', (c) => c.notNull().unique())
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('last_used_at', 'bigint')
        .addColumn('revoked_at', 'bigint')
        .execute();
      await db.schema
        .createTable('projects')
        .addColumn('id', 'text', (c) => c.primaryKey())
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('organization_id', 'text', (c) => c.notNull().references('organizations.id'))
        .addColumn('owner_id', 'text', (c) => c.notNull())
        .addColumn('region_id', 'text', (c) => c.notNull())
        .addColumn('pg_version', 'bigint', (c) => c.notNull())
        .addColumn('tenant_id', 'text', (c) => c.notNull().unique())
        .addColumn('system_id', 'text', (c) => c.notNull())
        .addColumn('settings', 'text', (c) => c.notNull())
        .addColumn('default_endpoint_settings', 'text', (c) => c.notNull())
        .addColumn('history_retention_seconds', 'bigint', (c) => c.notNull())
        .addColumn('store_passwords', 'bigint', (c) => c.notNull())
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('updated_at', 'bigint', (c) => c.notNull())
        .addColumn('deleted_at', 'bigint')
        .execute();
      await db.schema
        .createTable('attachments')
        .addColumn('tenant_id', 'text', (c) => c.primaryKey())
        .addColumn('pageserver_id', 'bigint', (c) => c.notNull())
        .addColumn('generation', 'bigint', (c) => c.notNull())
        .execute();
      await db.schema
        .createTable('branches')
        .addColumn('id', 'text', (c) => c.primaryKey())
        .addColumn('project_id', 'text', (c) => c.notNull().references('projects.id'))
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('timeline_id', 'text', (c) => c.notNull().unique())
        .addColumn('parent_id', 'text')
        .addColumn('parent_lsn', 'bigint')
        .addColumn('parent_timestamp', 'bigint')
        .addColumn('state', 'text', (c) => c.notNull())
        .addColumn('pending_state', 'text')
        .addColumn('is_default', 'bigint', (c) => c.notNull())
        .addColumn('protected', 'bigint', (c) => c.notNull())
        .addColumn('init_source', 'text', (c) => c.notNull())
        .addColumn('creation_source', 'text', (c) => c.notNull())
        .addColumn('safekeepers', 'text', (c) => c.notNull())
        .addColumn('catalog_version', 'bigint', (c) => c.notNull())
        .addColumn('catalog_applied', 'bigint', (c) => c.notNull())
        .addColumn('expires_at', 'bigint')
        .addColumn('last_reset_at', 'bigint')
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('updated_at', 'bigint', (c) => c.notNull())
        .addColumn('state_changed_at', 'bigint', (c) => c.notNull())
        .addColumn('deleted_at', 'bigint')
        .execute();
      await sql`create unique index branches_name on branches (project_id, name) where deleted_at is null`.execute(db);
      await sql`create unique index branches_default on branches (project_id) where is_default = 1 and deleted_at is null`.execute(
        db,
      );
      await db.schema
        .createTable('endpoints')
        .addColumn('id', 'text', (c) => c.primaryKey())
        .addColumn('project_id', 'text', (c) => c.notNull().references('projects.id'))
        .addColumn('branch_id', 'text', (c) => c.notNull().references('branches.id'))
        .addColumn('type', 'text', (c) => c.notNull())
        .addColumn('name', 'text')
        .addColumn('autoscaling_limit_min_cu', 'double precision', (c) => c.notNull())
        .addColumn('autoscaling_limit_max_cu', 'double precision', (c) => c.notNull())
        .addColumn('suspend_timeout_seconds', 'bigint', (c) => c.notNull())
        .addColumn('settings', 'text', (c) => c.notNull())
        .addColumn('pooler_enabled', 'bigint', (c) => c.notNull())
        .addColumn('disabled', 'bigint', (c) => c.notNull())
        .addColumn('current_state', 'text', (c) => c.notNull())
        .addColumn('pending_state', 'text')
        .addColumn('last_active', 'bigint')
        .addColumn('started_at', 'bigint')
        .addColumn('suspended_at', 'bigint')
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('updated_at', 'bigint', (c) => c.notNull())
        .addColumn('deleted_at', 'bigint')
        .execute();
      // Two writers on one branch would fence each other for ever.
      await sql`create unique index endpoints_one_writer on endpoints (branch_id) where type = 'read_write' and deleted_at is null`.execute(
        db,
      );
      await db.schema.createIndex('endpoints_project').on('endpoints').column('project_id').execute();
      await db.schema
        .createTable('roles')
        .addColumn('branch_id', 'text', (c) => c.notNull().references('branches.id'))
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('password_sealed', 'text')
        .addColumn('scram_verifier', 'text')
        .addColumn('no_login', 'bigint', (c) => c.notNull())
        .addColumn('protected', 'bigint', (c) => c.notNull())
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('updated_at', 'bigint', (c) => c.notNull())
        .addPrimaryKeyConstraint('roles_key', ['branch_id', 'name'])
        .execute();
      await db.schema
        .createTable('databases')
        .addColumn('id', 'bigint', (c) => c.primaryKey())
        .addColumn('branch_id', 'text', (c) => c.notNull().references('branches.id'))
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('owner_name', 'text', (c) => c.notNull())
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('updated_at', 'bigint', (c) => c.notNull())
        .addUniqueConstraint('databases_name', ['branch_id', 'name'])
        .execute();
      await db.schema
        .createTable('dropped_objects')
        .addColumn('branch_id', 'text', (c) => c.notNull().references('branches.id'))
        .addColumn('kind', 'text', (c) => c.notNull())
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('version', 'bigint', (c) => c.notNull())
        .addPrimaryKeyConstraint('dropped_objects_key', ['branch_id', 'kind', 'name'])
        .execute();
      await db.schema
        .createTable('operations')
        .addColumn('id', 'text', (c) => c.primaryKey())
        .addColumn('seq', 'bigint', (c) => c.notNull().unique())
        .addColumn('project_id', 'text', (c) => c.notNull())
        .addColumn('branch_id', 'text')
        .addColumn('endpoint_id', 'text')
        .addColumn('action', 'text', (c) => c.notNull())
        .addColumn('kind', 'text', (c) => c.notNull())
        .addColumn('locks', 'text', (c) => c.notNull())
        .addColumn('status', 'text', (c) => c.notNull())
        .addColumn('step', 'bigint', (c) => c.notNull())
        .addColumn('state', 'text', (c) => c.notNull())
        .addColumn('failures_count', 'bigint', (c) => c.notNull())
        .addColumn('error', 'text')
        .addColumn('retry_at', 'bigint')
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('updated_at', 'bigint', (c) => c.notNull())
        .addColumn('finished_at', 'bigint')
        .execute();
      await db.schema.createIndex('operations_project').on('operations').columns(['project_id', 'seq']).execute();
    },
  },
  '0003_points': {
    async up(db) {
      await db.schema
        .alterTable('branches')
        .addColumn('hidden', 'bigint', (c) => c.notNull().defaultTo(0))
        .execute();
      await db.schema.alterTable('endpoints').addColumn('static_lsn', 'bigint').execute();
      await db.schema
        .alterTable('endpoints')
        .addColumn('active_ms', 'bigint', (c) => c.notNull().defaultTo(0))
        .execute();
      await sql`create unique index endpoints_one_static on endpoints (branch_id, static_lsn) where static_lsn is not null and deleted_at is null`.execute(
        db,
      );
      await db.schema
        .createTable('snapshots')
        .addColumn('id', 'text', (c) => c.primaryKey())
        .addColumn('project_id', 'text', (c) => c.notNull().references('projects.id'))
        .addColumn('name', 'text', (c) => c.notNull())
        .addColumn('source_branch_id', 'text', (c) => c.notNull())
        .addColumn('branch_id', 'text', (c) => c.notNull().references('branches.id'))
        .addColumn('manual', 'bigint', (c) => c.notNull())
        .addColumn('expires_at', 'bigint')
        .addColumn('created_at', 'bigint', (c) => c.notNull())
        .addColumn('deleted_at', 'bigint')
        .execute();
    },
  },
  '0004_attachments_of_shards': {
    async up(db) {
      await db.schema.alterTable('attachments').renameTo('attachments_of_tenants').execute();
      await db.schema
        .createTable('attachments')
        .addColumn('tenant_id', 'text', (c) => c.notNull())
        .addColumn('shard_number', 'bigint', (c) => c.notNull())
        .addColumn('shard_count', 'bigint', (c) => c.notNull())
        .addColumn('pageserver_id', 'bigint', (c) => c.notNull())
        .addColumn('generation', 'bigint', (c) => c.notNull())
        .addColumn('secondary_id', 'bigint')
        .addPrimaryKeyConstraint('attachments_key', ['tenant_id', 'shard_number'])
        .execute();
      await sql`insert into attachments (tenant_id, shard_number, shard_count, pageserver_id, generation)
        select tenant_id, 0, 1, pageserver_id, generation from attachments_of_tenants`.execute(db);
      await db.schema.dropTable('attachments_of_tenants').execute();
      await db.schema
        .createTable('pageservers')
        .addColumn('node_id', 'bigint', (c) => c.primaryKey())
        .addColumn('host', 'text', (c) => c.notNull())
        .addColumn('port', 'bigint', (c) => c.notNull())
        .addColumn('http_port', 'bigint', (c) => c.notNull())
        .addColumn('zone', 'text', (c) => c.notNull())
        .addColumn('retired', 'bigint', (c) => c.notNull())
        .execute();
    },
  },
  '0007_usage': {
    async up(db) {
      await db.schema
        .createTable('usage')
        .addColumn('branch_id', 'text', (c) => c.primaryKey())
        .addColumn('project_id', 'text', (c) => c.notNull())
        .addColumn('timeline_id', 'text', (c) => c.notNull())
        .addColumn('wal_lsn', 'bigint', (c) => c.notNull())
        .addColumn('written_bytes', 'bigint', (c) => c.notNull())
        .addColumn('transfer_bytes', 'bigint', (c) => c.notNull())
        .addColumn('storage_byte_hours', 'bigint', (c) => c.notNull())
        .addColumn('logical_bytes', 'bigint', (c) => c.notNull())
        .addColumn('sampled_at', 'bigint', (c) => c.notNull())
        .execute();
      await db.schema.createIndex('usage_project').on('usage').column('project_id').execute();
      for (const column of ['backup_schedule', 'restored_from', 'restore_target', 'restore_status'])
        await db.schema.alterTable('branches').addColumn(column, 'text').execute();
    },
  },
  '0008_recovery': {
    async up(db) {
      for (const table of ['projects', 'branches'])
        await db.schema.alterTable(table).addColumn('purge_at', 'bigint').execute();
      await db.schema.alterTable('branches').addColumn('deletion_method', 'text').execute();
      await db.schema
        .createTable('safekeeper_debts')
        .addColumn('node_id', 'bigint', (c) => c.notNull())
        .addColumn('tenant_id', 'text', (c) => c.notNull())
        .addColumn('timeline_id', 'text', (c) => c.notNull())
        .addPrimaryKeyConstraint('safekeeper_debts_key', ['node_id', 'timeline_id'])
        .execute();
    },
  },
  '0009_catalog_lsn': {
    async up(db) {
      await db.schema.alterTable('branches').addColumn('catalog_applied_lsn', 'bigint').execute();
    },
  },
  '0002_safekeepers': {
    async up(db) {
      await db.schema
        .createTable('safekeepers')
        .addColumn('node_id', 'bigint', (c) => c.primaryKey())
        .addColumn('host', 'text', (c) => c.notNull())
        .addColumn('port', 'bigint', (c) => c.notNull())
        .addColumn('http_port', 'bigint', (c) => c.notNull())
        .addColumn('zone', 'text', (c) => c.notNull())
        .addColumn('retired', 'bigint', (c) => c.notNull())
        .execute();
    },
  },
};
