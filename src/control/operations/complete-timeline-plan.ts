/**
 * A timeline is made when a majority of its safekeepers has it: one that is down delays nobody. This brings it to those that were
 * missing, as soon as they answer. One that is no member any more, or a timeline that is gone, is not waited for.
 *
 * It may be made late as it could have been made in time: who never had the timeline has voted for nobody and acknowledged nothing.
 */
import type {PlanContext} from '#control/operations/plan-context.ts';
import {type OperationState, type Plan, SkippedError} from '#control/operations/plan.ts';
import type {OperationDraft} from '#control/operations/runner.ts';
import {membershipOf, readSafekeeperSet, type SafekeeperSet} from '#control/safekeeper-set.ts';
import type {NewSafekeeperTimeline} from '#control/storage-client.ts';

const kind = 'complete_timeline';
const pullMsMax = 120_000;

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
      .where('deleted_at', 'is', null)
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
            if (set.generation === 1) await client.createTimeline(timeline);
            else {
              const membership = membershipOf(set, storage.safekeepers);
              const donors = membership.members.filter((member) => member.nodeId !== nodeId);
              await client.pull(tenantId, timelineId, membership, donors, pullMsMax);
            }
            // Deleted while it was being made: whoever deletes has asked this node before it had it.
            if ((await safekeeperSet(timelineId)) === undefined) await client.deleteTimeline(tenantId, timelineId);
          }
          return undefined;
        },
      },
    ],
  };
}
