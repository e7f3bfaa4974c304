/** SQLite as Node has it, in the shape that Kysely's SqliteDialect asks for. */
import {DatabaseSync, type SQLInputValue, type StatementSync} from 'node:sqlite';

export interface SqliteStatement {
  /** True when it returns rows. */
  readonly reader: boolean;
  all(parameters: readonly unknown[]): unknown[];
  run(parameters: readonly unknown[]): {changes: number | bigint; lastInsertRowid: number | bigint};
  iterate(parameters: readonly unknown[]): IterableIterator<unknown>;
}

export interface SqliteDatabase {
  close(): void;
  prepare(sql: string): SqliteStatement;
}

const statementsMax = 300;

/**
 * Opens (or makes) a database; `:memory:` for tests. A committed transaction is on disk (synchronous = FULL): generations
 * that were issued must never be issued again.
 */
export function openSqlite(path: string): SqliteDatabase {
  const database = new DatabaseSync(path);
  database.exec(
    'PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000',
  );
  const statements = new Map<string, SqliteStatement>();
  return {
    close: () => database.close(),
    prepare(sql) {
      let statement = statements.get(sql);
      if (!statement) {
        if (statements.size >= statementsMax) statements.clear();
        statement = wrap(database.prepare(sql));
        statements.set(sql, statement);
      }
      return statement;
    },
  };
}

function wrap(statement: StatementSync): SqliteStatement {
  const bind = (parameters: readonly unknown[]): SQLInputValue[] => parameters as SQLInputValue[];
  return {
    reader: statement.columns().length > 0,
    all: (parameters) => statement.all(...bind(parameters)),
    run: (parameters) => statement.run(...bind(parameters)),
    iterate: (parameters) => statement.iterate(...bind(parameters)),
  };
}
