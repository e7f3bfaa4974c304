/**
 * What branches use, sampled: WAL written, bytes sent to clients, bytes kept × hours. Time of computes is not sampled: endpoints
 * say it exactly (active_ms). A branch that runs is sampled every minute, another one every hour.
 */
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import type {StorageClients} from '#control/storage-client.ts';
import type {BranchTable, EndpointTable, Store} from '#control/store/schema.ts';
import {startSweep, type Sweep} from '#control/sweep.ts';
import {TenantPages} from '#control/tenant-pages.ts';

const sweepEveryMs = 60_000;
const restingEveryMs = 3_600_000;

/** Of a branch or a project since it was made. Times in seconds; sizes in bytes. */
export interface Usage {
  readonly activeSeconds: number;
  /** Active time × compute units. */
  readonly computeSeconds: number;
  readonly writtenBytes: number;
  readonly transferBytes: number;
  readonly storageByteHours: number;
  /** Of the branch, or of the project's biggest one. */
  readonly logicalBytes: number;
  /** Logical sizes of roots, and what each branch has written since it began but no more than its own size. */
  readonly syntheticBytes: number;
  readonly lastActiveMs: number | undefined;
}

export interface UsageContext {
  readonly store: Store;
  readonly storage: Pick<StorageClients, 'pageserver'>;
  readonly clock: Clock;
  readonly log: Log;
}

export function startUsageSampling(context: UsageContext): Sweep {
  const {clock, log} = context;
  return startSweep({clock, log, everyMs: sweepEveryMs, what: 'sampling usage', sweep: () => sampleUsage(context)});
}

/** Samples what is due; a pageserver that does not answer is asked again by the next sweep. */
export async function sampleUsage(context: UsageContext): Promise<void> {
  const {store, clock, log} = context;
  const nowMs = clock.nowMs();
  const active = await store
    .selectFrom('endpoints')
    .select('branch_id')
    .where('current_state', '=', 'active')
    .where('deleted_at', 'is', null)
    .execute();
  const running = new Set(active.map((row) => row.branch_id));
  const due = await store
    .selectFrom('branches')
    .innerJoin('projects', 'projects.id', 'branches.project_id')
    .leftJoin('usage', 'usage.branch_id', 'branches.id')
    .selectAll('branches')
    .select(['projects.tenant_id as tenantId', 'usage.sampled_at as sampledAt'])
    .where('branches.deleted_at', 'is', null)
    .where('branches.state', 'in', ['ready', 'archived'])
    .execute();
  for (const branch of due) {
    if (!running.has(branch.id) && (branch.sampledAt ?? 0) > nowMs - restingEveryMs) continue;
    await sampleBranch(context, branch, branch.tenantId, nowMs).catch((error: unknown) =>
      log.debug('the usage of a branch is not known now', {branch: branch.id, error}),
    );
  }
}

async function sampleBranch(
  {store, storage}: UsageContext,
  branch: BranchTable,
  tenantId: string,
  nowMs: number,
): Promise<void> {
  const info = await new TenantPages({store, storage}, tenantId).timeline(branch.timeline_id);
  if (info === undefined) return;
  const begin = Math.max(info.initialLsn ?? 0, info.ancestorLsn ?? 0);
  const lsn = info.lastRecordLsn;
  await store.transaction().execute(async (trx) => {
    const known = await trx.selectFrom('usage').selectAll().where('branch_id', '=', branch.id).executeTakeFirst();
    const from = known?.timeline_id === branch.timeline_id ? known.wal_lsn : begin;
    const logical = info.logicalSizeBytes ?? known?.logical_bytes ?? 0;
    const hours = known === undefined ? 0 : Math.max(0, nowMs - known.sampled_at) / 3_600_000;
    const sample = {
      timeline_id: branch.timeline_id,
      wal_lsn: lsn,
      written_bytes: (known?.written_bytes ?? 0) + Math.max(0, lsn - from),
      storage_byte_hours: (known?.storage_byte_hours ?? 0) + Math.round((known?.logical_bytes ?? 0) * hours),
      logical_bytes: logical,
      sampled_at: nowMs,
    };
    if (known) await trx.updateTable('usage').set(sample).where('branch_id', '=', branch.id).execute();
    else
      await trx
        .insertInto('usage')
        .values({branch_id: branch.id, project_id: branch.project_id, transfer_bytes: 0, ...sample})
        .execute();
  });
}

/** Bytes that a proxy has passed on to clients, by endpoint. */
export async function addTransfer(store: Store, nowMs: number, bytes: Readonly<Record<string, number>>): Promise<void> {
  for (const [endpointId, count] of Object.entries(bytes)) {
    const branch = await store
      .selectFrom('endpoints')
      .innerJoin('branches', 'branches.id', 'endpoints.branch_id')
      .selectAll('branches')
      .where('endpoints.id', '=', endpointId)
      .executeTakeFirst();
    if (!branch) continue;
    await store
      .insertInto('usage')
      .values({
        branch_id: branch.id,
        project_id: branch.project_id,
        // Not sampled yet: its WAL counts from where the branch begins.
        timeline_id: '',
        wal_lsn: 0,
        written_bytes: 0,
        transfer_bytes: count,
        storage_byte_hours: 0,
        logical_bytes: 0,
        sampled_at: nowMs,
      })
      .onConflict((c) =>
        c.column('branch_id').doUpdateSet((e) => ({transfer_bytes: e('usage.transfer_bytes', '+', count)})),
      )
      .execute();
  }
}

/** By branch id; also of branches that are gone, which their project has used. */
export async function readUsage(store: Store, projectId: string, nowMs: number): Promise<Map<string, Usage>> {
  const endpoints = await store.selectFrom('endpoints').selectAll().where('project_id', '=', projectId).execute();
  const samples = await store.selectFrom('usage').selectAll().where('project_id', '=', projectId).execute();
  const branches = await store
    .selectFrom('branches')
    .select(['id', 'parent_id', 'deleted_at'])
    .where('project_id', '=', projectId)
    .execute();
  return new Map(
    branches.map(({id, parent_id: parentId, deleted_at: deletedAt}) => {
      const own = endpoints.filter((e) => e.branch_id === id);
      const sample = samples.find((s) => s.branch_id === id);
      const logicalBytes = deletedAt === null ? (sample?.logical_bytes ?? 0) : 0;
      const writtenBytes = sample?.written_bytes ?? 0;
      const lastActive = own.map((e) => e.last_active ?? 0).filter((timeMs) => timeMs > 0);
      return [
        id,
        {
          activeSeconds: sum(own, (e) => activeMs(e, nowMs) / 1000),
          computeSeconds: sum(own, (e) => (activeMs(e, nowMs) / 1000) * e.autoscaling_limit_min_cu),
          writtenBytes,
          transferBytes: sample?.transfer_bytes ?? 0,
          storageByteHours: sample?.storage_byte_hours ?? 0,
          logicalBytes,
          syntheticBytes: parentId === null ? logicalBytes : Math.min(writtenBytes, logicalBytes),
          lastActiveMs: lastActive.length === 0 ? undefined : Math.max(...lastActive),
        },
      ];
    }),
  );
}

export function totalUsage(branches: Iterable<Usage>): Usage {
  const all = [...branches];
  const lastActive = all.map((u) => u.lastActiveMs ?? 0).filter((timeMs) => timeMs > 0);
  return {
    activeSeconds: sum(all, (u) => u.activeSeconds),
    computeSeconds: sum(all, (u) => u.computeSeconds),
    writtenBytes: sum(all, (u) => u.writtenBytes),
    transferBytes: sum(all, (u) => u.transferBytes),
    storageByteHours: sum(all, (u) => u.storageByteHours),
    logicalBytes: Math.max(0, ...all.map((u) => u.logicalBytes)),
    syntheticBytes: sum(all, (u) => u.syntheticBytes),
    lastActiveMs: lastActive.length === 0 ? undefined : Math.max(...lastActive),
  };
}

/** Until now, the present run included. */
function activeMs(endpoint: EndpointTable, nowMs: number): number {
  const running = endpoint.current_state === 'active' && endpoint.deleted_at === null ? endpoint.started_at : null;
  return endpoint.active_ms + (running === null ? 0 : Math.max(0, nowMs - running));
}

function sum<T>(items: readonly T[], of: (item: T) => number): number {
  return items.reduce((total, item) => total + of(item), 0);
}
