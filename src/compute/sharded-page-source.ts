/**
 * Pages of a sharded tenant: a source for each shard, and here the way to them. Sizes and lists come from shard 0; a run of
 * blocks that goes on in a stripe of another shard is asked of both at once and put together (wire/shard.ts).
 */
import type {Lsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize} from '#postgres/relation.ts';
import type {Clock} from '#runtime/clock.ts';
import type {Log} from '#runtime/log.ts';
import {PageSource} from '#compute/page-source.ts';
import type {Locations} from '#compute/locations.ts';
import type {ComputeSpec} from '#wire/compute-spec.ts';
import type {HydrationListEntry, HydrationSource} from '#wire/hydration.ts';
import {type PageRun, PageServiceError} from '#wire/pages.ts';
import {shardOfBlock, stripeBlocks} from '#wire/shard.ts';

export interface StoppableSource extends HydrationSource {
  stop(): void;
}

/** The source of a compute's pages, however many shards its tenant has. */
export function openPageSource(options: {
  readonly spec: ComputeSpec;
  readonly locations: Locations;
  readonly token: () => string;
  readonly lsn: Lsn;
  readonly clock: Clock;
  readonly log: Log;
}): StoppableSource {
  const sources = options.locations.shards.map((_, shard) => new PageSource({...options, shard}));
  return sources.length === 1 ? sources[0]! : new ShardedPageSource(sources);
}

export class ShardedPageSource implements StoppableSource {
  readonly #shards: readonly StoppableSource[];

  constructor(shards: readonly StoppableSource[]) {
    this.#shards = shards;
  }

  stop(): void {
    for (const shard of this.#shards) shard.stop();
  }

  relSize(rel: RelTag): Promise<number | undefined> {
    return this.#shards[0]!.relSize(rel);
  }

  listDb(spcNode: number, dbNode: number): Promise<readonly HydrationListEntry[]> {
    return this.#shards[0]!.listDb(spcNode, dbNode);
  }

  dbSize(dbNode: number): Promise<number | undefined> {
    return this.#shards[0]!.dbSize(dbNode);
  }

  async getPages(rel: RelTag, block: number, count: number, packed = false): Promise<PageRun> {
    const parts = splitByShard(this.#shards.length, rel, block, count);
    const [first] = parts;
    if (parts.length === 1) return this.#shards[first!.shard]!.getPages(rel, block, count, packed);
    const answers = await Promise.allSettled(
      parts.map((part) => this.#shards[part.shard]!.getPages(rel, part.block, part.count, false)),
    );
    return joinRuns(parts, answers);
  }
}

/** Blocks [block, block + count) that one shard keeps. */
export interface ShardPart {
  readonly shard: number;
  readonly block: number;
  readonly count: number;
}

/** In order; neighbours are of different shards. */
export function splitByShard(shardCount: number, rel: RelTag, block: number, count: number): ShardPart[] {
  const parts: ShardPart[] = [];
  for (let at = block; at < block + count;) {
    const end = Math.min(block + count, (Math.floor(at / stripeBlocks) + 1) * stripeBlocks);
    const shard = shardOfBlock(shardCount, rel, at);
    const last = parts.at(-1);
    if (last?.shard === shard) parts[parts.length - 1] = {...last, count: last.count + end - at};
    else parts.push({shard, block: at, count: end - at});
    at = end;
  }
  return parts;
}

/** One run, up to where the relation ends. Lets go of the runs that it was made of. */
function joinRuns(parts: readonly ShardPart[], answers: readonly PromiseSettledResult<PageRun>[]): PageRun {
  try {
    const bytes: Buffer[] = [];
    for (const [i, {count}] of parts.entries()) {
      const answer = answers[i]!;
      if (answer.status === 'rejected') {
        // The fork ends where this part would begin.
        if (i > 0 && answer.reason instanceof PageServiceError && answer.reason.code === 'beyond-end') break;
        throw answer.reason;
      }
      bytes.push(answer.value.bytes);
      if (answer.value.bytes.length < count * blockSize) break;
    }
    return {bytes: Buffer.concat(bytes), release: () => {}};
  } finally {
    for (const answer of answers) if (answer.status === 'fulfilled') answer.value.release();
  }
}
