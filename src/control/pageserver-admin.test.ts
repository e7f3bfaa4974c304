import assert from 'node:assert/strict';
import {test} from 'node:test';
import {type Attachment, attachmentOf} from '#control/attachments.ts';
import {pageserverAdminRoutes} from '#control/pageserver-admin.ts';
import {notePageserver} from '#control/pageserver-nodes.ts';
import {call, FakeWorld, startControl, type TestControl} from '#control/test-world.ts';
import type {HttpRequest} from '#runtime/http.ts';
import {formatShardId} from '#wire/shard.ts';

interface Cell {
  readonly control: TestControl;
  readonly shards: () => Promise<Attachment[]>;
  /** Waits until what it began has ended. */
  readonly ask: (path: string, id: string, body: unknown) => Promise<unknown>;
}

/** Three pageservers, the last in another zone. */
async function cell(): Promise<Cell> {
  const world = new FakeWorld();
  world.pageservers = ['a', 'a', 'b'].map((zone, i) => ({
    nodeId: i + 1,
    host: '127.0.0.1',
    port: i + 1,
    httpPort: 11 + i,
    zone,
  }));
  const control = await startControl(world);
  const {store, runner} = control;
  await store.transaction().execute(async (trx) => {
    for (const node of world.pageservers) await notePageserver(trx, node);
  });
  const routes = pageserverAdminRoutes({
    store,
    runner,
    storage: {
      get pageservers() {
        return world.pageservers;
      },
      usePageservers: (nodes) => (world.pageservers = [...nodes]),
    },
    isDeadPageserver: () => false,
  });
  const claims = {iss: 'control', aud: ['control'], scope: 'node', iat: 0, exp: 0};
  return {
    control,
    shards: async () =>
      (await store.selectFrom('attachments').selectAll().orderBy('generation').orderBy('shard_number').execute()).map(
        attachmentOf,
      ),
    ask: async (path, id, body) => {
      const route = routes.find((r) => r.method === 'POST' && r.path === `/internal/v1/pageservers/${path}`)!;
      const request = {claims, params: {id}, json: async () => body} as unknown as HttpRequest;
      const {json} = await route.handler(request);
      const {operations} = json as {operations: {operationId: string}[]};
      await runner.wait(
        operations.map(({operationId}) => operationId),
        10_000,
      );
      return json;
    },
  };
}

const places = (shards: readonly Attachment[]): (readonly [number, number | undefined])[] =>
  shards.map(({pageserverId, secondaryId}) => [pageserverId, secondaryId]);

test('a pageserver that is drained: who kept its shards ready takes them, and what it kept ready another one does', async (t) => {
  const {control, shards, ask} = await cell();
  t.after(() => control.stop());
  for (const name of ['one', 'two', 'three']) await call(control, 'POST', '/projects', {project: {name}});
  const byTenant = new Map((await shards()).map((shard) => [shard.tenantId, shard]));
  assert.deepEqual(places([...byTenant.values()]), [
    [1, 3],
    [2, 3],
    [3, 1],
  ]);
  await ask(':id/drain', '3', undefined);
  const after = (await shards()).sort(
    (x, y) => byTenant.get(x.tenantId)!.pageserverId - byTenant.get(y.tenantId)!.pageserverId,
  );
  assert.deepEqual(places(after), [
    [1, 2],
    [2, 1],
    [1, 2],
  ]);
});

test('one shard of a tenant moves by its id; the id of one that is not there moves nothing', async (t) => {
  const {control, shards, ask} = await cell();
  t.after(() => control.stop());
  await call(control, 'POST', '/projects', {project: {name: 'one'}});
  const [{tenantId}] = (await shards()) as [Attachment];
  await control.store.updateTable('attachments').set({shard_count: 2}).execute();
  const [row] = await control.store.selectFrom('attachments').selectAll().execute();
  await control.store
    .insertInto('attachments')
    .values({...row!, shard_number: 1, pageserver_id: 2})
    .execute();
  const second = formatShardId({tenantId, number: 1, count: 2});
  await ask('migrate', '', {tenantId: second, to: 3});
  assert.deepEqual(
    (await shards()).map(({pageserverId}) => pageserverId),
    [1, 3],
  );
  await assert.rejects(
    ask('migrate', '', {tenantId: formatShardId({tenantId, number: 5, count: 7}), to: 3}),
    /has no shard/,
  );
});
