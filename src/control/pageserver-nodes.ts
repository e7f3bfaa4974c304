/** The pageservers that exist: those of the configuration, and those that were added since. The database remembers all. */
import type {PageserverNode} from '#control/config.ts';
import type {Store, StoreTransaction} from '#control/store/schema.ts';

export async function readPageservers(store: Store | StoreTransaction): Promise<PageserverNode[]> {
  const rows = await store.selectFrom('pageservers').selectAll().orderBy('node_id').execute();
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
export async function notePageserver(trx: StoreTransaction, node: PageserverNode): Promise<void> {
  const row = {host: node.host, port: node.port, http_port: node.httpPort, zone: node.zone ?? ''};
  const retired = node.retired === undefined ? {} : {retired: node.retired ? 1 : 0};
  await trx
    .insertInto('pageservers')
    .values({node_id: node.nodeId, ...row, retired: 0, ...retired})
    .onConflict((c) => c.column('node_id').doUpdateSet({...row, ...retired}))
    .execute();
}
