/**
 * A timeline in memory that keeps only the newest state: applies redo and patches at once. The reference against which the
 * real timeline can be compared, and what tests of ingest, import and basebackup write into.
 */
import type {BasebackupSource} from '#pageserver/basebackup.ts';
import {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {applyPagePatch} from '#pageserver/ingest/page-patch.ts';
import {type IngestSink, type IngestState, relationMissing} from '#pageserver/ingest/sink.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {type ForkNumber, type RelTag, blockSize, formatRel} from '#postgres/relation.ts';
import {type SlruKind, slruKinds} from '#postgres/slru.ts';
import {type BlockRef, WalRecord, decodeRecord} from '#postgres/wal/record.ts';
import {applyRecord} from '#redo/apply.ts';

interface Fork {
  readonly rel: RelTag;
  size: number;
  readonly pages: Map<number, Buffer>;
}

export class MemoryTimeline implements IngestSink, IngestState, BasebackupSource {
  readonly tenantId = '0'.repeat(32);
  readonly timelineId = '0'.repeat(32);
  readonly forks = new Map<string, Fork>();
  readonly databases = new Map<string, {spcNode: number; dbNode: number; hasVersionFile: boolean}>();
  readonly maps = new Map<string, Buffer>();
  readonly slrus = slruKinds.map(() => new Map<number, Buffer>());
  readonly twoPhase = new Map<number, Buffer>();
  readonly aux = new Map<string, Buffer>();
  readonly commits: {time: number; lsn: Lsn}[] = [];
  checkpoint: Buffer | undefined;
  /** Redo errors, page by page; ingest itself does not see pages. */
  readonly problems: string[] = [];
  /** While importing, pages come before their relation. */
  importing = false;
  readonly #record = new WalRecord();

  relationSize(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber): number {
    return this.forks.get(formatRel({spcNode, dbNode, relNode, fork}))?.size ?? relationMissing;
  }
  databaseExists(spcNode: number, dbNode: number): boolean {
    return this.databases.has(`${spcNode}/${dbNode}`);
  }
  slruPageExists(kind: SlruKind, page: number): boolean {
    return this.slrus[kind]!.has(page);
  }
  ownsBlock(): boolean {
    return true;
  }
  readonly isFirstShard = true;

  relationPageRecord(record: WalRecord, b: BlockRef, needsBase: boolean): void {
    const f = this.#fork(b.spcNode, b.dbNode, b.relNode, b.fork);
    const page = (needsBase ? f.pages.get(b.blockNumber) : undefined) ?? Buffer.alloc(blockSize);
    f.pages.set(b.blockNumber, page);
    // as storage does: from the record's own bytes
    decodeRecord(Buffer.from(record.whole()), 0 as Lsn, record.endLsn, this.#record);
    try {
      applyRecord(page, this.#record, b.id, {
        walLogHints: this.checkpoint !== undefined && CheckpointState.decode(this.checkpoint).walLogHints,
      });
    } catch (error) {
      this.problems.push(error instanceof Error ? error.message : String(error));
    }
  }
  relationPageImage(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    block: number,
    _lsn: Lsn,
    image: Buffer,
  ): void {
    this.#fork(spcNode, dbNode, relNode, fork).pages.set(block, image);
  }
  relationPagePatch(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    block: number,
    _lsn: Lsn,
    patch: Buffer,
  ): void {
    const f = this.#fork(spcNode, dbNode, relNode, fork);
    const page = f.pages.get(block) ?? Buffer.alloc(blockSize);
    f.pages.set(block, page);
    applyPagePatch(page, patch);
  }
  zeroPages(
    spcNode: number,
    dbNode: number,
    relNode: number,
    fork: ForkNumber,
    startBlock: number,
    endBlock: number,
  ): void {
    for (let block = startBlock; block < endBlock; block++)
      this.#fork(spcNode, dbNode, relNode, fork).pages.delete(block);
  }
  createRelation(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber): void {
    const key = formatRel({spcNode, dbNode, relNode, fork});
    const known = this.forks.get(key);
    if (known !== undefined && known.size !== relationMissing) throw new Error(`${key} is created twice`);
    if (known !== undefined) known.size = 0;
    else this.forks.set(key, {rel: {spcNode, dbNode, relNode, fork}, size: 0, pages: new Map()});
  }
  setRelationSize(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber, blocks: number): void {
    // Pages beyond the end stay, as they do in storage: an extension must say what becomes of them.
    this.#fork(spcNode, dbNode, relNode, fork).size = blocks;
  }
  dropRelation(spcNode: number, dbNode: number, relNode: number): void {
    for (const fork of [0, 1, 2, 3] as const) this.forks.delete(formatRel({spcNode, dbNode, relNode, fork}));
  }
  createDatabase(spcNode: number, dbNode: number, hasVersionFile: boolean): void {
    this.databases.set(`${spcNode}/${dbNode}`, {spcNode, dbNode, hasVersionFile});
  }
  copyDatabase(sourceSpcNode: number, sourceDbNode: number, targetSpcNode: number, targetDbNode: number): void {
    this.dropDatabase(targetSpcNode, targetDbNode);
    const source = this.databases.get(`${sourceSpcNode}/${sourceDbNode}`);
    if (source === undefined) throw new Error(`database ${sourceSpcNode}/${sourceDbNode} is unknown`);
    this.createDatabase(targetSpcNode, targetDbNode, source.hasVersionFile);
    const map = this.maps.get(`${sourceSpcNode}/${sourceDbNode}`);
    if (map !== undefined) this.maps.set(`${targetSpcNode}/${targetDbNode}`, map);
    for (const f of this.forks.values()) {
      if (f.rel.spcNode !== sourceSpcNode || f.rel.dbNode !== sourceDbNode) continue;
      const rel = {...f.rel, spcNode: targetSpcNode, dbNode: targetDbNode};
      const pages = new Map(
        [...f.pages].filter(([block]) => block < f.size).map(([block, page]) => [block, Buffer.from(page)]),
      );
      this.forks.set(formatRel(rel), {rel, size: f.size, pages});
    }
  }
  dropDatabase(spcNode: number, dbNode: number): void {
    this.databases.delete(`${spcNode}/${dbNode}`);
    this.maps.delete(`${spcNode}/${dbNode}`);
    for (const [key, f] of this.forks) if (f.rel.spcNode === spcNode && f.rel.dbNode === dbNode) this.forks.delete(key);
  }
  putRelationMap(spcNode: number, dbNode: number, map: Buffer): void {
    this.maps.set(`${spcNode}/${dbNode}`, map);
  }
  slruPageImage(kind: SlruKind, page: number, _lsn: Lsn, image: Buffer): void {
    this.slrus[kind]!.set(page, image);
  }
  slruPagePatch(kind: SlruKind, page: number, _lsn: Lsn, patch: Buffer, needsBase: boolean): void {
    const known = this.slrus[kind]!.get(page);
    if (needsBase !== (known !== undefined)) throw new Error(`SLRU ${kind} page ${page}: needsBase is ${needsBase}`);
    const bytes = known ?? Buffer.alloc(blockSize);
    this.slrus[kind]!.set(page, bytes);
    applyPagePatch(bytes, patch);
  }
  slruPageZero(kind: SlruKind, page: number): void {
    this.slrus[kind]!.set(page, Buffer.alloc(blockSize));
  }
  slruDropPages(kind: SlruKind, startPage: number, endPage: number): void {
    for (const page of this.slrus[kind]!.keys())
      if (page >= startPage && page < endPage) this.slrus[kind]!.delete(page);
  }
  putTwoPhase(xid: number, contents: Buffer | undefined): void {
    if (contents === undefined) this.twoPhase.delete(xid);
    else this.twoPhase.set(xid, contents);
  }
  putAuxFile(path: string, contents: Buffer | undefined): void {
    if (contents === undefined) this.aux.delete(path);
    else this.aux.set(path, contents);
  }
  putCheckpointState(state: Buffer): void {
    this.checkpoint = state;
  }
  commitTime(time: number, lsn: Lsn): void {
    this.commits.push({time, lsn});
  }

  /** A page below the fork's size; zeros when it has no value. */
  page(f: Fork, block: number): Buffer {
    return f.pages.get(block) ?? Buffer.alloc(blockSize);
  }

  checkpointState(): Promise<Buffer | undefined> {
    return Promise.resolve(this.checkpoint);
  }
  listDatabases(): Promise<{spcNode: number; dbNode: number; hasVersionFile: boolean}[]> {
    return Promise.resolve([...this.databases.values()]);
  }
  relationMap(spcNode: number, dbNode: number): Promise<Buffer | undefined> {
    return Promise.resolve(this.maps.get(`${spcNode}/${dbNode}`));
  }
  listRelations(spcNode: number, dbNode: number): Promise<{rel: RelTag; blocks: number}[]> {
    return Promise.resolve(
      [...this.forks.values()]
        .filter((f) => f.rel.dbNode === dbNode && (spcNode === 0 || f.rel.spcNode === spcNode) && f.size >= 0)
        .map((f) => ({rel: f.rel, blocks: f.size})),
    );
  }
  getRelPages(rel: RelTag, block: number, count: number): Promise<Buffer[]> {
    const f = this.forks.get(formatRel(rel))!;
    return Promise.resolve(Array.from({length: Math.min(count, f.size - block)}, (_, i) => this.page(f, block + i)));
  }
  slruPages(kind: SlruKind): Promise<number[]> {
    return Promise.resolve([...this.slrus[kind]!.keys()].sort((a, b) => a - b));
  }
  getSlruPages(kind: SlruKind, pages: readonly number[]): Promise<Buffer[]> {
    return Promise.resolve(pages.map((page) => this.slrus[kind]!.get(page)!));
  }
  twoPhaseFiles(): Promise<{xid: number; contents: Buffer}[]> {
    return Promise.resolve([...this.twoPhase].map(([xid, contents]) => ({xid, contents})));
  }
  auxFiles(): Promise<{path: string; contents: Buffer}[]> {
    return Promise.resolve([...this.aux].map(([path, contents]) => ({path, contents})));
  }

  #fork(spcNode: number, dbNode: number, relNode: number, fork: ForkNumber): Fork {
    const rel = {spcNode, dbNode, relNode, fork};
    const key = formatRel(rel);
    let f = this.forks.get(key);
    if (f === undefined) {
      if (!this.importing) throw new Error(`${key} does not exist`);
      f = {rel, size: relationMissing, pages: new Map()};
      this.forks.set(key, f);
    }
    return f;
  }
}
