/**
 * `npm run bench -- unarchive`: from the first packet of a client to the first row of a table, with the branch archived: index
 * read back, timeline loaded, then a wake like any other. A small branch and a large one in turn; it must not matter which.
 * No reference does the same; each branch's wake when it is only suspended is a detail.
 *
 *   --times N      of each branch, default 8
 *   --megabytes N  of the large branch, default 300
 */
import {setTimeout as sleep} from 'node:timers/promises';
import {parseArgs} from 'node:util';
import {type Branch, Pagoda} from '../test/pagoda.ts';
import {median, percentile, printReport, say} from './report.ts';

/** Of a row with its index entry, as measured. */
const rowBytes = 1024;
/** As long as this the spare agent takes to come back (bench/wake.ts). */
const pauseMs = 1500;

export async function unarchive(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {times: {type: 'string', default: '8'}, megabytes: {type: 'string', default: '300'}},
  });
  process.env['PAGODA_ARCHIVE_AGE_SECONDS'] = '1';
  process.env['PAGODA_ARCHIVE_IDLE_SECONDS'] = '1';
  await using pagoda = await Pagoda.start();
  const sizes = {small: 10, large: Number(options.megabytes)};
  const branches = new Map<'small' | 'large', Branch>();
  for (const name of ['small', 'large'] as const) {
    const made = await pagoda.branch({name, protected: true});
    branches.set(name, made);
    // What does not compress: large in the object store too.
    const rows = Math.round((sizes[name] * 1024 * 1024) / rowBytes);
    await pagoda.query(
      `create table woken as select i as id, 'row ' || i as t,
         (select string_agg(md5((i * 31 + j)::text), '') from generate_series(1, 28) j) as filler
       from generate_series(1, ${rows}) i; create index on woken (id)`,
      made.uri,
    );
  }
  const asleep = {small: [] as number[], large: [] as number[]};
  const suspended = {small: [] as number[], large: [] as number[]};
  for (let n = 0; n < Number(options.times); n++)
    for (const [name, branch] of branches) {
      await pagoda.suspend(branch.endpointId);
      await sleep(pauseMs);
      suspended[name].push(await firstRow(pagoda, branch));
      await pagoda.suspend(branch.endpointId);
      await setProtected(pagoda, branch, false);
      while ((await stateOf(pagoda, branch)) !== 'archived') await sleep(100);
      await sleep(pauseMs);
      asleep[name].push(await firstRow(pagoda, branch));
      await setProtected(pagoda, branch, true);
      say(
        `${n + 1} ${name}: archived ${asleep[name].at(-1)!.toFixed(0)} ms, suspended ${suspended[name].at(-1)!.toFixed(0)} ms`,
      );
    }
  printReport({
    name: 'unarchive',
    smallP50Ms: median(asleep.small),
    smallP99Ms: percentile(asleep.small, 99),
    largeP50Ms: median(asleep.large),
    largeP99Ms: percentile(asleep.large, 99),
    largeToSmall: median(asleep.large) / median(asleep.small),
    suspendedSmallP50Ms: median(suspended.small),
    suspendedLargeP50Ms: median(suspended.large),
    largeMegabytes: sizes.large,
    times: asleep.small.length,
  });
}

async function firstRow(pagoda: Pagoda, branch: Branch): Promise<number> {
  const started = performance.now();
  const rows = await pagoda.query('select t from woken where id = 5000', branch.uri);
  const ms = performance.now() - started;
  if (rows[0]?.['t'] !== 'row 5000') throw new Error('the woken branch does not have its row');
  return ms;
}

async function setProtected(pagoda: Pagoda, {branchId}: Branch, wanted: boolean): Promise<void> {
  const path = `/projects/${pagoda.status.projectId}/branches/${branchId}`;
  await pagoda.api('PATCH', path, {branch: {protected: wanted}});
}

async function stateOf(pagoda: Pagoda, {branchId}: Branch): Promise<string> {
  const path = `/projects/${pagoda.status.projectId}/branches/${branchId}`;
  return (await pagoda.api<{branch: {current_state: string}}>('GET', path)).branch.current_state;
}
