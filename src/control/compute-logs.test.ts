import assert from 'node:assert/strict';
import {mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, utimesSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {systemDisk} from '#runtime/disk.ts';
import {logKeptMs, openLogFile, removeOldLogs} from '#control/compute-logs.ts';

test('a log outlives its compute by an hour; a large one is kept once', (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-logs-'));
  t.after(() => rmSync(dir, {recursive: true, force: true}));
  const [logsDir, computesDir] = [join(dir, 'logs'), join(dir, 'computes')];
  mkdirSync(logsDir);
  mkdirSync(join(computesDir, 'ep-here'), {recursive: true});
  const nowMs = 1_800_000_000_000;
  const write = (name: string, ageMs: number): void => {
    writeFileSync(join(logsDir, name), 'what it said\n');
    utimesSync(join(logsDir, name), (nowMs - ageMs) / 1000, (nowMs - ageMs) / 1000);
  };
  const [old, young] = [logKeptMs + 1000, logKeptMs - 1000];
  for (const name of [
    'compute-ep-here.log',
    'compute-ep-gone.log',
    'compute-ep-gone.log.1',
    'compute-spare.log',
    'control.log',
  ])
    write(name, old);
  write('compute-ep-just-gone.log', young);
  removeOldLogs(systemDisk, {logsDir, computesDir}, nowMs);
  const left = ['compute-ep-here.log', 'compute-ep-just-gone.log', 'compute-spare.log', 'control.log'];
  assert.deepEqual(readdirSync(logsDir).sort(), left);

  assert.equal(openLogFile(systemDisk, logsDir, 'ep-here'), join(logsDir, 'compute-ep-here.log'));
  truncateSync(join(logsDir, 'compute-spare.log'), 17 << 20);
  assert.equal(openLogFile(systemDisk, logsDir, 'spare'), join(logsDir, 'compute-spare.log'));
  assert.deepEqual(
    readdirSync(logsDir).sort(),
    left.map((name) => (name === 'compute-spare.log' ? `${name}.1` : name)),
  );
});
