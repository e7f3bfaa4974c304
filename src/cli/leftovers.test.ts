import {strict as assert} from 'node:assert';
import {spawn} from 'node:child_process';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {systemClock} from '#runtime/clock.ts';
import {endLeftovers, findLeftovers} from './leftovers.ts';

test('only processes that name a file of this data directory are ended', async () => {
  const data = mkdtempSync(join(tmpdir(), 'pagoda-left-'));
  const sleeper = (...args: string[]) => spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)', '--', ...args]);
  const ours = sleeper('safekeeper', '--config', join(data, 'config', 'safekeeper-1.json'));
  const neighbour = sleeper('safekeeper', '--config', `${data}-other/config/safekeeper-1.json`);
  const reader = sleeper('less', join(data, 'logs', 'control.log'));
  try {
    const gone = new Promise((resolve) => ours.once('exit', (_code, signal) => resolve(signal)));
    assert.deepEqual(
      findLeftovers(data).map((p) => [p.pid, p.what]),
      [[ours.pid, 'safekeeper']],
    );
    const said: string[] = [];
    await endLeftovers(data, systemClock, (line) => said.push(line));
    assert.equal(await gone, 'SIGKILL');
    assert.deepEqual(findLeftovers(data), []);
    assert.equal(said.length, 1);
    assert.equal(neighbour.exitCode ?? neighbour.signalCode, null);
    assert.equal(reader.exitCode ?? reader.signalCode, null);
  } finally {
    for (const child of [ours, neighbour, reader]) child.kill('SIGKILL');
    rmSync(data, {recursive: true});
  }
});
