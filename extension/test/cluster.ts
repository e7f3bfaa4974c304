/** Real Postgres clusters for the tests of the extension: stock ones, and computes made from the files of a stopped one. */
import {type ChildProcess, spawn, spawnSync} from 'node:child_process';
import * as fs from 'node:fs';
import * as net from 'node:net';
import * as path from 'node:path';
import pg from 'pg';
import {type ExtensionMetrics, decodeExtensionMetrics} from '#wire/hydration.ts';
import {FakeAgent} from './fake-agent.ts';

export const binaries = process.env['PAGODA_PG_BIN'] ?? '/usr/lib/postgresql/15/bin';
const repository = path.resolve(import.meta.dirname, '../..');
const buildDirectory = process.env['PAGODA_EXTENSION_BUILD'] ?? path.join(repository, '.cache/extension-15');
export const library = path.join(buildDirectory, 'pagoda.so');
const root = process.env['PAGODA_TEST_DIR'] ?? '/tmp/pagoda-extension';

/** Postgres refuses root: everything of it runs as this user then. */
export const postgresUser =
  process.getuid?.() === 0
    ? {uid: Number(output('id', ['-u', 'postgres'])), gid: Number(output('id', ['-g', 'postgres']))}
    : undefined;

let serial = 0;
const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGQUIT');
});

export function buildExtension(): void {
  const make = spawnSync('make', ['-C', path.join(repository, 'extension'), `BUILD=${buildDirectory}`], {
    encoding: 'utf8',
  });
  if (make.status !== 0) throw new Error(`the extension does not compile:\n${make.stdout}\n${make.stderr}`);
}

export interface StartOptions {
  readonly settings?: Readonly<Record<string, string>>;
}

/** A data directory and, while it runs, its postmaster. */
export class Cluster {
  readonly directory: string;
  readonly port: number;
  #postmaster: ChildProcess | undefined;
  #exited: Promise<void> = Promise.resolve();

  constructor(directory: string, port: number) {
    this.directory = directory;
    this.port = port;
  }

  static async initialise(): Promise<Cluster> {
    const cluster = new Cluster(freshDirectory('stock'), await freePort());
    await run('initdb', ['-D', cluster.directory, '-U', 'postgres', '-A', 'trust', '-N', '-E', 'UTF8', '--locale=C']);
    return cluster;
  }

  get log(): string {
    return fs.readFileSync(`${this.directory}.log`, 'utf8');
  }

  async start(options: StartOptions = {}): Promise<void> {
    const settings: Record<string, string> = {
      listen_addresses: '127.0.0.1',
      port: String(this.port),
      unix_socket_directories: '',
      shared_buffers: '16MB',
      max_connections: '40',
      max_prepared_transactions: '10',
      autovacuum: 'off',
      fsync: 'off',
      ...options.settings,
    };
    const args = [
      '-D',
      this.directory,
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ];
    const log = fs.openSync(`${this.directory}.log`, 'a');
    const child = spawn(path.join(binaries, 'postgres'), args, {
      stdio: ['ignore', log, log],
      cwd: '/',
      ...postgresUser,
    });
    fs.closeSync(log);
    // A test that fails before it stops its servers must neither hang nor leave them behind.
    child.unref();
    running.add(child);
    child.once('exit', () => running.delete(child));
    this.#postmaster = child;
    this.#exited = new Promise((done) => child.once('exit', () => done()));
    await this.untilReady();
  }

  /** Waits until a connection works, or throws with the end of the log when the postmaster has gone. */
  async untilReady(timeoutMs = 120_000): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      try {
        await this.query('select 1');
        return;
      } catch (error) {
        const gone = this.#postmaster?.exitCode !== null;
        if (gone || Date.now() > deadline)
          throw new Error(
            `Postgres in ${this.directory} is not ready: ${(error as Error).message}\n${this.log.slice(-3000)}`,
          );
        await sleep(30);
      }
    }
  }

  /** kill -9 of a backend; resolves when the postmaster knows of it, so that `untilReady` waits for what comes after. */
  async killBackend(pid: number): Promise<void> {
    process.kill(pid, 'SIGKILL');
    while (!this.log.includes(`(PID ${pid}) was terminated by signal 9`)) await sleep(20);
  }

  /** CPU seconds of all processes of this server that have ended so far. */
  get cpuSeconds(): number {
    const fields = fs.readFileSync(`/proc/${this.#postmaster!.pid}/stat`, 'latin1').split(') ')[1]!.split(' ');
    return (Number(fields[13]) + Number(fields[14])) / 100;
  }

  /** Of a stopped cluster. */
  async copy(): Promise<Cluster> {
    const copy = new Cluster(freshDirectory('copy'), await freePort());
    fs.cpSync(this.directory, copy.directory, {recursive: true, verbatimSymlinks: true});
    own(copy.directory);
    return copy;
  }

  /** 'fast' is a graceful stop, 'immediate' like a crash. */
  async stop(mode: 'fast' | 'immediate' = 'fast'): Promise<void> {
    const child = this.#postmaster;
    if (child === undefined) return;
    this.#postmaster = undefined;
    child.ref();
    child.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT');
    await this.#exited;
  }

  /** Stops it and removes its files. */
  async discard(): Promise<void> {
    await this.stop('immediate');
    fs.rmSync(this.directory, {recursive: true, force: true});
    if (!process.env['PAGODA_KEEP_LOGS']) fs.rmSync(`${this.directory}.log`, {force: true});
  }

  get exited(): Promise<void> {
    return this.#exited;
  }

  async connect(database = 'postgres', more: pg.ClientConfig = {}): Promise<pg.Client> {
    const client = new pg.Client({host: '127.0.0.1', port: this.port, user: 'postgres', database, ...more});
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  /** Rows of the last statement as text, one string per row, columns joined by '|', as `psql -At` prints them. */
  async query(sql: string | readonly string[], database = 'postgres'): Promise<string[]> {
    const client = await this.connect(database);
    try {
      let last: string[] = [];
      for (const statement of typeof sql === 'string' ? [sql] : sql) last = await rows(client, statement);
      return last;
    } finally {
      await client.end();
    }
  }

  /** Relation files below the data directory, relative paths. */
  relationFiles(): string[] {
    return allFiles(this.directory).filter(isRelationFile);
  }
}

/** Rows of the last statement of `sql`. */
export async function rows(client: pg.Client, sql: string): Promise<string[]> {
  const result = (await client.query({
    text: sql,
    rowMode: 'array',
    types: {getTypeParser: () => (text: string) => text},
  })) as pg.QueryArrayResult | pg.QueryArrayResult[];
  const last = Array.isArray(result) ? result.at(-1)! : result;
  return last.rows.map((row) => row.map((value: unknown) => String(value ?? '')).join('|'));
}

/** A compute on a stopped cluster: all its files except relations, which a fake agent serves. */
export class Compute extends Cluster {
  readonly agent: FakeAgent;

  private constructor(directory: string, port: number, agent: FakeAgent) {
    super(directory, port);
    this.agent = agent;
  }

  static async on(base: Cluster): Promise<Compute> {
    const directory = freshDirectory('compute');
    for (const file of allFiles(base.directory)) {
      if (isRelationFile(file) || file === 'postmaster.opts') continue;
      fs.mkdirSync(path.dirname(path.join(directory, file)), {recursive: true});
      fs.copyFileSync(path.join(base.directory, file), path.join(directory, file));
    }
    for (const folder of allDirectories(base.directory))
      if (!folder.startsWith('pg_tblspc/')) fs.mkdirSync(path.join(directory, folder), {recursive: true});
    fs.chmodSync(directory, 0o700);
    own(directory);
    const agent = await FakeAgent.start(`${directory}.sock`, base.directory);
    fs.chmodSync(agent.path, 0o777);
    return new Compute(directory, await freePort(), agent);
  }

  override async start(options: StartOptions = {}): Promise<void> {
    await super.start({
      settings: {
        shared_preload_libraries: library,
        'pagoda.agent_socket': this.agent.path,
        full_page_writes: 'off',
        wal_keep_size: '4GB',
        max_wal_size: '4GB',
        restart_after_crash: 'off',
        ...options.settings,
      },
    });
  }

  /** The extension's counters so far. */
  get metrics(): ExtensionMetrics {
    const metrics = decodeExtensionMetrics(fs.readFileSync(`${this.directory}/pagoda_metrics`));
    if (!metrics) throw new Error('no metrics file');
    return metrics;
  }

  /**
   * What storage would have after this compute stopped: a stock Postgres with the base's files that replayed this compute's
   * WAL to its end. Running.
   */
  async recovered(base: Cluster, settings: Readonly<Record<string, string>> = {}): Promise<Cluster> {
    const copy = await base.copy();
    fs.writeFileSync(`${copy.directory}/recovery.signal`, '');
    await copy.start({
      settings: {
        restore_command: `cp ${this.directory}/pg_wal/%f %p`,
        recovery_target_action: 'promote',
        allow_in_place_tablespaces: 'on',
        ...settings,
      },
    });
    while ((await copy.query('select pg_is_in_recovery()'))[0] === 't') await sleep(50);
    return copy;
  }

  override async discard(): Promise<void> {
    await this.agent.close();
    await super.discard();
  }
}

export function runTool(name: string, args: readonly string[]): Promise<string> {
  return run(name, args);
}

export async function sleep(ms: number): Promise<void> {
  await new Promise((done) => setTimeout(done, ms));
}

/** base/<db>/<file>, global/<file>, pg_tblspc/<spc>/<version>/<db>/<file>: digits, a fork, a segment. */
export function isRelationFile(file: string): boolean {
  return /^(base\/\d+|global|pg_tblspc\/\d+\/[^/]+\/\d+)\/\d+(_fsm|_vm|_init)?(\.\d+)?$/.test(file);
}

export function allFiles(directory: string): string[] {
  return fs
    .readdirSync(directory, {recursive: true, withFileTypes: true})
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name)));
}

function allDirectories(directory: string): string[] {
  return fs
    .readdirSync(directory, {recursive: true, withFileTypes: true})
    .filter((entry) => entry.isDirectory())
    .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name)));
}

/** A folder outside any data directory, writable by Postgres. */
export function freshDirectory(name: string): string {
  fs.mkdirSync(root, {recursive: true});
  own(root);
  const directory = path.join(root, `${name}-${process.pid}-${++serial}`);
  fs.rmSync(directory, {recursive: true, force: true});
  fs.mkdirSync(directory, {mode: 0o700});
  own(directory);
  return directory;
}

function own(target: string): void {
  if (postgresUser) spawnSync('chown', ['-R', `${postgresUser.uid}:${postgresUser.gid}`, target]);
}

/** Never spawnSync: the fake agent answers in this process. */
function run(name: string, args: readonly string[]): Promise<string> {
  return new Promise((done, fail) => {
    const child = spawn(path.join(binaries, name), args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      cwd: '/',
      ...postgresUser,
    });
    const out: Buffer[] = [];
    const errors: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => errors.push(chunk));
    child.on('close', (code) => {
      if (code === 0) done(Buffer.concat(out).toString());
      else fail(new Error(`${name} failed:\n${Buffer.concat(errors).toString().slice(0, 3000)}`));
    });
  });
}

function output(command: string, args: readonly string[]): string {
  return spawnSync(command, args, {encoding: 'utf8'}).stdout.trim();
}

function freePort(): Promise<number> {
  return new Promise((done) => {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
      const {port} = server.address() as net.AddressInfo;
      server.close(() => done(port));
    });
  });
}
