/** Roles (with the same passwords) and databases of one branch, for another. */
import type {PasswordVault} from '#control/scram.ts';
import type {StoreTransaction} from '#control/store/schema.ts';
import type {ImportedCatalog} from '#wire/compute-spec.ts';

export async function copyCatalog(
  trx: StoreTransaction,
  vault: PasswordVault,
  from: string,
  to: string,
  nowMs: number,
): Promise<void> {
  const roles = await trx.selectFrom('roles').selectAll().where('branch_id', '=', from).execute();
  for (const role of roles) {
    // A sealed password is bound to its branch.
    const password = role.password_sealed === null ? undefined : vault.open(role.password_sealed, from, role.name);
    await trx
      .insertInto('roles')
      .values({
        ...role,
        branch_id: to,
        password_sealed: password === undefined ? null : vault.seal(password, to, role.name),
        created_at: nowMs,
        updated_at: nowMs,
      })
      .execute();
  }
  let id = await nextDatabaseId(trx);
  const databases = await trx.selectFrom('databases').selectAll().where('branch_id', '=', from).orderBy('id').execute();
  for (const database of databases)
    await trx
      .insertInto('databases')
      .values({...database, id: id++, branch_id: to, created_at: nowMs, updated_at: nowMs})
      .execute();
  const dropped = await trx.selectFrom('dropped_objects').selectAll().where('branch_id', '=', from).execute();
  for (const object of dropped)
    await trx
      .insertInto('dropped_objects')
      .values({...object, branch_id: to})
      .execute();
}

/** What a branch was found to have becomes its catalogue, and counts as applied. Databases of roles that are not ours are left out. */
export async function addImportedCatalog(
  trx: StoreTransaction,
  branchId: string,
  catalog: ImportedCatalog,
  nowMs: number,
): Promise<void> {
  for (const {name, scramVerifier, canLogin} of catalog.roles)
    await trx
      .insertInto('roles')
      .values({
        branch_id: branchId,
        name,
        password_sealed: null,
        scram_verifier: scramVerifier ?? null,
        no_login: canLogin ? 0 : 1,
        protected: 0,
        created_at: nowMs,
        updated_at: nowMs,
      })
      .execute();
  let id = await nextDatabaseId(trx);
  for (const {name, owner} of catalog.databases)
    await trx
      .insertInto('databases')
      .values({id: id++, branch_id: branchId, name, owner_name: owner, created_at: nowMs, updated_at: nowMs})
      .execute();
  await trx
    .updateTable('branches')
    .set((e) => ({catalog_applied: e.ref('catalog_version')}))
    .where('id', '=', branchId)
    .execute();
}

export async function nextDatabaseId(trx: StoreTransaction): Promise<number> {
  const last = await trx
    .selectFrom('databases')
    .select((e) => e.fn.max('id').as('id'))
    .executeTakeFirst();
  return Number(last?.id ?? 0) + 1;
}
