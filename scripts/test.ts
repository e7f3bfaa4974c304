/**
 * `npm test`: sets the machine up, then everything that must pass: check, the tests that need a real Postgres, and the
 * whole system. The closing lines are those of node's test runner.
 */
import {readdirSync} from 'node:fs';
import {Rgw} from '../test/objectstore/rgw.ts';
import {run, summarise} from './run.ts';

const node = process.execPath;
const find = (folder: string, ending: string): string[] =>
  readdirSync(folder, {recursive: true, encoding: 'utf8'})
    .filter((f) => f.endsWith(ending) && !f.includes('node_modules'))
    .map((f) => `${folder}/${f}`)
    .sort();

const results = [await run('set-up', node, ['scripts/setup.ts'])];
if (results[0]!.ok) {
  results.push(await run('check', node, ['scripts/check.ts']));
  results.push(await run('simulator, 5000 seeds', node, ['src/sim/main.ts', '--seeds', '5000']));
  const files = [...find('src', '.pg.test.ts'), ...find('extension', '.pg.test.ts'), ...find('test', '.test.ts')];
  // One for all: starting it takes longer than most tests. When it does not start, whoever needs it says why.
  const rgw = await Rgw.start().catch(() => undefined);
  try {
    const options = [
      // One file at a time: they start whole clusters, and the machine may have two cores.
      '--test-concurrency=1',
      '--test-timeout=900000',
      // A failed test may leave a handle open; its file must end all the same, or the whole run never does.
      '--test-force-exit',
      '--import=./scripts/property-seed.ts',
    ];
    results.push(
      await run('tests with Postgres', node, ['--test', ...options, ...files], {env: rgw?.environment ?? {}}),
    );
  } finally {
    await rgw?.stop();
  }
}
process.exitCode = summarise(results);
