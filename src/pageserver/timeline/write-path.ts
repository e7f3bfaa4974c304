/**
 * Writing: what ingest found in WAL becomes values in the open layer. Implements the sink and the synchronous look-ups of
 * ingest/sink.ts on the timeline's state.
 *
 * One record is: interpret() puts its values; finishRecord() does what could not be done synchronously (a database copied or
 * dropped, sizes of dropped relations); endRecord() makes the record visible. An import is one long "record".
 */
import {assert} from '#runtime/assert.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {type ForkNumber, type RelTag, blockSize} from '#postgres/relation.ts';
import {type SlruKind, slruKinds} from '#postgres/slru.ts';
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {type IngestSink, type IngestState, relationMissing, relationNotLoaded} from '../ingest/sink.ts';
import {MemoryLayer} from '../layers/memory-layer.ts';
import {CommitTail, commitsPerChunk, decodeCommitChunk, runningMaxAfter} from './commit-times.ts';
import {
  type Key,
  type KeyPrefix,
  auxFileKey,
  checkpointStateKey,
  commitTimesKey,
  databaseKey,
  keyKind,
  rangeOf,
  relPagePrefix,
  relSizeKey,
  relationMapKey,
  slruPrefix,
  truncationsKey,
  twoPhaseKey,
} from './key.ts';
import {read, tryBlob, tryBlobs, tryCollect, tryRelInfo, tryRelPages, tryScanKeys, zeroPage} from './read-path.ts';
import {type RelInfo, encodeSize, encodeTruncations, relMissing, resized} from './sizes.ts';
import type {TimelineState} from './state.ts';
import {flagStartsHistory, flagWalLogHints, valueKind} from './value.ts';

/** Blocks that a database copy reads at a time. */
const copyBlocks = 64;
const empty = Buffer.alloc(0);
const directoryWithoutVersion = Buffer.from([0]);
const forks: readonly ForkNumber[] = [0, 1, 2, 3];

type Job =
  | {readonly kind: 'drop-database'; readonly spcNode: number; readonly dbNode: number}
  | {readonly kind: 'copy-database'; readonly from: readonly [number, number]; readonly to: readonly [number, number]}
  | {readonly kind: 'drop-relation'; readonly rel: RelTag};

/** What a timeline that ingests has in memory beyond relation sizes; loaded by TimelineWriter.load. */
interface WriterMemory {
  readonly databases: Set<string>;
  readonly slruPages: readonly Set<number>[];
  readonly commits: CommitTail;
  readonly statistics: boolean;
}

export interface WriterHooks {
  /** lastRecordLsn grew. */
  readonly onAdvance: () => void;
  /** A layer was frozen. */
  readonly onFrozen: () => void;
  /** Much WAL has passed since the last freeze, and most of it was not for this shard: safekeepers hold it until it is saved. */
  readonly onFarAhead: () => void;
}

/** A prefix and its id in the layer. */
interface KnownFork {
  readonly prefix: KeyPrefix;
  readonly layer: MemoryLayer;
  readonly id: number;
}

/** A power of two. */
const knownForksMax = 64;

const statisticsPath = 'pg_stat/pgstat.stat';

export class TimelineWriter implements IngestSink, IngestState {
  /** wal_log_hints or data checksums of the writing cluster: the driver sets it as the interpreter learns it. */
  walLogHints = false;
  readonly #state: TimelineState;
  readonly #onAdvance: () => void;
  readonly #onFrozen: () => void;
  readonly #onFarAhead: () => void;
  readonly #memory: WriterMemory;
  readonly #jobs: Job[] = [];
  #finishing = false;
  #importing = false;
  /** A statistics file is there that the next record makes untrue. */
  #statistics: boolean;
  #importParts = 0;
  /** What the memory budget knows of the open layer. */
  #accountedBytes = 0;
  /** Where the newest frozen layer ends, or the last attempt to freeze one was made. */
  #frozenUntil: number;
  /** WAL from one freeze to the next, at most. */
  readonly #walBytesMax: number;
  /** logicalSizeBytes when the last record ended. */
  #sizeAtRecord: number;
  /** Prefixes of pages that were put last, by a hash of relNode and fork. */
  readonly #knownForks: (KnownFork | undefined)[] = new Array<KnownFork | undefined>(knownForksMax).fill(undefined);

  private constructor(state: TimelineState, memory: WriterMemory, hooks: WriterHooks) {
    this.#state = state;
    this.#walBytesMax = state.context.limits.layerBytes * (state.shard.count + 1);
    this.#memory = memory;
    this.#sizeAtRecord = state.logicalSizeBytes;
    this.#frozenUntil = state.lastRecordLsn + 1;
    state.commitTail = memory.commits;
    state.freezeOpen = () => {
      if (!this.hasUnfinishedWork && !this.#importing && state.lifecycle === 'active') this.freeze();
    };
    this.#statistics = memory.statistics;
    this.#onAdvance = hooks.onAdvance;
    this.#onFrozen = hooks.onFrozen;
    this.#onFarAhead = hooks.onFarAhead;
  }

  /** Reads what ingest must have in memory, as of the last record. */
  static async load(state: TimelineState, hooks: WriterHooks): Promise<TimelineWriter> {
    const at = state.lastRecordLsn;
    const databases = new Set<string>();
    for (const {key} of await read(state, at, (pass) => tryBlobs(state, pass, rangeOf(keyKind.database), at)))
      databases.add(databaseId(key.prefix.a, key.prefix.b));
    const slruPages: Set<number>[] = [];
    for (const kind of slruKinds) slruPages.push(new Set(await existingSlruPages(state, kind, at)));
    const chunks = await read(state, at, (pass) => tryScanKeys(state, pass, rangeOf(keyKind.commitTimes), at));
    const last = chunks.at(-1);
    let runningMax = 0;
    if (last !== undefined) {
      const bytes = await read(state, at, (pass) => tryBlob(state, pass, last, at));
      if (bytes !== null) runningMax = runningMaxAfter(decodeCommitChunk(bytes));
    }
    const statistics = (await read(state, at, (pass) => tryBlob(state, pass, auxFileKey(statisticsPath), at))) !== null;
    return new TimelineWriter(state, {databases, slruPages, commits: new CommitTail(runningMax), statistics}, hooks);
  }

  /** Nothing would be lost if the writer was forgotten and loaded again. */
  get isEmpty(): boolean {
    return !this.hasUnfinishedWork && !this.#importing && this.#memory.commits.count === 0;
  }

  // ---- look-ups

  relationSize(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber): number {
    const info = this.#state.sizes.latest(spcNode, dbNode, relNode, fork);
    if (info === undefined) return relationNotLoaded;
    return info.blocks < 0 ? relationMissing : info.blocks;
  }

  databaseExists(spcNode: number, dbNode: number): boolean {
    return this.#memory.databases.has(databaseId(spcNode, dbNode));
  }

  slruPageExists(kind: SlruKind, page: number): boolean {
    return this.#memory.slruPages[kind]!.has(page);
  }

  ownsBlock(relNode: number, fork: ForkNumber, block: number): boolean {
    return this.#state.ownsBlock(relNode, fork, block);
  }

  get isFirstShard(): boolean {
    return this.#state.isFirstShard;
  }

  /** Loads sizes that relationSize() did not have. Only between records. */
  async loadRelations(relations: readonly RelTag[]): Promise<void> {
    const state = this.#state;
    const at = state.lastRecordLsn;
    await read(state, at, (pass) => {
      let missing = false;
      for (const rel of relations) if (tryRelInfo(state, pass, rel, at) === undefined) missing = true;
      return missing ? undefined : true;
    });
    assert(state.lastRecordLsn === at, 'nothing is ingested while sizes are loaded');
    // A reader may have left the size as history only.
    for (const rel of relations) {
      const info = state.sizes.at(rel, at);
      assert(info !== undefined, 'the size was loaded just now');
      if (state.sizes.latest(rel.spcNode, rel.dbNode, rel.relNode, rel.fork) === undefined)
        state.sizes.setLatest(rel, info, at);
    }
  }

  // ---- pages

  relationPageRecord(record: WalRecord, b: BlockRef, needsBase: boolean): void {
    if (!this.#state.ownsBlock(b.relNode, b.fork, b.blockNumber)) return;
    const flags = (needsBase ? 0 : flagStartsHistory) | (this.walLogHints ? flagWalLogHints : 0);
    const layer = this.#openLayer(record.endLsn);
    const prefixId = this.#prefixId(layer, b.spcNode, b.dbNode, b.relNode, b.fork);
    layer.putRecord(prefixId, b.blockNumber, record, flags, b.id);
  }

  relationPageImage(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    block: number,
    lsn: Lsn,
    image: Buffer,
  ): void {
    assert(image.length === blockSize, 'a page image has 8192 bytes');
    if (!this.#state.ownsBlock(relNode, fork, block)) return;
    const layer = this.#openLayer(lsn);
    const prefixId = this.#prefixId(layer, spcNode, dbNode, relNode, fork);
    layer.put(prefixId, block, lsn, valueKind.image, flagStartsHistory, image);
  }

  relationPagePatch(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    block: number,
    lsn: Lsn,
    patch: Buffer,
  ): void {
    if (!this.#state.ownsBlock(relNode, fork, block)) return;
    const layer = this.#openLayer(lsn);
    layer.put(this.#prefixId(layer, spcNode, dbNode, relNode, fork), block, lsn, valueKind.patch, 0, patch);
  }

  /** Nothing to store: blocks without a value read as zeros, and sizes.ts keeps values from before a truncation away. */
  zeroPages(): void {}

  // ---- relations

  createRelation(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber, lsn: Lsn): void {
    const rel: RelTag = {spcNode, dbNode, relNode, fork};
    this.#setRelation(rel, {blocks: 0, floorLsn: lsn, truncations: []}, lsn);
  }

  setRelationSize(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber, blocks: number, lsn: Lsn): void {
    const rel: RelTag = {spcNode, dbNode, relNode, fork};
    const before =
      this.#state.sizes.latest(spcNode, dbNode, relNode, fork) ?? (this.#importing ? relMissing : undefined);
    assert(before !== undefined, 'ingest looks a size up before it changes it');
    if (before.blocks === blocks) return;
    this.#setRelation(rel, resized(before, blocks, this.#importing ? (0 as Lsn) : lsn), lsn);
  }

  dropRelation(spcNode: number, dbNode: number, relNode: number, lsn: Lsn): void {
    for (const fork of forks) {
      const rel: RelTag = {spcNode, dbNode, relNode, fork};
      const known = this.#state.sizes.latest(spcNode, dbNode, relNode, fork);
      if (known === undefined) this.#jobs.push({kind: 'drop-relation', rel});
      else if (known.blocks >= 0) this.#dropFork(rel, known.blocks, lsn);
    }
  }

  createDatabase(spcNode: number, dbNode: number, hasVersionFile: boolean, lsn: Lsn): void {
    this.#putBlob(databaseKey(spcNode, dbNode), lsn, hasVersionFile ? Buffer.from([1]) : directoryWithoutVersion);
    this.#memory.databases.add(databaseId(spcNode, dbNode));
  }

  copyDatabase(fromSpcNode: number, fromDbNode: number, toSpcNode: number, toDbNode: number): void {
    this.#memory.databases.add(databaseId(toSpcNode, toDbNode));
    this.#jobs.push({kind: 'copy-database', from: [fromSpcNode, fromDbNode], to: [toSpcNode, toDbNode]});
  }

  dropDatabase(spcNode: number, dbNode: number): void {
    this.#memory.databases.delete(databaseId(spcNode, dbNode));
    this.#jobs.push({kind: 'drop-database', spcNode, dbNode});
  }

  putRelationMap(spcNode: number, dbNode: number, map: Buffer, lsn: Lsn): void {
    if (!this.#state.isFirstShard) return;
    this.#putBlob(relationMapKey(spcNode, dbNode), lsn, map);
  }

  // ---- everything else

  slruPageImage(kind: SlruKind, page: number, lsn: Lsn, image: Buffer): void {
    assert(image.length === blockSize, 'a page image has 8192 bytes');
    if (!this.#state.isFirstShard) return;
    this.#memory.slruPages[kind]!.add(page);
    this.#put(slruPrefix(kind), page, lsn, valueKind.image, flagStartsHistory, image);
  }

  slruPagePatch(kind: SlruKind, page: number, lsn: Lsn, patch: Buffer, needsBase: boolean): void {
    if (!this.#state.isFirstShard) return;
    if (!this.slruPageExists(kind, page)) this.#memory.slruPages[kind]!.add(page);
    this.#put(slruPrefix(kind), page, lsn, valueKind.patch, needsBase ? 0 : flagStartsHistory, patch);
  }

  slruPageZero(kind: SlruKind, page: number, lsn: Lsn): void {
    if (!this.#state.isFirstShard) return;
    this.#memory.slruPages[kind]!.add(page);
    this.#put(slruPrefix(kind), page, lsn, valueKind.zero, flagStartsHistory, empty);
  }

  slruDropPages(kind: SlruKind, startPage: number, endPage: number, lsn: Lsn): void {
    const pages = this.#memory.slruPages[kind]!;
    for (const page of pages) {
      if (page < startPage || page >= endPage) continue;
      pages.delete(page);
      this.#put(slruPrefix(kind), page, lsn, valueKind.tombstone, flagStartsHistory, empty);
    }
  }

  putTwoPhase(xid: number, contents: Buffer | undefined, lsn: Lsn): void {
    if (!this.#state.isFirstShard) return;
    this.#putOptional(twoPhaseKey(xid), lsn, contents);
  }

  putAuxFile(path: string, contents: Buffer | undefined, lsn: Lsn): void {
    if (!this.#state.isFirstShard) return;
    if (contents === undefined) return this.#putOptional(auxFileKey(path), lsn, undefined);
    if (path === statisticsPath) this.#statistics = true;
    const name = Buffer.from(path, 'utf8');
    const head = Buffer.alloc(2);
    head.writeUInt16LE(name.length, 0);
    this.#putBlob(auxFileKey(path), lsn, Buffer.concat([head, name, contents]));
  }

  /**
   * Postgres's statistics file, true for the state at exactly `lsn`. False, and nothing is kept, when the timeline is not
   * there any more. The next record removes it.
   */
  putStatistics(contents: Buffer, lsn: Lsn): boolean {
    if (lsn !== this.#state.lastRecordLsn || this.hasUnfinishedWork) return false;
    this.putAuxFile(statisticsPath, contents, lsn);
    this.#statistics = true;
    return true;
  }

  putCheckpointState(encoded: Buffer, lsn: Lsn): void {
    this.#putBlob(checkpointStateKey, lsn, encoded);
  }

  commitTime(unixMicroseconds: number, lsn: Lsn): void {
    const {commits} = this.#memory;
    commits.add(Math.round(unixMicroseconds), lsn);
    if (commits.count >= commitsPerChunk) this.#putCommitChunk(lsn);
  }

  // ---- record boundaries

  /** Work that interpret() began and finishRecord() must end before endRecord(). */
  get hasUnfinishedWork(): boolean {
    return this.#jobs.length > 0 || this.#finishing;
  }

  /** Ends what the record began. `waitForRoom` is awaited when the work fills a layer. */
  async finishRecord(lsn: Lsn, waitForRoom: () => Promise<void>): Promise<void> {
    this.#finishing = true;
    // A job stays in the list until it is done: after an error the whole call can be repeated.
    for (let job = this.#jobs[0]; job !== undefined; job = this.#jobs[0]) {
      if (job.kind === 'drop-database') await this.#dropDatabaseNow(job.spcNode, job.dbNode, lsn);
      else if (job.kind === 'copy-database') await this.#copyDatabaseNow(job.from, job.to, lsn, waitForRoom);
      else await this.#dropRelationNow(job.rel, lsn);
      this.#jobs.shift();
    }
    this.#finishing = false;
  }

  /** The record that ends at `lsn` is in whole: readers may see it. Freezes the open layer when it is full. */
  endRecord(lsn: Lsn): void {
    assert(!this.hasUnfinishedWork, 'a record is finished before it is ended');
    const state = this.#state;
    assert(lsn >= state.lastRecordLsn, 'records end in LSN order');
    if (this.#statistics && lsn > state.lastRecordLsn) {
      this.putAuxFile(statisticsPath, undefined, lsn);
      this.#statistics = false;
    }
    state.lastRecordLsn = lsn;
    this.#sizeAtRecord = state.logicalSizeBytes;
    state.sizes.trim();
    const {open} = state;
    if (open !== undefined) {
      const {bytes} = open;
      if (bytes >= state.context.limits.layerBytes || open.isFull) this.freeze();
      else if (bytes !== this.#accountedBytes) this.#account(bytes);
    }
    if (lsn - this.#frozenUntil >= this.#walBytesMax) this.#onFarAhead();
    this.#onAdvance();
  }

  /** Freezes the open layer, if there is anything in it, for upload. Only between records. */
  freeze(): void {
    const state = this.#state;
    assert(!this.hasUnfinishedWork && !this.#importing, 'a layer is frozen between records');
    if (this.#memory.commits.count > 0) this.#putCommitChunk(state.lastRecordLsn);
    this.#freezeNow((state.lastRecordLsn + 1) as Lsn, false);
    this.#frozenUntil = state.lastRecordLsn + 1;
  }

  // ---- import

  /** Everything until endImport() comes from one data directory as of `lsn`; layers become image layers. */
  beginImport(): void {
    assert(this.#state.open === undefined && this.#state.lastRecordLsn === 0, 'an import fills an empty timeline');
    this.#importing = true;
  }

  /** Call now and then during an import: freezes a part when the open layer is full. True: wait for room before going on. */
  importStep(): boolean {
    const {open, context} = this.#state;
    if (open === undefined || (open.bytes < context.limits.layerBytes && !open.isFull)) return false;
    // All values of an import have the LSN of the first.
    this.#freezeNow((open.startLsn + 1) as Lsn, false);
    return true;
  }

  endImport(lsn: Lsn): void {
    const state = this.#state;
    state.lastRecordLsn = lsn;
    this.#sizeAtRecord = state.logicalSizeBytes;
    state.sizes.trim();
    this.#freezeNow((lsn + 1) as Lsn, true);
    this.#importing = false;
    this.#onAdvance();
  }

  // ---- private

  #put(p: KeyPrefix, e: number, lsn: Lsn, kind: number, flags: number, payload: Buffer): void {
    const layer = this.#openLayer(lsn);
    layer.put(layer.prefixId(p), e, lsn, kind, flags, payload);
  }

  #openLayer(lsn: Lsn): MemoryLayer {
    const state = this.#state;
    return (state.open ??= new MemoryLayer(lsn, state.context.clock.monotonicMs()));
  }

  /** Of the pages of a fork in the open layer. */
  #prefixId(layer: MemoryLayer, spcNode: number, dbNode: number, relNode: number, fork: ForkNumber): number {
    const at = (relNode * 4 + fork) & (knownForksMax - 1);
    const known = this.#knownForks[at];
    if (known !== undefined) {
      const p = known.prefix;
      if (p.c === relNode && p.d === fork && p.b === dbNode && p.a === spcNode && known.layer === layer)
        return known.id;
    }
    const prefix = relPagePrefix({spcNode, dbNode, relNode, fork});
    const id = layer.prefixId(prefix);
    this.#knownForks[at] = {prefix, layer, id};
    return id;
  }

  #putBlob(key: Key, lsn: Lsn, bytes: Buffer): void {
    this.#put(key.prefix, key.e, lsn, valueKind.image, flagStartsHistory, bytes);
  }

  #putOptional(key: Key, lsn: Lsn, bytes: Buffer | undefined): void {
    if (bytes !== undefined) this.#putBlob(key, lsn, bytes);
    else this.#put(key.prefix, key.e, lsn, valueKind.tombstone, flagStartsHistory, empty);
  }

  #putCommitChunk(lsn: Lsn): void {
    const {commits} = this.#memory;
    const first = commits.firstLsn;
    assert(first !== undefined, 'a chunk of commits is not empty');
    this.#putBlob(commitTimesKey(first), lsn, commits.take());
  }

  #setRelation(rel: RelTag, info: RelInfo, lsn: Lsn): void {
    const state = this.#state;
    const before = state.sizes.latest(rel.spcNode, rel.dbNode, rel.relNode, rel.fork) ?? relMissing;
    this.#putBlob(relSizeKey(rel), lsn, encodeSize(info));
    if (info.truncations !== before.truncations && info.truncations.length > 0)
      this.#putBlob(truncationsKey(rel), lsn, encodeTruncations(info.truncations));
    state.logicalSizeBytes += (info.blocks - Math.max(before.blocks, 0)) * blockSize;
    state.sizes.setLatest(rel, info, lsn);
  }

  #dropFork(rel: RelTag, blocks: number, lsn: Lsn): void {
    this.#state.logicalSizeBytes -= blocks * blockSize;
    this.#putOptional(relSizeKey(rel), lsn, undefined);
    this.#state.sizes.setLatest(rel, relMissing, lsn);
  }

  async #dropRelationNow(rel: RelTag, lsn: Lsn): Promise<void> {
    await this.loadRelations([rel]);
    const info = this.#state.sizes.latest(rel.spcNode, rel.dbNode, rel.relNode, rel.fork);
    if (info !== undefined && info.blocks >= 0) this.#dropFork(rel, info.blocks, lsn);
  }

  async #dropDatabaseNow(spcNode: number, dbNode: number, lsn: Lsn): Promise<void> {
    const state = this.#state;
    const at = state.lastRecordLsn;
    const range = rangeOf(keyKind.relSize, spcNode, dbNode);
    for (const {key} of await read(state, at, (pass) => tryBlobs(state, pass, range, at)))
      await this.#dropRelationNow(relOf(key), lsn);
    this.#putOptional(databaseKey(spcNode, dbNode), lsn, undefined);
    this.#putOptional(relationMapKey(spcNode, dbNode), lsn, undefined);
  }

  async #copyDatabaseNow(
    from: readonly [number, number],
    to: readonly [number, number],
    lsn: Lsn,
    waitForRoom: () => Promise<void>,
  ): Promise<void> {
    const state = this.#state;
    const at = state.lastRecordLsn;
    const blob = (key: Key): Promise<Buffer | null> => read(state, at, (pass) => tryBlob(state, pass, key, at));
    // As redo does: what lies in the target goes, and a source that is missing (a later record drops the copy) is an empty directory.
    await this.#dropDatabaseNow(...to, lsn);
    const directory = (await blob(databaseKey(...from))) ?? directoryWithoutVersion;
    this.#putBlob(databaseKey(...to), lsn, directory);
    const map = await blob(relationMapKey(...from));
    if (map !== null) this.#putBlob(relationMapKey(...to), lsn, map);
    const range = rangeOf(keyKind.relSize, ...from);
    for (const {key} of await read(state, at, (pass) => tryBlobs(state, pass, range, at))) {
      const source = relOf(key);
      const target: RelTag = {...source, spcNode: to[0], dbNode: to[1]};
      const info = await read(state, at, (pass) => tryRelInfo(state, pass, source, at));
      this.#setRelation(target, {blocks: info.blocks, floorLsn: lsn, truncations: []}, lsn);
      // Stripes begin at multiples of copyBlocks.
      for (let block = 0; block < info.blocks; block += copyBlocks) {
        if (!state.ownsBlock(target.relNode, target.fork, block)) continue;
        const pages = await read(state, at, (pass) => tryRelPages(state, pass, source, block, copyBlocks, at));
        const prefix = relPagePrefix(target);
        pages.forEach((page, i) => {
          if (!page.equals(zeroPage)) this.#put(prefix, block + i, lsn, valueKind.image, flagStartsHistory, page);
        });
        const {open, context} = state;
        if (open !== undefined && (open.bytes >= context.limits.layerBytes || open.isFull)) {
          // In the middle of a record: the layer is durable before the record is, and what follows has the same LSN.
          this.#freezeNow((lsn + 1) as Lsn, false);
          await waitForRoom();
        }
      }
    }
  }

  /** Between records: the budget may freeze this layer, or that of any other timeline. */
  #account(bytes: number): void {
    this.#accountedBytes = bytes;
    this.#state.context.memory.setOpen(this.#state, bytes);
  }

  #freezeNow(endLsn: Lsn, last: boolean): void {
    const state = this.#state;
    const layer = state.open;
    if (layer === undefined || layer.versionCount === 0) return;
    const continues = layer.startLsn < this.#frozenUntil;
    layer.freeze(endLsn);
    this.#frozenUntil = endLsn;
    state.open = undefined;
    this.#knownForks.fill(undefined); // they would keep the layer in memory
    if (this.#importing) this.#importParts++;
    state.frozen.push({
      id: state.nextFrozenId++,
      layer,
      consistentLsn: state.lastRecordLsn,
      image: this.#importing,
      complete: this.#importing && last && this.#importParts === 1,
      continues,
      logicalSizeBytes: this.#sizeAtRecord,
    });
    state.context.memory.addFrozen(layer.bytes);
    this.#account(0);
    this.#onFrozen();
  }
}

function databaseId(spcNode: number, dbNode: number): string {
  return `${spcNode}/${dbNode}`;
}

export function relOf(key: Key): RelTag {
  const {a, b, c, d} = key.prefix;
  return {spcNode: a, dbNode: b, relNode: c, fork: d as ForkNumber};
}

/** Numbers of the pages that exist at `at`, ascending. */
export async function existingSlruPages(state: TimelineState, kind: SlruKind, at: Lsn): Promise<number[]> {
  return read(state, at, (pass) => {
    const keys = tryScanKeys(state, pass, rangeOf(keyKind.slruPage, kind), at);
    if (keys === undefined) return undefined;
    const pages: number[] = [];
    let missing = false;
    for (const key of keys) {
      const values = tryCollect(state, pass, key.prefix, key.e, at, 0);
      if (values === undefined) missing = true;
      else if (values.length > 0 && values[0]!.kind !== valueKind.tombstone) pages.push(key.e);
    }
    return missing ? undefined : pages;
  });
}
