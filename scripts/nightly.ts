/**
 * `npm run nightly`: what takes too long for every commit. Three seeds of the nemesis of five minutes each and the whole
 * crash matrix, the second oracle at 100 LSNs and behind computes that are killed, 50,000 seeds of the simulator, its seeded bugs
 * and the model check, property tests on other cases than every day's, and on S3 what `npm test` runs with a folder's objects alone.
 * `--seed N`: the first of the three (default: the day, so that each night has its own).
 */
import {run, summarise} from './run.ts';

const node = process.execPath;
const at = process.argv.indexOf('--seed');
const first = at === -1 ? Math.floor(Date.now() / 86_400_000) * 3 : Number(process.argv[at + 1]);
/** Tests of test/system that start one installation and leave it to it where its objects are. */
const installations = [
  'authorization',
  'back-pressure',
  'branches',
  'durability',
  'fencing',
  'fresh-directory',
  'killed-compute',
  'read-only',
  'replace-safekeeper',
  'roles',
  'scale-to-zero',
  'tools',
];
const results = [];
for (const seed of [first, first + 1, first + 2])
  results.push(
    await run(`nemesis, seed ${seed}`, node, ['test/nemesis/main.ts', '--minutes', '5', '--seed', String(seed)]),
  );
results.push(await run('check, other cases', node, ['scripts/check.ts'], {env: {PAGODA_PROPERTY_SEED: String(first)}}));
results.push(await run('crash matrix', node, ['test/crash-matrix/main.ts']));
const churn = ['--quick', '--churn', '--migrate', '--shards', '4', '--lsns', '100'];
for (const options of [churn, ['--endpoint', '--quick']])
  results.push(
    await run(`second oracle ${options.join(' ')}`, node, [
      'test/oracle-standby.ts',
      ...options,
      '--seed',
      String(first),
    ]),
  );
results.push(await run('simulator', node, ['src/sim/main.ts', '--seeds', '50000', '--from', String(first * 100_000)]));
results.push(await run('seeded bugs', node, ['src/sim/mutants.ts']));
results.push(await run('model check', node, ['--max-old-space-size=6000', 'src/sim/model-check.ts']));
for (const name of installations)
  results.push(
    await run(`${name} on S3`, node, [
      '--import',
      './test/objectstore/s3-installations.ts',
      `test/system/${name}.test.ts`,
    ]),
  );
process.exitCode = summarise(results);
