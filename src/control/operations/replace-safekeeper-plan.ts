/**
 * Changes the safekeepers of one branch while it is written to: carries out the pure plan of wire/membership.ts, step by step.
 *
 * The plan's state is in the operation's state, and what a starting compute has to be told is in branches.safekeepers; both are
 * saved in one transaction before anything of a new state is done. So a control plane that is killed goes on where it was.
 *
 * State in: `remove` (node ids), `add` (node ids, chosen when the operation is asked for). It works on the branch's timeline as
 * it is when the operation begins. The lock is `safekeepers:<branch>`: computes of the branch start and stop meanwhile.
 */
import {memberOf, membershipOf, readSafekeeperSet, setOf, writeSafekeeperSet} from '#control/safekeeper-set.ts';
import {type PlanContext, oweDeletion, whereIs} from '#control/operations/plan-context.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {PermanentError, type Plan, SkippedError, type StepContext} from '#control/operations/plan.ts';
import {isInStorage} from '#control/store/in-storage.ts';
import {type MembershipAction, MembershipChange, type MembershipChangeState} from '#wire/membership.ts';

export interface ReplaceState {
  readonly remove: readonly number[];
  readonly add: readonly number[];
  readonly tenantId: string;
  readonly timelineId: string;
  readonly change: MembershipChangeState;
  /** For people: what the change waits for. */
  readonly waitsFor?: string;
}

/** Copying takes as long as it takes; a node that is gone must not hold up the others' round. */
const pullMsMax = 600_000;
const roundMsMax = 5000;
const pauseMs = 200;
/** Rounds without progress before the operation says so (and is tried again). */
const roundsMax = 10;
/** Tries to reach nodes for which the change is over already. */
const farewellRounds = 3;

export function replaceSafekeeperPlan(context: PlanContext): Plan {
  const {store, storage} = context;
  return {
    kind: 'replace_safekeeper',
    steps: [
      {
        name: 'begin',
        async effect({operation, state}) {
          const {remove, add} = state as unknown as ReplaceState;
          const {branch, project, safekeeperSet} = await whereIs(store, operation.branch_id);
          if (!isInStorage(branch)) throw new SkippedError(`branch ${branch.id} is gone`);
          const {members} = safekeeperSet;
          const target = [...new Set([...members.filter((id) => !remove.includes(id)), ...add])];
          // It was asked for when another change had not begun or ended: as many as before, or a fault more is one too many.
          if (target.length !== members.length)
            throw new PermanentError(
              `the safekeepers of branch ${branch.id} are ${members.join(', ')} by now: without ${remove.join(', ')} and with ${add.join(', ')} they would be ${target.length}; ask again`,
            );
          const base = membershipOf(safekeeperSet, storage.safekeepers);
          let change: MembershipChangeState;
          try {
            change = MembershipChange.begin(
              base,
              target.map((id) => memberOf(storage.safekeepers, id)),
            );
          } catch (error) {
            throw new PermanentError((error as Error).message, {cause: error});
          }
          return {tenantId: project.tenant_id, timelineId: branch.timeline_id, change};
        },
      },
      {
        name: 'change',
        effect: async (step) => ({change: await carryOut(context, step)}),
      },
      {
        name: 'tell-pageserver',
        async effect({state}) {
          const {change, tenantId, timelineId} = state as unknown as ReplaceState;
          await stopIfGone(context, {change, tenantId, timelineId});
          const ids = change.final.members.map((m) => m.nodeId);
          await new TenantPages(context, tenantId).setSafekeepers(
            timelineId,
            storage.safekeepers.filter((node) => ids.includes(node.nodeId)),
          );
          return undefined;
        },
      },
      {
        name: 'farewell',
        async effect({state}) {
          const {change, tenantId, timelineId} = state as unknown as ReplaceState;
          const plan = new MembershipChange(change);
          // A member that cannot be reached learns it from its peers; who is none any more, from safekeeper-farewells.ts.
          for (let round = 0; round < farewellRounds && plan.actions().length > 0; round++) {
            if (round > 0) await context.clock.sleep(1000);
            await doAll(context, plan, {tenantId, timelineId});
          }
          return {unreached: plan.actions().map((action) => action.node.nodeId)};
        },
      },
    ],
  };
}

/** Until the new configuration is in force. Throws what it waits for when it does not get on; the next try goes on from there. */
async function carryOut(context: PlanContext, {operation, state}: StepContext): Promise<MembershipChangeState> {
  const {clock} = context;
  const {change, tenantId, timelineId} = state as unknown as ReplaceState;
  const plan = new MembershipChange(change);
  let saved: MembershipChangeState | undefined;
  for (let idle = 0; ;) {
    if (plan.state !== saved) {
      saved = plan.state;
      await save(context, operation.id, {
        ...(state as unknown as ReplaceState),
        change: saved,
        waitsFor: plan.waitsFor,
      });
      context.log.info('changing safekeepers', {
        branch: operation.branch_id,
        phase: saved.phase,
        waitsFor: plan.waitsFor,
      });
      idle = 0;
    }
    if (plan.isDone) return saved;
    await stopIfGone(context, {change: saved, tenantId, timelineId});
    const failures = await doAll(context, plan, {tenantId, timelineId});
    if (plan.state !== saved) continue;
    if (++idle === roundsMax)
      throw new Error(`waiting for ${plan.waitsFor}${failures.length === 0 ? '' : ` (${failures.join('; ')})`}`);
    await clock.sleep(pauseMs);
  }
}

/** One round of all actions at the same time; answers what failed. */
async function doAll(
  {storage, clock}: PlanContext,
  plan: MembershipChange,
  {tenantId, timelineId}: {readonly tenantId: string; readonly timelineId: string},
): Promise<string[]> {
  const failures: string[] = [];
  const one = async (action: MembershipAction): Promise<void> => {
    const {nodeId} = action.node;
    const client = storage.safekeeper(nodeId);
    try {
      if (action.kind === 'put')
        plan.answered(nodeId, await client.setMembership(tenantId, timelineId, action.membership, action.minTerm));
      else if (action.kind === 'pull')
        plan.answered(nodeId, await client.pull(tenantId, timelineId, action.membership, action.from, pullMsMax));
      else {
        await client.exclude(tenantId, timelineId, action.membership);
        plan.excluded(nodeId);
      }
    } catch (error) {
      failures.push(`safekeeper ${nodeId}: ${(error as Error).message}`);
    }
  };
  const actions = plan.actions();
  const all = Promise.all(actions.map(one));
  // A dead node's connection may hang: the others' answers count without it. A copy is waited for.
  const patience = actions.some((action) => action.kind === 'pull') ? pullMsMax : roundMsMax;
  const {promise: timeout, resolve} = Promise.withResolvers<void>();
  const timer = clock.setTimer(patience, resolve);
  await Promise.race([all, timeout]);
  timer.cancel();
  return failures;
}

async function save({store, clock}: PlanContext, operationId: string, state: ReplaceState): Promise<void> {
  const {configuration} = new MembershipChange(state.change);
  const nowMs = clock.nowMs();
  await store.transaction().execute(async (trx) => {
    await trx
      .updateTable('operations')
      .set({state: JSON.stringify(state), updated_at: nowMs})
      .where('id', '=', operationId)
      .execute();
    const branch = await trx
      .selectFrom('branches')
      .select('safekeepers')
      .where('timeline_id', '=', state.timelineId)
      .executeTakeFirst();
    // Generations only grow, also here.
    if (branch !== undefined && readSafekeeperSet(branch.safekeepers).generation < configuration.generation)
      await trx
        .updateTable('branches')
        .set({safekeepers: writeSafekeeperSet(setOf(configuration)), updated_at: nowMs})
        .where('timeline_id', '=', state.timelineId)
        .execute();
  });
}

/**
 * The branch may have been deleted meanwhile, which waits for no change: copies that the deletion did not know of go too. Who is down
 * is told when it is back.
 */
async function stopIfGone(
  {store, storage}: PlanContext,
  {change, tenantId, timelineId}: Pick<ReplaceState, 'change' | 'tenantId' | 'timelineId'>,
): Promise<void> {
  const branch = await store
    .selectFrom('branches')
    .select(['deleted_at', 'purge_at'])
    .where('timeline_id', '=', timelineId)
    .executeTakeFirst();
  if (branch !== undefined && isInStorage(branch)) return;
  await Promise.all(
    change.joint.newMembers.map(({nodeId}) =>
      storage
        .safekeeper(nodeId)
        .deleteTimeline(tenantId, timelineId)
        .catch(() => oweDeletion(store, nodeId, tenantId, timelineId)),
    ),
  );
  throw new SkippedError(`timeline ${timelineId} is gone`);
}
