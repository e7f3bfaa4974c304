/**
 * Reading: from keys at an LSN to pages and metadata.
 *
 * Each `try…` function is one synchronous attempt: it answers, or returns undefined after noting in the pass which blocks
 * of which layers it lacks. The caller fetches them and tries again; `read` is that loop. An attempt sees one arrangement
 * of the layers, whatever ingest and upload do between attempts.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize, formatRel} from '#postgres/relation.ts';
import {WalDecodeError, WalRecord, decodeRecord, decodeRecordAt} from '#postgres/wal/record.ts';
import {applyRecord} from '#redo/apply.ts';
import {RedoError, type RedoEnvironment} from '#redo/redo.ts';
import {ObjectStoreError} from '#objectstore/object-store.ts';
import {assert} from '#runtime/assert.ts';
import {type PackedSegment, packedCodec, packedRawBytesMax} from '#wire/packed-pages.ts';
import {PagePatchError, applyPagePatch} from '../ingest/page-patch.ts';
import {LayerCorruption, type StoredBlock} from '../layers/layer-format.ts';
import {type LayerReader, PackedPage, ReadPass} from '../layers/layer-reader.ts';
import type {MemoryLayer} from '../layers/memory-layer.ts';
import {
  type Key,
  type KeyPrefix,
  type KeyRange,
  comparePrefixes,
  compareKeys,
  encodeKey,
  formatKey,
  keyBytes,
  readKey,
  relPagePrefix,
  relSizeKey,
  truncationsKey,
} from './key.ts';
import {checkKept} from './kept-history.ts';
import {LayerWalk} from './layer-map.ts';
import {type RelInfo, blockFloor, decodeSize, decodeTruncations, relMissing} from './sizes.ts';
import type {TimelineState} from './state.ts';
import {TimelineError} from './timeline-reader.ts';
import {StoredValue, type Value, flagStartsHistory, flagWalLogHints, valueKind} from './value.ts';

/** Walks are made one after the other: an attempt does not await. */
const walk = new LayerWalk();
/** Layers of which a cold read fetches blocks at the same time. */
const layersAheadMax = 8;

/**
 * Repeats an attempt to read at `at` until it has all its blocks. Storage errors become TimelineErrors that name the timeline.
 * 'lsn-too-old' also when history at `at` is given up between two attempts.
 */
export async function read<T>(state: TimelineState, at: Lsn, attempt: (pass: ReadPass) => T | undefined): Promise<T> {
  return readOn(state, at, new ReadPass(state.context.cache), attempt);
}

/** The same, going on with a pass whose first attempt has noted what it lacks. */
export async function readOn<T>(
  state: TimelineState,
  at: Lsn,
  pass: ReadPass,
  attempt: (pass: ReadPass) => T | undefined,
): Promise<T> {
  for (;;) {
    if (pass.lacks) {
      try {
        await pass.fetch();
      } catch (error) {
        throw explainStorage(state, error);
      }
    }
    checkKept(state, at);
    let result: T | undefined;
    try {
      result = attempt(pass);
    } catch (error) {
      throw explainStorage(state, error); // a block that was not unpacked before
    }
    if (result !== undefined) return result;
    assert(pass.lacks, 'an attempt that does not answer says what it lacks');
  }
}

function explainStorage(state: TimelineState, error: unknown): unknown {
  if (error instanceof LayerCorruption)
    return new TimelineError('corrupt', `${state.name}: ${error.message}`, {cause: error});
  if (error instanceof ObjectStoreError)
    return new TimelineError('unavailable', `${state.name}: ${error.message}; try again`, {cause: error});
  return error;
}

/**
 * The versions of a key that make its value at `at`: newest first, the last one starting history (or the list simply
 * ends: then zeros come before). Values below `floor` are not looked at. Undefined: blocks are missing.
 */
export function tryCollect(
  state: TimelineState,
  pass: ReadPass,
  p: KeyPrefix,
  e: number,
  at: Lsn,
  floor: number,
): Value[] | undefined {
  const values: Value[] = [];
  let below = at + 1;
  let ahead = 0;
  for (let s: TimelineState | undefined = state; ;) {
    if (s.open !== undefined && collectFromMemory(s.open, p, e, below, floor, values))
      return ahead > 0 ? undefined : values;
    for (let i = s.frozen.length - 1; i >= 0; i--) {
      const layer = s.frozen[i]!.layer;
      if (collectFromMemory(layer, p, e, below, floor, values)) return ahead > 0 ? undefined : values;
    }
    walk.start(s.layers, p, e, below);
    for (let reader = walk.next(); reader !== undefined; reader = walk.next()) {
      if (reader.description.endLsn <= floor) break;
      const lowest = floor > walk.floorLsn ? floor : walk.floorLsn;
      const outcome = reader.find(pass, p, e, walk.belowLsn, lowest, (value) => values.push(value));
      if (outcome === 'missing' || outcome === 'done-missing') {
        // Not to pay one round trip per layer, a cold read looks ahead into a few older ones that it may need.
        if (outcome === 'done-missing' || walk.isImage || ++ahead >= layersAheadMax) return undefined;
      } else if (outcome === 'done' || walk.isImage) return ahead > 0 ? undefined : values;
    }
    const {ancestor}: TimelineState = s;
    if (ancestor === undefined || ancestor.lsn < floor) return ahead > 0 ? undefined : values;
    if (ancestor.lsn + 1 < below) below = ancestor.lsn + 1;
    s = ancestor.state;
  }
}

/** True: a version that starts history, or the floor, was reached. */
function collectFromMemory(
  layer: MemoryLayer,
  p: KeyPrefix,
  e: number,
  below: number,
  floor: number,
  values: Value[],
): boolean {
  for (let v = layer.find(p, e, below); v >= 0; v = layer.olderThan(v)) {
    if (layer.lsnOf(v) < floor) return true;
    const value = layer.value(v);
    values.push(value);
    if ((value.flags & flagStartsHistory) !== 0) return true;
  }
  return false;
}

/** The bytes of a metadata key at `at`; null: it does not exist; undefined: blocks are missing. */
export function tryBlob(state: TimelineState, pass: ReadPass, key: Key, at: Lsn): Buffer | null | undefined {
  const values = tryCollect(state, pass, key.prefix, key.e, at, 0);
  if (values === undefined) return undefined;
  const newest = values[0];
  if (newest === undefined || newest.kind === valueKind.tombstone) return null;
  if (newest.kind !== valueKind.image)
    throw new TimelineError(
      'corrupt',
      `${state.describe(at)}: key ${formatKey(key)} holds a value of kind ${newest.kind}`,
    );
  return newest.payload;
}

/** Size and truncations of a fork at `at`, from memory when it is there. */
export function tryRelInfo(state: TimelineState, pass: ReadPass, rel: RelTag, at: Lsn): RelInfo | undefined {
  const cached = state.sizes.at(rel, at);
  if (cached !== undefined) return cached;
  const key = relSizeKey(rel);
  const values = tryCollect(state, pass, key.prefix, key.e, at, 0);
  if (values === undefined) return undefined;
  const newest = values[0];
  let info = relMissing;
  if (newest !== undefined && newest.kind === valueKind.image) {
    const size = decodeSize(newest.payload);
    let truncations: RelInfo['truncations'] = [];
    if (size.hasTruncations) {
      const blob = tryBlob(state, pass, truncationsKey(rel), at);
      if (blob === undefined) return undefined;
      truncations = blob === null ? [] : decodeTruncations(blob);
    }
    info = {blocks: size.blocks, floorLsn: size.floorLsn, truncations};
  }
  // Without a value: below an image that does not name the fork it may have existed.
  const since = newest?.lsn ?? at;
  // A value as of the last record is what ingest would see; it may go on from it.
  if (at === state.lastRecordLsn && state.sizes.latest(rel.spcNode, rel.dbNode, rel.relNode, rel.fork) === undefined)
    state.sizes.setLatest(rel, info, since);
  else state.sizes.setPast(rel, info, since, at);
  return info;
}

/** Pages block … of a fork, up to its end. With `into`, they are made there, one after the other. */
export function tryRelPages(
  state: TimelineState,
  pass: ReadPass,
  rel: RelTag,
  block: number,
  count: number,
  at: Lsn,
  into?: Buffer,
): Buffer[] | undefined {
  const found = tryRelValues(state, pass, rel, block, count, at);
  return found?.map((values, i) =>
    buildPage(
      state,
      values,
      at,
      () => `relation ${formatRel(rel)} block ${block + i}`,
      into?.subarray(i * blockSize, (i + 1) * blockSize),
    ),
  );
}

/**
 * The same, as little unpacked as possible: stretches of one block of images stay what they are in the object when that is
 * shorter; the other pages are made in `into`, each in its place.
 */
export function tryPackedRelPages(
  state: TimelineState,
  pass: ReadPass,
  rel: RelTag,
  block: number,
  count: number,
  at: Lsn,
  into: Buffer,
): PackedSegment[] | undefined {
  const found = tryRelValues(state, pass, rel, block, count, at);
  if (found === undefined) return undefined;
  const segments: PackedSegment[] = [];
  let made = 0;
  const endMade = (end: number): void => {
    if (made === end) return;
    const bytes = into.subarray(made * blockSize, end * blockSize);
    const offsets = Array.from({length: end - made}, (_, i) => i * blockSize);
    segments.push({codec: packedCodec.none, rawBytes: bytes.length, bytes, offsets});
  };
  for (let i = 0; i < found.length;) {
    const packed = packedStretch(found, i);
    if (packed === undefined) {
      const what = (): string => `relation ${formatRel(rel)} block ${block + i}`;
      buildPage(state, found[i]!, at, what, into.subarray(i * blockSize, (i + 1) * blockSize));
      i++;
      continue;
    }
    endMade(i);
    segments.push(packed);
    i += packed.offsets.length;
    made = i;
  }
  endMade(found.length);
  return segments;
}

/** Pages from number `first` on that are images of one compressed block, when that is worth sending as it is. */
function packedStretch(found: readonly (readonly Value[])[], first: number): PackedSegment | undefined {
  const offsets: number[] = [];
  let block: StoredBlock | undefined;
  for (let i = first; i < found.length; i++) {
    const [value, older] = found[i]!;
    if (!(value instanceof PackedPage) || older !== undefined || (block !== undefined && value.block !== block)) break;
    block = value.block;
    offsets.push(value.offset);
  }
  const bytes = block?.lz4;
  if (block === undefined || bytes === undefined) return undefined;
  const {rawLength: rawBytes} = block;
  return bytes.length < offsets.length * blockSize && rawBytes <= packedRawBytesMax
    ? {codec: packedCodec.lz4, rawBytes, bytes, offsets}
    : undefined;
}

/** The versions of each of these pages, as tryCollect() finds them. Throws TimelineError. */
function tryRelValues(
  state: TimelineState,
  pass: ReadPass,
  rel: RelTag,
  block: number,
  count: number,
  at: Lsn,
): Value[][] | undefined {
  const info = tryRelInfo(state, pass, rel, at);
  if (info === undefined) return undefined;
  if (info.blocks < 0)
    throw new TimelineError('not-found', `${state.describe(at)}: relation ${formatRel(rel)} does not exist`);
  if (block >= info.blocks)
    throw new TimelineError(
      'beyond-end',
      `${state.describe(at)}: relation ${formatRel(rel)} has ${info.blocks} blocks, block ${block} was asked for`,
    );
  const end = Math.min(block + count, info.blocks);
  const prefix = relPagePrefix(rel);
  const found: Value[][] = [];
  let missing = false;
  for (let b = block; b < end; b++) {
    const values = tryCollect(state, pass, prefix, b, at, blockFloor(info, b));
    if (values === undefined) missing = true;
    else if (!missing) found.push(values);
  }
  return missing ? undefined : found;
}

export const zeroPage: Buffer = Buffer.alloc(blockSize);
const scratch = new WalRecord();
const withHints: RedoEnvironment = {walLogHints: true};
const withoutHints: RedoEnvironment = {walLogHints: false};

/** The page that `values` (newest first) make: in `into`, or read only, for it may be a view of a cached block. */
export function buildPage(
  state: TimelineState,
  values: readonly Value[],
  at: Lsn,
  what: () => string,
  into?: Buffer,
): Buffer {
  let i = values.length - 1;
  const first = values[i];
  if (first === undefined) return into === undefined ? zeroPage : into.fill(0);
  if (i === 0 && into === undefined) {
    if (first.kind === valueKind.image && first.payload.length === blockSize) return first.payload;
    if (first.kind === valueKind.zero || first.kind === valueKind.tombstone) return zeroPage;
  }
  let page = into;
  if (page === undefined) page = Buffer.alloc(blockSize);
  else if (first.kind !== valueKind.image) page.fill(0);
  for (; i >= 0; i--) applyValue(state, page, values[i]!, at, what);
  return page;
}

/** Changes the page by the next version of it. TimelineError 'redo-failed' or 'corrupt'. */
export function applyValue(state: TimelineState, page: Buffer, value: Value, at: Lsn, what: () => string): void {
  if (value.kind === valueKind.image) {
    if (value.payload.length !== blockSize)
      throw new TimelineError('corrupt', `${state.describe(at)}: ${what()}: image of ${value.payload.length} bytes`);
    value.payload.copy(page);
    return;
  }
  if (value.kind === valueKind.zero || value.kind === valueKind.tombstone) {
    page.fill(0);
    return;
  }
  state.context.metrics.redoRecords.inc();
  try {
    if (value.kind === valueKind.record) {
      if ((value.flags & flagStartsHistory) !== 0) page.fill(0);
      // Redo looks at the end of the record only; where it started is not kept.
      if (value instanceof StoredValue && value.length >= 24 && value.bytes.readUInt32LE(value.start) === value.length)
        decodeRecordAt(value.bytes, value.start, value.length, value.lsn, value.lsn, scratch);
      else decodeRecord(value.payload, value.lsn, value.lsn, scratch);
      applyRecord(page, scratch, value.blockId, (value.flags & flagWalLogHints) !== 0 ? withHints : withoutHints);
    } else if (value.kind === valueKind.patch) {
      if ((value.flags & flagStartsHistory) !== 0) page.fill(0);
      applyPagePatch(page, value.payload);
    } else {
      throw new RedoError(`a value of kind ${value.kind} inside history`);
    }
  } catch (error) {
    if (!(error instanceof RedoError || error instanceof WalDecodeError || error instanceof PagePatchError))
      throw error;
    throw new TimelineError(
      'redo-failed',
      `${state.describe(at)}: ${what()} cannot be rebuilt: the ${value.kind === valueKind.patch ? 'patch' : 'record'} that ends at ` +
        `${formatLsn(value.lsn)}: ${error.message}; other pages are not affected; report this record type`,
      {cause: error},
    );
  }
}

/** Keys of a range that have any version at or below `at` (tombstones included), in order. Undefined: blocks are missing. */
export function tryScanKeys(state: TimelineState, pass: ReadPass, range: KeyRange, at: Lsn): Key[] | undefined {
  const low = readKey(range.start, 0);
  const high = readKey(range.end, 0);
  const found = new Map<string, Key>();
  const add = (key: Key): void => {
    const encoded = encodeKey(key);
    if (encoded.compare(range.start) >= 0 && encoded.compare(range.end) < 0)
      found.set(encoded.toString('latin1', 0, keyBytes), key);
  };
  let complete = true;
  let until = at;
  for (let s: TimelineState | undefined = state; s !== undefined;) {
    const memory = [...(s.open === undefined ? [] : [s.open]), ...s.frozen.map((f) => f.layer)];
    for (const layer of memory) {
      if (layer.startLsn > until) continue;
      layer.scanPrefixes(
        (p) => comparePrefixes(low.prefix, p) <= 0 && comparePrefixes(p, high.prefix) <= 0,
        (prefix, e) => add({prefix, e}),
      );
    }
    const plan = s.layers.plan(range, until + 1);
    const scan = (reader: LayerReader, within: KeyRange): void => {
      if (!reader.scanKeys(pass, within, add)) complete = false;
    };
    for (const {reader} of plan.deltas) scan(reader, range);
    for (const segment of plan.segments) if (segment.image !== undefined) scan(segment.image, segment);
    if (plan.segments.every((segment) => segment.image !== undefined)) break; // nothing older is needed
    const {ancestor}: TimelineState = s;
    if (ancestor !== undefined && ancestor.lsn < until) until = ancestor.lsn;
    s = ancestor?.state;
  }
  return complete ? [...found.values()].sort(compareKeys) : undefined;
}

/** All metadata keys of a range (and, when given, with `wanted`) that exist at `at`, with their bytes. */
export function tryBlobs(
  state: TimelineState,
  pass: ReadPass,
  range: KeyRange,
  at: Lsn,
  wanted?: (key: Key) => boolean,
): {key: Key; bytes: Buffer}[] | undefined {
  const keys = tryScanKeys(state, pass, range, at);
  if (keys === undefined) return undefined;
  const out: {key: Key; bytes: Buffer}[] = [];
  let missing = false;
  for (const key of keys) {
    if (wanted !== undefined && !wanted(key)) continue;
    const bytes = tryBlob(state, pass, key, at);
    if (bytes === undefined) missing = true;
    else if (bytes !== null) out.push({key, bytes});
  }
  return missing ? undefined : out;
}
