/**
 * The whole of ingest against a stock server: import a cluster, run a wide load, ingest its WAL into memory, and compare
 * every relation page, size, relation map, SLRU page and two-phase file with a stock server that recovered the same WAL. Then
 * start stock Postgres from our basebackup plus our pages.
 */
import assert from 'node:assert/strict';
import {execFileSync, spawn} from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {test} from 'node:test';
import {MemoryTimeline} from '../../../test/memory-timeline.ts';
import {PostgresCluster, postgresBinDir, runAs} from '../../../test/postgres-cluster.ts';
import {basebackup} from '#pageserver/basebackup.ts';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {importDataDirectory} from '#pageserver/ingest/import.ts';
import {Interpreter} from '#pageserver/ingest/interpret.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {tarDataDirectory} from '#postgres/data-directory.ts';
import {type Lsn, formatLsn, lsn} from '#postgres/lsn.ts';
import {blockSize, formatRel, relPath, relSegmentBlocks} from '#postgres/relation.ts';
import {parseSlruSegmentName, slruDirectory, slruKind, slruKinds, slruPagesPerSegment} from '#postgres/slru.ts';
import {readTar} from '#postgres/tar.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {segmentFileName, segmentNumber, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {systemDisk} from '#runtime/disk.ts';

type Settings = Readonly<Record<string, string | number>>;

const commonSettings: Settings = {
  track_commit_timestamp: 'on',
  max_prepared_transactions: 20,
  wal_keep_size: '8GB',
  max_wal_size: '8GB',
  checkpoint_timeout: '1d',
  shared_buffers: '64MB',
  allow_in_place_tablespaces: 'on',
};

/** Makes multixacts of many members, with subtransactions and aborts. */
const lockScript = `\\set id random(1, 3)
begin;
select * from locks where id = :id for key share;
savepoint a;
update locks set n = n + 1 where id = :id;
rollback to a;
savepoint b;
select * from locks where id = :id for share;
commit;
`;

const variants: Readonly<Record<string, Settings>> = {
  'as on a compute: no torn-page images': {...commonSettings, wal_level: 'logical', full_page_writes: 'off'},
  'with torn-page images, all compressions, and logged hints': {
    ...commonSettings,
    wal_level: 'replica',
    full_page_writes: 'on',
    wal_log_hints: 'on',
  },
};

for (const [name, settings] of Object.entries(variants)) {
  test(`ingest of a wide load equals stock recovery, and stock Postgres starts from it: ${name}`, () => run(settings));
}

test('truncation of transaction status, commit timestamps and multixacts equals stock recovery', async () => {
  const settings = {...commonSettings, full_page_writes: 'off'};
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-ingest-'));
  try {
    await using cluster = await PostgresCluster.create({settings});
    await cluster.query(
      'create table locks (id int primary key, n int); insert into locks values (1, 0), (2, 0), (3, 0)',
    );
    await cluster.stop('fast');
    const recoveredDir = join(dir, 'recovered');
    cpSync(cluster.dataDir, recoveredDir, {recursive: true, verbatimSymlinks: true});
    const timeline = new MemoryTimeline();
    timeline.importing = true;
    const imported = await importDataDirectory({source: tarDataDirectory(systemDisk, cluster.dataDir), sink: timeline});
    timeline.importing = false;
    await cluster.start();

    // More ids than a segment of pg_xact has (1,048,576), in commit records of 400 kB.
    await cluster.query('create temp table t (n int)');
    for (let i = 0; i < 11; i++)
      await cluster.query(
        'do $$ begin for i in 1..100000 loop begin insert into t values (i); exception when division_by_zero then null; end; end loop; truncate t; end $$',
      );
    const script = join(cluster.dir, 'locks.sql');
    writeFileSync(script, lockScript, {mode: 0o644});
    await cluster.query('drop table t');
    await cluster.pgbench(['-n', '-c', '20', '-t', '800', '-f', script]);
    await cluster.query("update pg_database set datallowconn = true where datname = 'template0'");
    for (let round = 0; round < 2; round++) await cluster.tool('vacuumdb', ['--all', '--freeze', '-q']);
    await cluster.stop('fast');
    const control = parseControlFile(readFileSync(join(cluster.dataDir, 'global/pg_control')));
    const before = timeline.slrus.map((pages) => pages.size);
    await ingest(timeline, cluster.dataDir, imported.lsn, imported.lastRecordStartLsn);
    assert.deepEqual(timeline.problems, []);
    assert.deepEqual(CheckpointState.decode(timeline.checkpoint!).control.checkPoint.bytes, control.checkPoint.bytes);
    // All four areas lost their first pages.
    assert.deepEqual(
      slruKinds.map((kind) => timeline.slrus[kind]!.has(0)),
      [false, false, false, false],
      `${before}; members up to ${CheckpointState.decode(timeline.checkpoint!).control.checkPoint.nextMultiOffset}`,
    );
    await recover(recoveredDir, cluster.dataDir, control.checkPointLsn, settings);
    compare(timeline, recoveredDir, {withFsm: false, pagesMin: 100});
  } finally {
    rmSync(dir, {recursive: true, force: true});
  }
});

async function run(settings: Settings): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-ingest-'));
  try {
    await using cluster = await PostgresCluster.create({settings});
    await prepareLoad(cluster);
    await cluster.stop('fast');
    const recoveredDir = join(dir, 'recovered');
    cpSync(cluster.dataDir, recoveredDir, {recursive: true, verbatimSymlinks: true});

    const timeline = new MemoryTimeline();
    timeline.importing = true;
    const imported = await importDataDirectory({source: tarDataDirectory(systemDisk, cluster.dataDir), sink: timeline});
    timeline.importing = false;
    compare(timeline, cluster.dataDir, {withFsm: true});

    await cluster.start();
    await runLoad(cluster, settings['full_page_writes'] === 'on');
    const expected = await summary(cluster);
    await cluster.stop('fast');
    const control = parseControlFile(readFileSync(join(cluster.dataDir, 'global/pg_control')));
    const end = await ingest(timeline, cluster.dataDir, imported.lsn, imported.lastRecordStartLsn);
    assert.ok(end.lsn > control.checkPointLsn);
    assert.deepEqual(timeline.problems, []);
    const state = CheckpointState.decode(timeline.checkpoint!);
    assert.equal(state.control.checkPoint.nextXid, control.checkPoint.nextXid);
    assert.deepEqual(state.control.checkPoint.bytes, control.checkPoint.bytes);
    assert.ok(timeline.commits.length > 1000);

    await recover(recoveredDir, cluster.dataDir, control.checkPointLsn, settings);
    compare(timeline, recoveredDir, {withFsm: false});

    await startFromBasebackup(timeline, end, dir, expected, settings);
  } finally {
    rmSync(dir, {recursive: true, force: true});
  }
}

async function prepareLoad(cluster: PostgresCluster): Promise<void> {
  await cluster.pgbench(['-i', '-q', '-s', '2']);
  await cluster.query(`
    create table locks (id int primary key, n int);
    insert into locks select g, 0 from generate_series(1, 3) g;
    create table big (id int, t text);
    insert into big select g, repeat('x', 500) from generate_series(1, 20000) g;
    create unlogged table u (id int primary key, t text);
    insert into u select g, 'u' from generate_series(1, 1000) g;
    create table doomed as select g from generate_series(1, 5000) g`);
  await cluster.query('vacuum');
  await cluster.psql('-c', 'create database copied_from');
  await cluster.psql('-d', 'copied_from', '-c', 'create table c as select g from generate_series(1, 3000) g');
  await cluster.query("prepare transaction 'none'").catch(() => {});
}

async function runLoad(cluster: PostgresCluster, withImages: boolean): Promise<void> {
  await cluster.pgbench(['-n', '-c', '4', '-t', '400']);
  // Multixacts, subtransactions, aborts.
  const script = join(cluster.dir, 'locks.sql');
  writeFileSync(script, lockScript, {mode: 0o644});
  await cluster.pgbench(['-n', '-c', '12', '-t', '250', '-f', script]);
  const compressions = ['off', 'pglz', 'lz4', 'zstd'];
  const each = async (sql: string): Promise<void> => {
    for (const [i, statement] of sql.split(';').entries()) {
      if (statement.trim() === '') continue;
      if (withImages) await cluster.query(`set wal_compression = ${compressions[i % 4]}; checkpoint`);
      await cluster.query(statement);
    }
  };
  await each(`
    delete from big where id > 9000; vacuum big; insert into big select g, repeat('y', 300) from generate_series(1, 4000) g;
    vacuum (freeze) big; update big set t = 'z' where id % 7 = 0; select id from big where id < 100 for update;
    create index on big (id); cluster big using big_id_idx; vacuum full pg_class; vacuum full pg_database;
    create table toasty (id int primary key, t text); alter table toasty alter t set storage external;
    insert into toasty select g, repeat(md5(g::text), 300) from generate_series(1, 200) g;
    create index on toasty using hash (id); create index on big using brin (id); create index on big using gin (string_to_array(t, 'y'));
    create index on big using spgist (t); create table pts as select point(random(), random()) p from generate_series(1, 3000);
    create index on pts using gist (p); delete from pts where p[0] < 0.5; vacuum pts;
    truncate doomed; insert into doomed select g from generate_series(1, 100) g; drop table doomed;
    create table partial as select g, repeat('p', 100) t from generate_series(1, 40000) g; vacuum partial;
    delete from partial where g > 100; vacuum partial;
    create unlogged table u2 (id int primary key); insert into u2 values (1); alter table u2 set logged; insert into u2 values (2);
    create unlogged table u3 (id int primary key); create sequence s; select nextval('s') from generate_series(1, 100);
    create tablespace elsewhere location ''; create table in_elsewhere tablespace elsewhere as select g from generate_series(1, 1000) g;
    create index on in_elsewhere (g) tablespace elsewhere;
    create database by_wal template copied_from strategy wal_log; create database by_copy template copied_from strategy file_copy;
    create database gone strategy file_copy; drop database gone;
    select pg_replication_origin_create('o'); select pg_replication_origin_advance('o', 'FFFFFFFF/234'); select pg_switch_wal()`);
  await cluster.psql('-d', 'by_copy', '-c', 'insert into c select g from generate_series(1, 10) g', '-c', 'vacuum c');
  await cluster.psql('-d', 'by_wal', '-c', 'delete from c where g < 100', '-c', 'vacuum full pg_class');
  await cluster.query(
    "begin; create table two_phase as select 1 as n; savepoint x; insert into two_phase values (2); prepare transaction 'open'",
  );
  await cluster.query("begin; create table two_phase_done as select 1 as n; prepare transaction 'done'");
  await cluster.query("commit prepared 'done'");
  await cluster.query("begin; create table two_phase_undone as select 1 as n; prepare transaction 'undone'");
  await cluster.query("rollback prepared 'undone'");
  // One transaction with very many subtransactions: several pg_xact and pg_commit_ts pages in one record.
  await cluster.query(
    `do $$ begin for i in 1..2500 loop begin insert into locks values (1000 + i, 0); exception when unique_violation then null; end; end loop; end $$`,
  );
  // A gap: the relation grows by more than one page at a time.
  await cluster.pgbench(['-n', '-c', '8', '-t', '100', '-b', 'tpcb-like']);
}

async function summary(cluster: PostgresCluster): Promise<unknown> {
  const rows = await cluster.query(`
    select (select sum(abalance) from pgbench_accounts)::text a, (select sum(delta) from pgbench_history)::text h,
      (select count(*) from big)::int big, (select sum(length(t)) from big)::text bigt, (select sum(n) from locks)::text locks,
      (select count(*) from toasty where length(t) = 9600)::int toasty, (select count(*) from pts)::int pts,
      (select count(*) from partial)::int partial, (select array_agg(id order by id)::text from u2) u2,
      (select count(*) from in_elsewhere)::int elsewhere, (select count(*) from pg_database)::int dbs,
      (select n from two_phase_done) done, (select count(*) from pg_class)::int classes, (select max(id) from locks) maxlock`);
  const c: string[] = [];
  for (const database of ['by_wal', 'by_copy', 'copied_from'])
    c.push((await cluster.psql('-d', database, '-Atc', 'select count(*), sum(g) from c')).trim());
  return {...rows[0], c};
}

interface End {
  readonly lsn: Lsn;
  readonly lastRecordStartLsn: Lsn;
}

async function ingest(timeline: MemoryTimeline, dataDir: string, startLsn: Lsn, previousLsn: Lsn): Promise<End> {
  const interpreter = new Interpreter(timeline, timeline, CheckpointState.decode(timeline.checkpoint!));
  const reader = new WalReader({startLsn, previousLsn});
  const record = new WalRecord();
  for (let segment = segmentNumber(startLsn); ; segment++) {
    const path = join(dataDir, 'pg_wal', segmentFileName(1, segment));
    if (!existsSync(path)) break;
    const bytes = readFileSync(path);
    reader.push(segment === segmentNumber(startLsn) ? bytes.subarray(startLsn % walSegmentSizeDefault) : bytes);
    while (reader.next(record)) {
      const outcome = interpreter.interpret(record);
      if (outcome.kind === 'error') throw outcome.error;
      assert.equal(outcome.kind, 'applied');
    }
    if (reader.failure) break;
  }
  return {lsn: reader.lastRecordEndLsn, lastRecordStartLsn: reader.lastRecordStartLsn};
}

/** Stock recovery of `dir` with the primary's WAL up to and with the record at `lastRecord`; the server then stops. */
async function recover(dir: string, primaryDir: string, lastRecord: Lsn, settings: Settings): Promise<void> {
  rmSync(join(dir, 'pg_wal'), {recursive: true});
  cpSync(join(primaryDir, 'pg_wal'), join(dir, 'pg_wal'), {recursive: true});
  chmodSync(dir, 0o700);
  writeFileSync(join(dir, 'recovery.signal'), '');
  if (runAs.uid !== undefined) execFileSync('chown', ['-R', `${runAs.uid}:${runAs.gid}`, dirname(dir)]);
  const all = {
    ...settings,
    hot_standby: 'off',
    fsync: 'off',
    restore_command: 'false',
    recovery_target_lsn: formatLsn(lastRecord),
    recovery_target_action: 'shutdown',
    recovery_target_timeline: 'current',
    unix_socket_directories: dirname(dir),
    listen_addresses: '',
  };
  const args = ['-D', dir, ...Object.entries(all).flatMap(([name, value]) => ['-c', `${name}=${value}`])];
  const child = spawn(join(postgresBinDir, 'postgres'), args, {stdio: ['ignore', 'ignore', 'pipe'], ...runAs});
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
  await new Promise((resolve) => child.once('close', resolve));
  assert.match(log, /shutdown at recovery target/, log);
}

/** Every relation file, map, SLRU page and two-phase file of a stopped stock cluster against ours. */
function compare(timeline: MemoryTimeline, dataDir: string, options: {withFsm: boolean; pagesMin?: number}): void {
  const differences: string[] = [];
  const catalogDirectory = readdirSync(join(dataDir, 'pg_tblspc')).map((oid) => ({
    oid: Number(oid),
    path: `pg_tblspc/${oid}`,
  }));
  const directories = [
    {spcNode: 1664, dbNode: 0, path: 'global'},
    ...readdirSync(join(dataDir, 'base')).map((db) => ({spcNode: 1663, dbNode: Number(db), path: `base/${db}`})),
    ...catalogDirectory.flatMap(({oid, path}) =>
      readdirSync(join(dataDir, path)).flatMap((version) =>
        readdirSync(join(dataDir, path, version)).map((db) => ({
          spcNode: oid,
          dbNode: Number(db),
          path: `${path}/${version}/${db}`,
        })),
      ),
    ),
  ];
  let pages = 0;
  const seen = new Set<string>();
  for (const {spcNode, dbNode, path} of directories) {
    const names = readdirSync(join(dataDir, path));
    const map = join(dataDir, path, 'pg_filenode.map');
    if (existsSync(map) && !readFileSync(map).equals(timeline.maps.get(`${spcNode}/${dbNode}`) ?? Buffer.alloc(0)))
      differences.push(`${path}/pg_filenode.map`);
    for (const name of names) {
      const match = /^(\d+)(_fsm|_vm|_init)?$/.exec(name);
      if (match === null || (match[2] === '_fsm' && !options.withFsm)) continue;
      if (names.includes(`${match[1]}_init`) && match[2] !== '_init') continue; // unlogged
      const fork = {_fsm: 1, _vm: 2, _init: 3}[match[2] ?? ''] ?? 0;
      const rel = {spcNode, dbNode, relNode: Number(match[1]), fork: fork as 0 | 1 | 2 | 3};
      const file = readFileSync(join(dataDir, path, name));
      const ours = timeline.forks.get(formatRel(rel));
      seen.add(formatRel(rel));
      const theirSize = file.length / blockSize;
      // A map that holds nothing but page headers is never in WAL.
      if (fork === 2 && isEmptyMap(file)) continue;
      if (ours === undefined || ours.size !== theirSize) {
        differences.push(`${formatRel(rel)}: size ${ours?.size}, expected ${theirSize}`);
        if (ours === undefined) continue;
      }
      for (let block = 0; block < Math.min(theirSize, ours.size); block++) {
        pages++;
        const page = timeline.page(ours, block);
        const theirs = file.subarray(block * blockSize, (block + 1) * blockSize);
        if (!page.equals(theirs))
          differences.push(`${formatRel(rel)} block ${block}: first at ${page.findIndex((b, i) => b !== theirs[i])}`);
      }
    }
  }
  for (const [key, f] of timeline.forks)
    if (f.size >= 0 && !seen.has(key) && (f.rel.fork !== 1 || options.withFsm))
      differences.push(`${key} should not exist`);
  for (const kind of slruKinds) {
    let known = 0;
    for (const name of readdirSync(join(dataDir, slruDirectory(kind)))) {
      const segment = parseSlruSegmentName(name)!;
      const file = readFileSync(join(dataDir, slruDirectory(kind), name));
      for (let i = 0; i < file.length / blockSize; i++) {
        const page = segment * slruPagesPerSegment + i;
        const theirs = file.subarray(i * blockSize, (i + 1) * blockSize);
        const ours = timeline.slrus[kind]!.get(page);
        known++;
        if (ours === undefined ? theirs.some((b) => b !== 0) : !ours.equals(theirs))
          differences.push(`SLRU ${kind} page ${page}: ${ours === undefined ? 'missing' : 'differs'}`);
      }
    }
    // SimpleLruTruncate leaves what its segment files hold; we may not know more than the files.
    assert.ok(known >= timeline.slrus[kind]!.size || kind === slruKind.multixactMembers, `SLRU ${kind}`);
  }
  const files = readdirSync(join(dataDir, 'pg_twophase')).sort();
  assert.deepEqual(
    [...timeline.twoPhase.keys()].map((xid) => xid.toString(16).toUpperCase().padStart(8, '0')).sort(),
    files,
  );
  for (const name of files)
    assert.deepEqual(timeline.twoPhase.get(parseInt(name, 16)), readFileSync(join(dataDir, 'pg_twophase', name)));
  assert.deepEqual(differences, [], `${pages} pages compared`);
  assert.ok(pages > (options.pagesMin ?? 3000));
}

function isEmptyMap(file: Buffer): boolean {
  return file.every((byte, i) => byte === 0 || i % blockSize < 24);
}

async function startFromBasebackup(
  timeline: MemoryTimeline,
  end: End,
  dir: string,
  expected: unknown,
  settings: Settings,
): Promise<void> {
  const dataDir = join(dir, 'started/data');
  mkdirSync(dataDir, {recursive: true});
  const x = lsn(end.lsn);
  for await (const member of readTar(
    basebackup({source: timeline, lsn: x, lastRecordStartLsn: end.lastRecordStartLsn}),
  )) {
    const path = join(dataDir, member.path);
    if (member.kind === 'directory') mkdirSync(path, {recursive: true});
    else writeFileSync(path, await member.bytes(1 << 30));
  }
  const started = [...timeline.forks.values()].filter((f) => f.size >= 0);
  for (const f of started) {
    if (f.rel.fork === 3) continue; // init forks are part of the basebackup
    const relative =
      relPath(f.rel) ??
      `pg_tblspc/${f.rel.spcNode}/PG_15_202209061/${f.rel.dbNode}/${f.rel.relNode}${['', '_fsm', '_vm'][f.rel.fork]}`;
    assert.ok(f.size <= relSegmentBlocks);
    writeFileSync(
      join(dataDir, relative),
      Buffer.concat(Array.from({length: f.size}, (_, block) => timeline.page(f, block))),
    );
  }
  if (runAs.uid !== undefined) execFileSync('chown', ['-R', `${runAs.uid}:${runAs.gid}`, dir]);
  await using cluster = await PostgresCluster.create({dir: dirname(dataDir), settings});
  assert.deepEqual(await summary(cluster), expected);
  await cluster.query("commit prepared 'open'");
  assert.deepEqual(await cluster.query('select sum(n)::int as n from two_phase'), [{n: 3}]);
  assert.deepEqual(
    await cluster.query("select remote_lsn::text from pg_replication_origin_status where external_id = 'o'"),
    [{remote_lsn: 'FFFFFFFF/234'}],
  );
  assert.deepEqual(await cluster.query('select count(*)::int as n from u'), [{n: 0}]); // unlogged: empty, but there
  await cluster.query("insert into u values (1, 'again')");
  await cluster.query('insert into u3 values (1)');
  assert.ok(
    (
      await cluster.query(
        'select count(*)::int n from pgbench_history where pg_xact_commit_timestamp(xmin) is not null',
      )
    )[0]!['n'],
  );
  await cluster.pgbench(['-n', '-c', '4', '-t', '200']);
  await cluster
    .tool('pg_amcheck', ['--all', '--install-missing', '--heapallindexed', '--no-dependent-toast'])
    .catch((error: unknown) => {
      // contrib may not be installed; a finding is a failure
      if (!/not available|could not open extension control file/.test(String(error))) throw error;
    });
  await cluster.stop('immediate');
  await cluster.start();
  assert.deepEqual(await cluster.query('select count(*)::int as n from u'), [{n: 0}]);
}
