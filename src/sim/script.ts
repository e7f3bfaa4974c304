/**
 * Scripted schedules: the same cores as in the simulator, but the test says which message arrives and which is lost. For
 * rules whose violation random faults hardly ever meet, such as Raft's figure 8.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {ProposerInput, ProposerOutput} from '#proposer/proposer-io.ts';
import {Proposer} from '#proposer/proposer.ts';
import {Acceptor, type AcceptorInput, type AcceptorOutput} from '#safekeeper/acceptor.ts';
import {initialState} from '#safekeeper/timeline-storage.ts';
import type {Mutations} from '#sim/mutations.ts';
import {SimRecordBoundary} from '#sim/sim-wal.ts';
import {tenantId, timelineId} from '#sim/stage.ts';
import type {AcceptorMessage, Membership, ProposerMessage} from '#wire/safekeeper.ts';

export interface ScriptOptions {
  readonly nodes: number;
  /** Nodes that have the timeline and are no members. */
  readonly spares?: number;
  readonly startLsn: Lsn;
  readonly mutations?: Mutations;
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
      ...(options.mutations?.acceptor ? {mutations: options.mutations.acceptor} : {}),
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
    this.membership = {generation: 1, members: members(options.nodes), newMembers: []};
    // Spares hold the timeline and are no members.
    this.nodes = members(options.nodes + (options.spares ?? 0)).map(
      (m) => new ScriptNode(m.nodeId, this.membership, options),
    );
  }

  node(nodeId: number): ScriptNode {
    return this.nodes[nodeId - 1]!;
  }

  /** A node begins anew with nothing but this configuration. */
  replace(nodeId: number, membership: Membership): void {
    this.nodes[nodeId - 1] = new ScriptNode(nodeId, membership, this.#options);
  }

  /** A proposer connected to these nodes; nothing is delivered before `run`. */
  proposer(nodeIds: readonly number[], membership: Membership = this.membership): ScriptProposer {
    const core = new Proposer({
      tenantId,
      timelineId,
      pgVersion: 150000,
      systemId: '1',
      membership,
      ...(this.#options.mutations?.proposer ? {mutations: this.#options.mutations.proposer} : {}),
    });
    return new ScriptProposer(this, core, new Map(nodeIds.map((nodeId) => [nodeId, this.nextConnection()])));
  }

  nextConnection(): number {
    return ++this.#connections;
  }
}

export class ScriptProposer {
  readonly core: Proposer;
  readonly outputs: ProposerOutput[] = [];
  readonly #cell: ScriptCell;
  /** Connection number by node. */
  readonly #connections: Map<number, number>;
  #waiting: {readonly node: number; readonly message: ProposerMessage}[] = [];

  constructor(cell: ScriptCell, core: Proposer, connections: Map<number, number>) {
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

  /** A connection that comes later. */
  connect(node: number): void {
    this.#connections.set(node, this.#cell.nextConnection());
    this.step({kind: 'connected', peer: node});
  }

  /** Delivers what `allow` lets through, and the answers, until nothing is on its way. */
  run(allow: Allow = () => true): void {
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      const {node, message} = next;
      if (!allow(node, message)) continue;
      const acceptor = this.#cell.node(node);
      const connection = this.#connections.get(node);
      if (connection === undefined) continue;
      const answers = acceptor.step({kind: 'message', connection, message});
      if (message.kind === 'append') answers.push(...acceptor.step({kind: 'batch-end'}));
      for (const answer of answers)
        if (allow(node, answer.message)) this.step({kind: 'message', peer: node, message: answer.message});
    }
  }
}

function members(count: number): Membership['members'] {
  return Array.from({length: count}, (_, i) => ({nodeId: i + 1, host: `sk${i + 1}`, port: 1}));
}
