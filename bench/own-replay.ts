/**
 * Our side of `redo`: reads the recording's WAL (page headers, checksums, decode) and applies every block of every record to
 * pages in memory, one after the other, as a standby does. Base pages come from the recording's files when first touched.
 */
import {closeSync, existsSync, openSync, readSync} from 'node:fs';
import {join} from 'node:path';
import {WalReader} from '#postgres/wal/reader.ts';
import {type BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {applyRecord} from '#redo/apply.ts';
import {recordName} from '../test/oracle/record-names.ts';
import {collectGarbage} from './collect-garbage.ts';
import {type Recording, walChunks} from './recorded-wal.ts';

const pageBytes = 8192;
const forkSuffixes = ['', '_fsm', '_vm', '_init'];
const environment = {walLogHints: false};

/** The pages of one database cluster, by file node and fork. File nodes of different databases are taken to differ. */
class Pages {
  readonly #base: string;
  readonly #forks = new Map<number, {readonly file: number | undefined; readonly pages: (Buffer | undefined)[]}>();

  /** Only one at a time: it takes over the memory of the one before. */
  constructor(base: string) {
    this.#base = base;
    pagesTaken = 0;
  }

  get(block: BlockRef): Buffer {
    const key = block.relNode * 4 + block.fork;
    let fork = this.#forks.get(key);
    if (fork === undefined) this.#forks.set(key, (fork = {file: this.#open(block), pages: []}));
    const page = fork.pages[block.blockNumber];
    if (page !== undefined) return page;
    return (fork.pages[block.blockNumber] = read(block.willInit ? undefined : fork.file, block.blockNumber));
  }

  close(): void {
    for (const {file} of this.#forks.values()) if (file !== undefined) closeSync(file);
  }

  #open(block: BlockRef): number | undefined {
    const directory = block.spcNode === 1664 ? 'global' : `base/${block.dbNode}`;
    const path = join(this.#base, directory, `${block.relNode}${forkSuffixes[block.fork]}`);
    return existsSync(path) ? openSync(path, 'r') : undefined;
  }
}

// Stock's shared buffers exist before replay begins, and so do ours: the same pages in every round.
const slabPages = 128;
const slabs: Buffer[] = [];
let pagesTaken = 0;

function takePage(): Buffer {
  const slab = Math.floor(pagesTaken / slabPages);
  if (slabs[slab] === undefined) slabs.push(Buffer.alloc(slabPages * pageBytes));
  const at = (pagesTaken++ % slabPages) * pageBytes;
  return slabs[slab]!.subarray(at, at + pageBytes);
}

function read(file: number | undefined, block: number): Buffer {
  const page = takePage();
  if (file === undefined || readSync(file, page, 0, pageBytes, block * pageBytes) !== pageBytes) page.fill(0);
  return page;
}

export interface OwnReplay {
  /** User + system of the whole process (garbage collector and compiler threads included) during the replay. */
  readonly cpuNs: number;
  readonly records: number;
}

/** What the round before used: without it V8 throws compiled code away between rounds, as no server ever does. */
let lastRound: unknown;

export function replayByPagoda(recording: Recording): OwnReplay {
  const {chunks} = walChunks(recording);
  const pages = new Pages(recording.base);
  const reader = new WalReader({startLsn: recording.startLsn});
  const record = new WalRecord();
  let records = 0;
  collectGarbage();
  void lastRound;
  const before = process.cpuUsage();
  for (const chunk of chunks) {
    reader.push(chunk);
    while (reader.next(record)) {
      records++;
      for (let id = 0; id <= record.maxBlockId; id++) {
        const block = record.blocks[id]!;
        if (block.inUse) applyRecord(pages.get(block), record, id, environment);
      }
    }
  }
  const used = process.cpuUsage(before);
  pages.close();
  lastRound = {pages, reader, record};
  if (reader.failure !== undefined || reader.lastRecordEndLsn < recording.endLsn)
    throw new Error(
      `${recording.name}: the WAL could not be read to its end: ${reader.failure?.reason ?? 'it ends early'}`,
    );
  return {cpuNs: (used.user + used.system) * 1000, records};
}

/** How often each record type occurs. */
export function countTypes(recording: Recording): Map<string, number> {
  const types = new Map<string, number>();
  const reader = new WalReader({startLsn: recording.startLsn});
  const record = new WalRecord();
  for (const chunk of walChunks(recording).chunks) {
    reader.push(chunk);
    while (reader.next(record)) {
      const name = recordName(record);
      types.set(name, (types.get(name) ?? 0) + 1);
    }
  }
  return types;
}

/** One application of a record to a page. */
export interface PageChange {
  readonly record: Buffer;
  readonly endLsn: number;
  readonly blockId: number;
  readonly before: Buffer;
}

/** Up to `count` page changes of one record type, spread over the recording; and one page with `chainLength` records on it. */
export function pickChanges(
  recording: Recording,
  type: string,
  count: number,
  chainLength: number,
): {readonly changes: readonly PageChange[]; readonly chain: readonly PageChange[] | undefined} {
  const total = countTypes(recording).get(type) ?? 0;
  const every = Math.max(1, Math.floor(total / count));
  const changes: PageChange[] = [];
  const chains = new Map<Buffer, PageChange[]>();
  let chain: PageChange[] | undefined;
  const pages = new Pages(recording.base);
  const reader = new WalReader({startLsn: recording.startLsn});
  const record = new WalRecord();
  let seen = 0;
  for (const chunk of walChunks(recording).chunks) {
    reader.push(chunk);
    while (reader.next(record)) {
      const wanted = recordName(record) === type;
      const sampled = wanted && seen++ % every === 0 && changes.length < count;
      for (let id = 0; id <= record.maxBlockId; id++) {
        const block = record.block(id);
        if (block === undefined) continue;
        const page = pages.get(block);
        if ((sampled || chain === undefined) && !block.applyImage) {
          const own = Buffer.from(record.whole());
          const list = chains.get(page);
          const first = sampled || list === undefined || list.length === 0;
          const change = {record: own, endLsn: record.endLsn, blockId: id, before: first ? Buffer.from(page) : page};
          if (sampled) changes.push(change);
          if (chain === undefined) {
            if (list === undefined || block.willInit) chains.set(page, [{...change, before: Buffer.from(page)}]);
            else list.push(change);
            const length = chains.get(page)!.length;
            if (length === chainLength) {
              chain = chains.get(page)!;
              chains.clear();
            }
          }
        }
        applyRecord(page, record, id, environment);
      }
    }
  }
  pages.close();
  return {changes, chain};
}
