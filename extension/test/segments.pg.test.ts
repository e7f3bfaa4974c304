/** A relation of more than one 1 GiB segment file. Slow: runs with PAGODA_LONG=1. */
import assert from 'node:assert/strict';
import * as fs from 'node:fs';
import {test} from 'node:test';
import {Cluster, Compute, buildExtension, rows, runTool} from './cluster.ts';

test(
  'read, truncate and extend over the boundary of a segment, crash',
  {skip: process.env['PAGODA_LONG'] === undefined},
  async () => {
    buildExtension();
    const base = await Cluster.initialise();
    await base.start();
    await base.query([
      'create table big (id int, v text)',
      'alter table big alter v set storage plain',
      `insert into big select g, repeat('x', 7800) from generate_series(1, 140000) g`,
      'create index on big (id)',
      'vacuum big',
    ]);
    await base.stop();
    const compute = await Compute.on(base);
    try {
      await compute.start({settings: {restart_after_crash: 'on'}});
      assert.deepEqual(await compute.query(`select pg_relation_size('big') / 8192`), ['140000']);
      assert.equal(compute.relationFiles().filter((file) => file.endsWith('.1')).length, 0);
      assert.deepEqual(
        await compute.query(
          'set enable_seqscan = off; select id, length(v) from big where id in (5, 131072, 131073, 139999)',
        ),
        ['5|7800', '131072|7800', '131073|7800', '139999|7800'],
      );
      const [file] = await compute.query(`select pg_relation_filepath('big')`);
      assert.equal(fs.statSync(`${compute.directory}/${file}.1`).size, (140000 - 131072) * 8192);
      await compute.query(['delete from big where id > 131000', 'vacuum big']);
      assert.deepEqual(await compute.query(`select pg_relation_size('big') / 8192`), ['131000']);
      await compute.query(`insert into big select g, repeat('y', 7800) from generate_series(200001, 205000) g`);
      const client = await compute.connect();
      const [pid] = await rows(client, 'select pg_backend_pid()');
      await compute.killBackend(Number(pid));
      await compute.untilReady();
      assert.deepEqual(await compute.query("select count(*), max(id), count(*) filter (where v like 'y%') from big"), [
        '136000|205000|5000',
      ]);
      await runTool('pg_amcheck', [
        '-h',
        '127.0.0.1',
        '-p',
        String(compute.port),
        '-U',
        'postgres',
        '--install-missing',
        '--heapallindexed',
        '-d',
        'postgres',
      ]);
    } finally {
      await compute.discard();
      await base.discard();
    }
  },
);
