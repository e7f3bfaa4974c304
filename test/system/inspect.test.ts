/** `pagoda verify | scrub | sizes | layers` on a running installation, whole and then damaged. */
import assert from 'node:assert/strict';
import {cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {test} from 'node:test';
import {Pagoda} from '../pagoda.ts';

test('verify, scrub and repair, sizes, the picture', async () => {
  await using pagoda = await Pagoda.start();
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
    const layer = await newestLayer(join(pagoda.dir, 'objects'));
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
    cpSync(join(pagoda.dir, 'objects'), join(copy, 'store'), {recursive: true});
    const whole = readFileSync(layer);
    const bytes = Buffer.from(whole);
    bytes[5000]! ^= 4;
    writeFileSync(layer, bytes);
    const found = await failing(() => pagoda.cli('scrub'));
    assert.match(found, /DAMAGED tenants\/\w+\/timelines\/\w+\/\S+: layer \S+ is damaged at byte \d+/);
    rmSync(layer);
    assert.match(await failing(() => pagoda.cli('scrub')), /DANGLING tenants/);
    assert.match(await pagoda.cli('scrub', '--copy', `folder:${join(copy, 'store')}`), /REPAIRED DANGLING/);
    assert.ok(readFileSync(layer).equals(whole));
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

/** The largest layer object, once there is one. */
async function newestLayer(objects: string): Promise<string> {
  for (let tries = 0; tries < 1200; tries++, await sleep(200)) {
    const layers = readdirSync(objects, {recursive: true, encoding: 'utf8'})
      .filter((name) => /\/delta-/.test(name))
      .map((name) => join(objects, name))
      .filter((path) => statSync(path).size > 100_000);
    if (layers.length > 0) return layers.sort((x, y) => statSync(y).size - statSync(x).size)[0]!;
  }
  throw new Error('no layer was uploaded');
}
