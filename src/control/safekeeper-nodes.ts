/** The safekeepers that exist: those of the configuration, and those that were added since. The database remembers all. */
import type {SafekeeperNode} from '#control/config.ts';
import type {Store, StoreTransaction} from '#control/store/schema.ts';

export async function readSafekeepers(store: Store | StoreTransaction): Promise<SafekeeperNode[]> {
  const rows = await store.selectFrom('safekeepers').selectAll().orderBy('node_id').execute();
  return rows.map((row) => ({
    nodeId: row.node_id,
    host: row.host,
    port: row.port,
    httpPort: row.http_port,
    ...(row.zone === '' ? {} : {zone: row.zone}),
    ...(row.retired === 0 ? {} : {retired: true}),
  }));
}

/** Adds it, or gives it another address or zone. Whether it is retired stays unless the node says. */
export async function noteSafekeeper(trx: StoreTransaction, node: SafekeeperNode): Promise<void> {
  const row = {host: node.host, port: node.port, http_port: node.httpPort, zone: node.zone ?? ''};
  const retired = node.retired === undefined ? {} : {retired: node.retired ? 1 : 0};
  await trx
    .insertInto('safekeepers')
    .values({node_id: node.nodeId, ...row, retired: 0, ...retired})
    .onConflict((c) => c.column('node_id').doUpdateSet({...row, ...retired}))
    .execute();
}
