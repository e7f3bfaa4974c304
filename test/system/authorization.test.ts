/**
 * Every internal HTTP route × every kind of token. The routes come from the services' own tables: one without a row here fails,
 * and so does a row without a route. What opens a door is asked with an id that nothing has, so that nothing is changed.
 */
import {strict as assert} from 'node:assert';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {allInternalRoutes} from '#control/server.ts';
import {inspectRoutes} from '#pageserver/inspect/routes.ts';
import {managementRoutes as pageserverRoutes} from '#pageserver/management.ts';
import {type Clock, systemClock} from '#runtime/clock.ts';
import type {Route} from '#runtime/http.ts';
import {connectFrames, sendJson} from '#runtime/net.ts';
import {managementRoutes as safekeeperRoutes} from '#safekeeper/management.ts';
import {generateKeys, type KeyRole, keyRoles, TokenIssuer} from '#wire/auth.ts';
import {Pagoda} from '../pagoda.ts';

type Service = 'control' | 'pageserver' | 'safekeeper';

interface Door {
  /** Roles whose node token opens it. */
  readonly node: readonly KeyRole[];
  /** The token of the tenant in the path opens it too. */
  readonly tenant?: boolean;
  /** No timeline is named: any token of the tenant will do. */
  readonly tenantWide?: boolean;
  /** For everybody, without a token. */
  readonly open?: boolean;
}

const everybody: Door = {node: [], tenant: true, open: true};
const only = (...node: readonly KeyRole[]): Door => ({node});
const control = only('control');
/** A compute reads and leases its own timeline; of internal peers only control, which could give itself the compute's token. */
const tenantOrControl: Door = {node: ['control'], tenant: true};

const doors: Readonly<Record<string, Door>> = {
  'control GET /internal/v1/alive': everybody,
  'control POST /internal/v1/validate': only('pageserver'),
  'control POST /internal/v1/re-attach': only('pageserver'),
  'control GET /internal/v1/endpoint_access': only('proxy'),
  'control POST /internal/v1/endpoints/:id/wake': only('proxy'),
  'control POST /internal/v1/point_in_time': only('proxy'),
  // The only one for computes; the branch of the token must exist.
  'control POST /internal/v1/token': {node: []},
  'control GET /internal/v1/safekeepers': control,
  'control PUT /internal/v1/safekeepers/:id': control,
  'control POST /internal/v1/safekeepers/replace': control,
  'control GET /internal/v1/safekeepers/operations': control,
  'control GET /internal/v1/branches/:id/wal': control,
  'control POST /internal/v1/branches/:id/restore_from_archive': control,
  'control POST /internal/v1/branches/:id/detach': control,
  'control GET /internal/v1/branches/:id/detach': control,
  'control GET /internal/v1/branch_places': control,
  'control POST /internal/v1/transfer': only('proxy'),
  'control POST /internal/v1/imports': control,
  'control GET /internal/v1/imports/:id': control,
  'control GET /internal/v1/pageservers': control,
  'control GET /internal/v1/pageservers/operations': control,
  'control PUT /internal/v1/pageservers/:id': control,
  'control POST /internal/v1/pageservers/migrate': control,
  'control POST /internal/v1/pageservers/:id/drain': control,
  // A compute asks where its pages are.
  'control GET /internal/v1/tenants/:tenant/locations': {node: ['control'], tenant: true, tenantWide: true},

  'pageserver GET /v1/status': everybody,
  'pageserver GET /metrics': control,
  'pageserver GET /v1/held': control,
  'pageserver POST /v1/tenant/:tenant/save': control,
  'pageserver PUT /v1/tenant/:tenant': control,
  'pageserver GET /v1/tenant/:tenant': control,
  'pageserver DELETE /v1/tenant/:tenant': control,
  'pageserver POST /v1/tenant/:tenant/timeline': control,
  'pageserver POST /v1/tenant/:tenant/timeline/:timeline/import': control,
  'pageserver GET /v1/tenant/:tenant/timeline/:timeline': tenantOrControl,
  'pageserver GET /v1/tenant/:tenant/timeline/:timeline/lsn_by_timestamp': control,
  'pageserver GET /v1/tenant/:tenant/timeline/:timeline/basebackup': tenantOrControl,
  'pageserver PUT /v1/tenant/:tenant/timeline/:timeline/pgstat': tenantOrControl,
  'pageserver PUT /v1/tenant/:tenant/timeline/:timeline/safekeepers': control,
  'pageserver PUT /v1/tenant/:tenant/timeline/:timeline/retention': control,
  'pageserver PUT /v1/tenant/:tenant/timeline/:timeline/lease': tenantOrControl,
  'pageserver POST /v1/tenant/:tenant/timeline/:timeline/checkpoint': control,
  'pageserver POST /v1/tenant/:tenant/timeline/:timeline/archive': control,
  'pageserver POST /v1/tenant/:tenant/timeline/:timeline/unarchive': control,
  'pageserver DELETE /v1/tenant/:tenant/timeline/:timeline': control,
  'pageserver POST /v1/tenant/:tenant/timeline/:timeline/detach_ancestor': control,
  'pageserver POST /v1/tenant/:tenant/timeline/:timeline/verify': control,
  'pageserver GET /v1/tenant/:tenant/timeline/:timeline/sizes': control,
  'pageserver GET /v1/tenant/:tenant/timeline/:timeline/layers.svg': control,
  'pageserver GET /v1/tenants': control,
  'pageserver POST /v1/tenant/:tenant/scrub': control,

  'safekeeper GET /v1/status': everybody,
  'safekeeper GET /metrics': everybody,
  'safekeeper POST /v1/tenant/:tenant/timeline': control,
  'safekeeper GET /v1/tenant/:tenant/timeline/:timeline': tenantOrControl,
  'safekeeper DELETE /v1/tenant/:tenant/timeline/:timeline': control,
  'safekeeper PUT /v1/tenant/:tenant/timeline/:timeline/membership': control,
  'safekeeper POST /v1/tenant/:tenant/timeline/:timeline/pull': control,
  'safekeeper POST /v1/tenant/:tenant/timeline/:timeline/exclude': control,
  'safekeeper GET /v1/tenant/:tenant/timeline/:timeline/archive': tenantOrControl,
  'safekeeper POST /v1/tenant/:tenant/timeline/:timeline/restore_from_archive': control,
  'safekeeper POST /v1/tenant/:tenant/timeline/:timeline/archive/trim': control,
};

/** The tables make routes without touching what they are given; only handlers do. */
const nothing = {store: undefined} as never;
const tables: Readonly<Record<Service, readonly Route[]>> = {
  control: allInternalRoutes(nothing, nothing),
  pageserver: [...pageserverRoutes(nothing, () => ''), ...inspectRoutes(nothing)],
  safekeeper: safekeeperRoutes(nothing),
};

const nobodysTenant = 'ab'.repeat(16);
const otherTenant = 'cd'.repeat(16);
const nobodysTimeline = '12'.repeat(16);
const otherTimeline = '34'.repeat(16);

let pagoda: Pagoda;
let strangersKeys: string;
const issuers = new Map<KeyRole, TokenIssuer>();
let stranger: TokenIssuer;
let yesterday: TokenIssuer;

before(async () => {
  pagoda = await Pagoda.start();
  const keys = join(pagoda.dir, 'keys');
  for (const role of keyRoles) issuers.set(role, await TokenIssuer.load(keys, role, systemClock));
  strangersKeys = mkdtempSync(join(tmpdir(), 'pagoda-keys-'));
  await generateKeys(strangersKeys);
  stranger = await TokenIssuer.load(strangersKeys, 'control', systemClock);
  const past: Clock = {...systemClock, nowMs: () => systemClock.nowMs() - 86_400_000};
  yesterday = await TokenIssuer.load(keys, 'control', past);
});
after(async () => {
  rmSync(strangersKeys, {recursive: true, force: true});
  await pagoda.stop();
  await pagoda[Symbol.asyncDispose]();
});

const base = (service: Service): string => {
  const {internal} = pagoda.status.ports;
  return `http://127.0.0.1:${internal + {control: 9, pageserver: 8, safekeeper: 4}[service]}`;
};

/**
 * The services that speak in frames: each hello, and what its token must be. `tenant`: the token of the timeline in the hello
 * opens it too. Whoever is not let in is told `refused` and cut off.
 */
const frameDoors: readonly {
  readonly service: 'safekeeper' | 'pageserver' | 'broker';
  readonly hello: Readonly<Record<string, unknown>>;
  readonly door: Door;
}[] = [
  {service: 'safekeeper', hello: {service: 'proposer'}, door: tenantOrControl},
  {
    service: 'safekeeper',
    hello: {service: 'wal', startLsn: '0/0'},
    door: {node: ['pageserver', 'safekeeper', 'control'], tenant: true},
  },
  {service: 'safekeeper', hello: {service: 'wal', startLsn: '0/0', copy: true}, door: only('safekeeper')},
  {service: 'safekeeper', hello: {service: 'state'}, door: only('safekeeper', 'control')},
  {service: 'pageserver', hello: {}, door: tenantOrControl},
  {service: 'broker', hello: {role: 'publish'}, door: only('safekeeper')},
  {service: 'broker', hello: {role: 'subscribe'}, door: only('pageserver', 'safekeeper', 'control')},
];
/** The same in all three protocols. */
const frame = {hello: 1, welcome: 2, refused: 3};

interface Kind {
  readonly name: string;
  readonly token: (service: Service | 'broker') => Promise<string | undefined>;
  readonly expected: (door: Door) => 'in' | 401 | 403;
}

/** Tokens of every kind, of this tenant and timeline and of others. */
function kinds(tenant = nobodysTenant, timeline = nobodysTimeline): Kind[] {
  const issuer = issuers.get('control')!;
  const closed = (status: 401 | 403) => (door: Door) => (door.open === true ? 'in' : status);
  return [
    {name: 'none', token: async () => undefined, expected: closed(401)},
    {name: 'nonsense', token: async () => 'no.token.at-all', expected: closed(401)},
    {
      name: 'of a key that is not known',
      token: (service) => stranger.sign({aud: service, scope: 'node'}),
      expected: closed(401),
    },
    {name: 'expired', token: (service) => yesterday.sign({aud: service, scope: 'node'}), expected: closed(401)},
    {
      name: 'changed after it was signed',
      token: async (service) => {
        const [header, , signature] = (await issuer.sign({aud: service, scope: 'tenant', tenant})).split('.');
        const claims = {iss: 'control', aud: [service], scope: 'node', iat: 1, exp: 4_000_000_000};
        return [header, Buffer.from(JSON.stringify(claims)).toString('base64url'), signature].join('.');
      },
      expected: closed(401),
    },
    {name: 'for somebody else', token: () => issuer.sign({aud: 'compute', scope: 'node'}), expected: closed(403)},
    {
      name: 'of another tenant',
      token: (service) => issuer.sign({aud: service, scope: 'tenant', tenant: otherTenant, timeline}),
      expected: closed(403),
    },
    {
      name: 'of another timeline',
      token: (service) => issuer.sign({aud: service, scope: 'tenant', tenant, timeline: otherTimeline}),
      expected: (door) => (door.tenantWide === true ? 'in' : closed(403)(door)),
    },
    {
      name: 'of the tenant',
      token: (service) => issuer.sign({aud: service, scope: 'tenant', tenant, timeline}),
      expected: (door) => (door.tenant === true ? 'in' : 403),
    },
    {
      name: 'of the tenant, signed by another role than control',
      token: (service) => issuers.get('proxy')!.sign({aud: service, scope: 'tenant', tenant, timeline}),
      expected: closed(403),
    },
    ...keyRoles.map((role): Kind => ({
      name: `node token of ${role}`,
      token: (service) => issuers.get(role)!.sign({aud: service, scope: 'node'}),
      expected: (door) => (door.open === true || door.node.includes(role) ? 'in' : 403),
    })),
  ];
}

test('each internal route opens for the tokens of its row and for no other', async () => {
  const missing: string[] = [];
  const wrong: string[] = [];
  let asked = 0;
  const unused = new Set(Object.keys(doors));
  for (const [service, routes] of Object.entries(tables) as [Service, readonly Route[]][])
    for (const {method, path} of routes) {
      const name = `${service} ${method} ${path}`;
      const door = doors[name];
      unused.delete(name);
      if (!door) {
        missing.push(name);
        continue;
      }
      const url =
        base(service) +
        path.replace(':tenant', nobodysTenant).replace(':timeline', nobodysTimeline).replace(':id', '999999');
      for (const kind of kinds()) {
        const token = await kind.token(service);
        const response = await fetch(url, {
          method,
          headers: {
            'content-type': 'application/json',
            ...(token === undefined ? {} : {authorization: `Bearer ${token}`}),
          },
          ...(method === 'GET' || method === 'DELETE' ? {} : {body: '{}'}),
        });
        await response.arrayBuffer();
        asked++;
        const expected = kind.expected(door);
        const isIn = response.status !== 401 && response.status !== 403;
        if (expected === 'in' ? !isIn : response.status !== expected)
          wrong.push(`${name}, token ${kind.name}: ${response.status}, expected ${expected}`);
        if (response.status >= 500 && response.status !== 503)
          wrong.push(`${name}, token ${kind.name}: ${response.status}`);
      }
    }
  assert.deepEqual(missing, [], 'routes without a row');
  assert.deepEqual([...unused], [], 'rows without a route');
  assert.deepEqual(wrong, []);
  assert.ok(asked > 400, `${asked} combinations`);
});

test('each service that speaks in frames opens for the tokens of its row and for no other', async () => {
  // Nobody writes to it: a hello as its proposer disturbs no compute.
  const made = await pagoda.api<{branch: {id: string}}>('POST', `/projects/${pagoda.status.projectId}/branches`, {});
  await pagoda.settled();
  const {branches} = (await (
    await fetch(`${base('control')}/internal/v1/branch_places?branch=${made.branch.id}`, {
      headers: {authorization: `Bearer ${await issuers.get('control')!.sign({aud: 'control', scope: 'node'})}`},
    })
  ).json()) as {branches: {tenantId: string; timelineId: string}[]};
  const {tenantId, timelineId} = branches[0]!;
  const ports = {broker: 0, safekeeper: 1, pageserver: 7};
  const wrong: string[] = [];
  let asked = 0;
  for (const {service, hello, door} of frameDoors)
    for (const kind of kinds(tenantId, timelineId)) {
      const token = await kind.token(service);
      const port = pagoda.status.ports.internal + ports[service];
      const connection = await connectFrames({host: '127.0.0.1', port});
      const answer = await new Promise<number | 'closed'>((resolve) => {
        connection.onFrame = (type) => resolve(type);
        connection.onClose = () => resolve('closed');
        sendJson(connection, frame.hello, {tenantId, timelineId, ...hello, ...(token === undefined ? {} : {token})});
      });
      connection.destroy();
      asked++;
      const expected = kind.expected(door) === 'in' ? frame.welcome : frame.refused;
      if (answer !== expected)
        wrong.push(`${service} ${JSON.stringify(hello)}, token ${kind.name}: ${answer}, expected ${expected}`);
    }
  assert.deepEqual(wrong, []);
  assert.ok(asked > 80, `${asked} combinations`);
});

test('the agent of a compute opens for the token of its control plane alone', async () => {
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.query('select 1');
  const {readFileSync} = await import('node:fs');
  const {httpPort} = JSON.parse(readFileSync(`${pagoda.computeDir(endpointId)}/run.json`, 'utf8')) as {
    httpPort: number;
  };
  for (const token of [
    undefined,
    'x',
    await issuers.get('control')!.sign({aud: 'compute', scope: 'node'}),
    await issuers.get('proxy')!.sign({aud: 'compute', scope: 'node'}),
  ])
    for (const [method, path] of [
      ['GET', '/status'],
      ['GET', '/metrics'],
      ['GET', '/catalog'],
      ['POST', '/configure'],
      ['POST', '/copy_schema'],
      ['POST', '/stop'],
    ] as const) {
      const response = await fetch(`http://127.0.0.1:${httpPort}${path}`, {
        method,
        headers: token === undefined ? {} : {authorization: `Bearer ${token}`},
      });
      assert.equal(response.status, 401, `${method} ${path}`);
    }
  assert.deepEqual(await pagoda.query('select 1 as one'), [{one: 1}]);
});
