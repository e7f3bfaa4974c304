/**
 * `npm run regress`: PostgreSQL's regression suite (and with --isolation the isolation suite) through an endpoint, test by
 * test against vanilla PostgreSQL with the same binaries, settings and role names. Then the endpoint is stopped, its
 * directory deleted, started again from storage: pg_dump of every database must say the same, with unlogged relations as
 * vanilla has them after a crash, and pg_amcheck nothing.
 *
 *   --isolation  that suite instead; --all  both        --keep  leaves the outputs        --verbose  each test as it ends
 */
import {execFileSync} from 'node:child_process';
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {Pagoda, clientConfig} from './pagoda.ts';
import {PostgresCluster, postgresBinDir} from './postgres-cluster.ts';
import {type Dump, compareDumps, dumpServer} from './suites/dump.ts';
import {type Server, type Suite, type SuiteResult, differences, runSuite} from './suites/pg-regress.ts';

const suites: Suite[] = process.argv.includes('--isolation')
  ? ['isolation']
  : process.argv.includes('--all')
    ? ['regress', 'isolation']
    : ['regress'];
const keep = process.argv.includes('--keep');
/** The same on both sides, so that outputs can be compared. */
const superuser = 'regress_super';
const settings = {
  max_prepared_transactions: '64',
  max_connections: '112',
  shared_buffers: '128MB',
  max_worker_processes: '16',
};

const work = mkdtempSync(join(tmpdir(), 'pagoda-regress-'));
execFileSync('chmod', ['755', work]);

async function vanilla(suite: Suite): Promise<{result: SuiteResult; crashed: Dump}> {
  await using cluster = await PostgresCluster.create({
    settings: {...settings, autovacuum: 'on'},
    initdbArgs: ['--locale=C.UTF-8', '--encoding=UTF8'],
    superuser: 'pagoda_admin',
  });
  await cluster.query(`create role ${superuser} superuser login password 'x'`);
  const result = await runSuite({
    suite,
    server: {host: '127.0.0.1', port: cluster.port, user: superuser},
    dir: join(work, `vanilla-${suite}`),
  });
  await cluster.kill();
  await cluster.stop();
  await cluster.start();
  return {result, crashed: dumpServer({host: '127.0.0.1', port: cluster.port, user: 'pagoda_admin'})};
}

async function throughEndpoint(suite: Suite, pagoda: Pagoda, endpointId: string): Promise<SuiteResult> {
  const admin = await pagoda.admin(endpointId);
  await admin.query(`alter role ${superuser} superuser`);
  await admin.end();
  const proxied = await superuserServer(pagoda);
  // The isolation tester asks Postgres about its sessions by the process ids it was told, and the proxy tells its own.
  const {options: _, ...direct} = {...proxied, port: pagoda.computeSocket(endpointId).port};
  const server = suite === 'isolation' ? direct : proxied;
  return await runSuite({
    suite,
    server,
    dir: join(work, `endpoint-${suite}`),
    ...(process.argv.includes('--verbose') ? {onLine: (line: string) => console.log(line)} : {}),
  });
}

async function superuserServer(pagoda: Pagoda): Promise<Server> {
  const {branchId} = await pagoda.mainBranch();
  const {projectId} = pagoda.status;
  const {password} = await pagoda.api<{password: string}>(
    'GET',
    `/projects/${projectId}/branches/${branchId}/roles/${superuser}/reveal_password`,
  );
  const c = clientConfig(pagoda.status.databaseUrl);
  return {
    host: '127.0.0.1',
    port: Number(c.port),
    user: superuser,
    password,
    ...(c.options === undefined ? {} : {options: c.options}),
  };
}

function dump(pagoda: Pagoda, endpointId: string): Dump {
  return dumpServer({...pagoda.computeSocket(endpointId), user: 'pagoda_admin'});
}

function amcheck(pagoda: Pagoda, endpointId: string): string {
  const {host, port} = pagoda.computeSocket(endpointId);
  const args = [
    '-h',
    host,
    '-p',
    String(port),
    '-U',
    'pagoda_admin',
    '--all',
    '--heapallindexed',
    '--parent-check',
    '--install-missing',
  ];
  try {
    execFileSync(join(postgresBinDir, 'pg_amcheck'), args, {maxBuffer: 1 << 28, encoding: 'utf8', stdio: 'pipe'});
    return '';
  } catch (error) {
    const e = error as {stdout: string; stderr: string};
    return e.stdout + e.stderr;
  }
}

let failed = false;
for (const suite of suites) {
  console.log(`${suite}: vanilla PostgreSQL …`);
  const {result: reference, crashed} = await vanilla(suite);
  console.log(
    `${suite}: ${reference.tests.length} tests, ${[...reference.ok.values()].filter(Boolean).length} as in the source package. Through an endpoint …`,
  );
  const pagoda = await Pagoda.start();
  try {
    const {branchId, endpointId} = await pagoda.mainBranch();
    const {projectId} = pagoda.status;
    await pagoda.api('POST', `/projects/${projectId}/branches/${branchId}/roles`, {role: {name: superuser}});
    await pagoda.settled();
    await pagoda.configure(endpointId, settings);
    await pagoda.resume(endpointId);
    const result = await throughEndpoint(suite, pagoda, endpointId);
    const differing = differences(reference, result);
    console.log(`${suite}: ${reference.tests.length - differing.length} of ${reference.tests.length} as vanilla`);
    for (const name of differing)
      console.log(`  differs: ${name} (${join(work, `{vanilla,endpoint}-${suite}/output/results/${name}.out`)})`);
    failed ||= differing.length > 0;
    const before = dump(pagoda, endpointId);
    await pagoda.suspend(endpointId);
    rmSync(join(pagoda.computeDir(endpointId), 'data'), {recursive: true, force: true});
    await pagoda.resume(endpointId);
    const after = dump(pagoda, endpointId);
    const {compared, different, unlogged} = compareDumps(before, after, crashed);
    console.log(
      `pg_dump of every database after a start from storage alone: ${compared} sections compared, ${compared - different.length} equal, ${different.length} different (${unlogged.length} of unlogged relations, as vanilla has them after a crash)`,
    );
    for (const key of different.slice(0, 20)) console.log(`  differs: ${key}`);
    for (const [name, {sections}] of Object.entries({before, after, crashed}))
      writeFileSync(join(work, `${suite}-${name}.sql`), [...sections.values()].join('\n'));
    const complaints = amcheck(pagoda, endpointId);
    console.log(
      `pg_amcheck --heapallindexed --parent-check on every database: ${complaints === '' ? 'clean' : `\n${complaints.slice(0, 4000)}`}`,
    );
    failed ||= different.length > 0 || complaints !== '';
    if (failed && keep) console.log(`kept: ${pagoda.dir} (logs in ${pagoda.status.logs})`);
  } catch (error) {
    console.log(pagoda.logTails(30));
    throw error;
  } finally {
    await pagoda[Symbol.asyncDispose]();
  }
}
console.log(failed ? `FAILED (outputs in ${work})` : 'all equal and clean');
if (!keep && !failed) rmSync(work, {recursive: true, force: true});
process.exitCode = failed ? 1 : 0;
