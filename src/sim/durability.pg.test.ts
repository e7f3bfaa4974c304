/** Stock Postgres commits through the real proposer and three real safekeepers. */
import assert from 'node:assert/strict';
import {setTimeout as sleep} from 'node:timers/promises';
import {test} from 'node:test';
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import {segmentFileName} from '#postgres/wal/segment.ts';
import {TestCell} from '#sim/test-cell.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';
import {PostgresCluster} from '../../test/postgres-cluster.ts';

async function clusterAt(): Promise<{cluster: PostgresCluster; startLsn: string}> {
  const cluster = await PostgresCluster.create({
    // The test compares with the compute's own WAL, so Postgres must not recycle it.
    settings: {max_wal_senders: 10, wal_level: 'replica', max_replication_slots: 10, wal_keep_size: '4GB'},
  });
  await cluster.query('create table t (id int primary key, x text)');
  await cluster.query('checkpoint');
  // Leave the last page, so that the position has no header before the next record.
  await cluster.query('select pg_switch_wal()');
  await cluster.query('select pg_logical_emit_message(false, $1, $2)', ['pagoda', 'x']);
  const [row] = await cluster.query(
    "select pg_current_wal_insert_lsn()::text as lsn, pg_logical_emit_message(true, 'pagoda', 'flush')",
  );
  return {cluster, startLsn: row!['lsn'] as string};
}

async function makeSynchronous(cluster: PostgresCluster): Promise<void> {
  await cluster.query("alter system set synchronous_standby_names = 'pagoda'");
  await cluster.query('select pg_reload_conf()');
}

async function settles(promise: Promise<unknown>, ms: number): Promise<boolean> {
  return await Promise.race([promise.then(() => true), sleep(ms).then(() => false)]);
}

test('Postgres commits through three safekeepers; one may die, two may not', {timeout: 850_000}, async () => {
  const {cluster, startLsn} = await clusterAt();
  await using _ = cluster;
  await using cell = await TestCell.create();
  await cell.createTimeline(startLsn);
  using proposer = await cell.startProposer();
  const elected = await proposer.event('elected');
  assert.equal(elected.lsn, startLsn);
  assert.equal(elected.term, 1);
  proposer.driver.stream({address: {path: `${cluster.socketDir}/.s.PGSQL.${cluster.port}`}, user: 'postgres'});
  await proposer.event('streaming');
  await makeSynchronous(cluster);
  await cluster.query("insert into t values (1, 'a')");

  await cell.stopSafekeeper(3);
  await cluster.query("insert into t select g, repeat('b', 100) from generate_series(2, 20000) g");

  // One record larger than every window on the way.
  await cluster.query("select length(pg_logical_emit_message(true, 'pagoda', repeat('z', 40000000))::text)");

  await cell.stopSafekeeper(2);
  const waiting = cluster.query("insert into t values (30000, 'c')");
  assert.equal(await settles(waiting, 1500), false, 'a commit without a quorum must wait');

  await cell.startSafekeeper(2);
  await waiting;
  await cell.startSafekeeper(3);

  // All three get everything, and what they have is what Postgres wrote.
  const [row] = await cluster.query('select pg_current_wal_flush_lsn()::text as lsn');
  const endLsn = parseLsn(row!['lsn'] as string);
  const deadline = Date.now() + 240_000;
  for (const nodeId of [1, 2, 3]) {
    while (parseLsn((await cell.status(nodeId))['commitLsn'] as string) < endLsn) {
      assert.ok(Date.now() < deadline, `safekeeper ${nodeId} is behind: ${JSON.stringify(await cell.status(nodeId))}`);
      await sleep(50);
    }
  }
  const copies: Buffer[] = [];
  for (const member of cell.members) copies.push(await readWal(cell, member.port, parseLsn(startLsn), endLsn));
  const own = await readLocalWal(cluster, parseLsn(startLsn), endLsn);
  for (const copy of copies) assert.ok(copy.equals(own), 'a safekeeper has other bytes than Postgres');

  // A fast stop ends in order: the shutdown checkpoint is committed too.
  await cluster.stop('fast');
  const stopped = await proposer.event('stopped');
  for (const nodeId of [1, 2, 3]) assert.equal((await cell.status(nodeId))['commitLsn'], stopped.commitLsn);

  // The next proposer finds exactly that.
  proposer.stop();
  using second = await cell.startProposer();
  const again = await second.event('elected');
  assert.equal(again.lsn, stopped.commitLsn);
  assert.equal(again.term, 2);
});

test('a newer proposer fences the older one, whose commits then wait for ever', {timeout: 850_000}, async () => {
  const {cluster, startLsn} = await clusterAt();
  await using _ = cluster;
  await using cell = await TestCell.create();
  await cell.createTimeline(startLsn);
  using first = await cell.startProposer();
  await first.event('elected');
  first.driver.stream({address: {path: `${cluster.socketDir}/.s.PGSQL.${cluster.port}`}, user: 'postgres'});
  await first.event('streaming');
  await makeSynchronous(cluster);
  await cluster.query("insert into t values (1, 'a')");
  const before = Date.now();
  using second = await cell.startProposer();
  const elected = await second.event('elected');
  assert.equal(elected.term, 2);
  await first.event('fenced');
  assert.ok(Date.now() - before < 60_000);
  const waiting = cluster.query("insert into t values (2, 'b')").catch(() => 'killed');
  assert.equal(await settles(waiting, 1000), false, 'a fenced compute must not acknowledge');
  await cluster.kill();
  await waiting;
});

test(
  'safekeepers are killed one after the other under load: no commit fails, and all end with the same bytes',
  {timeout: 850_000},
  async (t) => {
    const {cluster, startLsn} = await clusterAt();
    await using _ = cluster;
    await using cell = await TestCell.create({processes: true});
    await cell.createTimeline(startLsn);
    using proposer = await cell.startProposer();
    await proposer.event('elected');
    proposer.driver.stream({address: {path: `${cluster.socketDir}/.s.PGSQL.${cluster.port}`}, user: 'postgres'});
    await proposer.event('streaming');
    await makeSynchronous(cluster);
    let stop = false;
    let commits = 0;
    let longestMs = 0;
    const writers = [1, 2, 3].map(async (writer) => {
      const client = await cluster.connect();
      for (let i = 0; !stop; i++) {
        const before = Date.now();
        await client.query('insert into t values ($1, $2)', [writer * 1_000_000 + i, 'x'.repeat((i * 37) % 3000)]);
        longestMs = Math.max(longestMs, Date.now() - before);
        commits++;
      }
      await client.end();
    });
    // Memory of WAL is used again and again meanwhile (ReplicationClient.release).
    const bulk = (async (): Promise<void> => {
      const client = await cluster.connect();
      for (let i = 0; !stop; i++) {
        await client.query("insert into t select g, repeat('bulk', 100) from generate_series($1::int, $1 + 3999) g", [
          1_000_000_000 + i * 4000,
        ]);
        await sleep(20);
      }
      await client.end();
    })();
    for (let round = 0; round < 6; round++) {
      const victim = (round % 3) + 1;
      await sleep(300);
      await cell.stopSafekeeper(victim);
      await sleep(500);
      await cell.startSafekeeper(victim);
      // The next may only go when this one counts again.
      const [row] = await cluster.query('select pg_current_wal_flush_lsn()::text as lsn');
      for (
        const deadline = Date.now() + 240_000;
        parseLsn((await cell.status(victim))['flushLsn'] as string) < parseLsn(row!['lsn'] as string);
      ) {
        assert.ok(Date.now() < deadline, `safekeeper ${victim} does not catch up`);
        await sleep(50);
      }
    }
    stop = true;
    await Promise.all([...writers, bulk]);
    assert.ok(commits > 50, `only ${commits} commits`);
    await cluster.stop('fast');
    const {commitLsn} = await proposer.event('stopped');
    const endLsn = parseLsn(commitLsn);
    const own = await readLocalWal(cluster, parseLsn(startLsn), endLsn);
    assert.ok(own.length > 50_000_000, `only ${own.length} bytes of WAL`);
    for (const member of cell.members)
      assert.ok((await readWal(cell, member.port, parseLsn(startLsn), endLsn)).equals(own));
    t.diagnostic(`${commits} commits, longest ${longestMs} ms`);
  },
);

async function readWal(cell: TestCell, port: number, startLsn: Lsn, endLsn: Lsn): Promise<Buffer> {
  const parts: Buffer[] = [];
  const token = await cell.issuer.sign({aud: 'safekeeper', scope: 'node'});
  await new Promise<void>((resolve, reject) => {
    let have = 0;
    WalStreamClient.connect({
      address: {host: '127.0.0.1', port},
      token,
      tenantId: cell.tenantId,
      timelineId: cell.timelineId,
      startLsn,
      onWal: (_lsn, bytes) => {
        parts.push(bytes);
        have += bytes.length;
        if (have >= endLsn - startLsn) resolve();
      },
      onKeepalive: () => {},
      onClose: (reason) => reject(reason ?? new Error('closed')),
    }).catch(reject);
  });
  return Buffer.concat(parts).subarray(0, endLsn - startLsn);
}

async function readLocalWal(cluster: PostgresCluster, startLsn: Lsn, endLsn: Lsn): Promise<Buffer> {
  const {readFileSync} = await import('node:fs');
  const size = 16 * 1024 * 1024;
  const parts: Buffer[] = [];
  for (let at: number = startLsn; at < endLsn;) {
    const name = segmentFileName(1, Math.floor(at / size));
    const stop = Math.min(endLsn, (Math.floor(at / size) + 1) * size);
    parts.push(readFileSync(`${cluster.dataDir}/pg_wal/${name}`).subarray(at % size, (at % size) + stop - at));
    at = stop;
  }
  return Buffer.concat(parts);
}
