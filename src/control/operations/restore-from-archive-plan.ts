/**
 * All safekeepers of a branch have lost their disks: its WAL comes back from the object store, up to the last archived whole
 * record, or further when the pageserver has ingested more. What was acknowledged after that is gone; the operation's state
 * says where the branch goes on (`lsn`), and so does `GET /internal/v1/branches/:id/wal`.
 *
 * Refused while one member still has the timeline: then it has more than the archive, and replacing the others is right.
 * State in: `members` (node ids; they are asked to take the timeline).
 */
import {formatLsn, type Lsn} from '#control/lsn.ts';
import {type PlanContext, stopComputesStep, whereIs} from '#control/operations/plan-context.ts';
import {PermanentError, type Plan} from '#control/operations/plan.ts';
import {memberOf, setOf, writeSafekeeperSet} from '#control/safekeeper-set.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import type {Membership} from '#wire/safekeeper.ts';

interface RestoreFromArchiveState {
  readonly members: readonly number[];
  readonly membership: Membership;
  /** Where the branch goes on. */
  readonly lsn: number;
}

export function restoreFromArchivePlan(context: PlanContext): Plan {
  const {store, storage} = context;
  return {
    kind: 'restore_from_archive',
    steps: [
      stopComputesStep(context),
      {
        name: 'choose-lsn',
        async effect({operation, state}) {
          const {members} = state as unknown as RestoreFromArchiveState;
          const where = await whereIs(store, operation.branch_id);
          const {tenant_id: tenantId} = where.project;
          const {timeline_id: timelineId} = where.branch;
          for (const nodeId of where.safekeepers) {
            // One that does not answer may have all of it: whoever asks for a restore says that it is gone by naming others.
            const client = storage.safekeeper(nodeId);
            const status = members.includes(nodeId)
              ? await client.status(tenantId, timelineId)
              : await client.status(tenantId, timelineId).catch(() => undefined);
            if (status !== undefined)
              throw new PermanentError(
                `safekeeper ${nodeId} still has timeline ${timelineId}, up to ${formatLsn(status.flushLsn)}: replace the others instead`,
              );
          }
          const archive = await storage.safekeeper(members[0]!).archive(tenantId, timelineId);
          if (archive === undefined)
            throw new PermanentError(`nothing of timeline ${timelineId} is in the object store`);
          const tenantPages = new TenantPages(context, tenantId);
          await tenantPages.attach();
          const pages = await tenantPages.timeline(timelineId);
          const membership: Membership = {
            // Above everything that a change under way may have told anybody.
            generation: where.safekeeperSet.generation + 10,
            members: members.map((id) => memberOf(storage.safekeepers, id)),
            newMembers: [],
          };
          return {membership, lsn: Math.max(archive.restoreLsn, pages?.lastRecordLsn ?? 0)};
        },
      },
      {
        name: 'restore',
        async effect({operation, state}) {
          const {membership, lsn} = state as unknown as RestoreFromArchiveState;
          const {project, branch} = await whereIs(store, operation.branch_id);
          const statuses = await Promise.all(
            membership.members.map(({nodeId}) =>
              storage
                .safekeeper(nodeId)
                .restoreFromArchive(project.tenant_id, branch.timeline_id, membership, lsn as Lsn),
            ),
          );
          return {lsn: Math.max(...statuses.map((status) => status.flushLsn))};
        },
        async record(trx, {operation, state, nowMs}) {
          const {membership} = state as unknown as RestoreFromArchiveState;
          await trx
            .updateTable('branches')
            .set({safekeepers: writeSafekeeperSet(setOf(membership)), updated_at: nowMs})
            .where('id', '=', operation.branch_id!)
            .execute();
        },
      },
      {
        name: 'tell-pageserver',
        async effect({operation}) {
          const where = await whereIs(store, operation.branch_id);
          await new TenantPages(context, where.project.tenant_id).setSafekeepers(
            where.branch.timeline_id,
            storage.safekeepers.filter((node) => where.safekeepers.includes(node.nodeId)),
          );
          return undefined;
        },
      },
    ],
  };
}
