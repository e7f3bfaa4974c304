/** `npm run check`: format, lint, types, dead code, unit tests, 200 simulation seeds. Needs no Postgres. */
import {readdirSync} from 'node:fs';
import {availableParallelism} from 'node:os';
import {run, summarise} from './run.ts';

const node = process.execPath;
const unitTests = readdirSync('src', {recursive: true, encoding: 'utf8'})
  .filter((f) => f.endsWith('.test.ts') && !f.endsWith('.pg.test.ts'))
  .map((f) => `src/${f}`)
  .sort();

const results = [
  await run('format', node, [
    'node_modules/oxfmt/bin/oxfmt',
    '--check',
    'src',
    'test',
    'bench',
    'scripts',
    'oxlint.config.ts',
  ]),
  await run('lint', node, [
    'node_modules/oxlint/bin/oxlint',
    '--deny-warnings',
    'src',
    'test',
    'bench',
    'scripts',
    'extension/test',
  ]),
  await run('types', node, ['node_modules/typescript/bin/tsc']),
  await run('dead code', node, ['node_modules/knip/bin/knip.js']),
  await run('unit tests', node, [
    '--test',
    '--test-reporter=dot',
    '--test-timeout=300000',
    '--test-force-exit',
    '--import=./scripts/property-seed.ts',
    `--test-concurrency=${availableParallelism()}`,
    ...unitTests,
  ]),
  await run('simulator', node, ['src/sim/main.ts', '--seeds', '200']),
];
process.exitCode = summarise(results);
