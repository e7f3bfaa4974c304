/**
 * npm run sim -- --seeds N [--from S]      the saved regressions, then N seeds; ends with `N seeds, F failed`
 * npm run sim -- --seed S [--trace]        one seed, with every event on --trace
 */
import {systemClock} from '#runtime/clock.ts';
import {exitProcess, printLine} from '#runtime/process.ts';
import {commandLine} from '#sim/arguments.ts';
import {regressions} from '#sim/regressions.ts';
import {World, type WorldResult} from '#sim/world.ts';

const options = commandLine();
if (options.seed !== undefined) {
  const result = new World({seed: options.seed, ...(options.trace ? {trace: printLine} : {})}).run();
  report(options.seed, result);
  exitProcess(result.failure === undefined ? 0 : 1);
}

const startedMs = systemClock.monotonicMs();
let failed = 0;
let events = 0;
let commits = 0;
let elections = 0;
let crashes = 0;
let virtualMs = 0;
const saved = regressions();
for (const {seed} of saved) run(seed);
if (saved.length > 0) printLine(`${saved.length} regressions, ${failed} failed`);
for (let i = 0; i < options.seeds; i++) run(options.from + i);
const seconds = (systemClock.monotonicMs() - startedMs) / 1000;
printLine(
  `${events} events, ${commits} commits, ${elections} elections, ${crashes} crashes in ${(virtualMs / 1000).toFixed(0)} virtual s; ${seconds.toFixed(1)} s, ${((options.seeds + saved.length) / seconds).toFixed(0)} seeds/s`,
);
printLine(`${options.seeds} seeds, ${failed} failed`);
exitProcess(failed === 0 ? 0 : 1);

function run(seed: number): void {
  const result = new World({seed}).run();
  events += result.events;
  commits += result.commits;
  elections += result.elections;
  crashes += result.crashes;
  virtualMs += result.virtualMs;
  if (result.failure === undefined) return;
  failed++;
  report(seed, result);
}

function report(seed: number, result: WorldResult): void {
  const state =
    result.failure === undefined
      ? 'ok'
      : `FAILED: ${result.failure}\n  again: npm run sim -- --seed ${seed} --trace\n  faults: ${JSON.stringify(result.faults)}`;
  printLine(
    `seed ${seed} hash ${result.hash.toString(16)} ${result.events} events ${result.commits} commits ${result.elections} elections ${result.crashes} crashes ${result.virtualMs} virtual ms: ${state}`,
  );
}
