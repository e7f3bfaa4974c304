/**
 * The comparison: decodes all WAL from a start LSN, redoes every block of every record on own page states, and compares the
 * result with the after-image that wal_consistency_checking = all put into the record, masked as PostgreSQL masks it.
 */
import {closeSync, existsSync, openSync, readSync, readdirSync} from 'node:fs';
import {join} from 'node:path';
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {restoreImage} from '#postgres/wal/image.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {type BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import {applyRecord} from '#redo/apply.ts';
import {pageIsNew, pageSize} from '#redo/bufpage.ts';
import {maskPage} from '#redo/mask.ts';
import {RedoError} from '#redo/redo.ts';
import {applyEffects} from './effects.ts';
import {Fuzzer} from './fuzz.ts';
import {PageStore} from './pages.ts';
import {imageOnly, recordName} from './record-names.ts';

export interface VerifyOptions {
  /** Copy of the data directory as it was at startLsn. */
  readonly base: string;
  /** pg_wal of the stopped cluster. */
  readonly walDirectory: string;
  readonly startLsn: Lsn;
  readonly walLogHints: boolean;
  /** Compare only record types that start with this, for example `Heap2` or `Btree/DEDUP`. All are redone. */
  readonly only?: string | undefined;
  /** Also apply damaged copies of every so many-th record to damaged copies of its pages: only RedoError may come of it. */
  readonly fuzz?: boolean | undefined;
  /** How many differences are printed per record type. */
  readonly printed?: number;
}

/** Figures of one record type. Page counts: one per block reference. */
export class TypeCount {
  records = 0;
  /** Records with at least one block. */
  blocks = 0;
  compared = 0;
  equal = 0;
  different = 0;
  /** Blocks whose image had to be applied: nothing to compare. */
  images = 0;
  /** Not redone: an earlier record on this page failed. */
  spoilt = 0;
  /** Blocks without an image, or of a page that does not exist. */
  unchecked = 0;
}

export interface VerifyResult {
  readonly types: Map<string, TypeCount>;
  readonly endLsn: Lsn;
  readonly lastRecordLsn: Lsn;
  /** Our final pages. */
  readonly store: PageStore;
  readonly records: number;
  /** Why reading ended: normally the zeros after the last record. */
  readonly end: string;
  /**
   * Visibility map pages compared without mask. `races`: a bit was cleared there before its own record was written. `lost`:
   * the map came into WAL by CREATE DATABASE … WAL_LOG, which drops its content (wal-redo.md 6).
   */
  readonly map: {
    readonly compared: number;
    readonly equal: number;
    readonly races: number;
    readonly lost: number;
    readonly different: number;
  };
  /** Damaged records: how many redo refused, how many it took, how many ended in another exception than RedoError. */
  readonly fuzz: {readonly refused: number; readonly taken: number; readonly escaped: number};
  readonly messages: readonly string[];
}

const segmentSize = 16 * 1024 * 1024;
const chunkSize = 1024 * 1024;

export function verify(options: VerifyOptions): VerifyResult {
  const store = new PageStore(options.base);
  const types = new Map<string, TypeCount>();
  const messages: string[] = [];
  const spoilt = new Set<Buffer>();
  const map = {compared: 0, equal: 0, races: 0, lost: 0, different: 0};
  const lostMaps = new Set<Buffer>();
  const environment = {walLogHints: options.walLogHints};
  const record = new WalRecord();
  const reader = new WalReader({startLsn: options.startLsn});
  const ours = Buffer.alloc(pageSize);
  const theirs = Buffer.alloc(pageSize);
  const fuzzer = options.fuzz === true ? new Fuzzer() : undefined;
  let records = 0;

  const complain = (count: TypeCount, name: string, block: BlockRef, what: string): void => {
    count.different++;
    if (count.different > (options.printed ?? 3)) return;
    messages.push(
      `${name} at ${formatLsn(record.startLsn)}, block ${block.id} = ${block.spcNode}/${block.dbNode}/${block.relNode} fork ${block.fork} block ${block.blockNumber}: ${what}`,
    );
  };

  const compareBlock = (count: TypeCount, name: string, block: BlockRef, page: Buffer): void => {
    if (block.applyImage) {
      count.images++;
      return;
    }
    if (!block.hasImage || (options.only !== undefined && !name.startsWith(options.only))) {
      count.unchecked++;
      return;
    }
    restoreImage(record, block, theirs);
    if (pageIsNew(page) && pageIsNew(theirs)) {
      count.unchecked++;
      return;
    }
    page.copy(ours);
    if (record.rmid === rmgr.heap2 && block.fork === 2) compareMap(block, page);
    maskPage(record.rmid, ours, block.blockNumber);
    maskPage(record.rmid, theirs, block.blockNumber);
    count.compared++;
    if (ours.equals(theirs)) {
      count.equal++;
      return;
    }
    spoilt.add(page);
    complain(count, name, block, difference(ours, theirs));
  };

  const compareMap = (block: BlockRef, page: Buffer): void => {
    map.compared++;
    if (page.compare(theirs, 10, pageSize, 10, pageSize) === 0) {
      map.equal++;
      return;
    }
    if (lostMaps.has(page)) {
      map.lost++;
      return;
    }
    for (let i = 10; i < pageSize; i++) {
      if ((theirs[i]! & ~page[i]!) === 0 && (i >= 24 || theirs[i] === page[i])) continue;
      map.different++;
      if (map.different > 5) return;
      messages.push(
        `visibility map ${block.relNode}/${block.blockNumber} at ${formatLsn(record.startLsn)}: byte ${i} is ${page[i]}, PostgreSQL has ${theirs[i]}`,
      );
      return;
    }
    map.races++;
  };

  const redo = (): void => {
    records++;
    const name = recordName(record);
    let count = types.get(name);
    if (count === undefined) types.set(name, (count = new TypeCount()));
    count.records++;
    applyEffects(store, record);
    if (record.maxBlockId < 0) return;
    count.blocks++;
    for (let id = 0; id <= record.maxBlockId; id++) {
      const block = record.block(id);
      if (block === undefined) continue;
      const {page} = store.get(block.spcNode, block.dbNode, block.relNode, block.fork, block.blockNumber);
      if (block.applyImage && block.fork === 2 && record.rmid === rmgr.xlog) lostMaps.add(page);
      if (block.applyImage || block.willInit) spoilt.delete(page);
      else if (spoilt.has(page)) {
        count.spoilt++;
        continue;
      }
      if (fuzzer !== undefined) {
        const escaped = fuzzer.attack(record, id, page);
        if (escaped !== undefined)
          messages.push(`fuzz: ${name} at ${formatLsn(record.startLsn)}, block ${id}: ${escaped}`);
      }
      try {
        applyRecord(page, record, id, environment);
        compareBlock(count, name, block, page);
      } catch (error) {
        spoilt.add(page);
        complain(
          count,
          name,
          block,
          error instanceof RedoError ? error.message : String(error instanceof Error ? error.stack : error),
        );
      }
    }
  };

  feed(options.walDirectory, options.startLsn, reader, () => {
    while (reader.next(record)) redo();
    return reader.failure === undefined;
  });
  store.close();
  const failure = reader.failure;
  return {
    types,
    endLsn: reader.lastRecordEndLsn,
    lastRecordLsn: reader.lastRecordStartLsn,
    store,
    records,
    end: failure === undefined ? 'no more segments' : `${formatLsn(failure.position)}: ${failure.reason}`,
    map,
    fuzz: fuzzer?.outcome ?? {refused: 0, taken: 0, escaped: 0},
    messages,
  };
}

/** Pushes the segment files from `startLsn` on, chunk by chunk, until `more` answers false or the files end. */
function feed(directory: string, startLsn: Lsn, reader: WalReader, more: () => boolean): void {
  let position: number = startLsn;
  for (;;) {
    const segment = Math.floor(position / segmentSize);
    const path = join(directory, segmentName(directory, segment));
    if (!existsSync(path)) return;
    const file = openSync(path, 'r');
    try {
      let at = position - segment * segmentSize;
      while (at < segmentSize) {
        // an own buffer for every chunk: records are views of it
        const chunk = Buffer.allocUnsafe(Math.min(chunkSize, segmentSize - at));
        const got = readSync(file, chunk, 0, chunk.length, at);
        if (got === 0) return;
        at += got;
        reader.push(chunk.subarray(0, got));
        if (!more()) return;
      }
    } finally {
      closeSync(file);
    }
    position = (segment + 1) * segmentSize;
  }
}

function segmentName(directory: string, segment: number): string {
  const perId = 0x100000000 / segmentSize;
  const hex = (n: number): string => n.toString(16).toUpperCase().padStart(8, '0');
  const name = `${hex(Math.floor(segment / perId))}${hex(segment % perId)}`;
  return existsSync(join(directory, `00000001${name}`))
    ? `00000001${name}`
    : (readdirSync(directory).find((n) => n.endsWith(name) && n.length === 24) ?? `00000001${name}`);
}

/** Where two pages differ: the first bytes, and how many in all. */
function difference(ours: Buffer, theirs: Buffer): string {
  const at: number[] = [];
  for (let i = 0; i < pageSize; i++) if (ours[i] !== theirs[i]) at.push(i);
  const first = at[0]!;
  const from = first & ~7;
  return `${at.length} bytes differ, first ${first}: ${ours.toString('hex', from, from + 32)} is ours at ${from}, PostgreSQL has ${theirs.toString('hex', from, from + 32)}`;
}

export interface ReportOptions {
  readonly print: (line: string) => void;
  readonly only?: string | undefined;
  /** Every record type that was seen must have been compared. */
  readonly strict: boolean;
}

/** The table, one line per record type, and the verdict. Answers true when there is no difference and nothing was missed. */
export function report(result: VerifyResult, options: ReportOptions): boolean {
  const {print, only} = options;
  const header = ['record type', 'records', 'compared', 'equal', 'different', 'images', 'spoilt', 'unchecked'];
  const rows = [...result.types]
    .filter(([name, count]) => count.blocks > 0 && (only === undefined || name.startsWith(only)))
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, c]) =>
      [name, c.records, c.compared, c.equal, c.different, c.images, c.spoilt, c.unchecked].map(String),
    );
  const widths = header.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]!.length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ');
  print(line(header));
  for (const row of rows) print(line(row));
  const missed = rows
    .filter((row) => row[2] === '0' && row[4] === '0' && !imageOnly.has(row[0]!))
    .map((row) => row[0]!);
  for (const message of result.messages) print(message);
  for (const row of rows)
    if (row[2] === '0' && imageOnly.has(row[0]!)) print(`not compared: ${row[0]} (${imageOnly.get(row[0]!)})`);
  if (missed.length > 0) print(`never compared: ${missed.join(', ')}`);
  const sum = (i: number): number => rows.reduce((total, row) => total + Number(row[i]), 0);
  const m = result.map;
  print(
    `visibility map pages without mask: ${m.compared} compared, ${m.equal} equal, ${m.races} with a bit cleared ahead of its record, ${m.lost} lost by CREATE DATABASE, ${m.different} different`,
  );
  print(
    `${result.records} records, ${rows.length} types with blocks, up to ${formatLsn(result.endLsn)} (${result.end})`,
  );
  const fuzz = result.fuzz;
  if (fuzz.refused + fuzz.taken + fuzz.escaped > 0)
    print(
      `damaged records and pages: ${fuzz.refused} refused, ${fuzz.taken} applied, ${fuzz.escaped} escaped RedoError`,
    );
  print(`${sum(2)} compared, ${sum(3)} equal, ${sum(4)} different`);
  return (
    sum(4) === 0 && sum(6) === 0 && (missed.length === 0 || !options.strict) && m.different === 0 && fuzz.escaped === 0
  );
}
