/** A minute of the nemesis; `npm run nightly` is the long form. */
import assert from 'node:assert/strict';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {runNemesis, thinkMsDefault} from './run.ts';

test('a minute of faults on every link and every role: nothing lost, nothing doubled, no anomaly', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-nemesis-'));
  const {ok} = await runNemesis({
    dir,
    minutes: 1,
    seed: 1,
    isolated: process.getuid?.() === 0,
    s3: true,
    thinkMs: thinkMsDefault,
    strictGaps: false,
    log: (line) => console.log(line),
  });
  assert.ok(ok, `the nemesis failed; logs and data: ${dir}`);
  rmSync(dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100});
});
