/**
 * Snapshots by the clock: GET and PUT /projects/{id}/branches/{id}/backup_schedule, and what makes them. A snapshot is due when a
 * scheduled time has passed since the schedule was set and since the last snapshot it made; times that passed while the control
 * plane was away are made up for by one. All times are UTC.
 */
import {formatTime, parseTime} from '#runtime/time-format.ts';
import {type ApiContext} from '#control/api/context.ts';
import {type ApiRoute, route} from '#control/api/route.ts';
import {backupScheduleBody} from '#control/api/schemas.ts';
import {makeSnapshot} from '#control/api/snapshot-routes.ts';
import {startSweep, type Sweep} from '#control/sweep.ts';
import type {BranchTable} from '#control/store/schema.ts';

export interface ScheduleItem {
  readonly frequency: 'hourly' | 'daily' | 'weekly' | 'monthly' | 'yearly';
  /** 0 … 23; default 0. */
  readonly hour?: number;
  /** Of the week (1 Monday … 7 Sunday) or of the month, whose last day stands for those it does not have; default 1. */
  readonly day?: number;
  /** 1 … 12; default 1. */
  readonly month?: number;
  /** Kept for ever without it. */
  readonly retention_seconds?: number;
}

interface Stored {
  readonly schedule: readonly ScheduleItem[];
  readonly setAt: number;
}

const path = '/projects/:project_id/branches/:branch_id/backup_schedule';
const sweepEveryMs = 30_000;

export const backupScheduleRoutes: readonly ApiRoute[] = [
  route({
    method: 'GET',
    path,
    handler: async (context, {params, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      return {body: {schedule: readStored(branch)?.schedule ?? []}};
    },
  }),
  route({
    method: 'PUT',
    path,
    body: backupScheduleBody,
    handler: async (context, {params, body, principal}) => {
      const project = await context.project(principal, params.project_id);
      const branch = await context.branch(project, params.branch_id);
      const stored: Stored = {schedule: body.schedule, setAt: context.clock.nowMs()};
      await context.store
        .updateTable('branches')
        .set({backup_schedule: body.schedule.length === 0 ? null : JSON.stringify(stored)})
        .where('id', '=', branch.id)
        .execute();
      return {body: {}};
    },
  }),
];

export function startBackups(context: ApiContext): Sweep {
  const {clock, log} = context;
  return startSweep({
    clock,
    log,
    everyMs: sweepEveryMs,
    what: 'making scheduled snapshots',
    sweep: () => sweepBackups(context),
  });
}

export async function sweepBackups(context: ApiContext): Promise<void> {
  const {store, clock, log} = context;
  const branches = await store
    .selectFrom('branches')
    .selectAll()
    .where('backup_schedule', 'is not', null)
    .where('deleted_at', 'is', null)
    .where('hidden', '=', 0)
    .where('state', 'in', ['ready', 'archived'])
    .execute();
  for (const branch of branches) {
    const last = await store
      .selectFrom('snapshots')
      .select((e) => e.fn.max('created_at').as('at'))
      .where('source_branch_id', '=', branch.id)
      .where('manual', '=', 0)
      .executeTakeFirst();
    const {schedule, setAt} = readStored(branch)!;
    const nowMs = clock.nowMs();
    const due = dueItem(schedule, Math.max(setAt, Number(last?.at ?? 0)), nowMs);
    if (due === undefined) continue;
    const project = await store
      .selectFrom('projects')
      .selectAll()
      .where('id', '=', branch.project_id)
      .executeTakeFirstOrThrow();
    try {
      await makeSnapshot(context, project, branch, {
        point: {},
        name: `${branch.name} ${due.frequency} ${formatTime(nowMs)}`,
        expiresAt: due.retention_seconds === undefined ? null : nowMs + due.retention_seconds * 1000,
        isManual: false,
      });
      log.info('scheduled snapshot', {project: project.id, branch: branch.id, frequency: due.frequency});
    } catch (error) {
      log.warn('a scheduled snapshot is not made now', {project: project.id, branch: branch.id, error});
    }
  }
}

/** The item whose time has passed since `sinceMs`; of several the one that is kept longest. */
export function dueItem(schedule: readonly ScheduleItem[], sinceMs: number, nowMs: number): ScheduleItem | undefined {
  const keptFor = (item: ScheduleItem): number => item.retention_seconds ?? Infinity;
  return schedule.filter((item) => lastTime(item, nowMs) > sinceMs).toSorted((a, b) => keptFor(b) - keptFor(a))[0];
}

/** The newest scheduled time that is not after `nowMs`. */
export function lastTime({frequency, hour = 0, day = 1, month = 1}: ScheduleItem, nowMs: number): number {
  const hourMs = 3_600_000;
  const dayMs = 24 * hourMs;
  const atHour = (midnightMs: number): number => midnightMs + hour * hourMs;
  switch (frequency) {
    case 'hourly':
      return nowMs - (nowMs % hourMs);
    case 'daily':
      return newest(
        [0, 1].map((back) => atHour(nowMs - (nowMs % dayMs) - back * dayMs)),
        nowMs,
      );
    case 'weekly': {
      const midnight = nowMs - (nowMs % dayMs);
      // 1970-01-01 was a Thursday, the fourth day.
      const weekday = ((Math.floor(midnight / dayMs) + 3) % 7) + 1;
      const monday = midnight - (weekday - 1) * dayMs;
      const wanted = Math.min(day, 7) - 1;
      return newest(
        [0, 1].map((back) => atHour(monday + (wanted - 7 * back) * dayMs)),
        nowMs,
      );
    }
    case 'monthly':
    case 'yearly': {
      const [year, thisMonth] = formatTime(nowMs).split('-').map(Number) as [number, number];
      const months =
        frequency === 'yearly'
          ? [year * 12 + month - 1, (year - 1) * 12 + month - 1]
          : [0, 1].map((back) => year * 12 + thisMonth - 1 - back);
      return newest(
        months.map((index) => {
          const first = firstOfMonth(index);
          const days = Math.round((firstOfMonth(index + 1) - first) / dayMs);
          return atHour(first + (Math.min(day, days) - 1) * dayMs);
        }),
        nowMs,
      );
    }
  }
}

/** `index`: months since the year 0. */
function firstOfMonth(index: number): number {
  const [year, month] = [Math.floor(index / 12), (index % 12) + 1];
  return parseTime(`${year}-${String(month).padStart(2, '0')}-01T00:00:00Z`)!;
}

const newest = (times: readonly number[], nowMs: number): number => Math.max(...times.filter((time) => time <= nowMs));

function readStored({backup_schedule: text}: BranchTable): Stored | undefined {
  return text === null ? undefined : (JSON.parse(text) as Stored);
}
