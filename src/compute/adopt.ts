/**
 * A cluster that somebody else made becomes a branch: its superusers become customers' roles, and role 10, which owns the system
 * catalogs and cannot be parted from them, becomes ours under our name.
 *
 *   postgres (oid 10, superuser)  ──►  pagoda_admin (oid 10)          keeps the catalogs and the members of extensions
 *                                 └─►  postgres (new, no superuser)   gets the name, the password and everything else it owned
 *
 * Done on a Postgres that nobody else can reach. Every step may be repeated, also after a run that ended half way.
 */
import pg from 'pg';
import {applyGroup, connectAdmin, ownerGroup, type PostgresAddress} from '#compute/catalog.ts';
import {adminRole} from '#compute/postgres-settings.ts';
import {alterOwners} from '#compute/owned-objects.ts';
import type {ImportedCatalog} from '#wire/compute-spec.ts';

const ident = (name: string): string => pg.escapeIdentifier(name);
const text = (value: string): string => pg.escapeLiteral(value);
/** Owns the moment in which role 10 has no session and can be renamed. */
const helperRole = 'pagoda_adopting';

/** `superuser`: what role 10 is called in the directory. Throws what Postgres says, with the database it was about. */
export async function adoptCluster(address: PostgresAddress, superuser: string): Promise<void> {
  if (superuser !== adminRole) await takeOver(address, superuser);
  const admin = await connectAdmin(address);
  try {
    await applyGroup(admin);
    await admin.query(`begin; ${demotion(superuser)} commit`);
    const {rows} = await admin.query<{datname: string; datallowconn: boolean}>(
      "select datname, datallowconn from pg_database where datname <> 'template0' order by oid",
    );
    for (const {datname, datallowconn} of rows) {
      if (!datallowconn) await admin.query(`alter database ${ident(datname)} allow_connections true`);
      if (superuser !== adminRole) await giveObjects(address, datname, superuser);
      if (!datallowconn) await admin.query(`alter database ${ident(datname)} allow_connections false`);
    }
  } finally {
    await admin.end();
  }
}

const invalidAuthorization = '28000';

/** Role 10 gets our name. */
async function takeOver(address: PostgresAddress, superuser: string): Promise<void> {
  const isOurs = await connectAdmin(address).then(
    async (client) => {
      const {rows} = await client.query<{ours: boolean}>(
        'select oid = 10 as ours from pg_authid where rolname = current_user',
      );
      await client.end();
      return rows[0]?.ours === true;
    },
    (error: unknown) => {
      // There is no role of our name. Anything else says nothing about it.
      if ((error as {code?: string}).code === invalidAuthorization) return false;
      throw error;
    },
  );
  if (!isOurs) {
    const first = await connectAdmin(address, 'postgres', superuser);
    try {
      await first.query(`select from pg_authid where rolname = ${text(adminRole)}`).then(({rowCount}) => {
        if (rowCount !== 0)
          throw new Error(`the cluster has a role ${adminRole}, which is ours: rename it and import again`);
      });
      await first.query(`drop role if exists ${ident(helperRole)}; create role ${ident(helperRole)} superuser login`);
    } finally {
      await first.end();
    }
    const helper = await connectAdmin(address, 'postgres', helperRole);
    try {
      await helper.query(
        `begin;
         create temporary table old on commit drop as select * from pg_authid where oid = 10;
         alter role ${ident(superuser)} rename to ${ident(adminRole)};
         alter role ${ident(adminRole)} superuser login replication createdb createrole bypassrls password null
           connection limit -1 valid until 'infinity';
         create role ${ident(superuser)} createdb createrole bypassrls inherit;
         update pg_authid new set rolcanlogin = old.rolcanlogin, rolvaliduntil = old.rolvaliduntil,
             rolconnlimit = old.rolconnlimit,
             rolpassword = case when old.rolpassword like 'SCRAM-SHA-256$%' then old.rolpassword end
           from old where new.rolname = ${text(superuser)};
         update pg_auth_members set member = ${oidOf(superuser)} where member = 10;
         update pg_auth_members set roleid = ${oidOf(superuser)} where roleid = 10;
         update pg_db_role_setting set setrole = ${oidOf(superuser)} where setrole = 10;
         commit`,
      );
    } finally {
      await helper.end();
    }
  }
  const admin = await connectAdmin(address);
  try {
    await admin.query(`drop role if exists ${ident(helperRole)}`);
  } finally {
    await admin.end();
  }
}

const oidOf = (role: string): string => `(select oid from pg_authid where rolname = ${text(role)})`;

/** What a customer's role must not be, nor have by the grace of a superuser that was. */
function demotion(superuser: string): string {
  return `
    do $$
    declare r name;
    begin
      for r in select rolname from pg_authid
        where oid <> 10 and (rolsuper or (rolname = ${text(superuser)} and not pg_has_role(oid, ${text(ownerGroup)}, 'member'))) loop
        execute format('alter role %I nosuperuser createdb createrole bypassrls', r);
        execute format('grant ${ownerGroup} to %I with admin option', r);
      end loop;
      for r in select rolname from pg_authid where oid <> 10 and rolreplication loop
        execute format('alter role %I noreplication', r);
      end loop;
      for r in select datname from pg_database
        where datdba = 10 and datname not in ('template0', 'template1', 'postgres') and ${text(superuser)} <> '${adminRole}' loop
        execute format('alter database %I owner to %I', r, ${text(superuser)});
      end loop;
    end $$;
    delete from pg_auth_members where roleid in ('pg_read_server_files'::regrole, 'pg_write_server_files'::regrole,
      'pg_execute_server_program'::regrole);
    delete from pg_parameter_acl;
    delete from pg_shdepend where classid = 'pg_parameter_acl'::regclass;`;
}

/**
 * Everything that role 10 owns in a database and that initdb has not made goes to the role that has its name now: REASSIGN OWNED
 * refuses for role 10. Not: members of extensions, and what must belong to a superuser (foreign-data wrappers, event triggers,
 * subscriptions, publications of all tables). Event triggers and subscriptions of a superuser would run as it: they are disabled.
 */
async function giveObjects(address: PostgresAddress, database: string, owner: string): Promise<void> {
  const client = await connectAdmin(address, database);
  try {
    await client.query(`
      do $$
      declare s text;
      begin
        for s in
          ${alterOwners('owner = 10', text(owner))}
          union all
          select format('alter event trigger %I disable', evtname) from pg_event_trigger
            where evtenabled <> 'D' and not exists (select from pg_depend d
              where d.classid = 'pg_event_trigger'::regclass and d.objid = pg_event_trigger.oid and d.deptype = 'e')
          union all
          select format('alter subscription %I disable', subname) from pg_subscription
            where subenabled and subdbid = (select oid from pg_database where datname = current_database())
        loop
          execute s;
        end loop;
      end $$`);
  } catch (error) {
    throw new Error(`database ${database}: ${(error as Error).message}`, {cause: error});
  } finally {
    await client.end();
  }
}

/** Returns when everything that was committed here so far is at the quorum: what was done in private was not waited for. */
export async function waitForQuorum(address: PostgresAddress): Promise<void> {
  const admin = await connectAdmin(address);
  try {
    // The smallest record that makes its commit wait.
    await admin.query("select pg_logical_emit_message(true, 'pagoda', '')");
  } finally {
    await admin.end();
  }
}

/** What the branch has, for the control plane's catalogue. */
export async function readCatalog(address: PostgresAddress): Promise<ImportedCatalog> {
  const admin = await connectAdmin(address);
  try {
    const roles = await admin.query<{name: string; password: string | null; login: boolean}>(
      `select rolname as name, rolpassword as password, rolcanlogin as login from pg_authid
       where oid <> 10 and rolname !~ '^pg_' and rolname <> ${text(ownerGroup)} order by oid`,
    );
    const databases = await admin.query<{name: string; owner: string; open: boolean}>(
      `select datname as name, pg_get_userbyid(datdba) as owner, datallowconn as open from pg_database
       where datname not in ('template0', 'template1', 'postgres') and datdba <> 10 order by oid`,
    );
    const missing = new Set<string>();
    for (const {name, open} of databases.rows) {
      if (!open) continue;
      const client = await connectAdmin(address, name);
      try {
        const {rows} = await client.query<{extname: string}>(
          'select extname from pg_extension where not exists (select from pg_available_extensions where name = extname)',
        );
        for (const {extname} of rows) missing.add(extname);
      } finally {
        await client.end();
      }
    }
    return {
      roles: roles.rows.map(({name, password, login}) => ({
        name,
        ...(password?.startsWith('SCRAM-SHA-256$') === true ? {scramVerifier: password} : {}),
        canLogin: login,
      })),
      databases: databases.rows.map(({name, owner}) => ({name, owner})),
      missingExtensions: [...missing],
    };
  } finally {
    await admin.end();
  }
}
