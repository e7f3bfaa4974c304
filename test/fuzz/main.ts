/**
 * Hostile WAL: `npm run fuzz -- --cases 1000000 --seed 1`. Mutates real records, pages and WAL of every resource manager
 * (cases.ts says what must hold). Exit code 1 when anything escaped, hung, was slow, or memory grew.
 *
 *   --cases N       default 100000
 *   --seed S        default: from the clock, and printed
 *   --fresh         capture the corpus anew
 *   --replay FILE   run one saved case again
 */
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {runCase} from './cases.ts';
import {loadCorpus} from './corpus.ts';
import {decodeCase, fuzz} from './run.ts';

const {values: options} = parseArgs({
  options: {
    cases: {type: 'string', default: '100000'},
    seed: {type: 'string'},
    fresh: {type: 'boolean', default: false},
    replay: {type: 'string'},
  },
});

/** A case that takes longer even in the best of four runs has no bound worth the name. */
const caseMsMax = 100;
const heapGrowthMax = 16 * 1024 * 1024;
const rssGrowthMax = 128 * 1024 * 1024;
const mebibyte = 1024 * 1024;

async function main(): Promise<boolean> {
  if (options.replay !== undefined) {
    const outcome = runCase(decodeCase(readFileSync(options.replay, 'utf8')));
    console.log(JSON.stringify(outcome));
    return outcome.kind !== 'escaped';
  }
  const seed = options.seed === undefined ? Date.now() % 1_000_000 : Number(options.seed);
  const cases = Number(options.cases);
  if (!Number.isSafeInteger(seed) || seed < 0 || !Number.isSafeInteger(cases) || cases < 1) {
    console.error('--cases and --seed take a whole number');
    return false;
  }
  const corpus = await loadCorpus(options.fresh);
  console.log(
    `seed ${seed}; corpus ${corpus.hash}: ${corpus.samples.length} page changes of ${corpus.names.length} record types, ` +
      `${corpus.blockless.length} records without blocks, ${corpus.wal.length} stretches of WAL`,
  );
  const failuresDir = join(import.meta.dirname, '../../.cache/fuzz/failures');
  const result = await fuzz(corpus, {cases, seed, failuresDir, onProgress: (text) => console.log(text)});
  for (const [kind, count] of Object.entries(result.outcomes).sort((x, y) => (x[0] < y[0] ? -1 : 1)))
    console.log(`  ${kind}: ${count}`);
  const caught = [...result.caught].sort((x, y) => y[1] - x[1]);
  if (caught.length > 0) console.log('refused by a JavaScript error inside applyRecord, not by a check of its own:');
  for (const [reason, count] of caught.slice(0, 20)) console.log(`  ${count} × ${reason}`);
  for (const path of result.saved) console.log(`saved: ${path}`);
  const {memory, slowest} = result;
  console.log(
    `slowest case ${slowest.number} (${slowest.name}): ${slowest.ms.toFixed(2)} ms; heap ${mib(memory.heapStart)} → ${mib(memory.heapEnd)} MiB; ` +
      `${result.seconds.toFixed(1)} s`,
  );
  console.log(
    `${result.cases} cases, ${result.escaped} escaped, ${result.hangs} hangs, RSS ${mib(memory.rssStart)} → ${mib(memory.rssEnd)} MiB`,
  );
  return (
    result.escaped === 0 &&
    result.hangs === 0 &&
    slowest.ms <= caseMsMax &&
    memory.heapEnd - memory.heapStart <= heapGrowthMax &&
    memory.rssEnd - memory.rssStart <= rssGrowthMax
  );
}

function mib(bytes: number): string {
  return (bytes / mebibyte).toFixed(0);
}

process.exitCode = (await main()) ? 0 : 1;
