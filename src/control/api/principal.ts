/** Who calls API v2: API keys, how they are made and checked. */
import {equalConstantTime, sha256} from '#runtime/crypto.ts';
import type {Clock} from '#runtime/clock.ts';
import type {Random} from '#runtime/random.ts';
import {apiErrors} from '#control/api/errors.ts';
import type {ApiKeyTable, Store, StoreTransaction} from '#control/store/schema.ts';

export interface Principal {
  readonly kind: 'personal' | 'organization' | 'project';
  readonly userId: string;
  /** Of an organisation's or a project's key. */
  readonly organizationId?: string;
  /** The only project that the key opens. */
  readonly projectId?: string;
  readonly apiKeyId: number;
}

const prefix = 'napi_';

/** 256 random bits. Shown once; only its SHA-256 is stored: with this much entropy a slow hash adds nothing. */
export function makeApiKey(random: Random): string {
  return prefix + random.bytes(32).toString('hex');
}

export function hashApiKey(key: string): string {
  return sha256(Buffer.from(key)).toString('hex');
}

export async function insertApiKey(
  trx: StoreTransaction,
  values: Pick<ApiKeyTable, 'name' | 'kind' | 'user_id' | 'organization_id' | 'project_id'> & {
    readonly key: string;
    readonly nowMs: number;
  },
): Promise<number> {
  const last = await trx
    .selectFrom('api_keys')
    .select((e) => e.fn.max('id').as('id'))
    .executeTakeFirst();
  const id = Number(last?.id ?? 0) + 1;
  await trx
    .insertInto('api_keys')
    .values({
      id,
      name: values.name,
      kind: values.kind,
      user_id: values.user_id,
      organization_id: values.organization_id,
      project_id: values.project_id,
      key_hash: hashApiKey(values.key),
      created_at: values.nowMs,
      last_used_at: null,
      revoked_at: null,
    })
    .execute();
  return id;
}

/** The use of a key is noted at most this often. */
const noteUseEveryMs = 60_000;

/** Throws ApiError 401. */
export async function authenticate(store: Store, clock: Clock, authorization: string | undefined): Promise<Principal> {
  const key = /^Bearer (.+)$/i.exec(authorization ?? '')?.[1];
  if (key === undefined || key.length > 200) throw apiErrors.unauthorized();
  const hash = hashApiKey(key);
  const row = await store.selectFrom('api_keys').selectAll().where('key_hash', '=', hash).executeTakeFirst();
  if (!row || row.revoked_at !== null || !equalConstantTime(Buffer.from(row.key_hash), Buffer.from(hash)))
    throw apiErrors.unauthorized();
  const nowMs = clock.nowMs();
  if (nowMs - (row.last_used_at ?? 0) > noteUseEveryMs)
    await store.updateTable('api_keys').set({last_used_at: nowMs}).where('id', '=', row.id).execute();
  return {
    kind: row.kind,
    userId: row.user_id,
    ...(row.organization_id === null ? {} : {organizationId: row.organization_id}),
    ...(row.project_id === null ? {} : {projectId: row.project_id}),
    apiKeyId: row.id,
  };
}
