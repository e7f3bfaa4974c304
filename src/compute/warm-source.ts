/**
 * Pages that a starting Postgres is about to ask for, read ahead while it starts. A first session reads some hundred pages of the
 * catalogue one after the other; each would cost a way to the pageserver and back. Everything is read at one LSN, so what was
 * read early is what would be read late.
 */
import {type ForkNumber, type RelTag, blockSize, formatRel} from '#postgres/relation.ts';
import type {Clock, Timer} from '#runtime/clock.ts';
import type {HydrationListEntry, HydrationSource} from '#wire/hydration.ts';
import type {PageRun} from '#wire/pages.ts';

/** 4 MiB, for a short time. */
const pagesMax = 512;
const runPagesMax = 32;
/** What has not been asked for by then is let go of. */
const keepMs = 10_000;
/** Relations below were made by initdb: their blocks come first. */
const firstUserRelation = 16384;
const sizedForks: readonly ForkNumber[] = [0, 1, 2, 3];

export interface HotBlock {
  readonly rel: RelTag;
  readonly block: number;
}

export class WarmSource implements HydrationSource {
  readonly #source: HydrationSource;
  readonly #clock: Clock;
  /** By relation and fork. */
  readonly #sizes = new Map<string, Promise<number | undefined>>();
  readonly #pages = new Map<string, Map<number, Promise<Buffer | undefined>>>();
  #timer: Timer | undefined;

  constructor(source: HydrationSource, clock: Clock) {
    this.#source = source;
    this.#clock = clock;
  }

  /** Starts to read these, those of the catalogue first. Failures are for who asks again. */
  warm(blocks: readonly HotBlock[]): void {
    const own = (b: HotBlock): number => (b.rel.relNode < firstUserRelation ? 0 : 1);
    const key = (b: HotBlock): string => formatRel(b.rel);
    const chosen = blocks
      .toSorted((a, b) => own(a) - own(b))
      .slice(0, pagesMax)
      .toSorted((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.block - b.block));
    for (let i = 0; i < chosen.length;) {
      const {rel, block} = chosen[i]!;
      const name = formatRel(rel);
      let count = 1;
      while (count < runPagesMax && i + count < chosen.length) {
        const next = chosen[i + count]!;
        if (formatRel(next.rel) !== name || next.block !== block + count) break;
        count++;
      }
      this.#read(rel, name, block, count);
      i += count;
    }
    this.#timer?.cancel();
    this.#timer = this.#clock.setTimer(keepMs, () => this.stop());
  }

  stop(): void {
    this.#timer?.cancel();
    this.#sizes.clear();
    this.#pages.clear();
  }

  relSize(rel: RelTag): Promise<number | undefined> {
    return this.#sizes.get(formatRel(rel)) ?? this.#source.relSize(rel);
  }

  async getPages(rel: RelTag, block: number, count: number, packed = false): Promise<PageRun> {
    const known = this.#pages.get(formatRel(rel));
    const wanted: Promise<Buffer | undefined>[] = [];
    for (let at = block; at < block + count; at++) {
      const page = known?.get(at);
      if (page !== undefined) wanted.push(page);
    }
    if (wanted.length === count) {
      const pages = await Promise.all(wanted);
      if (pages.every((page) => page !== undefined))
        return {bytes: count === 1 ? pages[0]! : Buffer.concat(pages), release() {}};
    }
    return await this.#source.getPages(rel, block, count, packed);
  }

  listDb(spcNode: number, dbNode: number): Promise<readonly HydrationListEntry[]> {
    return this.#source.listDb(spcNode, dbNode);
  }

  dbSize(dbNode: number): Promise<number | undefined> {
    return this.#source.dbSize(dbNode);
  }

  #read(rel: RelTag, name: string, block: number, count: number): void {
    let pages = this.#pages.get(name);
    if (pages === undefined) {
      this.#pages.set(name, (pages = new Map()));
      for (const fork of sizedForks) this.#readSize({...rel, fork});
    }
    const copied = this.#source.getPages(rel, block, count, false).then(
      (run) => {
        const bytes = Buffer.from(run.bytes);
        run.release();
        return bytes;
      },
      () => undefined,
    );
    for (let i = 0; i < count; i++)
      pages.set(
        block + i,
        copied.then((bytes) =>
          bytes !== undefined && bytes.length >= (i + 1) * blockSize
            ? bytes.subarray(i * blockSize, (i + 1) * blockSize)
            : undefined,
        ),
      );
  }

  #readSize(rel: RelTag): void {
    const name = formatRel(rel);
    if (this.#sizes.has(name)) return;
    const size = this.#source.relSize(rel);
    this.#sizes.set(name, size);
    size.catch(() => this.#sizes.delete(name));
  }
}
