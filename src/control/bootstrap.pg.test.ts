import {strict as assert} from 'node:assert';
import {execFileSync} from 'node:child_process';
import {chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import {lookUpUser, runsAsRoot} from '#runtime/process.ts';
import {systemRandom} from '#runtime/random.ts';
import {InitdbBootstrap, newSystemId} from './bootstrap.ts';

const binDir = '/usr/lib/postgresql/15/bin';
const systemUser = runsAsRoot ? 'postgres' : '';

test('initdb once, then every project gets the same cluster with its own identifier', async () => {
  const root = mkdtempSync(join(tmpdir(), 'pagoda-bootstrap-'));
  chmodSync(root, 0o711);
  try {
    const cacheDir = join(root, 'cache');
    mkdirSync(cacheDir);
    const bootstrap = new InitdbBootstrap({
      binDir,
      cacheDir,
      systemUser,
      disk: systemDisk,
      random: systemRandom,
      log: silentLog,
    });
    for (const systemId of [newSystemId(Date.now(), systemRandom), newSystemId(Date.now(), systemRandom)]) {
      const parts: Buffer[] = [];
      for await (const part of await bootstrap.dataDirectory(systemId)) parts.push(part);
      const directory = join(root, systemId);
      mkdirSync(directory);
      const tar = join(root, 'data.tar');
      writeFileSync(tar, Buffer.concat(parts));
      execFileSync('tar', ['-xf', tar, '-C', directory]);
      const control = execFileSync(join(binDir, 'pg_controldata'), [directory], {encoding: 'utf8', env: {LC_ALL: 'C'}});
      assert.match(control, new RegExp(`Database system identifier: +${systemId}\\n`));
      assert.match(control, /Database cluster state: +shut down\n/);
      assert.doesNotMatch(control, /WARNING/);
      assert.ok(existsSync(join(directory, 'base/1/PG_VERSION')));
      assert.equal(existsSync(join(directory, 'global/pg_control')), true);
      assert.equal(existsSync(join(directory, 'pg_wal')), false);
      if (runsAsRoot) chownSync(directory, lookUpUser('postgres').uid, lookUpUser('postgres').gid);
    }
    assert.deepEqual(
      readdirSync(cacheDir).filter((name) => !/^initdb-15\.\d+-v3$/.test(name)),
      [],
      'nothing but the template is left',
    );
  } finally {
    rmSync(root, {recursive: true});
  }
});
