/**
 * A project of four shards on two pageservers: what it answers is what Postgres would, through computes that start anew, branches
 * from the past, archiving, a shard that moves, and pageservers that are killed; and every shard has its part and only that.
 */
import assert from 'node:assert/strict';
import {rmSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {shardOfBlock} from '#wire/shard.ts';
import {type StoreKind, type TestStore, onTestStores} from '../objectstore/stores.ts';
import {Pagoda} from '../pagoda.ts';
import {until} from '../until.ts';
import {amcheck} from './amcheck.ts';
import {PageProbe} from './page-probe.ts';

/** Everything a client can see. */
async function contents(pagoda: Pagoda, uri: string): Promise<Record<string, unknown>> {
  const [row] = await pagoda.query(
    `select (select md5(string_agg(id || ' ' || n || ' ' || filler, ',' order by id)) from big) as big,
       (select md5(string_agg(id || ' ' || n, ',' order by id)) from small) as small,
       (select count(*)::int from cut) as cut, (select sum(length(t))::text from toasted) as toasted,
       (select count(*)::int from log) as log, (select sum(n)::text from big where n % 7 = 0) as by_index`,
    uri,
  );
  return row!;
}

/** A compute that has none of the pages. */
async function startAnew(pagoda: Pagoda, endpointId: string): Promise<void> {
  await pagoda.suspend(endpointId);
  rmSync(join(pagoda.computeDir(endpointId), 'data'), {recursive: true, force: true});
}

async function cell(pagoda: Pagoda, kind: StoreKind): Promise<void> {
  const probe = await PageProbe.of(pagoda);
  assert.equal((await probe.shards()).filter(({node}) => node === 1).length, 2);
  const main = await pagoda.mainBranch();
  const {uri} = main;
  // More than one stripe of 16 MiB, on S3 just so; small relations, which are one stripe each, by the dozen in the catalog.
  await pagoda.query(
    `create table big (id int primary key, n int, filler text);
     insert into big select i, i, repeat(md5(i::text), 6) from generate_series(1, ${kind === 'folder' ? 180_000 : 80_000}) i;
     create index on big (n);
     create table small as select i as id, i as n from generate_series(1, 2000) i;
     create table cut as select i, repeat('x', 900) as filler from generate_series(1, 30000) i;
     create table gone as select * from big limit 20000;
     create table log (i int);
     create table toasted as select i, string_agg(md5((i * 1000 + j)::text), '') as t
       from generate_series(1, 300) i, generate_series(1, 300) j group by i;
     alter table toasted alter t set storage external`,
    uri,
  );
  await pagoda.query('vacuum (freeze) big', uri);
  const admin = await pagoda.admin(main.endpointId);
  await admin.query(`create database by_wal template neondb strategy wal_log`).catch(() => {});
  await admin.query('create database by_file strategy file_copy');
  await admin.end();
  const before = await contents(pagoda, uri);
  const [{at}] = (await pagoda.query('select pg_current_wal_flush_lsn()::text as at', uri)) as [{at: string}];

  // Updates clear visibility bits, deletes and vacuum cut the end off, TRUNCATE and DROP take files away.
  await pagoda.query('update big set n = n + 1 where id % 11 = 0', uri);
  await pagoda.query('delete from cut where i > 5000', uri);
  await pagoda.query('vacuum (truncate) cut', uri);
  await pagoda.query(
    'drop table gone; truncate small; insert into small select i, -i from generate_series(1, 500) i',
    uri,
  );
  const changed = await contents(pagoda, uri);
  assert.notDeepEqual(changed, before);
  await startAnew(pagoda, main.endpointId);
  assert.deepEqual(await contents(pagoda, uri), changed);
  assert.equal(await amcheck(pagoda, main.endpointId), '');

  // The past, in every shard.
  const past = await pagoda.branch({name: 'past', parent_lsn: at});
  assert.deepEqual(await contents(pagoda, past.uri), before);
  await pagoda.query('update big set n = 0 where id % 2 = 0; insert into log values (1)', past.uri);
  const ofBranch = await contents(pagoda, past.uri);
  for (const branch of ['main', 'past'])
    assert.match(await pagoda.cli('verify', '--branch', branch), /every page can be read/);
  assert.match(await pagoda.cli('verify', '--at', at), /every page can be read/);

  // Archived and woken.
  await startAnew(pagoda, past.endpointId);
  const path = `/projects/${pagoda.status.projectId}/branches/${past.branchId}`;
  const state = async (): Promise<string> =>
    (await pagoda.api<{branch: {current_state: string}}>('GET', path)).branch.current_state;
  for (const until = Date.now() + 400_000; (await state()) !== 'archived'; await sleep(200))
    assert.ok(Date.now() < until, `${await state()}\n${pagoda.logTails()}`);
  assert.deepEqual(await contents(pagoda, past.uri), ofBranch);

  // One shard moves while it is read and written to, by a compute that has none of the pages.
  await startAnew(pagoda, main.endpointId);
  const db = await pagoda.connect(uri);
  const known = await probe.remember(db, 'big');
  const places = await probe.shards();
  const moving = shardOfBlock(places.length, known.tag, 0);
  const {shardId, node: from} = places[moving]!;
  let writes = 0;
  const write = async (): Promise<void> => {
    await db.query(`insert into log values (${writes}); update big set n = n + 1 where id % 60 = ${writes % 60}`);
    writes++;
  };
  const moved = await probe.underLoad(known, write, async () => {
    await pagoda.cli('pageservers', 'migrate', shardId, '--to', String(3 - from), '--wait');
  });
  console.log(
    `${kind}: a shard moved: longest gap between reads ${moved.readGapMs} ms, between commits ${moved.writeGapMs} ms`,
  );
  assert.deepEqual((await probe.shards())[moving], {shardId, node: 3 - from});
  await probe.check(known);

  // The pageserver that holds three of them is killed, and again as often as it comes back: the other one takes them.
  const killed = await probe.underLoad(known, write, async () => {
    await until('failover', async () => {
      if ((await probe.shards()).every(({node}) => node === from)) return true;
      process.kill(probe.pid(3 - from), 'SIGKILL');
      return false;
    });
    for (const place of places)
      await until('attached', async () => await probe.hasMode(from, place.shardId, 'attached'));
  });
  console.log(
    `${kind}: failover: longest gap between reads ${killed.readGapMs} ms, between commits ${killed.writeGapMs} ms`,
  );
  await probe.check(known);
  await pagoda.kill(probe.role(from));
  await write();
  await db.end();

  const written = await contents(pagoda, uri);
  assert.equal(written['log'], writes);
  await startAnew(pagoda, main.endpointId);
  assert.deepEqual(await contents(pagoda, uri), written);
  assert.equal(await amcheck(pagoda, main.endpointId), '');
  await probe.check(known);
  assert.match(await pagoda.cli('verify'), /every page can be read/);
  assert.match(await pagoda.cli('scrub'), /nothing is missing or damaged/);
}

onTestStores('a project of four shards on two pageservers', async (store) => {
  process.env['PAGODA_ARCHIVE_AGE_SECONDS'] = '1';
  process.env['PAGODA_ARCHIVE_IDLE_SECONDS'] = '4';
  await using pagoda = await Pagoda.start({
    upOptions: ['--shards', '4', '--pageservers', '2'],
    objectStore: store.url,
  });
  await cell(pagoda, store.kind);

  const tenants = await tenantsOf(pagoda, store);
  assert.deepEqual(
    tenants.map((name) => name.slice(32)).sort(),
    ['-0004', '-0104', '-0204', '-0304'],
    'a shard of a project has its own objects',
  );
  await pagoda.api('DELETE', `/projects/${pagoda.status.projectId}`);
});

/** Names of tenants and shards that have objects. */
async function tenantsOf(pagoda: Pagoda, store: TestStore): Promise<string[]> {
  const objects = await store.ofInstallation(pagoda.dir).list('tenants/');
  return [...new Set(objects.map(({key}) => key.split('/')[1]!))];
}
