/** Rules for roles and databases, and the operation that brings a change of them into a running compute. */
import {apiErrors} from '#control/api/errors.ts';
import {type ApiContext, branchLock, endpointLock} from '#control/api/context.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {makePassword, makeScramVerifier} from '#control/scram.ts';
import type {BranchTable, ProjectTable, RoleTable, StoreTransaction} from '#control/store/schema.ts';

const reservedRoles = new Set([
  'pagoda_admin',
  'neon_superuser',
  'cloud_admin',
  'postgres',
  'public',
  'none',
  'current_user',
  'current_role',
  'session_user',
  'user',
]);
const reservedDatabases = new Set(['postgres', 'template0', 'template1']);
/** NAMEDATALEN - 1. */
const nameBytesMax = 63;

function checkName(kind: string, name: string): void {
  if (Buffer.byteLength(name) > nameBytesMax)
    throw apiErrors.badRequest(`the name of a ${kind} has at most ${nameBytesMax} bytes`);
}

export function checkRoleName(name: string): void {
  checkName('role', name);
  if (name.startsWith('pg_') || reservedRoles.has(name.toLowerCase()))
    throw apiErrors.badRequest(`the role name ${name} is reserved`);
}

export function checkDatabaseName(name: string): void {
  checkName('database', name);
  if (reservedDatabases.has(name)) throw apiErrors.conflict(`database ${name} already exists`);
}

/** A new password in all its forms. */
export async function newPassword(
  context: ApiContext,
  project: ProjectTable,
  branchId: string,
  role: string,
): Promise<{password: string; sealed: string | null; verifier: string}> {
  const password = makePassword(context.random);
  return {
    password,
    sealed: project.store_passwords === 1 ? context.vault.seal(password, branchId, role) : null,
    verifier: await makeScramVerifier(password, context.random),
  };
}

/** The stored password, when passwords are stored. */
export function revealPassword(context: ApiContext, role: RoleTable): string | undefined {
  return role.password_sealed === null
    ? undefined
    : context.vault.open(role.password_sealed, role.branch_id, role.name);
}

/** The branch's catalog has changed: its number grows, and a running compute gets the change. Answers that number. */
export async function bumpCatalog(trx: StoreTransaction, branch: BranchTable, nowMs: number): Promise<number> {
  const version = branch.catalog_version + 1;
  await trx
    .updateTable('branches')
    .set({catalog_version: version, updated_at: nowMs})
    .where('id', '=', branch.id)
    .execute();
  return version;
}

/** The locks that a change of the branch's catalog respects. */
export async function catalogLocks(context: ApiContext, branch: BranchTable): Promise<string[]> {
  const endpoints = await context.store
    .selectFrom('endpoints')
    .select('id')
    .where('branch_id', '=', branch.id)
    .where('deleted_at', 'is', null)
    .execute();
  return [branchLock(branch.id), ...endpoints.map((e) => endpointLock(e.id))];
}

/** One operation per running writer of the branch; a stopped one applies everything when it starts. */
export async function applyConfigDrafts(trx: StoreTransaction, branch: BranchTable): Promise<OperationDraft[]> {
  const writers = await activeEndpoints(trx, branch).where('type', '=', 'read_write').execute();
  return writers.map(({id}) => endpointDraft(branch, id, 'apply_config', [branchLock(branch.id), endpointLock(id)]));
}

/**
 * A compute at a point in time cannot be written into: it has the roles and passwords of now when it starts (compute/agent.ts). Those that
 * run are suspended, and the next connection starts them anew.
 */
export async function restartStaticDrafts(trx: StoreTransaction, branch: BranchTable): Promise<OperationDraft[]> {
  const readers = await activeEndpoints(trx, branch).where('static_lsn', 'is not', null).execute();
  return readers.map(({id}) => endpointDraft(branch, id, 'suspend_compute', [endpointLock(id)]));
}

function activeEndpoints(trx: StoreTransaction, branch: BranchTable) {
  return trx
    .selectFrom('endpoints')
    .select('id')
    .where('branch_id', '=', branch.id)
    .where('current_state', '=', 'active')
    .where('deleted_at', 'is', null);
}

function endpointDraft(
  branch: BranchTable,
  endpointId: string,
  action: 'apply_config' | 'suspend_compute',
  locks: string[],
): OperationDraft {
  return {projectId: branch.project_id, branchId: branch.id, endpointId, action, kind: action, locks};
}

/** Remembers a drop until a compute has carried it out; a new object of the same name takes the note away. */
export async function noteDropped(
  trx: StoreTransaction,
  branchId: string,
  kind: 'role' | 'database',
  name: string,
  version: number,
): Promise<void> {
  await trx
    .insertInto('dropped_objects')
    .values({branch_id: branchId, kind, name, version})
    .onConflict((c) => c.columns(['branch_id', 'kind', 'name']).doUpdateSet({version}))
    .execute();
}
export async function forgetDropped(
  trx: StoreTransaction,
  branchId: string,
  kind: 'role' | 'database',
  name: string,
): Promise<void> {
  await trx
    .deleteFrom('dropped_objects')
    .where('branch_id', '=', branchId)
    .where('kind', '=', kind)
    .where('name', '=', name)
    .execute();
}
