/** kill -9 of every process of an installation under load, and what must be there afterwards. */
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import {type Pagoda, libpqEnvironment} from '../pagoda.ts';
import {until} from '../until.ts';
import {amcheck} from './amcheck.ts';
import {Ledger} from './ledger.ts';

const run = promisify(execFile);
/** The full measure of the acceptance: scale 10, eight clients, a minute. */
const long = process.env['PAGODA_LONG'] === '1';

/** `meanwhile`: between the end of all processes and the next start. */
export async function killEverythingUnderLoad(pagoda: Pagoda, meanwhile: () => void): Promise<void> {
  const pgbench = (args: string[]): Promise<{stdout: string}> =>
    run('pgbench', args, {env: libpqEnvironment(pagoda.status.databaseUrl)});
  const ledger = new Ledger(pagoda);
  await pagoda.query('drop table if exists ledger');
  await ledger.create();
  await pgbench(['-i', '-q', '-s', long ? '10' : '2']);
  const load = pgbench(['-c', long ? '8' : '4', '-T', '600']).catch(() => {});
  ledger.start(4);
  await sleep(long ? 60_000 : 10_000);
  await until('commits', () => ledger.acknowledged.size > 100);
  // Those whose answers are read after the crash come out as acknowledged: it may be all of them.
  assert.ok(ledger.unknown.size > 0, 'commits are on their way');
  await pagoda.crash();
  await ledger.stop();
  await load;
  meanwhile();
  const ms = await pagoda.up();
  const {rows, lost, invented} = await ledger.compare();
  console.log(
    `acknowledged ${ledger.acknowledged.size}, unknown ${ledger.unknown.size}, in the table ${rows}, lost ${lost.length}; banner after ${Math.round(ms)} ms`,
  );
  assert.deepEqual({lost, invented}, {lost: [], invented: []});
  const [sums] = await pagoda.query(
    'select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches) as equal',
  );
  assert.equal(sums!['equal'], true);
  assert.equal(await amcheck(pagoda, (await pagoda.mainBranch()).endpointId), '');
}
