/** The small form of `npm run oracle:redo`: every record type of the quick loads equals PostgreSQL's own pages. */
import {test} from 'node:test';
import assert from 'node:assert/strict';
import {spawnSync} from 'node:child_process';
import {join} from 'node:path';

test('redo equals the after-images of a stock PostgreSQL, and its final files', () => {
  const run = spawnSync(process.execPath, [join(import.meta.dirname, 'oracle-redo.ts'), '--quick', '--fuzz'], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  });
  assert.equal(run.status, 0, `${run.stdout.slice(-4000)}\n${run.stderr.slice(-4000)}`);
  assert.match(run.stdout, /compared, [0-9]{6,} equal, 0 different/);
});
