/**
 * npm run sim -- --seeds N [--from S] [--jobs J]   the saved regressions, then N seeds; ends with `N seeds, F failed`
 * npm run sim -- --seed S [--trace]                one seed, with every event on --trace
 *
 * A long run says every 5000 seeds how far it is: after an interruption, `--from` goes on there.
 */
import {systemClock} from '#runtime/clock.ts';
import {executablePath, exitProcess, printLine, spawnProcess} from '#runtime/process.ts';
import {commandLine} from '#sim/arguments.ts';
import {regressions} from '#sim/regressions.ts';
import {World, type WorldResult} from '#sim/world.ts';

const progressSeeds = 5000;
/** A worker reports after so many of its seeds. */
const reportSeeds = 50;

/** Sums of a worker since its last report: one line of JSON. */
interface Report {
  done: number;
  failed: number;
  events: number;
  commits: number;
  elections: number;
  crashes: number;
  changes: number;
  objects: number;
  virtualMs: number;
}

const options = commandLine();
if (options.seed !== undefined) {
  const result = new World({seed: options.seed, ...(options.trace ? {trace: printLine} : {})}).run();
  printLine(describe(options.seed, result));
  exitProcess(result.failure === undefined ? 0 : 1);
} else if (options.stride !== undefined) work(options.stride);
else await lead();

async function lead(): Promise<void> {
  const startedMs = systemClock.monotonicMs();
  const total = emptyReport();
  const saved = regressions();
  for (const {seed} of saved) add(total, play(seed, printLine));
  if (saved.length > 0) printLine(`${saved.length} regressions, ${total.failed} failed`);
  const {seeds, from, jobs} = options;
  let done = 0;
  const workers = await Promise.all(
    Array.from({length: Math.min(jobs, Math.max(1, seeds))}, async (_, j) =>
      spawnProcess({
        command: executablePath,
        args: [
          import.meta.filename,
          '--stride',
          String(jobs),
          '--from',
          String(from + j),
          '--seeds',
          String(Math.ceil((seeds - j) / jobs)),
        ],
        onStdoutLine: (line) => {
          if (!line.startsWith('{')) {
            printLine(line);
            return;
          }
          const before = done;
          const report = JSON.parse(line) as Report;
          add(total, report);
          done += report.done;
          if (Math.floor(before / progressSeeds) < Math.floor(done / progressSeeds))
            printLine(
              `${done} seeds, ${total.failed} failed, ${rate(done)}; after an interruption go on with --from ${from + Math.max(0, done - 2 * jobs * reportSeeds)}`,
            );
        },
        onStderrLine: printLine,
      }),
    ),
  );
  const ends = await Promise.all(workers.map(async (worker) => worker.exited));
  if (ends.some((end) => end.code !== 0 && end.code !== 1)) {
    printLine('a worker ended before its time');
    exitProcess(2);
  }
  printLine(
    `${total.events} events, ${total.commits} commits, ${total.elections} elections, ${total.crashes} crashes, ${total.changes} membership changes, ${total.objects} objects archived in ${(total.virtualMs / 1000).toFixed(0)} virtual s; ${((systemClock.monotonicMs() - startedMs) / 1000).toFixed(1)} s, ${rate(done)}`,
  );
  printLine(`${done} seeds, ${total.failed} failed`);
  exitProcess(total.failed === 0 && done === seeds ? 0 : 1);

  function rate(count: number): string {
    return `${(count / ((systemClock.monotonicMs() - startedMs) / 1000)).toFixed(0)} seeds/s`;
  }
}

function work(stride: number): void {
  let report = emptyReport();
  let failed = 0;
  for (let i = 0; i < options.seeds; i++) {
    add(report, play(options.from + i * stride, printLine));
    if (report.done < reportSeeds && i + 1 < options.seeds) continue;
    failed += report.failed;
    printLine(JSON.stringify(report));
    report = emptyReport();
  }
  exitProcess(failed === 0 ? 0 : 1);
}

function play(seed: number, say: (line: string) => void): Report {
  const result = new World({seed}).run();
  if (result.failure !== undefined) say(describe(seed, result));
  return {...result, done: 1, failed: result.failure === undefined ? 0 : 1};
}

function emptyReport(): Report {
  return {
    done: 0,
    failed: 0,
    events: 0,
    commits: 0,
    elections: 0,
    crashes: 0,
    changes: 0,
    objects: 0,
    virtualMs: 0,
  };
}

function add(total: Report, report: Report): void {
  for (const key of Object.keys(total) as (keyof Report)[]) total[key] += report[key];
}

function describe(seed: number, result: WorldResult): string {
  const state =
    result.failure === undefined
      ? 'ok'
      : `FAILED: ${result.failure}\n  again: npm run sim -- --seed ${seed} --trace\n  faults: ${JSON.stringify(result.faults)}`;
  return `seed ${seed} hash ${result.hash.toString(16)} ${result.events} events ${result.commits} commits ${result.elections} elections ${result.crashes} crashes ${result.changes} changes ${result.objects} objects ${result.virtualMs} virtual ms: ${state}`;
}
