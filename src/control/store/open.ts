/** Opens the metadata database and brings its tables to the newest form. */
import {Kysely, PostgresDialect, SqliteDialect} from 'kysely';
import {type Migration, Migrator} from 'kysely/migration';
import {dirname, systemDisk} from '#runtime/disk.ts';
import {openSqlite} from '#runtime/sqlite.ts';
import {migrations} from '#control/store/migrations.ts';
import type {Store, Tables} from '#control/store/schema.ts';

/** `postgres://…` or the path of a SQLite file (made when missing; `:memory:` for tests). Migrations only go forward. */
export async function openStore(database: string): Promise<Store> {
  const store = new Kysely<Tables>({
    dialect: /^postgres(ql)?:\/\//.test(database) ? await postgres(database) : sqlite(database),
  });
  const migrator = new Migrator({
    db: store,
    provider: {getMigrations: () => Promise.resolve(migrations as Readonly<Record<string, Migration>>)},
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

function sqlite(path: string): SqliteDialect {
  if (path !== ':memory:') systemDisk.makeDirectory(dirname(path));
  return new SqliteDialect({database: openSqlite(path)});
}

async function postgres(url: string): Promise<PostgresDialect> {
  // Only who uses it loads it.
  const {default: pg} = await import('pg');
  const int8 = 20;
  const types = {
    getTypeParser: (oid: number, format?: 'text' | 'binary') =>
      // Every bigint of ours is below 2^53 (times, LSNs, counters).
      oid === int8 ? Number : pg.types.getTypeParser(oid, format as 'text'),
  };
  return new PostgresDialect({pool: new pg.Pool({connectionString: url, max: 10, types: types as never})});
}
