/** Opens the metadata database and brings its tables to the newest form. */
import {
  CompiledQuery,
  type DatabaseConnection,
  type Dialect,
  type Driver,
  Kysely,
  PostgresDialect,
  type PostgresDialectConfig,
  PostgresDriver,
  SqliteDialect,
  type TransactionSettings,
  sql,
} from 'kysely';
import {type Migration, Migrator} from 'kysely/migration';
import {dirname, systemDisk} from '#runtime/disk.ts';
import {openSqlite} from '#runtime/sqlite.ts';
import {migrations} from '#control/store/migrations.ts';
import type {Store, Tables} from '#control/store/schema.ts';

/**
 * `postgres://…` or the path of a SQLite file (made when missing; `:memory:` for tests). Migrations only go forward. In PostgreSQL the
 * tables are in the schema that comes first in the role's search_path, which must exist.
 */
export async function openStore(database: string): Promise<Store> {
  const store = await connectStore(database);
  const schema = isPostgres(database) ? await schemaOf(store) : undefined;
  const migrator = new Migrator({
    db: store,
    provider: {getMigrations: () => Promise.resolve(migrations as Readonly<Record<string, Migration>>)},
    // Another schema of the database may hold the tables of another installation.
    ...(schema === undefined ? {} : {migrationTableSchema: schema}),
  });
  const {error, results} = await migrator.migrateToLatest();
  if (error !== undefined) {
    const failed = results?.find((r) => r.status === 'Error')?.migrationName;
    await store.destroy();
    throw new Error(
      `the metadata database could not be brought to this version${failed === undefined ? '' : ` (step ${failed})`}: ${(error as Error).message}`,
      {
        cause: error,
      },
    );
  }
  return store;
}

/** The database as it is. */
export async function connectStore(database: string): Promise<Store> {
  return new Kysely<Tables>({dialect: isPostgres(database) ? await postgres(database) : sqlite(database)});
}

function isPostgres(database: string): boolean {
  return /^postgres(ql)?:\/\//.test(database);
}

function sqlite(path: string): SqliteDialect {
  if (path !== ':memory:') systemDisk.makeDirectory(dirname(path));
  return new SqliteDialect({database: openSqlite(path)});
}

async function postgres(url: string): Promise<Dialect> {
  // Only who uses it loads it.
  const {default: pg} = await import('pg');
  const int8 = 20;
  const types = {
    getTypeParser: (oid: number, format?: 'text' | 'binary') =>
      // Every bigint of ours is below 2^53 (times, LSNs, counters).
      oid === int8 ? Number : pg.types.getTypeParser(oid, format as 'text'),
  };
  const pool = new pg.Pool({connectionString: url, max: 10, types: types as never});
  // An idle connection that breaks is replaced by the next query; nobody waits for it.
  pool.on('error', () => {});
  return new SerialPostgresDialect({pool});
}

async function schemaOf(store: Store): Promise<string> {
  const {rows} = await sql<{schema: string | null}>`select current_schema() as schema`.execute(store);
  const schema = rows[0]?.schema;
  if (schema != null) return schema;
  await store.destroy();
  throw new Error(
    'the metadata database has no schema to work in: the role has no usable schema in its search_path; make one, or change the search_path',
  );
}

/** Of the locks of one database; the number has no meaning. */
const transactionLock = 7_246_303;

/**
 * Transactions run one after the other, as they do on SQLite: each reads before it writes (is the lock free, which number comes
 * next), and two at once would both find the same. Single statements are not held up.
 */
class SerialPostgresDialect extends PostgresDialect {
  readonly #config: PostgresDialectConfig;

  constructor(config: PostgresDialectConfig) {
    super(config);
    this.#config = config;
  }

  override createDriver(): Driver {
    return new SerialPostgresDriver(this.#config);
  }
}

class SerialPostgresDriver extends PostgresDriver {
  override async beginTransaction(connection: DatabaseConnection, settings: TransactionSettings): Promise<void> {
    await super.beginTransaction(connection, settings);
    await connection.executeQuery(
      CompiledQuery.raw(`select pg_advisory_xact_lock(${transactionLock}, hashtext(current_schema()))`),
    );
  }
}
