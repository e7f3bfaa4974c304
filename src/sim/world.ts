/**
 * A simulated cell: safekeepers with disks, an object store, a network, a control plane, and computes that come and go. The
 * production classes (Acceptor, TimelineStorage with its WAL store and control file, TimelineCopy, Archiver, Proposer,
 * MembershipChange, the wire codec) run inside; only sockets, disks, objects and clocks are simulated. One seed decides
 * everything, also which kinds of faults there are.
 *
 * What is out of order here as in the world: a broken connection's messages may arrive late, a partition may go one way,
 * several proposers may be alive, a process may be frozen, a crash may come between any two effects of one step, the control
 * plane may die in the middle of a change and its requests come late and twice.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {Checker, Violation} from '#sim/checker.ts';
import type {Faults} from '#sim/faults.ts';
import type {Mutations} from '#sim/mutations.ts';
import {Nemesis} from '#sim/nemesis.ts';
import {Network} from '#sim/network.ts';
import {SimCompute} from '#sim/sim-compute.ts';
import {SimControl, member} from '#sim/sim-control.ts';
import {SimNode} from '#sim/sim-node.ts';
import {SimStore} from '#sim/sim-store.ts';
import {Stage, tenantId, timelineId, timelineStartLsn} from '#sim/stage.ts';
import type {Membership} from '#wire/safekeeper.ts';

const livenessMs = 12_000;
const nodeIds = [1, 2, 3, 4, 5];

export interface WorldOptions {
  readonly seed: number;
  readonly mutations?: Mutations;
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
  /** Membership changes begun, and objects archived. */
  readonly changes: number;
  readonly objects: number;
  readonly faults: Faults;
}

export class World {
  readonly stage: Stage;
  readonly network: Network;
  readonly store: SimStore;
  readonly nodes: readonly SimNode[];
  readonly control: SimControl;
  readonly computes: SimCompute[] = [];
  /** What pageservers have ingested and uploaded. */
  readonly pageserver: {consistentLsn: Lsn} = {consistentLsn: timelineStartLsn};
  readonly #nemesis: Nemesis;

  constructor(options: WorldOptions) {
    this.stage = new Stage({seed: options.seed, mutations: options.mutations ?? {}, trace: options.trace});
    this.stage.checker = new Checker(timelineStartLsn, (id, startLsn, endLsn) =>
      this.node(id).durableWal(startLsn, endLsn),
    );
    this.network = new Network(this.stage);
    this.store = new SimStore(this.stage);
    this.nodes = nodeIds.map((id) => new SimNode(id, this));
    this.control = new SimControl(this, first);
    this.#nemesis = new Nemesis(this);
  }

  node(id: number): SimNode {
    return this.nodes[id - 1]!;
  }

  onAimedCrash(): void {
    this.newCompute();
  }

  run(): WorldResult {
    let failure: string | undefined;
    try {
      this.#play();
    } catch (error) {
      // Also an assertion of the code under test is a finding.
      failure = error instanceof Violation ? error.message : `${(error as Error).name}: ${(error as Error).message}`;
      this.stage.note(() => `FAILED ${failure}\n${error instanceof Violation ? '' : String((error as Error).stack)}`);
    }
    const {stage} = this;
    return {
      failure,
      hash: stage.hash,
      events: stage.queue.count,
      virtualMs: Math.round(stage.nowMs),
      elections: stage.elections,
      commits: stage.commits,
      crashes: stage.crashes,
      changes: stage.changes,
      objects: stage.objects,
      faults: stage.faults,
    };
  }

  startCompute(): SimCompute {
    const {outdated} = this.control;
    const stale = outdated.length > 0 && this.stage.happens(this.stage.faults.staleConfiguration);
    const membership = stale ? this.stage.pick(outdated) : this.control.configuration;
    const compute = new SimCompute(this.computes.length + 1, membership, this);
    this.computes.push(compute);
    return compute;
  }

  /** A second compute on the same branch is a fault of its own: mostly the old one is killed first. */
  newCompute(): void {
    if (this.stage.healed) return;
    const living = this.livingComputes();
    if (living.length >= 3 || this.stage.random.float() >= this.stage.faults.rivalProposer)
      for (const p of living) p.kill();
    this.startCompute();
  }

  livingComputes(): SimCompute[] {
    return this.computes.filter((p) => p.isAlive);
  }

  #play(): void {
    for (const {nodeId} of first.members)
      this.node(nodeId).create({
        tenantId,
        timelineId,
        systemId: '1',
        pgVersion: 150000,
        startLsn: timelineStartLsn,
        membership: first,
      });
    this.startCompute();
    this.#nemesis.start();
    const {queue, faults} = this.stage;
    while (queue.runNext(faults.durationMs));
    this.#heal();
    this.#finish();
  }

  /** Faults off, one fresh proposer: it must commit something new, all members must catch up, a change must come to its end. */
  #heal(): void {
    const {stage, control} = this;
    stage.note(() => 'HEAL');
    stage.healed = true;
    this.network.heal();
    for (const p of this.computes) p.kill();
    for (const node of this.nodes) {
      node.disk.full = false;
      node.disk.failNext = false;
      node.start();
    }
    control.heal();
    let last = this.startCompute();
    const deadline = stage.nowMs + livenessMs;
    // In some runs one safekeeper is gone for good, at any moment of the last election: the others must do without it.
    const members = control.involved.flat().map((m) => m.nodeId);
    const mayLose = this.nodes.filter(
      (node) =>
        members.includes(node.id) &&
        control.involved.every((set) =>
          this.#standsWithout(
            set.map((m) => m.nodeId),
            node.id,
          ),
        ),
    );
    let lost: SimNode | undefined;
    if (mayLose.length > 0 && !control.isChanging && stage.random.float() < 0.4) {
      const victim = stage.pick(mayLose);
      lost = victim;
      stage.after(stage.random.float() * 8 * stage.faults.latencyMs, () => victim.loseDisk());
    }
    while (!this.#isQuiet(last, lost)) {
      // A late vote-request of a dead proposer may still depose it: then another compute is started, as it would be.
      if (!last.isAlive) last = this.startCompute();
      if (!stage.queue.runNext(deadline))
        throw new Violation(
          `no progress within ${livenessMs} ms after all faults ended: proposer ${last.id} is ${last.core.phase} in term ${last.core.term}, committed ${formatLsn(last.core.commitLsn)} of ${formatLsn(last.core.endLsn)}, ${last.records} records, control waits for ${control.waitsFor}; ${this.nodes.map((n) => `safekeeper ${n.id} ${n.status} generation ${n.acceptor?.state.membership.generation} term ${n.acceptor?.term} flush ${formatLsn(n.acceptor?.flushLsn ?? timelineStartLsn)}`).join(', ')}`,
        );
    }
  }

  /** A majority of the set lives undamaged, also without one more. */
  #standsWithout(set: readonly number[], without: number): boolean {
    const lives = (node: SimNode): boolean => !['lost', 'absent'].includes(node.status) && node.rottenLsn === 0;
    return set.filter((id) => id !== without && lives(this.node(id))).length * 2 > set.length;
  }

  #isQuiet(last: SimCompute, lost: SimNode | undefined): boolean {
    if (!last.isDone || this.control.isChanging) return false;
    const {endLsn} = last.core;
    for (const {nodeId} of this.control.configuration.members) {
      const node = this.node(nodeId);
      if (node === lost || node.status === 'lost' || node.status === 'absent') continue;
      // A damaged node may be unable to serve, and so may be the last copy that a lagging one needs.
      if (this.nodes.some((n) => n.rottenLsn > 0)) continue;
      if (node.acceptor?.commitLsn !== endLsn || node.acceptor.flushLsn !== endLsn) return false;
    }
    return true;
  }

  #finish(): void {
    for (const node of this.nodes) if (node.acceptor !== undefined) node.checkLog();
  }
}

const first: Membership = {generation: 1, members: [1, 2, 3].map(member), newMembers: []};
