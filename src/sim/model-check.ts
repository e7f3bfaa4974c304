/**
 * A bounded, complete, breadth-first search of the consensus protocol on the production step functions (Acceptor, Proposer,
 * MembershipChange): every order in which messages may arrive, within the bounds of a model.
 *
 * npm run model-check   prints states, depth and `complete, 0 violations` for each model
 *
 * Messages to acceptors stay under way for as long as they like, also for ever, which is what their loss would be; those of
 * one connection keep their order. Answers arrive at once. That loses nothing: an answer says what was so when the message was
 * taken, and all a proposer does with it is to decide sooner, and to send what may again stay under way.
 *
 * What the models leave to the simulator: crashes of acceptors between two outputs (each delivery is atomic, and what it
 * writes is durable at its end), broken connections, sizes and flow control.
 */
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import type {ProposerInput, ProposerOutput, ProposerSnapshot} from '#proposer/proposer-io.ts';
import {Proposer} from '#proposer/proposer.ts';
import {systemClock} from '#runtime/clock.ts';
import {assert} from '#runtime/assert.ts';
import {exitProcess, printLine} from '#runtime/process.ts';
import {Acceptor, type AcceptorInput, type AcceptorOutput} from '#safekeeper/acceptor.ts';
import {pulledState} from '#safekeeper/pulled-state.ts';
import type {RecordBoundary} from '#safekeeper/record-boundary.ts';
import {initialState} from '#safekeeper/timeline-storage.ts';
import {
  type ModelState,
  type NodeState,
  type PairState,
  type ProposerState,
  canonical,
  nodeState,
  proposerState,
  sent,
} from '#sim/model-state.ts';
import {GenerationModelCheck, generationModels} from '#sim/generation-model.ts';
import type {Mutations} from '#sim/mutations.ts';
import {tenantId, timelineId} from '#sim/stage.ts';
import {
  type MembershipAction,
  MembershipChange,
  type MembershipChangeState,
  type SafekeeperPosition,
  allMembers,
  comparePosition,
  isMember,
} from '#wire/membership.ts';
import type {AcceptorMessage, Membership, ProposerMessage, TermHistory} from '#wire/safekeeper.ts';

export interface Model {
  readonly name: string;
  readonly proposers: number;
  /** Members by node number from 1 on. */
  readonly members: readonly number[];
  /** One change of the membership, to these. */
  readonly target?: readonly number[];
  readonly termMax: number;
  /** Records that computes write, all together. */
  readonly recordsMax: number;
}

export interface ModelCheckOptions extends Model {
  readonly mutations?: Mutations;
  /** Stops there, incomplete. */
  readonly statesMax?: number;
}

export interface ModelResult {
  readonly states: number;
  readonly transitions: number;
  readonly depth: number;
  readonly complete: boolean;
  readonly violation: string | undefined;
  /** How it came to the violation. */
  readonly path: readonly string[];
}

export const models: readonly Model[] = [
  {
    name: 'WAL: 2 proposers, 3 acceptors, 2 terms, 1 record',
    proposers: 2,
    members: [1, 2, 3],
    termMax: 2,
    recordsMax: 1,
  },
  {
    name: 'WAL: 2 proposers, 3 acceptors, 2 terms, 2 records',
    proposers: 2,
    members: [1, 2, 3],
    termMax: 2,
    recordsMax: 2,
  },
  {
    name: 'membership {1} to {2}: 2 proposers, 2 terms, 1 record',
    proposers: 2,
    members: [1],
    target: [2],
    termMax: 2,
    recordsMax: 1,
  },
  {
    name: 'membership {1,2} to {2,3}: 1 proposer, 1 term, 1 record',
    proposers: 1,
    members: [1, 2],
    target: [2, 3],
    termMax: 1,
    recordsMax: 1,
  },
];

const startLsn = 0x100 as Lsn;
const nothingUnderWay: PairState = {connected: false, toNode: []};

class ModelViolation extends Error {}

/** A record is one byte. */
class ByteBoundary implements RecordBoundary {
  endLsn = startLsn;
  reset(at: Lsn): void {
    this.endLsn = at;
  }
  feed(bytes: Buffer): Lsn {
    this.endLsn = (this.endLsn + bytes.length) as Lsn;
    return this.endLsn;
  }
}

const records = Array.from({length: 16}, (_, term) => Buffer.from([term]));

export class ModelCheck {
  readonly #options: ModelCheckOptions;
  readonly #nodeCount: number;
  readonly #classes: readonly (readonly number[])[];
  readonly #first: Membership;
  /** One object each, which takes on whatever state is looked at. */
  readonly #acceptors: readonly Acceptor[];
  readonly #proposers: readonly Proposer[];
  readonly #seen = new Set<number>();
  readonly #parents: number[] = [];
  readonly #labels: string[] = [];
  #transitions = 0;

  constructor(options: ModelCheckOptions) {
    this.#options = options;
    const target = options.target ?? [];
    this.#nodeCount = Math.max(...options.members, ...target);
    this.#first = {generation: 1, members: options.members.map(member), newMembers: []};
    const classes = new Map<string, number[]>();
    for (let node = 0; node < this.#nodeCount; node++) {
      const role = `${options.members.includes(node + 1)}${target.includes(node + 1)}`;
      classes.set(role, [...(classes.get(role) ?? []), node]);
    }
    this.#classes = [...classes.values()];
    const {mutations} = options;
    this.#acceptors = Array.from(
      {length: this.#nodeCount},
      (_, node) =>
        new Acceptor({
          nodeId: node + 1,
          state: initialState({
            tenantId,
            timelineId,
            systemId: '1',
            pgVersion: 150000,
            startLsn,
            membership: this.#first,
          }),
          flushLsn: startLsn,
          boundary: new ByteBoundary(),
          ...(mutations?.acceptor ? {mutations: mutations.acceptor} : {}),
        }),
    );
    this.#proposers = Array.from({length: options.proposers}, () => this.#newProposer(this.#first));
  }

  run(): ModelResult {
    let frontier: {readonly state: ModelState; readonly id: number}[] = [];
    let depth = 0;
    const {statesMax = Infinity} = this.#options;
    const visit = (state: ModelState, parent: number, label: string, into: {state: ModelState; id: number}[]): void => {
      this.#transitions++;
      const key = hash53(canonical(state, this.#classes));
      if (this.#seen.has(key)) return;
      this.#seen.add(key);
      const id = this.#parents.length;
      this.#parents.push(parent);
      this.#labels.push(label);
      into.push({state, id});
    };
    visit(this.#initial(), -1, 'start', frontier);
    while (frontier.length > 0) {
      const next: {state: ModelState; id: number}[] = [];
      for (const {state, id} of frontier) {
        let label = '';
        try {
          this.#expand(
            state,
            (successor, how) => visit(successor, id, how, next),
            (how) => {
              label = how;
            },
          );
        } catch (error) {
          return this.#result(depth, false, (error as Error).message, [...this.#path(id), label]);
        }
        if (this.#seen.size > statesMax) return this.#result(depth, false, undefined, []);
      }
      frontier = next;
      if (next.length > 0) depth++;
    }
    return this.#result(depth, true, undefined, []);
  }

  #result(depth: number, complete: boolean, violation: string | undefined, path: readonly string[]): ModelResult {
    return {states: this.#seen.size, transitions: this.#transitions, depth, complete, violation, path};
  }

  #path(id: number): string[] {
    const path: string[] = [];
    for (let at = id; at >= 0; at = this.#parents[at]!) path.unshift(this.#labels[at]!);
    return path;
  }

  #newProposer(membership: Membership): Proposer {
    const {mutations} = this.#options;
    return new Proposer({
      tenantId,
      timelineId,
      pgVersion: 150000,
      systemId: '1',
      membership,
      ...(mutations?.proposer ? {mutations: mutations.proposer} : {}),
    });
  }

  #proposerState(snapshot: ProposerSnapshot): ProposerState {
    return proposerState(snapshot, this.#nodeCount);
  }

  #initial(): ModelState {
    const {members, target, proposers, termMax} = this.#options;
    const terms = termMax + 1;
    return {
      nodes: this.#acceptors.map((acceptor, node) =>
        members.includes(node + 1) ? nodeState(acceptor.snapshot(), []) : undefined,
      ),
      proposers: this.#proposers.map(() => undefined),
      pairs: Array.from({length: proposers}, () => Array.from({length: this.#nodeCount}, () => nothingUnderWay)),
      control:
        target === undefined
          ? undefined
          : {
              change: MembershipChange.begin(this.#first, target.map(member)),
              positions: Array.from({length: this.#nodeCount}, () => undefined),
            },
      committed: [],
      commits: Array.from({length: terms}, () => 0),
      winners: Array.from({length: terms}, () => -1),
    };
  }

  /** All that may happen next. `about` is called before each, for the path to a violation. */
  #expand(state: ModelState, visit: (next: ModelState, how: string) => void, about: (how: string) => void): void {
    const take = (how: string, run: (draft: Draft) => void): void => {
      about(how);
      const draft = new Draft(state);
      run(draft);
      const next = draft.finish();
      if (next.proposers.every((p) => p === undefined || p.snapshot.term <= this.#options.termMax)) visit(next, how);
    };
    for (let p = 0; p < this.#proposers.length; p++) {
      const proposer = state.proposers[p];
      if (proposer === undefined) {
        const configuration =
          state.control === undefined ? this.#first : new MembershipChange(state.control.change).configuration;
        take(`p${p} starts in g${configuration.generation}`, (draft) => {
          draft.proposers[p] = this.#proposerState(this.#newProposer(configuration).snapshot());
          for (const {nodeId} of allMembers(configuration)) this.#connect(draft, p, nodeId - 1);
        });
        continue;
      }
      if (proposer.snapshot.phase === 'fenced') continue;
      this.#expandProposer(state, p, proposer.snapshot, take);
    }
    if (state.control !== undefined) this.#expandControl(state, take);
  }

  #expandProposer(
    state: ModelState,
    p: number,
    proposer: ProposerSnapshot,
    take: (how: string, run: (draft: Draft) => void) => void,
  ): void {
    const {recordsMax, termMax} = this.#options;
    for (const {nodeId} of allMembers(proposer.membership)) {
      const node = nodeId - 1;
      const pair = state.pairs[p]![node]!;
      if (!pair.connected) {
        // One that has an older configuration would be given up at once.
        const generation = state.nodes[node]?.acceptor.state.membership.generation;
        if (generation !== undefined && generation >= proposer.membership.generation)
          take(`p${p} connects to n${nodeId}`, (draft) => this.#connect(draft, p, node));
        continue;
      }
      const [toNode] = pair.toNode;
      if (toNode !== undefined)
        take(`n${nodeId} <- p${p} ${toNode.message.kind}`, (draft) => {
          draft.setPair(p, node, {toNode: pair.toNode.slice(1)});
          this.#receiveAtNode(draft, p, node, toNode.message);
        });
    }
    if (
      proposer.phase === 'voting' &&
      proposer.campaignAgain &&
      Math.max(proposer.highestTermSeen, proposer.term) < termMax
    )
      take(`p${p} campaigns again`, (draft) => {
        this.#stepProposer(draft, p, {kind: 'tick', nowMs: 0, random: 0});
        this.#stepProposer(draft, p, {kind: 'tick', nowMs: 0, random: 0});
        draft.proposers[p] = this.#proposerState({...draft.proposers[p]!.snapshot, campaignAtMs: undefined});
      });
    if (proposer.phase !== 'elected') return;
    const written = state.proposers.reduce(
      (sum, one) => sum + (one === undefined ? 0 : one.snapshot.window.endLsn - one.snapshot.termStartLsn),
      0,
    );
    // A compute begins when its proposer is synced.
    if (proposer.commitLsn >= proposer.termStartLsn && written < recordsMax)
      take(`p${p} writes`, (draft) =>
        this.#stepProposer(draft, p, {kind: 'wal', lsn: proposer.window.endLsn, bytes: records[proposer.term]!}),
      );
    for (const peer of proposer.peers) {
      if (peer.recovery !== 'running') continue;
      const lsn = peer.nextLsn;
      // Whoever may serve: see model-state.ts.
      const bytes = new Set<number>();
      for (let donor = 0; donor < this.#nodeCount; donor++) {
        const node = state.nodes[donor];
        if (node === undefined || donor === peer.nodeId - 1) continue;
        this.#acceptors[donor]!.restore(node.acceptor);
        if (this.#acceptors[donor]!.servesRecovery(proposer.term) && node.acceptor.flushLsn > lsn)
          bytes.add(node.wal[lsn - startLsn]!);
      }
      for (const byte of bytes)
        take(`p${p} recovers n${peer.nodeId}`, (draft) =>
          this.#stepProposer(draft, p, {kind: 'recovered', peer: peer.nodeId, lsn, bytes: records[byte]!}),
        );
    }
  }

  #expandControl(state: ModelState, take: (how: string, run: (draft: Draft) => void) => void): void {
    const {change, positions} = state.control!;
    const plan = new MembershipChange(change);
    for (const [node, position] of positions.entries()) if (position !== undefined) plan.answered(node + 1, position);
    // An excluded node stays as it is: more may happen then.
    for (const action of plan.actions().filter((one) => one.kind !== 'exclude'))
      for (const heard of [true, false])
        take(
          `control: ${action.kind} n${action.node.nodeId} g${action.membership.generation}${heard ? '' : ', answer lost'}`,
          (draft) => this.#act(draft, action, heard),
        );
  }

  #act(draft: Draft, action: MembershipAction, heard: boolean): void {
    const node = action.node.nodeId - 1;
    if (action.kind === 'pull') {
      if (draft.nodes[node] === undefined) {
        const donor = draft.nodes[action.from.map((m) => m.nodeId - 1).find((id) => draft.nodes[id] !== undefined)!]!;
        const snapshot = {state: donor.acceptor.state, flushLsn: donor.acceptor.flushLsn};
        const state = pulledState(snapshot, snapshot, action.membership)!;
        const {flushLsn} = donor.acceptor;
        const fresh = new Acceptor({nodeId: node + 1, state, flushLsn, boundary: new ByteBoundary()});
        draft.nodes[node] = nodeState(fresh.snapshot(), donor.wal);
      }
    } else if (action.kind === 'put')
      this.#stepNode(draft, node, {kind: 'membership', membership: action.membership, minTerm: action.minTerm});
    if (!heard) return;
    const {change, positions} = draft.control!;
    const plan = new MembershipChange(change);
    for (const [id, position] of positions.entries()) if (position !== undefined) plan.answered(id + 1, position);
    const next = [...positions];
    const acceptor = this.#acceptors[node]!;
    acceptor.restore(draft.nodes[node]!.acceptor);
    next[node] = acceptor.position;
    plan.answered(node + 1, acceptor.position);
    const {mutations} = this.#options;
    let saved = plan.state;
    if (saved.phase === 'catch-up' && saved.sync !== undefined) {
      if (mutations?.control?.has('no-catch-up')) saved = {...saved, phase: 'final'};
      else if (mutations?.control?.has('no-sync-term') && saved.sync.term > 0)
        saved = {...saved, sync: {...saved.sync, term: 0}};
      else if (mutations?.control?.has('catch-up-by-lsn') && saved.sync.lastLogTerm > 0)
        saved = {...saved, sync: {...saved.sync, lastLogTerm: 0}};
    } else if (saved.phase === 'joint' && mutations?.control?.has('no-joint')) saved = {...saved, phase: 'final'};
    draft.control = {change: saved, positions: this.#worthKnowing(saved, change, next)};
  }

  /**
   * Of the answers only what the plan will use: others it asks for again, as after a crash. In catch-up and final an answer
   * counts once and for all, so that what it said in detail matters no more.
   */
  #worthKnowing(
    saved: MembershipChangeState,
    before: MembershipChangeState,
    positions: readonly (SafekeeperPosition | undefined)[],
  ): (SafekeeperPosition | undefined)[] {
    if (saved.phase !== before.phase) return positions.map(() => undefined);
    return positions.map((position, node) => {
      if (position === undefined) return undefined;
      switch (saved.phase) {
        case 'prepare':
          return saved.base.members.some((m) => m.nodeId === node + 1) ? undefined : normal(position, 0);
        case 'joint':
          return position.generation >= saved.joint.generation ? position : undefined;
        case 'catch-up': {
          const {sync} = saved;
          assert(sync !== undefined, 'the position to reach is known');
          const flushLsn = parseLsn(sync.flushLsn);
          const reached =
            position.generation >= saved.joint.generation &&
            position.term >= sync.term &&
            comparePosition(position, {lastLogTerm: sync.lastLogTerm, flushLsn}) >= 0;
          return reached ? {...sync, flushLsn, generation: saved.joint.generation, commitLsn: startLsn} : undefined;
        }
        case 'final':
          return position.generation >= saved.final.generation ? normal(position, saved.sync?.term ?? 0) : undefined;
        case 'done':
          return undefined;
      }
    });
  }

  // ---- the shells of proposer and acceptor

  /** With its greeting, which is answered at once. */
  #connect(draft: Draft, p: number, node: number): void {
    if (draft.nodes[node] === undefined) return;
    draft.setPair(p, node, {connected: true});
    const outputs = this.#run(draft, p, {kind: 'connected', peer: node + 1});
    for (const output of outputs)
      if (output.kind === 'send')
        this.#stepNode(draft, node, {kind: 'message', connection: p, message: output.message});
  }

  #disconnect(draft: Draft, p: number, node: number): void {
    if (!draft.pairs[p]![node]!.connected) return;
    draft.setPair(p, node, nothingUnderWay);
    if (draft.nodes[node] !== undefined) this.#stepNode(draft, node, {kind: 'disconnected', connection: p});
    if (draft.proposers[p] !== undefined) this.#stepProposer(draft, p, {kind: 'disconnected', peer: node + 1});
  }

  #receiveAtNode(draft: Draft, p: number, node: number, message: ProposerMessage): void {
    this.#stepNode(draft, node, {kind: 'message', connection: p, message});
    if (message.kind === 'append' && draft.nodes[node] !== undefined) this.#stepNode(draft, node, {kind: 'batch-end'});
  }

  #stepNode(draft: Draft, node: number, input: AcceptorInput): void {
    const acceptor = this.#acceptors[node]!;
    const before = draft.nodes[node]!;
    acceptor.restore(before.acceptor);
    let wal = before.wal;
    const answers: {readonly p: number; readonly message: AcceptorMessage}[] = [];
    const refused: number[] = [];
    const carryOut = (outputs: readonly AcceptorOutput[]): void => {
      for (const output of outputs) {
        switch (output.kind) {
          case 'write':
            wal = [...wal.slice(0, output.lsn - startLsn), ...output.bytes];
            break;
          case 'truncate':
            this.#checkTruncation(draft, node, output.lsn, acceptor.term, before);
            wal = wal.slice(0, output.lsn - startLsn);
            break;
          case 'flush':
            carryOut(acceptor.step({kind: 'flushed', epoch: output.epoch}));
            break;
          case 'send':
            answers.push({p: output.connection, message: output.message});
            break;
          case 'commit':
            for (let i = 0; i < output.lsn - startLsn; i++)
              if (wal[i] !== draft.committed[i])
                throw new ModelViolation(`safekeeper ${node + 1} calls WAL committed that is not (10)`);
            break;
          case 'refuse':
            if (output.code === 'bad-history' || output.code === 'bad-wal')
              throw new ModelViolation(`safekeeper ${node + 1} refuses its proposer: ${output.message}`);
            refused.push(output.connection);
            break;
          case 'save':
          case 'mark':
            break;
        }
      }
    };
    carryOut(acceptor.step(input));
    acceptor.checkInvariants();
    const after = acceptor.snapshot();
    for (let i = 0; i < after.flushLsn - startLsn; i++)
      if (wal[i] !== termAt(after.state.history, startLsn + i))
        throw new ModelViolation(`safekeeper ${node + 1}: its WAL is not what its history says (5)`);
    draft.nodes[node] = nodeState(after, wal);
    for (const p of refused) this.#disconnect(draft, p, node);
    for (const {p, message} of answers)
      if (draft.pairs[p]![node]!.connected) this.#stepProposer(draft, p, {kind: 'message', peer: node + 1, message});
  }

  #stepProposer(draft: Draft, p: number, input: ProposerInput): void {
    for (const output of this.#run(draft, p, input)) {
      if (output.kind === 'send') {
        const node = output.peer - 1;
        const pair = draft.pairs[p]![node]!;
        if (pair.connected) draft.setPair(p, node, {toNode: [...pair.toNode, sent(output.message)]});
      } else if (output.kind === 'close') this.#disconnect(draft, p, output.peer - 1);
      else if (output.kind === 'membership') {
        for (let node = 0; node < this.#nodeCount; node++)
          if (!isMember(output.membership, node + 1)) this.#disconnect(draft, p, node);
      } else if (output.kind === 'fenced') {
        for (let node = 0; node < this.#nodeCount; node++) {
          if (!draft.pairs[p]![node]!.connected) continue;
          draft.setPair(p, node, nothingUnderWay);
          if (draft.nodes[node] !== undefined) this.#stepNode(draft, node, {kind: 'disconnected', connection: p});
        }
      }
    }
  }

  #run(draft: Draft, p: number, input: ProposerInput): ProposerOutput[] {
    const proposer = this.#proposers[p]!;
    proposer.restore(draft.proposers[p]!.snapshot);
    const outputs = proposer.step(input);
    const after = proposer.snapshot();
    draft.proposers[p] = this.#proposerState(after);
    if (after.term > this.#options.termMax) return [];
    for (const output of outputs) {
      if (output.kind === 'elected') this.#elected(draft, p, after);
      else if (output.kind === 'committed') this.#committed(draft, p, after, output.lsn);
    }
    return outputs;
  }

  #elected(draft: Draft, p: number, after: ProposerSnapshot): void {
    const winner = draft.winners[after.term]!;
    if (winner >= 0 && winner !== p) throw new ModelViolation(`term ${after.term} is won twice (2)`);
    draft.winners = draft.winners.with(after.term, p);
    for (let term = 0; term < after.term; term++)
      for (let i = 0; i < draft.commits[term]!; i++)
        if (startLsn + i >= after.termStartLsn || termAt(after.history, startLsn + i) !== draft.committed[i])
          throw new ModelViolation(`the proposer of term ${after.term} lacks WAL that term ${term} has committed (4)`);
  }

  #committed(draft: Draft, p: number, after: ProposerSnapshot, lsn: Lsn): void {
    const count = lsn - startLsn;
    const committed = [...draft.committed];
    for (let i = 0; i < count; i++) {
      const term = termAt(after.history, startLsn + i);
      if (i < committed.length && committed[i] !== term)
        throw new ModelViolation(`term ${after.term} commits other WAL than was committed before (1)`);
      committed[i] = term;
    }
    draft.committed = committed;
    draft.commits = draft.commits.with(after.term, Math.max(count, draft.commits[after.term]!));
    if (after.phase !== 'elected') throw new ModelViolation(`proposer ${p} commits without being elected (12)`);
  }

  /** What this term or a lower one has committed stays. */
  #checkTruncation(draft: Draft, node: number, lsn: Lsn, term: number, before: NodeState): void {
    const committed = Math.max(...draft.commits.slice(0, term + 1));
    for (let i = lsn - startLsn; i < Math.min(before.wal.length, committed); i++) {
      // Equal from the beginning: then it is a copy of what is committed.
      if (before.wal.slice(0, i + 1).every((one, k) => one === draft.committed[k]))
        throw new ModelViolation(`safekeeper ${node + 1} truncates committed WAL (9)`);
    }
  }
}

/** A state being made from another one; what is not touched is shared. */
class Draft {
  readonly nodes: (NodeState | undefined)[];
  readonly proposers: (ProposerState | undefined)[];
  readonly pairs: (readonly PairState[])[];
  control: ModelState['control'];
  committed: readonly number[];
  commits: readonly number[];
  winners: readonly number[];

  constructor(state: ModelState) {
    this.nodes = [...state.nodes];
    this.proposers = [...state.proposers];
    this.pairs = [...state.pairs];
    this.control = state.control;
    this.committed = state.committed;
    this.commits = state.commits;
    this.winners = state.winners;
  }

  setPair(p: number, node: number, changes: Partial<PairState>): void {
    const row = this.pairs[p]!;
    this.pairs[p] = row.with(node, {...row[node]!, ...changes});
  }

  finish(): ModelState {
    return this;
  }
}

function normal({generation}: SafekeeperPosition, term: number): SafekeeperPosition {
  return {generation, term, lastLogTerm: 0, flushLsn: startLsn, commitLsn: startLsn};
}

function termAt(history: TermHistory, lsn: number): number {
  let term = -1;
  for (const entry of history) if (entry.lsn <= lsn) ({term} = entry);
  return term;
}

function member(nodeId: number): Membership['members'][number] {
  return {nodeId, host: '', port: 1};
}

/** Two independent hashes in one safe integer: at a million states the chance of any collision is about 1 in 20,000. */
function hash53(text: string): number {
  let a = 0x811c9dc5;
  let b = 0x9747b28c;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    a = Math.imul(a ^ c, 0x01000193);
    b = Math.imul(b ^ c, 0x5bd1e995);
    b ^= b >>> 15;
  }
  a ^= a >>> 16;
  b ^= b >>> 13;
  return (a >>> 0) * 0x20_0000 + ((b >>> 0) & 0x1f_ffff);
}

if (import.meta.main) {
  let failed = false;
  const report = (name: string, run: () => Omit<ModelResult, 'transitions'>): void => {
    const startedMs = systemClock.monotonicMs();
    const {states, depth, complete, violation, path} = run();
    failed ||= violation !== undefined || !complete;
    const verdict = complete ? 'complete, 0 violations' : 'INCOMPLETE, 0 violations';
    printLine(
      `${name}: ${states} states, depth ${depth}, ${((systemClock.monotonicMs() - startedMs) / 1000).toFixed(1)} s: ${violation === undefined ? verdict : `VIOLATION: ${violation}\n  ${path.join('\n  ')}`}`,
    );
  };
  for (const model of generationModels) report(model.name, () => new GenerationModelCheck(model).run());
  for (const model of models) report(model.name, () => new ModelCheck(model).run());
  exitProcess(failed ? 1 : 0);
}
