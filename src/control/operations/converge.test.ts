/** The control plane killed between any two actions, and started again on the same database: everything converges. */
import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import type {Lsn} from '#control/lsn.ts';
import type {OperationState} from '#control/operations/plan.ts';
import type {PlanContext} from '#control/operations/plan-context.ts';
import {makePlans} from '#control/operations/plans.ts';
import {call, FakeWorld, hasFailed, importLsn, startControl, type TestControl} from '#control/test-world.ts';
import {createProject} from '#control/api/project-routes.ts';

/** What a person sees through the API, and what is left in storage. */
async function observe(control: TestControl, world: FakeWorld): Promise<unknown> {
  const {json} = await call(control, 'GET', '/projects');
  const projects: unknown[] = [];
  for (const {id} of (json as unknown as {projects: {id: string}[]}).projects) {
    const {branches} = (await call(control, 'GET', `/projects/${id}/branches?sort_by=name`)).json as unknown as {
      branches: {id: string; name: string; current_state: string; parent_id?: string}[];
    };
    const {endpoints} = (await call(control, 'GET', `/projects/${id}/endpoints`)).json as unknown as {
      endpoints: {current_state: string; pending_state?: string}[];
    };
    const {operations} = (await call(control, 'GET', `/projects/${id}/operations`)).json as unknown as {
      operations: {action: string; status: string}[];
    };
    const roles = await Promise.all(
      branches.map(
        async (b) =>
          ((await call(control, 'GET', `/projects/${id}/branches/${b.id}/roles`)).json as unknown as {roles: unknown[]})
            .roles.length,
      ),
    );
    projects.push({
      branches: branches.map((b) => [b.name, b.current_state, b.parent_id !== undefined]),
      endpoints: endpoints.map((e) => [e.current_state, e.pending_state]),
      operations: operations.map((o) => [o.action, o.status]),
      roles,
    });
  }
  return {
    projects,
    tenants: world.tenants.size,
    attachments: (await control.store.selectFrom('attachments').selectAll().execute()).map((row) => [
      row.pageserver_id,
      row.secondary_id,
      world.places.get(`${row.pageserver_id}/${row.tenant_id}`)?.generation === row.generation,
    ]),
    places: [...world.places].map(([key, {mode}]) => [Number(key.split('/')[0]), mode]),
    timelines: [...world.timelines.values()].map((t) => [t.mode.kind, t.lastRecordLsn, t.safekeepers]),
    walTimelines: [...world.walTimelines.keys()].map((key) => Number(key.split('/')[0])).sort((a, b) => a - b),
    safekeepers: (await control.store.selectFrom('branches').select('safekeepers').execute())
      .map((row) => row.safekeepers)
      .sort(),
    computes: world.computes.size,
  };
}

/** There each killed control plane costs a new database: a sample will do, of a code path that is the same. */
const onPostgres = (process.env['PAGODA_TEST_DATABASE'] ?? '') !== '';
const stride = 7;

interface Scenario {
  readonly name: string;
  prepare?(control: TestControl, world: FakeWorld): Promise<void>;
  act(control: TestControl): Promise<unknown>;
}

async function projectOf(control: TestControl): Promise<{id: string; branch: string; endpoint: string}> {
  const branch = await control.store
    .selectFrom('branches')
    .selectAll()
    .where('deleted_at', 'is', null)
    .orderBy('created_at')
    .executeTakeFirstOrThrow();
  const endpoint = await control.store
    .selectFrom('endpoints')
    .selectAll()
    .where('branch_id', '=', branch.id)
    .executeTakeFirstOrThrow();
  return {id: branch.project_id, branch: branch.id, endpoint: endpoint.id};
}

/** Of the first branch, or of another; waits until it is over. */
async function submit(control: TestControl, kind: string, state: OperationState, branchId?: string): Promise<void> {
  const {id, branch: first} = await projectOf(control);
  const branch = branchId ?? first;
  const locks = [`branch:${branch}`, `safekeepers:${branch}`];
  const ids = await control.store
    .transaction()
    .execute((trx) =>
      control.runner.submit(trx, [{projectId: id, branchId: branch, action: 'replace_safekeeper', kind, locks, state}]),
    );
  await control.runner.kick();
  await control.runner.wait(ids, 10_000);
}

const makeProject = async (control: TestControl): Promise<void> =>
  void (await call(control, 'POST', '/projects', {project: {name: 'p'}}));

const scenarios: readonly Scenario[] = [
  {name: 'create project', act: (control) => call(control, 'POST', '/projects', {project: {name: 'p'}})},
  {
    name: 'create branch',
    prepare: makeProject,
    act: async (control) =>
      call(control, 'POST', `/projects/${(await projectOf(control)).id}/branches`, {
        branch: {name: 'b'},
        endpoints: [{type: 'read_write'}],
      }),
  },
  {
    name: 'delete a parent whose children stay',
    prepare: async (control) => {
      await makeProject(control);
      const {id} = await projectOf(control);
      const path = `/projects/${id}/branches`;
      const {json} = await call(control, 'POST', path, {branch: {name: 'b'}});
      const parent = (json as unknown as {branch: {id: string}}).branch.id;
      for (const name of ['c', 'd']) await call(control, 'POST', path, {branch: {name, parent_id: parent}});
    },
    act: async (control) => {
      const row = await control.store
        .selectFrom('branches')
        .selectAll()
        .where('name', '=', 'b')
        .executeTakeFirstOrThrow();
      return call(control, 'DELETE', `/projects/${row.project_id}/branches/${row.id}?detach_children=true`);
    },
  },
  {
    name: 'create branch with the schema only',
    prepare: makeProject,
    act: async (control) =>
      call(control, 'POST', `/projects/${(await projectOf(control)).id}/branches`, {
        branch: {name: 'b', init_source: 'schema-only'},
        endpoints: [{type: 'read_write'}],
      }),
  },
  {
    name: 'import a data directory as a project',
    act: async (control) =>
      createProject(
        control.context,
        {
          body: {project: {name: 'p'}},
          principal: {kind: 'personal', userId: '00000000-0000-4000-8000-000000000001'},
        },
        {directory: '/somewhere', superuser: 'postgres'},
      ),
  },
  {
    name: 'detach a branch',
    prepare: async (control) => {
      await makeProject(control);
      await call(control, 'POST', `/projects/${(await projectOf(control)).id}/branches`, {branch: {name: 'b'}});
    },
    act: async (control) => {
      const row = await control.store
        .selectFrom('branches')
        .selectAll()
        .where('name', '=', 'b')
        .executeTakeFirstOrThrow();
      const operation = {projectId: row.project_id, branchId: row.id, action: 'detach_parent_branch'};
      const ids = await control.store
        .transaction()
        .execute((trx) =>
          control.runner.submit(trx, [{...operation, kind: 'detach_branch', locks: [`detach:${row.id}`]}]),
        );
      await control.runner.kick();
      await control.runner.wait(ids, 10_000);
    },
  },
  {
    name: 'suspend and start',
    prepare: makeProject,
    act: async (control) => {
      const {id, endpoint} = await projectOf(control);
      return call(control, 'POST', `/projects/${id}/endpoints/${endpoint}/restart`);
    },
  },
  {
    name: 'create role',
    prepare: makeProject,
    act: async (control) => {
      const {id, branch} = await projectOf(control);
      return call(control, 'POST', `/projects/${id}/branches/${branch}/roles`, {role: {name: 'alice'}});
    },
  },
  {
    name: 'replace a safekeeper that is gone',
    prepare: makeProject,
    act: (control) => submit(control, 'replace_safekeeper', {remove: [3], add: [4]}),
  },
  {
    name: 'a tenant moves to another pageserver',
    prepare: async (control, world) => {
      await makeProject(control);
      world.pageservers.push({nodeId: 2, host: '127.0.0.1', port: 3, httpPort: 4});
    },
    act: async (control) =>
      submit(control, 'migrate_tenant', {
        shardId: (await control.store.selectFrom('attachments').selectAll().executeTakeFirstOrThrow()).tenant_id,
        to: 2,
      }),
  },
  {
    name: 'all safekeepers lost, the branch restored from the archive',
    prepare: async (control, world) => {
      await makeProject(control);
      world.archived = (importLsn + 0x500) as Lsn;
      world.walTimelines.clear();
    },
    act: (control) => submit(control, 'restore_from_archive', {members: [1, 2, 4]}),
  },
  {
    name: 'bring a timeline to a safekeeper that was down when it was made',
    prepare: async (control, world) => {
      await makeProject(control);
      for (const key of world.walTimelines.keys()) if (key.startsWith('3/')) world.walTimelines.delete(key);
    },
    act: async (control) => {
      const {timeline_id: timelineId} = await control.store
        .selectFrom('branches')
        .select('timeline_id')
        .executeTakeFirstOrThrow();
      const timeline = {tenantId: 't', timelineId, systemId: '1', pgVersion: 150_000, startLsn: importLsn, members: []};
      await submit(control, 'complete_timeline', {timeline: {...timeline, missing: [3]}});
    },
  },
  {
    name: 'a replaced safekeeper is back with its files',
    prepare: async (control, world) => {
      await makeProject(control);
      const [key, timeline] = [...world.walTimelines].find(([name]) => name.startsWith('3/'))!;
      await submit(control, 'replace_safekeeper', {remove: [3], add: [4]});
      world.walTimelines.set(key, timeline);
    },
    act: async (control) => {
      const {id: replacedBy} = await control.store
        .selectFrom('operations')
        .select('id')
        .where('kind', '=', 'replace_safekeeper')
        .executeTakeFirstOrThrow();
      await submit(control, 'exclude_safekeeper', {nodeId: 3, replacedBy});
    },
  },
  {
    name: 'detach a branch from its parent',
    prepare: async (control) => {
      await makeProject(control);
      await call(control, 'POST', `/projects/${(await projectOf(control)).id}/branches`, {branch: {name: 'b'}});
    },
    act: async (control) => {
      const {id} = await control.store
        .selectFrom('branches')
        .select('id')
        .where('name', '=', 'b')
        .executeTakeFirstOrThrow();
      await submit(control, 'detach_branch', {}, id);
    },
  },
  {
    name: 'archive a branch',
    prepare: async (control) => {
      await makeProject(control);
      await call(control, 'POST', `/projects/${(await projectOf(control)).id}/branches`, {branch: {name: 'b'}});
    },
    act: async (control) => {
      const {id} = await control.store
        .selectFrom('branches')
        .select('id')
        .where('name', '=', 'b')
        .executeTakeFirstOrThrow();
      await submit(control, 'archive_branch', {}, id);
    },
  },
  {
    name: 'change how much history is kept',
    prepare: makeProject,
    act: async (control) =>
      call(control, 'PATCH', `/projects/${(await projectOf(control)).id}`, {
        project: {history_retention_seconds: 3600},
      }),
  },
  {
    name: 'delete branch',
    prepare: async (control) => {
      await makeProject(control);
      await call(control, 'POST', `/projects/${(await projectOf(control)).id}/branches`, {
        branch: {name: 'b'},
        endpoints: [{type: 'read_write'}],
      });
    },
    act: async (control) => {
      const child = await control.store
        .selectFrom('branches')
        .selectAll()
        .where('name', '=', 'b')
        .executeTakeFirstOrThrow();
      return call(control, 'DELETE', `/projects/${child.project_id}/branches/${child.id}`);
    },
  },
  {
    name: 'restore branch from itself, old state kept',
    prepare: async (control) => {
      await makeProject(control);
      const {id, branch} = await projectOf(control);
      await call(control, 'POST', `/projects/${id}/branches`, {branch: {name: 'child', parent_id: branch}});
    },
    act: async (control) => {
      const {id, branch} = await projectOf(control);
      return call(control, 'POST', `/projects/${id}/branches/${branch}/restore`, {
        source_branch_id: branch,
        source_lsn: '0/1500000',
        preserve_under_name: 'before',
      });
    },
  },
  {
    name: 'finalize the restore of a snapshot',
    prepare: async (control) => {
      await makeProject(control);
      const {id, branch} = await projectOf(control);
      const {json} = await call(control, 'POST', `/projects/${id}/branches/${branch}/snapshot?name=s`);
      const {snapshot} = json as unknown as {snapshot: {id: string}};
      await call(control, 'POST', `/projects/${id}/snapshots/${snapshot.id}/restore`, {name: 'preview'});
    },
    act: async (control) => {
      const preview = await control.store
        .selectFrom('branches')
        .selectAll()
        .where('name', '=', 'preview')
        .executeTakeFirstOrThrow();
      const path = `/projects/${preview.project_id}/branches/${preview.id}/finalize_restore`;
      return call(control, 'POST', path, {name: 'replaced'});
    },
  },
  {
    name: 'reset branch to its parent, old state dropped',
    prepare: async (control) => {
      await makeProject(control);
      await call(control, 'POST', `/projects/${(await projectOf(control)).id}/branches`, {
        branch: {name: 'b'},
        endpoints: [{type: 'read_write'}],
      });
    },
    act: async (control) => {
      const child = await control.store
        .selectFrom('branches')
        .selectAll()
        .where('name', '=', 'b')
        .executeTakeFirstOrThrow();
      return call(control, 'POST', `/projects/${child.project_id}/branches/${child.id}/restore`, {
        source_branch_id: child.parent_id,
      });
    },
  },
  {
    name: 'delete project with a restored branch',
    prepare: async (control) => {
      await makeProject(control);
      const {id, branch} = await projectOf(control);
      await call(control, 'POST', `/projects/${id}/branches/${branch}/restore`, {
        source_branch_id: branch,
        source_lsn: '0/1500000',
        preserve_under_name: 'before',
      });
    },
    act: async (control) => call(control, 'DELETE', `/projects/${(await projectOf(control)).id}`),
  },
  {
    name: 'delete project',
    prepare: makeProject,
    act: async (control) => call(control, 'DELETE', `/projects/${(await projectOf(control)).id}`),
  },
];

/** Kinds of operations that some scenario was killed in. */
const killedIn = new Set<string>();

for (const scenario of scenarios)
  test(`${scenario.name}: killed at every point, it ends as if it had not been`, async () => {
    // Once undisturbed: the expected end, and how many points there are to be killed at.
    const points: string[] = [];
    const calm = new FakeWorld();
    let counting = false;
    const undisturbed = await startControl(calm, {
      checkpoint: async (point) => {
        if (counting) points.push(point);
      },
    });
    await scenario.prepare?.(undisturbed, calm);
    counting = true;
    await scenario.act(undisturbed);
    const expected = await observe(undisturbed, calm);
    const unfinished = await undisturbed.store
      .selectFrom('operations')
      .select(['kind', 'status'])
      .where('status', '!=', 'finished')
      .execute();
    assert.deepEqual(unfinished, [], 'the scenario does what it says');
    await undisturbed.stop();
    assert.ok(points.length >= 2, 'the scenario has steps');
    for (const point of points) killedIn.add(point.split('.')[0]!);

    for (
      let killAt = onPostgres ? points.length % stride : 0;
      killAt < points.length;
      killAt += onPostgres ? stride : 1
    ) {
      const world = new FakeWorld();
      let seen = 0;
      let armed = false;
      let onKilled = (): void => {};
      const killed = new Promise<void>((resolve) => (onKilled = resolve));
      const doomed = await startControl(world, {
        // Whoever asked it waits for nobody any more.
        waitMsMax: 5_000,
        checkpoint: (point) => {
          if (!armed || seen++ !== killAt) return Promise.resolve();
          assert.equal(point, points[killAt]);
          onKilled();
          return new Promise(() => {}); // it never comes back from here
        },
      });
      await scenario.prepare?.(doomed, world);
      armed = true;
      void scenario.act(doomed).catch(() => {});
      await killed;

      const reborn = await startControl(world, {store: doomed.store, key: doomed.key, seed: 2});
      const left = await reborn.store
        .selectFrom('operations')
        .select('id')
        .where('status', 'in', ['scheduling', 'running'])
        .execute();
      await reborn.runner.wait(
        left.map((o) => o.id),
        120_000,
      );
      assert.deepEqual(await observe(reborn, world), expected, `killed at ${points[killAt]}`);
      await reborn.stop();
    }
  });

test('every kind of operation has a scenario above', () => {
  const kinds = makePlans({} as PlanContext).map((plan) => plan.kind);
  assert.deepEqual(
    kinds.filter((kind) => !killedIn.has(kind)),
    [],
  );
});

test('storage that is down for a while delays an operation and does not fail it', async (t) => {
  const world = new FakeWorld();
  world.broken.add('safekeeper-2').add('safekeeper-3');
  const control = await startControl(world, {waitMsMax: 100});
  t.after(() => control.stop());
  const {status, json} = await call(control, 'POST', '/projects', {project: {name: 'p'}});
  assert.equal(status, 201);
  const {operations, branch, project} = json as unknown as {
    operations: {id: string; status: string; error?: string}[];
    branch: {current_state: string};
    project: {id: string};
  };
  assert.equal(branch.current_state, 'init');
  await hasFailed(control, operations[0]!.id);
  world.broken.clear();
  await control.runner.wait(
    operations.map((o) => o.id),
    10_000,
  );
  const after = (await call(control, 'GET', `/projects/${project.id}/operations`)).json as unknown as {
    operations: {status: string}[];
  };
  assert.deepEqual(
    after.operations.map((o) => o.status),
    ['finished', 'finished'],
  );
});
