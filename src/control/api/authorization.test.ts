/** Every route of API v2 × every kind of key, from the table of routes: one without a row here fails. */
import {strict as assert} from 'node:assert';
import {after, before, test} from 'node:test';
import {insertApiKey, makeApiKey} from '#control/api/principal.ts';
import {call, FakeWorld, startControl, type TestControl} from '#control/test-world.ts';
import {SeededRandom} from '#runtime/random.ts';
import {apiRoutes} from './server.ts';

/**
 * everyone: any key of ours. project: who may use the project in the path; others see 404, as if it were not there.
 * organization: its keys and people. keys: people; an organisation's key is told off, a project's key too.
 * organization-keys: people and the organisation's own keys. makes-projects: not for a key of one project.
 */
type Row = 'everyone' | 'project' | 'organization' | 'keys' | 'organization-keys' | 'makes-projects';

const rows: Readonly<Record<string, Row>> = {
  'GET /auth': 'everyone',
  'GET /users/me': 'everyone',
  'GET /users/me/organizations': 'everyone',
  'GET /regions': 'everyone',
  'GET /projects': 'everyone',
  'GET /projects/shared': 'everyone',
  'POST /projects': 'makes-projects',
  'GET /organizations/:org_id': 'organization',
  'GET /api_keys': 'keys',
  'POST /api_keys': 'keys',
  'DELETE /api_keys/:key_id': 'keys',
  'GET /organizations/:org_id/api_keys': 'organization-keys',
  'POST /organizations/:org_id/api_keys': 'organization-keys',
  'DELETE /organizations/:org_id/api_keys/:key_id': 'organization-keys',
};

/** Bodies and queries that pass validation, so that the answer is about the key. */
const bodies: Readonly<Record<string, unknown>> = {
  'POST /projects': {project: {name: 'x'}},
  'PATCH /projects/:project_id': {project: {}},
  'PATCH /projects/:project_id/branches/:branch_id': {branch: {}},
  'POST /projects/:project_id/branches/:branch_id/restore': {source_branch_id: 'br-x'},
  'POST /projects/:project_id/endpoints': {endpoint: {branch_id: 'br-x', type: 'read_write'}},
  'PATCH /projects/:project_id/endpoints/:endpoint_id': {endpoint: {}},
  'POST /projects/:project_id/branches/:branch_id/roles': {role: {name: 'x'}},
  'POST /projects/:project_id/branches/:branch_id/databases': {database: {name: 'x', owner_name: 'y'}},
  'PATCH /projects/:project_id/branches/:branch_id/databases/:database_name': {database: {}},
  'PATCH /projects/:project_id/snapshots/:snapshot_id': {snapshot: {}},
  'PUT /projects/:project_id/branches/:branch_id/backup_schedule': {schedule: []},
  'POST /api_keys': {key_name: 'x'},
  'POST /organizations/:org_id/api_keys': {key_name: 'x'},
};
const queries: Readonly<Record<string, string>> = {
  'GET /projects/:project_id/connection_uri': '?database_name=neondb&role_name=neondb_owner',
  'GET /projects/:project_id/branches/:branch_id/schema': '?db_name=neondb',
  'GET /projects/:project_id/branches/:branch_id/compare_schema': '?db_name=neondb&base_branch_id=br-x',
};

let control: TestControl;
let project: string;
let otherProject: string;
const organization = 'org-test-12345678';
const otherOrganization = 'org-other-12345678';
const keys = new Map<string, string>();

before(async () => {
  control = await startControl(new FakeWorld());
  const random = new SeededRandom(99);
  await control.store
    .insertInto('organizations')
    .values({id: otherOrganization, name: 'Other', handle: 'other', created_at: 2, updated_at: 2})
    .execute();
  const make = async (name: string): Promise<string> =>
    (
      (await call(control, 'POST', '/projects', {project: {name, org_id: organization}})).json as unknown as {
        project: {id: string};
      }
    ).project.id;
  project = await make('one');
  otherProject = await make('two');
  const add = async (
    name: string,
    kind: 'personal' | 'organization' | 'project',
    of: {organization?: string; project?: string},
    revoked = false,
  ): Promise<void> => {
    const key = makeApiKey(random);
    keys.set(name, key);
    const id = await control.store.transaction().execute((trx) =>
      insertApiKey(trx, {
        name,
        kind,
        user_id: '00000000-0000-4000-8000-000000000001',
        organization_id: of.organization ?? null,
        project_id: of.project ?? null,
        key,
        nowMs: 1,
      }),
    );
    if (revoked) await control.store.updateTable('api_keys').set({revoked_at: 2}).where('id', '=', id).execute();
  };
  await add('organization', 'organization', {organization});
  await add('other organization', 'organization', {organization: otherOrganization});
  await add('project', 'project', {organization, project});
  await add('other project', 'project', {organization, project: otherProject});
  await add('revoked', 'personal', {}, true);
  keys.set('personal', control.key);
  keys.set('nonsense', 'napi_nonsense');
  keys.set('empty', '');
  keys.set('too long', 'n'.repeat(4000));
});
after(() => control.stop());

/** What a kind of key gets at a kind of route: in, or the status. */
function expected(row: Row, kind: string): 'in' | 401 | 403 | 404 {
  if (['revoked', 'nonsense', 'empty', 'too long', 'none'].includes(kind)) return 401;
  switch (row) {
    case 'everyone':
      return 'in';
    case 'project':
      return kind === 'other organization' || kind === 'other project' ? 404 : 'in';
    case 'organization':
      return kind === 'other organization' ? 404 : 'in';
    case 'makes-projects':
      return kind.endsWith('project') ? 403 : 'in';
    case 'keys':
      return kind === 'personal' ? 'in' : 403;
    case 'organization-keys':
      return kind.endsWith('project') ? 403 : kind === 'other organization' ? 404 : 'in';
  }
}

test('each route of the table opens for the keys of its row and for no other', async () => {
  const wrong: string[] = [];
  const missing: string[] = [];
  const unused = new Set(Object.keys(rows));
  for (const {method, path} of apiRoutes) {
    const name = `${method} ${path}`;
    const row = rows[name] ?? (path.startsWith('/projects/:project_id') ? 'project' : undefined);
    unused.delete(name);
    if (row === undefined) {
      missing.push(name);
      continue;
    }
    const url =
      path
        .replace(':project_id', project)
        .replace(':org_id', organization)
        .replace(':branch_id', 'br-no-such-branch')
        .replaceAll(/:\w+/g, 'no-such-thing') + (queries[name] ?? '');
    for (const kind of [...keys.keys(), 'none']) {
      const want = expected(row, kind);
      // Who is let in changes things: only what reads is tried to the end, and what names something that is not there.
      if (want === 'in' && method !== 'GET' && !path.includes(':branch_id') && !path.includes(':endpoint_id')) continue;
      const {status, json} = await call(control, method, url, bodies[name], kind === 'none' ? null : keys.get(kind)!);
      const message = String((json as {message?: unknown}).message ?? '');
      const isIn = status !== 401 && status !== 403 && !(status === 404 && message.includes(project));
      if (want === 'in' ? !isIn : status !== want)
        wrong.push(`${name} with key "${kind}": ${status} ${message}, expected ${want}`);
      if (want === 404 && !/not found/.test(message))
        wrong.push(`${name} with key "${kind}" tells more than that it is not found: ${message}`);
    }
  }
  assert.deepEqual(missing, [], 'routes without a row');
  assert.deepEqual([...unused], [], 'rows without a route');
  assert.deepEqual(wrong, []);
});

test('an unknown route says the same to everybody', async () => {
  for (const key of [null, 'napi_nonsense', control.key]) {
    const {status, json} = await call(control, 'GET', '/no/such/route', undefined, key);
    assert.deepEqual([status, (json as {message?: string}).message], [404, 'this route does not exist']);
  }
});
