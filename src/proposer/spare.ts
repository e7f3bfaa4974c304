/**
 * The safekeeper that commits do not wait for, when all share one machine: what a third one does for a commit that two have is
 * work that the next commit waits for. It gets its WAL a few milliseconds later, as one piece. When the others turn out not to
 * be fast enough without it, there is none for a while.
 */

/** A spare is one of at least so many members: with one less there still is a quorum. */
const membersMin = 3;
/** WAL that no quorum had when the spare got it: so many times in a row, or that often among those that came in time. */
const lateWeight = 4;
const lateMost = 12;
const restMs = 5000;

export interface SpareMember {
  readonly nodeId: number;
  readonly host: string;
  /** Takes WAL, and has all but the newest. */
  readonly isUpToDate: boolean;
}

export class Spare {
  #nodeId: number | undefined;
  #late = 0;
  #restUntilMs = 0;
  /** How often each has been behind the quorum of late. */
  readonly #behind = new Map<number, number>();

  get nodeId(): number | undefined {
    return this.#nodeId;
  }

  /** Once a second. `members`: all of them; none while there are two sets. */
  choose(nowMs: number, members: readonly SpareMember[]): void {
    const [first] = members;
    const mayBeOne = members.length >= membersMin && members.every((m) => m.isUpToDate && m.host === first!.host);
    if (!mayBeOne || nowMs < this.#restUntilMs) {
      this.#nodeId = undefined;
      return;
    }
    if (this.#nodeId === undefined) {
      const behind = (member: SpareMember): number => this.#behind.get(member.nodeId) ?? 0;
      this.#nodeId = members.reduce((most, member) => (behind(member) > behind(most) ? member : most)).nodeId;
      this.#late = 0;
    }
    this.#behind.clear();
  }

  /** A quorum has something that this member lacks. */
  noteBehind(nodeId: number): void {
    this.#behind.set(nodeId, (this.#behind.get(nodeId) ?? 0) + 1);
  }

  /** The spare gets WAL that had waited for as long as it may: `isDurable`, a quorum has it. */
  noteDue(nowMs: number, isDurable: boolean): void {
    this.#late = Math.max(0, this.#late + (isDurable ? -1 : lateWeight));
    if (this.#late < lateMost) return;
    this.#nodeId = undefined;
    this.#restUntilMs = nowMs + restMs;
  }

  /** A connection broke: until the next choice everybody gets everything at once. */
  noteLost(): void {
    this.#nodeId = undefined;
  }
}
