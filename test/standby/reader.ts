/**
 * A timeline as its computes see it: each page is asked of the shard that keeps it, where that was last, until it is not there any
 * more. What every shard keeps is asked of all of them, and must be the same.
 */
import {setTimeout as sleep} from 'node:timers/promises';
import {isDeepStrictEqual} from 'node:util';
import {TimelineError, type TimelineReader} from '#pageserver/timeline/timeline-reader.ts';
import type {Timeline} from '#pageserver/timeline/timeline.ts';
import {blockSize} from '#postgres/relation.ts';
import {encodePackedPages, packedCodec, unpackPages} from '#wire/packed-pages.ts';
import {shardOfBlock} from '#wire/shard.ts';
import type {Fleet} from './fleet.ts';

/** What is compared with a standby. */
export type ComparedReader = Pick<
  TimelineReader,
  | 'listDatabases'
  | 'listRelations'
  | 'relationMap'
  | 'getRelPages'
  | 'slruPages'
  | 'getSlruPages'
  | 'twoPhaseFiles'
  | 'auxFiles'
  | 'checkpointState'
>;

/** A shard is nowhere for less than this, also where the machine has no time for it. */
const awayMsMax = 600_000;

export interface ReadCounts {
  /** By node. */
  readonly answers: number[];
  /** Answers of a node that did not hold the shard any more. */
  stale: number;
  /** Reads that were sent elsewhere. */
  sentOn: number;
  /** Runs of pages asked for. */
  runs: number;
  /** Pages that came compressed, as they lie in storage. */
  packed: number;
}

export class FollowingReader implements ComparedReader {
  readonly #fleet: Fleet;
  readonly #shardIds: readonly string[];
  readonly #timelineId: string;
  readonly #counts: ReadCounts;
  /** Node of each shard. */
  readonly #at: number[];

  /** `counts` is added to. */
  constructor(fleet: Fleet, shardIds: readonly string[], timelineId: string, counts: ReadCounts) {
    this.#fleet = fleet;
    this.#shardIds = shardIds;
    this.#timelineId = timelineId;
    this.#counts = counts;
    this.#at = shardIds.map((id) => fleet.row(id).node);
  }

  /** Every other run as it travels to a compute. */
  readonly getRelPages: ComparedReader['getRelPages'] = (rel, block, count, at) => {
    const packs = this.#counts.runs++ % 2 === 1;
    return this.#of(shardOfBlock(this.#shardIds.length, rel, block), async (t) => {
      if (!packs) return t.getRelPages(rel, block, count, at);
      const segments = await t.getPackedRelPagesNow(rel, block, count, at, Buffer.allocUnsafe(count * blockSize));
      const pages = segments.reduce((sum, {offsets}) => sum + offsets.length, 0);
      for (const {codec, offsets} of segments) if (codec !== packedCodec.none) this.#counts.packed += offsets.length;
      const bytes = unpackPages(Buffer.concat(encodePackedPages(segments)), pages);
      return Array.from({length: pages}, (_, i) => bytes.subarray(i * blockSize, (i + 1) * blockSize));
    });
  };

  readonly listDatabases: ComparedReader['listDatabases'] = (at) =>
    this.#agreed('databases', (t) => t.listDatabases(at));
  readonly listRelations: ComparedReader['listRelations'] = (spcNode, dbNode, at) =>
    this.#agreed(`relations of ${spcNode}/${dbNode}`, (t) => t.listRelations(spcNode, dbNode, at));
  readonly checkpointState: ComparedReader['checkpointState'] = (at) =>
    this.#agreed('the checkpoint', (t) => t.checkpointState(at));

  readonly relationMap: ComparedReader['relationMap'] = (spcNode, dbNode, at) =>
    this.#of(0, (t) => t.relationMap(spcNode, dbNode, at));
  readonly slruPages: ComparedReader['slruPages'] = (kind, at) => this.#of(0, (t) => t.slruPages(kind, at));
  readonly getSlruPages: ComparedReader['getSlruPages'] = (kind, pages, at) =>
    this.#of(0, (t) => t.getSlruPages(kind, pages, at));
  readonly twoPhaseFiles: ComparedReader['twoPhaseFiles'] = (at) => this.#of(0, (t) => t.twoPhaseFiles(at));
  readonly auxFiles: ComparedReader['auxFiles'] = (at) => this.#of(0, (t) => t.auxFiles(at));

  async #agreed<T>(what: string, read: (timeline: Timeline) => Promise<T>): Promise<T> {
    const [first, ...others] = await Promise.all(this.#shardIds.map((_, shard) => this.#of(shard, read)));
    const odd = others.findIndex((answer) => !isDeepStrictEqual(answer, first));
    if (odd >= 0) throw new Error(`shard ${odd + 1} says something else than shard 0 of ${what}`);
    return first!;
  }

  /** An error of a node that holds the shard is the answer; of another one it says: ask where the shard is. */
  async #of<T>(shard: number, read: (timeline: Timeline) => Promise<T>): Promise<T> {
    const fleet = this.#fleet;
    const shardId = this.#shardIds[shard]!;
    for (const until = Date.now() + awayMsMax; ;) {
      const node = this.#at[shard]!;
      let generation: number | undefined;
      const isCurrent = (): boolean => {
        const row = fleet.row(shardId);
        return row.node === node && row.generation === generation;
      };
      try {
        const tenant = fleet.node(node).tenant(shardId);
        ({generation} = tenant);
        const answer = await read(tenant.timeline(this.#timelineId));
        this.#counts.answers[node] = (this.#counts.answers[node] ?? 0) + 1;
        if (!isCurrent()) this.#counts.stale++;
        return answer;
      } catch (error) {
        if (isCurrent() || !(error instanceof TimelineError) || Date.now() > until) throw error;
        this.#at[shard] = fleet.row(shardId).node;
        this.#counts.sentOn++;
        await sleep(5);
      }
    }
  }
}
