/**
 * Which pageservers are dead, as a pure class: step(input) → outputs. failover.ts asks them, and does what the outputs say.
 *
 * Silence is counted in ticks of our own, each of which has asked every node: a control plane that was stopped for a while has
 * not asked anybody, and learns from the first late tick that it may not judge yet.
 *
 * Invariants:
 *  1. A node is dead after `deadAfterMs` of ticks without an answer when its address refuses connections (nobody is there), and
 *     after `hungAfterMs` when it accepts them and does not answer (it may only be slow); one that has not answered yet after
 *     `graceMs`.
 *  2. A late tick forgives all silence: no node dies by our own pause.
 *  3. `dead` and `back` of a node alternate.
 */
export type HealthInput =
  /** Everybody has been asked again; ticks come every `tickMs`. */
  | {readonly kind: 'tick'; readonly nowMs: number; readonly nodes: readonly number[]}
  | {readonly kind: 'answered'; readonly nodeId: number}
  /** Nobody listens there. */
  | {readonly kind: 'refused'; readonly nodeId: number};

export type HealthOutput =
  | {readonly kind: 'dead'; readonly nodeId: number}
  /** Its first answer, or the first after its death. */
  | {readonly kind: 'back'; readonly nodeId: number};

export interface HealthLimits {
  readonly tickMs: number;
  readonly deadAfterMs: number;
  readonly hungAfterMs: number;
  /** For a node that has not answered since we started: it may be starting too. */
  readonly graceMs: number;
}

export const defaultHealthLimits: HealthLimits = {
  tickMs: 500,
  deadAfterMs: 2000,
  hungAfterMs: 4000,
  graceMs: 20_000,
};

interface NodeHealth {
  silentMs: number;
  refused: boolean;
  state: 'unknown' | 'alive' | 'dead';
}

export class PageserverHealth {
  readonly #limits: HealthLimits;
  readonly #nodes = new Map<number, NodeHealth>();
  #lastTickMs: number | undefined;

  constructor(limits: HealthLimits = defaultHealthLimits) {
    this.#limits = limits;
  }

  isAlive(nodeId: number): boolean {
    return this.#nodes.get(nodeId)?.state === 'alive';
  }

  isDead(nodeId: number): boolean {
    return this.#nodes.get(nodeId)?.state === 'dead';
  }

  step(input: HealthInput): HealthOutput[] {
    if (input.kind !== 'tick') {
      const node = this.#nodes.get(input.nodeId);
      if (node === undefined) return [];
      node.refused = input.kind === 'refused';
      if (node.refused) return [];
      node.silentMs = 0;
      if (node.state === 'alive') return [];
      node.state = 'alive';
      return [{kind: 'back', nodeId: input.nodeId}];
    }
    const {tickMs, deadAfterMs, hungAfterMs, graceMs} = this.#limits;
    const late = this.#lastTickMs !== undefined && input.nowMs - this.#lastTickMs > 2 * tickMs;
    this.#lastTickMs = input.nowMs;
    for (const nodeId of this.#nodes.keys()) if (!input.nodes.includes(nodeId)) this.#nodes.delete(nodeId);
    const dead: HealthOutput[] = [];
    for (const nodeId of input.nodes) {
      const node = this.#nodes.get(nodeId) ?? {silentMs: -tickMs, refused: false, state: 'unknown' as const};
      this.#nodes.set(nodeId, node);
      node.silentMs = late ? 0 : node.silentMs + tickMs;
      const limit = node.state === 'unknown' ? graceMs : node.refused ? deadAfterMs : hungAfterMs;
      if (node.state === 'dead' || node.silentMs < limit) continue;
      node.state = 'dead';
      dead.push({kind: 'dead', nodeId});
    }
    return dead;
  }
}
