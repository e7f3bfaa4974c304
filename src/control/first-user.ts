/** The user, organisation and API key that a new installation starts with. */
import type {Clock} from '#runtime/clock.ts';
import {newUuid} from '#runtime/crypto.ts';
import type {Disk} from '#runtime/disk.ts';
import type {Random} from '#runtime/random.ts';
import {hashApiKey, insertApiKey, makeApiKey} from '#control/api/principal.ts';
import {newOrganizationId} from '#control/ids.ts';
import type {Store} from '#control/store/schema.ts';

/**
 * Idempotent. The key's file is written before its hash is stored: after a crash in between, the next start stores the hash of
 * the key that is in the file.
 */
export async function ensureFirstUser(
  store: Store,
  options: {keyFile: string; disk: Disk; clock: Clock; random: Random},
): Promise<void> {
  const {keyFile, disk, clock, random} = options;
  const nowMs = clock.nowMs();
  const known = await store.selectFrom('users').select('id').orderBy('created_at').executeTakeFirst();
  const userId = known?.id ?? newUuid();
  if (!known) {
    await store.transaction().execute(async (trx) => {
      await trx
        .insertInto('users')
        .values({id: userId, login: 'admin', email: 'admin@localhost', name: 'Admin', created_at: nowMs})
        .execute();
      await trx
        .insertInto('organizations')
        .values({id: newOrganizationId(random), name: 'Pagoda', handle: 'pagoda', created_at: nowMs, updated_at: nowMs})
        .execute();
    });
  }
  if (!disk.exists(keyFile)) {
    const keys = await store.selectFrom('api_keys').select('id').limit(1).execute();
    // An administrator who took the file away after using it does not get another key at every start.
    if (keys.length > 0) return;
    disk.writeFileAtomic(keyFile, Buffer.from(`${makeApiKey(random)}\n`), 0o600);
  }
  const key = disk.readFile(keyFile).toString('utf8').trim();
  const stored = await store
    .selectFrom('api_keys')
    .select('id')
    .where('key_hash', '=', hashApiKey(key))
    .executeTakeFirst();
  if (stored) return;
  await store.transaction().execute((trx) =>
    insertApiKey(trx, {
      name: 'first key',
      kind: 'personal',
      user_id: userId,
      organization_id: null,
      project_id: null,
      key,
      nowMs,
    }),
  );
}
