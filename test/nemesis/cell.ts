/**
 * A whole Pagoda for the nemesis and the crash matrix: the roles and configurations of `pagoda up`, each a real process,
 * but composed here so that every link between two roles goes through a fault link, each safekeeper and the pageserver
 * has a network namespace of its own (as root; else all are on loopback), and each safekeeper a file system of its own.
 */
import {type ChildProcess, spawn} from 'node:child_process';
import {existsSync, mkdirSync, openSync, closeSync, readFileSync, readdirSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {setTimeout as sleep} from 'node:timers/promises';
import {Layout, internalPorts} from '#cli/layout.ts';
import {findProject, makeFirstProject, startProject} from '#cli/first-project.ts';
import {type RoleConfig, roleConfigs} from '#cli/role-configs.ts';
import {setUp} from '#cli/setup.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {changeMode, changeOwner} from '#runtime/permissions.ts';
import {requestJson} from '#runtime/http.ts';
import type {ObjectStoreConfig} from '#objectstore/open.ts';
import {SeededRandom} from '#runtime/random.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import {FaultProxy} from '../objectstore/fault-proxy.ts';
import {Rgw} from '../objectstore/rgw.ts';
import {callApi, freeBlock, queryOnce} from '../pagoda.ts';
import {processes, processesOf, signalAll} from '../processes.ts';
import {within} from '../within.ts';
import {FaultLink} from './fault-link.ts';
import {Isolation} from './isolation.ts';

const root = join(import.meta.dirname, '../..');
const main = join(root, 'src/cli/main.ts');
const restartMs = 250;
const readyMsMax = 60_000;

export const safekeeperNames = ['safekeeper-1', 'safekeeper-2', 'safekeeper-3'] as const;
export const spareName = 'safekeeper-4';

export interface CellOptions {
  readonly dir: string;
  readonly seed: number;
  /** Network namespaces and file systems of their own; needs root. */
  readonly isolated: boolean;
  /** Size of each safekeeper's file system. */
  readonly safekeeperDiskBytes?: number;
  readonly env?: Readonly<Record<string, string>>;
  /** Added to the configurations of the role. */
  readonly safekeeperConfig?: Readonly<Record<string, unknown>>;
  readonly pageserverConfig?: Readonly<Record<string, unknown>>;
  /** The object store is Ceph RGW behind a proxy that makes faults (`objectStore`); else a folder. */
  readonly s3?: boolean;
  /** A fourth safekeeper that the control plane does not know yet: `safekeeper-4`. */
  readonly spareSafekeeper?: boolean;
  readonly log: (line: string) => void;
}

interface Role extends RoleConfig {
  child: ChildProcess | undefined;
  ready: boolean;
  /** Not started again by itself. */
  held: boolean;
}

export class Cell {
  readonly dir: string;
  readonly layout: Layout;
  readonly links = new Map<string, FaultLink>();
  readonly #options: CellOptions;
  readonly #base: number;
  readonly #roles = new Map<string, Role>();
  /** Set when the cell was started with `s3`. */
  objectStore: FaultProxy | undefined;
  #rgw: Rgw | undefined;
  #isolation: Isolation | undefined;
  #databaseUrl = '';
  #projectId = '';
  #rivals = 0;
  #stopping = false;
  readonly #atExit = (): void => this.#clean();

  static async start(options: CellOptions): Promise<Cell> {
    const cell = new Cell(options, await freeBlock());
    process.once('exit', cell.#atExit);
    try {
      await cell.#start();
    } catch (error) {
      const tails = cell.logTails();
      await cell.close();
      throw new Error(`the cell does not start: ${(error as Error).message}\n${tails}`, {cause: error});
    }
    return cell;
  }

  private constructor(options: CellOptions, base: number) {
    this.#options = options;
    this.dir = options.dir;
    this.#base = base;
    this.layout = new Layout(options.dir);
  }

  get databaseUrl(): string {
    return this.#databaseUrl;
  }
  get projectId(): string {
    return this.#projectId;
  }
  /** Base URL of an HTTP link. */
  urlOf(link: string): string {
    return `http://${this.#gateway}:${this.links.get(link)!.port}`;
  }
  /** Where the other roles find a safekeeper: its fault links. */
  addressOf(safekeeper: string): {host: string; port: number; httpPort: number} {
    const port = (link: string): number => this.links.get(link)!.port;
    return {host: this.#gateway, port: port(safekeeper), httpPort: port(`${safekeeper}-http`)};
  }
  get roleNames(): string[] {
    return [...this.#roles.keys()];
  }

  pidOf(name: string): number {
    const pid = this.#role(name).child?.pid;
    if (pid === undefined) throw new Error(`${name} does not run`);
    return pid;
  }

  isReady(name: string): boolean {
    return this.#role(name).ready;
  }

  /** SIGKILL; it is started again by itself unless held. */
  kill(name: string): void {
    this.#role(name).child?.kill('SIGKILL');
  }

  /** Kills it and leaves it down until `release`. */
  async hold(name: string): Promise<void> {
    const role = this.#role(name);
    role.held = true;
    const {child} = role;
    if (child === undefined) return;
    const closed = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGKILL');
    await closed;
  }

  async release(name: string): Promise<void> {
    const role = this.#role(name);
    role.held = false;
    if (role.child === undefined) await this.#spawn(role);
  }

  signal(name: string, signal: 'SIGSTOP' | 'SIGCONT' | 'SIGTERM'): void {
    this.#role(name).child?.kill(signal);
  }

  /** Until every role serves. */
  async settled(msMax = 60_000): Promise<void> {
    const deadline = performance.now() + msMax;
    for (;;) {
      const missing = [...this.#roles.values()].filter((r) => !r.ready && !r.held).map((r) => r.name);
      if (missing.length === 0) return;
      if (performance.now() > deadline)
        throw new Error(`${missing.join(', ')} did not come back in ${msMax / 1000} s\n${this.logTails()}`);
      await sleep(50);
    }
  }

  /** The processes of the compute of an endpoint: agent, proposer, postmaster (its children follow it). */
  compute(endpointId: string): {agent?: number; proposer?: number; postgres?: number; backends: number[]} {
    const directory = join(this.layout.computes, endpointId);
    const all = processes();
    const inside = all.filter((p) => p.args.some((a) => a.startsWith(`${directory}/`)));
    const postgres = inside.find((p) => p.args[0]?.endsWith('/postgres'))?.pid;
    let agent = inside.find((p) => p.args.includes('compute'))?.pid;
    try {
      agent = (JSON.parse(readFileSync(join(directory, 'run.json'), 'utf8')) as {pid: number}).pid;
    } catch {
      // it has just been started
    }
    const proposer = all.find((p) => p.args.includes('proposer') && p.parent === agent)?.pid;
    return {
      ...(agent !== undefined && all.some((p) => p.pid === agent) ? {agent} : {}),
      ...(proposer === undefined ? {} : {proposer}),
      ...(postgres === undefined ? {} : {postgres}),
      backends: all.filter((p) => p.parent === postgres).map((p) => p.pid),
    };
  }

  /**
   * A second compute of the endpoint's branch, started past the control plane: it wins a newer term, and the first must end.
   * Resolves when it serves; `port` of its Postgres, `stop` kills it.
   */
  async rival(endpointId: string): Promise<{host: string; port: number; stop: () => void}> {
    const directory = join(this.layout.computes, `rival-${++this.#rivals}`);
    const config = JSON.parse(readFileSync(join(this.layout.computes, endpointId, 'config.json'), 'utf8')) as object;
    const dataDir = join(directory, 'data');
    mkdirSync(dataDir, {recursive: true});
    changeMode(directory, 0o711);
    changeOwner(dataDir, 'postgres');
    const file = join(directory, 'config.json');
    writeFileSync(file, JSON.stringify({...config, dataDir, pgPort: 0, httpPort: 0}), {mode: 0o600});
    const log = openSync(join(this.layout.logs, `rival-${this.#rivals}.log`), 'a');
    const child = spawn(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', main, 'compute', '--config', file],
      {
        stdio: ['ignore', 'pipe', log],
        cwd: root,
        env: {...process.env, ...this.#options.env},
      },
    );
    closeSync(log);
    const port = await new Promise<number>((resolve, reject) => {
      createInterface({input: child.stdout!}).on('line', (line) => {
        if (line.includes('"ready":true')) resolve((JSON.parse(line) as {pgPort: number}).pgPort);
      });
      child.once('close', () => reject(new Error('the rival compute ended before it served')));
    });
    return {host: join(dataDir, 'run'), port, stop: () => void child.kill('SIGKILL')};
  }

  api<T = Record<string, unknown>>(method: string, path: string, body?: unknown): Promise<T> {
    const apiKey = readFileSync(this.layout.apiKeyFile, 'utf8').trim();
    return callApi<T>({apiUrl: `http://127.0.0.1:${this.#base + 1}/api/v2`, apiKey}, method, path, body);
  }

  query(sql: string): Promise<Record<string, unknown>[]> {
    return queryOnce(this.#databaseUrl, sql);
  }

  /** Tries again until it succeeds: for questions after a fault. */
  async queryInTheEnd(sql: string, msMax = 120_000): Promise<Record<string, unknown>[]> {
    const deadline = performance.now() + msMax;
    for (;;) {
      try {
        return await this.query(sql);
      } catch (error) {
        if (performance.now() > deadline)
          throw new Error(`${sql}: ${(error as Error).message}\n${this.logTails()}`, {cause: error});
        await sleep(200);
      }
    }
  }

  async endpointId(): Promise<string> {
    const {endpoints} = await this.api<{endpoints: {id: string}[]}>('GET', `/projects/${this.#projectId}/endpoints`);
    return endpoints[0]!.id;
  }

  /** Every process of the cell ends; directories stay. */
  async stopAll(): Promise<void> {
    this.#stopping = true;
    await this.#killAll();
  }

  async startAll(): Promise<void> {
    this.#stopping = false;
    await this.#startRoles();
  }

  logTails(lines = 12): string {
    if (!existsSync(this.layout.logs)) return '';
    return readdirSync(this.layout.logs)
      .map((f) => `==> ${f}\n${readFileSync(join(this.layout.logs, f), 'utf8').split('\n').slice(-lines).join('\n')}`)
      .join('\n');
  }

  async close(): Promise<void> {
    this.#stopping = true;
    await this.#killAll();
    for (const link of this.links.values()) await link.close();
    await this.objectStore?.stop();
    await this.#rgw?.stop();
    this.#clean();
    process.removeListener('exit', this.#atExit);
  }

  /** What an operator's command asks the control plane. */
  async operate<T>(method: 'GET' | 'PUT' | 'POST', path: string, body?: unknown): Promise<T> {
    const url = `${this.urlOf('control')}/internal/v1${path}`;
    const token = await this.token('control');
    const request = {method, url, token, timeoutMs: 10_000, ...(body === undefined ? {} : {body})};
    const {status, json} = await requestJson(request);
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(json)}`);
    return json as T;
  }

  /** Folders whose processes are its own; the second is the object store's. */
  get folders(): readonly string[] {
    return [this.dir, ...(this.#rgw === undefined ? [] : [this.#rgw.dir])];
  }

  /** Namespaces and file systems; only with `isolated`. */
  get isolation(): Isolation {
    if (this.#isolation === undefined) throw new Error('this cell has one network and one file system');
    return this.#isolation;
  }

  /** A token of the control plane's for another role, or for itself. */
  async token(audience: 'safekeeper' | 'pageserver' | 'control'): Promise<string> {
    const issuer = await TokenIssuer.load(this.layout.keys, 'control', systemClock);
    return issuer.sign({aud: audience, scope: 'node'});
  }

  get #gateway(): string {
    return this.#isolation?.gateway ?? '127.0.0.1';
  }
  get #diskBytes(): number {
    return this.#options.safekeeperDiskBytes ?? 4 * 1024 * 1024 * 1024;
  }

  async #start(): Promise<void> {
    const {layout} = this;
    mkdirSync(this.dir, {recursive: true});
    changeMode(layout.data, 0o711);
    for (const folder of [layout.config, layout.logs, layout.keys, layout.computes, layout.cache, layout.objects])
      systemDisk.makeDirectory(folder);
    changeMode(layout.computes, 0o711);
    changeMode(layout.cache, 0o711);
    await generateKeys(layout.keys);
    if (!existsSync(layout.installKeyFile))
      writeFileSync(layout.installKeyFile, Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString('hex'), {
        mode: 0o600,
      });
    const installation = await setUp(systemDisk, this.#options.log);
    if (this.#options.isolated) this.#isolate();
    const ports = {proxy: this.#base, api: this.#base + 1, internal: this.#base + 10};
    const roles = roleConfigs({
      layout,
      ports,
      installation,
      listen: '127.0.0.1',
      withProxy: true,
      pageservers: 1,
      objectStore: await this.#openObjectStore(),
    });
    if (this.#options.spareSafekeeper) {
      const model = roles.find((r) => r.name === 'safekeeper-1')!;
      const [port, httpPort] = [this.#base + 38, this.#base + 39];
      const config = {...(model.config as object), nodeId: 4, port, httpPort, dataDir: layout.node(spareName)};
      roles.push({...model, name: spareName, config});
    }
    for (const role of await this.#throughLinks(roles, internalPorts(ports.internal))) {
      writeFileSync(layout.configFile(role.name), JSON.stringify(role.config, undefined, 2), {mode: 0o600});
      this.#roles.set(role.name, {...role, child: undefined, ready: false, held: false});
    }
    await this.#startRoles();
    await makeFirstProject(layout, ports, systemDisk, this.#options.log);
    await startProject(layout, ports, this.#options.log);
    const project = await findProject(layout, ports);
    if (project === undefined) throw new Error('there is no first project');
    this.#databaseUrl = project.connectionUri;
    this.#projectId = project.projectId;
  }

  #isolate(): void {
    const isolation = new Isolation(this.#base);
    this.#isolation = isolation;
    const safekeepers = [...safekeeperNames, ...(this.#options.spareSafekeeper ? [spareName] : [])];
    for (const name of [...safekeepers, 'pageserver']) isolation.addNode(name);
    for (const name of safekeepers)
      isolation.addDisk(name, join(this.dir, `${name}.ext4`), this.layout.node(name), this.#diskBytes);
  }

  async #openObjectStore(): Promise<ObjectStoreConfig> {
    if (!this.#options.s3) return {kind: 'folder', root: this.layout.objects};
    this.#rgw = await Rgw.start();
    this.objectStore = await FaultProxy.start(this.#rgw.endpoint, this.#gateway);
    return await this.#rgw.bucket(this.objectStore.endpoint);
  }

  async #startRoles(): Promise<void> {
    for (const phase of new Set([...this.#roles.values()].map((r) => r.phase)))
      await Promise.all([...this.#roles.values()].filter((r) => r.phase === phase).map((r) => this.#spawn(r)));
  }

  /** Every address by which one role reaches another becomes that of a fault link. */
  async #throughLinks(roles: readonly RoleConfig[], ports: ReturnType<typeof internalPorts>): Promise<RoleConfig[]> {
    const random = new SeededRandom(this.#options.seed);
    let next = this.#base + 12 + 10;
    const host = this.#gateway;
    const link = async (name: string, role: string, port: number): Promise<{host: string; port: number}> => {
      const made = await FaultLink.start({name, host, port: next++, target: {host: this.#hostOf(role), port}, random});
      this.links.set(name, made);
      return {host, port: made.port};
    };
    const broker = await link('broker', 'broker', ports.broker);
    const control = await link('control', 'control', ports.control);
    const pages = await link('pages', 'pageserver', ports.pageserver);
    const pageserverHttp = await link('pageserver-http', 'pageserver', ports.pageserverHttp);
    const safekeepers: {nodeId: number; host: string; port: number; httpPort: number}[] = [];
    for (const {name, config} of roles.filter((r) => r.role === 'safekeeper')) {
      const {nodeId, port, httpPort} = config as {nodeId: number; port: number; httpPort: number};
      const wal = await link(name, name, port);
      const management = await link(`${name}-http`, name, httpPort);
      safekeepers.push({nodeId, host, port: wal.port, httpPort: management.port});
    }
    const controlUrl = `http://${control.host}:${control.port}`;
    return roles.map((role) => {
      const config = {...(role.config as Record<string, unknown>)};
      if ('broker' in config) config['broker'] = broker;
      if ('controlUrl' in config) config['controlUrl'] = controlUrl;
      if (role.role === 'safekeeper') {
        Object.assign(config, this.#options.safekeeperConfig);
        config['host'] = this.#hostOf(role.name);
        config['advertiseHost'] = host;
        config['advertisePort'] = safekeepers.find((s) => s.nodeId === config['nodeId'])!.port;
      }
      if (role.role === 'pageserver') {
        Object.assign(config, this.#options.pageserverConfig);
        config['host'] = this.#hostOf(role.name);
      }
      if (role.role === 'control') {
        config['safekeepers'] = (config['safekeepers'] as {nodeId: number}[]).map((s) => ({
          ...s,
          ...safekeepers.find((linked) => linked.nodeId === s.nodeId),
        }));
        config['pageservers'] = (config['pageservers'] as object[]).map((p) => ({
          ...p,
          ...pages,
          httpPort: pageserverHttp.port,
        }));
      }
      return {...role, config};
    });
  }

  #hostOf(role: string): string {
    return this.#isolation?.addressOf(role) ?? '127.0.0.1';
  }

  async #spawn(role: Role): Promise<void> {
    const log = openSync(this.layout.logFile(role.name), 'a');
    const command = [
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      main,
      role.role,
      '--config',
      this.layout.configFile(role.name),
    ];
    const full = this.#isolation?.command(role.name, command) ?? command;
    const child = spawn(full[0]!, full.slice(1), {
      stdio: ['ignore', 'pipe', log],
      cwd: root,
      detached: true,
      env: {...process.env, ...this.#options.env},
    });
    closeSync(log);
    role.child = child;
    role.ready = false;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`${role.name} was not ready in ${readyMsMax / 1000} s`)),
        readyMsMax,
      );
      createInterface({input: child.stdout!}).on('line', (line) => {
        if (!line.includes('"ready":true')) return;
        clearTimeout(timer);
        role.ready = true;
        resolve();
      });
      child.once('close', (code, signal) => {
        clearTimeout(timer);
        role.ready = false;
        if (role.child === child) role.child = undefined;
        reject(new Error(`${role.name} ended (${signal ?? code})`));
        if (this.#stopping || role.held) return;
        setTimeout(() => {
          if (!this.#stopping && !role.held && role.child === undefined)
            this.#spawn(role).catch((error: unknown) => this.#options.log(String((error as Error).message)));
        }, restartMs);
      });
    });
  }

  #role(name: string): Role {
    const role = this.#roles.get(name);
    if (role === undefined) throw new Error(`there is no role ${name}`);
    return role;
  }

  /** Roles and computes, until none is left. */
  async #killAll(): Promise<void> {
    // A process that is going has no command line any more but still its ports: only its exit says that it is gone.
    const children = [...this.#roles.values()].flatMap((role) => role.child ?? []);
    const gone = Promise.all(
      children.map((child) =>
        child.exitCode === null && child.signalCode === null
          ? new Promise((resolve) => child.once('close', resolve))
          : Promise.resolve(),
      ),
    );
    for (let round = 0; round < 100; round++) {
      const left = processesOf(this.dir);
      if (left.length === 0) break;
      signalAll(
        left.map((p) => p.pid),
        'SIGKILL',
      );
      await sleep(50);
    }
    await within(gone, 10_000);
    for (const role of this.#roles.values()) role.child = undefined;
  }

  #clean(): void {
    this.#stopping = true;
    for (let round = 0; round < 20; round++) {
      const left = processesOf(this.dir);
      if (left.length === 0) break;
      signalAll(
        left.map((p) => p.pid),
        'SIGKILL',
      );
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
    }
    this.#isolation?.remove();
    this.#isolation = undefined;
  }
}
