/** Which pageserver holds which shard: the rows of the table `attachments`. */
import type {AttachmentTable, Store, StoreTransaction} from '#control/store/schema.ts';
import type {StorageClients} from '#control/storage-client.ts';
import type {ShardLocation} from '#wire/compute-spec.ts';
import {formatShardId} from '#wire/shard.ts';

export interface Attachment {
  readonly tenantId: string;
  readonly number: number;
  readonly count: number;
  /** What pageservers and the object store call it (wire/shard.ts). */
  readonly shardId: string;
  readonly pageserverId: number;
  readonly generation: number;
  readonly secondaryId?: number;
}

/** Every shard of the tenant, in order; none: it was deleted, or never was. */
export async function readAttachments(store: Store | StoreTransaction, tenantId: string): Promise<Attachment[]> {
  const rows = await store
    .selectFrom('attachments')
    .selectAll()
    .where('tenant_id', '=', tenantId)
    .orderBy('shard_number')
    .execute();
  return rows.map(attachmentOf);
}

/** Where computes find the tenant's pages now; the shards in order. */
export async function shardLocations(
  {store, storage}: {readonly store: Store; readonly storage: Pick<StorageClients, 'pageservers'>},
  tenantId: string,
): Promise<[ShardLocation, ...ShardLocation[]]> {
  const [first, ...others] = await readAttachments(store, tenantId);
  if (first === undefined) throw new Error(`tenant ${tenantId} is gone: no pageserver holds it`);
  const locate = ({shardId, pageserverId}: Attachment): ShardLocation => {
    const node = storage.pageservers.find(({nodeId}) => nodeId === pageserverId);
    if (!node)
      throw new Error(`the control plane knows no pageserver ${pageserverId}, but shard ${shardId} lives there`);
    return {shardId, host: node.host, port: node.port, httpPort: node.httpPort};
  };
  return [locate(first), ...others.map(locate)];
}

export function attachmentOf(row: Readonly<AttachmentTable>): Attachment {
  const {tenant_id: tenantId, shard_number: number, shard_count: count} = row;
  return {
    tenantId,
    number,
    count,
    shardId: formatShardId({tenantId, number, count}),
    pageserverId: row.pageserver_id,
    generation: row.generation,
    ...(row.secondary_id === null ? {} : {secondaryId: row.secondary_id}),
  };
}
