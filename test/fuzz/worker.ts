/** The thread that runs fuzz cases (run.ts watches it): tells which case it is at in shared memory, and sums up at the end. */
import {setFlagsFromString} from 'node:v8';
import {runInNewContext} from 'node:vm';
import {parentPort, workerData} from 'node:worker_threads';
import {makeCase, runCase} from './cases.ts';
import {loadCorpus} from './corpus.ts';
import type {WorkerMessage} from './run.ts';

const {first, cases, seed, current} = workerData as {
  first: number;
  cases: number;
  seed: number;
  current: SharedArrayBuffer;
};
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const corpus = await loadCorpus();
const position = new Int32Array(current);
const outcomes: Record<string, number> = {};
const caught = new Map<string, number>();
const memory: {rss: number; heap: number}[] = [];
const slow: {ms: number; number: number; name: string}[] = [];
const slowKept = 8;
const warm = first + Math.ceil((cases - first) / 10);

const post = (message: WorkerMessage): void => parentPort!.postMessage(message);
/** What is really held: finalizers and zlib free their share only after a collection and a turn of the event loop. */
const measureMemory = async (): Promise<void> => {
  let least = {rss: Infinity, heap: Infinity};
  for (let round = 0; round < 5; round++) {
    await new Promise((resolve) => setImmediate(resolve));
    collectGarbage();
    const {rss, heapUsed, external} = process.memoryUsage();
    if (heapUsed + external < least.heap) least = {rss, heap: heapUsed + external};
  }
  memory.push(least);
};

for (let number = first; number < cases; number++) {
  // node:zlib frees a failed decompressor's buffers in the next tick
  if (number % 256 === 0) await new Promise((resolve) => setImmediate(resolve));
  if (number === warm) await measureMemory();
  position[0] = number;
  const made = makeCase(corpus, seed, number);
  const started = performance.now();
  const outcome = runCase(made);
  const ms = performance.now() - started;
  const kind = `${made.kind} ${outcome.kind}`;
  outcomes[kind] = (outcomes[kind] ?? 0) + 1;
  if (outcome.kind === 'escaped') post({kind: 'escaped', number, reason: outcome.reason});
  if (outcome.kind === 'caught' && (caught.size < 200 || caught.has(outcome.reason)))
    caught.set(outcome.reason, (caught.get(outcome.reason) ?? 0) + 1);
  if (slow.length < slowKept || ms > slow.at(-1)!.ms) {
    slow.push({ms, number, name: `${made.kind} ${made.name}`});
    slow.sort((x, y) => y.ms - x.ms);
    slow.length = Math.min(slow.length, slowKept);
  }
}
await measureMemory();
// Most slow ones were not slow: the collector or another process ran. The best of four runs is the case's own time.
let slowest = {ms: 0, number: 0, name: ''};
for (const s of slow) {
  let best = s.ms;
  for (let n = 0; n < 3; n++) {
    const made = makeCase(corpus, seed, s.number);
    const started = performance.now();
    runCase(made);
    best = Math.min(best, performance.now() - started);
  }
  if (best > slowest.ms) slowest = {...s, ms: best};
}
position[0] = cases;
post({kind: 'summary', outcomes, caught: [...caught], slowest, memory});
