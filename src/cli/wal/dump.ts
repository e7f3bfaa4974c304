/** `pagoda wal dump`: records as pg_waldump prints them, without the details of each type. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {recordName, rmgrName} from '#postgres/wal/record-names.ts';
import {rmgrNames} from '#postgres/wal/rmgr.ts';
import {UsageError} from '#cli/arguments.ts';
import {isEndOfWal, readRecords} from '#cli/wal/records.ts';
import {type WalSource, findRecordStart} from '#cli/wal/wal-source.ts';

const forkNames = ['main', 'fsm', 'vm', 'init'] as const;

export interface DumpOptions {
  readonly start?: Lsn;
  readonly end?: Lsn;
  /** Only records of this resource manager. */
  readonly rmgr?: string;
  /** Sums by record type instead of the records. */
  readonly stats?: boolean;
  readonly limit?: number;
}

interface Row {
  count: number;
  recordBytes: number;
  imageBytes: number;
}

/** One line a record (or, with stats, a table at the end) to `print`. Throws UsageError when WAL is damaged before its end. */
export async function dumpWal(
  sources: readonly WalSource[],
  options: DumpOptions,
  print: (line: string) => void,
): Promise<void> {
  const {start, end, limit = Infinity, stats = false} = options;
  const wanted = options.rmgr?.toLowerCase();
  if (wanted !== undefined && !rmgrNames.some((name) => name.toLowerCase() === wanted))
    throw new UsageError(`no resource manager ${options.rmgr}; there are: ${rmgrNames.join(', ')}`);
  const rows = new Map<string, Row>();
  let printed = 0;
  let firstLsn: Lsn | undefined;
  let lastLsn: Lsn | undefined;
  for (const source of sources) {
    if (printed >= limit || (end !== undefined && source.startLsn >= end)) break;
    if (start !== undefined && source.endLsn <= start) continue;
    const from = start !== undefined && start > source.startLsn ? start : source.startLsn;
    const at = await findRecordStart(source, from, from === source.startLsn);
    const {failure, endLsn} = await readRecords(source, at, (record) => {
      if (end !== undefined && record.startLsn >= end) return false;
      if (start !== undefined && record.startLsn < start) return true;
      if (wanted !== undefined && rmgrName(record.rmid).toLowerCase() !== wanted) return true;
      firstLsn ??= record.startLsn;
      lastLsn = record.endLsn;
      if (stats) count(rows, record);
      else print(formatRecord(record));
      return ++printed < limit;
    });
    if (!isEndOfWal(failure))
      throw new UsageError(`${source.name}: WAL is damaged behind ${formatLsn(endLsn)}: ${failure!.reason}`);
  }
  if (stats) printStats(rows, firstLsn, lastLsn, print);
}

/** pg_waldump.c XLogDumpDisplayRecord, xlogdesc.c XLogRecGetBlockRefInfo. */
export function formatRecord(record: WalRecord): string {
  const images = imageBytes(record);
  const parts = [
    `rmgr: ${rmgrName(record.rmid).padEnd(11)} len (rec/tot): ${String(record.totalLength - images).padStart(6)}/${String(record.totalLength).padStart(6)}, ` +
      `tx: ${String(record.xid).padStart(10)}, lsn: ${longLsn(record.startLsn)}, prev ${longLsn(record.prevLsn)}, ` +
      `desc: ${recordName(record.rmid, record.info)}`,
  ];
  for (let id = 0; id <= record.maxBlockId; id++) {
    const block = record.block(id);
    if (block === undefined) continue;
    const fork = block.fork === 0 ? '' : ` fork ${forkNames[block.fork]}`;
    const image = block.hasImage ? (block.applyImage ? ' FPW' : ' FPW for WAL verification') : '';
    parts.push(
      `blkref #${id}: rel ${block.spcNode}/${block.dbNode}/${block.relNode}${fork} blk ${block.blockNumber}${image}`,
    );
  }
  return parts.join(', ');
}

/** LSN_FORMAT_ARGS with %X/%08X. */
function longLsn(lsn: Lsn): string {
  const [high, low] = formatLsn(lsn).split('/') as [string, string];
  return `${high}/${low.padStart(8, '0')}`;
}

function imageBytes(record: WalRecord): number {
  let bytes = 0;
  for (let id = 0; id <= record.maxBlockId; id++) {
    const block = record.block(id);
    if (block?.hasImage === true) bytes += block.imageLength;
  }
  return bytes;
}

function count(rows: Map<string, Row>, record: WalRecord): void {
  const name = `${rmgrName(record.rmid)}/${recordName(record.rmid, record.info)}`;
  let row = rows.get(name);
  if (row === undefined) rows.set(name, (row = {count: 0, recordBytes: 0, imageBytes: 0}));
  const images = imageBytes(record);
  row.count++;
  row.recordBytes += record.totalLength - images;
  row.imageBytes += images;
}

function printStats(
  rows: ReadonlyMap<string, Row>,
  firstLsn: Lsn | undefined,
  lastLsn: Lsn | undefined,
  print: (line: string) => void,
): void {
  if (firstLsn === undefined || lastLsn === undefined) {
    print('no records');
    return;
  }
  const total: Row = {count: 0, recordBytes: 0, imageBytes: 0};
  for (const row of rows.values()) {
    total.count += row.count;
    total.recordBytes += row.recordBytes;
    total.imageBytes += row.imageBytes;
  }
  const share = (part: number, whole: number): string =>
    `${String(part).padStart(14)} (${(whole === 0 ? 0 : (100 * part) / whole).toFixed(2).padStart(6)})`;
  const line = (name: string, row: Row): void =>
    print(
      `${name.padEnd(30)}${share(row.count, total.count)}${share(row.recordBytes, total.recordBytes)}` +
        `${share(row.imageBytes, total.imageBytes)}${share(row.recordBytes + row.imageBytes, total.recordBytes + total.imageBytes)}`,
    );
  print(`WAL statistics between ${formatLsn(firstLsn)} and ${formatLsn(lastLsn)}:`);
  const column = (title: string): string => `${title.padStart(14)}      (%)`;
  print(`${'Type'.padEnd(30)}${column('N')}${column('Record size')}${column('FPI size')}${column('Combined size')}`);
  for (const [name, row] of [...rows].sort(([a], [b]) => (a < b ? -1 : 1))) line(name, row);
  line('Total', total);
}
