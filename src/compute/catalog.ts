/** Brings roles and databases of a branch to what the spec says. Every step may be repeated. */
import pg from 'pg';
import type {ComputeSpec} from '#wire/compute-spec.ts';
import {adminRole} from '#compute/postgres-settings.ts';

/** Members are customers: they may use what a project's owner may use, without being superuser. */
export const ownerGroup = 'pagoda_superuser';

const ident = (name: string): string => pg.escapeIdentifier(name);
const text = (value: string): string => pg.escapeLiteral(value);

export interface PostgresAddress {
  readonly socketDir: string;
  readonly port: number;
}

/** Opens a superuser session on the socket only the agent can reach. The caller ends it. */
export async function connectAdmin(
  address: PostgresAddress,
  database = 'postgres',
  user = adminRole,
): Promise<pg.Client> {
  const client = new pg.Client({
    host: address.socketDir,
    port: address.port,
    user,
    database,
    application_name: 'pagoda-agent',
    // Nothing that a customer has put into a database is ever found by one of our names.
    options: '-c search_path=pg_catalog,pg_temp -c role=none -c row_security=off',
    // The first session of a database reads its catalogs from a pageserver that may be busy.
    connectionTimeoutMillis: 120_000,
  });
  client.on('error', () => {}); // a lost session surfaces at its next query
  await client.connect();
  return client;
}

/** Throws the Postgres error of the first statement that fails, with the role or database it was about. */
export async function applyCatalog(address: PostgresAddress, spec: ComputeSpec): Promise<void> {
  const client = await connectAdmin(address);
  try {
    await applyGroup(client);
    for (const name of spec.droppedDatabases ?? [])
      await client.query(`drop database if exists ${ident(name)} with (force)`);
    await applyRoles(client, spec);
    await applyDatabases(client, address, spec);
    for (const name of spec.droppedRoles ?? []) await dropRole(client, address, name);
  } finally {
    await client.end();
  }
}

export async function applyGroup(client: pg.Client): Promise<void> {
  const {rowCount} = await client.query(`select from pg_roles where rolname = ${text(ownerGroup)}`);
  if (rowCount !== 0) return;
  await client.query(
    `create role ${ident(ownerGroup)} nologin createdb createrole inherit bypassrls;
     grant pg_read_all_data, pg_write_all_data, pg_monitor, pg_signal_backend to ${ident(ownerGroup)} with admin option`,
  );
}

async function applyRoles(client: pg.Client, spec: ComputeSpec): Promise<void> {
  const {rows} = await client.query<{rolname: string; rolpassword: string | null; rolcanlogin: boolean}>(
    'select rolname, rolpassword, rolcanlogin from pg_authid',
  );
  const existing = new Map(rows.map((r) => [r.rolname, r]));
  for (const role of spec.roles) {
    const now = existing.get(role.name);
    const login = role.canLogin ? 'login' : 'nologin';
    const password = role.scramVerifier === undefined ? '' : ` password ${text(role.scramVerifier)}`;
    if (!now)
      await client.query(
        `create role ${ident(role.name)} ${login} createdb createrole inherit bypassrls${password}; grant ${ident(ownerGroup)} to ${ident(role.name)} with admin option`,
      );
    else if (
      (role.scramVerifier !== undefined && now.rolpassword !== role.scramVerifier) ||
      now.rolcanlogin !== role.canLogin
    )
      await client.query(`alter role ${ident(role.name)} ${login}${password}`);
  }
}

/** Throws when a role of the spec is not there: who comes in by it would be told no more than that the password is wrong. */
export async function requireRoles(address: PostgresAddress, spec: ComputeSpec): Promise<void> {
  const client = await connectAdmin(address);
  try {
    const {rows} = await client.query<{rolname: string}>('select rolname from pg_authid');
    const existing = new Set(rows.map((r) => r.rolname));
    const missing = spec.roles.filter(({name}) => !existing.has(name));
    if (missing.length > 0)
      throw new Error(
        `compute ${spec.endpointId} (branch ${spec.branchId}) at ${spec.startLsn} lacks roles that were just made: ${missing.map(({name}) => name).join(', ')}`,
      );
  } finally {
    await client.end();
  }
}

async function applyDatabases(client: pg.Client, address: PostgresAddress, spec: ComputeSpec): Promise<void> {
  const {rows} = await client.query<{datname: string; owner: string}>(
    'select datname, pg_get_userbyid(datdba) as owner from pg_database',
  );
  const existing = new Map(rows.map((r) => [r.datname, r.owner]));
  for (const database of spec.databases) {
    const owner = existing.get(database.name);
    if (owner === undefined) {
      await client.query(`create database ${ident(database.name)} owner ${ident(database.owner)}`);
      await ownPublicSchema(address, database.name, database.owner);
    } else if (owner !== database.owner)
      await client.query(`alter database ${ident(database.name)} owner to ${ident(database.owner)}`);
  }
}

/** Since PostgreSQL 15 only the owner of `public` may create in it; a customer expects to own it. */
export async function ownPublicSchema(address: PostgresAddress, database: string, owner: string): Promise<void> {
  const client = await connectAdmin(address, database);
  try {
    await client.query(`alter schema public owner to ${ident(owner)}`);
  } finally {
    await client.end();
  }
}

async function dropRole(client: pg.Client, address: PostgresAddress, name: string): Promise<void> {
  const {rowCount} = await client.query(`select from pg_roles where rolname = ${text(name)}`);
  if (rowCount === 0) return;
  const {rows} = await client.query<{datname: string}>('select datname from pg_database where datallowconn');
  for (const {datname} of rows) {
    const there = await connectAdmin(address, datname);
    try {
      // Never to the superuser: a function that runs with its owner's rights would become one of the superuser's.
      await there.query(`reassign owned by ${ident(name)} to ${ident(ownerGroup)}; drop owned by ${ident(name)}`);
    } finally {
      await there.end();
    }
  }
  await client.query(`drop role ${ident(name)}`);
}
