/**
 * The control plane of a simulated world, as far as safekeepers' membership goes: drives the production MembershipChange. Its
 * store is durable; it dies between any two steps; its requests are lost, late, doubled, and so are the answers.
 */
import {formatLsn} from '#postgres/lsn.ts';
import {describeMembership} from '#sim/describe.ts';
import type {ControlMutation} from '#sim/mutations.ts';
import type {SimNode} from '#sim/sim-node.ts';
import {type Stage, marks} from '#sim/stage.ts';
import {
  type MembershipAction,
  MembershipChange,
  type MembershipChangeState,
  type SafekeeperPosition,
} from '#wire/membership.ts';
import type {Member, Membership} from '#wire/safekeeper.ts';

const retryMs = 60;

export interface ControlWorld {
  readonly stage: Stage;
  readonly nodes: readonly SimNode[];
  node(id: number): SimNode;
}

export class SimControl {
  readonly #world: ControlWorld;
  readonly #stage: Stage;
  readonly #bugs: ReadonlySet<ControlMutation>;
  /** Durable: the last change, or its beginning; and the configuration when there was none. */
  #saved: MembershipChangeState | undefined;
  #settled: Membership;
  readonly #outdated: Membership[] = [];
  /** In memory. */
  #change: MembershipChange | undefined;
  #life = 0;
  /** Exclusions under way: the next change waits for them (wire/membership.ts). */
  #excluding = 0;

  constructor(world: ControlWorld, first: Membership) {
    this.#world = world;
    this.#stage = world.stage;
    this.#bugs = world.stage.mutations.control ?? new Set();
    this.#settled = first;
  }

  /** What a new compute is told. */
  get configuration(): Membership {
    return this.#saved === undefined ? this.#settled : new MembershipChange(this.#saved).configuration;
  }
  get outdated(): readonly Membership[] {
    return this.#outdated;
  }
  get isChanging(): boolean {
    return this.#saved !== undefined && this.#saved.phase !== 'done';
  }
  /** All that may have a say. */
  get involved(): readonly (readonly Member[])[] {
    if (this.#saved === undefined) return [this.#settled.members];
    const {phase, base, final, joint} = this.#saved;
    // New members are not there yet, and need not be spared: they copy again.
    if (phase === 'prepare') return [base.members];
    return phase === 'done' ? [final.members] : [base.members, joint.newMembers, final.members];
  }
  get waitsFor(): string {
    return this.#change?.waitsFor ?? 'nothing';
  }

  /** Another set of safekeepers: mostly one is replaced, a lost one first. */
  changeSomething(): void {
    if (this.isChanging || this.#excluding > 0) return;
    const {random} = this.#stage;
    const base = this.configuration;
    const current = base.members.map((m) => m.nodeId);
    for (const node of this.#world.nodes) if (node.status === 'lost' && !current.includes(node.id)) node.exclude(base);
    // Damage that nobody knows of is survived by a set that was whole before; a set that begins with it may not be.
    const spare = this.#world.nodes.filter((n) => !current.includes(n.id) && n.rottenLsn === 0).map((n) => n.id);
    // A member without a timeline, too: it lost its disk before it was told that it is one.
    const lost =
      current.find((id) => ['lost', 'absent'].includes(this.#world.node(id).status)) ??
      current.find((id) => this.#world.node(id).rottenLsn > 0);
    const out = lost ?? this.#stage.pick(current);
    const kind = random.float();
    const take = (): number[] => spare.splice(Math.floor(random.float() * spare.length), 1);
    let target = current.filter((id) => id !== out);
    if (kind < 0.15 && target.length >= 2) {
      // One fewer.
    } else if (kind < 0.25 && lost === undefined && spare.length > 0) target = [...current, ...take()];
    else if (kind < 0.35 && spare.length > 1) target = [...target.slice(1), ...take(), ...take()];
    else target = [...target, ...take()];
    if (target.length < 2 || (target.length === current.length && target.every((id) => current.includes(id)))) return;
    this.#begin(MembershipChange.begin(base, target.map(member)));
  }

  #begin(state: MembershipChangeState): void {
    const stage = this.#stage;
    stage.changes++;
    // One that was given up before anybody was told of it never was: its generation is the next change's.
    const before = this.#saved;
    if (before !== undefined && before.final.generation > before.joint.generation) this.#outdated.push(before.joint);
    this.#outdated.push(this.configuration);
    if (this.#bugs.has('no-joint') && state.phase === 'joint') state = {...state, phase: 'final'};
    this.#save(state);
    stage.note(() => `control begins ${describeMembership(state.joint)}`);
    this.#change = new MembershipChange(state);
    this.#life++;
    this.#go(this.#life);
    if (stage.happens(stage.faults.controlCancel)) {
      const life = this.#life;
      stage.after(stage.random.float() * 400, () => {
        if (this.#life === life && this.#change?.cancel()) this.#advanced();
      });
    }
  }

  heal(): void {
    if (this.#saved === undefined) return;
    this.#life++;
    this.#change = new MembershipChange(this.#saved);
    this.#go(this.#life);
  }

  #save(state: MembershipChangeState): void {
    if (state === this.#saved) return;
    this.#saved = state;
    this.#stage.mark(marks.control, state.joint.generation, state.phase.length);
    this.#stage.note(() => `control: phase ${state.phase}${state.cancelled ? ' (cancelled)' : ''}`);
  }

  #go(life: number): void {
    if (this.#life !== life) return;
    const change = this.#change!;
    const actions = change.actions();
    if (actions.length === 0) return;
    for (const action of actions) this.#request(life, change, action);
    this.#stage.after(retryMs, () => this.#go(life));
  }

  #request(life: number, change: MembershipChange, action: MembershipAction): void {
    const stage = this.#stage;
    if (stage.happens(stage.faults.controlCrash * 0.3)) {
      this.#die();
      return;
    }
    if (stage.happens(stage.faults.controlLoss)) return;
    const node = this.#world.node(action.node.nodeId);
    const answer = (position: SafekeeperPosition): void => {
      if (stage.happens(stage.faults.controlLoss)) return;
      stage.after(stage.latency(), () => {
        if (this.#life !== life) return;
        change.answered(node.id, position);
        const {phase, joint} = change.state;
        if (this.#bugs.has('joint-not-majority') && phase === 'joint' && position.generation >= joint.generation) {
          const {term, lastLogTerm, flushLsn} = position;
          const sync = {term, lastLogTerm, flushLsn: formatLsn(flushLsn)};
          this.#change = new MembershipChange({...change.state, phase: 'catch-up', sync});
        }
        this.#advanced();
      });
    };
    const arrive = (): void => {
      switch (action.kind) {
        case 'put': {
          const position = node.putMembership(action.membership, action.minTerm);
          if (position !== undefined) answer(position);
          break;
        }
        case 'pull':
          node.pull(
            action.membership,
            action.from.map((m) => m.nodeId),
            answer,
          );
          break;
        case 'exclude':
          this.#excluding--;
          if (node.exclude(action.membership))
            stage.after(stage.latency(), () => {
              if (this.#life === life) change.excluded(node.id);
            });
          break;
      }
    };
    if (action.kind === 'exclude') this.#excluding++;
    stage.after(stage.latency(), arrive);
    // A put may be late, and come twice. (A copy and an exclusion are only asked for on a connection that lives.)
    if (action.kind === 'put' && stage.happens(stage.faults.controlLoss))
      stage.after(stage.random.float() * 1000, arrive);
  }

  #advanced(): void {
    const {state} = this.#change!;
    if (state === this.#saved) return;
    if (this.#stage.happens(this.#stage.faults.controlCrash)) {
      // Before or after the new state was saved.
      if (this.#stage.random.float() < 0.5) this.#save(this.#mutated(state));
      this.#die();
      return;
    }
    this.#save(this.#mutated(state));
    if (this.#saved !== state) this.#change = new MembershipChange(this.#saved!);
    this.#life++;
    this.#go(this.#life);
  }

  #die(): void {
    const life = ++this.#life;
    this.#stage.note(() => 'control dies');
    this.#change = undefined;
    this.#stage.after(20 + this.#stage.random.float() * 800, () => {
      if (this.#life !== life) return;
      if (this.#bugs.has('state-not-saved') && this.#saved !== undefined && this.#saved.phase === 'catch-up') {
        this.#save({...this.#saved, phase: 'done', final: this.#saved.base});
      }
      this.#change = new MembershipChange(this.#saved!);
      this.#go(++this.#life);
    });
  }

  /** Seeded bugs of the plan. */
  #mutated(state: MembershipChangeState): MembershipChangeState {
    if (this.#bugs.size === 0 || state.cancelled === true) return state;
    if (this.#bugs.has('no-joint') && state.phase === 'joint') return {...state, phase: 'final'};
    if (state.phase === 'catch-up' && state.sync !== undefined) {
      if (this.#bugs.has('no-catch-up')) return {...state, phase: 'final'};
      if (this.#bugs.has('no-sync-term')) return {...state, sync: {...state.sync, term: 0}};
      if (this.#bugs.has('catch-up-by-lsn')) return {...state, sync: {...state.sync, lastLogTerm: 0}};
    }
    return state;
  }
}

export function member(nodeId: number): Member {
  return {nodeId, host: `sk${nodeId}`, port: 1};
}
