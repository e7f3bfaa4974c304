/**
 * `npm run bench -- wal`: how fast WAL that is already written becomes durable: from a stock Postgres's walsender through the
 * proposer to a safekeeper (a process of its own, fdatasync real), against `pg_receivewal --synchronous` of the same WAL from
 * the same server in the same run: one durable copy on both sides. ratio = MB/s of one safekeeper ÷ MB/s of pg_receivewal;
 * three safekeepers (durable at two, written three times to the same disk) are a detail. Bulk (COPY) and small records (pgbench)
 * take turns in the WAL. Each begins when the disk has taken what was written, and removed, before: whoever syncs next waits for that.
 *
 *   --megabytes N   default 512     --rounds N   default 5
 */
import {execFile} from 'node:child_process';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {parseArgs, promisify} from 'node:util';
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {requestJson} from '#runtime/http.ts';
import {newId, systemRandom} from '#runtime/random.ts';
import {TestCell, TestProposer} from '#sim/test-cell.ts';
import {PostgresCluster} from '../test/postgres-cluster.ts';
import {stockTarget, tool} from './pgbench.ts';
import {alternate, median, printReport, say} from './report.ts';

const run = promisify(execFile);

export async function wal(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {megabytes: {type: 'string', default: '512'}, rounds: {type: 'string', default: '5'}},
  });
  const rounds = Number(options.rounds);
  await using source = await PostgresCluster.create({
    settings: {
      fsync: 'off',
      full_page_writes: 'off',
      wal_keep_size: '100GB',
      max_wal_size: '100GB',
      checkpoint_timeout: '1d',
      max_replication_slots: 20,
    },
  });
  await source.pgbench(['-i', '-q', '-s', '10']);
  await source.query('create table bulk (id int, filler text)');
  await source.query('select pg_switch_wal()');
  await source.query('checkpoint');
  const position = async (): Promise<Lsn> =>
    parseLsn((await source.query('select pg_current_wal_flush_lsn()::text as lsn'))[0]!['lsn'] as string);
  const startLsn = await position();
  // Where pg_receivewal is to begin, once per round and a warm-up.
  for (let i = 0; i <= rounds; i++)
    await source.query(`select pg_create_physical_replication_slot('reference_${i}', true)`);
  while ((await position()) - startLsn < Number(options.megabytes) * 1024 * 1024) {
    await source.query(`insert into bulk select i, repeat('x', 500) from generate_series(1, 20000) i`);
    await source.pgbench(['-n', '-N', '-c', '2', '-t', '1000']);
  }
  await source.query('select pg_switch_wal()');
  const endLsn = await position();
  const megabytes = (endLsn - startLsn) / 1e6;
  say(`${megabytes.toFixed(0)} MB of WAL from ${formatLsn(startLsn)} to ${formatLsn(endLsn)}`);

  await using cell = await TestCell.create({processes: true});
  const ours = async (nodes: number): Promise<number> =>
    await throughSafekeepers(cell, source, startLsn, endLsn, nodes);
  let used = 0;
  const reference = async (): Promise<number> => await throughReceivewal(source, endLsn, `reference_${used++}`);
  await ours(3);
  await ours(1);
  await reference();
  const {pagoda, reference: stock} = await alternate({
    rounds,
    pagoda: async () => ({three: megabytes / (await ours(3)), one: megabytes / (await ours(1))}),
    reference: async () => (endLsn - (startLsn - (startLsn % walSegmentSizeDefault))) / 1e6 / (await reference()),
  });
  const three = median(pagoda.map((r) => r.three));
  const one = median(pagoda.map((r) => r.one));
  const receivewal = median(stock);
  printReport({
    name: 'wal',
    ratio: one / receivewal,
    mbPerSecond: one,
    threeSafekeepers: {mbPerSecond: three, ratio: three / receivewal},
    receivewal: {mbPerSecond: receivewal},
  });
}

/** A file system that discards what was removed does so for a while after the sync. */
async function untilDiskRests(): Promise<void> {
  for (let i = 0; i < 2; i++) {
    await run('sync');
    await sleep(1000);
  }
}

/** Seconds until all of it is committed. */
async function throughSafekeepers(
  cell: TestCell,
  source: PostgresCluster,
  startLsn: Lsn,
  endLsn: Lsn,
  nodes: number,
): Promise<number> {
  const members = cell.members.slice(0, nodes);
  const timelineId = newId(systemRandom);
  const url = (nodeId: number): string =>
    `http://127.0.0.1:${cell.httpPort(nodeId)}/v1/tenant/${cell.tenantId}/timeline`;
  const token = await cell.issuer.sign({aud: 'safekeeper', scope: 'node'});
  for (const {nodeId} of members) {
    const body = {timelineId, startLsn: formatLsn(startLsn), members, pgVersion: 15};
    const {status, json} = await requestJson({method: 'POST', url: url(nodeId), token, body});
    if (status !== 201) throw new Error(`safekeeper ${nodeId}: ${status} ${JSON.stringify(json)}`);
  }
  using proposer = new TestProposer({
    ...(await cell.proposerConfig()),
    timelineId,
    safekeepers: members,
    token: await cell.issuer.sign({aud: 'safekeeper', scope: 'tenant', tenant: cell.tenantId, timeline: timelineId}),
  });
  await proposer.event('elected');
  await untilDiskRests();
  const started = performance.now();
  proposer.driver.stream({
    address: {path: join(source.socketDir, `.s.PGSQL.${source.port}`)},
    user: source.superuser,
  });
  while (proposer.driver.commitLsn < endLsn) {
    if (performance.now() - started > 300_000)
      throw new Error(`only ${formatLsn(proposer.driver.commitLsn)}: ${JSON.stringify(proposer.driver.status())}`);
    await sleep(2);
  }
  const seconds = (performance.now() - started) / 1000;
  proposer.stop();
  for (const {nodeId} of members) await requestJson({method: 'DELETE', url: `${url(nodeId)}/${timelineId}`, token});
  return seconds;
}

/** Seconds until pg_receivewal has it, each flush fsynced. */
async function throughReceivewal(source: PostgresCluster, endLsn: Lsn, slot: string): Promise<number> {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-bench-receivewal-'));
  try {
    await untilDiskRests();
    const started = performance.now();
    await tool('pg_receivewal', stockTarget(source), [
      '-D',
      dir,
      '-S',
      slot,
      '--synchronous',
      '--no-loop',
      '-E',
      formatLsn(endLsn),
    ]);
    return (performance.now() - started) / 1000;
  } finally {
    rmSync(dir, {recursive: true, force: true});
  }
}
