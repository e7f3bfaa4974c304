/** `pagoda verify | scrub | sizes | layers` on a running installation, whole and then damaged. */
import assert from 'node:assert/strict';
import {mkdtempSync, readFileSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import type {ListedObject, ObjectStore} from '#objectstore/object-store.ts';
import {systemDisk} from '#runtime/disk.ts';
import {systemRandom} from '#runtime/random.ts';
import {onTestStores} from '../objectstore/stores.ts';
import {Pagoda} from '../pagoda.ts';

onTestStores('verify, scrub and repair, sizes, the picture', async (testStore) => {
  await using pagoda = await Pagoda.start({objectStore: testStore.url});
  const store = testStore.ofInstallation(pagoda.dir);
  const copy = mkdtempSync(join(tmpdir(), 'pagoda-copy-'));
  try {
    await pagoda.query('create table t as select i, md5(i::text) as m from generate_series(1, 100000) i');
    await pagoda.query('create index on t (m)');
    const [{at}] = (await pagoda.query('select pg_current_wal_flush_lsn()::text as at')) as [{at: string}];
    await pagoda.query('delete from t');

    // All pages, now and at a point in the past.
    const now = await pagoda.cli('verify');
    assert.match(now, /every page can be read/);
    const past = JSON.parse(await pagoda.cli('verify', '--at', at, '--json')) as {pages: number; problemCount: number};
    assert.equal(past.problemCount, 0);
    assert.ok(past.pages > 1200, `${past.pages} pages`);

    // A stop saves what is in memory: layers that can be looked at and damaged.
    process.kill(pagoda.pidOf('pageserver'), 'SIGTERM');
    const layer = await largestLayer(store);
    await answers(() => pagoda.cli('scrub'));
    assert.match(await pagoda.cli('scrub'), /nothing is missing or damaged/);

    const sizes = await pagoda.cli('sizes', '--tables');
    assert.match(sizes, /branch main .*stored [\d.]+ [kM]B in \d+ layers/);
    assert.match(sizes, /kept by restore window/);
    assert.match(sizes, /1663\/\d+\/\d+ +logical +[\d.]+ MB +stored/);
    const svg = join(copy, 'layers.svg');
    await pagoda.cli('layers', '--out', svg);
    assert.match(readFileSync(svg, 'utf8'), /^<svg [\s\S]*<title>(delta|image) level[\s\S]*<\/svg>\n$/);

    // One bit, and one object gone: found, named, and put back from a copy of the store.
    const folder = {root: join(copy, 'store'), disk: systemDisk, random: systemRandom, nowMs: Date.now()};
    await copyObjects(store, new FolderObjectStore(folder));
    const whole = await store.get(layer);
    const bytes = Buffer.from(whole);
    bytes[5000]! ^= 4;
    await store.put(layer, bytes);
    const found = await failing(() => pagoda.cli('scrub'));
    assert.match(found, /DAMAGED tenants\/\w+\/timelines\/\w+\/\S+: layer \S+ is damaged at byte \d+/);
    await store.delete([layer]);
    assert.match(await failing(() => pagoda.cli('scrub')), /DANGLING tenants/);
    assert.match(await pagoda.cli('scrub', '--copy', `folder:${folder.root}`), /REPAIRED DANGLING/);
    assert.ok((await store.get(layer)).equals(whole));
    assert.match(await pagoda.cli('scrub'), /nothing is missing or damaged/);
    assert.match(await pagoda.cli('verify', '--branch', 'main'), /every page can be read/);
    assert.match(await failing(() => pagoda.cli('verify', '--branch', 'nonsense')), /there is no branch nonsense/);
  } finally {
    rmSync(copy, {recursive: true, force: true});
  }
});

/** What a command printed that ended with a status other than 0. */
async function failing(run: () => Promise<string>): Promise<string> {
  try {
    await run();
  } catch (error) {
    const {stdout, stderr} = error as {stdout: string; stderr: string};
    return stdout + stderr;
  }
  assert.fail('the command should have failed');
}

async function answers(run: () => Promise<string>): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      await run();
      return;
    } catch (error) {
      if (tries === 480) throw error;
      await sleep(500);
    }
  }
}

/** Key of the largest layer, once there is one. */
async function largestLayer(store: ObjectStore): Promise<string> {
  for (let tries = 0; tries < 1200; tries++, await sleep(200)) {
    const layers = (await store.list('tenants/')).filter(({key, size}) => key.includes('/delta-') && size > 100_000);
    const largest = layers.reduce<ListedObject | undefined>(
      (best, one) => (best && best.size > one.size ? best : one),
      undefined,
    );
    if (largest !== undefined) return largest.key;
  }
  throw new Error('no layer was uploaded');
}

async function copyObjects(from: ObjectStore, to: ObjectStore): Promise<void> {
  for (const {key} of await from.list('')) await to.put(key, await from.get(key));
}
