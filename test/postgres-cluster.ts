/**
 * A throw-away stock PostgreSQL cluster for tests (*.pg.test.ts). Runs as user `postgres` when the test runs as root
 * (Postgres refuses root), listens on 127.0.0.1 and a unix socket only, on a free port, with trust authentication.
 *
 *   await using cluster = await PostgresCluster.create({settings: {wal_level: 'logical'}});
 *   await cluster.query('select 1 as one');            // [{one: 1}]
 *   await cluster.pgbench(['-i', '-s', '1']);
 *   await cluster.stop('fast');                        // cluster.dataDir is now a cleanly shut-down data directory
 *
 * The directory is removed at the end unless it was given as `dir`. PAGODA_PG_BIN names another installation.
 */
import {type ChildProcess, execFileSync, spawn} from 'node:child_process';
import {
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import {createServer} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import pg from 'pg';

export const postgresBinDir = process.env['PAGODA_PG_BIN'] ?? '/usr/lib/postgresql/15/bin';

export interface ClusterOptions {
  /** postgresql.conf settings, given on the command line at start, so they win over the file. */
  readonly settings?: Readonly<Record<string, string | number | boolean>>;
  readonly initdbArgs?: readonly string[];
  /** Name of the bootstrap superuser; default postgres. */
  readonly superuser?: string;
  /** Where data, socket and log live; kept afterwards. `${dir}/data` is initialised only when it holds no PG_VERSION. Default: a new temporary directory, removed at the end. */
  readonly dir?: string;
  /** Default true. */
  readonly start?: boolean;
}

export type StopMode = 'smart' | 'fast' | 'immediate';

const stopSignals = {smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT'} as const;

export class PostgresCluster {
  readonly dir: string;
  readonly dataDir: string;
  readonly socketDir: string;
  readonly superuser: string;
  readonly port: number;
  /** Changes take effect at the next start(). */
  settings: Record<string, string | number | boolean>;
  readonly #removeDir: boolean;
  #process: ChildProcess | undefined;
  #exited: Promise<void> = Promise.resolve();
  #client: pg.Client | undefined;

  private constructor(dir: string, port: number, options: ClusterOptions) {
    this.dir = dir;
    this.dataDir = join(dir, 'data');
    this.socketDir = dir;
    this.superuser = options.superuser ?? 'postgres';
    this.port = port;
    this.settings = {...options.settings};
    this.#removeDir = options.dir === undefined;
  }

  static async create(options: ClusterOptions = {}): Promise<PostgresCluster> {
    const dir = options.dir ?? mkdtempSync(join(tmpdir(), 'pagoda-pg-'));
    mkdirSync(dir, {recursive: true});
    if (runAs.uid !== undefined) chownSync(dir, runAs.uid, runAs.gid!);
    const cluster = new PostgresCluster(dir, await freePort(), options);
    if (!existsSync(join(cluster.dataDir, 'PG_VERSION'))) {
      runTool('initdb', [
        '-N',
        '-A',
        'trust',
        '-U',
        cluster.superuser,
        '--locale=C',
        '--encoding=UTF8',
        '-D',
        cluster.dataDir,
        ...(options.initdbArgs ?? []),
      ]);
    } else {
      cluster.takeOwnership();
    }
    if (options.start !== false) await cluster.start();
    return cluster;
  }

  get running(): boolean {
    return this.#process !== undefined;
  }

  /** What the server wrote to stderr so far. */
  get log(): string {
    return existsSync(join(this.dir, 'log')) ? readFileSync(join(this.dir, 'log'), 'utf8') : '';
  }

  connectionString(database = 'postgres'): string {
    return `postgres://${this.superuser}@127.0.0.1:${this.port}/${database}`;
  }

  /** Starts the server and waits until it answers. Throws with the end of its log when it does not. */
  async start(): Promise<void> {
    if (this.#process) throw new Error('cluster is already running');
    // An own pg_hba.conf: the data directory may come from a basebackup whose file is empty.
    const hba = join(this.dir, 'pg_hba.conf');
    writeFileSync(
      hba,
      'local all all trust\nhost all all 127.0.0.1/32 trust\nlocal replication all trust\nhost replication all 127.0.0.1/32 trust\n',
      {mode: 0o644},
    );
    const settings = {fsync: 'off', autovacuum: 'off', shared_buffers: '32MB', ...this.settings};
    const args = [
      '-D',
      this.dataDir,
      '-p',
      String(this.port),
      '-k',
      this.socketDir,
      '-h',
      '127.0.0.1',
      '-c',
      `hba_file=${hba}`,
    ];
    for (const [name, value] of Object.entries(settings)) args.push('-c', `${name}=${value}`);
    const logFile = openSync(join(this.dir, 'log'), 'a', 0o644);
    const child = spawn(join(postgresBinDir, 'postgres'), args, {stdio: ['ignore', logFile, logFile], ...runAs});
    closeSync(logFile);
    this.#process = child;
    const killAtExit = (): void => void child.kill('SIGQUIT');
    process.once('exit', killAtExit);
    this.#exited = new Promise((resolve) =>
      child.once('exit', () => {
        process.off('exit', killAtExit);
        if (this.#process === child) this.#process = undefined;
        resolve();
      }),
    );
    for (let attempt = 0; ; attempt++) {
      if (!this.running) throw new Error(`postgres did not start:\n${this.log.slice(-4000)}`);
      const client = this.#newClient('postgres');
      try {
        await client.connect();
        await client.end();
        return;
      } catch (error) {
        await client.end().catch(() => {});
        if (attempt > 600) {
          await this.stop('immediate');
          throw new Error(`postgres did not answer within 30 s:\n${this.log.slice(-4000)}`, {cause: error});
        }
      }
      await sleep(attempt < 20 ? 20 : 50);
    }
  }

  /** Stops the server and waits for its end; does nothing when it is not running. */
  async stop(mode: StopMode = 'fast'): Promise<void> {
    const client = this.#client;
    this.#client = undefined;
    await client?.end().catch(() => {});
    this.#process?.kill(stopSignals[mode]);
    await this.#exited;
  }

  /** Gives all files of the data directory to the server's user: call it after writing into the directory as root. */
  takeOwnership(): void {
    if (runAs.uid !== undefined) execFileSync('chown', ['-R', `${runAs.uid}:${runAs.gid}`, this.dataDir]);
    execFileSync('chmod', ['0700', this.dataDir]);
  }

  /** kill -9 of the postmaster (its children notice and go). */
  async kill(): Promise<void> {
    this.#client = undefined;
    this.#process?.kill('SIGKILL');
    await this.#exited;
  }

  /** A new connected client; the caller ends it. */
  async connect(database = 'postgres'): Promise<pg.Client> {
    const client = this.#newClient(database);
    await client.connect();
    return client;
  }

  /** Runs SQL in database postgres on one kept connection; of several statements (no params), answers the last one's rows. */
  async query(sql: string, params?: readonly unknown[]): Promise<Record<string, unknown>[]> {
    this.#client ??= await this.connect();
    const result: unknown = await this.#client.query(sql, params as unknown[] | undefined);
    const last = (Array.isArray(result) ? result.at(-1) : result) as pg.QueryResult<Record<string, unknown>>;
    return last.rows;
  }

  /** psql -X -q -v ON_ERROR_STOP=1 with the given arguments (for example '-d', 'postgres', '-Atc', 'select 1'); answers stdout, throws with stderr on failure. */
  psql(...args: readonly string[]): Promise<string> {
    return this.#runClient('psql', ['-X', '-q', '-v', 'ON_ERROR_STOP=1', ...args]);
  }

  /** pgbench against database postgres (or the one in args); answers stdout. */
  pgbench(args: readonly string[]): Promise<string> {
    return this.#runClient('pgbench', args);
  }

  /** Any other installed tool, as the cluster's user, with PGHOST, PGPORT, PGUSER, PGDATABASE and PGDATA set. */
  tool(name: string, args: readonly string[]): Promise<string> {
    return this.#runClient(name, args);
  }

  /** Stops at once and removes the directory unless it was given. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop('immediate');
    if (this.#removeDir) rmSync(this.dir, {recursive: true, force: true});
  }

  #newClient(database: string): pg.Client {
    const client = new pg.Client({host: '127.0.0.1', port: this.port, user: this.superuser, database});
    client.on('error', () => {}); // the server going away under an idle client is normal here
    return client;
  }

  #runClient(name: string, args: readonly string[]): Promise<string> {
    const env = {
      ...process.env,
      PGHOST: this.socketDir,
      PGPORT: String(this.port),
      PGUSER: this.superuser,
      PGDATABASE: 'postgres',
      PGDATA: this.dataDir,
    };
    return new Promise((resolve, reject) => {
      const child = spawn(join(postgresBinDir, name), args, {
        stdio: ['ignore', 'pipe', 'pipe'],
        env,
        cwd: this.dir,
        ...runAs,
      });
      const out: Buffer[] = [];
      const errors: Buffer[] = [];
      child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
      child.stderr.on('data', (chunk: Buffer) => errors.push(chunk));
      child.once('error', reject);
      child.once('close', (code) => {
        if (code === 0) resolve(Buffer.concat(out).toString());
        else
          reject(
            new Error(
              `${name} ${args.join(' ')} exited with ${code}: ${Buffer.concat(errors).toString().slice(-4000)}`,
            ),
          );
      });
    });
  }
}

/** spawn options that drop root to user postgres. */
export const runAs: {uid?: number; gid?: number} =
  process.getuid?.() === 0
    ? {
        uid: Number(execFileSync('id', ['-u', 'postgres']).toString()),
        gid: Number(execFileSync('id', ['-g', 'postgres']).toString()),
      }
    : {};

/** Runs one of the installation's tools to its end; answers stdout. */
export function runTool(name: string, args: readonly string[]): string {
  return execFileSync(join(postgresBinDir, name), args, {
    ...runAs,
    cwd: '/',
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: 1 << 30,
  }).toString();
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() =>
        typeof address === 'object' && address ? resolve(address.port) : reject(new Error('no port')),
      );
    });
  });
}
