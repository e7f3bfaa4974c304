import assert from 'node:assert/strict';
import {test} from 'node:test';
import {PostgresCluster} from './postgres-cluster.ts';

test('a cluster starts, answers, restarts with other settings and goes away', async () => {
  await using cluster = await PostgresCluster.create({settings: {wal_level: 'logical'}});
  assert.deepEqual(await cluster.query('select 1 as one'), [{one: 1}]);
  assert.equal((await cluster.psql('-Atc', 'show wal_level')).trim(), 'logical');
  await cluster.pgbench(['-i', '-q', '-s', '1']);
  await cluster.stop('fast');
  cluster.settings['wal_level'] = 'replica';
  await cluster.start();
  assert.deepEqual(
    await cluster.query('select count(*)::int as n, current_setting($1) as level from pgbench_accounts', ['wal_level']),
    [{n: 100000, level: 'replica'}],
  );
});
