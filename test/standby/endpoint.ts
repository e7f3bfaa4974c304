/**
 * WAL that computes wrote through a whole Pagoda: pgbench and a load of all index types run through the front door while the
 * compute is killed again and again. What is compared afterwards: the layers that its pageserver left in the object store.
 * With what: the branch's WAL as the safekeepers give it, replayed by a stock PostgreSQL over the branch's first data
 * directory. Nothing of the pageserver is in the latter.
 */
import {execFileSync, spawn} from 'node:child_process';
import {existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {InitdbBootstrap} from '#control/bootstrap.ts';
import {endOfCheckpointRecord} from '#pageserver/ingest/import.ts';
import {parseControlFile} from '#postgres/control-file.ts';
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import {makeCheckpointSegment} from '#postgres/wal/checkpoint-segment.ts';
import {segmentFileName, segmentNumber, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import type {Random} from '#runtime/random.ts';
import {TokenIssuer} from '#wire/auth.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';
import {type Pagoda, libpqEnvironment} from '../pagoda.ts';
import {postgresBinDir, runAs} from '../postgres-cluster.ts';

/** A compute is left alone for this long between two kills, give or take. */
const livesMs = 4000;
const oracleDir = join(import.meta.dirname, '../oracle');

export interface BranchTimeline {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly systemId: string;
}

/** Runs the load with `kills` kills of the compute, and suspends the endpoint. */
export async function runThroughEndpoint(pagoda: Pagoda, options: {kills: number; random: Random}): Promise<void> {
  const {kills, random} = options;
  const {endpointId, uri} = await pagoda.mainBranch();
  const client = (name: string, ...args: string[]): Promise<number | null> =>
    new Promise((resolve, reject) => {
      const child = spawn(join(postgresBinDir, name), args, {env: libpqEnvironment(uri), stdio: 'ignore'});
      child.once('error', reject);
      child.once('close', resolve);
    });
  const must = async (name: string, ...args: string[]): Promise<void> => {
    const code = await client(name, ...args);
    if (code !== 0) throw new Error(`${name} ${args.join(' ')} ended with ${code}`);
  };
  const admin = await pagoda.admin(endpointId, 'neondb');
  await admin.query('create extension if not exists bloom');
  await admin.end();
  await must('pgbench', '-i', '-q', '-s', '3');
  await must('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', join(oracleDir, 'mix-setup.sql'));
  let over = false;
  const loops = [
    ['-n', '-c', '4', '-T', '3600'],
    ['-n', '-c', '4', '-T', '3600', '--max-tries=100', '-f', join(oracleDir, 'mix.pgbench')],
  ].map(async (args) => {
    while (!over) {
      await client('pgbench', ...args); // ends with the compute
      await sleep(100);
    }
  });
  for (let kill = 0; kill < kills; kill++) {
    await sleep(livesMs / 2 + (random.uint32() % livesMs));
    const killed = killCompute(pagoda, endpointId);
    console.log(`-- compute killed (${killed} processes)`);
    if (kill % 3 === 1) await must('psql', '-X', '-q', '-c', 'vacuum busy', '-c', 'checkpoint').catch(() => {});
  }
  await sleep(livesMs);
  over = true;
  killCompute(pagoda, endpointId);
  await Promise.all(loops);
  // Once more alive: what it writes at its start is compared too.
  await pagoda.query('create table the_end as select count(*) from pgbench_history');
  await pagoda.suspend(endpointId);
}

/** kill -9 of agent, proposer and Postgres at once; answers how many processes that were. */
function killCompute(pagoda: Pagoda, endpointId: string): number {
  const directory = pagoda.computeDir(endpointId);
  const parents = new Map<number, number>();
  const compute = new Set<number>();
  for (const pid of pagoda.processes()) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      parents.set(pid, Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]));
      const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
      if (args.some((arg) => arg === directory || arg.startsWith(`${directory}/`))) compute.add(pid);
    } catch {
      // gone by itself
    }
  }
  for (let grew = true; grew;) {
    grew = false;
    for (const [pid, parent] of parents) if (compute.has(parent) && !compute.has(pid)) grew = compute.add(pid).size > 0;
  }
  for (const pid of compute) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // gone by itself
    }
  }
  return compute.size;
}

/** The only timeline of the installation. */
export async function findTimeline(pagoda: Pagoda): Promise<BranchTimeline> {
  const tenants = join(pagoda.dir, 'objects/tenants');
  const tenantId = readdirSync(tenants)[0]!;
  const timelineId = readdirSync(join(tenants, tenantId, 'timelines'))[0]!;
  const {systemId} = await pageserverStatus(pagoda, {tenantId, timelineId});
  return {tenantId, timelineId, systemId};
}

/** Until the pageserver has ingested everything below `lsn`. */
export async function ingested(pagoda: Pagoda, branch: BranchTimeline, target: Lsn): Promise<void> {
  for (;;) {
    const {lastRecordLsn, ingestError} = await pageserverStatus(pagoda, branch);
    if (ingestError !== undefined) throw new Error(`ingest has stopped: ${ingestError}`);
    if (parseLsn(lastRecordLsn) >= target) return;
    await sleep(100);
  }
}

async function pageserverStatus(
  pagoda: Pagoda,
  {tenantId, timelineId}: Omit<BranchTimeline, 'systemId'>,
): Promise<{systemId: string; ingestError?: string; lastRecordLsn: string}> {
  const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'control', systemClock);
  const token = await issuer.sign({aud: 'pageserver', scope: 'node'});
  const {pageserverHttp} = internalPorts(pagoda);
  const url = `http://127.0.0.1:${pageserverHttp}/v1/tenant/${tenantId}/timeline/${timelineId}`;
  const response = await fetch(url, {headers: {authorization: `Bearer ${token}`}});
  if (!response.ok) throw new Error(`${url}: ${response.status} ${await response.text()}`);
  return (await response.json()) as {systemId: string; ingestError?: string; lastRecordLsn: string};
}

function internalPorts(pagoda: Pagoda): {safekeeper: number; pageserverHttp: number} {
  const {internal} = pagoda.status.ports;
  return {safekeeper: internal + 1, pageserverHttp: internal + 8};
}

/** Unpacks the data directory that the branch began with; answers the LSN behind its shutdown checkpoint. */
export async function writeFirstDirectory(pagoda: Pagoda, systemId: string, directory: string): Promise<Lsn> {
  const config = JSON.parse(readFileSync(join(pagoda.dir, 'config/control.json'), 'utf8')) as {
    cacheDir: string;
    computes: {binDir: string; systemUser: string};
  };
  const template = readdirSync(config.cacheDir).find((name) => /^initdb-\d+\.\d+-v\d+$/.test(name));
  if (template === undefined) throw new Error(`${config.cacheDir} does not hold what the project was made from`);
  const {cacheDir, computes} = config;
  const {binDir, systemUser} = computes;
  const options = {cacheDir, binDir, systemUser, disk: systemDisk, random: noRandom, log: silentLog};
  const parts: Buffer[] = [];
  for await (const part of await new InitdbBootstrap(options).dataDirectory(systemId)) parts.push(Buffer.from(part));
  // What no import reads, a server wants to find: configuration, and directories that are empty.
  execFileSync('cp', ['-a', join(cacheDir, template), directory]);
  execFileSync('tar', ['-xf', '-', '-C', directory], {input: Buffer.concat(parts)});
  mkdirSync(join(directory, 'pg_wal/archive_status'), {recursive: true});
  const control = parseControlFile(readFileSync(join(directory, 'global/pg_control')));
  return endOfCheckpointRecord(control.checkPointLsn);
}

/** The template is there: nothing is drawn. */
const noRandom: Random = {
  bytes: () => {
    throw new Error('no template is made here');
  },
  uint32: () => 0,
  float: () => 0,
};

/**
 * The branch's committed WAL from `startLsn` on, as a safekeeper gives it, as segment files. The first one begins with the
 * shutdown checkpoint of the base, which is not part of the branch's WAL.
 */
export async function writeWal(
  pagoda: Pagoda,
  branch: BranchTimeline,
  options: {base: string; startLsn: Lsn; directory: string},
): Promise<Lsn> {
  const {base, startLsn, directory} = options;
  const issuer = await TokenIssuer.load(join(pagoda.dir, 'keys'), 'pageserver', systemClock);
  const token = await issuer.sign({aud: 'safekeeper', scope: 'node'});
  const parts: Buffer[] = [];
  let commitLsn = 0 as Lsn;
  let nextLsn: number = startLsn;
  await new Promise<void>((resolve, reject) => {
    let stream: WalStreamClient | undefined;
    const look = (): void => {
      if (commitLsn === 0 || nextLsn < commitLsn) return;
      stream?.close();
      resolve();
    };
    WalStreamClient.connect({
      address: {host: '127.0.0.1', port: internalPorts(pagoda).safekeeper},
      token,
      tenantId: branch.tenantId,
      timelineId: branch.timelineId,
      startLsn,
      onWal: (_, bytes, committed) => {
        parts.push(bytes);
        nextLsn += bytes.length;
        commitLsn = committed;
        look();
      },
      onKeepalive: (committed) => {
        commitLsn = committed;
        look();
      },
      onClose: (reason) => reject(reason ?? new Error('the stream was closed')),
    }).then((connected) => (stream = connected), reject);
  });

  const controlFile = parseControlFile(readFileSync(join(base, 'global/pg_control')));
  const {files} = makeCheckpointSegment({lsn: controlFile.checkPointLsn, controlFile});
  mkdirSync(directory, {recursive: true});
  const wal = Buffer.concat(parts);
  const first = segmentNumber(startLsn);
  const last = segmentNumber((commitLsn - 1) as Lsn);
  for (let segment = first; segment <= last; segment++) {
    const name = segmentFileName(1, segment);
    const bytes = files.find((file) => file.name === name)?.bytes ?? Buffer.alloc(walSegmentSizeDefault);
    const from = Math.max(startLsn, segment * walSegmentSizeDefault);
    const to = Math.min(commitLsn, (segment + 1) * walSegmentSizeDefault);
    wal.copy(bytes, from - segment * walSegmentSizeDefault, from - startLsn, to - startLsn);
    writeFileSync(join(directory, name), bytes);
  }
  for (const path of [base, directory])
    if (runAs.uid !== undefined && existsSync(path)) execFileSync('chown', ['-R', `${runAs.uid}:${runAs.gid}`, path]);
  execFileSync('chmod', ['0700', base]);
  return commitLsn;
}
