/** One run of the nemesis: cell, workloads, faults, heal, verdict. */
import {execFile} from 'node:child_process';
import {readFileSync, rmSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import {SeededRandom} from '#runtime/random.ts';
import {clientConfig} from '../pagoda.ts';
import {postgresBinDir} from '../postgres-cluster.ts';
import {Cell, safekeeperNames, spareName} from './cell.ts';
import {CpuMeter} from './cpu-meter.ts';
import {checkListAppend, forbiddenAt} from './cycle-checker.ts';
import {type FaultKind, type Need, type World, faultClasses, schedule} from './faults.ts';
import {addSpare} from './replace-safekeeper.ts';
import {compareSafekeepers, timelinesOnDisk} from './safekeeper-content.ts';
import {Bank} from './workloads/bank.ts';
import {Branches} from './workloads/branches.ts';
import {Commits} from './workloads/client.ts';
import {Ledger, type LedgerVerdict} from './workloads/ledger.ts';
import {ListAppend} from './workloads/list-append.ts';

export interface NemesisOptions {
  readonly dir: string;
  readonly minutes: number;
  readonly seed: number;
  readonly isolated: boolean;
  /** The object store is a real S3 server behind a proxy that makes faults. */
  readonly s3: boolean;
  readonly strictGaps: boolean;
  /** What each client rests between two transactions, on average. */
  readonly thinkMs: number;
  readonly only?: string;
  readonly log: (line: string) => void;
}

export const thinkMsDefault = 40;
/** Fewer commits than this in a second, on average, and the run proves nothing. One of a minute may have met its slowest. */
const commitsPerSecondMin = (minutes: number): number => (minutes >= 4.5 ? 20 : 5);
const listLevels = ['serializable', 'repeatable read'] as const;
/** After a heal the first commit must come within this, or the run has failed. */
const recoveryMsMax = 120_000;

interface Happened {
  readonly kind: FaultKind;
  readonly fromMs: number;
  /** Healed, and commits have come back. */
  toMs: number;
}

export async function runNemesis(options: NemesisOptions): Promise<{ok: boolean}> {
  const {log, seed} = options;
  const random = new SeededRandom(seed ^ 0x5eed);
  const started = performance.now();
  const say = (text: string): void =>
    log(`${((performance.now() - started) / 1000).toFixed(1).padStart(7)} s  ${text}`);
  const cell = await Cell.start({
    dir: options.dir,
    seed,
    isolated: options.isolated,
    s3: options.s3,
    spareSafekeeper: true,
    // Layers come and go while the object store errs, not five minutes later.
    pageserverConfig: {
      limits: {layerBytes: 1024 * 1024, layerAgeMs: 5000, gcPeriodMs: 10_000, compaction: {l0Threshold: 4}},
    },
    log: say,
  });
  const cpu = new CpuMeter(cell);
  const problems: string[] = [];
  try {
    const commits = new Commits();
    const ledger = new Ledger(commits);
    const bank = new Bank(commits, random);
    const lists = listLevels.map((level) => new ListAppend(commits, random, level));
    await cell.query([Ledger.schema, Bank.schema, ...lists.map((l) => l.schema)].join(';'));
    await addSpare(cell, spareName);
    const mainTimeline = timelinesOnDisk(cell)[0]!.timeline; // before the first branch is made
    const branches = new Branches(cell, {ledger, lists}, random);
    const world: World = {
      cell,
      endpointId: await cell.endpointId(),
      ledger,
      problems,
      safekeepers: safekeeperNames,
      spare: spareName,
      rivalsServed: 0,
    };
    const clients = {config: clientConfig(cell.databaseUrl), thinkMs: options.thinkMs};
    commits.lastMs = performance.now();
    const loops = [
      ...ledger.start(clients, 4),
      ...bank.start(clients, 2),
      ...lists.flatMap((l, i) => l.start(clients, i === 0 ? 4 : 2)),
      branches.start(clients),
    ];
    say(
      `the cell serves (${options.isolated ? 'own network and file systems' : 'one network'}), ${loops.length} clients, seed ${seed}`,
    );
    await sleep(2000);

    const happened: Happened[] = [];
    const has = new Set<Need>([
      ...(options.isolated ? ['isolated' as const] : []),
      ...(options.s3 ? ['s3' as const] : []),
    ]);
    cpu.start();
    const beganMs = performance.now();
    const endMs = beganMs + options.minutes * 60_000;
    for (const fault of schedule(seed, has)) {
      if (performance.now() >= endMs) break;
      if (options.only !== undefined && !fault.kind.name.includes(options.only)) continue;
      const entry: Happened = {kind: fault.kind, fromMs: performance.now(), toMs: 0};
      happened.push(entry);
      const before = commits.count;
      const heal = await fault.kind.inject(world, new SeededRandom(fault.seed));
      await sleep(fault.holdMs);
      const during = commits.count - before;
      await heal();
      const healedMs = performance.now();
      const healedAt = commits.count;
      // Twenty commits: an answer that was on its way is no recovery.
      while (commits.count < healedAt + 20 && performance.now() - healedMs < recoveryMsMax) await sleep(20);
      const backMs = performance.now() - healedMs;
      if (commits.count < healedAt + 20) {
        problems.push(`no commits within ${recoveryMsMax / 1000} s after: ${fault.kind.name}`);
        say(`${fault.kind.detail ?? fault.kind.name}, ${fault.holdMs} ms: nothing comes back`);
        log(cell.logTails());
        break;
      }
      await cell.settled();
      entry.toMs = performance.now();
      const gap = longestGap(commits, entry.fromMs, entry.toMs);
      say(
        `${fault.kind.detail ?? fault.kind.name}, ${fault.holdMs} ms: ${during} commits meanwhile, back after ${Math.round(backMs)} ms, longest gap ${Math.round(gap)} ms`,
      );
      await sleep(fault.restMs);
    }
    const minutes = (performance.now() - beganMs) / 60_000;
    const load = cpu.stop();
    await Promise.all(loops.map((loop) => loop.stop()));
    await cell.settled();
    say(`faults are over; verifying`);

    const verdict = await verify(cell, {ledger, bank, lists}, problems, say);
    await compareSafekeepers(
      cell,
      problems,
      say,
      world.safekeepers,
      timelinesOnDisk(cell, world.safekeepers).filter((t) => t.timeline === mainTimeline),
    );
    // Only what storage holds: local disks of compute and pageserver are lost.
    await cell.stopAll();
    for (const folder of ['computes', 'pageserver']) rmSync(join(options.dir, folder), {recursive: true, force: true});
    await cell.startAll();
    const again = await verifyLedger(cell, ledger, problems);
    const final = await finalLists(cell, lists);
    say(`after a cold start without local disks: ${again.rows} rows, ${again.lost.length} lost`);
    await cell.stopAll();
    if (JSON.stringify(final.map((f) => [...f])) !== JSON.stringify(verdict.lists.map((f) => [...f])))
      problems.push('lists: not the same after the cold start');
    const anomalies = verdict.anomalies + again.wrong.length + judgeHistories({lists, branches}, final, problems, say);

    say('');
    report(happened, commits, options.strictGaps, problems, log);
    judgeWorth(
      {commits: commits.count, minutes, happened, branches, world, has, isPartial: options.only !== undefined},
      problems,
    );
    for (const p of problems) log(`PROBLEM  ${p}`);
    log(
      `seed ${seed}, ${minutes.toFixed(1)} min: ${happened.length} faults, ${commits.unknown} unknown, ${commits.aborted} aborted, ${bank.reads} sums read, ${lists.map((l) => l.history.length).join('+')} list transactions, ${sum([...cell.links.values()].map((l) => l.corrupted))} bits flipped`,
    );
    const made = [...(cell.objectStore?.done ?? [])].map(([kind, n]) => `${n} ${kind}`).join(', ');
    log(
      `${branches.checked} branches checked, ${branches.ofThePast} of them of an older point; object store: ${cell.objectStore?.requests ?? 0} requests, ${made || 'no faults'}; processors: ${load}`,
    );
    log(
      `${commits.count} commits, ${verdict.lost + again.lost.length} lost, ${verdict.doubled + again.doubled.length} doubled, ${anomalies} anomalies`,
    );
    return {ok: problems.length === 0};
  } finally {
    await cell.close();
  }
}

async function verifyLedger(cell: Cell, ledger: Ledger, problems: string[]): Promise<LedgerVerdict> {
  const verdict = await ledger.compare((sql) => cell.queryInTheEnd(sql));
  for (const what of ['lost', 'doubled', 'wrong'] as const)
    if (verdict[what].length > 0)
      problems.push(`ledger: ${verdict[what].length} ${what}, for example ${verdict[what].slice(0, 10).join(', ')}`);
  return verdict;
}

async function verify(
  cell: Cell,
  work: {
    readonly ledger: Ledger;
    readonly bank: Bank;
    readonly lists: readonly ListAppend[];
  },
  problems: string[],
  say: (line: string) => void,
): Promise<{lost: number; doubled: number; anomalies: number; lists: Lists[]}> {
  const ledger = await verifyLedger(cell, work.ledger, problems);
  say(`ledger: ${ledger.acknowledged} acknowledged entries, ${ledger.rows} rows`);
  let anomalies = ledger.wrong.length + work.bank.anomalies.length;
  for (const text of work.bank.anomalies.slice(0, 5)) problems.push(`bank: ${text}`);
  const money = await Bank.problem((sql) => cell.queryInTheEnd(sql));
  if (money !== undefined) {
    anomalies++;
    problems.push(`bank: ${money} at the end`);
  }
  const lists = await finalLists(cell, work.lists);
  try {
    await amcheck(cell, await cell.endpointId());
    say('pg_amcheck: clean');
  } catch (error) {
    problems.push(`pg_amcheck: ${(error as {stdout?: string}).stdout ?? (error as Error).message}`);
  }
  return {lost: ledger.lost.length, doubled: ledger.doubled.length, anomalies, lists};
}

type Lists = ReadonlyMap<number, readonly number[]>;

async function finalLists(cell: Cell, lists: readonly ListAppend[]): Promise<Lists[]> {
  const all: Lists[] = [];
  for (const list of lists) all.push(await list.lists((sql) => cell.queryInTheEnd(sql)));
  return all;
}

/** An hour's history keeps this process busy for a minute: nothing of the cell may need it any more. */
function judgeHistories(
  {lists, branches}: {readonly lists: readonly ListAppend[]; readonly branches: Branches},
  final: readonly Lists[],
  problems: string[],
  say: (line: string) => void,
): number {
  let anomalies = 0;
  for (const [i, list] of lists.entries()) {
    const level = listLevels[i]!;
    branches.compareLists(list, final[i]!);
    const found = checkListAppend(list.history, final[i]!).filter((a) => forbiddenAt[level](a.kind));
    say(`list-append at ${level}: ${list.history.length} transactions, ${found.length} anomalies`);
    anomalies += found.length;
    for (const a of found.slice(0, 5)) problems.push(`list-append at ${level}: ${a.kind}: ${a.text}`);
  }
  say(`branches: ${branches.checked} checked, ${branches.anomalies.length} anomalies`);
  for (const text of [...branches.anomalies.slice(0, 5), ...branches.problems.slice(0, 5)]) problems.push(text);
  return anomalies + branches.anomalies.length;
}

/** Not synchronous: the links that its pages come over live in this process. */
async function amcheck(cell: Cell, endpointId: string): Promise<void> {
  const directory = join(cell.layout.computes, endpointId);
  const {pgPort} = JSON.parse(readFileSync(join(directory, 'run.json'), 'utf8')) as {pgPort: number};
  await promisify(execFile)(
    join(postgresBinDir, 'pg_amcheck'),
    `-h ${join(directory, 'data/run')} -p ${pgPort} -U pagoda_admin --all --heapallindexed --parent-check --install-missing`.split(
      ' ',
    ),
    {maxBuffer: 1 << 26},
  );
}

/** The longest time without a commit that touches the span. */
function longestGap(commits: Commits, fromMs: number, toMs: number): number {
  let longest = 0;
  for (const gap of commits.gaps)
    if (gap.toMs > fromMs && gap.fromMs < toMs) longest = Math.max(longest, gap.toMs - gap.fromMs);
  return longest;
}

function report(
  happened: readonly Happened[],
  commits: Commits,
  strict: boolean,
  problems: string[],
  log: (line: string) => void,
): void {
  const byKind = new Map([...Map.groupBy(happened, (h) => h.kind.name).values()].map((all) => [all[0]!.kind, all]));
  log('fault                                                     times   longest gap       goal');
  for (const [kind, all] of [...byKind].toSorted(([a], [b]) => (a.name < b.name ? -1 : 1))) {
    const gap = Math.max(...all.map((h) => longestGap(commits, h.fromMs, h.toMs === 0 ? Infinity : h.toMs)));
    const over = kind.gapMsMax !== undefined && gap > kind.gapMsMax;
    if (over && strict)
      problems.push(`gap of ${Math.round(gap)} ms at "${kind.name}", the goal is ${kind.gapMsMax} ms`);
    const goal = kind.gapMsMax === undefined ? '-' : `${kind.gapMsMax} ms`;
    log(
      `${kind.name.padEnd(56)} ${String(all.length).padStart(6)}   ${`${Math.round(gap)} ms`.padStart(11)}   ${goal.padStart(8)}${over ? '  over' : ''}`,
    );
  }
}

interface Run {
  readonly commits: number;
  readonly minutes: number;
  readonly happened: readonly Happened[];
  readonly branches: Branches;
  readonly world: World;
  readonly has: ReadonlySet<Need>;
  /** Only some kinds of faults were asked for. */
  readonly isPartial: boolean;
}

/** A run that did too little of something proves nothing about it. */
function judgeWorth({commits, minutes, happened, branches, world, has, isPartial}: Run, problems: string[]): void {
  const perSecond = commits / (minutes * 60);
  if (perSecond < commitsPerSecondMin(minutes))
    problems.push(
      `void: ${perSecond.toFixed(1)} commits a second, at least ${commitsPerSecondMin(minutes)} are needed`,
    );
  const {cell} = world;
  const had = (text: string): boolean => happened.some((h) => (h.kind.detail ?? h.kind.name).includes(text));
  if (had('rival') && world.rivalsServed === 0) problems.push('void: no rival compute came to serve');
  if (had('bits flipped') && sum([...cell.links.values()].map((l) => l.corrupted)) === 0)
    problems.push('void: no bit was flipped');
  if (isPartial) return;
  const least = minutes >= 4.5 ? 3 : 1;
  const need = (what: string, count: number, enough = least): void => {
    if (count < enough) problems.push(`void: ${count} ${what}, at least ${enough} are needed`);
  };
  for (const wanted of faultClasses)
    if (wanted !== 'object store' || has.has('s3'))
      need(`faults of class ${wanted}`, happened.filter((h) => h.kind.class === wanted).length);
  need('branches checked', branches.checked);
  if (has.has('s3')) need('requests to the object store that went wrong', sum(cell.objectStore!.done.values()));
}

const sum = (numbers: Iterable<number>): number => [...numbers].reduce((a, b) => a + b, 0);
