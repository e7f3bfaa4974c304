/**
 * Walks the durable steps one by one on real processes: arm one, do what reaches it until its process has died of it, let it
 * come back, and look at everything that must hold.
 */
import {existsSync, readFileSync, renameSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import pg from 'pg';
import {parseLsn} from '#postgres/lsn.ts';
import {requestJson} from '#runtime/http.ts';
import {clientConfig} from '../pagoda.ts';
import {Cell} from '../nemesis/cell.ts';
import {compareSafekeepers, safekeeperStatus, timelinesOnDisk} from '../nemesis/safekeeper-content.ts';
import {Commits} from '../nemesis/workloads/client.ts';
import {Ledger} from '../nemesis/workloads/ledger.ts';
import {type Stage, rows, walkedRoles} from './rows.ts';
import {type Step, stepsInCode} from './steps.ts';

export interface MatrixOptions {
  readonly dir: string;
  readonly short: boolean;
  /** Steps whose name this matches. */
  readonly only?: RegExp;
  readonly log: (line: string) => void;
}

/** A step that is not reached in this time has a row that does not reach it. */
const reachMsMax = 240_000;
const recoveryMsMax = 180_000;
/** All content is compared after so many steps, and at the end. */
const compareEvery = 8;

/** What is wrong with the table: steps without a row, rows without a step. */
export function tableProblems(steps: readonly Step[]): string[] {
  const walked = steps.filter((s) => walkedRoles.includes(s.role));
  return [
    ...walked
      .filter((s) => rows[s.name] === undefined)
      .map((s) => `${s.name} (src/${s.file}) has no row in test/crash-matrix/rows.ts`),
    ...Object.keys(rows)
      .filter((name) => !steps.some((s) => s.name === name))
      .map((name) => `${name} has a row in test/crash-matrix/rows.ts but is nowhere in src`),
  ];
}

export async function runMatrix(options: MatrixOptions): Promise<{ok: boolean}> {
  const {log} = options;
  const steps = stepsInCode();
  const problems = tableProblems(steps);
  const walked: readonly {readonly name: string; readonly action: 'kill' | 'error'}[] = steps
    .filter((s) => rows[s.name] !== undefined)
    .filter((s) => (options.only === undefined ? !options.short || rows[s.name]!.short : options.only.test(s.name)))
    .flatMap(({name}) => [
      {name, action: 'kill'} as const,
      ...(rows[name]!.fails ? [{name, action: 'error'} as const] : []),
    ]);
  const armed = join(options.dir, 'armed');
  const cell = await Cell.start({
    dir: options.dir,
    seed: 1,
    isolated: false,
    spareSafekeeper: true,
    env: {PAGODA_FAILPOINT_FILE: armed},
    // Everything that usually rests for minutes happens within a second.
    safekeeperConfig: {archive: {partialAfterMs: 1000, partialEveryMs: 2000, takeOverMs: 1000}},
    pageserverConfig: {
      limits: {layerBytes: 256 * 1024, layerAgeMs: 1000, gcPeriodMs: 1000, leaseMsMax: 0, compaction: {l0Threshold: 3}},
    },
    log,
  });
  let survived = 0;
  try {
    const commits = new Commits();
    const ledger = new Ledger(commits);
    await cell.query(Ledger.schema);
    const endpointId = await cell.endpointId();
    const {tenant, timeline} = timelinesOnDisk(cell)[0]!;
    const stage: Stage = {
      cell,
      endpointId,
      tenant,
      timeline,
      admin: (sql) => atCompute(cell, endpointId, sql),
      hasFired: () => existsSync(`${armed}.fired`),
    };
    const loops = ledger.start({config: clientConfig(cell.databaseUrl), thinkMs: 0}, 3);
    for (const [i, step] of walked.entries()) {
      const before = problems.length;
      const started = performance.now();
      const row = rows[step.name]!;
      rmSync(`${armed}.fired`, {force: true});
      const pid = row.process === undefined ? undefined : cell.pidOf(row.process);
      // In one piece: a process that looks meanwhile sees all of it or nothing.
      writeFileSync(`${armed}.new`, `${step.name}:1:${step.action}:${pid ?? ''}`);
      renameSync(`${armed}.new`, armed);
      while (!stage.hasFired() && performance.now() - started < reachMsMax) await row.driver(stage);
      rmSync(armed, {force: true});
      for (const link of cell.links.values()) if (link.fault !== undefined) link.healThenReset();
      if (!stage.hasFired()) {
        problems.push(`${step.name}: not reached in ${reachMsMax / 1000} s`);
        log(`${step.name.padEnd(46)} NOT REACHED`);
        continue;
      }
      const label = step.action === 'kill' ? step.name : `${step.name} (EIO)`;
      const diedMs = performance.now();
      if (pid !== undefined) await ended(pid, label, problems);
      await recovered(cell, commits, stage, label, problems);
      await checkLedger(cell, ledger, label, problems);
      if (row.after !== undefined) for (const p of await row.after(stage)) problems.push(`${label}: ${p}`);
      if (i % compareEvery === compareEvery - 1 || i === walked.length - 1)
        await compareSafekeepers(cell, problems, () => {});
      if (problems.length === before) survived++;
      log(
        `${label.padEnd(46)} ${problems.length === before ? 'ok' : 'FAILED'}  reached after ${seconds(diedMs - started)}, all well after ${seconds(performance.now() - diedMs)}`,
      );
      if (problems.length > before) log(cell.logTails(5));
    }
    await Promise.all(loops.map((loop) => loop.stop()));
    const verdict = await checkLedger(cell, ledger, 'at the end', problems);
    for (const p of problems) log(`PROBLEM  ${p}`);
    log(
      `${walked.length} steps, ${survived} survived; ${commits.count} commits, ${verdict.lost} lost, ${verdict.doubled} doubled`,
    );
    return {ok: problems.length === 0 && survived === walked.length};
  } finally {
    await cell.close();
  }
}

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

/** A step that failed must end its process: what a failed fsync has covered is not known any more. */
async function ended(pid: number, step: string, problems: string[]): Promise<void> {
  for (let waited = 0; waited < 120_000; waited += 50) {
    if (!existsSync(`/proc/${pid}`)) return;
    await sleep(50);
  }
  problems.push(`${step}: its process (pid ${pid}) goes on`);
}

/** Commits go on, every role serves, safekeepers agree, and the pageserver takes in what is committed. */
async function recovered(cell: Cell, commits: Commits, stage: Stage, step: string, problems: string[]): Promise<void> {
  const at = commits.count;
  const deadline = performance.now() + recoveryMsMax;
  while (commits.count < at + 20 && performance.now() < deadline) await sleep(20);
  if (commits.count < at + 20) problems.push(`${step}: no commits within ${recoveryMsMax / 1000} s afterwards`);
  await cell.settled();
  const wanted = Math.max(
    ...(await safekeeperStatus(cell, stage.tenant, stage.timeline)).map((s) =>
      s === undefined ? 0 : parseLsn(s.commitLsn),
    ),
  );
  for (;;) {
    const ingested = await lastIngested(cell, stage);
    if (ingested >= wanted) return;
    if (performance.now() > deadline) {
      problems.push(`${step}: the pageserver has taken in ${ingested} of ${wanted} bytes of WAL`);
      return;
    }
    await sleep(100);
  }
}

async function lastIngested(cell: Cell, {tenant, timeline}: Stage): Promise<number> {
  try {
    const {json} = await requestJson({
      method: 'GET',
      url: `${cell.urlOf('pageserver-http')}/v1/tenant/${tenant}/timeline/${timeline}`,
      token: await cell.token('pageserver'),
      timeoutMs: 5000,
    });
    return parseLsn((json as {lastRecordLsn: string}).lastRecordLsn);
  } catch {
    return 0;
  }
}

async function checkLedger(
  cell: Cell,
  ledger: Ledger,
  step: string,
  problems: string[],
): Promise<{lost: number; doubled: number}> {
  const {lost, doubled, wrong} = await ledger.compare((sql) => cell.queryInTheEnd(sql));
  if (lost.length + doubled.length + wrong.length > 0)
    problems.push(
      `${step}: ${lost.length} lost (${lost.slice(0, 5).join(' ')}), ${doubled.length} doubled, ${wrong.length} wrong (${wrong.slice(0, 5).join(' ')})`,
    );
  return {lost: lost.length, doubled: doubled.length};
}

async function atCompute(cell: Cell, endpointId: string, sql: string): Promise<void> {
  const directory = join(cell.layout.computes, endpointId);
  try {
    const {pgPort} = JSON.parse(readFileSync(join(directory, 'run.json'), 'utf8')) as {pgPort: number};
    const client = new pg.Client({
      host: join(directory, 'data/run'),
      port: pgPort,
      user: 'pagoda_admin',
      database: 'postgres',
      connectionTimeoutMillis: 3000,
      query_timeout: 20_000,
    });
    client.on('error', () => {});
    try {
      await client.connect();
      await client.query(sql);
    } finally {
      (client as unknown as {connection: {stream: {destroy(): void}}}).connection.stream.destroy();
    }
  } catch {
    // the compute is on its way down or up
  }
}
