/**
 * A timeline is made when a majority of its safekeepers has it: one that is down delays nobody. This brings it to those that were
 * missing, as soon as they answer. One that is no member any more, or a timeline that is gone, is not waited for.
 *
 * It is made as it would have been in time, whatever has become of the membership since: who never had the timeline has voted for nobody
 * and acknowledged nothing, and learns from its peers what has changed, as a member that was away.
 */
import type {PlanContext} from '#control/operations/plan-context.ts';
import {type OperationState, type Plan, SkippedError} from '#control/operations/plan.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {inStorage} from '#control/store/in-storage.ts';
import {allNodes, membershipOf, readSafekeeperSet, type SafekeeperSet} from '#control/safekeeper-set.ts';
import type {NewSafekeeperTimeline} from '#control/storage-client.ts';

const kind = 'complete_timeline';

export interface IncompleteTimeline extends NewSafekeeperTimeline {
  /** Node ids. */
  readonly missing: readonly number[];
}

export function completeTimeline(projectId: string, branchId: string, timeline: IncompleteTimeline): OperationDraft {
  // No lock of the branch's: it must not keep anybody waiting.
  const locks = [`complete:${timeline.timelineId}`];
  return {projectId, branchId, action: 'apply_storage_config', kind, locks, state: {timeline}};
}

export function completeTimelinePlan({store, storage}: PlanContext): Plan {
  const read = (state: OperationState): IncompleteTimeline => state['timeline'] as IncompleteTimeline;
  /** undefined: the timeline is gone. */
  const safekeeperSet = async (timelineId: string): Promise<SafekeeperSet | undefined> => {
    const branch = await store
      .selectFrom('branches')
      .select('safekeepers')
      .where('timeline_id', '=', timelineId)
      .where(inStorage)
      .executeTakeFirst();
    return branch && readSafekeeperSet(branch.safekeepers);
  };
  return {
    kind,
    steps: [
      {
        name: 'create-safekeeper-timelines',
        async effect({state}) {
          const {missing, ...timeline} = read(state);
          const {tenantId, timelineId} = timeline;
          for (const nodeId of missing) {
            const set = await safekeeperSet(timelineId);
            if (set === undefined) throw new SkippedError(`timeline ${timelineId} is gone`);
            if (!set.members.includes(nodeId)) continue;
            const client = storage.safekeeper(nodeId);
            // It may be a member anew, with a copy.
            if ((await client.status(tenantId, timelineId)) !== undefined) continue;
            await client.createTimeline(timeline);
            // Deleted or replaced while it was made: whoever did that has asked this node before it had anything.
            const now = await safekeeperSet(timelineId);
            if (now === undefined) await client.deleteTimeline(tenantId, timelineId);
            else if (!allNodes(now).includes(nodeId))
              await client.exclude(tenantId, timelineId, membershipOf(now, storage.safekeepers));
          }
          return undefined;
        },
      },
    ],
  };
}
