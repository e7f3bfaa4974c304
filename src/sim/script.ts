/**
 * Scripted schedules: the same cores as in the simulator, but the test says which message arrives and which is lost. For
 * rules whose violation random faults hardly ever meet, such as Raft's figure 8.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {Proposer, type ProposerInput, type ProposerMutation, type ProposerOutput} from '#proposer/proposer.ts';
import {Acceptor, type AcceptorInput, type AcceptorMutation, type AcceptorOutput} from '#safekeeper/acceptor.ts';
import {initialState} from '#safekeeper/timeline-storage.ts';
import {SimRecordBoundary} from '#sim/sim-wal.ts';
import type {AcceptorMessage, Membership, ProposerMessage} from '#wire/safekeeper.ts';

const tenantId = 'a'.repeat(32);
const timelineId = 'b'.repeat(32);

export interface ScriptOptions {
  readonly nodes: number;
  readonly startLsn: Lsn;
  readonly acceptorMutations?: ReadonlySet<AcceptorMutation>;
  readonly proposerMutations?: ReadonlySet<ProposerMutation>;
}

/** True = delivered, false = lost. */
export type Allow = (node: number, message: ProposerMessage | AcceptorMessage) => boolean;

export class ScriptNode {
  readonly acceptor: Acceptor;
  readonly startLsn: Lsn;
  wal: Buffer = Buffer.alloc(0);
  readonly outputs: AcceptorOutput[] = [];

  constructor(nodeId: number, membership: Membership, options: ScriptOptions) {
    this.startLsn = options.startLsn;
    this.acceptor = new Acceptor({
      nodeId,
      state: initialState({
        tenantId,
        timelineId,
        systemId: '1',
        pgVersion: 150000,
        startLsn: options.startLsn,
        membership,
      }),
      flushLsn: options.startLsn,
      boundary: new SimRecordBoundary(),
      ...(options.acceptorMutations ? {mutations: options.acceptorMutations} : {}),
    });
  }

  /** Carries everything out at once; flushes finish immediately. Returns what was sent. */
  step(input: AcceptorInput): {readonly connection: number; readonly message: AcceptorMessage}[] {
    const sent: {connection: number; message: AcceptorMessage}[] = [];
    for (const output of this.acceptor.step(input)) {
      this.outputs.push(output);
      if (output.kind === 'write')
        this.wal = Buffer.concat([this.wal.subarray(0, output.lsn - this.startLsn), output.bytes]);
      else if (output.kind === 'truncate') this.wal = this.wal.subarray(0, output.lsn - this.startLsn);
      else if (output.kind === 'send') sent.push(output);
      else if (output.kind === 'flush') sent.push(...this.step({kind: 'flushed', epoch: output.epoch}));
    }
    return sent;
  }
}

export class ScriptCell {
  readonly nodes: ScriptNode[];
  readonly membership: Membership;
  readonly #options: ScriptOptions;
  #connections = 0;

  constructor(options: ScriptOptions) {
    this.#options = options;
    this.membership = {
      generation: 1,
      members: Array.from({length: options.nodes}, (_, i) => ({nodeId: i + 1, host: `sk${i + 1}`, port: 1})),
      newMembers: [],
    };
    this.nodes = this.membership.members.map((m) => new ScriptNode(m.nodeId, this.membership, options));
  }

  node(nodeId: number): ScriptNode {
    return this.nodes[nodeId - 1]!;
  }

  /** A proposer connected to these nodes; nothing is delivered before `run`. */
  proposer(nodeIds: readonly number[]): ScriptProposer {
    const core = new Proposer({
      tenantId,
      timelineId,
      pgVersion: 150000,
      systemId: '1',
      membership: this.membership,
      ...(this.#options.proposerMutations ? {mutations: this.#options.proposerMutations} : {}),
    });
    return new ScriptProposer(this, core, new Map(nodeIds.map((nodeId) => [nodeId, ++this.#connections])));
  }
}

export class ScriptProposer {
  readonly core: Proposer;
  readonly outputs: ProposerOutput[] = [];
  readonly #cell: ScriptCell;
  /** Connection number by node. */
  readonly #connections: ReadonlyMap<number, number>;
  #waiting: {readonly node: number; readonly message: ProposerMessage}[] = [];

  constructor(cell: ScriptCell, core: Proposer, connections: ReadonlyMap<number, number>) {
    this.#cell = cell;
    this.core = core;
    this.#connections = connections;
    for (const node of connections.keys()) this.step({kind: 'connected', peer: node});
  }

  step(input: ProposerInput): void {
    for (const output of this.core.step(input)) {
      this.outputs.push(output);
      if (output.kind === 'send') this.#waiting.push({node: output.peer, message: output.message});
    }
  }

  /** Delivers what `allow` lets through, and the answers, until nothing is on its way. */
  run(allow: Allow = () => true): void {
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      const {node, message} = next;
      if (!allow(node, message)) continue;
      const acceptor = this.#cell.node(node);
      const answers = acceptor.step({kind: 'message', connection: this.#connections.get(node)!, message});
      if (message.kind === 'append') answers.push(...acceptor.step({kind: 'batch-end'}));
      for (const answer of answers)
        if (allow(node, answer.message)) this.step({kind: 'message', peer: node, message: answer.message});
    }
  }
}
