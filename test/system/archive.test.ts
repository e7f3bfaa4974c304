/**
 * Branches that rest are archived by themselves, children first; then they have nothing on the pageserver but a line in memory.
 * A connection wakes one with its ancestors, and it is the same to the last byte.
 */
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import {TokenIssuer} from '#wire/auth.ts';
import {systemClock} from '#runtime/clock.ts';
import {onTestStores} from '../objectstore/stores.ts';
import {Pagoda, libpqEnvironment} from '../pagoda.ts';

interface BranchView {
  readonly id: string;
  readonly current_state: string;
  readonly logical_size?: number;
}

onTestStores(
  'a branch that rests is archived with its children before it, and wakes at a connection, the same as before',
  async ({kind, url}) => {
    process.env['PAGODA_ARCHIVE_AGE_SECONDS'] = '1';
    process.env['PAGODA_ARCHIVE_IDLE_SECONDS'] = '4';
    await using pagoda = await Pagoda.start({objectStore: url});
    const project = `/projects/${pagoda.status.projectId}`;
    const state = async (id: string): Promise<string> =>
      (await pagoda.api<{branch: BranchView}>('GET', `${project}/branches/${id}`)).branch.current_state;
    const archived = async (id: string): Promise<void> => {
      for (const until = Date.now() + 400_000; (await state(id)) !== 'archived'; await sleep(200))
        assert.ok(Date.now() < until, `branch ${id} is not archived but ${await state(id)}\n${pagoda.logTails()}`);
    };
    // Never synchronously: the proxy before the store runs in this process.
    const dump = async (uri: string): Promise<string> =>
      (
        await promisify(execFile)('/usr/lib/postgresql/15/bin/pg_dump', ['--restrict-key=x'], {
          env: libpqEnvironment(uri),
          maxBuffer: 1 << 28,
        })
      ).stdout;

    await pagoda.query('create table t as select i, md5(i::text) as m from generate_series(1, 20000) i');
    await pagoda.query('create index on t (m)');
    const parent = await pagoda.branch({name: 'parent'});
    await pagoda.query('update t set m = upper(m) where i % 3 = 0', parent.uri);
    const child = await pagoda.branch({name: 'child', parent_id: parent.branchId});
    await pagoda.query(
      'delete from t where i % 5 = 0; create table only_child (x int); insert into only_child values (7)',
      child.uri,
    );
    const kept = await pagoda.branch({name: 'protected', protected: true});
    // What the child has of its parent must outlive what the parent does later.
    await pagoda.query(`update t set m = 'changed'`, parent.uri);
    const before = {parent: await dump(parent.uri), child: await dump(child.uri)};
    for (const {endpointId} of [parent, child, kept]) await pagoda.suspend(endpointId);
    const size = (await pagoda.api<{branch: BranchView}>('GET', `${project}/branches/${child.branchId}`)).branch
      .logical_size;

    await archived(child.branchId);
    await archived(parent.branchId);
    assert.equal(await state(kept.branchId), 'ready');
    assert.equal(await state((await pagoda.mainBranch()).branchId), 'ready');
    // Still known: its size. Not in memory any more: only main's timeline and the protected one's.
    const view = (await pagoda.api<{branch: BranchView}>('GET', `${project}/branches/${child.branchId}`)).branch;
    assert.equal(view.logical_size, size);
    assert.equal(await timelinesInMemory(pagoda), 2);
    // A pageserver that starts does not load them either.
    process.kill(pagoda.pidOf('pageserver'), 'SIGKILL');
    for (const until = Date.now() + 240_000; ; await sleep(200)) {
      if ((await timelinesInMemory(pagoda).catch(() => 0)) > 0) break;
      assert.ok(Date.now() < until, 'the pageserver does not come back');
    }
    assert.equal(await timelinesInMemory(pagoda), 2);

    // The first connection wakes the child, and its parent with it.
    const started = performance.now();
    assert.deepEqual(await pagoda.query('select x from only_child', child.uri), [{x: 7}]);
    console.log(`${kind}: archived branch to first row: ${(performance.now() - started).toFixed(0)} ms`);
    assert.equal(await state(child.branchId), 'ready');
    assert.equal(await state(parent.branchId), 'ready');
    assert.equal(await dump(child.uri), before.child);
    assert.equal(await dump(parent.uri), before.parent);
    assert.match(await pagoda.cli('verify', '--branch', 'child'), /every page can be read/);
    assert.match(await pagoda.cli('verify', '--branch', 'parent'), /every page can be read/);
    await pagoda.query('insert into only_child values (8)', child.uri);

    // Asleep again: branched from, deleted with a child, deleted.
    for (const {endpointId} of [parent, child]) await pagoda.suspend(endpointId);
    await archived(parent.branchId);
    const grandchild = await pagoda.branch({name: 'grandchild', parent_id: child.branchId});
    assert.deepEqual(await pagoda.query('select x from only_child order by x', grandchild.uri), [{x: 7}, {x: 8}]);
    await pagoda.suspend(grandchild.endpointId);
    await archived(parent.branchId);
    await assert.rejects(pagoda.api('DELETE', `${project}/branches/${child.branchId}`), /child branches/);
    for (const {branchId} of [grandchild, child, parent])
      await pagoda.api('DELETE', `${project}/branches/${branchId}?hard_delete=true`);
    await pagoda.settled();
    assert.match(await pagoda.cli('scrub'), /nothing is missing or damaged/);
  },
);

async function timelinesInMemory(pagoda: Pagoda): Promise<number> {
  const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
  const config = JSON.parse(await pagoda.cli('status', '-o', 'json')) as {ports: {internal: number}};
  const response = await fetch(`http://127.0.0.1:${config.ports.internal + 8}/metrics`, {
    headers: {authorization: `Bearer ${await issuer.sign({aud: 'pageserver', scope: 'node'})}`},
  });
  const text = await response.text();
  const line = /^pagoda_timelines (\d+)$/m.exec(text);
  assert.ok(line, text.slice(0, 2000));
  return Number(line[1]);
}
