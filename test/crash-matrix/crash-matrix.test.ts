/** The table of durable steps is complete, and some of them are walked; `npm run crash-matrix` walks all. */
import assert from 'node:assert/strict';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {runMatrix, tableProblems} from './run.ts';
import {stepsInCode} from './steps.ts';

test('every durable step of the code has a row, and every row a step', () => {
  const steps = stepsInCode();
  assert.deepEqual(tableProblems(steps), []);
  // The comparison can fail.
  const [first, ...others] = steps;
  assert.equal(tableProblems(others).length, 1, first!.name);
  assert.equal(tableProblems([...steps, {name: 'safekeeper.new.before', role: 'safekeeper', file: 'x.ts'}]).length, 1);
});

test('some steps, one of each kind: killed there, everything comes back whole', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-crash-matrix-'));
  const {ok} = await runMatrix({dir, short: true, log: (line) => console.log(line)});
  assert.ok(ok, `the crash matrix failed; logs and data: ${dir}`);
  rmSync(dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100});
});
