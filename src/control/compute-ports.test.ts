import {strict as assert} from 'node:assert';
import {mkdirSync, mkdtempSync, rmSync} from 'node:fs';
import {createServer} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {systemDisk} from '#runtime/disk.ts';
import {portOfCompute} from './compute-ports.ts';

test('an endpoint keeps its port, no two have the same, and one that somebody took is given up', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-ports-'));
  const ids = Array.from({length: 30}, (_, i) => `ep-${i}`);
  for (const id of ids) mkdirSync(join(dir, id));
  const portOf = (id: string): Promise<number> => portOfCompute(systemDisk, dir, id);
  const ports = await Promise.all(ids.map(portOf));
  assert.equal(new Set(ports).size, ids.length);
  assert.equal(await portOf('ep-3'), ports[3]);
  const intruder = createServer();
  await new Promise<void>((resolve) => intruder.listen(ports[3], '127.0.0.1', resolve));
  const moved = await portOf('ep-3');
  assert.equal(ports.includes(moved), false);
  await new Promise((resolve) => intruder.close(resolve));
  assert.equal(await portOf('ep-3'), moved);
  rmSync(dir, {recursive: true});
});
