import {strict as assert} from 'node:assert';
import {afterEach, beforeEach, test} from 'node:test';
import {apiRoutes} from './server.ts';
import {call, FakeWorld, hasFailed, importLsn, startControl, type TestControl} from '#control/test-world.ts';
import {formatLsn, type Lsn} from '#control/lsn.ts';

let world: FakeWorld;
let control: TestControl;

beforeEach(async () => {
  world = new FakeWorld();
  control = await startControl(world);
});
afterEach(() => control.stop());

interface Made {
  readonly project: string;
  readonly branch: string;
  readonly endpoint: string;
  readonly timeline: string;
}

async function makeProject(): Promise<Made> {
  const {status, json} = await call(control, 'POST', '/projects', {project: {name: 'one'}});
  assert.equal(status, 201, JSON.stringify(json));
  const {project, branch, endpoints} = json as unknown as {
    project: {id: string};
    branch: {id: string};
    endpoints: {id: string}[];
  };
  const row = await control.store
    .selectFrom('branches')
    .select('timeline_id')
    .where('id', '=', branch.id)
    .executeTakeFirstOrThrow();
  return {project: project.id, branch: branch.id, endpoint: endpoints[0]!.id, timeline: row.timeline_id};
}

test('a new project has branch main, database neondb and its owner, in storage and as a running compute', async () => {
  const {status, json} = await call(control, 'POST', '/projects', {project: {}});
  assert.equal(status, 201);
  const body = json as unknown as {
    project: {id: string; name: string};
    branch: {name: string; current_state: string; default: boolean};
    roles: {name: string; password: string}[];
    databases: {name: string; owner_name: string}[];
    endpoints: {id: string; host: string; current_state: string}[];
    operations: {action: string; status: string}[];
    connection_uris: {connection_uri: string; connection_parameters: {host: string; pooler_host: string}}[];
  };
  assert.match(body.project.id, /^[a-z]+-[a-z]+-[0-9]{8}$/);
  assert.equal(body.project.name, body.project.id);
  assert.equal(body.branch.name, 'main');
  assert.equal(body.branch.current_state, 'ready');
  assert.equal(body.roles[0]!.name, 'neondb_owner');
  assert.deepEqual([body.databases[0]!.name, body.databases[0]!.owner_name], ['neondb', 'neondb_owner']);
  assert.deepEqual(
    body.operations.map((o) => [o.action, o.status]),
    [
      ['create_timeline', 'finished'],
      ['start_compute', 'finished'],
    ],
  );
  const endpoint = body.endpoints[0]!;
  assert.equal(endpoint.current_state, 'active');
  const {connection_uri: uri, connection_parameters: parameters} = body.connection_uris[0]!;
  assert.equal(
    uri,
    `postgresql://neondb_owner:${body.roles[0]!.password}@${endpoint.id}.localhost:54320/neondb?sslmode=require&channel_binding=require`,
  );
  assert.ok(uri.includes(parameters.host));
  assert.equal(parameters.pooler_host, `${endpoint.id}-pooler.localhost:54320`);

  assert.equal(world.tenants.size, 1);
  assert.equal([...world.timelines.values()][0]!.imports, 1);
  assert.deepEqual(
    [...world.walTimelines.values()].map((t) => t.startLsn),
    [importLsn, importLsn, importLsn],
  );
  const spec = world.computes.get(endpoint.id)!;
  assert.match(spec.roles[0]!.scramVerifier!, /^SCRAM-SHA-256\$4096:[^$]+\$[^:]+:.+$/);
  assert.equal(JSON.stringify(spec).includes(body.roles[0]!.password), false, 'a compute gets no password');
  assert.equal(spec.alreadyApplied, false);
});

test('passwords are revealed, reset, and never stored in the clear', async () => {
  const made = await makeProject();
  const roles = `/projects/${made.project}/branches/${made.branch}/roles`;
  const {json: first} = await call(control, 'GET', `${roles}/neondb_owner/reveal_password`);
  const password = (first as unknown as {password: string}).password;
  assert.match(password, /^npg_[A-Za-z0-9]{24}$/);
  const reset = await call(control, 'POST', `${roles}/neondb_owner/reset_password`);
  const role = (reset.json as unknown as {role: {password: string}; operations: {action: string}[]}).role;
  assert.notEqual(role.password, password);
  const {json: second} = await call(control, 'GET', `${roles}/neondb_owner/reveal_password`);
  assert.equal((second as unknown as {password: string}).password, role.password);
  assert.equal(world.configured.length, 1);
  const everything =
    JSON.stringify(await control.store.selectFrom('roles').selectAll().execute()) +
    JSON.stringify(await control.store.selectFrom('operations').selectAll().execute());
  assert.equal(everything.includes(role.password), false);
});

test('roles and databases come and go, in the running compute too', async () => {
  const made = await makeProject();
  const base = `/projects/${made.project}/branches/${made.branch}`;
  const role = await call(control, 'POST', `${base}/roles`, {role: {name: 'alice'}});
  assert.equal(role.status, 201);
  assert.ok((role.json as unknown as {role: {password: string}}).role.password);
  assert.equal((await call(control, 'POST', `${base}/roles`, {role: {name: 'alice'}})).status, 409);
  assert.equal((await call(control, 'POST', `${base}/roles`, {role: {name: 'pg_x'}})).status, 400);
  const database = await call(control, 'POST', `${base}/databases`, {database: {name: 'shop', owner_name: 'alice'}});
  assert.equal(database.status, 201);
  const conflict = await call(control, 'POST', `${base}/databases`, {database: {name: 'shop', owner_name: 'alice'}});
  assert.equal(conflict.status, 409);
  assert.match((conflict.json as unknown as {message: string}).message, /already exists/);
  assert.equal(
    (await call(control, 'POST', `${base}/databases`, {database: {name: 'x', owner_name: 'nobody'}})).status,
    404,
  );
  assert.equal((await call(control, 'DELETE', `${base}/roles/alice`)).status, 422);
  const moved = await call(control, 'PATCH', `${base}/databases/shop`, {database: {owner_name: 'neondb_owner'}});
  assert.equal((moved.json as unknown as {database: {owner_name: string}}).database.owner_name, 'neondb_owner');
  assert.equal((await call(control, 'DELETE', `${base}/databases/shop`)).status, 200);
  assert.equal((await call(control, 'DELETE', `${base}/roles/alice`)).status, 200);
  const last = world.configured.at(-1)!;
  assert.deepEqual(
    last.roles.map((r) => r.name),
    ['neondb_owner'],
  );
  assert.deepEqual(last.droppedRoles, ['alice']);
  const branch = await control.store
    .selectFrom('branches')
    .selectAll()
    .where('id', '=', made.branch)
    .executeTakeFirstOrThrow();
  assert.equal(branch.catalog_applied, branch.catalog_version);
  assert.equal((await control.store.selectFrom('dropped_objects').selectAll().execute()).length, 0);
});

test('what changes while the compute sleeps is applied at its next start', async () => {
  const made = await makeProject();
  const base = `/projects/${made.project}`;
  assert.equal((await call(control, 'POST', `${base}/endpoints/${made.endpoint}/suspend`)).status, 200);
  assert.equal(world.computes.size, 0);
  const {json} = await call(control, 'POST', `${base}/branches/${made.branch}/roles`, {role: {name: 'bob'}});
  assert.deepEqual((json as unknown as {operations: unknown[]}).operations, []);
  await call(control, 'POST', `${base}/endpoints/${made.endpoint}/start`);
  const spec = world.computes.get(made.endpoint)!;
  assert.deepEqual(spec.roles.map((r) => r.name).toSorted(), ['bob', 'neondb_owner']);
  assert.equal(spec.alreadyApplied, false);
  await call(control, 'POST', `${base}/endpoints/${made.endpoint}/restart`);
  assert.equal(world.computes.get(made.endpoint)!.alreadyApplied, true);
});

test('a branch of now, of an LSN, and of a time', async () => {
  const made = await makeProject();
  world.advance(made.timeline, 0x2000);
  const path = `/projects/${made.project}/branches`;
  const now = await call(control, 'POST', path, {
    branch: {name: 'dev'},
    endpoints: [{type: 'read_write'}],
    annotation_value: {},
  });
  assert.equal(now.status, 201, JSON.stringify(now.json));
  const body = now.json as unknown as {
    branch: {id: string; parent_id: string; parent_lsn: string; current_state: string};
    endpoints: {id: string; current_state: string}[];
    roles: unknown[];
    databases: unknown[];
    connection_uris: {connection_uri: string}[];
  };
  assert.equal(body.branch.parent_id, made.branch);
  assert.equal(body.branch.parent_lsn, formatLsn((importLsn + 0x2000) as Lsn));
  assert.equal(body.branch.current_state, 'ready');
  assert.equal(body.endpoints[0]!.current_state, 'active');
  assert.deepEqual([body.roles.length, body.databases.length, body.connection_uris.length], [1, 1, 1]);
  assert.equal(world.computes.get(body.endpoints[0]!.id)!.alreadyApplied, true);

  const lsn = formatLsn((importLsn + 0x1005) as Lsn);
  const past = await call(control, 'POST', path, {branch: {name: 'past', parent_lsn: lsn}, endpoints: []});
  assert.equal(past.status, 201);
  // A record starts at a multiple of 8.
  assert.equal(
    (past.json as unknown as {branch: {parent_lsn: string}}).branch.parent_lsn,
    formatLsn((importLsn + 0x1000) as Lsn),
  );

  const time = await call(control, 'POST', path, {
    branch: {parent_timestamp: new Date(Date.now() - 1000).toISOString()},
  });
  assert.equal(time.status, 201);
  assert.equal(
    (time.json as unknown as {branch: {parent_lsn: string}}).branch.parent_lsn,
    formatLsn((importLsn + 0x100) as Lsn),
  );
  assert.equal((await call(control, 'POST', path)).status, 201, 'the body is optional');

  for (const [wanted, status] of [
    [{name: 'dev'}, 409],
    [{parent_lsn: 'F/0'}, 400],
    [{parent_lsn: 'nonsense'}, 400],
    [{parent_timestamp: '2999-01-01T00:00:00Z'}, 400],
    [{parent_timestamp: 'soon'}, 400],
    [{parent_lsn: '0/10'}, 201],
    [{parent_id: 'br-no-such-branch'}, 404],
    [{init_source: 'everything'}, 400],
  ] as const)
    assert.equal((await call(control, 'POST', path, {branch: wanted})).status, status, JSON.stringify(wanted));
});

test('branches are listed with annotations, sorted, searched and in pages', async () => {
  const made = await makeProject();
  const path = `/projects/${made.project}/branches`;
  for (const name of ['b', 'c', 'a']) await call(control, 'POST', path, {branch: {name}});
  const {json} = await call(control, 'GET', `${path}?limit=100`);
  const list = json as unknown as {
    branches: {name: string}[];
    annotations: unknown;
    pagination: {next?: string; sort_by: string};
  };
  assert.equal(list.branches.length, 4);
  assert.deepEqual(list.annotations, {});
  assert.equal(list.pagination.next, undefined);
  const names: string[] = [];
  let cursor = '';
  for (let pages = 0; pages < 9; pages++) {
    const page = (await call(control, 'GET', `${path}?limit=2&sort_by=name&sort_order=asc${cursor}`))
      .json as unknown as typeof list;
    names.push(...page.branches.map((b) => b.name));
    if (page.pagination.next === undefined) break;
    cursor = `&cursor=${page.pagination.next}`;
  }
  assert.deepEqual(names, ['a', 'b', 'c', 'main']);
  assert.equal(((await call(control, 'GET', `${path}?search=MAI`)).json as unknown as typeof list).branches.length, 1);
  assert.equal((await call(control, 'GET', `${path}?cursor=zzz`)).status, 400);
  assert.equal((await call(control, 'GET', `${path}/count`)).json['count'], 4);
});

test('default, protection, renaming, expiry and deletion of branches', async () => {
  const made = await makeProject();
  const path = `/projects/${made.project}/branches`;
  const child = (
    (await call(control, 'POST', path, {branch: {name: 'child'}, endpoints: [{type: 'read_write'}]}))
      .json as unknown as {branch: {id: string}}
  ).branch.id;
  assert.equal((await call(control, 'DELETE', `${path}/${made.branch}`)).status, 422, 'the default branch');
  assert.equal((await call(control, 'PATCH', `${path}/${child}`, {branch: {name: 'main'}})).status, 409);
  const renamed = await call(control, 'PATCH', `${path}/${child}`, {
    branch: {name: 'kid', expires_at: '2999-01-01T00:00:00Z'},
  });
  assert.deepEqual(
    (({name, expires_at}) => [name, expires_at])(
      (renamed.json as unknown as {branch: {name: string; expires_at: string}}).branch,
    ),
    ['kid', '2999-01-01T00:00:00.000Z'],
  );
  const cleared = await call(control, 'PATCH', `${path}/${child}`, {branch: {expires_at: null}});
  assert.equal('expires_at' in (cleared.json as unknown as {branch: object}).branch, false);
  assert.equal((await call(control, 'POST', `${path}/${child}/set_as_default`)).status, 200);
  assert.equal((await call(control, 'DELETE', `${path}/${made.branch}`)).status, 422, 'it has a child');
  await call(control, 'POST', `${path}/${made.branch}/set_as_default`);
  const [timelines, computes] = [world.timelines.size, world.computes.size];
  assert.equal((await call(control, 'DELETE', `${path}/${child}`)).status, 200);
  assert.deepEqual([world.timelines.size, world.computes.size], [timelines - 1, computes - 1]);
  assert.equal((await call(control, 'GET', `${path}/${child}`)).status, 404);
  assert.equal((await call(control, 'DELETE', `${path}/${child}`)).status, 404);
});

test('a deleted project leaves nothing in storage', async () => {
  const made = await makeProject();
  await call(control, 'POST', `/projects/${made.project}/branches`, {endpoints: [{type: 'read_write'}]});
  assert.equal((await call(control, 'DELETE', `/projects/${made.project}`)).status, 200);
  assert.deepEqual(
    [world.timelines.size, world.walTimelines.size, world.computes.size, world.tenants.size],
    [0, 0, 0, 0],
  );
  assert.equal((await call(control, 'GET', `/projects/${made.project}`)).status, 404);
  assert.deepEqual((await call(control, 'GET', '/projects')).json['projects'], []);
});

test('a conflicting operation is 423, and what is behind it goes on', async (t) => {
  const made = await makeProject();
  world.broken.add('stop');
  const impatient = await startControl(world, {store: control.store, key: control.key, waitMsMax: 50});
  t.after(() => impatient.app.close());
  const first = await call(impatient, 'POST', `/projects/${made.project}/endpoints/${made.endpoint}/suspend`);
  assert.equal(first.status, 200);
  const {id} = (first.json as unknown as {operations: {id: string}[]}).operations[0]!;
  await hasFailed(control, id);
  const second = await call(impatient, 'POST', `/projects/${made.project}/endpoints/${made.endpoint}/start`);
  assert.equal(second.status, 423);
  assert.equal(second.headers['retry-after'], '1');
  assert.equal((await call(impatient, 'DELETE', `/projects/${made.project}`)).status, 423);
  world.broken.delete('stop');
  await impatient.runner.wait([id], 60_000);
  const {json} = await call(impatient, 'GET', `/projects/${made.project}/operations/${id}`);
  assert.equal((json as unknown as {operation: {status: string}}).operation.status, 'finished');
  assert.equal(
    (await call(impatient, 'POST', `/projects/${made.project}/endpoints/${made.endpoint}/start`)).status,
    200,
  );
});

test('many who wake one endpoint share one start', async () => {
  const made = await makeProject();
  await call(control, 'POST', `/projects/${made.project}/endpoints/${made.endpoint}/suspend`);
  const before = world.starts;
  world.startDelayMs = 30;
  const addresses = await Promise.all(Array.from({length: 200}, () => control.endpoints.wake(made.endpoint)));
  assert.equal(world.starts - before, 1);
  assert.ok(addresses.every((a) => a.port === addresses[0]!.port));
  assert.equal((await control.endpoints.wake(made.endpoint)).port, addresses[0]!.port);
});

test('a compute that died is noticed and woken again; one that cannot start says why', async () => {
  const made = await makeProject();
  world.computes.delete(made.endpoint);
  world.launcher.onExit(made.endpoint);
  await control.endpoints.wake(made.endpoint);
  assert.equal(world.computes.size, 1);
  await call(control, 'POST', `/projects/${made.project}/endpoints/${made.endpoint}/suspend`);
  world.broken.add('start');
  await assert.rejects(control.endpoints.wake(made.endpoint), /start is broken/);
  const {json} = await call(control, 'GET', `/projects/${made.project}/endpoints/${made.endpoint}`);
  assert.equal((json as unknown as {endpoint: {current_state: string}}).endpoint.current_state, 'idle');
});

test('keys: what each kind may see, and that a revoked one is nothing', async () => {
  const made = await makeProject();
  const other = await makeProject();
  assert.equal((await call(control, 'GET', '/users/me', undefined, null)).status, 401);
  assert.equal((await call(control, 'GET', '/users/me', undefined, 'napi_nonsense')).status, 401);
  const personal = (await call(control, 'POST', '/api_keys', {key_name: 'ci'})).json as unknown as {
    id: number;
    key: string;
  };
  assert.match(personal.key, /^napi_[0-9a-f]{64}$/);
  assert.equal((await call(control, 'GET', '/users/me', undefined, personal.key)).status, 200);
  const stored = JSON.stringify(await control.store.selectFrom('api_keys').selectAll().execute());
  assert.equal(stored.includes(personal.key), false);
  const org = (
    (await call(control, 'GET', '/users/me/organizations')).json as unknown as {organizations: {id: string}[]}
  ).organizations[0]!.id;
  const ofProject = (
    await call(control, 'POST', `/organizations/${org}/api_keys`, {key_name: 'p', project_id: made.project})
  ).json as unknown as {key: string};
  assert.equal((await call(control, 'GET', `/projects/${made.project}`, undefined, ofProject.key)).status, 200);
  assert.equal((await call(control, 'GET', `/projects/${other.project}`, undefined, ofProject.key)).status, 404);
  assert.equal((await call(control, 'POST', '/projects', {project: {}}, ofProject.key)).status, 403);
  assert.equal((await call(control, 'POST', '/api_keys', {key_name: 'more'}, ofProject.key)).status, 403);
  const revoked = await call(control, 'DELETE', `/api_keys/${personal.id}`);
  assert.equal(revoked.json['revoked'], true);
  assert.equal((await call(control, 'GET', '/users/me', undefined, personal.key)).status, 401);
});

test('unknown routes say what the CLI waits for; bad input is 400 in the form of the API', async () => {
  const unknown = await call(control, 'GET', '/projects/x/branches/y/buckets');
  assert.deepEqual([unknown.status, unknown.json['message']], [404, 'this route does not exist']);
  assert.equal((await call(control, 'DELETE', '/projects/undefined/branches/undefined?0=b&1=r')).status, 404);
  for (const [path, body] of [
    ['/projects', {}],
    ['/projects', {project: {pg_version: 16}}],
    ['/projects', {project: {name: ''}}],
    ['/projects', {project: {branch: {role_name: 'a'.repeat(64)}}}],
    ['/projects', {project: {org_id: 5, history_retention_seconds: 'x'}}],
    ['/api_keys', {}],
  ] as const) {
    const {status, json} = await call(control, 'POST', path, body);
    assert.equal(status, 400, `${path} ${JSON.stringify(body)} → ${JSON.stringify(json)}`);
    assert.equal(typeof json['message'], 'string');
    assert.equal(typeof json['code'], 'string');
  }
  const broken = await control.app.inject({
    method: 'POST',
    url: '/api/v2/projects',
    headers: {authorization: `Bearer ${control.key}`, 'content-type': 'application/json'},
    payload: '{',
  });
  assert.equal(broken.statusCode, 400);
  const large = await control.app.inject({
    method: 'POST',
    url: '/api/v2/projects',
    headers: {authorization: `Bearer ${control.key}`, 'content-type': 'application/json'},
    payload: JSON.stringify({project: {name: 'x'.repeat(2_000_000)}}),
  });
  assert.equal(large.statusCode, 413);
});

test('every route wants a key, and a wrong one learns nothing about what exists', async () => {
  for (const {method, path} of apiRoutes) {
    const url = path.replaceAll(/:\w+/g, 'x');
    assert.equal((await call(control, method, url, undefined, null)).status, 401, `${method} ${path}`);
    assert.equal(
      (await call(control, method, url, undefined, 'napi_' + '0'.repeat(64))).status,
      401,
      `${method} ${path}`,
    );
  }
});

test('connection strings', async () => {
  const made = await makeProject();
  const {json} = await call(
    control,
    'GET',
    `/projects/${made.project}/connection_uri?database_name=neondb&role_name=neondb_owner`,
  );
  const {uri} = json as unknown as {uri: string};
  assert.match(
    uri,
    new RegExp(
      `^postgresql://neondb_owner:npg_[A-Za-z0-9]+@${made.endpoint}\\.localhost:54320/neondb\\?sslmode=require&channel_binding=require$`,
    ),
  );
  const pooled = await call(
    control,
    'GET',
    `/projects/${made.project}/connection_uri?database_name=neondb&role_name=neondb_owner&pooled=true&branch_id=${made.branch}`,
  );
  assert.ok((pooled.json as unknown as {uri: string}).uri.includes(`@${made.endpoint}-pooler.localhost:54320/`));
  assert.equal(
    (await call(control, 'GET', `/projects/${made.project}/connection_uri?database_name=nope&role_name=neondb_owner`))
      .status,
    404,
  );
  assert.equal((await call(control, 'GET', `/projects/${made.project}/connection_uri`)).status, 400);
});

test('many changes at once: each one happens, once, and what excludes each other is told so', async () => {
  const {project, branch} = await makeProject();
  const names = Array.from({length: 20}, (_, i) => `b${i}`);
  const made = await Promise.all(
    [...names, ...names].map((name) => call(control, 'POST', `/projects/${project}/branches`, {branch: {name}})),
  );
  assert.equal(made.filter(({status}) => status === 201).length, 20, JSON.stringify(made.map(({json}) => json)));
  assert.equal(made.filter(({status}) => status === 409).length, 20);
  const keys = await Promise.all(names.map((name) => call(control, 'POST', '/api_keys', {key_name: name})));
  assert.equal(new Set(keys.map(({json}) => json['id'])).size, 20, JSON.stringify(keys));
  const roles = await Promise.all(
    names.map((name) => call(control, 'POST', `/projects/${project}/branches/${branch}/roles`, {role: {name}})),
  );
  for (const {status, json} of roles) assert.ok([201, 423].includes(status), JSON.stringify(json));
  const {count} = await control.store
    .selectFrom('operations')
    .select((e) => e.fn.countAll<number>().as('count'))
    .where('kind', '=', 'create_branch')
    .executeTakeFirstOrThrow();
  assert.equal(count, 20);
});
