/**
 * The schema of one compute's databases, and no rows, into this one's: pg_dump there, pg_restore here.
 *
 * What comes over was written by customers, and some of it runs while it is restored (a function in a default or a check). So it is
 * restored by a role that may do what all customers' roles together may do, and nothing more. Who owns what is said afterwards,
 * by statements that run nobody's code.
 */
import pg from 'pg';
import type {Disk} from '#runtime/disk.ts';
import {joinPath} from '#runtime/disk.ts';
import {changeOwner} from '#runtime/permissions.ts';
import {runProcess} from '#runtime/process.ts';
import {connectAdmin, ownerGroup, ownPublicSchema, type PostgresAddress} from '#compute/catalog.ts';
import {alterOwners} from '#compute/owned-objects.ts';
import type {DatabaseSpec, SchemaSource} from '#wire/compute-spec.ts';

const ident = (name: string): string => pg.escapeIdentifier(name);
const text = (value: string): string => pg.escapeLiteral(value);

/** Restores; gone when the copy is done. */
const restorer = 'pagoda_restorer';

export interface SchemaCopyMachine {
  readonly address: PostgresAddress;
  readonly binDir: string;
  readonly systemUser: string;
  readonly disk: Disk;
  /** A folder that the system user may write into. */
  readonly scratch: string;
}

/** May be repeated: databases are made anew. Throws with the database's name and what PostgreSQL's programs said. */
export async function copySchema(machine: SchemaCopyMachine, source: SchemaSource): Promise<void> {
  const admin = await connectAdmin(machine.address);
  try {
    await copyRoles(admin, source);
    const {rows: roles} = await admin.query<{rolname: string}>(
      `select rolname from pg_roles where oid >= 16384 and not rolsuper and rolname <> ${text(restorer)}`,
    );
    await admin.query(`create role ${ident(restorer)} login createdb createrole bypassrls`);
    for (const {rolname} of roles) await admin.query(`grant ${ident(rolname)} to ${ident(restorer)}`);
    for (const database of source.databases) {
      if (!(await makeDatabase(machine, admin, source, database))) continue;
      await copyDatabase(machine, source, database).catch((error: unknown) => {
        throw new Error(`database ${database.name}: ${(error as Error).message}`, {cause: error});
      });
    }
    await admin.query(`drop role ${ident(restorer)}`);
  } finally {
    await admin.end();
  }
}

async function readFrom<Row extends pg.QueryResultRow>(
  {host, port, user, password}: SchemaSource,
  database: string,
  sql: string,
): Promise<Row[]> {
  const client = new pg.Client({
    host,
    port,
    user,
    password,
    database,
    application_name: 'pagoda-agent',
    options: '-c search_path=pg_catalog,pg_temp',
    connectionTimeoutMillis: 30_000,
  });
  client.on('error', () => {}); // a lost session surfaces at its query
  await client.connect();
  try {
    return (await client.query<Row>(sql)).rows;
  } finally {
    await client.end();
  }
}

/** Roles that were made by SQL: the control plane does not know them, but tables and grants do. Without their passwords. */
async function copyRoles(admin: pg.Client, source: SchemaSource): Promise<void> {
  // A try that ended half way.
  const {rowCount} = await admin.query(`select from pg_roles where rolname = ${text(restorer)}`);
  if (rowCount !== 0) {
    for (const {name} of source.databases) await admin.query(`drop database if exists ${ident(name)} with (force)`);
    await admin.query(`drop owned by ${ident(restorer)}; drop role ${ident(restorer)}`);
  }
  const ours = `(${text(source.user)}, ${text(ownerGroup)})`;
  const statements = await readFrom<{statement: string}>(
    source,
    'postgres',
    `select format('create role %I %s', rolname, concat_ws(' ',
         case when rolcanlogin then 'login' else 'nologin' end,
         case when rolinherit then 'inherit' else 'noinherit' end,
         case when rolcreatedb then 'createdb' end,
         case when rolcreaterole then 'createrole' end,
         case when rolbypassrls then 'bypassrls' end,
         case when rolconnlimit >= 0 then 'connection limit ' || rolconnlimit end,
         case when rolvaliduntil is not null then format('valid until %L', rolvaliduntil) end)) as statement
       from pg_roles where oid >= 16384 and not rolsuper and rolname not in ${ours}
     union all
     select format('grant %I to %I%s', g.rolname, m.rolname, case when admin_option then ' with admin option' else '' end)
       from pg_auth_members join pg_roles g on g.oid = roleid join pg_roles m on m.oid = member
       where m.oid >= 16384 and not m.rolsuper and m.rolname not in ${ours} and m.rolname <> ${text(source.user)}`,
  );
  for (const {statement} of statements)
    await admin.query(statement).catch((error: unknown) => {
      // The catalogue's own roles are there already.
      if ((error as {code?: string}).code !== '42710') throw error;
    });
}

/** False: there is no such database in the source; then it is a new one, as the API makes them. */
async function makeDatabase(
  {address}: SchemaCopyMachine,
  admin: pg.Client,
  source: SchemaSource,
  {name, owner}: DatabaseSpec,
): Promise<boolean> {
  await admin.query(`drop database if exists ${ident(name)} with (force)`);
  const [as] = await readFrom<{options: string}>(
    source,
    'postgres',
    `select concat_ws(' ', format('encoding %L lc_collate %L lc_ctype %L', pg_encoding_to_char(encoding), datcollate, datctype),
       case when datlocprovider = 'i' then format('locale_provider icu icu_locale %L', daticulocale) end) as options
     from pg_database where datname = ${text(name)}`,
  );
  const options = as === undefined ? '' : `template template0 ${as.options}`;
  await admin.query(`create database ${ident(name)} owner ${ident(owner)} ${options}`);
  if (as === undefined) await ownPublicSchema(address, name, owner);
  return as !== undefined;
}

async function copyDatabase(
  machine: SchemaCopyMachine,
  source: SchemaSource,
  {name, owner}: DatabaseSpec,
): Promise<void> {
  const {address, disk, scratch} = machine;
  const [archive, list] = [joinPath(scratch, 'schema.dump'), joinPath(scratch, 'schema.list')];
  try {
    await run(machine, 'pg_dump', ['-Fc', '--schema-only', '--no-subscriptions', '--no-password', '-f', archive], {
      PGHOST: source.host,
      PGPORT: String(source.port),
      PGUSER: source.user,
      PGPASSWORD: source.password,
      PGDATABASE: name,
    });
    const toc = await run(machine, 'pg_restore', ['-l', archive], {});
    // Only a superuser's: nobody here may have them.
    disk.writeFileAtomic(list, Buffer.from(toc.replace(/^\d+; .* EVENT TRIGGER .*\n/gm, '')), 0o600);
    changeOwner(list, machine.systemUser);
    await run(
      machine,
      'pg_restore',
      [
        '--no-owner',
        '--exit-on-error',
        '--single-transaction',
        '--no-password',
        '-L',
        list,
        '-d',
        'dbname=' + connParam(name),
        archive,
      ],
      {PGHOST: address.socketDir, PGPORT: String(address.port), PGUSER: restorer},
    );
  } finally {
    disk.remove(archive);
    disk.remove(list);
  }
  const statements = await readFrom<{format: string}>(
    source,
    name,
    alterOwners("owner >= 16384 or owner = 'pg_database_owner'::regrole", 'pg_get_userbyid(owner)'),
  );
  const client = await connectAdmin(address, name);
  try {
    await client.query('begin');
    for (const {format: statement} of statements) await client.query(statement);
    await client.query(
      `reassign owned by ${ident(restorer)} to ${ident(owner)}; drop owned by ${ident(restorer)}; commit`,
    );
  } finally {
    await client.end();
  }
}

/** A value of a libpq connection string. */
const connParam = (value: string): string => `'${value.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;

/** What the program printed. Throws with its last words. */
async function run(
  {binDir, systemUser}: SchemaCopyMachine,
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
): Promise<string> {
  const none = Object.fromEntries(
    ['PGHOST', 'PGHOSTADDR', 'PGPORT', 'PGUSER', 'PGPASSWORD', 'PGDATABASE', 'PGOPTIONS', 'PGSSLMODE', 'PGSERVICE'].map(
      (name) => [name, undefined],
    ),
  );
  const {code, stdout, stderr} = await runProcess({
    command: joinPath(binDir, program),
    args,
    cwd: '/',
    user: systemUser,
    env: {...none, ...env},
  });
  if (code !== 0) throw new Error(`${program} ended with ${code}: ${stderr.split('\n').slice(-4).join('; ')}`);
  return `${stdout}\n`;
}
