/**
 * Restoring a branch: a new timeline at a point of the source takes the place of the branch's own. Id, name, endpoints and
 * passwords' owner stay; the old timeline becomes that of a second branch row, the `kept` one, which the request has made.
 *
 * Until the swap the kept row owns the new timeline (a timeline has exactly one row, always), so a restore that cannot be
 * carried out leaves nothing but a row that is forgotten. State in: `keptId`, `sourceId`, `discard`, and `lsn?` or
 * `timestamp?` (ISO), neither = now.
 */
import {copyCatalog} from '#control/catalog-copy.ts';
import {alignDown, type Lsn} from '#control/lsn.ts';
import {wakeBranch} from '#control/operations/archive-plan.ts';
import {chooseBranchPoint} from '#control/operations/branch-point.ts';
import {purgeBranch} from '#control/operations/delete-plans.ts';
import {pgVersionNumber, type PlanContext, stopComputesStep, whereIs} from '#control/operations/plan-context.ts';
import type {OperationState, Plan, StepContext} from '#control/operations/plan.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {safekeeperEffects} from '#control/operations/safekeeper-effects.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {forgetBranch} from '#control/store/forget.ts';
import type {StoreTransaction} from '#control/store/schema.ts';

interface RestoreState extends OperationState {
  /** The row that has the new timeline before the swap and the old one after it. */
  readonly keptId: string;
  readonly sourceId: string;
  /** The old state is not kept: its timeline goes. */
  readonly discard: boolean;
  readonly lsn: number;
  /** A point in the past was asked for: what has been made since then must be applied again. */
  readonly isPast: boolean;
}

export function restoreBranchPlan(context: PlanContext): Plan {
  const {store} = context;
  const safekeepers = safekeeperEffects(context);
  const read = (state: OperationState): RestoreState => state as RestoreState;
  return {
    kind: 'restore_branch',
    steps: [
      {
        name: 'choose-lsn',
        async effect({operation, state}) {
          // Archived or not: the state of the row is `resetting`.
          for (const id of new Set([read(state).sourceId, operation.branch_id!])) await wakeBranch(context, id);
          const source = await whereIs(store, read(state).sourceId);
          return {lsn: alignDown(await chooseBranchPoint(context, source, state))};
        },
      },
      stopComputesStep(context),
      {
        name: 'create-timeline',
        async effect({state}) {
          const {project, branch} = await whereIs(store, read(state).keptId);
          const source = await whereIs(store, read(state).sourceId);
          const pages = new TenantPages(context, project.tenant_id);
          await pages.attach();
          await pages.createTimeline(branch.timeline_id, pgVersionNumber(project.pg_version), {
            kind: 'branch',
            ancestorTimelineId: source.branch.timeline_id,
            ancestorLsn: read(state).lsn as Lsn,
          });
          return undefined;
        },
      },
      {
        name: 'create-safekeeper-timelines',
        async effect({state}) {
          return {follow: await safekeepers.createTimelines(read(state).keptId, read(state).lsn as Lsn)};
        },
        follow: (state) => state['follow'] as OperationDraft[],
      },
      {
        name: 'tell-pageserver',
        async effect({state}) {
          await safekeepers.tellPageserver(read(state).keptId);
          return undefined;
        },
        record: (trx, step) => swap(context, trx, step),
      },
      {
        name: 'discard-old-timeline',
        effect: async ({state}) => ({purged: read(state).discard && (await purgeBranch(context, read(state).keptId))}),
        async record(trx, {state}) {
          if (state['purged'] !== true) return;
          await trx.updateTable('branches').set({purge_at: null}).where('id', '=', read(state).keptId).execute();
        },
      },
    ],
    async onFailed(trx, {operation, state, nowMs}) {
      await forgetBranch(trx, read(state).keptId, nowMs);
      await trx
        .updateTable('branches')
        .set({state: 'ready', pending_state: null, state_changed_at: nowMs, updated_at: nowMs})
        .where('id', '=', operation.branch_id!)
        .execute();
    },
  };
}

async function swap(
  {vault}: PlanContext,
  trx: StoreTransaction,
  {operation, state, nowMs}: StepContext & {readonly nowMs: number},
): Promise<void> {
  const {keptId, sourceId, lsn, isPast} = state as RestoreState;
  const row = (id: string) => trx.selectFrom('branches').selectAll().where('id', '=', id).executeTakeFirstOrThrow();
  const branch = await row(operation.branch_id!);
  const kept = await row(keptId);
  const source = await row(sourceId);
  const isSelf = source.id === branch.id;
  // Two rows with one timeline cannot be, not even between two statements.
  await trx
    .updateTable('branches')
    .set({timeline_id: `swapping ${kept.id}`})
    .where('id', '=', branch.id)
    .execute();
  await trx
    .updateTable('branches')
    .set({parent_id: kept.id})
    .where('parent_id', '=', branch.id)
    .where('id', '!=', kept.id)
    .execute();
  await trx
    .updateTable('branches')
    .set({
      timeline_id: branch.timeline_id,
      safekeepers: branch.safekeepers,
      parent_id: branch.parent_id,
      parent_lsn: branch.parent_lsn,
      parent_timestamp: branch.parent_timestamp,
      catalog_version: branch.catalog_version,
      catalog_applied: branch.catalog_applied,
      catalog_applied_lsn: branch.catalog_applied_lsn,
      state: 'ready',
      pending_state: null,
      state_changed_at: nowMs,
      updated_at: nowMs,
    })
    .where('id', '=', kept.id)
    .execute();
  await copyCatalog(trx, vault, branch.id, kept.id, nowMs);
  if (!isSelf) {
    for (const table of ['roles', 'databases', 'dropped_objects'] as const)
      await trx.deleteFrom(table).where('branch_id', '=', branch.id).execute();
    await copyCatalog(trx, vault, source.id, branch.id, nowMs);
  }
  await trx
    .updateTable('branches')
    .set({
      timeline_id: kept.timeline_id,
      safekeepers: kept.safekeepers,
      parent_id: isSelf ? kept.id : source.id,
      parent_lsn: lsn,
      parent_timestamp: kept.parent_timestamp,
      catalog_version: source.catalog_version,
      catalog_applied: isPast ? source.catalog_version - 1 : source.catalog_applied,
      catalog_applied_lsn: isPast ? null : 0,
      state: 'ready',
      pending_state: null,
      last_reset_at: nowMs,
      state_changed_at: nowMs,
      updated_at: nowMs,
    })
    .where('id', '=', branch.id)
    .execute();
}
