/** What every new timeline needs of the safekeepers, whichever plan makes it. */
import type {Lsn} from '#control/lsn.ts';
import {pgVersionNumber, type PlanContext, type Where, whereIs} from '#control/operations/plan-context.ts';
import type {StorageClients} from '#control/storage-client.ts';
import {TenantPages} from '#control/tenant-pages.ts';

export interface SafekeeperEffects {
  /** They hold the branch's WAL from this LSN on. */
  createTimelines(branchId: string | null, startLsn: Lsn): Promise<void>;
  /** The pageserver knows where the branch's WAL is. */
  tellPageserver(branchId: string | null): Promise<void>;
}

export function safekeeperEffects({store, storage}: Pick<PlanContext, 'store' | 'storage'>): SafekeeperEffects {
  const nodes = (where: Where): StorageClients['safekeepers'] =>
    storage.safekeepers.filter((node) => where.safekeepers.includes(node.nodeId));
  return {
    async createTimelines(branchId, startLsn) {
      const where = await whereIs(store, branchId);
      await Promise.all(
        where.safekeepers.map((nodeId) =>
          storage.safekeeper(nodeId).createTimeline({
            tenantId: where.project.tenant_id,
            timelineId: where.branch.timeline_id,
            systemId: where.project.system_id,
            pgVersion: pgVersionNumber(where.project.pg_version),
            startLsn,
            members: nodes(where),
          }),
        ),
      );
    },
    async tellPageserver(branchId) {
      const where = await whereIs(store, branchId);
      const pages = new TenantPages({store, storage}, where.project.tenant_id);
      await pages.setSafekeepers(where.branch.timeline_id, nodes(where));
      // From its first byte on: what a new timeline forgot before it was told would be gone.
      await pages.setRetention(where.branch.timeline_id, where.project.history_retention_seconds);
    },
  };
}
