/** What every new timeline needs of the safekeepers, whichever plan makes it. */
import type {Lsn} from '#control/lsn.ts';
import {pgVersionNumber, type PlanContext, type Where, whereIs} from '#control/operations/plan-context.ts';
import {PermanentError} from '#control/operations/plan.ts';
import {completeTimeline} from '#control/operations/complete-timeline-plan.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import type {NewSafekeeperTimeline, StorageClients} from '#control/storage-client.ts';
import {TenantPages} from '#control/tenant-pages.ts';

/** After the majority has answered. */
const stragglerMs = 2000;

export interface SafekeeperEffects {
  /**
   * A majority of them holds the branch's WAL from this LSN on. Answers the operation that brings it to the others, if any is missing.
   */
  createTimelines(branchId: string | null, startLsn: Lsn): Promise<OperationDraft[]>;
  /** The pageserver knows where the branch's WAL is. */
  tellPageserver(branchId: string | null): Promise<void>;
}

export function safekeeperEffects({
  store,
  storage,
  clock,
}: Pick<PlanContext, 'store' | 'storage' | 'clock'>): SafekeeperEffects {
  const nodes = (where: Where): StorageClients['safekeepers'] =>
    storage.safekeepers.filter((node) => where.safekeepers.includes(node.nodeId));
  return {
    async createTimelines(branchId, startLsn) {
      const where = await whereIs(store, branchId);
      const timeline: NewSafekeeperTimeline = {
        tenantId: where.project.tenant_id,
        timelineId: where.branch.timeline_id,
        systemId: where.project.system_id,
        pgVersion: pgVersionNumber(where.project.pg_version),
        startLsn,
        members: nodes(where),
      };
      const missing = new Set(where.safekeepers);
      const failures: unknown[] = [];
      const enough = Promise.withResolvers<void>();
      const majority = Math.floor(where.safekeepers.length / 2) + 1;
      const all = Promise.all(
        where.safekeepers.map(async (nodeId) => {
          try {
            await storage.safekeeper(nodeId).createTimeline(timeline);
            missing.delete(nodeId);
            if (where.safekeepers.length - missing.size >= majority) enough.resolve();
          } catch (error) {
            failures.push(error);
          }
        }),
      );
      // A dead node's connection may hang.
      await Promise.race([all, enough.promise.then(() => Promise.race([all, clock.sleep(stragglerMs)]))]);
      const refusal = failures.find((error) => error instanceof PermanentError);
      if (refusal !== undefined || where.safekeepers.length - missing.size < majority) throw refusal ?? failures[0];
      if (missing.size === 0) return [];
      return [completeTimeline(where.project.id, where.branch.id, {...timeline, missing: [...missing]})];
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
