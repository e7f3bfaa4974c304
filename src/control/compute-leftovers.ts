/** What computes leave on their machine goes when their endpoint is gone: a directory with a cache, a port, later its log. */
import {endpointLock} from '#control/api/context.ts';
import type {ComputeLauncher} from '#control/launcher.ts';
import type {OperationRunner} from '#control/operations/runner.ts';
import {startSweep, type Sweep} from '#control/sweep.ts';
import type {Store} from '#control/store/schema.ts';
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';

const sweepEveryMs = 60_000;
/** A proxy may know the port for a while; nobody else's compute may have it then (compute-ports.ts). */
export const goneForMs = 3_600_000;

export interface ComputeLeftoversContext {
  readonly store: Store;
  readonly runner: Pick<OperationRunner, 'holder'>;
  readonly launcher: Pick<ComputeLauncher, 'kept' | 'discard' | 'removeOldLogs'>;
  readonly clock: Clock;
  readonly log: Log;
}

export function startDiscarding(context: ComputeLeftoversContext): Sweep {
  const {clock, log} = context;
  return startSweep({
    clock,
    log,
    everyMs: sweepEveryMs,
    what: 'looking for what deleted endpoints have left',
    sweep: () => discardDeleted(context),
  });
}

/** One that can be recovered keeps its port. */
export async function discardDeleted({store, runner, launcher, clock, log}: ComputeLeftoversContext): Promise<void> {
  launcher.removeOldLogs();
  const kept = launcher.kept();
  if (kept.length === 0) return;
  const gone = await store
    .selectFrom('endpoints')
    .innerJoin('branches', 'branches.id', 'endpoints.branch_id')
    .select(['endpoints.id', 'endpoints.project_id'])
    .where('endpoints.id', 'in', kept)
    .where('endpoints.deleted_at', '<=', clock.nowMs() - goneForMs)
    .where((e) => e.or([e('branches.deleted_at', 'is', null), e('branches.purge_at', 'is', null)]))
    .execute();
  for (const {id, project_id: projectId} of gone) {
    if (await runner.holder(store, projectId, [endpointLock(id)])) continue;
    await launcher.discard(id);
    log.info('what a deleted endpoint has left is removed', {endpoint: id});
  }
}
