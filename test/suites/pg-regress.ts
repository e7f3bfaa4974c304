/** PostgreSQL's regression and isolation suites, run against any server; the outputs are compared between two servers. */
import {execFileSync, spawn} from 'node:child_process';
import {chmodSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync} from 'node:fs';
import {join} from 'node:path';
import {postgresBinDir, runAs} from '../postgres-cluster.ts';
import {postgresSource} from '../../scripts/postgres-source.ts';

const pgxs = '/usr/lib/postgresql/15/lib/pgxs/src/test';

export interface Server {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password?: string;
  /** Startup options, for example endpoint=ep-x. */
  readonly options?: string;
}

export interface SuiteResult {
  /** Tests in the order of the schedule. */
  readonly tests: readonly string[];
  /** What each test printed, byte for byte. */
  readonly outputs: ReadonlyMap<string, string>;
  /** pg_regress's own verdict, by test. */
  readonly ok: ReadonlyMap<string, boolean>;
}

export type Suite = 'regress' | 'isolation';

/** Compiles the C helpers of the suite (regress.so, refint.so, autoinc.so) against the installed headers. */
function buildLibraries(source: string, to: string): void {
  mkdirSync(to, {recursive: true});
  const includes = [
    '-I',
    execFileSync(join(postgresBinDir, 'pg_config'), ['--includedir-server'], {encoding: 'utf8'}).trim(),
  ];
  const compile = (file: string, name: string): void => {
    execFileSync('gcc', [
      '-shared',
      '-fPIC',
      '-O1',
      '-w',
      ...includes,
      '-o',
      join(to, `${name}.so`),
      join(source, file),
    ]);
  };
  compile('src/test/regress/regress.c', 'regress');
  compile('contrib/spi/refint.c', 'refint');
  compile('contrib/spi/autoinc.c', 'autoinc');
}

/** `dir` is emptied; results stay there. */
export async function runSuite(options: {
  suite: Suite;
  server: Server;
  dir: string;
  schedule?: readonly string[];
  onLine?: (line: string) => void;
}): Promise<SuiteResult> {
  const {suite, server, dir} = options;
  const source = postgresSource();
  const input = join(source, 'src/test', suite);
  rmSync(dir, {recursive: true, force: true});
  mkdirSync(dir, {recursive: true, mode: 0o755});
  // The server reads and writes files of the suite as its own user.
  cpSync(input, join(dir, 'input'), {recursive: true});
  if (suite === 'regress') buildLibraries(source, join(dir, 'lib'));
  mkdirSync(join(dir, 'output'));
  for (const d of ['results', 'testtablespace', 'sql', 'expected'])
    mkdirSync(join(dir, 'output', d), {recursive: true});
  chmodSync(dir, 0o755);
  if (runAs.uid !== undefined) execFileSync('chown', ['-R', `${runAs.uid}:${runAs.gid}`, dir]);
  const program = suite === 'regress' ? 'regress/pg_regress' : 'isolation/pg_isolation_regress';
  const tests = options.schedule
    ? [...options.schedule]
    : [`--schedule=${join(dir, 'input', suite === 'regress' ? 'parallel_schedule' : 'isolation_schedule')}`];
  const args = [
    `--inputdir=${join(dir, 'input')}`,
    `--outputdir=${join(dir, 'output')}`,
    `--bindir=${postgresBinDir}`,
    ...(suite === 'regress' ? [`--dlpath=${join(dir, 'lib')}`] : []),
    `--host=${server.host}`,
    `--port=${server.port}`,
    `--user=${server.user}`,
    '--max-concurrent-tests=20',
    ...tests,
  ];
  const env: Record<string, string | undefined> = {
    ...process.env,
    PGPASSWORD: server.password ?? '',
    PGSSLMODE: 'prefer',
  };
  if (server.options !== undefined) env['PGOPTIONS'] = server.options;
  const lines: string[] = [];
  await new Promise<void>((resolve, reject) => {
    const child = spawn(join(pgxs, program), args, {
      cwd: suite === 'isolation' ? join(pgxs, 'isolation') : join(dir, 'output'),
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...runAs,
    });
    let partial = ''; // a test's name and its verdict come in separate writes
    const take = (chunk: Buffer): void => {
      const pieces = (partial + chunk.toString()).split('\n');
      partial = pieces.pop()!;
      for (const line of pieces) {
        if (line.trim() === '') continue;
        lines.push(line);
        options.onLine?.(line);
      }
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    child.once('error', reject);
    child.once('close', () => resolve());
  });
  const outputs = new Map<string, string>();
  const ok = new Map<string, boolean>();
  for (const line of lines) {
    const m = /^(?:test\s+|\s+)(\S+)\s+\.\.\. (ok|FAILED|failed)/.exec(line);
    if (!m) continue;
    const file = join(dir, 'output/results', `${m[1]}.out`);
    ok.set(m[1]!, m[2] === 'ok');
    outputs.set(m[1]!, existsSync(file) ? readFileSync(file, 'utf8') : '');
  }
  if (ok.size === 0) throw new Error(`pg_regress ran no test:\n${lines.slice(-20).join('\n')}`);
  return {tests: [...ok.keys()], outputs, ok};
}

/** Names of the tests whose output is not what it is on the other server. */
export function differences(vanilla: SuiteResult, other: SuiteResult): string[] {
  return vanilla.tests.filter((t) => normalise(vanilla.outputs.get(t)!) !== normalise(other.outputs.get(t) ?? ''));
}

/** What differs between two runs of the same server: its own paths, random ports, process ids, and times. */
function normalise(text: string): string {
  return text
    .replaceAll(/\/tmp\/[\w./-]+?\/(input|output|lib)\b/g, '/DIR/$1')
    .replaceAll(/port \d{4,5}\b/g, 'port N')
    .replaceAll(/\b(process|PID|pid) \d+/g, '$1 N');
}
