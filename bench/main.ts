/**
 * `npm run bench -- NAME [options]`: one measurement, Pagoda against a reference, on this machine. See README.md.
 * The last line of stdout is the result as JSON.
 */
import {amplification} from './amplification.ts';
import {branch} from './branch.ts';
import {branches} from './branches.ts';
import {commit} from './commit.ts';
import {coldScan} from './cold-scan.ts';
import {getPage} from './getpage.ts';
import {large} from './large.ts';
import {hostile} from './hostile.ts';
import {ingest} from './ingest.ts';
import {proxy} from './proxy.ts';
import {redo} from './redo.ts';
import {say} from './report.ts';
import {stalls} from './stalls.ts';
import {unarchive} from './unarchive.ts';
import {unarchiveLarge} from './unarchive-large.ts';
import {wake} from './wake.ts';
import {wal} from './wal.ts';
import {warmRead} from './warm-read.ts';

const benchmarks: Readonly<Record<string, {readonly run: (args: string[]) => Promise<void>; readonly what: string}>> = {
  redo: {run: redo, what: 'CPU time per WAL record by type, against the startup process of stock Postgres'},
  ingest: {run: ingest, what: 'CPU time to take WAL in, against a stock physical standby that replays it'},
  commit: {run: commit, what: 'pgbench -N, against stock with two synchronous standbys'},
  wal: {run: wal, what: 'WAL made durable, against pg_receivewal --synchronous'},
  'warm-read': {run: warmRead, what: 'pgbench -S, against stock'},
  amplification: {
    run: amplification,
    what: 'bytes in the object store after pgbench and a bulk load, against size and WAL',
  },
  branch: {run: branch, what: 'making a branch of 15 MB and of 2 GB'},
  branches: {run: branches, what: '10,000 branches on one pageserver: memory of each, start time'},
  proxy: {run: proxy, what: 'pgbench -S through the front door, against straight to the compute and PgBouncer'},
  stalls: {run: stalls, what: 'how long requests wait while the pageserver uploads and compacts'},
  hostile: {run: hostile, what: '10,000 silent connections and 1,000,000 cancel guesses at the front door'},
  unarchive: {run: unarchive, what: 'archived branch to first row, of 10 MB and of 300 MB'},
  'unarchive-large': {
    run: unarchiveLarge,
    what: 'archived branch to first row through a compute, an imported cluster of any size against a small one',
  },
  wake: {run: wake, what: 'suspended endpoint to first row'},
  large: {run: large, what: 'branch and wake at the page server, an imported cluster of any size against a small one'},
  getpage: {run: getPage, what: 'pages per second of the page service, against a bare socket'},
  'cold-scan': {run: coldScan, what: 'sequential scan through a fresh compute, against stock with a dropped cache'},
};

const [name, ...args] = process.argv.slice(2);
const benchmark = benchmarks[name ?? ''];
if (benchmark === undefined) {
  say(`usage: npm run bench -- NAME [options]${name === undefined ? '' : ` (there is no benchmark ${name})`}\n`);
  for (const [each, {what}] of Object.entries(benchmarks)) say(`  ${each.padEnd(12)}${what}`);
  process.exitCode = 2;
} else {
  await benchmark.run(args);
}
