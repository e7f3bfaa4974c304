import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import type {Lsn} from '#control/lsn.ts';
import {call, FakeWorld, startControl} from '#control/test-world.ts';
import {WalTrim} from './wal-trim.ts';

const mebibyte = 1024 * 1024;

test('one safekeeper that answers is told from where WAL is needed, when that is worth it', async (t) => {
  const world = new FakeWorld();
  const control = await startControl(world);
  t.after(() => control.stop());
  await call(control, 'POST', '/projects', {project: {}});
  const {store, storage, clock, log} = control.context;
  const trim = new WalTrim({store, storage, clock, log, config: {everySeconds: -1}});
  await trim.sweep();
  assert.deepEqual(world.trims, [], 'pageservers do not know yet');
  world.walNeeded = (100 * mebibyte) as Lsn;
  world.broken.add('safekeeper-1');
  await trim.sweep();
  world.walNeeded = (110 * mebibyte) as Lsn;
  await trim.sweep();
  assert.deepEqual(
    world.trims.map(({nodeId, lsn}) => [nodeId, lsn]),
    [[2, 100 * mebibyte]],
    'not again for less than a segment',
  );
  world.walNeeded = (116 * mebibyte) as Lsn;
  await trim.sweep();
  assert.deepEqual(
    world.trims.map(({lsn}) => lsn),
    [100 * mebibyte, 116 * mebibyte],
  );
});
