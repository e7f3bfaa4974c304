/** Safekeepers in this process on a folder of their own, with a broker and an object store that can be made to fail. */
import assert from 'node:assert/strict';
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {mkdtempSync, readdirSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {runBroker} from '#broker/server.ts';
import {FailingObjectStore} from '#objectstore/failing-object-store.ts';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import type {ObjectStore} from '#objectstore/object-store.ts';
import {RetryingObjectStore} from '#objectstore/retrying-object-store.ts';
import {WalArchive} from '#objectstore/wal-archive.ts';
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {WalWriter, mainDataBody} from '#postgres/wal/writer.ts';
import {type Clock, systemClock} from '#runtime/clock.ts';
import {type Disk, systemDisk} from '#runtime/disk.ts';
import {requestJson} from '#runtime/http.ts';
import {silentLog} from '#runtime/log.ts';
import {type FrameConnection, connectFrames, sendJson} from '#runtime/net.ts';
import {newId, systemRandom} from '#runtime/random.ts';
import type {SafekeeperConfig} from '#safekeeper/config.ts';
import {type RunningSafekeeper, runSafekeeper} from '#safekeeper/server.ts';
import {TokenIssuer, generateKeys} from '#wire/auth.ts';
import {
  type AcceptorMessage,
  type Member,
  type Membership,
  type ProposerMessage,
  type Refusal,
  decodeAcceptorMessage,
  encodeProposerMessage,
  frameHello,
  frameRefused,
  frameWelcome,
  parseRefusal,
} from '#wire/safekeeper.ts';
import {WalStreamClient} from '#wire/wal-stream.ts';

export const startLsn = 0x1_0100_2028 as Lsn;
export const mebibyte = 1024 * 1024;

export interface CellOptions {
  readonly config?: Partial<SafekeeperConfig>;
  readonly disk?: (nodeId: number) => Disk;
  readonly withBroker?: boolean;
  /** The safekeepers that are started, and members (default 1, 2, 3). */
  readonly nodes?: readonly number[];
  /** Each safekeeper is a process of its own; its object store is the folder, and stop() is kill -9. */
  readonly processes?: boolean;
  readonly dataDir?: (nodeId: number) => string;
  /** Instead of a folder. */
  readonly store?: ObjectStore;
}

export class Cell {
  readonly dir = mkdtempSync(join(tmpdir(), 'pagoda-sk-'));
  readonly tenantId = newId(systemRandom);
  timelineId = newId(systemRandom);
  readonly store: FailingObjectStore;
  readonly nodes = new Map<number, RunningSafekeeper>();
  readonly ports = new Map<number, {readonly port: number; readonly httpPort: number}>();
  readonly #options: CellOptions;
  #control: TokenIssuer | undefined;
  #pageserver: TokenIssuer | undefined;
  #broker: Awaited<ReturnType<typeof runBroker>> | undefined;

  static async create(options: CellOptions = {}): Promise<Cell> {
    const cell = new Cell(options);
    await generateKeys(join(cell.dir, 'keys'));
    cell.#control = await TokenIssuer.load(join(cell.dir, 'keys'), 'control', systemClock);
    cell.#pageserver = await TokenIssuer.load(join(cell.dir, 'keys'), 'pageserver', systemClock);
    if (options.withBroker !== false)
      cell.#broker = await runBroker({host: '127.0.0.1', port: 0, keysDir: join(cell.dir, 'keys')});
    for (const nodeId of options.nodes ?? [1, 2, 3]) await cell.start(nodeId);
    return cell;
  }

  private constructor(options: CellOptions) {
    this.#options = options;
    const root = join(this.dir, 'objects');
    this.store = new FailingObjectStore(
      options.store ?? new FolderObjectStore({root, disk: systemDisk, random: systemRandom, nowMs: Date.now()}),
    );
  }

  async start(nodeId: number): Promise<RunningSafekeeper> {
    const before = this.ports.get(nodeId);
    const config: SafekeeperConfig = {
      nodeId,
      dataDir: this.dataDir(nodeId),
      host: '127.0.0.1',
      port: before?.port ?? 0,
      httpPort: before?.httpPort ?? 0,
      keysDir: join(this.dir, 'keys'),
      ...(this.#broker === undefined ? {} : {broker: {host: '127.0.0.1', port: this.#broker.port}}),
      archive: {partialAfterMs: 1500, evictAfterMs: 3000, takeOverMs: 3000},
      ...this.#options.config,
    };
    if (this.#options.processes === true) {
      const child = await this.#spawn({...config, objectStore: {kind: 'folder', root: join(this.dir, 'objects')}});
      this.nodes.set(nodeId, child);
      this.ports.set(nodeId, {port: child.port, httpPort: child.httpPort});
      return child;
    }
    const node = await runSafekeeper(config, {
      log: process.env['VERBOSE'] ? verboseLog : silentLog,
      objectStore: new RetryingObjectStore(this.store, {
        clock: systemClock as Clock,
        random: systemRandom,
        triesMax: 3,
        firstDelayMs: 5,
      }),
      ...(this.#options.disk === undefined ? {} : {disk: this.#options.disk(nodeId)}),
      onDiskFailure: (error) => console.error(error),
    });
    this.nodes.set(nodeId, node);
    this.ports.set(nodeId, {port: node.port, httpPort: node.httpPort});
    return node;
  }

  async #spawn(config: SafekeeperConfig): Promise<RunningSafekeeper> {
    const path = join(this.dir, `safekeeper-${config.nodeId}.json`);
    writeFileSync(path, JSON.stringify(config), {mode: 0o600});
    const child = spawn(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', 'src/cli/main.ts', 'safekeeper', '--config', path],
      {stdio: ['ignore', 'pipe', process.env['VERBOSE'] ? 'inherit' : 'ignore']},
    );
    const exited = once(child, 'exit');
    const ready = await Promise.race([once(child.stdout, 'data'), exited.then(() => undefined)]);
    if (ready === undefined) throw new Error(`safekeeper ${config.nodeId} ended with ${child.exitCode}`);
    const {port, httpPort} = JSON.parse(String(ready[0])) as {port: number; httpPort: number};
    return {
      port,
      httpPort,
      async stop() {
        child.kill('SIGKILL');
        await exited;
      },
    };
  }

  async stop(nodeId: number): Promise<void> {
    await this.nodes.get(nodeId)?.stop();
    this.nodes.delete(nodeId);
  }

  dataDir(nodeId: number): string {
    return this.#options.dataDir?.(nodeId) ?? join(this.dir, `sk${nodeId}`);
  }

  /** Names of WAL files on a node's disk. */
  walFiles(nodeId: number): string[] {
    return readdirSync(join(this.dataDir(nodeId), this.tenantId, this.timelineId)).filter((name) =>
      /^[0-9A-F]{24}$/.test(name),
    );
  }

  get archive(): WalArchive {
    return new WalArchive({store: this.store, tenantId: this.tenantId, timelineId: this.timelineId});
  }

  member(nodeId: number): Member {
    return {nodeId, host: '127.0.0.1', port: this.ports.get(nodeId)!.port};
  }
  get membership(): Membership {
    return {
      generation: 1,
      members: (this.#options.nodes ?? [1, 2, 3]).map((nodeId) => this.member(nodeId)),
      newMembers: [],
    };
  }

  async token(): Promise<string> {
    return await this.#control!.sign({aud: 'safekeeper', scope: 'node'});
  }

  async http(
    nodeId: number,
    method: string,
    path: string,
    body?: unknown,
  ): Promise<{status: number; json: Record<string, unknown>}> {
    const call = {
      method,
      url: `http://127.0.0.1:${this.ports.get(nodeId)!.httpPort}/v1/tenant/${this.tenantId}/timeline${path}`,
      token: await this.token(),
      timeoutMs: 120_000,
      ...(body === undefined ? {} : {body}),
    };
    // A connection may have been kept from before a restart of the safekeeper.
    const {status, json} = await requestJson(call).catch(async () => await requestJson(call));
    return {status, json: json as Record<string, unknown>};
  }

  /** The next calls are about this one. */
  newTimeline(): string {
    return (this.timelineId = newId(systemRandom));
  }

  async createTimeline(nodeIds: readonly number[] = [1, 2, 3]): Promise<void> {
    for (const nodeId of nodeIds) {
      const {status, json} = await this.http(nodeId, 'POST', '', {
        timelineId: this.timelineId,
        startLsn: formatLsn(startLsn),
        members: this.membership.members,
        pgVersion: 15,
        systemId: '7',
      });
      assert.equal(status, 201, JSON.stringify(json));
    }
  }

  async status(nodeId: number): Promise<Record<string, unknown>> {
    return (await this.http(nodeId, 'GET', `/${this.timelineId}`)).json;
  }
  async lsn(nodeId: number, field: string): Promise<Lsn> {
    return parseLsn(String((await this.status(nodeId))[field]));
  }

  /** Connects as a pageserver and says that everything below `lsn` is uploaded; returns when that was heard. */
  async pageserverHas(nodeId: number, lsn: Lsn): Promise<void> {
    const stream = await WalStreamClient.connect({
      address: this.member(nodeId),
      token: await this.#pageserver!.sign({aud: 'safekeeper', scope: 'node'}),
      tenantId: this.tenantId,
      timelineId: this.timelineId,
      startLsn: lsn,
      onWal: () => {},
      onKeepalive: () => {},
      onClose: () => {},
    });
    stream.sendFeedback({lastReceivedLsn: lsn, diskConsistentLsn: lsn, remoteConsistentLsn: lsn});
    await until(async () => (await this.lsn(nodeId, 'remoteConsistentLsn')) >= lsn);
    stream.close();
  }

  /** All WAL from `fromLsn` to `endLsn` that a reader gets of a node. */
  async read(nodeId: number, fromLsn: Lsn, endLsn: Lsn): Promise<Buffer> {
    const parts: Buffer[] = [];
    let length = 0;
    const token = await this.token();
    return await new Promise<Buffer>((resolve, reject) => {
      let stream: WalStreamClient | undefined;
      let done = false;
      const finish = (): void => {
        done = true;
        stream?.close();
        resolve(Buffer.concat(parts).subarray(0, endLsn - fromLsn));
      };
      WalStreamClient.connect({
        address: this.member(nodeId),
        token,
        tenantId: this.tenantId,
        timelineId: this.timelineId,
        startLsn: fromLsn,
        onWal: (_lsn, bytes) => {
          parts.push(bytes);
          length += bytes.length;
          if (fromLsn + length >= endLsn) finish();
        },
        onKeepalive: () => {},
        onClose: (error) => error && reject(error),
      }).then((s) => {
        stream = s;
        if (done) s.close();
      }, reject);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const nodeId of this.nodes.keys()) await this.stop(nodeId);
    await this.#broker?.stop();
    rmSync(this.dir, {recursive: true, force: true, maxRetries: 10, retryDelay: 100}); // objects that are still put
  }
}

const verboseLog = {...silentLog};
for (const level of ['info', 'warn', 'error'] as const)
  verboseLog[level] = (message: string, fields?: Record<string, unknown>) => console.error(level, message, fields);
verboseLog.with = () => verboseLog;

/** Waits until `condition` holds. The deadline is for a machine that does much else beside. */
export async function until(condition: () => boolean | Promise<boolean>, timeoutMs = 240_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    if (await condition()) return;
    if (Date.now() > deadline) throw new Error(`did not happen within ${timeoutMs} ms: ${condition.toString()}`);
    await sleep(Math.min(50, 2 + (Date.now() - deadline + timeoutMs) / 4));
  }
}

/** WAL of records with the given payload sizes. */
export function makeWal(
  at: Lsn,
  payloads: readonly number[],
  previousLsn: Lsn = 0 as Lsn,
): {bytes: Buffer; endLsn: Lsn; previousLsn: Lsn} {
  const writer = new WalWriter({startLsn: at, systemId: 7n, previousLsn});
  payloads.forEach((length, i) =>
    writer.append({rmid: 0, info: 0x20, body: mainDataBody(Buffer.alloc(length, (at / 8 + i) % 251))}),
  );
  return {bytes: writer.take(), endLsn: writer.position, previousLsn: writer.previousLsn};
}

/** A proposer by hand: elected at the nodes it is connected to, and as slow as its caller. */
export class Writer {
  readonly #connections = new Map<number, FrameConnection>();
  readonly answers = new Map<number, AcceptorMessage[]>();
  /** What a safekeeper said before it closed the connection. */
  readonly refusals: ReadonlyMap<number, Refusal>;
  readonly term: number;
  readonly #generation: number;
  /** Up to where each node was written to. */
  readonly #written = new Map<number, Lsn>();
  /** A safekeeper lets go of a proposer that says nothing for half a minute; on a slow machine a test may take that long. */
  readonly #signOfLife = setInterval(() => {
    for (const [nodeId, beginLsn] of this.#written)
      this.#say([nodeId], {kind: 'append', beginLsn, commitLsn: 0 as Lsn, wantsReply: true, bytes: Buffer.alloc(0)});
  }, 5000).unref();
  lsn: Lsn;
  previousLsn: Lsn = 0 as Lsn;

  private constructor(term: number, lsn: Lsn, generation: number, refusals: ReadonlyMap<number, Refusal>) {
    this.refusals = refusals;
    this.term = term;
    this.lsn = lsn;
    this.#generation = generation;
  }

  static async elect(cell: Cell, nodeIds: readonly number[], generation = 1): Promise<Writer> {
    const connections = new Map<number, FrameConnection>();
    const answers = new Map<number, AcceptorMessage[]>();
    const refusals = new Map<number, Refusal>();
    const say = (nodeId: number, message: ProposerMessage): void => {
      const frame = encodeProposerMessage(message);
      connections.get(nodeId)!.send(frame.type, ...frame.parts);
    };
    const answer = async <K extends AcceptorMessage['kind']>(
      nodeId: number,
      kind: K,
    ): Promise<Extract<AcceptorMessage, {kind: K}>> => {
      await until(() => refusals.has(nodeId) || answers.get(nodeId)!.some((a) => a.kind === kind));
      if (refusals.has(nodeId)) throw new Error(`safekeeper ${nodeId} refused: ${refusals.get(nodeId)!.message}`);
      return answers.get(nodeId)!.findLast((a) => a.kind === kind) as Extract<AcceptorMessage, {kind: K}>;
    };
    let term = 0;
    for (const nodeId of nodeIds) {
      const connection = await connectFrames(cell.member(nodeId));
      connections.set(nodeId, connection);
      answers.set(nodeId, []);
      let welcome = false;
      connection.onFrame = (type, payload) => {
        if (type === frameWelcome) welcome = true;
        else if (type === frameRefused) refusals.set(nodeId, parseRefusal(payload));
        else answers.get(nodeId)!.push(decodeAcceptorMessage(type, payload));
      };
      sendJson(connection, frameHello, {
        token: await cell.token(),
        service: 'proposer',
        tenantId: cell.tenantId,
        timelineId: cell.timelineId,
      });
      await until(() => welcome || refusals.has(nodeId));
      say(nodeId, {
        kind: 'greeting',
        tenantId: cell.tenantId,
        timelineId: cell.timelineId,
        pgVersion: 150018,
        systemId: '7',
        generation,
      });
      term = Math.max(term, (await answer(nodeId, 'greeting-response')).term);
    }
    term++;
    let best: Extract<AcceptorMessage, {kind: 'vote-response'}> | undefined;
    for (const nodeId of nodeIds) {
      say(nodeId, {kind: 'vote-request', generation, term});
      const vote = await answer(nodeId, 'vote-response');
      assert.ok(vote.granted);
      const last = (v: typeof vote): number => v.history.at(-1)!.term;
      if (best === undefined || last(vote) > last(best) || (last(vote) === last(best) && vote.flushLsn > best.flushLsn))
        best = vote;
    }
    const writer = new Writer(term, best!.flushLsn, generation, refusals);
    const history = [...best!.history, {term, lsn: best!.flushLsn}];
    for (const nodeId of nodeIds) {
      writer.#connections.set(nodeId, connections.get(nodeId)!);
      writer.answers.set(nodeId, answers.get(nodeId)!);
      say(nodeId, {kind: 'elected', generation, term, history});
      assert.equal((await answer(nodeId, 'elected-response')).startLsn, best!.flushLsn);
      writer.#written.set(nodeId, best!.flushLsn);
    }
    return writer;
  }

  /** Appends records, and tells everybody that they are committed when all have them. */
  async write(
    payloads: readonly number[],
    options: {readonly commit?: boolean; readonly to?: readonly number[]} = {},
  ): Promise<Buffer> {
    const {bytes, endLsn, previousLsn} = makeWal(this.lsn, payloads, this.previousLsn);
    const beginLsn = this.lsn;
    const to = options.to ?? [...this.#connections.keys()];
    for (const nodeId of to) this.#written.delete(nodeId);
    for (let at = 0; at < bytes.length; at += mebibyte) {
      const part = bytes.subarray(at, at + mebibyte);
      this.#say(to, {
        kind: 'append',
        beginLsn: (beginLsn + at) as Lsn,
        commitLsn: 0 as Lsn,
        wantsReply: false,
        bytes: part,
      });
      await until(() => {
        for (const nodeId of to)
          if (this.refusals.has(nodeId))
            throw new Error(`safekeeper ${nodeId} refused: ${this.refusals.get(nodeId)!.message}`);
        return to.every((nodeId) => this.#synced(nodeId) >= beginLsn + at + part.length);
      });
    }
    this.lsn = endLsn;
    this.previousLsn = previousLsn;
    for (const nodeId of to) this.#written.set(nodeId, endLsn);
    if (options.commit !== false) {
      this.#say(to, {kind: 'append', beginLsn: endLsn, commitLsn: endLsn, wantsReply: true, bytes: Buffer.alloc(0)});
      await until(() => to.every((nodeId) => this.#last(nodeId)?.commitLsn === endLsn));
    }
    return bytes;
  }

  close(): void {
    clearInterval(this.#signOfLife);
    for (const connection of this.#connections.values()) connection.destroy();
  }

  #say(nodeIds: readonly number[], message: Record<string, unknown>): void {
    const frame = encodeProposerMessage({generation: this.#generation, term: this.term, ...message} as ProposerMessage);
    for (const nodeId of nodeIds) this.#connections.get(nodeId)!.send(frame.type, ...frame.parts);
  }
  #last(nodeId: number): Extract<AcceptorMessage, {kind: 'append-response'}> | undefined {
    return this.answers.get(nodeId)!.findLast((a) => a.kind === 'append-response');
  }
  /** Acknowledged by the node. */
  flushLsn(nodeId: number): number {
    return this.#last(nodeId)?.flushLsn ?? 0;
  }
  #synced(nodeId: number): number {
    return this.#last(nodeId)?.syncedLsn ?? 0;
  }
}
