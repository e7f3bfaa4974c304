/** A simulated compute: the production Proposer, and a Postgres that writes records once it may. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {ProposerInput, ProposerOutput} from '#proposer/proposer-io.ts';
import {Proposer} from '#proposer/proposer.ts';
import {Violation} from '#sim/checker.ts';
import {describeMembership} from '#sim/describe.ts';
import type {ComputeEnd, Connection, Network} from '#sim/network.ts';
import type {SimNode} from '#sim/sim-node.ts';
import {makeRecord} from '#sim/sim-wal.ts';
import {type Stage, marks, tenantId, timelineId} from '#sim/stage.ts';
import {allMembers} from '#wire/membership.ts';
import type {AcceptorMessage, Membership} from '#wire/safekeeper.ts';

const silenceMs = 1500;
const reconnectMs = 100;
const recoveryChunkBytes = 700;
/** Records a compute writes once the world is healed. */
export const healedRecords = 5;

interface Recovery {
  readonly donor: SimNode;
  nextLsn: Lsn;
  paused: boolean;
  readonly term: number;
}

export interface ComputeWorld {
  readonly stage: Stage;
  readonly network: Network;
  node(id: number): SimNode;
}

export class SimCompute implements ComputeEnd {
  readonly id: number;
  readonly core: Proposer;
  readonly #world: ComputeWorld;
  readonly #stage: Stage;
  readonly #connections = new Map<number, Connection>();
  /** Safekeepers that it is or wants to be connected to. */
  readonly #wanted = new Set<number>();
  readonly #recoveries = new Map<number, Recovery>();
  readonly #clockRate: number;
  isAlive = true;
  frozenUntilMs = 0;
  #sourcePaused = false;
  /** Pieces of WAL on their way from Postgres. */
  readonly #pipe: Buffer[] = [];
  #pipeLsn = 0 as Lsn;
  records = 0;

  constructor(id: number, membership: Membership, world: ComputeWorld) {
    this.id = id;
    this.#world = world;
    this.#stage = world.stage;
    const {random, faults, mutations} = world.stage;
    this.#clockRate = faults.clockDrift > 0 ? Math.max(0.2, 1 + (random.float() - 0.5) * faults.clockDrift) : 1;
    this.core = new Proposer({
      tenantId,
      timelineId,
      pgVersion: 150000,
      systemId: '1',
      membership,
      ...(mutations.proposer ? {mutations: mutations.proposer} : {}),
    });
    this.#stage.note(() => `p${id} starts with ${describeMembership(membership)}`);
    for (const {nodeId} of allMembers(membership)) this.#want(nodeId, random.float() * 5);
    this.#tickLater();
  }

  /** All it wrote is committed. */
  get isDone(): boolean {
    return this.records >= healedRecords && this.core.commitLsn === this.core.endLsn;
  }

  kill(): void {
    if (!this.isAlive) return;
    this.#stage.note(() => `p${this.id} is killed`);
    this.isAlive = false;
    for (const c of this.#connections.values()) this.#world.network.abandon(c);
    this.#connections.clear();
    this.#recoveries.clear();
  }

  breakConnection(): void {
    const open = [...this.#connections.values()];
    if (open.length > 0) this.#break(this.#stage.pick(open));
  }

  // ---- ComputeEnd

  whenAwake(run: () => void): void {
    if (!this.isAlive) return;
    if (this.frozenUntilMs > this.#stage.nowMs) this.#stage.queue.at(this.frozenUntilMs, () => this.whenAwake(run));
    else run();
  }

  wants(node: number): boolean {
    return this.#wanted.has(node) && !this.#connections.has(node);
  }

  connected(node: number): void {
    this.#step({kind: 'connected', peer: node});
  }

  disconnected(node: number): void {
    this.#connections.delete(node);
    this.whenAwake(() => this.#step({kind: 'disconnected', peer: node}));
    if (this.#wanted.has(node)) this.#want(node, reconnectMs);
  }

  receive(node: number, message: AcceptorMessage): void {
    const deposed = this.core.phase === 'elected' && message.term > this.core.term;
    this.#step({kind: 'message', peer: node, message});
    if (deposed && this.isAlive && this.#wanted.has(node))
      throw new Violation(
        `proposer ${this.id} of term ${this.core.term} has heard of term ${message.term} and goes on (12)`,
      );
  }

  // ---- proposer

  #want(node: number, delayMs: number): void {
    this.#wanted.add(node);
    this.#world.network.connectLater(this, this.#world.node(node), delayMs, (c) => this.#connections.set(node, c));
  }

  #break(c: Connection): void {
    this.#stage.note(() => `c${c.id} breaks`);
    this.#world.network.abandon(c);
    this.disconnected(c.node.id);
  }

  #step(input: ProposerInput): void {
    if (!this.isAlive) return;
    for (const output of this.core.step(input)) {
      this.#carryOut(output);
      if (!this.isAlive) return;
    }
  }

  #carryOut(output: ProposerOutput): void {
    const stage = this.#stage;
    switch (output.kind) {
      case 'send': {
        const c = this.#connections.get(output.peer);
        if (c !== undefined) this.#world.network.sendToNode(c, output.message);
        break;
      }
      case 'close': {
        const c = this.#connections.get(output.peer);
        stage.note(() => `p${this.id} closes n${output.peer}: ${output.reason}`);
        if (c !== undefined) this.#break(c);
        break;
      }
      case 'elected':
        stage.elections++;
        stage.mark(marks.elected, this.id, output.term);
        stage.note(() => `p${this.id} wins term ${output.term} from ${formatLsn(output.termStartLsn)}`);
        stage.checker.elected(this.id, output.term, this.core.history, output.termStartLsn);
        break;
      case 'synced':
        this.#pipeLsn = output.lsn;
        this.#produceLater();
        break;
      case 'committed':
        stage.commits++;
        stage.mark(marks.committed, this.id, output.lsn);
        stage.note(() => `p${this.id} commits ${formatLsn(output.lsn)}`);
        stage.checker.committed(this.id, this.core.term, this.core.history, output.lsn, this.core.membership);
        stage.after(5, () => this.whenAwake(() => this.#step({kind: 'commit-due'})));
        break;
      case 'membership':
        stage.note(() => `p${this.id} takes ${describeMembership(output.membership)}`);
        this.#changeMembers(output.membership);
        break;
      case 'recover': {
        const recovery: Recovery = {
          donor: this.#world.node(output.donor),
          nextLsn: output.startLsn,
          paused: false,
          term: output.term,
        };
        this.#recoveries.set(output.peer, recovery);
        this.#readDonor(output.peer, recovery);
        break;
      }
      case 'pause-recovery': {
        const recovery = this.#recoveries.get(output.peer);
        if (recovery !== undefined) recovery.paused = true;
        break;
      }
      case 'resume-recovery': {
        const recovery = this.#recoveries.get(output.peer);
        if (recovery === undefined) break;
        recovery.paused = false;
        this.#readDonor(output.peer, recovery);
        break;
      }
      case 'stop-recovery':
        this.#recoveries.delete(output.peer);
        break;
      case 'pause-source':
        this.#sourcePaused = true;
        break;
      case 'resume-source':
        this.#sourcePaused = false;
        break;
      case 'fenced':
        stage.note(() => `p${this.id} is fenced by term ${output.term}`);
        this.kill();
        break;
    }
  }

  #changeMembers(membership: Membership): void {
    const ids = new Set(allMembers(membership).map((m) => m.nodeId));
    for (const node of this.#wanted) {
      if (ids.has(node)) continue;
      this.#wanted.delete(node);
      const c = this.#connections.get(node);
      if (c === undefined) continue;
      this.#world.network.abandon(c);
      this.#connections.delete(node);
    }
    for (const node of ids) if (!this.#wanted.has(node)) this.#want(node, this.#stage.random.float() * 5);
  }

  #readDonor(peer: number, recovery: Recovery): void {
    const stage = this.#stage;
    stage.after(stage.latency() * 2, () =>
      this.whenAwake(() => {
        if (this.#recoveries.get(peer) !== recovery || recovery.paused) return;
        const {donor} = recovery;
        const {acceptor} = donor;
        if (
          acceptor === undefined ||
          this.#world.network.isBlocked(this, donor) ||
          !acceptor.servesRecovery(recovery.term) ||
          acceptor.flushLsn <= recovery.nextLsn
        ) {
          this.#recoveries.delete(peer);
          this.#step({kind: 'recovery-ended', peer});
          return;
        }
        const lsn = recovery.nextLsn;
        const bytes = donor.readWal(lsn, Math.min(recoveryChunkBytes, acceptor.flushLsn - lsn));
        if (bytes.length === 0)
          throw new Violation(`safekeeper ${donor.id} cannot serve WAL at ${formatLsn(lsn)} that it has archived (14)`);
        recovery.nextLsn = (lsn + bytes.length) as Lsn;
        this.#readDonor(peer, recovery);
        this.#step({kind: 'recovered', peer, lsn, bytes});
      }),
    );
  }

  #tickLater(): void {
    const stage = this.#stage;
    stage.after(150, () =>
      this.whenAwake(() => {
        this.#step({kind: 'tick', nowMs: stage.nowMs * this.#clockRate, random: stage.random.float()});
        for (const c of this.#connections.values()) if (stage.nowMs - c.lastHeardMs > silenceMs) this.#break(c);
        this.#tickLater();
      }),
    );
  }

  #produceLater(): void {
    const stage = this.#stage;
    stage.after(stage.random.float() * 2 * stage.faults.recordMs, () =>
      this.whenAwake(() => {
        this.#produceLater();
        if (this.#sourcePaused || (stage.healed && this.records >= healedRecords)) return;
        const big = stage.random.float() < 0.05;
        const record = makeRecord(
          this.core.term,
          this.records++,
          Math.floor(stage.random.float() * (big ? 2000 : 150)),
          stage.random,
        );
        stage.checker.logs.append(this.core.term, record);
        // Postgres cuts its stream anywhere.
        const cut = stage.random.float() < 0.3 ? Math.floor(stage.random.float() * record.length) : 0;
        for (const piece of [record.subarray(0, cut), record.subarray(cut)]) {
          if (piece.length === 0) continue;
          this.#pipe.push(piece);
          stage.after(stage.random.float() * 3, () => this.whenAwake(() => this.#stream()));
        }
      }),
    );
  }

  #stream(): void {
    const bytes = this.#pipe.shift()!;
    const lsn = this.#pipeLsn;
    this.#pipeLsn = (lsn + bytes.length) as Lsn;
    this.#step({kind: 'wal', lsn, bytes});
  }
}
