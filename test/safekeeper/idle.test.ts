/** A branch that rests costs a safekeeper its control file, and no memory worth naming. */
import assert from 'node:assert/strict';
import {execFile} from 'node:child_process';
import {test} from 'node:test';
import {promisify} from 'node:util';

const count = Number(process.env['IDLE_TIMELINES'] ?? 300);

test(`${count} idle timelines: none in memory, no WAL on the disk`, {timeout: 600_000}, async () => {
  const {stdout} = await promisify(execFile)(
    process.execPath,
    ['--disable-warning=ExperimentalWarning', '--expose-gc', 'test/safekeeper/idle-process.ts', String(count)],
    {timeout: 590_000},
  );
  const figures = JSON.parse(stdout.trim().split('\n').at(-1)!) as Record<string, number | boolean>;
  console.log(JSON.stringify(figures));
  assert.equal(figures['walFiles'], 0);
  assert.equal(figures['wokenRight'], true);
  assert.ok((figures['bytesEachAtRest'] as number) < 2048, 'of which most is the ids and what the test keeps');
  assert.ok((figures['bytesEachInMemory'] as number) < 64 * 1024);
});
