/**
 * What an operator does with safekeepers; internal routes, for tokens that the control plane's own key has signed
 * (`pagoda safekeepers …` does that on the machine where the keys lie).
 *
 *   GET  /internal/v1/safekeepers                  {safekeepers: [{nodeId, host, port, httpPort, zone?, retired?, timelines}]}
 *   PUT  /internal/v1/safekeepers/:id              {host, port, httpPort, zone?, retired?}: adds a node or changes it
 *   POST /internal/v1/safekeepers/replace          {from, to?, branchId?}: every branch on `from` (or one) gets another member in its
 *                                                  place: `to`, or per branch what placement chooses. `from` is retired when all its
 *                                                  branches go. Answers {operations: [{operationId, branchId, to}]}
 *   GET  /internal/v1/safekeepers/operations       {operations: [{operationId, kind, branchId, status, phase?, waitsFor?, lsn?, error?}]},
 *                                                  the newest 100 first
 *   GET  /internal/v1/branches/:id/wal             where a branch's WAL is: {timelineId, generation, members: [{nodeId, zone?, reachable, …status}],
 *                                                  archive: {archivedLsn, restoreLsn} | null, pageserver: {lastRecordLsn, …}}
 *   POST /internal/v1/branches/:id/restore_from_archive   {members?}: all safekeepers of the branch have lost it. Answers {operationId, lsn}:
 *                                                  restoreLsn of the archive, the least that comes back
 */
import {HttpError, type HttpRequest, type HttpResponse, type Route} from '#runtime/http.ts';
import type {SafekeeperNode} from '#control/config.ts';
import {formatLsn, type Lsn} from '#control/lsn.ts';
import {whereIs} from '#control/operations/plan-context.ts';
import type {OperationRunner} from '#control/operations/runner.ts';
import {placeSafekeepers, safekeeperLoad} from '#control/placement.ts';
import {noteSafekeeper, readSafekeepers} from '#control/safekeeper-nodes.ts';
import {allNodes, readSafekeeperSet} from '#control/safekeeper-set.ts';
import type {HttpStorageClients} from '#control/storage-client.ts';
import {TenantPages} from '#control/tenant-pages.ts';
import {inStorage} from '#control/store/in-storage.ts';
import type {BranchTable, Store} from '#control/store/schema.ts';
import {asHttpError, type Claims, requireNode} from '#wire/auth.ts';
import {MembershipChange, type MembershipChangeState} from '#wire/membership.ts';

export interface SafekeeperAdminOptions {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly storage: Pick<
    HttpStorageClients,
    'safekeepers' | 'safekeeper' | 'pageserver' | 'pageservers' | 'useSafekeepers'
  >;
}

const kinds = ['replace_safekeeper', 'exclude_safekeeper', 'restore_from_archive'];

export function safekeeperAdminRoutes(options: SafekeeperAdminOptions): Route[] {
  const route = (
    method: string,
    path: string,
    handler: (options: SafekeeperAdminOptions, request: HttpRequest) => Promise<HttpResponse>,
  ): Route => ({
    method,
    path,
    handler: async (request) => {
      try {
        requireNode(request.claims as Claims, 'control');
      } catch (error) {
        throw asHttpError(error);
      }
      return await handler(options, request);
    },
  });
  return [
    route('GET', '/internal/v1/safekeepers', listNodes),
    route('GET', '/internal/v1/safekeepers/operations', listOperations),
    route('PUT', '/internal/v1/safekeepers/:id', putNode),
    route('POST', '/internal/v1/safekeepers/replace', replace),
    route('GET', '/internal/v1/branches/:id/wal', branchWal),
    route('POST', '/internal/v1/branches/:id/restore_from_archive', restore),
  ];
}

function bad(message: string): never {
  throw new HttpError(400, 'bad_request', message);
}

async function body(request: HttpRequest): Promise<Readonly<Record<string, unknown>>> {
  const value = await request.json();
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function nodeId(value: unknown, name: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1)
    bad(`${name} must be the id of a safekeeper`);
  return value;
}

async function listNodes({store}: SafekeeperAdminOptions): Promise<HttpResponse> {
  const load = await safekeeperLoad(store);
  const nodes = await readSafekeepers(store);
  return {
    status: 200,
    json: {safekeepers: nodes.map((node) => ({...node, timelines: load.get(node.nodeId) ?? 0}))},
  };
}

async function putNode({store, storage}: SafekeeperAdminOptions, request: HttpRequest): Promise<HttpResponse> {
  const id = nodeId(Number(request.params['id']), 'the last part of the path');
  const {host, port, httpPort, zone, retired} = await body(request);
  if (typeof host !== 'string' || host === '') bad('host must be a name or an address');
  if (!isPort(port) || !isPort(httpPort)) bad('port and httpPort must be port numbers');
  if (zone !== undefined && typeof zone !== 'string') bad('zone must be a text');
  if (retired !== undefined && typeof retired !== 'boolean') bad('retired must be true or false');
  const node: SafekeeperNode = {
    nodeId: id,
    host,
    port,
    httpPort,
    ...(zone === undefined ? {} : {zone}),
    ...(retired === undefined ? {} : {retired}),
  };
  await store.transaction().execute((trx) => noteSafekeeper(trx, node));
  storage.useSafekeepers(await readSafekeepers(store));
  return {status: 200, json: node};
}

function isPort(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value > 0 && value < 65_536;
}

async function replace(options: SafekeeperAdminOptions, request: HttpRequest): Promise<HttpResponse> {
  const {store, storage, runner} = options;
  const asked = await body(request);
  const from = nodeId(asked['from'], 'from');
  const to = asked['to'] === undefined ? undefined : nodeId(asked['to'], 'to');
  const {branchId} = asked;
  if (branchId !== undefined && typeof branchId !== 'string') bad('branchId must be the id of a branch');
  if (to !== undefined && !storage.safekeepers.some((node) => node.nodeId === to))
    bad(`there is no safekeeper ${to}; add it first (PUT /internal/v1/safekeepers/${to})`);
  const answers = await store.transaction().execute(async (trx) => {
    const rows = await trx.selectFrom('branches').selectAll().where(inStorage).where('state', '!=', 'init').execute();
    const concerned = rows.filter(
      (row) =>
        (branchId === undefined || row.id === branchId) && allNodes(readSafekeeperSet(row.safekeepers)).includes(from),
    );
    if (branchId !== undefined && concerned.length === 0) bad(`safekeeper ${from} is no member of branch ${branchId}`);
    const load = await safekeeperLoad(trx);
    const drafts = concerned.map((row) => ({row, add: placeInstead(storage.safekeepers, load, row, from, to)}));
    const ids = await runner.submit(
      trx,
      drafts.map(({row, add}) => ({
        projectId: row.project_id,
        branchId: row.id,
        action: 'replace_safekeeper',
        kind: 'replace_safekeeper',
        locks: [`safekeepers:${row.id}`],
        state: {remove: [from], add: [add]},
      })),
    );
    const node = storage.safekeepers.find((n) => n.nodeId === from);
    if (branchId === undefined && node !== undefined) await noteSafekeeper(trx, {...node, retired: true});
    return drafts.map(({row, add}, i) => ({operationId: ids[i]!, branchId: row.id, to: add}));
  });
  storage.useSafekeepers(await readSafekeepers(store));
  await runner.kick();
  return {status: 202, json: {operations: answers}};
}

/** Throws HttpError 409 when there is no other node. */
function placeInstead(
  nodes: readonly SafekeeperNode[],
  load: Map<number, number>,
  row: BranchTable,
  from: number,
  to: number | undefined,
): number {
  const set = readSafekeeperSet(row.safekeepers);
  const {members} = set;
  if (to !== undefined) {
    if (allNodes(set).includes(to)) bad(`safekeeper ${to} is a member of branch ${row.id} already`);
    return to;
  }
  const kept = members.filter((id) => id !== from);
  const placed = placeSafekeepers({nodes, count: members.length, kept, avoid: [from], load});
  const added = placed.find((id) => !kept.includes(id));
  if (added === undefined)
    throw new HttpError(409, 'no_safekeeper', `no other safekeeper can take the place of ${from} for branch ${row.id}`);
  load.set(added, (load.get(added) ?? 0) + 1);
  return added;
}

async function listOperations({store}: SafekeeperAdminOptions): Promise<HttpResponse> {
  const rows = await store
    .selectFrom('operations')
    .selectAll()
    .where('kind', 'in', kinds)
    .orderBy('seq', 'desc')
    .limit(100)
    .execute();
  const operations = rows.map((row) => {
    const state = JSON.parse(row.state) as {change?: MembershipChangeState; lsn?: Lsn; unreached?: number[]};
    const change = state.change && new MembershipChange(state.change);
    return {
      operationId: row.id,
      kind: row.kind,
      branchId: row.branch_id,
      status: row.status,
      ...(change === undefined ? {} : {phase: change.state.phase, waitsFor: change.waitsFor}),
      ...(state.unreached === undefined ? {} : {unreached: state.unreached}),
      ...(state.lsn === undefined ? {} : {lsn: formatLsn(state.lsn)}),
      ...(row.error === null ? {} : {error: row.error}),
    };
  });
  return {status: 200, json: {operations}};
}

async function branchWal({store, storage}: SafekeeperAdminOptions, request: HttpRequest): Promise<HttpResponse> {
  const where = await existing(store, request);
  const {tenant_id: tenantId} = where.project;
  const {timeline_id: timelineId} = where.branch;
  const members = await Promise.all(
    where.safekeepers.map(async (id) => {
      const {zone} = storage.safekeepers.find((n) => n.nodeId === id) ?? {};
      const named = {nodeId: id, ...(zone === undefined ? {} : {zone})};
      try {
        const status = await storage.safekeeper(id).status(tenantId, timelineId);
        if (status === undefined) return {...named, reachable: true, hasTimeline: false};
        const {term, flushLsn, commitLsn, archivedLsn, membership} = status;
        return {
          ...named,
          reachable: true,
          hasTimeline: true,
          term,
          flushLsn: formatLsn(flushLsn),
          commitLsn: formatLsn(commitLsn),
          ...(archivedLsn === undefined ? {} : {archivedLsn: formatLsn(archivedLsn)}),
          ...(membership === undefined ? {} : {generation: membership.generation}),
        };
      } catch (error) {
        return {...named, reachable: false, error: (error as Error).message};
      }
    }),
  );
  let archive: {readonly archivedLsn: Lsn; readonly restoreLsn: Lsn} | undefined;
  for (const id of where.safekeepers) {
    archive = await storage
      .safekeeper(id)
      .archive(tenantId, timelineId)
      .catch(() => undefined);
    if (archive !== undefined) break;
  }
  const pages = await new TenantPages({store, storage}, tenantId).timeline(timelineId).catch(() => undefined);
  return {
    status: 200,
    json: {
      timelineId,
      generation: where.safekeeperSet.generation,
      members,
      archive:
        archive === undefined
          ? null
          : {archivedLsn: formatLsn(archive.archivedLsn), restoreLsn: formatLsn(archive.restoreLsn)},
      pageserver: pages === undefined ? null : {lastRecordLsn: formatLsn(pages.lastRecordLsn)},
    },
  };
}

async function restore({store, storage, runner}: SafekeeperAdminOptions, request: HttpRequest): Promise<HttpResponse> {
  const where = await existing(store, request);
  const asked = (await body(request))['members'];
  const members =
    asked === undefined
      ? [...where.safekeeperSet.members]
      : Array.isArray(asked)
        ? asked.map((id) => nodeId(id, 'members'))
        : bad('members must be a list of ids of safekeepers');
  for (const id of members) if (!storage.safekeepers.some((n) => n.nodeId === id)) bad(`there is no safekeeper ${id}`);
  if (members.length === 0) bad('members must not be empty');
  const archive = await storage.safekeeper(members[0]!).archive(where.project.tenant_id, where.branch.timeline_id);
  if (archive === undefined)
    throw new HttpError(409, 'no_archive', `nothing of branch ${where.branch.id} is in the object store`);
  const [operationId] = await store.transaction().execute((trx) =>
    runner.submit(trx, [
      {
        projectId: where.project.id,
        branchId: where.branch.id,
        action: 'apply_storage_config',
        kind: 'restore_from_archive',
        // Its computes must not start before it has WAL again.
        locks: [`branch:${where.branch.id}`, `safekeepers:${where.branch.id}`],
        state: {members},
      },
    ]),
  );
  await runner.kick();
  return {status: 202, json: {operationId, lsn: formatLsn(archive.restoreLsn)}};
}

async function existing(store: Store, request: HttpRequest): Promise<Awaited<ReturnType<typeof whereIs>>> {
  const id = request.params['id'] ?? '';
  const branch = await store
    .selectFrom('branches')
    .select('id')
    .where('id', '=', id)
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (!branch) throw new HttpError(404, 'not_found', `there is no branch ${id}`);
  return await whereIs(store, id);
}
