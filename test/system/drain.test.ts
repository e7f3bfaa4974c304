/** Three pageservers in two zones: who holds a project and who keeps it ready are in different zones, until one of them is drained. */
import assert from 'node:assert/strict';
import {test} from 'node:test';
import {Pagoda} from '../pagoda.ts';
import {PageProbe} from './page-probe.ts';

const zones = ['a', 'a', 'b'];

test('projects are kept ready in another zone, and leave a pageserver that is drained', async () => {
  await using pagoda = await Pagoda.start({upOptions: ['--pageservers', '3']});
  const probe = await PageProbe.of(pagoda);
  const add = async (node: number): Promise<string> => {
    const {port, httpPort} = probe.ports(node);
    const ports = ['--port', String(port), '--http-port', String(httpPort)];
    return pagoda.cli('pageservers', 'add', String(node), ...ports, '--zone', zones[node - 1]!);
  };
  /** By node: what it holds, what it keeps ready, and the rest of its line. */
  const list = async (): Promise<{holds: number; keeps: number; text: string}[]> =>
    (await pagoda.cli('pageservers', 'list'))
      .trim()
      .split('\n')
      .map((text) => {
        const [, holds, keeps] = /holds (\d+), keeps (\d+) ready/.exec(text) ?? [];
        return {holds: Number(holds), keeps: Number(keeps), text};
      });
  const project = async (name: string): Promise<{id: string; tenantId: string}> => {
    const {id} = (await pagoda.api<{project: {id: string}}>('POST', '/projects', {project: {name}})).project;
    await pagoda.settled(id);
    return {id, tenantId: await probe.tenantOf(id)};
  };
  const holderOf = async ({tenantId}: {tenantId: string}): Promise<number> => {
    for (const node of [1, 2, 3]) if (await probe.hasMode(node, tenantId, 'attached')) return node;
    return assert.fail(`nobody holds ${tenantId}`);
  };

  for (const node of [1, 2, 3]) await add(node);
  await project('two');
  const leaving = await project('three');
  await project('four');
  const before = await list();
  assert.match(before[2]!.text, /zone b/);
  // Each where fewest are; without zones the last one would be kept ready by pageserver 2.
  assert.deepEqual(
    before.map(({holds, keeps}) => [holds, keeps]),
    [
      [2, 1],
      [1, 1],
      [1, 2],
    ],
  );
  assert.equal(await holderOf(leaving), 3);
  const {uri, endpointId} = await pagoda.mainBranch(leaving.id);
  await pagoda.query('create table t as select i from generate_series(1, 5000) i', uri);

  assert.match(await pagoda.cli('pageservers', 'drain', '3', '--wait'), /finished/);
  const after = await list();
  assert.match(after[2]!.text, /holds 0, keeps 0 ready {2}retired/);
  assert.equal(after[0]!.holds + after[1]!.holds, 4);
  assert.equal(after[0]!.keeps + after[1]!.keeps, 4, 'each is kept ready by the other one');
  assert.equal(await holderOf(leaving), 1, 'it was kept ready there');
  const rows = [{n: 5000, sum: 12_502_500}];
  const sum = 'select count(*)::int as n, sum(i)::int as sum from t';
  assert.deepEqual(await pagoda.query(sum, uri), rows);
  await pagoda.suspend(endpointId, leaving.id);
  assert.deepEqual(await pagoda.query(sum, uri), rows, 'by a compute that has none of the pages');

  assert.notEqual(await holderOf(await project('five')), 3);
  await add(3);
  assert.doesNotMatch((await list())[2]!.text, /retired/);
  assert.equal(await holderOf(await project('six')), 3);
});
