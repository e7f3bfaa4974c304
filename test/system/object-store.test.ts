/**
 * A whole Pagoda whose object store is a bucket of Ceph RGW behind a proxy that makes faults: everything works, slower; a
 * pageserver that loses its disk loses nothing; a second installation is not let in; a store that is away for a while
 * stops nothing that runs.
 */
import assert from 'node:assert/strict';
import {existsSync, readFileSync, rmSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {test} from 'node:test';
import {faults, FaultProxy} from '../objectstore/fault-proxy.ts';
import {Rgw} from '../objectstore/rgw.ts';
import {Pagoda} from '../pagoda.ts';

test('S3 with faults: write, lose the pageserver disk, read back', async () => {
  await using rgw = await Rgw.start();
  await using proxy = await FaultProxy.start(rgw.endpoint);
  const {bucket, credentialsFile} = await rgw.bucket();
  proxy.slowMs = 50;
  const kinds = faults.filter((fault) => fault !== 'hang');
  proxy.random(11, 4, kinds);
  process.env['PAGODA_OBJECT_STORE'] = `s3://${bucket}/pg?endpoint=${proxy.endpoint}&credentials=${credentialsFile}`;
  await using pagoda = await Pagoda.start();
  const {endpointId} = await pagoda.mainBranch();
  await pagoda.query('create table t as select i, md5(i::text) as m from generate_series(1, 200000) i');
  const expected = await pagoda.query(
    'select count(*)::int as n, sum(i)::text as s, md5(string_agg(m, $$,$$ order by i)) as h from t',
  );

  // The bucket is the truth: nothing of it lies in the data directory.
  assert.ok(!existsSync(join(pagoda.dir, 'objects/tenants')));

  await pagoda.suspend(endpointId);
  process.kill(pagoda.pidOf('pageserver'), 'SIGKILL');
  rmSync(join(pagoda.dir, 'pageserver'), {recursive: true, force: true});
  rmSync(join(pagoda.computeDir(endpointId), 'data'), {recursive: true, force: true});
  assert.deepEqual(
    await pagoda.query(
      'select count(*)::int as n, sum(i)::text as s, md5(string_agg(m, $$,$$ order by i)) as h from t',
    ),
    expected,
  );
  const made = [...proxy.done.values()].reduce((sum, n) => sum + n, 0);
  assert.ok(made >= 10 && proxy.done.size >= 5, `faults that happened: ${JSON.stringify([...proxy.done])}`);

  // The store goes away for a while: commits and cached reads go on, and what was held up goes through afterwards.
  proxy.decide = () => '503';
  await pagoda.query('create table u as select generate_series(1, 1000) i');
  assert.deepEqual(await pagoda.query('select count(*)::int as n from u'), [{n: 1000}]);
  await sleep(3000);
  proxy.decide = () => undefined;
  assert.deepEqual(await pagoda.query('select count(*)::int as n from t'), [{n: 200000}]);

  // Another installation on the same place is refused, with a message that says whose it is.
  await assert.rejects(Pagoda.start(), /belongs to another installation/);

  // The choice is remembered; a start that says something else is refused.
  await pagoda.stop();
  process.env['PAGODA_OBJECT_STORE'] = 'folder:/tmp/elsewhere';
  await assert.rejects(pagoda.up(), /keeps its objects in s3:/);
  delete process.env['PAGODA_OBJECT_STORE'];
  await pagoda.up();
  assert.deepEqual(await pagoda.query('select count(*)::int as n from u'), [{n: 1000}]);
  assert.match(readFileSync(join(pagoda.dir, 'object-store.json'), 'utf8'), /"installationId"/);
});
