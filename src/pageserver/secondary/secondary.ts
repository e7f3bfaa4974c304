/**
 * A tenant that another pageserver holds and that this one is ready to take over: the parts of its objects that are being read
 * there are on the local disk here. It ingests nothing, serves nothing, and writes nothing.
 */
import {chunkBytes} from '#objectstore/caching-object-store.ts';
import {
  type TimelineIndex,
  decodeIndex,
  indexObjectKey,
  parseIndexObjectKey,
  tenantPrefix,
  timelinePrefix,
} from '../timeline/index-object.ts';
import {parseArchivedMarkKey} from '../timeline/archived.ts';
import type {PageserverContext} from '../timeline/state.ts';
import {type HotBlocks, decodeHotBlocks, parseHotBlocksKey} from './hot-blocks.ts';

/** One request, at most. */
const requestBytesMax = 1024 * 1024;

interface Position {
  readonly generation: number;
  readonly sequence: number;
}

export class Secondary {
  readonly tenantId: string;
  readonly #context: PageserverContext;
  /** Whether there is a local disk to fetch to: a folder is local itself. */
  readonly #fetches: boolean;
  readonly #indexes = new Map<string, {readonly at: Position; readonly index: TimelineIndex}>();
  /** Object → chunks that were fetched. */
  readonly #fetched = new Map<string, Set<number>>();
  /** Timelines that the names of objects call archived. */
  #archived = 0;
  #isReady = false;
  #fetchedBytes = 0;

  constructor(context: PageserverContext, tenantId: string, fetches: boolean) {
    this.#context = context;
    this.tenantId = tenantId;
    this.#fetches = fetches;
  }

  /** A round has ended well since it was made. */
  get isReady(): boolean {
    return this.#isReady;
  }
  get timelines(): number {
    return this.#indexes.size + this.#archived;
  }
  /** Since it was made. */
  get fetchedBytes(): number {
    return this.#fetchedBytes;
  }

  /** Follows what was uploaded since the last round. Rejects when the object store does not answer. */
  async round(): Promise<void> {
    const {store, log} = this.#context;
    const prefix = tenantPrefix(this.tenantId);
    const newest = new Map<string, Position>();
    const archived = new Map<string, Position>();
    let hot: {key: string; at: Position} | undefined;
    for (const {key} of await store.list(prefix)) {
      const listAt = parseHotBlocksKey(key);
      if (listAt !== undefined && isNewer(listAt, hot?.at)) hot = {key, at: listAt};
      const mark = parseArchivedMarkKey(key);
      if (mark !== undefined && isNewer(mark.at, archived.get(mark.archived.timelineId)))
        archived.set(mark.archived.timelineId, mark.at);
      const at = parseIndexObjectKey(key);
      const timelineId = key.slice(`${prefix}timelines/`.length).split('/')[0]!;
      if (at !== undefined && isNewer(at, newest.get(timelineId))) newest.set(timelineId, at);
    }
    for (const timelineId of this.#indexes.keys()) if (!newest.has(timelineId)) this.#indexes.delete(timelineId);
    this.#archived = 0;
    for (const [timelineId, at] of newest) {
      // Nothing of it is read there, and an attachment does not read its index either: there may be thousands.
      if (isSame(at, archived.get(timelineId))) {
        this.#indexes.delete(timelineId);
        this.#archived++;
        continue;
      }
      const known = this.#indexes.get(timelineId);
      if (known !== undefined && !isNewer(at, known.at)) continue;
      const key = indexObjectKey(this.tenantId, timelineId, at.generation, at.sequence);
      try {
        const index = decodeIndex(await store.get(key), {tenantId: this.tenantId, timelineId, ...at});
        this.#indexes.set(timelineId, {at, index});
      } catch (error) {
        // Replaced since it was listed, or damaged: who attaches the tenant says so.
        log.debug('an index was not read for a tenant that is kept ready', {object: key, error});
      }
    }
    if (hot !== undefined && this.#fetches) await this.#fetch(hot.key);
    this.#isReady = true;
  }

  async #fetch(listKey: string): Promise<void> {
    const {store, metrics} = this.#context;
    let hot: HotBlocks | undefined;
    try {
      hot = decodeHotBlocks(listKey, await store.get(listKey));
    } catch {
      return; // replaced since it was listed: the next round has the next one
    }
    if (hot === undefined) return;
    const sizes = this.#sizes();
    for (const key of this.#fetched.keys()) if (!sizes.has(key)) this.#fetched.delete(key);
    for (const [name, chunks] of hot) {
      const key = tenantPrefix(this.tenantId) + name;
      const objectBytes = sizes.get(key);
      if (objectBytes === undefined) continue;
      const done = this.#fetched.get(key) ?? new Set<number>();
      this.#fetched.set(key, done);
      const wanted = chunks.filter((chunk) => !done.has(chunk) && chunk * chunkBytes < objectBytes);
      for (const {first, count} of runs(wanted, requestBytesMax / chunkBytes)) {
        const start = first * chunkBytes;
        const length = Math.min(count * chunkBytes, objectBytes - start);
        await store.getRange(key, start, length, {objectBytes});
        for (let i = 0; i < count; i++) done.add(first + i);
        this.#fetchedBytes += length;
        metrics.secondaryFetchedBytes.inc(length);
      }
    }
  }

  /** Bytes of each layer object that an index names. */
  #sizes(): Map<string, number> {
    const sizes = new Map<string, number>();
    for (const [timelineId, {index}] of this.#indexes)
      for (const layer of index.layers)
        sizes.set(timelinePrefix(this.tenantId, layer.timelineId ?? timelineId) + layer.name, layer.size);
    return sizes;
  }
}

function isSame(at: Position, other: Position | undefined): boolean {
  return at.generation === other?.generation && at.sequence === other.sequence;
}

function isNewer(at: Position, than: Position | undefined): boolean {
  return (
    than === undefined ||
    at.generation > than.generation ||
    (at.generation === than.generation && at.sequence > than.sequence)
  );
}

/** Ascending numbers as runs of neighbours, each of at most `max`. */
export function runs(numbers: readonly number[], max: number): {first: number; count: number}[] {
  const found: {first: number; count: number}[] = [];
  for (const n of numbers) {
    const last = found.at(-1);
    if (last !== undefined && last.first + last.count === n && last.count < max) last.count++;
    else found.push({first: n, count: 1});
  }
  return found;
}
