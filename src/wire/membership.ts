/**
 * Which safekeepers accept a timeline's WAL, and how that set changes while writes go on.
 *
 * A configuration is `Membership` {generation, members, newMembers} (wire/safekeeper.ts). A change from A to B goes
 *
 *   A (g)  →  joint A+B (g+1)  →  B (g+2)
 *
 * and in the joint configuration every election and every commit needs a majority of A *and* a majority of B. Only the
 * control plane makes configurations; it drives `MembershipChange` below, whose state is JSON in its store.
 *
 * HTTP of the safekeeper (scope `node` only: a compute must not be able to name members):
 *
 *   PUT  /v1/tenant/:t/timeline/:tl/membership   {membership, minTerm?}
 *     Takes the configuration if its generation is higher than the own one, and raises the own term to minTerm if it is
 *     lower (acceptor input `membership`); both are durable before the answer.
 *     200 SafekeeperPosition (below) · also for the same configuration again
 *     409 {code: 'stale-generation', message} the own one is newer · 409 'generation-conflict' same generation, other members
 *     (compareMembership decides) · 404 'not_found' no such timeline here
 *
 *   POST /v1/tenant/:t/timeline/:tl/pull         {membership, from: Member[]}
 *     The timeline is here: nothing is done. It is not: copies it from the first of `from` that has it. 200
 *     SafekeeperPosition. 409 'not-pullable' when mayPull() is false: the node must be in neither list, so that it has promised
 *     nothing that it could have forgotten. The answer may take as long as copying takes; asking again meanwhile must not
 *     start a second copy. Steps, in this order:
 *       1. read the donor's state (term, history, flushLsn, commitLsn, startLsn, localStartLsn, archivedLsn, systemId, …),
 *       2. copy its WAL [localStartLsn, flushLsn) into a directory beside the final one,
 *       3. read the donor's state again: when pulledState() (safekeeper/pulled-state.ts) says that the copy is no prefix of
 *          its log any more (it was truncated meanwhile), begin anew,
 *       4. sync the WAL, write the control file pulledState() returns, rename the directory into place, sync the parent.
 *     A tombstone left by `exclude` does not hinder it, one left by DELETE does (410).
 *
 *   POST /v1/tenant/:t/timeline/:tl/exclude      {membership}
 *     The node is in neither list of `membership` and its generation is at least the own one: files and connections go, the
 *     node may become a member again by `pull` of a higher generation. 200 also when there is nothing. 409 otherwise. No other
 *     change may begin while one is under way: it could take away what the next change has found there.
 *
 *   GET  /v1/tenant/:t/timeline/:tl  has SafekeeperPosition's fields and `membership`.
 *
 * What acceptors and proposers do with generations:
 *   - An acceptor takes a vote-request, elected or append of exactly its own generation, and only while it is a member. One of
 *     an older generation has no effect and is answered by a greeting-response, which carries the newer configuration. One of
 *     a newer generation is refused with `wrong-generation`: the control plane will tell it.
 *   - A safekeeper that was away asks its peers (peer-recovery.ts) and takes the newest configuration any of them has.
 *   - A proposer stays with its configuration as long as the members that have not left it could still be a quorum (and are
 *     connected, or were two seconds ago), then takes the newest it heard of; output `membership` tells its shell to connect to new members and to drop removed ones. It need
 *     not be elected again, and commits go on; but acknowledgements count only in the generation they were given in.
 *
 * Why this is safe (checked by src/sim, and completely for one change by src/sim/model-check.ts):
 *   - Between A and joint A+B, and between joint and B, any two quorums share a member.
 *   - A and B alone do not. So before B exists anywhere, a majority of A is in the joint generation (nothing can be elected
 *     or committed in A any more; what was is known to that majority at that moment: `sync`), and then a majority of B has
 *     (a) a term at least as high as any in `sync` — no term can be won both in A and in B — and (b) WAL at least as far, by
 *     (term of the last WAL, flushLsn), as any in `sync`.
 *   - A node that lost its disk would vote with lost memory: it answers 404 until it has left the set and been pulled anew.
 *
 * When the control plane is gone between two steps, commits go on: a proposer counts as long as one of the two
 * configurations has its quorum among members that hold it. The one exception: a member is down, and of the other two only
 * one has been told; then commits wait until the other has asked its peer.
 */
import {type Lsn, formatLsn, parseLsn} from '#postgres/lsn.ts';
import {assert} from '#runtime/assert.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';

/** Answer of PUT membership and pull: durable when it is said. In JSON the LSNs are `HI/LO`. */
export interface SafekeeperPosition {
  readonly generation: number;
  readonly term: number;
  /** The term of the last WAL that is durable there. */
  readonly lastLogTerm: number;
  readonly flushLsn: Lsn;
  readonly commitLsn: Lsn;
}

export function positionJson(position: SafekeeperPosition): Record<string, unknown> {
  return {...position, flushLsn: formatLsn(position.flushLsn), commitLsn: formatLsn(position.commitLsn)};
}

/** Throws an Error that says what is missing. */
export function parsePosition(json: unknown): SafekeeperPosition {
  const {generation, term, lastLogTerm, flushLsn, commitLsn} = (json ?? {}) as Record<string, unknown>;
  if (!isCount(generation) || !isCount(term) || !isCount(lastLogTerm))
    throw new Error('a safekeeper position needs generation, term and lastLogTerm');
  if (typeof flushLsn !== 'string' || typeof commitLsn !== 'string')
    throw new Error('a safekeeper position needs flushLsn and commitLsn as HI/LO');
  return {generation, term, lastLogTerm, flushLsn: parseLsn(flushLsn), commitLsn: parseLsn(commitLsn)};
}

/** Reads a configuration from JSON of a request or a store. Throws an Error that says what is wrong with it. */
export function parseMembership(json: unknown): Membership {
  const {generation, members, newMembers} = (json ?? {}) as Record<string, unknown>;
  if (!isCount(generation) || generation === 0 || generation > 0xffff_ffff)
    throw new Error('a membership needs a generation from 1 on');
  const list = parseMembers(members, 'members');
  if (list.length === 0) throw new Error('a membership has at least one member');
  return {generation, members: list, newMembers: parseMembers(newMembers ?? [], 'newMembers')};
}

/** Throws an Error that names `what`. */
export function parseMembers(json: unknown, what: string): Member[] {
  if (!Array.isArray(json) || json.length > 32) throw new Error(`${what} must be a list of at most 32 safekeepers`);
  const list = json.map((entry: unknown): Member => {
    const {nodeId, host, port} = (entry ?? {}) as Record<string, unknown>;
    if (!isCount(nodeId) || typeof host !== 'string' || host.length > 255 || !isCount(port))
      throw new Error(`each of ${what} is {nodeId, host, port}`);
    return {nodeId, host, port};
  });
  if (new Set(list.map((m) => m.nodeId)).size !== list.length) throw new Error(`${what} name a node twice`);
  return list;
}

/** What an acceptor with `own` makes of `proposed`; `conflict`: two configurations of one generation, which must not be. */
export function compareMembership(own: Membership, proposed: Membership): 'newer' | 'same' | 'stale' | 'conflict' {
  if (proposed.generation !== own.generation) return proposed.generation > own.generation ? 'newer' : 'stale';
  return sameNodes(own.members, proposed.members) && sameNodes(own.newMembers, proposed.newMembers)
    ? 'same'
    : 'conflict';
}

export function isMember(membership: Membership, nodeId: number): boolean {
  return membership.members.some((m) => m.nodeId === nodeId) || membership.newMembers.some((m) => m.nodeId === nodeId);
}

/** All members of both lists, each once. */
export function allMembers(membership: Membership): Member[] {
  const {members, newMembers} = membership;
  return [...members, ...newMembers.filter((n) => !members.some((m) => m.nodeId === n.nodeId))];
}

/** A node may copy the timeline only while it is no member: then it has promised nothing that it may have forgotten. */
export function mayPull(membership: Membership, nodeId: number): boolean {
  return !isMember(membership, nodeId);
}

/** Persisted by the control plane; JSON. */
export interface MembershipChangeState {
  /**
   * prepare   new nodes copy the timeline; they are no members yet, nothing they say counts
   * joint     the old members are told the joint configuration, until a majority has it
   * catch-up  a majority of the new set must reach `sync`
   * final     the new set is told its configuration, until a majority has it
   * done      the change is over; what is left is to tell stragglers and to exclude removed nodes
   */
  readonly phase: 'prepare' | 'joint' | 'catch-up' | 'final' | 'done';
  readonly base: Membership;
  readonly joint: Membership;
  readonly final: Membership;
  /** The highest position and term of a majority of the old members after they took the joint configuration. */
  readonly sync?: {readonly term: number; readonly lastLogTerm: number; readonly flushLsn: string};
  readonly cancelled?: boolean;
}

export type MembershipAction =
  | {readonly kind: 'put'; readonly node: Member; readonly membership: Membership; readonly minTerm: number}
  | {
      readonly kind: 'pull';
      readonly node: Member;
      readonly membership: Membership;
      /** Best donor first. */
      readonly from: readonly Member[];
    }
  | {readonly kind: 'exclude'; readonly node: Member; readonly membership: Membership};

/**
 * One change of a timeline's safekeepers: a pure plan. Whoever drives it
 *
 *   1. makes the state durable: at begin(), and whenever `state` is another object than the one saved last,
 *      BEFORE it carries out actions() of it;
 *   2. carries out actions() in any order, at the same time, again and again (each is idempotent, each may be lost);
 *   3. gives each answer to answered(), or excluded(); failures need not be told;
 *   4. goes on until isDone; then for as long as actions() is not empty, now and then.
 *
 * After a crash, `new MembershipChange(saved state)` goes on. Only one change of a timeline may be under way at a time, and
 * the next one begins with `configuration` of the last as its base.
 */
export class MembershipChange {
  #state: MembershipChangeState;
  /** The newest answer of each node; lost in a crash, asked for again. */
  readonly #positions = new Map<number, SafekeeperPosition>();
  readonly #excluded = new Set<number>();

  /** Throws when there is nothing to change, or the base is itself a joint configuration. */
  static begin(base: Membership, target: readonly Member[]): MembershipChangeState {
    if (base.newMembers.length > 0) throw new Error('another change of the safekeepers is under way');
    if (target.length === 0) throw new Error('a timeline needs at least one safekeeper');
    if (sameNodes(base.members, target)) throw new Error('these are the safekeepers already');
    return {
      phase: target.every((node) => has(base.members, node.nodeId)) ? 'joint' : 'prepare',
      base,
      joint: {generation: base.generation + 1, members: base.members, newMembers: target},
      final: {generation: base.generation + 2, members: target, newMembers: []},
    };
  }

  constructor(state: MembershipChangeState) {
    this.#state = state;
  }

  get state(): MembershipChangeState {
    return this.#state;
  }
  get isDone(): boolean {
    return this.#state.phase === 'done';
  }
  /** What a compute that starts now is to be told: a majority that it needs has it. */
  get configuration(): Membership {
    const {phase, base, joint, final, cancelled} = this.#state;
    if (phase === 'done') return final;
    return phase === 'prepare' || phase === 'joint' || cancelled === true ? base : joint;
  }
  /** For an operator: what the change waits for. */
  get waitsFor(): string {
    const {phase, base, final} = this.#state;
    switch (phase) {
      case 'prepare':
        return `copies at ${names(this.#added)}`;
      case 'joint':
        return `a majority of ${names(base.members)} to take the joint configuration`;
      case 'catch-up':
        return `a majority of ${names(final.members)} to reach ${this.#state.sync!.flushLsn}`;
      case 'final':
        return `a majority of ${names(final.members)} to take the new configuration`;
      case 'done':
        return 'nothing';
    }
  }

  actions(): MembershipAction[] {
    const {phase, base, joint, final, sync} = this.#state;
    const minTerm = sync?.term ?? 0;
    const put = (nodes: readonly Member[], membership: Membership): MembershipAction[] =>
      nodes
        .filter((node) => !this.#reached(node, membership.generation, minTerm))
        .map((node) => ({kind: 'put', node, membership, minTerm}));
    switch (phase) {
      case 'prepare':
        return this.#added
          .filter((node) => !this.#positions.has(node.nodeId))
          .map((node) => ({kind: 'pull', node, membership: base, from: this.#donors()}));
      case 'joint':
        return put(base.members, joint);
      case 'catch-up': {
        // Those that have the configuration are asked again, for their position.
        const late = final.members.filter((node) => !this.#isSynced(node));
        return [
          ...late.map((node): MembershipAction => ({kind: 'put', node, membership: joint, minTerm})),
          ...put(
            base.members.filter((node) => !has(late, node.nodeId)),
            joint,
          ),
        ];
      }
      case 'final':
        return put(final.members, final);
      case 'done':
        return [
          ...put(final.members, final),
          ...this.#removed
            .filter((node) => !this.#excluded.has(node.nodeId))
            .map((node): MembershipAction => ({kind: 'exclude', node, membership: final})),
        ];
    }
  }

  /** The answer of a put or a pull. */
  answered(nodeId: number, position: SafekeeperPosition): void {
    const before = this.#positions.get(nodeId);
    if (before !== undefined && before.generation > position.generation) return; // overtaken on its way
    this.#positions.set(nodeId, position);
    this.#advance();
  }

  excluded(nodeId: number): void {
    this.#excluded.add(nodeId);
  }

  /** Back to the old members; false when the new configuration may exist already. */
  cancel(): boolean {
    const {phase, base, joint} = this.#state;
    if (phase === 'final' || phase === 'done') return phase === 'done' && this.#state.cancelled === true;
    const {sync: _, ...rest} = this.#state;
    if (phase === 'prepare') this.#state = {...rest, phase: 'done', final: base, cancelled: true};
    // Every quorum of the joint configuration has a majority of the old members: nothing needs to be caught up with.
    else
      this.#state = {
        ...rest,
        phase: 'final',
        final: {generation: joint.generation + 1, members: base.members, newMembers: []},
        cancelled: true,
      };
    return true;
  }

  #advance(): void {
    const {phase, base, joint, final} = this.#state;
    if (phase === 'prepare') {
      // All of them: once they are members they can not copy any more (mayPull).
      if (this.#added.every((node) => this.#positions.has(node.nodeId))) this.#to({phase: 'joint'});
    } else if (phase === 'joint') {
      const joined = (node: Member): boolean => this.#reached(node, joint.generation, 0);
      if (!majority(base.members, joined)) return;
      let term = 0;
      let best: SafekeeperPosition | undefined;
      for (const node of base.members.filter(joined)) {
        const position = this.#positions.get(node.nodeId)!;
        term = Math.max(term, position.term);
        if (best === undefined || comparePosition(position, best) > 0) best = position;
      }
      assert(best !== undefined, 'a majority is not empty');
      this.#to({
        phase: 'catch-up',
        sync: {term, lastLogTerm: best.lastLogTerm, flushLsn: formatLsn(best.flushLsn)},
      });
      this.#advance();
    } else if (phase === 'catch-up') {
      if (majority(final.members, (node) => this.#isSynced(node))) this.#to({phase: 'final'});
    } else if (phase === 'final') {
      if (majority(final.members, (node) => this.#reached(node, final.generation, 0))) this.#to({phase: 'done'});
    }
  }

  #to(changes: Partial<MembershipChangeState>): void {
    this.#state = {...this.#state, ...changes};
  }

  #reached(node: Member, generation: number, term: number): boolean {
    const position = this.#positions.get(node.nodeId);
    return position !== undefined && position.generation >= generation && position.term >= term;
  }

  /** Has the joint configuration, the term and the WAL that `sync` asks for. */
  #isSynced(node: Member): boolean {
    const {sync, joint} = this.#state;
    assert(sync !== undefined, 'the position to reach is known');
    return (
      this.#reached(node, joint.generation, sync.term) &&
      comparePosition(this.#positions.get(node.nodeId)!, {
        lastLogTerm: sync.lastLogTerm,
        flushLsn: parseLsn(sync.flushLsn),
      }) >= 0
    );
  }

  #donors(): Member[] {
    const position = (node: Member): SafekeeperPosition | undefined => this.#positions.get(node.nodeId);
    return [...this.#state.base.members].sort((a, b) => {
      const [pa, pb] = [position(a), position(b)];
      if (pa === undefined || pb === undefined) return (pa === undefined ? 1 : 0) - (pb === undefined ? 1 : 0);
      return comparePosition(pb, pa);
    });
  }

  get #added(): Member[] {
    const {base, joint} = this.#state;
    return joint.newMembers.filter((m) => !has(base.members, m.nodeId));
  }
  get #removed(): Member[] {
    const {joint, final} = this.#state;
    return allMembers(joint).filter((m) => !has(final.members, m.nodeId));
  }
}

type LogPosition = Pick<SafekeeperPosition, 'lastLogTerm' | 'flushLsn'>;

/** Which log is the newer one: by the term of its last WAL, then by length. */
export function comparePosition(a: LogPosition, b: LogPosition): number {
  return a.lastLogTerm - b.lastLogTerm || a.flushLsn - b.flushLsn;
}

function majority(members: readonly Member[], holds: (member: Member) => boolean): boolean {
  return members.filter(holds).length * 2 > members.length;
}

function has(members: readonly Member[], nodeId: number): boolean {
  return members.some((m) => m.nodeId === nodeId);
}

function sameNodes(a: readonly Member[], b: readonly Member[]): boolean {
  return a.length === b.length && a.every((m) => has(b, m.nodeId));
}

function names(members: readonly Member[]): string {
  return members.map((m) => `safekeeper ${m.nodeId}`).join(', ');
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}
