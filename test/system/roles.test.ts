/**
 * A customer's role is powerful in its own databases and nothing outside of them. Each statement of the list below is a way
 * somebody has got, or tried to get, from SQL to files, programs, superuser or another's data; each must fail, with this error.
 */
import {strict as assert} from 'node:assert';
import {after, before, test} from 'node:test';
import type pg from 'pg';
import {type Branch, clientConfig, Pagoda} from '../pagoda.ts';
import {Client} from 'pg';

let pagoda: Pagoda;
let branch: Branch;
let client: pg.Client;

before(async () => {
  pagoda = await Pagoda.start();
  branch = await pagoda.mainBranch();
  client = await pagoda.connect();
});
after(async () => {
  await client.end();
  await pagoda.stop();
  await pagoda[Symbol.asyncDispose]();
});

const denied = '42501';
/** Statement → SQLSTATE. */
const attacks: readonly (readonly [statement: string, sqlState: string])[] = [
  // superuser
  ['alter role neondb_owner superuser', denied],
  ['create role evil superuser', denied],
  ['create role evil replication', denied],
  ['create role evil bypassrls', denied],
  ['grant pagoda_admin to neondb_owner', denied],
  ['create role evil in role pagoda_admin', denied],
  ['set role pagoda_admin', denied],
  ['set session authorization pagoda_admin', denied],
  [`alter role pagoda_admin password 'x'`, denied],
  [`alter role pagoda_admin set search_path = public`, denied],
  ['alter role pagoda_admin rename to other', denied],
  ['drop role pagoda_admin', denied],
  ['reassign owned by pagoda_admin to neondb_owner', denied],
  ['update pg_authid set rolsuper = true', denied],
  [`insert into pg_auth_members values (10, 16384, 10, true)`, denied],
  ['alter table pg_authid owner to neondb_owner', denied],
  ['set allow_system_table_mods = on', denied],
  // the roles that reach files and programs; whoever may create roles may grant them, until PostgreSQL 16
  ['grant pg_execute_server_program to neondb_owner', denied],
  ['grant pg_read_server_files to neondb_owner', denied],
  ['grant pg_monitor, pg_write_server_files to neondb_owner', denied],
  ['create role evil in role pg_read_server_files', denied],
  ['create role evil in group pg_execute_server_program', denied],
  ['alter group pg_read_server_files add user neondb_owner', denied],
  [`do $$ begin execute 'grant pg_execute_server_program to neondb_owner'; end $$`, denied],
  // programs
  [`copy (select 1) to program 'id'`, denied],
  [`create temp table out_of (l text); copy out_of from program 'id'`, denied],
  [`create function evil(text) returns int language c as 'libc.so.6', 'system'`, denied],
  [`create function evil(text) returns int language internal as 'pg_read_file'`, denied],
  ['create language plpython3u', '0A000'],
  ['create extension plperlu', '0A000'],
  [`load '/tmp/evil.so'`, denied],
  [`load 'auto_explain'`, denied],
  // files
  [`copy (select 1) to '/tmp/evil'`, denied],
  [`create temp table out_of (l text); copy out_of from '/etc/passwd'`, denied],
  [`select pg_read_file('/etc/passwd')`, denied],
  [`select pg_read_file('postgresql.conf')`, denied],
  [`select pg_read_binary_file('global/pg_control')`, denied],
  [`select pg_ls_dir('/')`, denied],
  [`select pg_stat_file('/etc/passwd')`, denied],
  [`select lo_import('/etc/passwd')`, denied],
  [`select lo_export(0, '/tmp/evil')`, denied],
  [`create tablespace evil location '/tmp'`, denied],
  ['create extension adminpack', denied],
  ['create extension file_fdw', denied],
  ['create extension pg_prewarm', denied],
  // the network
  ['create extension dblink', denied],
  ['create extension postgres_fdw', denied],
  [`create subscription evil connection 'host=127.0.0.1' publication p with (connect = false)`, denied],
  ['create foreign data wrapper evil', denied],
  // settings
  [`alter system set log_statement = 'all'`, denied],
  ['alter system reset all', denied],
  [`set session_preload_libraries = 'evil'`, denied],
  [`set dynamic_library_path = '/tmp'`, denied],
  [`alter database neondb set session_preload_libraries = 'evil'`, denied],
  [`alter role neondb_owner set session_preload_libraries = 'evil'`, denied],
  ['alter role all set work_mem = 64', denied],
  ['grant alter system on parameter fsync to neondb_owner', denied],
  ['set zero_damaged_pages = on', denied],
  [`set synchronous_standby_names = ''`, '55P02'],
  ['set fsync = off', '55P02'],
  [`set pagoda.agent_socket = '/tmp/evil'`, '55P02'],
  ['select pg_reload_conf()', denied],
  [`select set_config('log_min_messages', 'debug5', false)`, denied],
  // WAL, replication, other sessions
  [`select pg_create_physical_replication_slot('evil')`, denied],
  [`select pg_create_logical_replication_slot('evil', 'pgoutput')`, denied],
  [`select pg_backup_start('evil')`, denied],
  ['select pg_switch_wal()', denied],
  ['select pg_promote()', denied],
  [`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'pagoda_admin'`, denied],
  ['create event trigger evil on ddl_command_start execute function pg_catalog.now()', denied],
  ['create access method evil type index handler pg_catalog.bthandler', denied],
  ['create operator class evil for type int4 using btree as storage int4', denied],
  [`create cast (text as int) with function pg_catalog.length(text)`, denied],
];

test(`${attacks.length} ways out of a database are closed`, async () => {
  const open: string[] = [];
  for (const [statement, sqlState] of attacks) {
    // Two kinds are refused inside a transaction before they are refused for their own sake.
    const alone = /^(alter system|create tablespace)/.test(statement);
    if (!alone) await client.query('begin');
    try {
      await client.query(statement);
      open.push(`${statement}: succeeded`);
    } catch (error) {
      const {code, message} = error as {code?: string; message: string};
      if (code !== sqlState) open.push(`${statement}: ${code} ${message}`);
    }
    if (!alone) await client.query('rollback');
  }
  assert.deepEqual(open, []);
});

test('what a customer may do works', async () => {
  const {rows} = await client.query<{super: boolean}>(
    'select rolsuper as super from pg_roles where rolname = current_user',
  );
  assert.equal(rows[0]?.super, false);
  for (const statement of [
    'create database mine',
    'drop database mine',
    `create role app login password 'a-long-enough-one'`,
    'grant neondb_owner to app',
    'revoke neondb_owner from app',
    'create role team; grant team to app; grant select on all tables in schema public to team',
    'drop role app; drop role team',
    'create schema s; create table s.t (i int); drop schema s cascade',
    'create extension pgcrypto; create extension hstore; create extension citext; create extension "uuid-ossp"',
    'create extension pg_trgm; create extension btree_gin; create extension ltree',
    'select count(*) from pg_stat_activity',
    `create function f() returns int language plpgsql as $$ begin return 1 ; end $$`,
    'select f(); drop function f()',
    'set synchronous_commit = off; show synchronous_commit',
    'vacuum',
    'reindex schema public',
  ])
    for (const one of statement.includes('$$') ? [statement] : statement.split('; '))
      await client.query(one).catch((error: unknown) => assert.fail(`${one}: ${String(error)}`));
});

test('no superuser lets itself be called: functions of a deleted role do not become ours', async () => {
  const project = pagoda.status.projectId;
  const path = `/projects/${project}/branches/${branch.branchId}/roles`;
  const {role} = await pagoda.api<{role: {name: string; password: string}}>('POST', path, {role: {name: 'mallory'}});
  await pagoda.settled();
  await client.query('grant create on schema public to mallory');
  const url = new URL(branch.uri);
  url.username = 'mallory';
  url.password = role.password;
  const mallory = new Client(clientConfig(url.href));
  await mallory.connect();
  await mallory.query(
    `create function escape() returns name language sql security definer as 'select current_user';
     grant execute on function escape() to public`,
  );
  await mallory.end();
  await pagoda.api('DELETE', `${path}/mallory`);
  await pagoda.settled();
  const {rows} = await client.query<{who: string; super: boolean}>(
    'select escape() as who, (select rolsuper from pg_roles where rolname = escape()) as super',
  );
  assert.equal(rows[0]?.super, false, `it runs as ${rows[0]?.who}`);
});

test('replication protocol: neither WAL nor a copy of the data directory leaves a compute', async () => {
  for (const replication of ['true', 'database']) {
    const session = new Client({...clientConfig(branch.uri), replication} as pg.ClientConfig);
    session.on('error', () => {});
    await assert.rejects(
      (async () => {
        await session.connect();
        await session.query('BASE_BACKUP');
      })(),
      /replication/i,
      `replication=${replication}`,
    );
    await session.end().catch(() => {});
  }
});
