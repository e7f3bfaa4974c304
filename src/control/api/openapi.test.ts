/** Our responses against Neon's published OpenAPI file, read from the dev dependency. */
import {strict as assert} from 'node:assert';
import {readFileSync} from 'node:fs';
import {after, before, test} from 'node:test';
import {Compile, type Validator} from 'typebox/schema';
import {parse} from 'yaml';
import {call, FakeWorld, startControl, type TestControl} from '#control/test-world.ts';
import {apiRoutes} from './server.ts';

interface Document {
  readonly paths: Record<
    string,
    Record<string, {responses: Record<string, {$ref?: string; content?: {'application/json'?: {schema: object}}}>}>
  >;
  readonly components: {readonly responses: Record<string, {content?: {'application/json'?: {schema: object}}}>};
}

const file = new URL('../../../node_modules/@neondatabase/api-client/public-v2-for-users.gen.yaml', import.meta.url);
const document = parse(readFileSync(file, 'utf8')) as Document;

let world: FakeWorld;
let control: TestControl;
before(async () => {
  world = new FakeWorld();
  // What is deleted can be recovered.
  control = await startControl(world, {recoverySeconds: 86_400});
});
after(() => control.stop());

function validatorOf(template: string, method: string, status: number): Validator | undefined {
  const key = Object.keys(document.paths).find((path) => path.replaceAll(/\{[^}]+\}/g, ':') === template);
  assert.ok(key !== undefined, `the specification has no ${template}`);
  const responses = document.paths[key]![method.toLowerCase()]?.responses;
  assert.ok(responses, `the specification has no ${method} ${template}`);
  const named = responses[status];
  assert.ok(named, `${method} ${template} may not answer ${status}, but ${Object.keys(responses).join(', ')}`);
  const response = named.$ref === undefined ? named : document.components.responses[named.$ref.split('/').at(-1)!]!;
  const schema = response.content?.['application/json']?.schema;
  // References are relative to the document's root: the response becomes a part of it.
  return schema && Compile({components: document.components, allOf: [schema]} as never);
}

const covered = new Set<string>();

/** Calls, and checks status and body against the specification. */
async function conform(
  method: 'GET' | 'POST' | 'PATCH' | 'PUT' | 'DELETE',
  path: string,
  body?: unknown,
): Promise<Record<string, never>> {
  const {status, json} = await call(control, method, path, body);
  assert.ok(status < 300, `${method} ${path}: ${status} ${JSON.stringify(json)}`);
  const pathOnly = path.split('?')[0]!;
  const known = apiRoutes
    .filter((r) => r.method === method && new RegExp(`^${r.path.replaceAll(/:\w+/g, '[^/]+')}$`).test(pathOnly))
    .toSorted((a, b) => a.path.split(':').length - b.path.split(':').length)[0];
  assert.ok(known, `${method} ${pathOnly} is in our table`);
  covered.add(`${method} ${known.path}`);
  const validator = validatorOf(known.path.replaceAll(/:\w+/g, ':'), method, status);
  if (validator) {
    const [good, errors] = validator.Errors(json);
    assert.ok(
      good,
      `${method} ${path}: ${JSON.stringify(errors.slice(0, 5), undefined, 1)}\n${JSON.stringify(json, undefined, 1)}`,
    );
  }
  return json;
}

test('every response is as the specification wants it', async () => {
  await conform('GET', '/auth');
  await conform('GET', '/users/me');
  const {organizations} = (await conform('GET', '/users/me/organizations')) as unknown as {
    organizations: {id: string}[];
  };
  const org = organizations[0]!.id;
  await conform('GET', `/organizations/${org}`);
  await conform('GET', '/regions');
  const key = (await conform('POST', '/api_keys', {key_name: 'one'})) as unknown as {id: number};
  await conform('GET', '/api_keys');
  await conform('DELETE', `/api_keys/${key.id}`);
  const orgKey = (await conform('POST', `/organizations/${org}/api_keys`, {key_name: 'two'})) as unknown as {
    id: number;
  };
  await conform('GET', `/organizations/${org}/api_keys`);
  await conform('DELETE', `/organizations/${org}/api_keys/${orgKey.id}`);

  const made = (await conform('POST', '/projects', {project: {name: 'p'}})) as unknown as {
    project: {id: string};
    branch: {id: string};
    endpoints: {id: string}[];
  };
  const project = `/projects/${made.project.id}`;
  await conform('GET', '/projects?limit=1');
  await conform('GET', '/projects/shared');
  await conform('GET', project);
  await conform('PATCH', project, {
    project: {name: 'q', settings: {allowed_ips: {ips: ['10.0.0.0/8'], protected_branches_only: false}}},
  });

  const child = (await conform('POST', `${project}/branches`, {
    branch: {name: 'child'},
    endpoints: [{type: 'read_write'}],
  })) as unknown as {
    branch: {id: string};
    endpoints: {id: string}[];
  };
  const branch = `${project}/branches/${child.branch.id}`;
  await conform('GET', `${project}/branches?limit=1`);
  await conform('GET', `${project}/branches/count`);
  await conform('GET', branch);
  await conform('PATCH', branch, {branch: {name: 'kid', expires_at: '2999-01-01T00:00:00Z'}});
  await conform('POST', `${branch}/set_as_default`);
  await conform('POST', `${project}/branches/${made.branch.id}/set_as_default`);
  await conform('GET', `${branch}/endpoints`);
  await conform('POST', `${branch}/restore`, {source_branch_id: made.branch.id, preserve_under_name: 'before'});
  await conform('GET', `${branch}/schema?db_name=neondb`);
  await conform('GET', `${branch}/schema?db_name=neondb&lsn=0/1500000`);
  await conform('GET', `${branch}/compare_schema?db_name=neondb&base_branch_id=${made.branch.id}`);

  const {snapshot} = (await conform('POST', `${branch}/snapshot?name=kept`)) as unknown as {snapshot: {id: string}};
  await conform('GET', `${project}/snapshots`);
  await conform('PATCH', `${project}/snapshots/${snapshot.id}`, {snapshot: {name: 'kept for long'}});
  const restored = (await conform('POST', `${project}/snapshots/${snapshot.id}/restore`, {
    name: 'from a snapshot',
  })) as unknown as {branch: {id: string; parent_lsn: string}};
  await conform('DELETE', `${project}/branches/${restored.branch.id}`);
  await conform('POST', `${project}/snapshots/${snapshot.id}/restore`, {
    name: 'put back',
    target_branch_id: child.branch.id,
    finalize_restore: true,
  });
  const preview = (await conform('POST', `${project}/snapshots/${snapshot.id}/restore`, {
    name: 'preview',
  })) as unknown as {
    branch: {id: string};
  };
  await conform('POST', `${project}/branches/${preview.branch.id}/finalize_restore`, {name: 'replaced'});
  await conform('DELETE', `${project}/snapshots/${snapshot.id}`);
  await conform('PUT', `${branch}/backup_schedule`, {
    schedule: [{frequency: 'daily', hour: 3, retention_seconds: 86_400}],
  });
  await conform('GET', `${branch}/backup_schedule`);

  await conform('GET', `${branch}/roles`);
  await conform('POST', `${branch}/roles`, {role: {name: 'alice'}});
  await conform('GET', `${branch}/roles/alice`);
  await conform('GET', `${branch}/roles/alice/reveal_password`);
  await conform('POST', `${branch}/roles/alice/reset_password`);
  await conform('GET', `${branch}/databases`);
  await conform('POST', `${branch}/databases`, {database: {name: 'shop', owner_name: 'alice'}});
  await conform('GET', `${branch}/databases/shop`);
  await conform('PATCH', `${branch}/databases/shop`, {database: {owner_name: 'neondb_owner'}});
  await conform('DELETE', `${branch}/databases/shop`);
  await conform('DELETE', `${branch}/roles/alice`);

  const endpoint = `${project}/endpoints/${child.endpoints[0]!.id}`;
  await conform('GET', `${project}/endpoints`);
  await conform('GET', endpoint);
  await conform('PATCH', endpoint, {endpoint: {suspend_timeout_seconds: 600}});
  await conform('POST', `${endpoint}/suspend`);
  await conform('POST', `${endpoint}/start`);
  await conform('POST', `${endpoint}/restart`);
  await conform('GET', `${project}/connection_uri?database_name=neondb&role_name=neondb_owner`);
  await conform('DELETE', endpoint);
  await conform('POST', `${project}/endpoints`, {endpoint: {branch_id: preview.branch.id, type: 'read_write'}});

  const {operations} = (await conform('GET', `${project}/operations?limit=3`)) as unknown as {
    operations: {id: string}[];
  };
  await conform('GET', `${project}/operations/${operations[0]!.id}`);
  await conform('DELETE', branch);
  await conform('GET', `${project}/branches?include_deleted=true`);
  await conform('POST', `${branch}/recover`);
  await conform('DELETE', `${branch}?hard_delete=true`);
  await conform('DELETE', project);
  await conform('GET', '/projects?recoverable=true');
  await conform('POST', `${project}/recover`);

  const missing = apiRoutes.map((r) => `${r.method} ${r.path}`).filter((route) => !covered.has(route));
  assert.deepEqual(missing, [], 'every route of the table is checked here');
});

test('our own document has every route with its schemas, and all of it is in the document of Neon', async () => {
  const answer = await call(control, 'GET', '/openapi.json');
  assert.equal(answer.status, 200);
  const ours = answer.json as unknown as {
    paths: Record<string, Record<string, {operationId: string; parameters: {name: string; in: string}[]}>>;
  };
  const operations = Object.entries(ours.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({path, method, operation})),
  );
  assert.equal(operations.length, apiRoutes.length);
  assert.equal(new Set(operations.map(({operation}) => operation.operationId)).size, operations.length);
  const shape = (path: string): string => path.replaceAll(/\{[^}]+\}/g, ':');
  for (const {path, method, operation} of operations) {
    const known = Object.keys(document.paths).find(
      (theirs) => shape(theirs) === shape(path) && method in document.paths[theirs]!,
    );
    assert.ok(known, `${method} ${path} is Neon's too`);
    const inPath = operation.parameters.filter((parameter) => parameter.in === 'path').length;
    assert.equal(inPath, path.split('{').length - 1);
  }
});
