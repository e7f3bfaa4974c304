/**
 * `npm run bench -- wake`: from the first packet of a client to the first row of a table, with the endpoint suspended: TLS,
 * authentication, control plane, basebackup, election, Postgres, hydration of the catalogue pages and of the table's page.
 * There is no reference that does the same; the same query on the running endpoint with a new connection is a detail.
 *
 *   --times N    default 20
 *   --pause MS   between suspend and wake, default 1500
 */
import {setTimeout as sleep} from 'node:timers/promises';
import {parseArgs} from 'node:util';
import {Pagoda} from '../test/pagoda.ts';
import {median, percentile, printReport, say} from './report.ts';

export async function wake(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {times: {type: 'string', default: '20'}, pause: {type: 'string', default: '1500'}},
  });
  await using pagoda = await Pagoda.start();
  await pagoda.query(`create table woken as select i as id, 'row ' || i as t from generate_series(1, 1000) i`);
  const {endpointId} = await pagoda.mainBranch();
  const cold: number[] = [];
  const coldConnect: number[] = [];
  const warm: number[] = [];
  for (let n = 0; n < Number(options.times); n++) {
    await pagoda.suspend(endpointId);
    // An endpoint sleeps for a while: by then the next spare agent waits (docs/decisions/0012). --pause 0 shows a wake without one.
    await sleep(Number(options.pause));
    const first = await timed(pagoda);
    cold.push(first.rowMs);
    coldConnect.push(first.connectMs);
    warm.push((await timed(pagoda)).rowMs);
    say(
      `${n + 1}: ${first.rowMs.toFixed(0)} ms (connected after ${first.connectMs.toFixed(0)}), then ${warm.at(-1)!.toFixed(1)} ms`,
    );
  }
  printReport({
    name: 'wake',
    p50Ms: median(cold),
    p99Ms: percentile(cold, 99),
    times: cold.length,
    connectedP50Ms: median(coldConnect),
    runningP50Ms: median(warm),
  });
}

async function timed(pagoda: Pagoda): Promise<{rowMs: number; connectMs: number}> {
  const started = performance.now();
  const client = await pagoda.connect();
  const connectMs = performance.now() - started;
  try {
    const {rows} = await client.query<{t: string}>('select t from woken where id = 500');
    const rowMs = performance.now() - started;
    if (rows[0]?.t !== 'row 500') throw new Error('the woken endpoint does not have its row');
    return {rowMs, connectMs};
  } finally {
    await client.end();
  }
}
