/**
 * `npm run crash-matrix`: every durable step of safekeeper, proposer and pageserver, killed before and after.
 *
 *   --short       the steps of the short form (npm test)
 *   --only TEXT   steps whose name matches it (a regular expression)
 *   --list        the steps, from the code, and whether each has a row
 */
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {rows} from './rows.ts';
import {runMatrix, tableProblems} from './run.ts';
import {stepsInCode} from './steps.ts';

const args = process.argv.slice(2);
if (args[0] === '--list') {
  for (const {name, file} of stepsInCode())
    console.log(`${name.padEnd(46)} ${rows[name] === undefined ? 'NO ROW' : 'row   '}  src/${file}`);
  const problems = tableProblems(stepsInCode());
  for (const p of problems) console.log(`PROBLEM  ${p}`);
  process.exit(problems.length === 0 ? 0 : 1);
}
const onlyAt = args.indexOf('--only');
const only = onlyAt === -1 ? undefined : args[onlyAt + 1];
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => process.exit(1)); // the cell cleans up at exit
const dir = mkdtempSync(join(tmpdir(), 'pagoda-crash-matrix-'));
const {ok} = await runMatrix({
  dir,
  short: args.includes('--short'),
  ...(only === undefined ? {} : {only: new RegExp(only)}),
  log: (line) => console.log(line),
});
if (ok) rmSync(dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100});
else console.log(`FAILED. Logs and data: ${dir}`);
process.exit(ok ? 0 : 1);
