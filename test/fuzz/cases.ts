/**
 * One fuzz case, made and judged from (seed, number) alone. What must hold, whatever the bytes:
 *
 *   redo       applyRecord returns or throws RedoError; it writes to nothing but the page
 *   decode     decodeRecord returns or throws WalDecodeError
 *   reader     WalReader ends with a failure or runs out of bytes; every record it hands out is whole
 *   interpret  Interpreter answers an outcome, also with sizes that cannot be
 *   sane       between hostile cases an unchanged sample still gives PostgreSQL's page: nothing was left behind
 */
import {ControlFile} from '#postgres/control-file.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {recordCrc} from '#postgres/wal/record-crc.ts';
import {WalReader} from '#postgres/wal/reader.ts';
import {WalDecodeError, WalRecord, decodeRecord} from '#postgres/wal/record.ts';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {Interpreter} from '#pageserver/ingest/interpret.ts';
import type {IngestSink, IngestState} from '#pageserver/ingest/sink.ts';
import {relationMissing, relationNotLoaded} from '#pageserver/ingest/sink.ts';
import {applyRecord} from '#redo/apply.ts';
import {RedoError} from '#redo/redo.ts';
import {SeededRandom} from '#runtime/random.ts';
import {type Corpus, type Sample, decodeSample} from './corpus.ts';
import {mutateBytes, mutatePage, mutateRecord, putTogether, takeApart} from './mutate.ts';

export type CaseKind = 'redo' | 'decode' | 'reader' | 'interpret' | 'sane';

/** Everything needed to run the case again without the corpus. */
export interface FuzzCase {
  readonly kind: CaseKind;
  /** Record type it was made from. */
  readonly name: string;
  readonly blockId: number;
  readonly lsn: number;
  readonly walLogHints: boolean;
  /** Record, or WAL. */
  readonly bytes: Buffer;
  readonly page: Buffer;
  /** sane: the page that must come out. */
  readonly expected?: Buffer;
  /** reader: where the WAL is cut into chunks. */
  readonly cuts: readonly number[];
  /** interpret: the checkpoint state to start from. */
  readonly checkpoint?: Buffer;
}

/** How a case ended: `done` with an effect, `refused` with the error of the contract. */
export type Outcome =
  | {readonly kind: 'done' | 'refused'}
  /** Refused, but by a JavaScript error inside and not by a check: allowed, and worth a look. */
  | {readonly kind: 'caught'; readonly reason: string}
  | {readonly kind: 'escaped'; readonly reason: string};

const done: Outcome = {kind: 'done'};
const refused: Outcome = {kind: 'refused'};

const record = new WalRecord();
const otherRecord = new WalRecord();
let checkpointState: Buffer | undefined;

export function makeCase(corpus: Corpus, seed: number, number: number): FuzzCase {
  const random = new SeededRandom(seed * 4_294_967 + number);
  const dice = random.uint32() % 100;
  if (dice < 2) return saneCase(corpus, random);
  if (dice < 5) return readerCase(corpus, random);
  if (dice < 15) return decodeCase(corpus, random);
  if (dice < 30) return interpretCase(corpus, random);
  return redoCase(corpus, random);
}

/** Types are chosen evenly, so that rare ones get their share. */
function pickSample(corpus: Corpus, random: SeededRandom): Sample {
  const list = corpus.byName.get(corpus.names[random.uint32() % corpus.names.length]!)!;
  return list[random.uint32() % list.length]!;
}

function saneCase(corpus: Corpus, random: SeededRandom): FuzzCase {
  const sample = pickSample(corpus, random);
  return {
    kind: 'sane',
    name: sample.name,
    blockId: sample.blockId,
    lsn: sample.endLsn,
    walLogHints: false,
    bytes: Buffer.from(sample.record),
    page: Buffer.from(sample.before),
    expected: sample.after,
    cuts: [],
  };
}

function redoCase(corpus: Corpus, random: SeededRandom): FuzzCase {
  const sample = pickSample(corpus, random);
  const page = Buffer.from(sample.before);
  let bytes = Buffer.from(sample.record);
  const dice = random.uint32() % 100;
  if (dice < 70) bytes = mutatedRecord(corpus, random, sample);
  if (dice >= 45) for (let n = 1 + (random.uint32() % 3); n > 0; n--) mutatePage(random, page, corpus, sample);
  if (random.uint32() % 50 > 0) page.fill(0, 0, 8); // else the page may be newer than the record, which then does nothing
  return {
    kind: 'redo',
    name: sample.name,
    blockId: random.uint32() % 20 === 0 ? random.uint32() % 4 : sample.blockId,
    lsn: sample.endLsn,
    walLogHints: random.uint32() % 2 === 0,
    bytes,
    page,
    cuts: [],
  };
}

function mutatedRecord(corpus: Corpus, random: SeededRandom, sample: Sample): Buffer<ArrayBuffer> {
  decodeSample(sample, record);
  const parts = takeApart(record);
  const list = random.uint32() % 2 === 0 ? corpus.byName.get(sample.name)! : corpus.samples;
  const other = list[random.uint32() % list.length]!;
  decodeSample(other, otherRecord);
  const otherParts = takeApart(otherRecord);
  for (let n = 1 + (random.uint32() % 3); n > 0; n--) mutateRecord(random, parts, sample.blockId, otherParts);
  return Buffer.from(putTogether(parts));
}

function decodeCase(corpus: Corpus, random: SeededRandom): FuzzCase {
  const sample = pickSample(corpus, random);
  let bytes = Buffer.from(sample.record);
  for (let n = 1 + (random.uint32() % 3); n > 0; n--)
    mutateBytes(random, bytes, random.uint32() % 2 === 0 ? 24 : 0, Math.min(bytes.length, 100));
  if (random.uint32() % 4 === 0) bytes = bytes.subarray(0, random.uint32() % bytes.length);
  if (random.uint32() % 2 === 0 && bytes.length >= 4) bytes.writeUInt32LE(bytes.length, 0);
  return {
    kind: 'decode',
    name: sample.name,
    blockId: 0,
    lsn: sample.endLsn,
    walLogHints: false,
    bytes,
    page: Buffer.alloc(0),
    cuts: [],
  };
}

function interpretCase(corpus: Corpus, random: SeededRandom): FuzzCase {
  let bytes: Buffer;
  let name = 'without blocks';
  let lsn = 0x2000000;
  if (random.uint32() % 3 > 0) {
    bytes = Buffer.from(corpus.blockless[random.uint32() % corpus.blockless.length]!);
    decodeRecord(bytes, lsn as Lsn, (lsn + bytes.length) as Lsn, record);
    decodeSample(pickSample(corpus, random), otherRecord);
    const parts = takeApart(record);
    for (let n = 1 + (random.uint32() % 3); n > 0; n--) mutateRecord(random, parts, 0, takeApart(otherRecord));
    bytes = putTogether(parts);
  } else {
    const sample = pickSample(corpus, random);
    name = sample.name;
    lsn = sample.endLsn;
    bytes = mutatedRecord(corpus, random, sample);
  }
  return {
    kind: 'interpret',
    name,
    blockId: random.uint32() % 4, // how look-ups are answered
    lsn,
    walLogHints: false,
    bytes,
    page: Buffer.alloc(0),
    cuts: [],
    checkpoint: (checkpointState ??= new CheckpointState(new ControlFile(corpus.control)).encode()),
  };
}

function readerCase(corpus: Corpus, random: SeededRandom): FuzzCase {
  const source = corpus.wal[random.uint32() % corpus.wal.length]!;
  const bytes = Buffer.from(source.bytes);
  for (let n = 1 + (random.uint32() % 3); n > 0; n--) {
    const place = source.records[random.uint32() % source.records.length];
    if (place !== undefined && random.uint32() % 3 > 0) {
      // behind the checksum
      const [at, length] = place;
      mutateBytes(random, bytes, at + (random.uint32() % 3 > 0 ? 20 : 0), at + Math.min(length, 120));
      bytes.writeUInt32LE(length, at);
      bytes.writeUInt32LE(recordCrc(bytes, at, at + length), at + 20);
    } else {
      const at = random.uint32() % bytes.length;
      mutateBytes(random, bytes, at & ~8191, Math.min(bytes.length, at + 64));
    }
  }
  const cuts: number[] = [];
  for (let n = random.uint32() % 8; n > 0; n--) cuts.push(random.uint32() % bytes.length);
  cuts.sort((x, y) => x - y);
  return {
    kind: 'reader',
    name: 'WAL',
    blockId: 0,
    lsn: source.startLsn,
    walLogHints: false,
    bytes,
    page: Buffer.alloc(0),
    cuts,
  };
}

/** The case's bytes are its own: they are changed. */
export function runCase(fuzz: FuzzCase): Outcome {
  switch (fuzz.kind) {
    case 'decode':
      return runDecode(fuzz);
    case 'reader':
      return runReader(fuzz);
    case 'interpret':
      return runInterpret(fuzz);
    default:
      return runRedo(fuzz);
  }
}

/** The page lies between two of these, the record behind the second: whoever writes over an edge of a shared buffer is seen. */
const guard = Buffer.alloc(64, 0xa5);
const arena = Buffer.alloc(guard.length * 2 + 8192);
const arenaPage = arena.subarray(guard.length, guard.length + 8192);
guard.copy(arena, 0);
guard.copy(arena, guard.length + 8192);

function runRedo(fuzz: FuzzCase): Outcome {
  const bytes = Buffer.from(fuzz.bytes);
  try {
    decodeRecord(bytes, (fuzz.lsn - bytes.length) as Lsn, fuzz.lsn as Lsn, record);
  } catch (error) {
    return error instanceof WalDecodeError ? refused : escape('decodeRecord', error);
  }
  fuzz.page.copy(arenaPage);
  let outcome: Outcome = done;
  try {
    applyRecord(arenaPage, record, fuzz.blockId, {walLogHints: fuzz.walLogHints});
  } catch (error) {
    if (!(error instanceof RedoError)) return escape('applyRecord', error);
    const cause = error.cause;
    outcome =
      cause === undefined || cause instanceof RedoError || cause instanceof WalDecodeError
        ? refused
        : {kind: 'caught', reason: `${fuzz.name}: ${firstLines(cause)}`};
  }
  if (!bytes.equals(fuzz.bytes)) return escape('the record was written to');
  if (arena.compare(guard, 0, 64, 0, 64) !== 0 || arena.compare(guard, 0, 64, guard.length + 8192) !== 0) {
    guard.copy(arena, 0);
    guard.copy(arena, guard.length + 8192);
    return escape('written beyond the page');
  }
  if (fuzz.expected !== undefined) {
    if (outcome !== done) return escape(`an unchanged record was refused`);
    if (!arenaPage.equals(fuzz.expected)) return escape('an unchanged record gave another page than before');
  }
  return outcome;
}

function runDecode(fuzz: FuzzCase): Outcome {
  try {
    decodeRecord(fuzz.bytes, (fuzz.lsn - fuzz.bytes.length) as Lsn, fuzz.lsn as Lsn, record);
  } catch (error) {
    return error instanceof WalDecodeError ? refused : escape('decodeRecord', error);
  }
  for (let id = 0; id <= record.maxBlockId; id++) {
    const b = record.block(id);
    if (b === undefined) continue;
    if (b.imageOffset + b.imageLength > fuzz.bytes.length || b.dataOffset + b.dataLength > fuzz.bytes.length)
      return escape(`block ${id} lies outside the record`);
  }
  return record.mainDataOffset + record.mainDataLength > fuzz.bytes.length
    ? escape('main data lies outside the record')
    : done;
}

function runReader(fuzz: FuzzCase): Outcome {
  try {
    const reader = new WalReader({startLsn: fuzz.lsn as Lsn});
    let from = 0;
    let records = 0;
    for (const to of [...fuzz.cuts, fuzz.bytes.length]) {
      reader.push(fuzz.bytes.subarray(from, to));
      from = to;
      while (reader.next(record)) {
        if (record.whole().length !== record.totalLength) return escape('a record that is not whole');
        if (++records > fuzz.bytes.length / 24) return escape('more records than fit');
      }
    }
    return reader.failure === undefined ? done : refused;
  } catch (error) {
    return escape('WalReader', error);
  }
}

const sink = nullSink();

function runInterpret(fuzz: FuzzCase): Outcome {
  try {
    decodeRecord(fuzz.bytes, (fuzz.lsn - fuzz.bytes.length) as Lsn, fuzz.lsn as Lsn, record);
  } catch (error) {
    return error instanceof WalDecodeError ? refused : escape('decodeRecord', error);
  }
  const size = [100_000, relationMissing, 3, relationNotLoaded][fuzz.blockId]!;
  const state: IngestState = {
    relationSize: () => size,
    databaseExists: () => fuzz.blockId % 2 === 0,
    slruPageExists: () => fuzz.blockId < 2,
    ownsBlock: () => fuzz.blockId % 2 === 0,
    isFirstShard: fuzz.blockId < 2,
  };
  try {
    const interpreter = new Interpreter(sink, state, CheckpointState.decode(fuzz.checkpoint!));
    const outcome = interpreter.interpret(record);
    return outcome.kind === 'error' ? refused : done;
  } catch (error) {
    return escape('Interpreter', error);
  }
}

/** Takes everything, as far as its own rules hold. */
function nullSink(): IngestSink {
  const nothing = (): void => {};
  return {
    relationPageRecord: nothing,
    relationPageImage: nothing,
    relationPagePatch: nothing,
    zeroPages: nothing,
    createRelation: nothing,
    setRelationSize: nothing,
    dropRelation: nothing,
    createDatabase: nothing,
    copyDatabase: nothing,
    dropDatabase: nothing,
    putRelationMap: nothing,
    slruPageImage: nothing,
    slruPagePatch: nothing,
    slruPageZero: nothing,
    slruDropPages: nothing,
    putTwoPhase: nothing,
    putAuxFile: nothing,
    putCheckpointState: nothing,
    commitTime: nothing,
  };
}

function escape(what: string, error?: unknown): Outcome {
  return {kind: 'escaped', reason: error === undefined ? what : `${what} threw ${firstLines(error)}`};
}

function firstLines(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const lines = (error.stack ?? error.message).split('\n');
  const at =
    lines
      .find((l) => l.includes('/src/'))
      ?.replace(/^.*\/src\//, ' at src/')
      .replace(/\)$/, '') ?? '';
  return `${error.constructor.name}: ${error.message}${at}`;
}
