/**
 * A state of the model check: what every production object and every message under way is, as plain values, and its canonical
 * form. WAL is one byte per record, the byte is the term that wrote it.
 *
 * Symmetry: nodes of one class (same role in every configuration) may be exchanged, since neither acceptor nor proposer looks
 * at a node's id but to tell it from others: so their parts are sorted. (Where a proposer picks the first of equals, a donor,
 * the equals hold the same WAL; where it reads from a donor, the model lets it read from any that may serve. So which donors
 * it has asked already decides nothing here, and is no part of the canonical form.)
 */
import type {AcceptorSnapshot} from '#safekeeper/acceptor.ts';
import type {Peer} from '#proposer/peer.ts';
import type {ProposerSnapshot} from '#proposer/proposer-io.ts';
import type {MembershipChangeState, SafekeeperPosition} from '#wire/membership.ts';
import type {ProposerMessage, TermHistory} from '#wire/safekeeper.ts';

/** `text`: its canonical form, made once. */
export interface NodeState {
  readonly acceptor: AcceptorSnapshot;
  /** Terms of its records. */
  readonly wal: readonly number[];
  readonly text: string;
}

export interface ProposerState {
  readonly snapshot: ProposerSnapshot;
  readonly text: string;
  /** What it knows of each node, by node; empty: no member. */
  readonly peers: readonly string[];
}

export interface Sent {
  readonly message: ProposerMessage;
  readonly text: string;
}

export interface PairState {
  readonly connected: boolean;
  readonly toNode: readonly Sent[];
}

export interface ControlState {
  readonly change: MembershipChangeState;
  /** By node; what was answered. */
  readonly positions: readonly (SafekeeperPosition | undefined)[];
}

export interface ModelState {
  /** Undefined: no timeline there. */
  readonly nodes: readonly (NodeState | undefined)[];
  /** Undefined: not started yet. */
  readonly proposers: readonly (ProposerState | undefined)[];
  /** By proposer, then node. */
  readonly pairs: readonly (readonly PairState[])[];
  readonly control: ControlState | undefined;
  /** Terms of all records that were ever committed. */
  readonly committed: readonly number[];
  /** How much of that the proposer of each term has committed. */
  readonly commits: readonly number[];
  /** The proposer that won each term, -1 for none. */
  readonly winners: readonly number[];
}

/** The same text for states that differ only in which node of a class is which. */
export function canonical(state: ModelState, classes: readonly (readonly number[])[]): string {
  let text = `${state.committed.join('')};${state.commits.join(',')};${state.winners.join(',')}`;
  for (const p of state.proposers) text += `|${p === undefined ? '-' : p.text}`;
  if (state.control !== undefined) text += `|${encodeChange(state.control.change)}`;
  for (const nodes of classes) {
    const parts = nodes.map((node) => encodeNode(state, node));
    if (parts.length > 1) parts.sort();
    for (const part of parts) text += `#${part}`;
  }
  return text;
}

export function nodeState(acceptor: AcceptorSnapshot, wal: readonly number[]): NodeState {
  const {state} = acceptor;
  const text = `${state.membership.generation},${state.term},${encodeHistory(state.history)},${acceptor.commitLsn},${acceptor.proposerCommitLsn},${acceptor.flushLsn},${acceptor.writeLsn},${acceptor.appender ?? ''}:${wal.join('')}`;
  return {acceptor, wal, text};
}

export function proposerState(p: ProposerSnapshot, nodeCount: number): ProposerState {
  const peers: string[] = [];
  for (let node = 0; node < nodeCount; node++) peers.push('');
  for (const peer of p.peers) peers[peer.nodeId - 1] = encodePeer(peer);
  const text = `${p.phase[0]}${p.membership.generation},${p.term},${p.highestTermSeen},${p.campaignAgain ? 1 : 0},${encodeHistory(p.history)},${p.termStartLsn},${p.commitLsn},${p.window.startLsn},${p.window.endLsn}`;
  return {snapshot: p, text, peers};
}

export function sent(m: ProposerMessage): Sent {
  return {message: m, text: encodeMessage(m)};
}

function encodeNode(state: ModelState, node: number): string {
  let text = state.nodes[node]?.text ?? '-';
  const position = state.control?.positions[node];
  if (position !== undefined)
    text += `@${position.generation},${position.term},${position.lastLogTerm},${position.flushLsn}`;
  for (let p = 0; p < state.proposers.length; p++) {
    const pair = state.pairs[p]![node]!;
    text += pair.connected ? '/1' : '/0';
    const proposer = state.proposers[p];
    if (proposer !== undefined) text += proposer.peers[node];
    for (const one of pair.toNode) text += one.text;
  }
  return text;
}

function encodePeer(p: Readonly<Peer>): string {
  return `${p.phase[0]}${p.phase[2]}${p.newer?.generation ?? ''}v${p.vote === undefined ? '' : `${p.vote.flushLsn}${encodeHistory(p.vote.history)}`},${p.flushLsn},${p.syncedLsn},${p.commitLsn},${p.nextLsn},${p.commitSentLsn},${p.recovery[0]}`;
}

function encodeChange(c: MembershipChangeState): string {
  return `${c.phase}${c.sync === undefined ? '' : `${c.sync.term},${c.sync.lastLogTerm},${c.sync.flushLsn}`}`;
}

function encodeHistory(history: TermHistory): string {
  let text = '';
  for (const {term, lsn} of history) text += `${term}.${lsn} `;
  return text;
}

function encodeMessage(m: ProposerMessage): string {
  switch (m.kind) {
    case 'greeting':
      return `>g${m.generation}`;
    case 'vote-request':
      return `>v${m.generation},${m.term}`;
    case 'elected':
      return `>e${m.generation},${m.term},${encodeHistory(m.history)}`;
    case 'append':
      return `>a${m.generation},${m.term},${m.beginLsn},${m.commitLsn},${m.wantsReply ? 1 : 0}${m.bytes.toString('hex')}`;
  }
}
