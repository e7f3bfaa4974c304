/**
 * What an operator asks about pageservers (the CLI's `pagoda pageservers`): internal routes for the control plane's own key.
 *
 *   GET  /internal/v1/pageservers                 nodes, what each holds, whether it answers
 *   PUT  /internal/v1/pageservers/:id             {host, port, httpPort, zone?, retired?}
 *   POST /internal/v1/pageservers/migrate         {tenantId, to}: one tenant, by its id or that of its project, or one shard by its id
 *   POST /internal/v1/pageservers/:id/drain       it takes nothing new, and everything that it holds leaves it
 *   GET  /internal/v1/pageservers/operations      migrations, and what they wait for
 */
import {HttpError, type HttpRequest, type HttpResponse, type Route} from '#runtime/http.ts';
import {type Attachment, attachmentOf, readAttachments} from '#control/attachments.ts';
import type {PageserverNode} from '#control/config.ts';
import {migrationDraft} from '#control/operations/migrate-plan.ts';
import type {OperationDraft, OperationRunner} from '#control/operations/runner.ts';
import {notePageserver, readPageservers} from '#control/pageserver-nodes.ts';
import {loadOf, type PageserverLoad, placeSecondary, placeShards} from '#control/placement.ts';
import type {HttpStorageClients} from '#control/storage-client.ts';
import type {Store, StoreTransaction} from '#control/store/schema.ts';
import {asHttpError, type Claims, requireNode} from '#wire/auth.ts';

/** The id of one shard of several (wire/shard.ts). */
const shardForm = /^([0-9a-f]{32})-[0-9a-f]{4}$/;

export interface PageserverAdminOptions {
  readonly store: Store;
  readonly runner: OperationRunner;
  readonly storage: Pick<HttpStorageClients, 'pageservers' | 'usePageservers'>;
  readonly isDeadPageserver: (nodeId: number) => boolean;
}

export function pageserverAdminRoutes(options: PageserverAdminOptions): Route[] {
  const route = (
    method: string,
    path: string,
    handler: (options: PageserverAdminOptions, request: HttpRequest) => Promise<HttpResponse>,
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
    route('GET', '/internal/v1/pageservers', listNodes),
    route('GET', '/internal/v1/pageservers/operations', listOperations),
    route('PUT', '/internal/v1/pageservers/:id', putNode),
    route('POST', '/internal/v1/pageservers/migrate', migrate),
    route('POST', '/internal/v1/pageservers/:id/drain', drain),
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
    bad(`${name} must be the id of a pageserver`);
  return value;
}

function isPort(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value > 0 && value < 65_536;
}

async function allShards(store: Store | StoreTransaction): Promise<Attachment[]> {
  return (await store.selectFrom('attachments').selectAll().execute()).map(attachmentOf);
}

async function listNodes({store, isDeadPageserver}: PageserverAdminOptions): Promise<HttpResponse> {
  const load = loadOf(await allShards(store));
  const none: PageserverLoad = {attached: 0, secondary: 0};
  return {
    status: 200,
    json: {
      pageservers: (await readPageservers(store)).map((node) => ({
        ...node,
        ...(load.get(node.nodeId) ?? none),
        answers: !isDeadPageserver(node.nodeId),
      })),
    },
  };
}

async function putNode({store, storage}: PageserverAdminOptions, request: HttpRequest): Promise<HttpResponse> {
  const id = nodeId(Number(request.params['id']), 'the last part of the path');
  const {host, port, httpPort, zone, retired} = await body(request);
  if (typeof host !== 'string' || host === '') bad('host must be a name or an address');
  if (!isPort(port) || !isPort(httpPort)) bad('port and httpPort must be port numbers');
  if (zone !== undefined && typeof zone !== 'string') bad('zone must be a text');
  if (retired !== undefined && typeof retired !== 'boolean') bad('retired must be true or false');
  const node: PageserverNode = {
    nodeId: id,
    host,
    port,
    httpPort,
    ...(zone === undefined ? {} : {zone}),
    ...(retired === undefined ? {} : {retired}),
  };
  await store.transaction().execute((trx) => notePageserver(trx, node));
  storage.usePageservers(await readPageservers(store));
  return {status: 200, json: node};
}

async function migrate(options: PageserverAdminOptions, request: HttpRequest): Promise<HttpResponse> {
  const {store, storage, isDeadPageserver} = options;
  const asked = await body(request);
  const to = nodeId(asked['to'], 'to');
  const {tenantId: named} = asked;
  if (typeof named !== 'string') bad('tenantId must be the id of a tenant, project or shard');
  if (!storage.pageservers.some((node) => node.nodeId === to)) bad(`there is no pageserver ${to}`);
  if (isDeadPageserver(to)) throw new HttpError(409, 'pageserver_dead', `pageserver ${to} does not answer`);
  const tenant = shardForm.exec(named)?.[1];
  const project = await store
    .selectFrom('projects')
    .select('tenant_id')
    .where((e) => e.or([e('id', '=', named), e('tenant_id', '=', tenant ?? named)]))
    .where('deleted_at', 'is', null)
    .executeTakeFirst();
  if (project === undefined) throw new HttpError(404, 'not_found', `there is no tenant or project ${named}`);
  const wanted = (await readAttachments(store, project.tenant_id)).filter(
    ({shardId}) => tenant === undefined || shardId === named,
  );
  if (wanted.length === 0) throw new HttpError(404, 'not_found', `tenant ${project.tenant_id} has no shard ${named}`);
  const shards = wanted.filter((shard) => shard.pageserverId !== to);
  return submit(
    options,
    shards.map((shard) => ({shard, to})),
    false,
  );
}

async function drain(options: PageserverAdminOptions, request: HttpRequest): Promise<HttpResponse> {
  const {store, storage, isDeadPageserver} = options;
  const id = nodeId(Number(request.params['id']), 'the id in the path');
  const node = storage.pageservers.find((n) => n.nodeId === id);
  if (node === undefined) throw new HttpError(404, 'not_found', `there is no pageserver ${id}`);
  await store.transaction().execute((trx) => notePageserver(trx, {...node, retired: true}));
  storage.usePageservers(await readPageservers(store));
  const all = await allShards(store);
  const leaving = all.filter((shard) => shard.pageserverId === id);
  const avoid = storage.pageservers.map((n) => n.nodeId).filter((n) => isDeadPageserver(n));
  const nodes = storage.pageservers;
  const places = placeShards({nodes, avoid, load: loadOf(all), count: leaving.length});
  if (places.length < leaving.length)
    throw new HttpError(409, 'no_pageserver', `there is no other pageserver that could take what ${id} holds`);
  // Who keeps a shard ready is the best place for it.
  const moves = leaving.map((shard, i) => {
    const ready = nodes.find((n) => n.nodeId === shard.secondaryId && n.retired !== true && !avoid.includes(n.nodeId));
    return {shard, to: ready?.nodeId ?? places[i]!.pageserverId};
  });
  // What it only keeps ready another one does; both are told when they are compared with the table.
  const load = new Map(loadOf(all));
  for (const shard of all.filter(({secondaryId}) => secondaryId === id)) {
    const secondary = placeSecondary({nodes, of: shard.pageserverId, avoid, load});
    await store
      .updateTable('attachments')
      .set({secondary_id: secondary ?? null})
      .where('tenant_id', '=', shard.tenantId)
      .where('shard_number', '=', shard.number)
      .where('secondary_id', '=', id)
      .execute();
    if (secondary === undefined) continue;
    const {attached, secondary: kept} = load.get(secondary) ?? {attached: 0, secondary: 0};
    load.set(secondary, {attached, secondary: kept + 1});
  }
  return submit(options, moves, true);
}

async function submit(
  {store, runner}: PageserverAdminOptions,
  moves: readonly {readonly shard: Attachment; readonly to: number}[],
  leaves: boolean,
): Promise<HttpResponse> {
  const operations = await store.transaction().execute(async (trx) => {
    const drafts: OperationDraft[] = [];
    for (const {shard, to} of moves) {
      const {id} = await trx
        .selectFrom('projects')
        .select('id')
        .where('tenant_id', '=', shard.tenantId)
        .executeTakeFirstOrThrow();
      drafts.push(migrationDraft(id, {shardId: shard.shardId, to, leaves}));
    }
    const ids = await runner.submit(trx, drafts);
    return moves.map(({shard, to}, i) => ({operationId: ids[i], shardId: shard.shardId, from: shard.pageserverId, to}));
  });
  await runner.kick();
  return {status: 202, json: {operations}};
}

async function listOperations({store}: PageserverAdminOptions): Promise<HttpResponse> {
  const rows = await store
    .selectFrom('operations')
    .selectAll()
    .where('kind', '=', 'migrate_tenant')
    .orderBy('seq', 'desc')
    .limit(1000)
    .execute();
  const steps = ['warm', 'save', 'switch', 'attach', 'let-go', 'release'];
  const operations = rows.map((row) => {
    const {shardId, from, to} = JSON.parse(row.state) as {shardId: string; from?: number; to: number};
    return {
      operationId: row.id,
      shardId,
      ...(from === undefined ? {} : {from}),
      to,
      status: row.status,
      ...(row.status === 'finished' ? {} : {step: steps[row.step]}),
      ...(row.error === null ? {} : {error: row.error}),
    };
  });
  return {status: 200, json: {operations}};
}
