/**
 * How far the shards of a tenant are with one timeline's WAL: what a safekeeper makes of their reports, and what it may rely on.
 *
 * Every shard ingests all WAL, each from whichever safekeeper it likes. So a safekeeper puts together what it was told itself
 * and what its peers were told (broker), shard by shard:
 *  - remoteConsistentLsn is a fact about the shard, whichever pageserver has it: uploaded and its generation validated. It
 *    never falls and never expires. What holds for all shards is the least of them; a shard of which nothing is known holds
 *    that back where it was.
 *  - lastReceivedLsn and diskConsistentLsn are true of one attachment. They count while they are repeated (every second), and
 *    only those of the newest generation: after a shard has moved, or its pageserver has died, what remains is what is uploaded.
 */
import type {Lsn} from '#postgres/lsn.ts';
import type {WalFeedback} from '#wire/safekeeper.ts';

/** Who reports: a shard under the generation of an attachment. A tenant that is not sharded is shard 0 of 1. */
export interface ShardReporter {
  readonly number: number;
  readonly count: number;
  readonly generation: number;
}

/** A report counts for so long, in milliseconds. */
const reportMsMax = 10_000;

interface ShardState {
  generation: number;
  remoteConsistentLsn: Lsn;
  lastReceivedLsn: Lsn;
  diskConsistentLsn: Lsn;
  heardMs: number;
}

const zero = 0 as Lsn;

/** Of one timeline at one safekeeper. */
export class ShardReports {
  /** Known of every shard. */
  #floorLsn: Lsn;
  #shards: ShardState[] = [];

  /** `floorLsn`: the remoteConsistentLsn that was saved. */
  constructor(floorLsn: Lsn) {
    this.#floorLsn = floorLsn;
  }

  report({number, count, generation}: ShardReporter, feedback: WalFeedback, nowMs: number): void {
    this.#setCount(count);
    const shard = this.#shards[number]!;
    shard.remoteConsistentLsn = later(shard.remoteConsistentLsn, feedback.remoteConsistentLsn);
    if (generation < shard.generation) return; // it was attached elsewhere since
    shard.generation = generation;
    shard.lastReceivedLsn = feedback.lastReceivedLsn;
    shard.diskConsistentLsn = feedback.diskConsistentLsn;
    shard.heardMs = nowMs;
  }

  /** What a peer says: of all shards, and of each when there are several. */
  heard(remoteConsistentLsn: Lsn, ofShards: readonly Lsn[] | undefined): void {
    this.#floorLsn = later(this.#floorLsn, remoteConsistentLsn);
    if (ofShards === undefined) return;
    this.#setCount(ofShards.length);
    for (const [i, lsn] of ofShards.entries())
      this.#shards[i]!.remoteConsistentLsn = later(this.#shards[i]!.remoteConsistentLsn, lsn);
  }

  /** For peers; undefined: the tenant is not sharded, as far as is known. */
  get remoteConsistentLsns(): Lsn[] | undefined {
    if (this.#shards.length < 2) return undefined;
    return this.#shards.map((shard) => later(shard.remoteConsistentLsn, this.#floorLsn));
  }

  /** What holds for all shards, and of each. */
  feedback(nowMs: number): WalFeedback {
    const shards = this.#shards.map((shard) => this.#feedbackOf(shard, nowMs));
    if (shards.length === 0)
      return {lastReceivedLsn: zero, diskConsistentLsn: zero, remoteConsistentLsn: this.#floorLsn};
    return shards.length === 1 ? shards[0]! : {...leastOf(shards), shards};
  }

  #feedbackOf(shard: ShardState, nowMs: number): WalFeedback {
    const remoteConsistentLsn = later(shard.remoteConsistentLsn, this.#floorLsn);
    const counts = nowMs - shard.heardMs <= reportMsMax;
    return {
      lastReceivedLsn: counts ? shard.lastReceivedLsn : remoteConsistentLsn,
      diskConsistentLsn: counts ? shard.diskConsistentLsn : remoteConsistentLsn,
      remoteConsistentLsn,
    };
  }

  #setCount(count: number): void {
    if (this.#shards.length === count) return;
    this.#shards = Array.from({length: count}, () => ({
      generation: 0,
      remoteConsistentLsn: zero,
      lastReceivedLsn: zero,
      diskConsistentLsn: zero,
      heardMs: -Infinity,
    }));
  }
}

/** What several safekeepers know together: of each shard the best, of all shards the least. */
export function combineFeedback(all: readonly WalFeedback[]): WalFeedback {
  const count = all.reduce((most, {shards}) => Math.max(most, shards?.length ?? 1), 1);
  const combined: WalFeedback[] = [];
  for (let i = 0; i < count; i++) {
    let [lastReceivedLsn, diskConsistentLsn, remoteConsistentLsn] = [zero, zero, zero];
    for (const feedback of all) {
      const of = feedback.shards?.[i] ?? feedback;
      lastReceivedLsn = later(lastReceivedLsn, of.lastReceivedLsn);
      diskConsistentLsn = later(diskConsistentLsn, of.diskConsistentLsn);
      remoteConsistentLsn = later(remoteConsistentLsn, of.remoteConsistentLsn);
    }
    combined.push({lastReceivedLsn, diskConsistentLsn, remoteConsistentLsn});
  }
  return leastOf(combined);
}

function leastOf(shards: readonly WalFeedback[]): WalFeedback {
  const least = (pick: (f: WalFeedback) => Lsn): Lsn =>
    shards.reduce((lsn, f) => Math.min(lsn, pick(f)), Infinity) as Lsn;
  return {
    lastReceivedLsn: least((f) => f.lastReceivedLsn),
    diskConsistentLsn: least((f) => f.diskConsistentLsn),
    remoteConsistentLsn: least((f) => f.remoteConsistentLsn),
  };
}

function later(a: Lsn, b: Lsn): Lsn {
  return a > b ? a : b;
}
