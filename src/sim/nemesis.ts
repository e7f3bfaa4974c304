/** What goes wrong from outside: crashes, partitions, frozen processes, disks, rival computes, changes of the safekeepers. */
import type {Lsn} from '#postgres/lsn.ts';
import type {Network} from '#sim/network.ts';
import type {SimCompute} from '#sim/sim-compute.ts';
import type {SimControl} from '#sim/sim-control.ts';
import type {SimNode} from '#sim/sim-node.ts';
import {type Stage, marks} from '#sim/stage.ts';
import type {ArchivePeer} from '#safekeeper/archiver.ts';

export interface NemesisWorld {
  readonly stage: Stage;
  readonly network: Network;
  readonly nodes: readonly SimNode[];
  readonly control: SimControl;
  readonly pageserver: {consistentLsn: Lsn};
  node(id: number): SimNode;
  startCompute(): SimCompute;
  newCompute(): void;
  livingComputes(): SimCompute[];
}

export class Nemesis {
  readonly #world: NemesisWorld;
  /** What each node last said of itself through the broker. */
  readonly #news = new Map<number, ArchivePeer>();

  constructor(world: NemesisWorld) {
    this.#world = world;
  }

  start(): void {
    const {stage, network, nodes, control} = this.#world;
    const f = stage.faults;
    stage.repeat(f.newProposerMs, () => this.#world.newCompute());
    stage.repeat(f.nodeCrashMs, () => stage.pick(nodes).crash('random'));
    stage.repeat(f.breakMs, () => this.#someCompute((p) => p.breakConnection()));
    stage.repeat(f.partitionMs, () =>
      this.#someCompute((p) => {
        stage.note(() => `partition of p${p.id}`);
        network.partition(p, nodes);
      }),
    );
    stage.repeat(f.freezeMs, () => this.#freeze());
    stage.repeat(f.diskFullMs, () => this.#fillDisk());
    stage.repeat(f.diskLossMs, () => this.#loseDisk());
    stage.repeat(f.rotMs, () => this.#rot());
    stage.repeat(f.membershipMs, () => control.changeSomething());
    stage.repeat(f.peerRecoveryMs, () => stage.pick(nodes).recoverFromPeer());
    stage.repeat(f.archiveMs, () => this.#archive());
  }

  #someCompute(run: (p: SimCompute) => void): void {
    const living = this.#world.livingComputes();
    if (living.length > 0) run(this.#world.stage.pick(living));
  }

  #freeze(): void {
    const {stage} = this.#world;
    this.#someCompute((p) => {
      p.frozenUntilMs = stage.nowMs + stage.random.float() * 3000;
      stage.note(() => `p${p.id} is frozen`);
      if (stage.random.float() < 0.7) this.#world.startCompute();
    });
  }

  #fillDisk(): void {
    const {stage, nodes} = this.#world;
    const {disk} = stage.pick(nodes);
    disk.full = true;
    stage.after(stage.random.float() * 1000, () => {
      disk.full = false;
    });
  }

  /** A minority of every set that has a say may be lost; then it is replaced. */
  #loseDisk(): void {
    const {stage, control} = this.#world;
    const node = this.#expendable();
    if (node === undefined) return;
    node.loseDisk();
    stage.after(stage.random.float() * 300, () => {
      if (!stage.healed) control.changeSomething();
    });
    if (stage.mutations.storage?.has('lost-disk-rejoins'))
      stage.after(20, () =>
        node.pull(
          {...control.configuration},
          control.configuration.members.map((m) => m.nodeId),
          () => {},
        ),
      );
  }

  #rot(): void {
    const {stage, nodes} = this.#world;
    // One at a time: what is damaged is as good as lost.
    if (nodes.some((n) => n.rottenLsn > 0)) return;
    const node = this.#expendable();
    if (node === undefined) return;
    stage.mark(marks.fault, node.id, 2);
    const chance = stage.random.float();
    node.rot(chance < 0.3 ? 'control-file' : chance < 0.6 ? 'wal' : 'tail');
  }

  #expendable(): SimNode | undefined {
    const {stage, control} = this.#world;
    const sets = control.involved.map((set) => set.map((m) => this.#world.node(m.nodeId)));
    const gone = (node: SimNode): boolean => node.rottenLsn > 0 || node.status === 'lost' || node.status === 'absent';
    const candidates = [...new Set(sets.flat())].filter(
      (node) => !gone(node) && sets.every((set) => set.filter((n) => n !== node && !gone(n)).length * 2 > set.length),
    );
    return candidates.length > 0 ? stage.pick(candidates) : undefined;
  }

  /** A pageserver reads and uploads, nodes hear of one another, and one looks at its archive. */
  #archive(): void {
    const {stage, nodes, pageserver} = this.#world;
    const serving = nodes.filter((n) => n.acceptor !== undefined);
    if (serving.length === 0) return;
    const source = stage.pick(serving);
    const {commitLsn, feedback} = source.acceptor!;
    if (stage.random.float() < 0.5 && commitLsn > pageserver.consistentLsn)
      pageserver.consistentLsn = (
        stage.random.float() < 0.3
          ? commitLsn
          : pageserver.consistentLsn + Math.floor(stage.random.float() * (commitLsn - pageserver.consistentLsn))
      ) as Lsn;
    if (stage.random.float() < 0.6)
      source.step({
        kind: 'feedback',
        feedback: {...feedback, remoteConsistentLsn: Math.min(pageserver.consistentLsn, commitLsn) as Lsn},
      });
    const told = stage.pick(serving);
    if (told.acceptor !== undefined)
      this.#news.set(told.id, {
        nodeId: told.id,
        commitLsn: told.acceptor.commitLsn,
        archivedLsn: told.acceptor.state.archivedLsn,
      });
    for (const node of serving)
      if (stage.random.float() < 0.7)
        node.archive?.tick([...this.#news.values()].filter(() => stage.random.float() < 0.9));
  }
}
