/** `pagoda wal dump` against pg_waldump: record by record the same LSNs, lengths, resource manager, type name and blocks. */
import assert from 'node:assert/strict';
import {join} from 'node:path';
import {test} from 'node:test';
import {PostgresCluster, runTool} from '../../../test/postgres-cluster.ts';
import {formatLsn, parseLsn} from '#postgres/lsn.ts';
import {systemDisk} from '#runtime/disk.ts';
import {dumpWal} from '#cli/wal/dump.ts';
import {fsckTimeline} from '#cli/wal/fsck.ts';
import {FolderSource} from '#cli/wal/wal-source.ts';

const workload = `
  create table t (id serial primary key, a int[], b text, p point, r int4range);
  create index on t using gin (a); create index on t using gist (p); create index on t using spgist (r);
  create index on t using hash (b); create index on t using brin (id);
  insert into t (a, b, p, r) select array[i, i % 7], md5(i::text), point(i, i % 10), int4range(i, i + 5) from generate_series(1, 4000) i;
  update t set b = b || 'x' where id % 3 = 0; delete from t where id % 5 = 0; vacuum t;
  insert into t (a, b, p, r) select array[i], 'y', point(i, 1), int4range(i, i + 2) from generate_series(1, 500) i;
  begin; select * from t where id < 40 for update; savepoint s; update t set b = 'z' where id = 1; rollback to s; commit;
  begin; select * from t where id < 40 for share; commit;
  select pg_logical_emit_message(true, 'test', repeat('m', 20000));
`;

interface Line {
  readonly rmgr: string;
  readonly recordBytes: number;
  readonly totalBytes: number;
  readonly xid: number;
  readonly lsn: string;
  readonly prev: string;
  readonly name: string;
  readonly blocks: readonly string[];
}

function parseLine(line: string): Line {
  const match =
    /^rmgr: (\S+) +len \(rec\/tot\): +(\d+)\/ *(\d+), tx: +(\d+), lsn: (\S+), prev (\S+), desc: ([\w+]+|UNKNOWN \(\w+\))[ ,]?/.exec(
      line,
    );
  assert.ok(match !== null, `not a line of pg_waldump: ${line}`);
  return {
    rmgr: match[1]!,
    recordBytes: Number(match[2]),
    totalBytes: Number(match[3]),
    xid: Number(match[4]),
    lsn: match[5]!,
    prev: match[6]!,
    name: match[7]!,
    blocks:
      line.match(/blkref #\d+: rel \d+\/\d+\/\d+(?: fork \w+)? blk \d+(?: FPW(?: for WAL verification)?)?/g) ?? [],
  };
}

test('the same records as pg_waldump', {timeout: 850_000}, async () => {
  await using cluster = await PostgresCluster.create({
    settings: {wal_keep_size: '2GB', wal_level: 'logical', max_prepared_transactions: '5'},
  });
  const start = parseLsn(String((await cluster.query('select pg_current_wal_insert_lsn() as lsn'))[0]!['lsn']));
  const client = await cluster.connect();
  for (const statement of workload.split(';').map((s) => s.trim())) if (statement !== '') await client.query(statement);
  await client.query('begin');
  await client.query('insert into t (b) values (1)');
  await client.query(`prepare transaction 'p'`);
  await client.query(`commit prepared 'p'`);
  await client.query('create database other strategy wal_log');
  await client.query('create database another strategy file_copy');
  await client.query('drop database another');
  await client.query('truncate t');
  await client.query('checkpoint');
  await client.query('select pg_switch_wal()');
  await client.query('insert into t (b) values (2)');
  await client.end();
  const end = parseLsn(String((await cluster.query('select pg_current_wal_insert_lsn() as lsn'))[0]!['lsn']));
  await cluster.stop();
  const folder = join(cluster.dataDir, 'pg_wal');
  const expected = runTool('pg_waldump', ['-p', folder, '-s', formatLsn(start), '-e', formatLsn(end)])
    .split('\n')
    .filter((line) => line.startsWith('rmgr: '));
  const source = FolderSource.find(systemDisk, folder)!;
  const lines: string[] = [];
  await dumpWal([source], {start, end}, (line) => lines.push(line));
  assert.ok(expected.length > 10_000, `${expected.length} records`);
  assert.deepEqual(lines.map(parseLine).slice(0, expected.length), expected.map(parseLine));
  assert.equal(lines.length, expected.length);
  const types = new Set(lines.map(parseLine).map(({rmgr, name}) => `${rmgr}/${name}`));
  assert.ok(types.size >= 45, `${types.size} types: ${[...types].sort().join(' ')}`);
  console.log(`${lines.length} records of ${types.size} types as pg_waldump prints them`);

  // Filters: by resource manager, by range.
  const only: string[] = [];
  const middle = parseLsn(parseLine(lines[5000]!).lsn);
  await dumpWal([source], {start: middle, rmgr: 'transaction', limit: 7}, (line) => only.push(line));
  assert.deepEqual(
    only,
    lines
      .slice(5000)
      .filter((line) => line.startsWith('rmgr: Transaction'))
      .slice(0, 7),
  );
  const range: string[] = [];
  await dumpWal([source], {start: middle, end: parseLsn(parseLine(lines[5010]!).lsn)}, (line) => range.push(line));
  assert.deepEqual(range, lines.slice(5000, 5010));
  const found: string[] = [];
  assert.equal(await fsckTimeline([source], undefined, (line) => found.push(line)), 0, found.join('\n'));
  source.close();
});
