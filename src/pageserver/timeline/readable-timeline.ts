/** The half of a timeline that is read: waiting for WAL, pages, and everything else that a basebackup is made of. */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type RelTag, blockSize, formatRel} from '#postgres/relation.ts';
import type {SlruKind} from '#postgres/slru.ts';
import type {PackedSegment} from '#wire/packed-pages.ts';
import type {RelListEntry} from '#wire/pages.ts';
import {formatShardId, shardOfBlock} from '#wire/shard.ts';
import {ReadPass, type RunMemory} from '../layers/layer-reader.ts';
import {checkKept} from './kept-history.ts';
import {type Key, checkpointStateKey, keyKind, rangeOf, relationMapKey, slruPrefix} from './key.ts';
import {LsnWaiters} from './lsn-waiters.ts';
import {
  buildPage,
  read,
  readOn,
  tryBlob,
  tryBlobs,
  tryCollect,
  tryPackedRelPages,
  tryRelInfo,
  tryRelPages,
} from './read-path.ts';
import {decodeSize} from './sizes.ts';
import type {TimelineState} from './state.ts';
import {type LsnAtTime, lsnAtTime} from './time-lookup.ts';
import {type DatabaseEntry, TimelineError, type TimelineReader} from './timeline-reader.ts';
import {valueKind} from './value.ts';
import {existingSlruPages, relOf} from './write-path.ts';

const waitMsDefault = 60_000;
/** Somebody reads in order who asks for so many pages at once. */
const runPagesMin = 8;

export abstract class ReadableTimeline implements TimelineReader {
  /** For the files of timeline/ and for tests; others use the methods. */
  readonly state: TimelineState;
  protected readonly waiters: LsnWaiters;
  /** Somebody waits for WAL: set by the driver of ingest. */
  onWanted: (lsn: Lsn) => void = () => {};

  constructor(state: TimelineState) {
    this.state = state;
    this.waiters = new LsnWaiters(state);
  }

  abstract get ancestor(): ReadableTimeline | undefined;

  get tenantId(): string {
    return this.state.tenantId;
  }
  get timelineId(): string {
    return this.state.timelineId;
  }
  get lastRecordLsn(): Lsn {
    return this.state.lastRecordLsn;
  }
  get remoteConsistentLsn(): Lsn {
    return this.state.remoteConsistentLsn;
  }
  get diskConsistentLsn(): Lsn {
    return this.state.diskConsistentLsn;
  }

  /** See TimelineReader. */
  async waitForLsn(lsn: Lsn, timeoutMs = waitMsDefault): Promise<void> {
    if (!this.isReadableAt(lsn)) await this.#wait(lsn, timeoutMs);
  }

  /** No waiting is needed: this timeline and its ancestors have everything up to `lsn` that a read there needs. */
  isReadableAt(lsn: Lsn): boolean {
    const s = this.state;
    if (s.lifecycle !== 'active' || lsn > s.lastRecordLsn) return false;
    for (let a = s.ancestor; a !== undefined; a = a.state.ancestor) if (a.state.lastRecordLsn < a.lsn) return false;
    return true;
  }

  async #wait(lsn: Lsn, timeoutMs: number): Promise<void> {
    const s = this.state;
    if (s.lifecycle !== 'active')
      throw new TimelineError('unavailable', `${s.name}: the timeline is ${s.lifecycle}, it cannot be read`);
    // After a restart an ancestor may have to ingest again up to where this branch left it.
    if (s.ancestor !== undefined) await this.ancestor?.waitForLsn(s.ancestor.lsn, timeoutMs);
    if (lsn <= s.lastRecordLsn) return;
    this.onWanted(lsn);
    await this.waiters.wait(lsn, timeoutMs);
  }

  /** Ingest cannot go on: everybody who waits is told, reads up to lastRecordLsn go on. */
  ingestStopped(reason: string): void {
    this.state.ingestError = reason;
    this.waiters.ingestStopped(reason);
  }

  // ---- reading

  async relSize(rel: RelTag, at: Lsn): Promise<number | undefined> {
    this.#checkReadable(at);
    const info = await read(this.state, at, (pass) => tryRelInfo(this.state, pass, rel, at));
    return info.blocks < 0 ? undefined : info.blocks;
  }

  /** Size when memory knows it: a number, null = does not exist, undefined = ask relSize(). */
  relSizeNow(rel: RelTag, at: Lsn): number | null | undefined {
    const info = this.isReadableAt(at) ? this.state.sizes.at(rel, at) : undefined;
    return info === undefined ? undefined : info.blocks < 0 ? null : info.blocks;
  }

  /**
   * Pages without a promise when everything is in memory; else a promise. Throws or rejects with TimelineError. The LSN must
   * be readable (isReadableAt). With `into`, of `count` pages, they are made there, one after the other.
   */
  getRelPagesNow(rel: RelTag, block: number, count: number, at: Lsn, into?: Buffer): Buffer[] | Promise<Buffer[]> {
    this.#checkReadable(at);
    const {state} = this;
    if (state.shard.count > 1) this.#checkOwned(rel, block, count);
    return this.#readNow(at, count, (pass) => tryRelPages(state, pass, rel, block, count, at, into));
  }

  /**
   * The same as they lie in storage, where that is shorter (wire/packed-pages.ts); the others are made in `into`. What is read may lie
   * in `memory`.
   */
  getPackedRelPagesNow(
    rel: RelTag,
    block: number,
    count: number,
    at: Lsn,
    into: Buffer,
    memory?: RunMemory,
  ): PackedSegment[] | Promise<PackedSegment[]> {
    this.#checkReadable(at);
    const {state} = this;
    if (state.shard.count > 1) this.#checkOwned(rel, block, count);
    return this.#readNow(at, count, (pass) => tryPackedRelPages(state, pass, rel, block, count, at, into), memory);
  }

  #readNow<T>(at: Lsn, count: number, attempt: (pass: ReadPass) => T | undefined, memory?: RunMemory): T | Promise<T> {
    const {state} = this;
    const {layersPerRead} = state.context.metrics;
    const pass = new ReadPass(state.context.cache, count >= runPagesMin, memory);
    const found = attempt(pass);
    if (found !== undefined) {
      layersPerRead.observe(pass.layersVisited / count);
      return found;
    }
    return readOn(state, at, pass, attempt).then((slow) => {
      layersPerRead.observe(pass.layersVisited / count);
      return slow;
    });
  }

  async getRelPages(rel: RelTag, block: number, count: number, at: Lsn, into?: Buffer): Promise<Buffer[]> {
    return this.getRelPagesNow(rel, block, count, at, into);
  }

  async listRelations(spcNode: number, dbNode: number, at: Lsn): Promise<RelListEntry[]> {
    this.#checkReadable(at);
    const range = spcNode === 0 ? rangeOf(keyKind.relSize) : rangeOf(keyKind.relSize, spcNode, dbNode);
    const blobs = await read(this.state, at, (pass) =>
      tryBlobs(this.state, pass, range, at, (key) => key.prefix.b === dbNode),
    );
    return blobs.map(({key, bytes}) => ({rel: relOf(key), blocks: decodeSize(bytes).blocks}));
  }

  /** Bytes of all forks of a database, in every tablespace. */
  async databaseSize(dbNode: number, at: Lsn): Promise<number> {
    const relations = await this.listRelations(0, dbNode, at);
    return relations.reduce((sum, entry) => sum + entry.blocks, 0) * blockSize;
  }

  async listDatabases(at: Lsn): Promise<DatabaseEntry[]> {
    this.#checkReadable(at);
    const blobs = await read(this.state, at, (pass) => tryBlobs(this.state, pass, rangeOf(keyKind.database), at));
    return blobs.map(({key, bytes}) => ({
      spcNode: key.prefix.a,
      dbNode: key.prefix.b,
      hasVersionFile: bytes[0] === 1,
    }));
  }

  relationMap(spcNode: number, dbNode: number, at: Lsn): Promise<Buffer | undefined> {
    return this.#blob(relationMapKey(spcNode, dbNode), at);
  }

  async slruPages(kind: SlruKind, at: Lsn): Promise<number[]> {
    this.#checkReadable(at);
    return existingSlruPages(this.state, kind, at);
  }

  async getSlruPages(kind: SlruKind, pages: readonly number[], at: Lsn): Promise<Buffer[]> {
    this.#checkReadable(at);
    const {state} = this;
    return read(state, at, (pass) => {
      const out: Buffer[] = [];
      let missing = false;
      for (const page of pages) {
        const values = tryCollect(state, pass, slruPrefix(kind), page, at, 0);
        if (values === undefined) {
          missing = true;
          continue;
        }
        if (values.length === 0 || values[0]!.kind === valueKind.tombstone)
          throw new TimelineError('not-found', `${state.describe(at)}: SLRU ${kind} has no page ${page}`);
        if (!missing) out.push(buildPage(state, values, at, () => `SLRU ${kind} page ${page}`));
      }
      return missing ? undefined : out;
    });
  }

  async twoPhaseFiles(at: Lsn): Promise<{xid: number; contents: Buffer}[]> {
    this.#checkReadable(at);
    const blobs = await read(this.state, at, (pass) => tryBlobs(this.state, pass, rangeOf(keyKind.twoPhase), at));
    return blobs.map(({key, bytes}) => ({xid: key.e, contents: bytes}));
  }

  async auxFiles(at: Lsn): Promise<{path: string; contents: Buffer}[]> {
    this.#checkReadable(at);
    const blobs = await read(this.state, at, (pass) => tryBlobs(this.state, pass, rangeOf(keyKind.auxFile), at));
    return blobs
      .map(({bytes}) => {
        const nameBytes = bytes.readUInt16LE(0);
        return {path: bytes.toString('utf8', 2, 2 + nameBytes), contents: bytes.subarray(2 + nameBytes)};
      })
      .sort((x, y) => (x.path < y.path ? -1 : 1));
  }

  checkpointState(at: Lsn): Promise<Buffer | undefined> {
    return this.#blob(checkpointStateKey, at);
  }

  /** The end of the last commit of which everything before is not later than the time (µs since 1970). */
  async lsnAtTime(unixMicroseconds: number): Promise<LsnAtTime> {
    await this.waitForLsn(this.state.lastRecordLsn);
    return lsnAtTime(this.state, unixMicroseconds);
  }

  async #blob(key: Key, at: Lsn): Promise<Buffer | undefined> {
    this.#checkReadable(at);
    return (await read(this.state, at, (pass) => tryBlob(this.state, pass, key, at))) ?? undefined;
  }

  ownsBlock(rel: RelTag, block: number): boolean {
    return this.state.ownsBlock(rel.relNode, rel.fork, block);
  }

  /** Fewer blocks than a stripe has: the first and the last tell. */
  #checkOwned(rel: RelTag, block: number, count: number): void {
    const foreign = [block, block + count - 1].find((b) => !this.ownsBlock(rel, b));
    if (foreign === undefined) return;
    const {tenantId, count: shards} = this.state.shard;
    throw new TimelineError(
      'wrong-shard',
      `${this.state.name}: block ${foreign} of relation ${formatRel(rel)} is kept by shard ${formatShardId({tenantId, number: shardOfBlock(shards, rel, foreign), count: shards})}`,
    );
  }

  #checkReadable(at: Lsn): void {
    if (this.isReadableAt(at)) return checkKept(this.state, at);
    throw new TimelineError(
      'lsn-timeout',
      `${this.state.describe(at)}: not readable yet: the timeline is ${this.state.lifecycle} and has reached ${formatLsn(this.state.lastRecordLsn)}`,
    );
  }
}
