/**
 * A whole Pagoda for tests and benchmarks: `pagoda up` on free ports in a directory of its own. Everything it started is
 * ended by pid when the test ends, also when it fails.
 */
import {type ChildProcess, execFile, spawn} from 'node:child_process';
import {chmodSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync} from 'node:fs';
import {createServer} from 'node:net';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import pg from 'pg';
import {processesOf, signalAll} from './processes.ts';
import {until} from './until.ts';

const root = join(import.meta.dirname, '..');
const main = join(root, 'src/cli/main.ts');
const run = promisify(execFile);

export interface Status {
  readonly apiUrl: string;
  readonly apiKey: string;
  readonly databaseUrl: string;
  readonly projectId: string;
  readonly data: string;
  readonly logs: string;
  readonly ports: {readonly proxy: number; readonly api: number; readonly internal: number};
  readonly roles: readonly {readonly name: string; readonly pid: number; readonly running: boolean}[];
}

export interface Branch {
  readonly branchId: string;
  readonly endpointId: string;
  readonly uri: string;
}

export class Pagoda {
  readonly dir: string;
  readonly #base: number;
  readonly #keep: boolean;
  readonly #upOptions: readonly string[];
  #supervisor: ChildProcess | undefined;
  #output = '';
  #status: Status | undefined;

  readonly #objectStore: string | undefined;

  private constructor(dir: string, base: number, keep: boolean, upOptions: readonly string[], objectStore?: string) {
    this.#upOptions = upOptions;
    this.#objectStore = objectStore;
    this.dir = dir;
    this.#base = base;
    this.#keep = keep;
    process.once('exit', () => this.killEverything());
  }

  /** Resolves when the banner has been printed. `objectStore`: as in PAGODA_OBJECT_STORE. */
  static async start(
    options: {dir?: string; upOptions?: readonly string[]; objectStore?: string | undefined} = {},
  ): Promise<Pagoda> {
    const dir = options.dir ?? mkdtempSync(join(tmpdir(), 'pagoda-'));
    chmodSync(dir, 0o711);
    const {upOptions = [], objectStore} = options;
    const pagoda = new Pagoda(dir, await freeBlock(), options.dir !== undefined, upOptions, objectStore);
    await pagoda.up();
    return pagoda;
  }

  get status(): Status {
    if (!this.#status) throw new Error('Pagoda does not run');
    return this.#status;
  }

  /** Starts it (again); answers the milliseconds to the banner. */
  async up(): Promise<number> {
    const started = performance.now();
    const base = this.#base;
    this.#output = '';
    const child = spawn(
      process.execPath,
      [
        main,
        'up',
        '--data',
        this.dir,
        '--port',
        String(base),
        '--api-port',
        String(base + 1),
        '--internal-port',
        String(base + 10),
        ...this.#upOptions,
      ],
      {
        stdio: ['ignore', 'pipe', 'pipe'],
        cwd: root,
        env: {
          ...process.env,
          ...(this.#objectStore === undefined ? {} : {PAGODA_OBJECT_STORE: this.#objectStore}),
        },
      },
    );
    this.#supervisor = child;
    child.stdout.on('data', (d: Buffer) => (this.#output += d.toString()));
    child.stderr.on('data', (d: Buffer) => (this.#output += d.toString()));
    const exited = new Promise<void>((resolve) => child.once('close', () => resolve()));
    for (;;) {
      if (/postgresql:\/\/\S+/.test(this.#output)) break;
      if (child.exitCode !== null || child.signalCode !== null) {
        await exited;
        throw new Error(`pagoda up ended:\n${this.#output}\n${this.logTails()}`);
      }
      if (performance.now() - started > 300_000) {
        this.killEverything();
        throw new Error(`pagoda up reached no banner in 5 minutes:\n${this.#output}\n${this.logTails()}`);
      }
      await sleep(10);
    }
    const ms = performance.now() - started;
    this.#status = JSON.parse(await this.cli('status', '-o', 'json')) as Status;
    return ms;
  }

  /** What `pagoda <args>` prints. */
  async cli(...args: readonly string[]): Promise<string> {
    const {stdout} = await run(process.execPath, [main, ...args, '--data', this.dir], {maxBuffer: 1 << 26});
    return stdout;
  }

  /** SIGTERM and an orderly stop. */
  async stop(): Promise<void> {
    const child = this.#supervisor;
    this.#supervisor = undefined;
    if (!child || child.exitCode !== null) return;
    const exited = new Promise<void>((resolve) => child.once('close', () => resolve()));
    child.kill('SIGTERM');
    await exited;
  }

  /** kill -9 of every process, in one go. */
  killEverything(): void {
    signalAll(this.processes(), 'SIGKILL');
    this.#supervisor = undefined;
  }

  /**
   * The same in the middle of work: looking for the pids stops this process for a while, and its clients must be busy again.
   * Safekeepers go first: commits that are on their way can then no longer finish in the milliseconds that the rest takes.
   */
  async crash(): Promise<void> {
    const safekeepers = new Set([1, 2, 3].map((n) => this.pidOf(`safekeeper-${n}`)));
    const pids = this.processes().toSorted((a, b) => Number(safekeepers.has(b)) - Number(safekeepers.has(a)));
    await sleep(100);
    await new Promise(setImmediate); // after the answers that had arrived were read, and the next statements sent
    signalAll(pids, 'SIGKILL');
    this.killEverything(); // what was started in between
  }

  /** Pids of all processes of this installation: those that name its directory, and all their descendants. */
  processes(): number[] {
    return processesOf(this.dir).map((p) => p.pid);
  }

  /** kill -9 of a role that runs: when it was killed just now, of the one that has been started in its place. */
  async kill(role: string): Promise<void> {
    await until(`${role} runs`, () => {
      process.kill(this.pidOf(role), 'SIGKILL');
      return true;
    });
  }

  pidOf(role: string): number {
    const path = join(this.dir, 'run', `${role}.pid`);
    return Number(readFileSync(path, 'utf8'));
  }

  /** One call of API v2. Throws with method, path and answer when the status is not 2xx. */
  api<T = Record<string, unknown>>(method: string, path: string, body?: unknown): Promise<T> {
    return callApi<T>(this.status, method, path, body);
  }

  /** Makes a branch with a read-write endpoint and waits until the operations are over. `parent` as in the API's body. */
  async branch(parent: Record<string, unknown> = {}, projectId = this.status.projectId): Promise<Branch> {
    const made = await this.api<{branch: {id: string}; endpoints: {id: string}[]}>(
      'POST',
      `/projects/${projectId}/branches`,
      {
        branch: parent,
        endpoints: [{type: 'read_write'}],
      },
    );
    await this.settled(projectId);
    const branchId = made.branch.id;
    return {branchId, endpointId: made.endpoints[0]!.id, uri: await this.uri(branchId, projectId)};
  }

  async uri(branchId: string, projectId = this.status.projectId): Promise<string> {
    const query = `branch_id=${branchId}&database_name=neondb&role_name=neondb_owner`;
    return (await this.api<{uri: string}>('GET', `/projects/${projectId}/connection_uri?${query}`)).uri;
  }

  /** Waits until no operation of the project runs; throws when one failed. */
  async settled(projectId = this.status.projectId): Promise<void> {
    for (;;) {
      const {operations} = await this.api<{operations: {action: string; status: string; error?: string}[]}>(
        'GET',
        `/projects/${projectId}/operations?limit=100`,
      );
      const bad = operations.find((o) => o.status === 'failed');
      if (bad) throw new Error(`operation ${bad.action} failed: ${bad.error}`);
      if (operations.every((o) => ['finished', 'skipped', 'cancelled'].includes(o.status))) return;
      await sleep(30);
    }
  }

  /** A session through the front door. */
  connect(uri = this.status.databaseUrl): Promise<pg.Client> {
    return connect(uri);
  }

  query(sql: string, uri = this.status.databaseUrl): Promise<Record<string, unknown>[]> {
    return queryOnce(uri, sql);
  }

  /** A superuser session on the compute's own socket. */
  async admin(endpointId: string, database = 'postgres'): Promise<pg.Client> {
    const client = new pg.Client({...this.computeSocket(endpointId), user: 'pagoda_admin', database});
    client.on('error', () => {});
    await client.connect();
    return client;
  }

  computeSocket(endpointId: string): {host: string; port: number} {
    const run = JSON.parse(readFileSync(join(this.computeDir(endpointId), 'run.json'), 'utf8')) as {pgPort: number};
    return {host: join(this.computeDir(endpointId), 'data/run'), port: run.pgPort};
  }

  computeDir(endpointId: string): string {
    return join(this.dir, 'computes', endpointId);
  }

  /** The agent's own HTTP. */
  async agent<T = Record<string, unknown>>(endpointId: string, path: string): Promise<T | string> {
    const run = JSON.parse(readFileSync(join(this.computeDir(endpointId), 'run.json'), 'utf8')) as {
      httpPort: number;
      httpToken: string;
    };
    const response = await fetch(`http://127.0.0.1:${run.httpPort}${path}`, {
      headers: {authorization: `Bearer ${run.httpToken}`},
    });
    return response.headers.get('content-type')?.includes('json') ? ((await response.json()) as T) : response.text();
  }

  async endpointOf(branchId: string, projectId = this.status.projectId): Promise<string> {
    const {endpoints} = await this.api<{endpoints: {id: string}[]}>(
      'GET',
      `/projects/${projectId}/branches/${branchId}/endpoints`,
    );
    return endpoints[0]!.id;
  }

  async mainBranch(projectId = this.status.projectId): Promise<Branch> {
    const {branches} = await this.api<{branches: {id: string; default: boolean}[]}>(
      'GET',
      `/projects/${projectId}/branches`,
    );
    const branchId = branches.find((b) => b.default)!.id;
    return {branchId, endpointId: await this.endpointOf(branchId, projectId), uri: await this.uri(branchId, projectId)};
  }

  async suspend(endpointId: string, projectId = this.status.projectId): Promise<void> {
    await this.api('POST', `/projects/${projectId}/endpoints/${endpointId}/suspend`);
    await this.settled(projectId);
  }

  /** postgresql.conf settings for the endpoint's next start; it is left suspended. */
  async configure(
    endpointId: string,
    settings: Record<string, string>,
    projectId = this.status.projectId,
  ): Promise<void> {
    await this.api('PATCH', `/projects/${projectId}/endpoints/${endpointId}`, {
      endpoint: {settings: {pg_settings: settings}},
    });
    await this.settled(projectId);
    await this.suspend(endpointId, projectId);
  }

  async resume(endpointId: string, projectId = this.status.projectId): Promise<void> {
    await this.api('POST', `/projects/${projectId}/endpoints/${endpointId}/start`);
    await this.settled(projectId);
  }

  /** The end of every log, for a failed test's message. */
  logTails(lines = 15): string {
    const logs = join(this.dir, 'logs');
    if (!existsSync(logs)) return '';
    return readdirSync(logs)
      .map((f) => `==> ${f}\n${readFileSync(join(logs, f), 'utf8').split('\n').slice(-lines).join('\n')}`)
      .join('\n');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.killEverything();
    await sleep(50);
    if (!this.#keep) rmSync(this.dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100});
  }
}

/** One call of API v2. Throws with method, path and answer when the status is not 2xx. */
export async function callApi<T>(
  api: {readonly apiUrl: string; readonly apiKey: string},
  method: string,
  path: string,
  body?: unknown,
): Promise<T> {
  const response = await fetch(api.apiUrl + path, {
    method,
    headers: {
      authorization: `Bearer ${api.apiKey}`,
      ...(body === undefined ? {} : {'content-type': 'application/json'}),
    },
    ...(body === undefined ? {} : {body: JSON.stringify(body)}),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
  return (text === '' ? {} : JSON.parse(text)) as T;
}

/** A session through the front door. */
export async function connect(uri: string): Promise<pg.Client> {
  const client = new pg.Client(clientConfig(uri));
  client.on('error', () => {});
  await client.connect();
  return client;
}

/** What the last statement answers, in a session of its own. */
export async function queryOnce(uri: string, sql: string): Promise<Record<string, unknown>[]> {
  const client = await connect(uri);
  try {
    const result: unknown = await client.query(sql);
    const last = (Array.isArray(result) ? result.at(-1) : result) as pg.QueryResult<Record<string, unknown>>;
    return last.rows;
  } finally {
    await client.end();
  }
}

/** Our certificate is self-signed; libpq's `require` does not verify either. */
export function clientConfig(uri: string): pg.ClientConfig {
  const url = new URL(uri);
  const config: pg.ClientConfig = {
    host: url.hostname === 'localhost' ? '127.0.0.1' : url.hostname,
    port: Number(url.port || 5432),
    user: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
    database: url.pathname.slice(1),
    connectionTimeoutMillis: 60_000,
  };
  const options = url.searchParams.get('options');
  if (options !== null) config.options = options;
  if (url.searchParams.get('sslmode') !== null && url.searchParams.get('sslmode') !== 'disable')
    config.ssl = {rejectUnauthorized: false};
  return config;
}

/** Environment for psql, pgbench, pg_dump: libpq's variables of a connection string. */
export function libpqEnvironment(uri: string): Record<string, string> {
  const c = clientConfig(uri);
  return {
    ...(process.env as Record<string, string>),
    PGHOST: String(c.host),
    PGPORT: String(c.port),
    PGUSER: String(c.user),
    PGPASSWORD: String(c.password),
    PGDATABASE: String(c.database),
    ...(c.options === undefined ? {} : {PGOPTIONS: c.options}),
    PGSSLMODE: c.ssl === undefined ? 'prefer' : 'require',
  };
}

const blockPorts = 40;
/** First ports of this process's: an installation that starts does not listen on all of its own yet. */
const blocksGiven: number[] = [];

/** First of 40 ports that are all free now, and are nobody else's of this process. */
export async function freeBlock(): Promise<number> {
  for (let attempt = 0; attempt < 100; attempt++) {
    const base = 20_000 + Math.floor(Math.random() * 10_000);
    if (blocksGiven.some((given) => Math.abs(given - base) < blockPorts)) continue;
    blocksGiven.push(base);
    const servers = Array.from({length: blockPorts}, () => createServer());
    const results = await Promise.all(
      servers.map(
        (server, i) =>
          new Promise<boolean>((resolve) => {
            server.once('error', () => resolve(false));
            server.listen(base + i, '127.0.0.1', () => resolve(true));
          }),
      ),
    );
    await Promise.all(
      servers.map(
        (server) => new Promise<void>((resolve) => (server.listening ? server.close(() => resolve()) : resolve())),
      ),
    );
    if (results.every(Boolean)) return base;
  }
  throw new Error(`no block of ${blockPorts} free ports`);
}
