/** `npm run bit-rot -- [--cases N] [--seed N] [--format NAME]`: 10,000 damages of each format by default. */
import {parseArgs} from 'node:util';
import {runBitRot} from './run.ts';

const {values} = parseArgs({
  options: {
    cases: {type: 'string', default: '10000'},
    seed: {type: 'string', default: '1'},
    format: {type: 'string'},
  },
});
let failed = 0;
let passed = 0;
for (const {format, cases, refused, repaired, failures} of await runBitRot({
  cases: Number(values.cases),
  seed: Number(values.seed),
  only: values.format,
})) {
  const bad = cases - refused - repaired;
  console.log(`${format.padEnd(14)} ${cases} damages: ${refused} refused, ${repaired} repaired, ${bad} NOT FOUND`);
  for (const failure of failures) console.log(`  ${failure}`);
  failed += bad;
  passed += cases - bad;
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
