/**
 * A simulated cell: three safekeepers with disks, a network, and computes that come and go. The production classes
 * (Acceptor, TimelineStorage with its WAL store and control file, Proposer, the wire codec) run inside; only sockets, disks
 * and clocks are simulated. One seed decides everything, also which kinds of faults there are.
 *
 * What is out of order here as in the world: a broken connection's messages may arrive late, a partition may go one way,
 * several proposers may be alive, a process may be frozen, a crash may come between any two effects of one step.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {Proposer, type ProposerInput, type ProposerMutation, type ProposerOutput} from '#proposer/proposer.ts';
import {crc32c} from '#runtime/crc.ts';
import {SeededRandom} from '#runtime/random.ts';
import {Acceptor, type AcceptorInput, type AcceptorMutation, type AcceptorOutput} from '#safekeeper/acceptor.ts';
import {TimelineStorage, initialState} from '#safekeeper/timeline-storage.ts';
import {segmentFileName} from '#postgres/wal/segment.ts';
import {Checker, Violation} from '#sim/checker.ts';
import {EventQueue} from '#sim/event-queue.ts';
import {type Faults, drawFaults} from '#sim/faults.ts';
import {SimDisk, type SimFile} from '#sim/sim-disk.ts';
import {SimRecordBoundary, makeRecord} from '#sim/sim-wal.ts';
import {
  type AcceptorMessage,
  type Membership,
  type ProposerMessage,
  decodeAcceptorMessage,
  decodeProposerMessage,
  encodeAcceptorMessage,
  encodeProposerMessage,
} from '#wire/safekeeper.ts';

const tenantId = 'a'.repeat(32);
const timelineId = 'b'.repeat(32);
const directory = `/${tenantId}/${timelineId}`;
const segmentSize = 4096;
/** In the middle of a segment. */
const timelineStartLsn = 0x1800 as Lsn;
const nodeIds = [1, 2, 3];
const silenceMs = 1500;
const reconnectMs = 100;
const livenessMs = 10_000;
const recoveryChunkBytes = 700;

export interface WorldOptions {
  readonly seed: number;
  readonly acceptorMutations?: ReadonlySet<AcceptorMutation>;
  readonly proposerMutations?: ReadonlySet<ProposerMutation>;
  /** Each event as a line. */
  readonly trace?: (line: string) => void;
}

export interface WorldResult {
  /** Undefined = all rules held. */
  readonly failure: string | undefined;
  /** Of everything that happened. */
  readonly hash: number;
  readonly events: number;
  readonly virtualMs: number;
  readonly elections: number;
  readonly commits: number;
  readonly crashes: number;
  readonly faults: Faults;
}

interface Connection {
  readonly id: number;
  readonly proposer: SimProposer;
  readonly node: SimNode;
  /** The node's life it belongs to. */
  readonly incarnation: number;
  openAtProposer: boolean;
  openAtNode: boolean;
  toNodeMs: number;
  toProposerMs: number;
  lastHeardMs: number;
  /** Given up by the proposer, but its bytes still arrive. */
  lateDelivery: boolean;
}

interface Recovery {
  readonly donor: SimNode;
  nextLsn: Lsn;
  paused: boolean;
  readonly term: number;
}

class SimNode {
  readonly id: number;
  readonly disk: SimDisk;
  storage: TimelineStorage | undefined;
  acceptor: Acceptor | undefined;
  readonly connections = new Map<number, Connection>();
  incarnation = 0;
  batchScheduled = false;

  constructor(id: number, disk: SimDisk) {
    this.id = id;
    this.disk = disk;
  }
}

class SimProposer {
  readonly id: number;
  readonly core: Proposer;
  readonly connections = new Map<number, Connection>();
  readonly recoveries = new Map<number, Recovery>();
  alive = true;
  frozenUntilMs = 0;
  /** The compute writes; set by `synced`. */
  synced = false;
  sourcePaused = false;
  /** Pieces of WAL on their way from the compute. */
  readonly pipe: Buffer[] = [];
  pipeLsn: Lsn = 0 as Lsn;
  records = 0;

  constructor(id: number, core: Proposer) {
    this.id = id;
    this.core = core;
  }
}

export class World {
  readonly #random: SeededRandom;
  readonly #queue = new EventQueue();
  readonly #faults: Faults;
  readonly #options: WorldOptions;
  readonly #membership: Membership = {
    generation: 1,
    members: nodeIds.map((nodeId) => ({nodeId, host: `sk${nodeId}`, port: 1})),
    newMembers: [],
  };
  readonly #nodes: SimNode[];
  readonly #proposers: SimProposer[] = [];
  readonly #checker: Checker;
  /** `p<id>>n<id>` and `n<id>>p<id>`. */
  readonly #blocked = new Set<string>();
  #connections = 0;
  #healed = false;
  /** Does not come back. */
  #lost: SimNode | undefined;
  #hash = 0;
  #elections = 0;
  #commits = 0;
  #crashes = 0;

  constructor(options: WorldOptions) {
    this.#options = options;
    this.#random = new SeededRandom(options.seed);
    this.#faults = drawFaults(this.#random);
    this.#nodes = nodeIds.map((id) => new SimNode(id, new SimDisk(this.#random)));
    this.#checker = new Checker(timelineStartLsn, nodeIds, (node, startLsn, endLsn) =>
      this.#durableWal(this.#nodes[node - 1]!, startLsn, endLsn),
    );
  }

  run(): WorldResult {
    let failure: string | undefined;
    try {
      this.#play();
    } catch (error) {
      // Also an assertion of the code under test is a finding.
      failure = error instanceof Violation ? error.message : `${(error as Error).name}: ${(error as Error).message}`;
      this.#note(`FAILED ${failure}`);
      if (this.#options.trace && !(error instanceof Violation)) this.#options.trace(String((error as Error).stack));
    }
    return {
      failure,
      hash: this.#hash,
      events: this.#queue.count,
      virtualMs: Math.round(this.#queue.nowMs),
      elections: this.#elections,
      commits: this.#commits,
      crashes: this.#crashes,
      faults: this.#faults,
    };
  }

  #play(): void {
    const f = this.#faults;
    for (const node of this.#nodes) {
      node.disk.makeDirectory(directory);
      TimelineStorage.create(
        {disk: node.disk, directory, segmentSize},
        initialState({
          tenantId,
          timelineId,
          systemId: '1',
          pgVersion: 150000,
          startLsn: timelineStartLsn,
          membership: this.#membership,
        }),
      );
      this.#startNode(node);
    }
    this.#startProposer();
    if (f.newProposerMs > 0) this.#repeat(f.newProposerMs, () => this.#newProposer());
    if (f.nodeCrashMs > 0) this.#repeat(f.nodeCrashMs, () => this.#crash(this.#pick(this.#nodes), 'random'));
    if (f.breakMs > 0) this.#repeat(f.breakMs, () => this.#breakSome());
    if (f.partitionMs > 0) this.#repeat(f.partitionMs, () => this.#partition());
    if (f.freezeMs > 0) this.#repeat(f.freezeMs, () => this.#freeze());
    if (f.diskFullMs > 0) this.#repeat(f.diskFullMs, () => this.#fillDisk());
    while (this.#queue.runNext(f.durationMs));
    this.#heal();
    this.#finish();
  }

  /** Faults off, one fresh proposer: it must commit something new, and all safekeepers must catch up. */
  #heal(): void {
    this.#note('HEAL');
    this.#healed = true;
    this.#blocked.clear();
    for (const p of this.#proposers) this.#killProposer(p);
    for (const node of this.#nodes) {
      node.disk.full = false;
      if (node.acceptor === undefined) this.#startNode(node);
    }
    const last = this.#startProposer();
    const deadline = this.#queue.nowMs + livenessMs;
    // In some runs one safekeeper is gone for good, at any moment of the last election: the others must do without it.
    const lost = this.#random.float() < 0.4 ? this.#pick(this.#nodes) : undefined;
    if (lost !== undefined)
      this.#queue.after(this.#random.float() * 8 * this.#faults.latencyMs, () => {
        this.#lost = lost;
        this.#crash(lost, 'lost');
      });
    const quiet = (): boolean =>
      last.records >= 5 &&
      last.core.commitLsn === last.core.endLsn &&
      this.#nodes.every(
        (node) =>
          node === lost ||
          (node.acceptor?.commitLsn === last.core.endLsn && node.acceptor.flushLsn === last.core.endLsn),
      );
    while (!quiet()) {
      if (!this.#queue.runNext(deadline))
        throw new Violation(
          `no progress within ${livenessMs} ms after all faults ended: proposer ${last.id} is ${last.core.phase} in term ${last.core.term}, committed ${formatLsn(last.core.commitLsn)} of ${formatLsn(last.core.endLsn)}; ${this.#nodes.map((n) => `safekeeper ${n.id} term ${n.acceptor?.term} flush ${formatLsn(n.acceptor?.flushLsn ?? timelineStartLsn)}`).join(', ')}`,
        );
    }
  }

  #finish(): void {
    const nodes = this.#nodes.filter((node) => node.acceptor !== undefined);
    const logs = nodes.map((node) => this.#wal(node, timelineStartLsn, node.acceptor!.flushLsn));
    nodes.forEach((node, i) =>
      this.#checker.log(node.id, node.acceptor!.state.history, node.acceptor!.flushLsn, logs[i]!),
    );
    if (!logs.every((log) => log.equals(logs[0]!)))
      throw new Violation('safekeepers that caught up have different WAL (5)');
  }

  // ---- safekeepers

  #startNode(node: SimNode): void {
    const boundary = new SimRecordBoundary();
    const storage = TimelineStorage.open({disk: node.disk, directory, segmentSize}, boundary);
    node.storage = storage;
    node.acceptor = new Acceptor({
      nodeId: node.id,
      state: storage.state,
      flushLsn: storage.flushLsn,
      boundary,
      ...(this.#options.acceptorMutations ? {mutations: this.#options.acceptorMutations} : {}),
    });
    node.batchScheduled = false;
    this.#note(`n${node.id} starts in term ${node.acceptor.term} with WAL up to ${formatLsn(storage.flushLsn)}`);
    this.#checker.restarted(node.id, node.acceptor.term, storage.flushLsn);
    this.#checker.log(
      node.id,
      storage.state.history,
      storage.flushLsn,
      this.#wal(node, timelineStartLsn, storage.flushLsn),
    );
  }

  #crash(node: SimNode, why: string): void {
    if (node.acceptor === undefined) return;
    this.#note(`n${node.id} crashes (${why})`);
    this.#crashes++;
    node.acceptor = undefined;
    node.storage = undefined;
    node.incarnation++;
    for (const c of node.connections.values()) {
      c.openAtNode = false;
      this.#queue.after(this.#random.float() * 20, () => this.#closeAtProposer(c));
    }
    node.connections.clear();
    // A killed process leaves the page cache behind; a later power cut may still take it.
    if (this.#random.float() < this.#faults.powerCut) node.disk.crash();
    const aimed = why !== 'random';
    this.#queue.after(aimed ? 1 + this.#random.float() * 50 : 10 + this.#random.float() * 1500, () => {
      if (node.acceptor === undefined && node !== this.#lost) this.#startNode(node);
    });
    if (aimed && !this.#healed && this.#random.float() < 0.5)
      this.#queue.after(this.#random.float() * 60, () => this.#newProposer());
  }

  #stepNode(node: SimNode, input: AcceptorInput): void {
    const {acceptor} = node;
    if (acceptor === undefined) return;
    const {commitLsn, flushLsn, state} = acceptor;
    const outputs = acceptor.step(input);
    acceptor.checkInvariants();
    for (const output of outputs) {
      if (!this.#healed && this.#random.float() < this.#faults.aimedCrash[output.kind]) {
        if (output.kind === 'save' && this.#random.float() < 0.3) {
          node.disk.cutNextReplacement = true;
          node.storage!.apply(output);
        }
        this.#crash(node, `before ${output.kind}`);
        return;
      }
      if (!this.#carryOutNode(node, acceptor, output, {commitLsn, flushLsn, history: state.history})) return;
    }
  }

  #carryOutNode(
    node: SimNode,
    acceptor: Acceptor,
    output: AcceptorOutput,
    before: {commitLsn: Lsn; flushLsn: Lsn; history: Acceptor['state']['history']},
  ): boolean {
    const storage = node.storage!;
    switch (output.kind) {
      case 'send': {
        const c = node.connections.get(output.connection);
        const {message} = output;
        this.#checker.said(
          node.id,
          message.term,
          message.kind === 'vote-response' || message.kind === 'append-response'
            ? message.flushLsn
            : message.kind === 'elected-response'
              ? message.startLsn
              : (0 as Lsn),
        );
        if (c !== undefined) this.#sendToProposer(c, message);
        return true;
      }
      case 'write':
        try {
          storage.apply(output);
          return true;
        } catch {
          this.#note(`n${node.id} disk full at ${formatLsn(output.lsn)}`);
          this.#stepNode(node, {kind: 'write-failed', message: 'disk full'});
          return false;
        }
      case 'truncate':
        this.#note(`n${node.id} truncates at ${formatLsn(output.lsn)}`);
        this.#checker.truncates(node.id, output.lsn, before.history, before.flushLsn);
        storage.apply(output);
        return true;
      case 'save':
        storage.apply(output);
        return true;
      case 'flush': {
        const {incarnation} = node;
        const finishes = (storage.beginSync() as readonly SimFile[]).map((file) => file.beginSync());
        const failing = !this.#healed && this.#random.float() < this.#faults.syncError;
        this.#queue.after(this.#faults.syncMs * (0.2 + this.#random.float() * 2), () => {
          if (node.incarnation !== incarnation) return;
          if (failing) {
            // Nobody knows what is on the disk now: the node stops.
            this.#crash(node, 'fsync failed');
            return;
          }
          for (const finish of finishes) finish();
          storage.endSync();
          this.#stepNode(node, {kind: 'flushed', epoch: output.epoch});
        });
        return true;
      }
      case 'commit':
        this.#checker.published(node.id, before.commitLsn, output.lsn, (startLsn, endLsn) =>
          this.#wal(node, startLsn, endLsn),
        );
        if (output.lsn > acceptor.flushLsn && this.#options.acceptorMutations === undefined)
          throw new Violation(`safekeeper ${node.id} commits beyond its WAL (8)`);
        return true;
      case 'refuse': {
        const c = node.connections.get(output.connection);
        this.#note(`n${node.id} refuses c${output.connection}: ${output.code} ${output.message}`);
        if (output.code === 'bad-history' || output.code === 'bad-wal')
          throw new Violation(`safekeeper ${node.id} refuses its proposer: ${output.message}`);
        if (c !== undefined) {
          this.#closeAtNode(c);
          this.#queue.after(this.#latency(), () => this.#closeAtProposer(c));
        }
        return true;
      }
    }
  }

  #wal(node: SimNode, startLsn: Lsn, endLsn: Lsn): Buffer {
    const parts: Buffer[] = [];
    for (let at: number = startLsn; at < endLsn;) {
      const bytes = node.storage!.wal.read(at as Lsn, endLsn - at);
      if (bytes.length === 0) break;
      parts.push(bytes);
      at += bytes.length;
    }
    return Buffer.concat(parts);
  }

  #durableWal(node: SimNode, startLsn: Lsn, endLsn: Lsn): Buffer {
    const parts: Buffer[] = [];
    for (let at: number = startLsn; at < endLsn;) {
      const count = Math.min(endLsn - at, segmentSize - (at % segmentSize));
      parts.push(
        node.disk.durableBytes(
          `${directory}/${segmentFileName(1, Math.floor(at / segmentSize), segmentSize)}`,
          at % segmentSize,
          count,
        ),
      );
      at += count;
    }
    return Buffer.concat(parts);
  }

  // ---- proposers and their computes

  #startProposer(): SimProposer {
    const core = new Proposer({
      tenantId,
      timelineId,
      pgVersion: 150000,
      systemId: '1',
      membership: this.#membership,
      ...(this.#options.proposerMutations ? {mutations: this.#options.proposerMutations} : {}),
    });
    const p = new SimProposer(this.#proposers.length + 1, core);
    this.#proposers.push(p);
    this.#note(`p${p.id} starts`);
    for (const node of this.#nodes) this.#connectLater(p, node, this.#random.float() * 5);
    this.#tickLater(p);
    return p;
  }

  #newProposer(): void {
    if (this.#healed) return;
    const living = this.#proposers.filter((p) => p.alive);
    // A second compute on the same branch is a fault of its own: mostly the old one is killed first.
    if (living.length >= 3 || this.#random.float() >= this.#faults.rivalProposer)
      for (const p of living) this.#killProposer(p);
    this.#startProposer();
  }

  #killProposer(p: SimProposer): void {
    if (!p.alive) return;
    this.#note(`p${p.id} is killed`);
    p.alive = false;
    for (const c of p.connections.values()) this.#abandon(c);
    p.connections.clear();
    p.recoveries.clear();
  }

  /** Events of a frozen process wait. */
  #whenAwake(p: SimProposer, run: () => void): void {
    if (!p.alive) return;
    if (p.frozenUntilMs > this.#queue.nowMs) this.#queue.at(p.frozenUntilMs, () => this.#whenAwake(p, run));
    else run();
  }

  #stepProposer(p: SimProposer, input: ProposerInput): void {
    if (!p.alive) return;
    for (const output of p.core.step(input)) {
      this.#carryOutProposer(p, output);
      if (!p.alive) return;
    }
  }

  #carryOutProposer(p: SimProposer, output: ProposerOutput): void {
    switch (output.kind) {
      case 'send': {
        const c = p.connections.get(output.peer);
        if (c !== undefined) this.#sendToNode(c, output.message);
        break;
      }
      case 'close': {
        const c = p.connections.get(output.peer);
        this.#note(`p${p.id} closes n${output.peer}: ${output.reason}`);
        if (c !== undefined) this.#breakConnection(c);
        break;
      }
      case 'elected':
        this.#elections++;
        this.#note(`p${p.id} wins term ${output.term} from ${formatLsn(output.termStartLsn)}`);
        this.#checker.elected(p.id, output.term, p.core.history, output.termStartLsn);
        break;
      case 'synced':
        p.synced = true;
        p.pipeLsn = output.lsn;
        this.#produceLater(p);
        break;
      case 'committed':
        this.#commits++;
        this.#note(`p${p.id} commits ${formatLsn(output.lsn)}`);
        this.#checker.committed(p.id, p.core.term, p.core.history, output.lsn);
        this.#queue.after(5, () => this.#whenAwake(p, () => this.#stepProposer(p, {kind: 'commit-due'})));
        break;
      case 'recover': {
        const recovery: Recovery = {
          donor: this.#nodes[output.donor - 1]!,
          nextLsn: output.startLsn,
          paused: false,
          term: output.term,
        };
        p.recoveries.set(output.peer, recovery);
        this.#readDonor(p, output.peer, recovery);
        break;
      }
      case 'pause-recovery':
        p.recoveries.get(output.peer)!.paused = true;
        break;
      case 'resume-recovery': {
        const recovery = p.recoveries.get(output.peer)!;
        recovery.paused = false;
        this.#readDonor(p, output.peer, recovery);
        break;
      }
      case 'stop-recovery':
        p.recoveries.delete(output.peer);
        break;
      case 'pause-source':
        p.sourcePaused = true;
        break;
      case 'resume-source':
        p.sourcePaused = false;
        break;
      case 'fenced':
        this.#note(`p${p.id} is fenced by term ${output.term}`);
        this.#killProposer(p);
        break;
    }
  }

  #readDonor(p: SimProposer, peer: number, recovery: Recovery): void {
    this.#queue.after(this.#latency() * 2, () =>
      this.#whenAwake(p, () => {
        if (p.recoveries.get(peer) !== recovery || recovery.paused) return;
        const {donor} = recovery;
        const reachable = !this.#blocked.has(`p${p.id}>n${donor.id}`) && !this.#blocked.has(`n${donor.id}>p${p.id}`);
        if (
          donor.acceptor === undefined ||
          !reachable ||
          !donor.acceptor.servesRecovery(recovery.term) ||
          donor.acceptor.flushLsn <= recovery.nextLsn
        ) {
          p.recoveries.delete(peer);
          this.#stepProposer(p, {kind: 'recovery-ended', peer});
          return;
        }
        const lsn = recovery.nextLsn;
        const bytes = donor.storage!.wal.read(lsn, Math.min(recoveryChunkBytes, donor.acceptor.flushLsn - lsn));
        recovery.nextLsn = (lsn + bytes.length) as Lsn;
        this.#readDonor(p, peer, recovery);
        this.#stepProposer(p, {kind: 'recovered', peer, lsn, bytes});
      }),
    );
  }

  #tickLater(p: SimProposer): void {
    this.#queue.after(150, () =>
      this.#whenAwake(p, () => {
        this.#stepProposer(p, {kind: 'tick', nowMs: this.#queue.nowMs, random: this.#random.float()});
        for (const c of p.connections.values())
          if (this.#queue.nowMs - c.lastHeardMs > silenceMs) this.#breakConnection(c);
        this.#tickLater(p);
      }),
    );
  }

  #produceLater(p: SimProposer): void {
    this.#queue.after(this.#random.float() * 2 * this.#faults.recordMs, () =>
      this.#whenAwake(p, () => {
        this.#produceLater(p);
        if (p.sourcePaused || (this.#healed && p.records >= 5)) return;
        const big = this.#random.float() < 0.05;
        const record = makeRecord(
          p.core.term,
          p.records++,
          Math.floor(this.#random.float() * (big ? 2000 : 150)),
          this.#random,
        );
        this.#checker.logs.append(p.core.term, record);
        // Postgres cuts its stream anywhere.
        const cut = this.#random.float() < 0.3 ? Math.floor(this.#random.float() * record.length) : 0;
        for (const piece of [record.subarray(0, cut), record.subarray(cut)]) {
          if (piece.length === 0) continue;
          p.pipe.push(piece);
          this.#queue.after(this.#random.float() * 3, () => this.#whenAwake(p, () => this.#stream(p)));
        }
      }),
    );
  }

  #stream(p: SimProposer): void {
    const bytes = p.pipe.shift()!;
    const lsn = p.pipeLsn;
    p.pipeLsn = (lsn + bytes.length) as Lsn;
    this.#stepProposer(p, {kind: 'wal', lsn, bytes});
  }

  // ---- network

  #connectLater(p: SimProposer, node: SimNode, delayMs: number): void {
    this.#queue.after(delayMs, () =>
      this.#whenAwake(p, () => {
        if (p.connections.has(node.id)) return;
        const blocked = this.#blocked.has(`p${p.id}>n${node.id}`) || this.#blocked.has(`n${node.id}>p${p.id}`);
        if (node.acceptor === undefined || blocked) {
          this.#connectLater(p, node, reconnectMs);
          return;
        }
        const c: Connection = {
          id: ++this.#connections,
          proposer: p,
          node,
          incarnation: node.incarnation,
          openAtProposer: true,
          openAtNode: true,
          toNodeMs: 0,
          toProposerMs: 0,
          lastHeardMs: this.#queue.nowMs,
          lateDelivery: false,
        };
        p.connections.set(node.id, c);
        node.connections.set(c.id, c);
        this.#stepProposer(p, {kind: 'connected', peer: node.id});
      }),
    );
  }

  #sendToNode(c: Connection, message: ProposerMessage): void {
    const frame = encodeProposerMessage(message);
    const payload = Buffer.concat(frame.parts);
    const key = `p${c.proposer.id}>n${c.node.id}`;
    const deliver = (): void => {
      if (c.node.incarnation !== c.incarnation || c.node.acceptor === undefined) return;
      if (this.#blocked.has(key)) {
        // TCP sends again, in order, until the partition ends.
        c.toNodeMs = Math.max(c.toNodeMs, this.#queue.nowMs + 20);
        this.#queue.at(c.toNodeMs, deliver);
        return;
      }
      // A connection that the proposer has given up may still hold bytes for the safekeeper.
      if (!c.openAtNode || (!c.openAtProposer && !c.lateDelivery)) return;
      const decoded = decodeProposerMessage(frame.type, payload);
      this.#note(`n${c.node.id} <- p${c.proposer.id} c${c.id} ${describe(decoded)}`);
      this.#stepNode(c.node, {kind: 'message', connection: c.id, message: decoded});
      if (decoded.kind === 'append') this.#batchEndLater(c.node);
    };
    c.toNodeMs = Math.max(c.toNodeMs, this.#queue.nowMs + this.#latency());
    this.#queue.at(c.toNodeMs, deliver);
  }

  #batchEndLater(node: SimNode): void {
    if (node.batchScheduled || node.acceptor === undefined) return;
    node.batchScheduled = true;
    const {incarnation} = node;
    this.#queue.after(this.#random.float() * 0.5, () => {
      if (node.incarnation !== incarnation) return;
      node.batchScheduled = false;
      this.#stepNode(node, {kind: 'batch-end'});
    });
  }

  #sendToProposer(c: Connection, message: AcceptorMessage): void {
    const frame = encodeAcceptorMessage(message);
    const payload = Buffer.concat(frame.parts);
    const key = `n${c.node.id}>p${c.proposer.id}`;
    const deliver = (): void => {
      if (this.#blocked.has(key)) {
        c.toProposerMs = Math.max(c.toProposerMs, this.#queue.nowMs + 20);
        this.#queue.at(c.toProposerMs, deliver);
        return;
      }
      this.#whenAwake(c.proposer, () => {
        if (!c.openAtProposer) return;
        c.lastHeardMs = this.#queue.nowMs;
        const decoded = decodeAcceptorMessage(frame.type, payload);
        this.#note(`p${c.proposer.id} <- n${c.node.id} c${c.id} ${describe(decoded)}`);
        const deposed = c.proposer.core.phase === 'elected' && decoded.term > c.proposer.core.term;
        this.#stepProposer(c.proposer, {kind: 'message', peer: c.node.id, message: decoded});
        if (deposed && c.proposer.alive)
          throw new Violation(
            `proposer ${c.proposer.id} of term ${c.proposer.core.term} has heard of term ${decoded.term} and goes on (12)`,
          );
      });
    };
    c.toProposerMs = Math.max(c.toProposerMs, this.#queue.nowMs + this.#latency());
    this.#queue.at(c.toProposerMs, deliver);
  }

  /** The proposer's end is gone; the safekeeper notices later, and may get what was on its way. */
  #abandon(c: Connection): void {
    c.openAtProposer = false;
    c.lateDelivery = this.#random.float() < this.#faults.lateDelivery;
    if (c.lateDelivery) c.toNodeMs += this.#random.float() * 300;
    this.#queue.after(this.#random.float() * (c.lateDelivery ? 1000 : 50), () => this.#closeAtNode(c));
  }

  #breakConnection(c: Connection): void {
    if (!c.openAtProposer) return;
    this.#abandon(c);
    this.#forget(c);
  }

  #closeAtProposer(c: Connection): void {
    if (!c.openAtProposer) return;
    c.openAtProposer = false;
    this.#forget(c);
  }

  #forget(c: Connection): void {
    const p = c.proposer;
    p.connections.delete(c.node.id);
    this.#whenAwake(p, () => this.#stepProposer(p, {kind: 'disconnected', peer: c.node.id}));
    this.#connectLater(p, c.node, reconnectMs);
  }

  #closeAtNode(c: Connection): void {
    if (!c.openAtNode) return;
    c.openAtNode = false;
    if (c.node.incarnation !== c.incarnation) return;
    c.node.connections.delete(c.id);
    this.#stepNode(c.node, {kind: 'disconnected', connection: c.id});
  }

  #latency(): number {
    const {latencyMs, slowMessage} = this.#faults;
    const slow = !this.#healed && this.#random.float() < slowMessage;
    return latencyMs * (0.3 + this.#random.float()) * (slow ? 30 : 1);
  }

  // ---- faults

  #repeat(meanMs: number, run: () => void): void {
    this.#queue.after(this.#random.float() * 2 * meanMs, () => {
      if (this.#healed) return;
      run();
      this.#repeat(meanMs, run);
    });
  }

  #breakSome(): void {
    const open = this.#proposers.flatMap((p) => [...p.connections.values()]);
    if (open.length === 0) return;
    const c = this.#pick(open);
    this.#note(`c${c.id} breaks`);
    this.#breakConnection(c);
  }

  #partition(): void {
    const living = this.#proposers.filter((p) => p.alive);
    if (living.length === 0) return;
    const p = this.#pick(living);
    const keys: string[] = [];
    for (const node of this.#nodes) {
      if (this.#random.float() < 0.5) continue;
      const way = this.#random.float();
      if (way < 0.7) keys.push(`p${p.id}>n${node.id}`);
      if (way > 0.3) keys.push(`n${node.id}>p${p.id}`);
    }
    this.#note(`partition ${keys.join(' ')}`);
    for (const key of keys) this.#blocked.add(key);
    this.#queue.after(50 + this.#random.float() * 2500, () => {
      for (const key of keys) this.#blocked.delete(key);
    });
  }

  #freeze(): void {
    const living = this.#proposers.filter((p) => p.alive);
    if (living.length === 0) return;
    const p = this.#pick(living);
    p.frozenUntilMs = this.#queue.nowMs + this.#random.float() * 3000;
    this.#note(`p${p.id} is frozen`);
    if (this.#random.float() < 0.7) this.#startProposer();
  }

  #fillDisk(): void {
    const {disk} = this.#pick(this.#nodes);
    disk.full = true;
    this.#queue.after(this.#random.float() * 1000, () => {
      disk.full = false;
    });
  }

  #pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.#random.float() * list.length)]!;
  }

  #note(line: string): void {
    const full = `${this.#queue.nowMs.toFixed(3)} ${line}`;
    this.#hash = crc32c(Buffer.from(full), this.#hash);
    this.#options.trace?.(full);
  }
}

function describe(m: ProposerMessage | AcceptorMessage): string {
  switch (m.kind) {
    case 'append':
      return `append t${m.term} ${formatLsn(m.beginLsn)}+${m.bytes.length} commit ${formatLsn(m.commitLsn)}`;
    case 'append-response':
      return `append-response t${m.term} flush ${formatLsn(m.flushLsn)} commit ${formatLsn(m.commitLsn)}`;
    case 'greeting':
      return 'greeting';
    case 'greeting-response':
      return `greeting-response t${m.term}`;
    case 'vote-request':
      return `vote-request t${m.term}`;
    case 'vote-response':
      return `vote-response t${m.term} ${m.granted ? 'granted' : 'refused'} flush ${formatLsn(m.flushLsn)} last term ${m.history.at(-1)?.term}`;
    case 'elected':
      return `elected t${m.term} ${m.history.map((e) => `${e.term}@${formatLsn(e.lsn)}`).join(' ')}`;
    case 'elected-response':
      return `elected-response t${m.term} start ${formatLsn(m.startLsn)}`;
  }
}
