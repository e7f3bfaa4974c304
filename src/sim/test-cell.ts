/**
 * For tests with real sockets: a broker and three safekeepers in this process, in a folder of their own. With `processes`, the
 * safekeepers are processes, and stopping one is kill -9.
 */
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {runBroker} from '#broker/server.ts';
import {type ProposerConfig} from '#proposer/config.ts';
import {ProposerDriver, type ProposerEvent} from '#proposer/driver.ts';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {newId, systemRandom} from '#runtime/random.ts';
import {executablePath, spawnProcess} from '#runtime/process.ts';
import type {SafekeeperConfig} from '#safekeeper/config.ts';
import {type RunningSafekeeper, runSafekeeper} from '#safekeeper/server.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import type {Member} from '#wire/safekeeper.ts';

interface Node {
  readonly nodeId: number;
  readonly running: RunningSafekeeper | undefined;
  readonly port: number;
  readonly httpPort: number;
}

export class TestCell {
  readonly dir: string;
  readonly tenantId = newId(systemRandom);
  readonly timelineId = newId(systemRandom);
  readonly issuer: TokenIssuer;
  readonly brokerPort: number;
  readonly #broker: {stop(): Promise<void>};
  readonly #nodes = new Map<number, Node>();
  readonly #processes: boolean;

  static async create(options: {readonly processes?: boolean} = {}): Promise<TestCell> {
    const dir = mkdtempSync(join(tmpdir(), 'pagoda-cell-'));
    await generateKeys(join(dir, 'keys'));
    const issuer = await TokenIssuer.load(join(dir, 'keys'), 'control', systemClock);
    const broker = await runBroker({host: '127.0.0.1', port: 0, keysDir: join(dir, 'keys')});
    const cell = new TestCell(dir, issuer, broker, options.processes ?? false);
    for (const nodeId of [1, 2, 3]) await cell.startSafekeeper(nodeId);
    return cell;
  }

  private constructor(
    dir: string,
    issuer: TokenIssuer,
    broker: {port: number; stop(): Promise<void>},
    processes: boolean,
  ) {
    this.#processes = processes;
    this.dir = dir;
    this.issuer = issuer;
    this.brokerPort = broker.port;
    this.#broker = broker;
  }

  get keysDir(): string {
    return join(this.dir, 'keys');
  }

  get members(): Member[] {
    return [...this.#nodes.values()].map(({nodeId, port}) => ({nodeId, host: '127.0.0.1', port}));
  }

  httpPort(nodeId: number): number {
    return this.#nodes.get(nodeId)!.httpPort;
  }

  async startSafekeeper(nodeId: number): Promise<void> {
    const before = this.#nodes.get(nodeId);
    const config: SafekeeperConfig = {
      nodeId,
      dataDir: join(this.dir, `sk${nodeId}`),
      host: '127.0.0.1',
      port: before?.port ?? 0,
      httpPort: before?.httpPort ?? 0,
      keysDir: this.keysDir,
      broker: {host: '127.0.0.1', port: this.brokerPort},
    };
    const running = this.#processes
      ? await this.#spawnSafekeeper(config)
      : await runSafekeeper(config, {log: silentLog});
    this.#nodes.set(nodeId, {nodeId, running, port: running.port, httpPort: running.httpPort});
  }

  async #spawnSafekeeper(config: SafekeeperConfig): Promise<RunningSafekeeper> {
    const path = join(this.dir, `safekeeper-${config.nodeId}.json`);
    writeFileSync(path, JSON.stringify(config), {mode: 0o600});
    const errors: string[] = [];
    let onReady = (_line: string): void => {};
    const ready = new Promise<string>((resolve) => (onReady = resolve));
    const child = await spawnProcess({
      command: executablePath,
      args: ['--disable-warning=ExperimentalWarning', 'src/cli/main.ts', 'safekeeper', '--config', path],
      onStdoutLine: (line) => onReady(line),
      onStderrLine: (line) => errors.push(line),
    });
    const dead = child.exited.then(({code}) =>
      Promise.reject(new Error(`safekeeper exited with ${code}: ${errors.slice(-5).join('\n')}`)),
    );
    const {port, httpPort} = JSON.parse(await Promise.race([ready, dead])) as {port: number; httpPort: number};
    dead.catch(() => {});
    return {
      port,
      httpPort,
      async stop() {
        child.kill('SIGKILL');
        await child.exited;
      },
    };
  }

  async stopSafekeeper(nodeId: number): Promise<void> {
    const node = this.#nodes.get(nodeId)!;
    await node.running?.stop();
    this.#nodes.set(nodeId, {...node, running: undefined});
  }

  async createTimeline(startLsn: string): Promise<void> {
    for (const {httpPort} of this.#nodes.values()) {
      const answer = await requestJson({
        method: 'POST',
        url: `http://127.0.0.1:${httpPort}/v1/tenant/${this.tenantId}/timeline`,
        token: await this.issuer.sign({aud: 'safekeeper', scope: 'node'}),
        body: {timelineId: this.timelineId, startLsn, members: this.members, pgVersion: 15},
      });
      if (answer.status !== 201) throw new Error(`create: ${answer.status} ${JSON.stringify(answer.json)}`);
    }
  }

  async status(nodeId: number): Promise<Record<string, unknown>> {
    for (let attempt = 0; ; attempt++) {
      try {
        const answer = await requestJson({
          method: 'GET',
          url: `http://127.0.0.1:${this.httpPort(nodeId)}/v1/tenant/${this.tenantId}/timeline/${this.timelineId}`,
          token: await this.issuer.sign({aud: 'safekeeper', scope: 'node'}),
        });
        if (answer.status !== 200) throw new Error(`status: ${answer.status} ${JSON.stringify(answer.json)}`);
        return answer.json as Record<string, unknown>;
      } catch (error) {
        // The connection was kept from before a restart of the safekeeper.
        if (attempt > 0 || !String(error).includes('hang up')) throw error;
      }
    }
  }

  async proposerConfig(): Promise<ProposerConfig> {
    return {
      tenantId: this.tenantId,
      timelineId: this.timelineId,
      systemId: '',
      pgVersion: 15,
      safekeepers: this.members,
      token: await this.issuer.sign({
        aud: 'safekeeper',
        scope: 'tenant',
        tenant: this.tenantId,
        timeline: this.timelineId,
      }),
    };
  }

  /** A proposer in this process; `events` grows. */
  async startProposer(): Promise<TestProposer> {
    return new TestProposer(await this.proposerConfig());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const nodeId of this.#nodes.keys()) await this.stopSafekeeper(nodeId);
    await this.#broker.stop();
    rmSync(this.dir, {recursive: true, force: true});
  }
}

export class TestProposer {
  readonly events: ProposerEvent[] = [];
  readonly driver: ProposerDriver;
  #wake: () => void = () => {};

  constructor(config: ProposerConfig) {
    this.driver = new ProposerDriver({
      config: {...config, pgVersion: 150000},
      clock: systemClock,
      random: systemRandom,
      disk: systemDisk,
      log: silentLog,
      onEvent: (event) => {
        this.events.push(event);
        this.#wake();
      },
    });
  }

  /** The first event of this kind, once it has come. */
  async event<K extends ProposerEvent['event']>(
    kind: K,
    timeoutMs = 240_000,
  ): Promise<Extract<ProposerEvent, {event: K}>> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const found = this.events.find((e) => e.event === kind);
      if (found) return found as Extract<ProposerEvent, {event: K}>;
      if (Date.now() > deadline)
        throw new Error(
          `no ${kind} within ${timeoutMs} ms; events: ${JSON.stringify(this.events)}, status ${JSON.stringify(this.driver.status())}`,
        );
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 50);
      });
    }
  }

  stop(): void {
    this.driver.stop();
  }

  [Symbol.dispose](): void {
    this.stop();
  }
}
