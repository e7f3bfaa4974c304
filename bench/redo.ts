/**
 * `npm run bench -- redo`: CPU time per WAL record by type. Reference: the startup process of a stock standby on the same
 * WAL. Like is compared with like: both sides read page headers, check CRCs, decode, look pages up (in memory, read from the
 * file cache once) and apply. A load holds mostly one type; the time of its other records is taken away where another load
 * measured their type, and spread evenly where none did (`share` says how much of the load is the type itself). What starting
 * a standby costs is measured apart and taken away.
 *
 * Details per type: applying alone without and with the copy of the base page (`applyNs`, `applyWithCopyNs`), decoding alone,
 * and a page with 100 pending records (decode + apply + copy), as GetPage does it.
 *
 *   --rows N     size of each load, default 160000     --rounds N   default 3     --type T   only types that contain T
 *   --fresh      record the WAL anew
 */
import {parseArgs} from 'node:util';
import type {Lsn} from '#postgres/lsn.ts';
import {WalRecord, decodeRecord} from '#postgres/wal/record.ts';
import {applyRecord} from '#redo/apply.ts';
import {type PageChange, countTypes, pickChanges, replayByPagoda} from './own-replay.ts';
import {type Recording, recordWal} from './recorded-wal.ts';
import {type TypeLoad, typeLoads} from './redo-loads.ts';
import {alternate, median, printReport, say, sayTable} from './report.ts';
import {replayByStock} from './stock-replay.ts';

/** By share of page changes over four workloads (issue 3). */
const tenCommonest = [
  'Hash/INSERT',
  'Btree/INSERT_LEAF',
  'Heap/INSERT',
  'Heap/HOT_UPDATE',
  'Gin/UPDATE_META_PAGE',
  'Heap/DELETE',
  'Gist/PAGE_UPDATE',
  'SPGist/ADD_LEAF',
  'Heap2/PRUNE',
  'Heap/UPDATE',
];

interface Measured {
  readonly load: TypeLoad;
  readonly types: ReadonlyMap<string, number>;
  /** Whole load, ns of CPU. */
  readonly pagodaNs: number;
  readonly stockNs: number;
  /** Fastest rounds: what a quiet machine would come close to. */
  readonly pagodaBestNs: number;
  readonly stockBestNs: number;
  readonly micro: Micro;
}

type Side = 'pagodaNs' | 'stockNs' | 'pagodaBestNs' | 'stockBestNs';

interface Micro {
  readonly decodeNs: number;
  readonly applyNs: number;
  readonly applyWithCopyNs: number;
  readonly hundredUs: number | undefined;
}

export async function redo(args: string[]): Promise<void> {
  const {values: options} = parseArgs({
    args,
    options: {
      rows: {type: 'string', default: '160000'},
      rounds: {type: 'string', default: '3'},
      type: {type: 'string', default: ''},
      fresh: {type: 'boolean', default: false},
    },
  });
  const loads = typeLoads(Number(options.rows)).filter((load) => load.type.includes(options.type));
  const measured = new Map<string, Measured>();
  let startCostNs: number | undefined;
  for (const load of loads) {
    const recording = await recordWal(load, options.fresh);
    startCostNs ??= median([
      (await replayByStock(recording, false)).cpuNs,
      (await replayByStock(recording, false)).cpuNs,
      (await replayByStock(recording, false)).cpuNs,
    ]);
    // A page server has been running for long: compiled code is the normal state.
    for (let i = 0; i < 3; i++) replayByPagoda(recording);
    const {pagoda, reference} = await alternate({
      rounds: Number(options.rounds),
      pagoda: async () => replayByPagoda(recording).cpuNs,
      reference: async () => (await replayByStock(recording)).cpuNs,
    });
    const types = countTypes(recording);
    measured.set(load.type, {
      load,
      types,
      pagodaNs: median(pagoda),
      stockNs: Math.max(0, median(reference) - startCostNs),
      pagodaBestNs: Math.min(...pagoda),
      stockBestNs: Math.max(0, Math.min(...reference) - startCostNs),
      micro: microscope(recording, load.type),
    });
    say(`${load.type}: ours ${pagoda.map(ms).join(' ')} ms, stock ${reference.map(ms).join(' ')} ms`);
  }

  const rows = [
    ['type', 'share', 'ours ns', 'stock ns', 'ratio', 'of best', 'decode', 'apply', 'with copy', '100 records µs'],
  ];
  const types: Record<string, unknown> = {};
  const ratios: number[] = [];
  for (const [type, one] of measured) {
    const ours = perRecord(measured, one, 'pagodaNs');
    const stock = perRecord(measured, one, 'stockNs');
    const bestRatio = perRecord(measured, one, 'stockBestNs') / perRecord(measured, one, 'pagodaBestNs');
    const share = (one.types.get(type) ?? 0) / sum(one.types.values());
    const ratio = stock / ours;
    const {decodeNs, applyNs, applyWithCopyNs, hundredUs} = one.micro;
    if (tenCommonest.includes(type)) ratios.push(ratio);
    types[type] = {records: one.types.get(type), share, pagodaNs: ours, stockNs: stock, ratio, bestRatio, ...one.micro};
    const numbers = [ours, stock].map((n) => n.toFixed(0));
    const micro = [decodeNs, applyNs, applyWithCopyNs].map((n) => n.toFixed(0));
    rows.push([
      type,
      share.toFixed(2),
      ...numbers,
      ratio.toFixed(2),
      bestRatio.toFixed(2),
      ...micro,
      hundredUs?.toFixed(1) ?? '-',
    ]);
  }
  sayTable(rows);
  say(`starting a standby: ${ms(startCostNs ?? 0)} ms, taken away. ratio = the lowest of the ten commonest types`);
  printReport({
    name: 'redo',
    ratio: Math.min(...ratios),
    medianRatio: median(ratios),
    hundredRecordsUsMax: Math.max(...[...measured.values()].map((m) => m.micro.hundredUs ?? 0)),
    rows: Number(options.rows),
    types,
  });
}

/** The load's time without that of types measured elsewhere, per record of what is left. */
function perRecord(all: ReadonlyMap<string, Measured>, one: Measured, side: Side): number {
  let ns = one[side];
  let records = 0;
  for (const [type, count] of one.types) {
    // Only loads that are nearly pure, else two would explain each other.
    const other = all.get(type);
    const pure = other !== undefined && (other.types.get(type) ?? 0) / sum(other.types.values()) > 0.9;
    if (type !== one.load.type && pure) ns -= count * (other[side] / sum(other.types.values()));
    else records += count;
  }
  return ns / records;
}

/** Times of the parts, from samples, hot. */
function microscope(recording: Recording, type: string): Micro {
  const {changes, chain} = pickChanges(recording, type, 500, 100);
  if (changes.length === 0) throw new Error(`${recording.name} holds no ${type}`);
  const records = changes.map((change) => decoded(change));
  const scratch = Buffer.allocUnsafeSlow(8192);
  const record = new WalRecord();
  const environment = {walLogHints: false};
  const copyNs = perItem(changes.length, () => {
    for (const change of changes) change.before.copy(scratch);
  });
  const applyWithCopyNs = perItem(changes.length, () => {
    for (let i = 0; i < changes.length; i++) {
      const change = changes[i]!;
      change.before.copy(scratch);
      applyRecord(scratch, records[i]!, change.blockId, environment);
    }
  });
  const decodeNs = perItem(changes.length, () => {
    for (const change of changes) decodeRecord(change.record, change.endLsn as Lsn, change.endLsn as Lsn, record);
  });
  const hundredNs =
    chain &&
    perItem(1, () => {
      chain[0]!.before.copy(scratch);
      for (const change of chain) {
        decodeRecord(change.record, change.endLsn as Lsn, change.endLsn as Lsn, record);
        applyRecord(scratch, record, change.blockId, environment);
      }
    });
  return {
    decodeNs,
    applyNs: applyWithCopyNs - copyNs,
    applyWithCopyNs,
    hundredUs: hundredNs === undefined ? undefined : hundredNs / 1000,
  };
}

function decoded(change: PageChange): WalRecord {
  const record = new WalRecord();
  decodeRecord(change.record, change.endLsn as Lsn, change.endLsn as Lsn, record);
  return record;
}

/**
 * Nanoseconds per item, after a warm-up: the best of many batches so short that some are not interrupted (what else runs on
 * the machine only ever adds).
 */
function perItem(items: number, batch: () => void): number {
  const warmUntil = performance.now() + 50;
  let best = Infinity;
  while (performance.now() < warmUntil) best = Math.min(best, timeOf(batch, 1));
  const perBatch = Math.max(1, Math.ceil(0.3 / best));
  const until = performance.now() + 150;
  best = Infinity;
  while (performance.now() < until) best = Math.min(best, timeOf(batch, perBatch));
  return (best * 1e6) / items;
}

function timeOf(batch: () => void, times: number): number {
  const started = performance.now();
  for (let n = 0; n < times; n++) batch();
  return (performance.now() - started) / times;
}

function sum(numbers: Iterable<number>): number {
  let total = 0;
  for (const n of numbers) total += n;
  return total;
}

function ms(ns: number): string {
  return (ns / 1e6).toFixed(0);
}
