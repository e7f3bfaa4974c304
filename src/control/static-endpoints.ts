/**
 * A branch at a point of its past, to look at: `neon connection-string main@<LSN or time>` prints an address for it. The proxy asks
 * here, once it knows who it is that connects; the answer is an endpoint that no list shows, whose compute reads at that one LSN
 * (compute/standby.ts). It suspends soon and is forgotten when nobody has come back for a while; nothing of it is in storage but
 * a lease that its compute renews.
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import {parseTime} from '#runtime/time-format.ts';
import {apiErrors} from '#control/api/errors.ts';
import {newEndpoint} from '#control/endpoint-row.ts';
import {newEndpointId} from '#control/ids.ts';
import {alignDown, type Lsn, parseLsn} from '#control/lsn.ts';
import {wakeBranch} from '#control/operations/archive-plan.ts';
import {chooseBranchPoint} from '#control/operations/branch-point.ts';
import {PermanentError} from '#control/operations/plan.ts';
import {whereIs} from '#control/operations/plan-context.ts';
import type {StorageClients} from '#control/storage-client.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import type {BranchTable, Store} from '#control/store/schema.ts';

/** Neon's own are dropped after less; a person who looks around thinks in between. */
const suspendSeconds = 60;
const forgetAfterMs = 10 * 60_000;
/** Each is a Postgres: somebody who connects to every LSN must not have one for each. */
const perProjectMax = 8;

export interface StaticEndpointContext {
  readonly store: Store;
  readonly storage: StorageClients;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Log;
}

export interface PointInTime {
  readonly lsn?: string;
  readonly timestamp?: string;
}

/** `target`: id of a branch, or of an endpoint of it. Answers the endpoint's id. ApiError for a point that the branch does not have. */
export async function staticEndpoint(
  context: StaticEndpointContext,
  target: string,
  point: PointInTime,
): Promise<string> {
  const branch = await branchOf(context.store, target);
  if (!branch) throw apiErrors.notFound('branch', target);
  if (branch.state === 'archived') await wakeBranch(context, branch.id);
  const lsn = await lsnOf(context, branch, point);
  for (;;) {
    const known = await context.store
      .selectFrom('endpoints')
      .select('id')
      .where('branch_id', '=', branch.id)
      .where('static_lsn', '=', lsn)
      .where('deleted_at', 'is', null)
      .executeTakeFirst();
    if (known) return known.id;
    const id = await insert(context, branch, lsn);
    if (id !== undefined) return id;
  }
}

/** A branch by its own id, or by that of one of its endpoints. */
export async function branchOf(store: Store, target: string): Promise<BranchTable | undefined> {
  const branches = store.selectFrom('branches').selectAll().where('deleted_at', 'is', null).where('hidden', '=', 0);
  const branch = await branches.where('id', '=', target).executeTakeFirst();
  if (branch) return branch;
  const endpoint = await store
    .selectFrom('endpoints')
    .select('branch_id')
    .where('id', '=', target)
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  return endpoint && branches.where('id', '=', endpoint.branch_id).executeTakeFirst();
}

async function lsnOf(context: StaticEndpointContext, branch: BranchTable, point: PointInTime): Promise<Lsn> {
  const where = await whereIs(context.store, branch.id);
  if (point.lsn !== undefined) {
    const lsn = parseLsn(point.lsn);
    if (lsn === undefined) throw apiErrors.badRequest(`${point.lsn} is not an LSN`);
    // A root branch has no parent to end where it begins.
    const info = await new TenantPages(context, where.project.tenant_id).timeline(where.branch.timeline_id);
    if (lsn < (branch.parent_lsn ?? info?.initialLsn ?? 0))
      throw apiErrors.badRequest(`LSN ${point.lsn} lies before the beginning of branch ${branch.name}`);
    return choose(context, where, {lsn});
  }
  const timestamp = point.timestamp ?? '';
  const timeMs = parseTime(timestamp);
  if (timeMs === undefined) throw apiErrors.badRequest(`${timestamp} is not an RFC 3339 time`);
  if (timeMs > context.clock.nowMs()) throw apiErrors.badRequest(`${timestamp} lies in the future`);
  return choose(context, where, {timestamp});
}

async function choose(
  context: StaticEndpointContext,
  where: Awaited<ReturnType<typeof whereIs>>,
  state: {readonly lsn?: Lsn; readonly timestamp?: string},
): Promise<Lsn> {
  try {
    return alignDown(await chooseBranchPoint(context, where, state));
  } catch (error) {
    if (error instanceof PermanentError) throw apiErrors.badRequest(error.message);
    throw error;
  }
}

/** undefined: somebody else has just made it. */
async function insert(context: StaticEndpointContext, branch: BranchTable, lsn: Lsn): Promise<string | undefined> {
  const {store, clock, random} = context;
  const nowMs = clock.nowMs();
  const {count} = await store
    .selectFrom('endpoints')
    .select((e) => e.fn.countAll<number>().as('count'))
    .where('project_id', '=', branch.project_id)
    .where('static_lsn', 'is not', null)
    .where('current_state', '!=', 'idle')
    .where('deleted_at', 'is', null)
    .executeTakeFirstOrThrow();
  if (Number(count) >= perProjectMax)
    throw apiErrors.notReady(
      `project ${branch.project_id} has ${perProjectMax} computes at points in time running; try again when one is suspended`,
    );
  const row = newEndpoint(
    {
      id: newEndpointId(random),
      project_id: branch.project_id,
      branch_id: branch.id,
      type: 'read_only',
      suspend_timeout_seconds: suspendSeconds,
      static_lsn: lsn,
      pending_state: null,
    },
    nowMs,
  );
  const inserted = await store
    .insertInto('endpoints')
    .values(row)
    .onConflict((c) => c.doNothing())
    .executeTakeFirst();
  return Number(inserted.numInsertedOrUpdatedRows ?? 0) > 0 ? row.id : undefined;
}

/** Endpoints at a point that nobody has used for a while are gone. */
export async function forgetStaticEndpoints(store: Store, nowMs: number): Promise<void> {
  await store
    .updateTable('endpoints')
    .set({deleted_at: nowMs, updated_at: nowMs})
    .where('static_lsn', 'is not', null)
    .where('deleted_at', 'is', null)
    .where('current_state', 'in', ['idle', 'init'])
    .where('pending_state', 'is', null)
    .where('updated_at', '<', nowMs - forgetAfterMs)
    .execute();
}
