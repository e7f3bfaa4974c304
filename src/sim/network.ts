/**
 * Connections between computes and safekeepers. Each direction keeps its order; a partition may go one way, and holds what is
 * sent until it ends, as TCP does; what a broken connection still carried may arrive late.
 */
import type {Stage} from '#sim/stage.ts';
import {marks} from '#sim/stage.ts';
import {describe, fingerprint} from '#sim/describe.ts';
import {
  type AcceptorMessage,
  type ProposerMessage,
  decodeAcceptorMessage,
  decodeProposerMessage,
  encodeAcceptorMessage,
  encodeProposerMessage,
} from '#wire/safekeeper.ts';

const reconnectMs = 100;

/** A safekeeper, as the network sees it. */
export interface NodeEnd {
  readonly id: number;
  /** Counts its starts: a connection belongs to one. */
  readonly incarnation: number;
  readonly serves: boolean;
  receive(connection: number, message: ProposerMessage): void;
  closed(connection: number): void;
}

/** A compute's proposer, as the network sees it. */
export interface ComputeEnd {
  readonly id: number;
  readonly isAlive: boolean;
  /** Events of a frozen process wait. */
  whenAwake(run: () => void): void;
  wants(node: number): boolean;
  connected(node: number): void;
  disconnected(node: number): void;
  receive(node: number, message: AcceptorMessage): void;
}

export interface Connection {
  readonly id: number;
  readonly compute: ComputeEnd;
  readonly node: NodeEnd;
  readonly incarnation: number;
  openAtCompute: boolean;
  openAtNode: boolean;
  toNodeMs: number;
  toComputeMs: number;
  lastHeardMs: number;
  /** Given up by the compute, but its bytes still arrive. */
  lateDelivery: boolean;
}

interface Direction {
  blocks: number;
  waiting: (() => void)[];
}

export class Network {
  readonly #stage: Stage;
  readonly #directions = new Map<number, Direction>();
  readonly #ofNode = new Map<number, Set<Connection>>();
  #count = 0;

  constructor(stage: Stage) {
    this.#stage = stage;
  }

  isBlocked(compute: ComputeEnd, node: NodeEnd): boolean {
    return this.#toNode(compute, node).blocks > 0 || this.#toCompute(compute, node).blocks > 0;
  }

  /** Connects as soon as that is possible, if it is still wanted then. */
  connectLater(compute: ComputeEnd, node: NodeEnd, delayMs: number, onOpen: (c: Connection) => void): void {
    this.#stage.after(delayMs, () =>
      compute.whenAwake(() => {
        if (!compute.wants(node.id)) return;
        if (!node.serves || this.isBlocked(compute, node)) {
          this.connectLater(compute, node, reconnectMs, onOpen);
          return;
        }
        const c: Connection = {
          id: ++this.#count,
          compute,
          node,
          incarnation: node.incarnation,
          openAtCompute: true,
          openAtNode: true,
          toNodeMs: 0,
          toComputeMs: 0,
          lastHeardMs: this.#stage.nowMs,
          lateDelivery: false,
        };
        let set = this.#ofNode.get(node.id);
        if (set === undefined) this.#ofNode.set(node.id, (set = new Set()));
        set.add(c);
        onOpen(c);
        compute.connected(node.id);
      }),
    );
  }

  sendToNode(c: Connection, message: ProposerMessage): void {
    const direction = this.#toNode(c.compute, c.node);
    const received = this.#overWireToNode(message);
    const deliver = (): void => {
      if (c.node.incarnation !== c.incarnation || !c.node.serves) return;
      if (direction.blocks > 0) {
        direction.waiting.push(deliver);
        return;
      }
      // A connection that the compute has given up may still hold bytes for the safekeeper.
      if (!c.openAtNode || (!c.openAtCompute && !c.lateDelivery)) return;
      this.#stage.mark(marks.toNode, c.id, fingerprint(received));
      this.#stage.note(() => `n${c.node.id} <- p${c.compute.id} c${c.id} ${describe(received)}`);
      c.node.receive(c.id, received);
    };
    c.toNodeMs = Math.max(c.toNodeMs, this.#stage.nowMs + this.#stage.latency());
    this.#stage.queue.at(c.toNodeMs, deliver);
  }

  sendToCompute(node: NodeEnd, connection: number, message: AcceptorMessage): void {
    const c = this.#find(node, connection);
    if (c === undefined) return;
    const direction = this.#toCompute(c.compute, c.node);
    const received = this.#overWireToCompute(message);
    const deliver = (): void => {
      if (direction.blocks > 0) {
        direction.waiting.push(deliver);
        return;
      }
      c.compute.whenAwake(() => {
        if (!c.openAtCompute) return;
        c.lastHeardMs = this.#stage.nowMs;
        this.#stage.mark(marks.toCompute, c.id, fingerprint(received));
        this.#stage.note(() => `p${c.compute.id} <- n${c.node.id} c${c.id} ${describe(received)}`);
        c.compute.receive(c.node.id, received);
      });
    };
    c.toComputeMs = Math.max(c.toComputeMs, this.#stage.nowMs + this.#stage.latency());
    this.#stage.queue.at(c.toComputeMs, deliver);
  }

  /** The safekeeper ends the connection. */
  refuse(node: NodeEnd, connection: number): void {
    const c = this.#find(node, connection);
    if (c === undefined) return;
    this.#closeAtNode(c);
    this.#stage.after(this.#stage.latency(), () => this.#closeAtCompute(c));
  }

  /** The compute's end is gone; the safekeeper notices later, and may get what was on its way. */
  abandon(c: Connection): void {
    if (!c.openAtCompute) return;
    const {random, faults} = this.#stage;
    c.openAtCompute = false;
    c.lateDelivery = random.float() < faults.lateDelivery;
    if (c.lateDelivery) c.toNodeMs += random.float() * 300;
    this.#stage.after(random.float() * (c.lateDelivery ? 1000 : 50), () => this.#closeAtNode(c));
  }

  /** The node's process has ended. */
  nodeDied(node: NodeEnd): void {
    const set = this.#ofNode.get(node.id);
    if (set === undefined) return;
    for (const c of set) {
      c.openAtNode = false;
      this.#stage.after(this.#stage.random.float() * 20, () => this.#closeAtCompute(c));
    }
    set.clear();
  }

  /** One way or both, between a compute and some safekeepers. */
  partition(compute: ComputeEnd, nodes: readonly NodeEnd[]): void {
    const {random} = this.#stage;
    const blocked: Direction[] = [];
    for (const node of nodes) {
      if (random.float() < 0.5) continue;
      const way = random.float();
      if (way < 0.7) blocked.push(this.#toNode(compute, node));
      if (way > 0.3) blocked.push(this.#toCompute(compute, node));
    }
    for (const direction of blocked) direction.blocks++;
    this.#stage.after(50 + random.float() * 2500, () => {
      for (const direction of blocked) {
        direction.blocks = Math.max(0, direction.blocks - 1);
        if (direction.blocks === 0) this.#release(direction);
      }
    });
  }

  heal(): void {
    for (const direction of this.#directions.values()) {
      direction.blocks = 0;
      this.#release(direction);
    }
  }

  #release(direction: Direction): void {
    const {waiting} = direction;
    direction.waiting = [];
    for (const deliver of waiting) this.#stage.after(0, deliver);
  }

  #closeAtCompute(c: Connection): void {
    if (!c.openAtCompute) return;
    c.openAtCompute = false;
    c.compute.disconnected(c.node.id);
  }

  #closeAtNode(c: Connection): void {
    if (!c.openAtNode) return;
    c.openAtNode = false;
    this.#ofNode.get(c.node.id)?.delete(c);
    if (c.node.incarnation === c.incarnation) c.node.closed(c.id);
  }

  #find(node: NodeEnd, connection: number): Connection | undefined {
    for (const c of this.#ofNode.get(node.id) ?? []) if (c.id === connection) return c;
    return undefined;
  }

  #toNode(compute: ComputeEnd, node: NodeEnd): Direction {
    return this.#direction(compute.id * 64 + node.id * 2);
  }

  #toCompute(compute: ComputeEnd, node: NodeEnd): Direction {
    return this.#direction(compute.id * 64 + node.id * 2 + 1);
  }

  #direction(key: number): Direction {
    let direction = this.#directions.get(key);
    if (direction === undefined) this.#directions.set(key, (direction = {blocks: 0, waiting: []}));
    return direction;
  }

  #overWireToNode(message: ProposerMessage): ProposerMessage {
    if (!this.#stage.faults.codec) return message;
    const frame = encodeProposerMessage(message);
    return decodeProposerMessage(frame.type, Buffer.concat(frame.parts));
  }

  #overWireToCompute(message: AcceptorMessage): AcceptorMessage {
    if (!this.#stage.faults.codec) return message;
    const frame = encodeAcceptorMessage(message);
    return decodeAcceptorMessage(frame.type, Buffer.concat(frame.parts));
  }
}
