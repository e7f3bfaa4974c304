/** Roles and databases of a branch. */
import {
  applyConfigDrafts,
  bumpCatalog,
  catalogLocks,
  checkDatabaseName,
  checkRoleName,
  forgetDropped,
  newPassword,
  noteDropped,
  restartStaticDrafts,
  revealPassword,
} from '#control/api/catalog.ts';
import {nextDatabaseId} from '#control/catalog-copy.ts';
import type {ApiContext} from '#control/api/context.ts';
import {apiErrors} from '#control/api/errors.ts';
import type {Principal} from '#control/api/principal.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {createDatabaseBody, createRoleBody, updateDatabaseBody} from '#control/api/schemas.ts';
import {Views} from '#control/api/views.ts';
import type {
  BranchTable,
  DatabaseTable,
  OperationTable,
  ProjectTable,
  RoleTable,
  StoreTransaction,
} from '#control/store/schema.ts';

const rolesPath = '/projects/:project_id/branches/:branch_id/roles';
const databasesPath = '/projects/:project_id/branches/:branch_id/databases';

export const catalogRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path: rolesPath,
    handler: async (context, {params, principal}) => {
      const {branch} = await locate(context, principal, params);
      const roles = await context.store
        .selectFrom('roles')
        .selectAll()
        .where('branch_id', '=', branch.id)
        .orderBy('created_at')
        .orderBy('name')
        .execute();
      const views = new Views(context.config);
      return {body: {roles: roles.map((r) => views.role(r))}};
    },
  }),
  route({
    method: 'POST',
    path: rolesPath,
    body: createRoleBody,
    handler: async (context, {params, body, principal}) => {
      const {project, branch} = await locate(context, principal, params);
      const {name, no_login: noLogin = false} = body.role;
      checkRoleName(name);
      const secret = noLogin ? undefined : await newPassword(context, project, branch.id, name);
      const operations = await changeLogins(context, project, branch, async (trx, nowMs) => {
        const taken = await trx
          .selectFrom('roles')
          .select('name')
          .where('branch_id', '=', branch.id)
          .where('name', '=', name)
          .executeTakeFirst();
        if (taken) throw apiErrors.conflict(`role ${name} already exists`);
        await forgetDropped(trx, branch.id, 'role', name);
        await trx
          .insertInto('roles')
          .values({
            branch_id: branch.id,
            name,
            password_sealed: secret?.sealed ?? null,
            scram_verifier: secret?.verifier ?? null,
            no_login: noLogin ? 1 : 0,
            protected: 0,
            created_at: nowMs,
            updated_at: nowMs,
          })
          .execute();
      });
      return {
        status: 201,
        body: roleAnswer(context, await findRole(context, branch, name), operations, secret?.password),
      };
    },
  }),
  route({
    method: 'GET',
    path: `${rolesPath}/:role_name`,
    handler: async (context, {params, principal}) => {
      const {branch} = await locate(context, principal, params);
      return {body: {role: new Views(context.config).role(await findRole(context, branch, params.role_name))}};
    },
  }),
  route({
    method: 'DELETE',
    path: `${rolesPath}/:role_name`,
    handler: async (context, {params, principal}) => {
      const {project, branch} = await locate(context, principal, params);
      const role = await findRole(context, branch, params.role_name);
      const operations = await changeCatalog(context, project, branch, async (trx, _nowMs, version) => {
        const owned = await trx
          .selectFrom('databases')
          .select('name')
          .where('branch_id', '=', branch.id)
          .where('owner_name', '=', role.name)
          .executeTakeFirst();
        if (owned)
          throw apiErrors.unprocessable(
            `role ${role.name} owns database ${owned.name}; delete the database or give it another owner first`,
          );
        await trx.deleteFrom('roles').where('branch_id', '=', branch.id).where('name', '=', role.name).execute();
        await noteDropped(trx, branch.id, 'role', role.name, version);
      });
      return {body: roleAnswer(context, role, operations)};
    },
  }),
  route({
    method: 'GET',
    path: `${rolesPath}/:role_name/reveal_password`,
    handler: async (context, {params, principal}) => {
      const {branch} = await locate(context, principal, params);
      const password = revealPassword(context, await findRole(context, branch, params.role_name));
      if (password === undefined) throw apiErrors.passwordNotStored(params.role_name);
      return {body: {password}};
    },
  }),
  route({
    method: 'POST',
    path: `${rolesPath}/:role_name/reset_password`,
    handler: async (context, {params, principal}) => {
      const {project, branch} = await locate(context, principal, params);
      const role = await findRole(context, branch, params.role_name);
      if (role.no_login === 1) throw apiErrors.unprocessable(`role ${role.name} cannot log in`);
      const secret = await newPassword(context, project, branch.id, role.name);
      const operations = await changeLogins(context, project, branch, async (trx, nowMs) => {
        await trx
          .updateTable('roles')
          .set({password_sealed: secret.sealed, scram_verifier: secret.verifier, updated_at: nowMs})
          .where('branch_id', '=', branch.id)
          .where('name', '=', role.name)
          .execute();
      });
      return {body: roleAnswer(context, await findRole(context, branch, role.name), operations, secret.password)};
    },
  }),
  route({
    method: 'GET',
    path: databasesPath,
    handler: async (context, {params, principal}) => {
      const {branch} = await locate(context, principal, params);
      const databases = await context.store
        .selectFrom('databases')
        .selectAll()
        .where('branch_id', '=', branch.id)
        .orderBy('id')
        .execute();
      const views = new Views(context.config);
      return {body: {databases: databases.map((d) => views.database(d))}};
    },
  }),
  route({
    method: 'POST',
    path: databasesPath,
    body: createDatabaseBody,
    handler: async (context, {params, body, principal}) => {
      const {project, branch} = await locate(context, principal, params);
      const {name, owner_name: owner} = body.database;
      checkDatabaseName(name);
      const operations = await changeCatalog(context, project, branch, async (trx, nowMs) => {
        const taken = await trx
          .selectFrom('databases')
          .select('id')
          .where('branch_id', '=', branch.id)
          .where('name', '=', name)
          .executeTakeFirst();
        if (taken) throw apiErrors.conflict(`database ${name} already exists`);
        await checkOwner(trx, branch, owner);
        await forgetDropped(trx, branch.id, 'database', name);
        await trx
          .insertInto('databases')
          .values({
            id: await nextDatabaseId(trx),
            branch_id: branch.id,
            name,
            owner_name: owner,
            created_at: nowMs,
            updated_at: nowMs,
          })
          .execute();
      });
      return {status: 201, body: databaseAnswer(context, await findDatabase(context, branch, name), operations)};
    },
  }),
  route({
    method: 'GET',
    path: `${databasesPath}/:database_name`,
    handler: async (context, {params, principal}) => {
      const {branch} = await locate(context, principal, params);
      return {
        body: {database: new Views(context.config).database(await findDatabase(context, branch, params.database_name))},
      };
    },
  }),
  route({
    method: 'PATCH',
    path: `${databasesPath}/:database_name`,
    body: updateDatabaseBody,
    handler: async (context, {params, body, principal}) => {
      const {project, branch} = await locate(context, principal, params);
      const database = await findDatabase(context, branch, params.database_name);
      const {name = database.name, owner_name: owner = database.owner_name} = body.database;
      if (name !== database.name)
        throw apiErrors.unprocessable('a database is renamed with SQL: ALTER DATABASE … RENAME TO …');
      const operations = await changeCatalog(context, project, branch, async (trx, nowMs) => {
        await checkOwner(trx, branch, owner);
        await trx
          .updateTable('databases')
          .set({owner_name: owner, updated_at: nowMs})
          .where('id', '=', database.id)
          .execute();
      });
      return {body: databaseAnswer(context, await findDatabase(context, branch, name), operations)};
    },
  }),
  route({
    method: 'DELETE',
    path: `${databasesPath}/:database_name`,
    handler: async (context, {params, principal}) => {
      const {project, branch} = await locate(context, principal, params);
      const database = await findDatabase(context, branch, params.database_name);
      const operations = await changeCatalog(context, project, branch, async (trx, _nowMs, version) => {
        await trx.deleteFrom('databases').where('id', '=', database.id).execute();
        await noteDropped(trx, branch.id, 'database', database.name, version);
      });
      return {body: databaseAnswer(context, database, operations)};
    },
  }),
];

async function locate(
  context: ApiContext,
  principal: Principal,
  params: {readonly project_id: string; readonly branch_id: string},
): Promise<{project: ProjectTable; branch: BranchTable}> {
  const project = await context.project(principal, params.project_id);
  return {project, branch: await context.branch(project, params.branch_id)};
}

/** A change of roles or databases: the branch's catalog version grows with it, and a running compute gets it. */
async function changeCatalog(
  context: ApiContext,
  project: ProjectTable,
  branch: BranchTable,
  change: (trx: StoreTransaction, nowMs: number, version: number) => Promise<void>,
  draft = applyConfigDrafts,
): Promise<OperationTable[]> {
  const {operations} = await context.mutate(project.id, await catalogLocks(context, branch), async (trx, nowMs) => {
    const current = await trx.selectFrom('branches').selectAll().where('id', '=', branch.id).executeTakeFirstOrThrow();
    await change(trx, nowMs, await bumpCatalog(trx, current, nowMs));
    return {operations: await draft(trx, branch), result: undefined};
  });
  return operations;
}

/** One that says who may come in, and by which password: also where the past is read. */
function changeLogins(
  ...[context, project, branch, change]: Parameters<typeof changeCatalog>
): Promise<OperationTable[]> {
  return changeCatalog(context, project, branch, change, async (trx) => [
    ...(await applyConfigDrafts(trx, branch)),
    ...(await restartStaticDrafts(trx, branch)),
  ]);
}

async function checkOwner(trx: StoreTransaction, branch: BranchTable, owner: string): Promise<void> {
  const role = await trx
    .selectFrom('roles')
    .select('name')
    .where('branch_id', '=', branch.id)
    .where('name', '=', owner)
    .executeTakeFirst();
  if (!role) throw apiErrors.notFound('role', owner);
}

export async function findRole(context: ApiContext, branch: BranchTable, name: string): Promise<RoleTable> {
  const role = await context.store
    .selectFrom('roles')
    .selectAll()
    .where('branch_id', '=', branch.id)
    .where('name', '=', name)
    .executeTakeFirst();
  if (!role) throw apiErrors.notFound('role', name);
  return role;
}

export async function findDatabase(context: ApiContext, branch: BranchTable, name: string): Promise<DatabaseTable> {
  const database = await context.store
    .selectFrom('databases')
    .selectAll()
    .where('branch_id', '=', branch.id)
    .where('name', '=', name)
    .executeTakeFirst();
  if (!database) throw apiErrors.notFound('database', name);
  return database;
}

function roleAnswer(
  context: ApiContext,
  role: RoleTable,
  operations: readonly OperationTable[],
  password?: string,
): unknown {
  const views = new Views(context.config);
  return {role: views.role(role, password), operations: operations.map((o) => views.operation(o))};
}

function databaseAnswer(context: ApiContext, database: DatabaseTable, operations: readonly OperationTable[]): unknown {
  const views = new Views(context.config);
  return {database: views.database(database), operations: operations.map((o) => views.operation(o))};
}
