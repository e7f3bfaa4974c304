/**
 * Runs fuzz cases in a worker and watches it: a case that does not end is found, saved, and the run goes on behind it.
 */
import {mkdirSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {Worker} from 'node:worker_threads';
import {type FuzzCase, makeCase} from './cases.ts';
import type {Corpus} from './corpus.ts';

export interface FuzzOptions {
  readonly cases: number;
  readonly seed: number;
  /** Where failing cases are saved as JSON. */
  readonly failuresDir: string;
  readonly onProgress?: (text: string) => void;
}

/** What the worker sends when it is through. */
export interface WorkerSummary {
  readonly kind: 'summary';
  readonly outcomes: Readonly<Record<string, number>>;
  /** Refusals by a JavaScript error instead of a check: message → count. */
  readonly caught: readonly (readonly [string, number])[];
  /** Milliseconds of the slowest case, its number; the smallest of four runs of it. */
  readonly slowest: {readonly ms: number; readonly number: number; readonly name: string};
  /** After garbage collection, at 10 % of the cases and at the end. Bytes. */
  readonly memory: readonly {readonly rss: number; readonly heap: number}[];
}

export type WorkerMessage =
  | WorkerSummary
  | {readonly kind: 'escaped'; readonly number: number; readonly reason: string};

export interface FuzzResult {
  readonly cases: number;
  readonly escaped: number;
  readonly hangs: number;
  readonly outcomes: Readonly<Record<string, number>>;
  readonly caught: ReadonlyMap<string, number>;
  readonly slowest: WorkerSummary['slowest'];
  readonly memory: {
    readonly rssStart: number;
    readonly rssEnd: number;
    readonly heapStart: number;
    readonly heapEnd: number;
  };
  readonly saved: readonly string[];
  readonly seconds: number;
}

/** A case that runs longer is a hang (a case takes microseconds; the rest is for a busy machine). */
const caseSecondsMax = 10;
/** To load the worker's modules and the corpus. */
const startSecondsMax = 120;
const notStarted = -1;
/** So many failures are saved; all are counted. */
const savedMax = 20;

export async function fuzz(corpus: Corpus, options: FuzzOptions): Promise<FuzzResult> {
  const started = performance.now();
  const current = new Int32Array(new SharedArrayBuffer(4));
  const outcomes: Record<string, number> = {};
  const caught = new Map<string, number>();
  const saved: string[] = [];
  const memory: WorkerSummary['memory'][number][] = [];
  let slowest: WorkerSummary['slowest'] = {ms: 0, number: 0, name: ''};
  let escaped = 0;
  let hangs = 0;

  const save = (number: number, reason: string): void => {
    if (saved.length >= savedMax) return;
    const made = makeCase(corpus, options.seed, number);
    mkdirSync(options.failuresDir, {recursive: true});
    const path = join(options.failuresDir, `${options.seed}-${number}.json`);
    writeFileSync(path, encodeCase(made, {seed: options.seed, number, corpus: corpus.hash, reason}));
    saved.push(path);
  };

  for (let first = 0; first < options.cases;) {
    current[0] = notStarted;
    const worker = new Worker(new URL('worker.ts', import.meta.url), {
      workerData: {first, cases: options.cases, seed: options.seed, current: current.buffer},
    });
    const ended = new Promise<'exit' | Error>((resolve) => {
      worker.once('exit', () => resolve('exit'));
      worker.once('error', (error) => resolve(error as Error));
    });
    worker.on('message', (message: WorkerMessage) => {
      if (message.kind === 'escaped') {
        escaped++;
        save(message.number, message.reason);
        options.onProgress?.(`case ${message.number}: ${message.reason}`);
        return;
      }
      for (const [kind, count] of Object.entries(message.outcomes)) outcomes[kind] = (outcomes[kind] ?? 0) + count;
      for (const [reason, count] of message.caught) caught.set(reason, (caught.get(reason) ?? 0) + count);
      if (message.slowest.ms > slowest.ms) slowest = message.slowest;
      memory.push(...message.memory);
    });
    let lastNumber: number = notStarted;
    let since = performance.now();
    let hung = false;
    const watch = setInterval(() => {
      const number = current[0]!;
      if (number !== lastNumber) {
        lastNumber = number;
        since = performance.now();
      } else if (
        number < options.cases &&
        performance.now() - since > (number === notStarted ? startSecondsMax : caseSecondsMax) * 1000
      ) {
        hung = true;
        void worker.terminate();
      }
    }, 200);
    const end = await ended;
    clearInterval(watch);
    if (!hung && end === 'exit') break;
    const number = Math.max(first, current[0]!);
    if (hung) hangs++;
    else escaped++;
    const reason = hung ? `did not end in ${caseSecondsMax} s` : `ended the process: ${String(end)}`;
    save(number, reason);
    options.onProgress?.(`case ${number}: ${reason}`);
    first = number + 1;
  }
  return {
    cases: options.cases,
    escaped,
    hangs,
    outcomes,
    caught,
    slowest,
    memory: {
      rssStart: memory[0]?.rss ?? 0,
      rssEnd: memory.at(-1)?.rss ?? 0,
      heapStart: memory[0]?.heap ?? 0,
      heapEnd: memory.at(-1)?.heap ?? 0,
    },
    saved,
    seconds: (performance.now() - started) / 1000,
  };
}

interface Origin {
  readonly seed: number;
  readonly number: number;
  readonly corpus: string;
  readonly reason: string;
}

function encodeCase(made: FuzzCase, origin: Origin): string {
  const {bytes, page, expected, checkpoint, ...rest} = made;
  return JSON.stringify(
    {
      ...origin,
      ...rest,
      bytes: bytes.toString('base64'),
      page: page.toString('base64'),
      ...(expected === undefined ? {} : {expected: expected.toString('base64')}),
      ...(checkpoint === undefined ? {} : {checkpoint: checkpoint.toString('base64')}),
    },
    undefined,
    2,
  );
}

/** A saved case, to run it again. */
export function decodeCase(json: string): FuzzCase {
  const {bytes, page, expected, checkpoint, ...rest} = JSON.parse(json) as Omit<
    FuzzCase,
    'bytes' | 'page' | 'expected' | 'checkpoint'
  > & {bytes: string; page: string; expected?: string; checkpoint?: string};
  return {
    ...rest,
    bytes: Buffer.from(bytes, 'base64'),
    page: Buffer.from(page, 'base64'),
    ...(expected === undefined ? {} : {expected: Buffer.from(expected, 'base64')}),
    ...(checkpoint === undefined ? {} : {checkpoint: Buffer.from(checkpoint, 'base64')}),
  };
}
