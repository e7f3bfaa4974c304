/**
 * What the fuzzer mutates: real records with the pages they change, before and after, of every record type that the loads of
 * the redo oracle reach; and stretches of raw WAL. Captured once from a short run of a stock PostgreSQL and kept in .cache/.
 */
import {execFileSync} from 'node:child_process';
import {createHash} from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {controlFileDataSize} from '#postgres/control-file.ts';
import {type Lsn, parseLsn} from '#postgres/lsn.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalRecord, decodeRecord} from '#postgres/wal/record.ts';
import {walPageSize, walSegmentSizeDefault} from '#postgres/wal/segment.ts';
import {applyRecord} from '#redo/apply.ts';
import {SeededRandom} from '#runtime/random.ts';
import {applyEffects} from '../oracle/effects.ts';
import {imageLoads, quickLoads, sqlLoad} from '../oracle/loads.ts';
import {PageStore} from '../oracle/pages.ts';
import {recordName} from '../oracle/record-names.ts';
import {PostgresCluster, runTool} from '../postgres-cluster.ts';

/** One block of one record. The buffers are never written to. */
export interface Sample {
  /** `Heap/HOT_UPDATE`, see record-names.ts. */
  readonly name: string;
  readonly blockId: number;
  readonly endLsn: Lsn;
  /** The whole record. */
  readonly record: Buffer;
  readonly before: Buffer;
  readonly after: Buffer;
}

/** A stretch of WAL that begins with a record's first byte. */
export interface WalStretch {
  readonly startLsn: Lsn;
  readonly bytes: Buffer;
  /** Offset and length of the records that lie within one WAL page. */
  readonly records: readonly (readonly [number, number])[];
}

export interface Corpus {
  readonly samples: readonly Sample[];
  readonly byName: ReadonlyMap<string, readonly Sample[]>;
  readonly names: readonly string[];
  /** Records without blocks, by type: transaction, storage, multixact and the like. */
  readonly blockless: readonly Buffer[];
  readonly wal: readonly WalStretch[];
  /** Contents of global/pg_control of the cluster that wrote them (without checksum and padding). */
  readonly control: Buffer;
  /** Of the file; part of a saved case, because a case is made from seed, number and corpus. */
  readonly hash: string;
}

const version = 2;
/** Per record type and block id. */
const samplesMax = 16;
const stretchBytes = 4 * walPageSize;
const root = join(import.meta.dirname, '../..');
export const corpusPath = join(root, `.cache/fuzz/corpus-${version}.bin`);

/** Reads the kept corpus, or makes it (some tens of seconds; needs PostgreSQL 15). */
export async function loadCorpus(fresh = false): Promise<Corpus> {
  if (fresh || !existsSync(corpusPath)) await capture(corpusPath);
  return readCorpus(corpusPath);
}

const settings = {
  fsync: 'off',
  synchronous_commit: 'off',
  wal_level: 'logical',
  shared_buffers: '128MB',
  max_wal_size: '50GB',
  wal_keep_size: '50GB',
  checkpoint_timeout: '1d',
  max_prepared_transactions: 20,
  track_commit_timestamp: 'on',
} as const;

async function capture(path: string): Promise<void> {
  const dir = mkdtempSync(join(tmpdir(), 'pagoda-fuzz-'));
  chmodSync(dir, 0o755);
  try {
    await using cluster = await PostgresCluster.create({dir, settings, start: false});
    const control = runTool('pg_controldata', [cluster.dataDir]);
    const start = parseLsn(/^Latest checkpoint location:\s+(\S+)$/m.exec(control)![1]!);
    execFileSync('cp', ['-a', '--reflink=auto', cluster.dataDir, join(dir, 'base')]);
    await cluster.start();
    await cluster.query('alter system set full_page_writes = off');
    await cluster.query('select pg_reload_conf()');
    for (const load of [...quickLoads, sqlLoad(join(import.meta.dirname, '../oracle/rare.sql'))])
      await load.run(cluster);
    await cluster.query('alter system set full_page_writes = on');
    for (const load of imageLoads.slice(1)) await load.run(cluster);
    await cluster.stop('fast');
    mkdirSync(dirname(path), {recursive: true});
    writeFileSync(`${path}.new`, sampleWal(join(dir, 'base'), join(cluster.dataDir, 'pg_wal'), start));
    renameSync(`${path}.new`, path);
  } finally {
    rmSync(dir, {recursive: true, force: true});
  }
}

interface Header {
  readonly samples: readonly {name: string; blockId: number; endLsn: number; recordLength: number}[];
  readonly blockless: readonly number[];
  readonly wal: readonly {startLsn: number; length: number; records: readonly (readonly [number, number])[]}[];
}

/** Redoes the WAL and keeps an even choice of each type (reservoir sampling); answers the corpus file's bytes. */
function sampleWal(base: string, walDirectory: string, startLsn: Lsn): Buffer {
  const random = new SeededRandom(1);
  const store = new PageStore(base);
  const chosen = new Map<string, {seen: number; kept: Sample[]}>();
  const blockless = new Map<string, {seen: number; kept: Buffer[]}>();
  const wal: WalStretch[] = [];
  const reader = new WalReader({startLsn});
  const record = new WalRecord();
  for (const {bytes, offset, position} of segments(walDirectory, startLsn)) {
    reader.push(bytes.subarray(offset));
    let stretchAt = position + (random.uint32() % 500_000);
    while (reader.next(record)) {
      const name = recordName(record);
      applyEffects(store, record);
      if (record.startLsn >= stretchAt && record.startLsn >= position) {
        const at = record.startLsn - (position - offset);
        if (at + stretchBytes <= bytes.length)
          wal.push(stretch(bytes.subarray(at, at + stretchBytes), record.startLsn));
        stretchAt += 500_000 + (random.uint32() % 500_000);
      }
      if (record.maxBlockId < 0) {
        const r = entry(blockless, name);
        const place = r.seen++ < samplesMax ? r.kept.length : random.uint32() % r.seen;
        if (place < samplesMax) r.kept[place] = Buffer.from(record.whole());
      }
      for (let id = 0; id <= record.maxBlockId; id++) {
        const block = record.block(id);
        if (block === undefined) continue;
        const form = block.applyImage ? `image ${block.imageInfo}` : '';
        const r = entry(chosen, `${name} ${id} ${form}`);
        const place = r.seen++ < samplesMax ? r.kept.length : random.uint32() % r.seen;
        const {page} = store.get(block.spcNode, block.dbNode, block.relNode, block.fork, block.blockNumber);
        const before = place < samplesMax ? Buffer.from(page) : undefined;
        applyRecord(page, record, id, {walLogHints: false});
        if (before === undefined) continue;
        r.kept[place] = {
          name,
          blockId: id,
          endLsn: record.endLsn,
          record: Buffer.from(record.whole()),
          before,
          after: Buffer.from(page),
        };
      }
    }
    if (reader.failure !== undefined) break;
  }
  store.close();
  const samples = [...chosen.values()].flatMap((r) => r.kept);
  const others = [...blockless.values()].flatMap((r) => r.kept);
  const header: Header = {
    samples: samples.map((s) => ({
      name: s.name,
      blockId: s.blockId,
      endLsn: s.endLsn,
      recordLength: s.record.length,
    })),
    blockless: others.map((b) => b.length),
    wal: wal.map((w) => ({startLsn: w.startLsn, length: w.bytes.length, records: w.records})),
  };
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(json.length);
  return Buffer.concat([
    length,
    json,
    ...samples.flatMap((s) => [s.record, s.before, s.after]),
    ...others,
    ...wal.map((w) => w.bytes),
    readFileSync(join(base, 'global/pg_control')).subarray(0, controlFileDataSize),
  ]);
}

function entry<T>(map: Map<string, {seen: number; kept: T[]}>, key: string): {seen: number; kept: T[]} {
  let found = map.get(key);
  if (found === undefined) map.set(key, (found = {seen: 0, kept: []}));
  return found;
}

function stretch(bytes: Buffer, startLsn: Lsn): WalStretch {
  const records: [number, number][] = [];
  const reader = new WalReader({startLsn});
  reader.push(Buffer.from(bytes));
  while (reader.skip()) {
    const at = reader.lastRecordStartLsn - startLsn;
    const length = bytes.readUInt32LE(at);
    const pageLeft = walPageSize - (reader.lastRecordStartLsn % walPageSize);
    if (length <= pageLeft && at + length <= bytes.length) records.push([at, length]);
  }
  return {startLsn, bytes, records};
}

/** Whole segment files in order; the first is read from `startLsn` on (`offset`). */
function* segments(directory: string, startLsn: Lsn): Generator<{bytes: Buffer; offset: number; position: number}> {
  const first = Math.floor(startLsn / walSegmentSizeDefault);
  const names = readdirSync(directory)
    .filter((name) => /^[0-9A-F]{24}$/.test(name))
    .sort();
  for (const name of names) {
    const number = parseInt(name.slice(8, 16), 16) * 256 + parseInt(name.slice(16), 16);
    if (number < first) continue;
    const offset = number === first ? startLsn % walSegmentSizeDefault : 0;
    yield {bytes: readFileSync(join(directory, name)), offset, position: number * walSegmentSizeDefault + offset};
  }
}

function readCorpus(path: string): Corpus {
  const file = readFileSync(path);
  let at = 4 + file.readUInt32LE(0);
  const header = JSON.parse(file.toString('utf8', 4, at)) as Header;
  const take = (length: number): Buffer => file.subarray(at, (at += length));
  const samples = header.samples.map((s) => ({
    name: s.name,
    blockId: s.blockId,
    endLsn: s.endLsn as Lsn,
    record: take(s.recordLength),
    before: take(8192),
    after: take(8192),
  }));
  const blockless = header.blockless.map(take);
  const wal = header.wal.map((w) => ({startLsn: w.startLsn as Lsn, bytes: take(w.length), records: w.records}));
  const byName = new Map<string, Sample[]>();
  for (const sample of samples) {
    const list = byName.get(sample.name);
    if (list === undefined) byName.set(sample.name, [sample]);
    else list.push(sample);
  }
  return {
    samples,
    byName,
    names: [...byName.keys()].sort(),
    blockless,
    wal,
    control: take(controlFileDataSize),
    hash: createHash('sha256').update(file).digest('hex').slice(0, 16),
  };
}

/** A sample's record, decoded. */
export function decodeSample(sample: Sample, into: WalRecord): void {
  decodeRecord(sample.record, (sample.endLsn - sample.record.length) as Lsn, sample.endLsn, into);
}
