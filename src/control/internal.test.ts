import {strict as assert} from 'node:assert';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {generateKeys, type KeyRole, TokenIssuer, TokenVerifier} from '#wire/auth.ts';
import {systemClock} from '#runtime/clock.ts';
import {requestJson, startHttpServer} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {SeededRandom} from '#runtime/random.ts';
import {authenticateInternal, internalRoutes} from './internal.ts';
import {call, FakeWorld, startControl, type TestControl} from './test-world.ts';

const keysDir = mkdtempSync(join(tmpdir(), 'pagoda-internal-'));
let world: FakeWorld;
let control: TestControl;
let server: {port: number; close(): Promise<void>};
let made: {project: {id: string}; branch: {id: string}; endpoints: {id: string}[]};

before(async () => {
  await generateKeys(keysDir);
  world = new FakeWorld();
  control = await startControl(world);
  const issuer = await TokenIssuer.load(keysDir, 'control', systemClock);
  server = await startHttpServer({
    host: '127.0.0.1',
    port: 0,
    log: silentLog,
    authenticate: authenticateInternal(await TokenVerifier.load(keysDir, 'control', systemClock)),
    routes: internalRoutes({
      store: control.store,
      endpoints: control.endpoints,
      storage: world,
      clock: systemClock,
      random: new SeededRandom(7),
      log: silentLog,
      mintComputeToken: (tenant, timeline) =>
        issuer.sign({aud: ['pageserver', 'control'], scope: 'tenant', tenant, timeline}),
    }),
  });
  made = (await call(control, 'POST', '/projects', {project: {name: 'p'}})).json as unknown as typeof made;
});
after(async () => {
  await server.close();
  await control.stop();
  rmSync(keysDir, {recursive: true});
});

test('a branch at a point of its past is an endpoint that no list shows, one for each point', async () => {
  const target = made.branch.id;
  const {timeline_id: timelineId} = await control.store
    .selectFrom('branches')
    .select('timeline_id')
    .where('id', '=', target)
    .executeTakeFirstOrThrow();
  world.advance(timelineId, 0x1000);
  const lsn = '0/1500800';
  const [one, two] = await Promise.all([1, 2].map(() => ask('proxy', 'POST', '/point_in_time', {target, lsn})));
  assert.equal(one?.status, 200, JSON.stringify(one));
  const id = String(one?.json['endpointId']);
  assert.equal(two?.json['endpointId'], id);
  // By way of an endpoint of the branch, too.
  const again = await ask('proxy', 'POST', '/point_in_time', {target: made.endpoints[0]!.id, lsn});
  assert.equal(again.json['endpointId'], id);
  const list = await call(control, 'GET', `/projects/${made.project.id}/endpoints`);
  assert.deepEqual(
    (list.json as unknown as {endpoints: {id: string}[]}).endpoints.map((e) => e.id),
    [made.endpoints[0]!.id],
  );
  await control.endpoints.wake(id);
  assert.equal(world.computes.get(id)?.mode, 'static');
  assert.equal(world.computes.get(id)?.startLsn, lsn);
  for (const body of [
    {target, lsn: 'F/0'},
    {target, lsn: '0/8'},
    {target, lsn: 'x'},
    {target, timestamp: 'soon'},
    {target},
  ])
    assert.equal((await ask('proxy', 'POST', '/point_in_time', body)).status, 400, JSON.stringify(body));
  assert.equal((await ask('proxy', 'POST', '/point_in_time', {target: 'br-no', lsn})).status, 404);
  assert.equal((await ask('pageserver', 'POST', '/point_in_time', {target, lsn})).status, 403);

  // Nothing can be written into it: a new password is there when it has started anew. A database of now it never has.
  const branch = `/projects/${made.project.id}/branches/${target}`;
  await call(control, 'POST', `${branch}/databases`, {database: {name: 'later', owner_name: 'neondb_owner'}});
  assert.ok(world.computes.has(id));
  const reset = await call(control, 'POST', `${branch}/roles/neondb_owner/reset_password`);
  assert.equal(reset.status, 200, JSON.stringify(reset.json));
  assert.ok(!world.computes.has(id), 'it has the old password');
  await control.endpoints.wake(id);
  const verifier = async (): Promise<string | null> =>
    (
      await control.store
        .selectFrom('roles')
        .select('scram_verifier')
        .where('branch_id', '=', target)
        .executeTakeFirstOrThrow()
    ).scram_verifier;
  assert.equal(world.computes.get(id)?.roles[0]?.scramVerifier, await verifier());
  await call(control, 'POST', `${branch}/roles`, {role: {name: 'another'}});
  assert.ok(!world.computes.has(id), 'it does not have the new role');
});

async function ask(
  role: KeyRole | undefined,
  method: string,
  path: string,
  body?: unknown,
): Promise<{status: number; json: Record<string, unknown>}> {
  const token =
    role && (await (await TokenIssuer.load(keysDir, role, systemClock)).sign({aud: 'control', scope: 'node'}));
  const {status, json} = await requestJson({
    method,
    url: `http://127.0.0.1:${server.port}/internal/v1${path}`,
    ...(token === undefined ? {} : {token}),
    ...(body === undefined ? {} : {body}),
  });
  return {status, json: json as Record<string, unknown>};
}

test('a pageserver that starts gets new generations, and older ones are no longer valid', async () => {
  const [tenant] = [...world.tenants.keys()];
  const first = await ask('pageserver', 'POST', '/re-attach', {nodeId: 1});
  const [given] = (first.json as unknown as {tenants: {id: string; generation: number}[]}).tenants;
  assert.equal(given?.id, tenant);
  const generation = given!.generation;
  assert.ok(generation > world.tenants.get(tenant!)!, 'above the one it was attached with');
  const second = await ask('pageserver', 'POST', '/re-attach', {nodeId: 1});
  const next = (second.json as unknown as {tenants: {generation: number}[]}).tenants[0]!.generation;
  assert.ok(next > generation);
  assert.deepEqual((await ask('pageserver', 'POST', '/re-attach', {nodeId: 2})).json, {
    tenants: [],
    secondaries: [],
  });
  const {json} = await ask('pageserver', 'POST', '/validate', {
    tenants: [
      {id: tenant, generation},
      {id: tenant, generation: next},
      {id: 'f'.repeat(32), generation: 1},
    ],
  });
  assert.deepEqual(
    (json['tenants'] as {valid: boolean}[]).map((t) => t.valid),
    [false, true, false],
  );
  for (const body of [undefined, {}, {tenants: 5}, {tenants: [{id: 1}]}])
    assert.equal((await ask('pageserver', 'POST', '/validate', body)).status, 400);
});

test('the proxy learns the verifier, never the password, and wakes endpoints', async () => {
  const endpoint = made.endpoints[0]!.id;
  const known = await ask('proxy', 'GET', `/endpoint_access?endpoint=${endpoint}&role=neondb_owner`);
  assert.match(String(known.json['scramVerifier']), /^SCRAM-SHA-256\$/);
  assert.deepEqual(known.json['allowedIps'], []);
  const only = await ask('proxy', 'GET', '/endpoint_access?role=neondb_owner');
  assert.equal(only.json['endpointId'], endpoint, 'the only endpoint needs no name');
  const stranger = await ask('proxy', 'GET', `/endpoint_access?endpoint=${endpoint}&role=nobody`);
  assert.deepEqual([stranger.status, stranger.json['scramVerifier']], [200, undefined]);
  assert.equal((await ask('proxy', 'GET', '/endpoint_access?endpoint=ep-no-such&role=x')).status, 404);
  await call(control, 'PATCH', `/projects/${made.project.id}`, {
    project: {settings: {allowed_ips: {ips: ['10.0.0.0/8']}}},
  });
  const guarded = await ask('proxy', 'GET', `/endpoint_access?endpoint=${endpoint}&role=neondb_owner`);
  assert.deepEqual(guarded.json['allowedIps'], ['10.0.0.0/8']);

  await call(control, 'POST', `/projects/${made.project.id}/endpoints/${endpoint}/suspend`);
  const woken = await ask('proxy', 'POST', `/endpoints/${endpoint}/wake`);
  assert.deepEqual([woken.status, woken.json['host']], [200, '127.0.0.1']);
  assert.equal((await ask('proxy', 'POST', '/endpoints/ep-no-such/wake')).status, 404);
  await call(control, 'PATCH', `/projects/${made.project.id}/endpoints/${endpoint}`, {endpoint: {disabled: true}});
  const disabled = await ask('proxy', 'POST', `/endpoints/${endpoint}/wake`);
  assert.deepEqual([disabled.status, disabled.json['code']], [422, 'endpoint_disabled']);
});

test('who may ask what', async () => {
  const questions = [
    ['POST', '/validate', 'pageserver', {tenants: []}],
    ['POST', '/re-attach', 'pageserver', {nodeId: 9}],
    ['GET', '/endpoint_access?role=x&endpoint=y', 'proxy', undefined],
    ['POST', '/endpoints/x/wake', 'proxy', undefined],
  ] as const;
  for (const [method, path, allowed, body] of questions) {
    assert.equal((await ask(undefined, method, path, body)).status, 401, path);
    for (const role of ['broker', 'safekeeper', 'pageserver', 'proxy'] as const) {
      const {status} = await ask(role, method, path, body);
      if (role === allowed) assert.notEqual(status, 403, `${role} ${path}`);
      else assert.equal(status, 403, `${role} ${path}`);
    }
  }
});

test('a compute renews its token while its branch exists', async () => {
  const branch = await control.store
    .selectFrom('branches')
    .selectAll()
    .where('id', '=', made.branch.id)
    .executeTakeFirstOrThrow();
  const issuer = await TokenIssuer.load(keysDir, 'control', systemClock);
  const [tenant] = [...world.tenants.keys()];
  const renew = async (timeline: string): Promise<number> => {
    const token = await issuer.sign({aud: ['control'], scope: 'tenant', tenant: tenant!, timeline});
    const url = `http://127.0.0.1:${server.port}/internal/v1/token`;
    return (await requestJson({method: 'POST', url, token})).status;
  };
  assert.equal(await renew(branch.timeline_id), 200);
  assert.equal(await renew('e'.repeat(32)), 403);
  assert.equal((await ask('pageserver', 'POST', '/token')).status, 403);
});
