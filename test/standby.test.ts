/** The small forms of `npm run oracle:standby`: what the timeline answers at four LSNs equals a stock standby's files. */
import {test} from 'node:test';
import assert from 'node:assert/strict';
import {spawnSync} from 'node:child_process';
import {join} from 'node:path';

function oracle(...options: readonly string[]): string {
  const run = spawnSync(process.execPath, [join(import.meta.dirname, 'oracle-standby.ts'), '--quick', ...options], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  assert.equal(run.status, 0, `${run.stdout.slice(-4000)}\n${run.stderr.slice(-4000)}`);
  assert.match(run.stdout, /\d{5,} pages at 4 LSNs compared, \d{5,} equal, 0 different/);
  return run.stdout;
}

test('pages, sizes and files of a timeline at the end and at earlier LSNs equal a stock standby that waits there', () => {
  oracle('--prove');
});

test('the same of two shards that move between two pageservers, under compaction, GC, eviction, archiving and restarts', () => {
  const out = oracle('--churn', '--migrate', '--shards', '2');
  assert.match(out, /\d+ migrations, \d+ times taken/);
  assert.match(out, /times archived, .* \d+ pageservers started anew with an empty folder, 1 branches detached/);
});
