/** Where a branch's committed WAL ends, as a quorum of its safekeepers knows it. */
import type {Clock} from '#runtime/clock.ts';
import type {Lsn} from '#control/lsn.ts';
import type {PlanContext, Where} from '#control/operations/plan-context.ts';
import {PermanentError, type StepContext} from '#control/operations/plan.ts';
import {allNodes, type SafekeeperSet} from '#control/safekeeper-set.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import type {SafekeeperStatus, StorageClients} from '#control/storage-client.ts';

/** `committed` is known to be; up to `acknowledged` the quorum has it on disk, and commits follow within a heartbeat. */
export interface CommittedPosition {
  readonly committed: Lsn;
  readonly acknowledged: Lsn;
}

/**
 * A commit is acknowledged to the client when a quorum flushed it, and the safekeepers hear of that a moment later. "Now" must
 * contain everything that was acknowledged before it was asked for, so it is what a quorum has flushed in the newest term.
 */
export function committedPosition(statuses: readonly (SafekeeperStatus | undefined)[]): CommittedPosition | undefined {
  const quorum = Math.floor(statuses.length / 2) + 1;
  const known = statuses.filter((status) => status !== undefined);
  if (known.length < quorum) return undefined;
  const committed = known.reduce<number>((most, status) => Math.max(most, status.commitLsn), 0) as Lsn;
  const term = Math.max(...known.map((status) => status.term));
  const flushed = known
    .filter((status) => status.term === term)
    .map((status) => status.flushLsn)
    .sort((a, b) => b - a);
  // Of the quorum that has an acknowledged commit, as many as do not answer may be among the silent ones.
  const silent = statuses.length - known.length;
  const acknowledged = Math.max(committed, flushed[quorum - silent - 1] ?? 0) as Lsn;
  return {committed, acknowledged};
}

/** Asks all safekeepers of a timeline; throws when fewer than a quorum answer. */
export async function readCommittedPosition(
  storage: StorageClients,
  set: SafekeeperSet,
  tenantId: string,
  timelineId: string,
): Promise<CommittedPosition> {
  const statuses = new Map(
    await Promise.all(
      allNodes(set).map(
        async (nodeId) =>
          [
            nodeId,
            await storage
              .safekeeper(nodeId)
              .status(tenantId, timelineId)
              .catch(() => undefined),
          ] as const,
      ),
    ),
  );
  // While they are being changed, what was acknowledged last may be at a majority of the new ones only.
  const positions = [set.members, set.newMembers]
    .filter((nodes) => nodes.length > 0)
    .map((nodes) => {
      const position = committedPosition(nodes.map((nodeId) => statuses.get(nodeId)));
      if (!position)
        throw new Error(
          `fewer than a majority of the safekeepers ${nodes.join(', ')} of timeline ${timelineId} (tenant ${tenantId}) answer; a quorum is needed to know what is committed`,
        );
      return position;
    });
  const highest = (pick: (p: CommittedPosition) => Lsn): Lsn => Math.max(...positions.map(pick)) as Lsn;
  return {committed: highest((p) => p.committed), acknowledged: highest((p) => p.acknowledged)};
}

const pollMs = 50;
/** A flushed tail of a compute that died may never be committed: then what is surely committed must do. */
const acknowledgedMsMax = 3000;
const committedMsMax = 60_000;

/** Waits until the pageserver can serve "now"; answers that LSN. */
export async function waitForNow(options: {
  readonly pages: TenantPages;
  readonly clock: Clock;
  readonly position: CommittedPosition;
  readonly timelineId: string;
}): Promise<Lsn> {
  const {pages, clock, position, timelineId} = options;
  const started = clock.monotonicMs();
  for (;;) {
    const info = await pages.timeline(timelineId);
    const reached = info?.lastRecordLsn ?? 0;
    if (reached >= position.acknowledged) return position.acknowledged;
    const waitedMs = clock.monotonicMs() - started;
    if (waitedMs > acknowledgedMsMax && reached >= position.committed) return position.committed;
    if (waitedMs > committedMsMax)
      throw new Error(
        `the pageserver has not reached the committed WAL of timeline ${timelineId} (tenant ${pages.tenantId}) within ${committedMsMax / 1000} s${info?.ingestError === undefined ? '' : `: ${info.ingestError}`}`,
      );
    await clock.sleep(pollMs);
  }
}

/** The LSN at which a branch of `parent` begins: `lsn` or `timestamp` (ISO) of the state when asked for, else now. */
export async function chooseBranchPoint(
  {store, storage, clock, log}: Pick<PlanContext, 'store' | 'storage' | 'clock' | 'log'>,
  parent: Where,
  state: StepContext['state'],
): Promise<Lsn> {
  const {tenant_id: tenantId} = parent.project;
  const {timeline_id: timelineId} = parent.branch;
  const pages = new TenantPages({store, storage, clock}, tenantId);
  const position = await readCommittedPosition(storage, parent.safekeeperSet, tenantId, timelineId);
  if (typeof state['lsn'] === 'number') {
    if (state['lsn'] > position.acknowledged) throw new PermanentError('the parent branch has not reached this LSN');
    return waitForNow({
      pages,
      clock,
      position: {committed: state['lsn'] as Lsn, acknowledged: state['lsn'] as Lsn},
      timelineId,
    });
  }
  const now = await waitForNow({pages, clock, position, timelineId});
  if (typeof state['timestamp'] !== 'string') return now;
  const answer = await pages.lsnByTimestamp(timelineId, state['timestamp']);
  log.info('branch point by timestamp', {
    tenant: tenantId,
    timeline: timelineId,
    timestamp: state['timestamp'],
    kind: answer.kind,
  });
  // Nothing was committed after that time: the newest state is the state of then.
  if (answer.kind === 'future' || answer.kind === 'nodata') return now;
  if (answer.kind === 'past')
    throw new PermanentError(
      'the timestamp lies before the beginning of the parent branch, or before its history window',
    );
  return answer.lsn ?? now;
}
