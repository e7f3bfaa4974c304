/**
 * WAL record → changes of pages and metadata (docs reference wal-redo.md 3, 5 and 7). Pure and synchronous: all input is the
 * record, the checkpoint state and IngestState; all output goes to the IngestSink. A record either has its whole effect or none:
 *
 *   1. what must be known (relation sizes) is looked up; when something is not in memory: `missing`
 *   2. the record is parsed; when it makes no sense: `error`
 *   3. its effects go to the sink, in this order: page changes of its blocks, implied changes, checkpoint state
 *
 * Records with blocks are handled here; those of a resource manager that only changes metadata in files beside this one.
 */
import {type Lsn, formatLsn} from '#postgres/lsn.ts';
import {type ForkNumber, type RelTag, blockSize, globalTablespace} from '#postgres/relation.ts';
import {restoreImage, setRestoredPageLsn} from '#postgres/wal/image.ts';
import {type BlockRef, WalDecodeError, type WalRecord, blocksMax} from '#postgres/wal/record.ts';
import {rmgr, rmgrNames} from '#postgres/wal/rmgr.ts';
import type {CheckpointState} from '#pageserver/ingest/checkpoint-state.ts';
import {interpretDatabase, interpretRelationMap, interpretTablespace} from '#pageserver/ingest/interpret-database.ts';
import {interpretMultixact} from '#pageserver/ingest/interpret-multixact.ts';
import {
  interpretClog,
  interpretCommitTs,
  interpretTransaction,
  isPlainEnd,
  plainTransactionEnd,
} from '#pageserver/ingest/interpret-transaction.ts';
import {interpretStorage} from '#pageserver/ingest/interpret-storage.ts';
import {interpretOrigin, interpretXlog} from '#pageserver/ingest/interpret-xlog.ts';
import {type Effects, type InterpretContext, noEffects} from '#pageserver/ingest/interpret-context.ts';
import {PagePatchBuilder} from '#pageserver/ingest/page-patch.ts';
import {RecordData, RecordDataError} from '#pageserver/ingest/record-data.ts';
import {
  IngestError,
  type IngestSink,
  type IngestState,
  type InterpretOutcome,
  relationMissing,
  relationNotLoaded,
} from '#pageserver/ingest/sink.ts';
import {MapClears} from '#pageserver/ingest/visibility-map.ts';

/** In place of an image that another shard keeps. */
const foreign = Buffer.alloc(0);

const applied: InterpretOutcome = {kind: 'applied', barrier: false};
const appliedWithBarrier: InterpretOutcome = {kind: 'applied', barrier: true};

/** MaxBlockNumber (storage/block.h). */
const blockNumberMax = 0xfffffffe;
const opcodeFpiForHint = 0xa0;
const opcodeFpi = 0xb0;

/** Bits: opcodes (info >> 4) that a resource manager of PostgreSQL 15 writes. */
const opcodes = new Uint16Array(rmgrNames.length);
opcodes[rmgr.xlog] = 0b0010_1111_1111_1111;
opcodes[rmgr.transaction] = 0b0111_1111_0111_1111;
opcodes[rmgr.storage] = 0b110;
opcodes[rmgr.clog] = 0b11;
opcodes[rmgr.database] = 0b111;
opcodes[rmgr.tablespace] = 0b11;
opcodes[rmgr.multiXact] = 0b1111;
opcodes[rmgr.relMap] = 0b1;
opcodes[rmgr.standby] = 0b111;
opcodes[rmgr.heap2] = 0xffff;
opcodes[rmgr.heap] = 0xffff;
opcodes[rmgr.btree] = 0x7fff;
opcodes[rmgr.hash] = 0b1_1111_1111_1111;
opcodes[rmgr.gin] = 0b11_1111_1110;
opcodes[rmgr.gist] = 0b1100_1111;
opcodes[rmgr.sequence] = 0b1;
opcodes[rmgr.spGist] = 0b1_1111_1110;
opcodes[rmgr.brin] = 0b0011_1111_0011_1111;
opcodes[rmgr.commitTs] = 0b11;
opcodes[rmgr.replicationOrigin] = 0b11;
opcodes[rmgr.generic] = 0b1;
opcodes[rmgr.logicalMessage] = 0b1;

export class Interpreter implements InterpretContext {
  readonly sink: IngestSink;
  readonly state: IngestState;
  readonly checkpoint: CheckpointState;
  readonly patch = new PagePatchBuilder();
  readonly data = new RecordData();
  readonly #missing: RelTag[] = [];
  /** Size of each block's fork before the record. */
  readonly #sizes = new Float64Array(blocksMax);
  /** Whether each block is kept by this shard. */
  readonly #owned: boolean[] = new Array<boolean>(blocksMax).fill(true);
  readonly #images: (Buffer | undefined)[] = [];
  readonly #mapClears = new MapClears(this);

  /** `checkpoint` is the state as of the last record the sink has seen; it is changed in place. */
  constructor(sink: IngestSink, state: IngestState, checkpoint: CheckpointState) {
    this.sink = sink;
    this.state = state;
    this.checkpoint = checkpoint;
  }

  /** Interprets one record. Records come in WAL order, each once (again after `missing`). */
  interpret(record: WalRecord): InterpretOutcome {
    try {
      return this.#interpret(record);
    } catch (error) {
      if (error instanceof RecordDataError || error instanceof WalDecodeError) return failure(record, error.message);
      throw error;
    }
  }

  size(spcNode: number, dbNode: number, relNode: number, forkNumber: ForkNumber): number {
    const size = this.state.relationSize(spcNode, dbNode, relNode, forkNumber);
    if (size === relationNotLoaded) this.#missing.push({spcNode, dbNode, relNode, fork: forkNumber});
    return size;
  }

  createRelation(spcNode: number, dbNode: number, relNode: number, forkNumber: ForkNumber, lsn: Lsn): void {
    // As TablespaceCreateDbspace. pg_default is no exception: the database itself may live in another tablespace.
    if (spcNode !== globalTablespace && !this.state.databaseExists(spcNode, dbNode))
      this.sink.createDatabase(spcNode, dbNode, false, lsn);
    this.sink.createRelation(spcNode, dbNode, relNode, forkNumber, lsn);
  }

  #interpret(record: WalRecord): InterpretOutcome {
    const {rmid, endLsn} = record;
    const opcode = record.info & 0xf0;
    if (rmid >= opcodes.length)
      return failure(
        record,
        'no PostgreSQL 15 resource manager has this id; extensions with custom resource managers are not supported',
      );
    if ((opcodes[rmid]! & (1 << (opcode >> 4))) === 0) return failure(record, 'unknown type of record');
    if (this.#missing.length > 0) this.#missing.length = 0;
    for (let id = 0; id <= record.maxBlockId; id++) {
      const b = record.blocks[id]!;
      if (!b.inUse) continue;
      if (b.blockNumber > blockNumberMax) return failure(record, `block ${id} has number ${b.blockNumber}`);
      this.#sizes[id] = this.size(b.spcNode, b.dbNode, b.relNode, b.fork);
      this.#owned[id] = this.state.ownsBlock(b.relNode, b.fork, b.blockNumber);
    }
    const clearsMap = (rmid === rmgr.heap || rmid === rmgr.heap2) && this.state.isFirstShard;
    if (clearsMap) this.#mapClears.find(record);
    const imagesOnly =
      rmid === rmgr.xlog && (opcode === opcodeFpi || opcode === opcodeFpiForHint) && !isWholeImage(record);
    // Each of these checks the whole record, and answers 'missing' or its effects as a function; nothing has happened yet.
    let effects: Effects | 'none' = 'none';
    let plainEnd = false;
    if (record.maxBlockId < 0) {
      if (rmid === rmgr.transaction && isPlainEnd(record, this)) plainEnd = true;
      else {
        this.data.open(record);
        effects = this.#parse(record);
      }
    }
    if (this.#missing.length > 0) return {kind: 'missing', relations: this.#missing.splice(0)};
    if (typeof effects === 'object' && effects.kind === 'problem') return failure(record, effects.problem);
    if (imagesOnly) this.#restoreImages(record, opcode);

    this.checkpoint.advanceNextXid(record.xid);
    for (let id = 0; id <= record.maxBlockId; id++) {
      const b = record.blocks[id]!;
      if (b.inUse) this.#putBlock(record, b, imagesOnly);
    }
    if (clearsMap) this.#mapClears.apply(endLsn);
    if (plainEnd) plainTransactionEnd(record, this);
    let barrier = false;
    if (typeof effects === 'object' && effects.kind === 'effects') barrier = effects.apply() === 'barrier';
    const changed = this.checkpoint.takeChange();
    if (changed !== undefined) this.sink.putCheckpointState(changed, endLsn);
    return barrier ? appliedWithBarrier : applied;
  }

  /** Records without blocks, by resource manager. */
  #parse(record: WalRecord): Effects {
    switch (record.rmid) {
      case rmgr.xlog:
        return interpretXlog(record, this);
      case rmgr.transaction:
        return interpretTransaction(record, this);
      case rmgr.storage:
        return interpretStorage(record, this);
      case rmgr.clog:
        return interpretClog(record, this);
      case rmgr.database:
        return interpretDatabase(record, this);
      case rmgr.tablespace:
        return interpretTablespace(record, this);
      case rmgr.multiXact:
        return interpretMultixact(record, this);
      case rmgr.relMap:
        return interpretRelationMap(record, this);
      case rmgr.commitTs:
        return interpretCommitTs(record, this);
      case rmgr.replicationOrigin:
        return interpretOrigin(record, this);
      default:
        // Standby, logical messages, and the block-less records of heap, btree and gist are for standbys and logical decoding.
        return noEffects;
    }
  }

  #restoreImages(record: WalRecord, opcode: number): void {
    this.#images.length = 0;
    for (let id = 0; id <= record.maxBlockId; id++) {
      const b = record.block(id);
      if (b === undefined) continue;
      if (!b.hasImage) {
        // With full_page_writes = off, FPI_FOR_HINT comes without an image and means nothing.
        if (opcode === opcodeFpi) throw new RecordDataError(`block ${id} has no image`);
        continue;
      }
      if (!this.#owned[id]) {
        this.#images[id] = foreign;
        continue;
      }
      const image = Buffer.allocUnsafe(blockSize);
      restoreImage(record, b, image);
      setRestoredPageLsn(image, record.endLsn);
      this.#images[id] = image;
    }
  }

  #putBlock(record: WalRecord, b: BlockRef, imagesOnly: boolean): void {
    const image = imagesOnly ? this.#images[b.id] : undefined;
    if (imagesOnly && image === undefined) return;
    const sizeBefore = this.#sizes[b.id]!;
    const beyond = b.blockNumber >= sizeBefore; // also when the fork is missing (-1)
    if (beyond) this.#extend(record, b);
    if (!this.#owned[b.id]) return;
    if (image === undefined) this.sink.relationPageRecord(record, b, !(beyond || b.willInit || b.applyImage));
    else this.sink.relationPageImage(b.spcNode, b.dbNode, b.relNode, b.fork, b.blockNumber, record.endLsn, image);
  }

  /**
   * Makes the fork as long as this block needs. Blocks in between came into being without WAL (RelationAddExtraBlocks, hash
   * index growth): they are zeros, whatever was there before a truncation.
   */
  #extend(record: WalRecord, b: BlockRef): void {
    const {sink} = this;
    // A block before this one in the record may have extended the same fork.
    let size = this.state.relationSize(b.spcNode, b.dbNode, b.relNode, b.fork);
    if (size === relationMissing) {
      this.createRelation(b.spcNode, b.dbNode, b.relNode, b.fork, record.endLsn);
      size = 0;
    }
    if (b.blockNumber < size) return;
    let from = size;
    while (from < b.blockNumber) {
      // Blocks that this record itself writes get their value there, not zeros.
      let to = b.blockNumber;
      for (let id = 0; id <= record.maxBlockId; id++) {
        const other = record.blocks[id]!;
        if (other.inUse && other.blockNumber >= from && other.blockNumber < to && sameFork(other, b))
          to = other.blockNumber;
      }
      if (to > from) sink.zeroPages(b.spcNode, b.dbNode, b.relNode, b.fork, from, to, record.endLsn);
      from = to + 1;
    }
    sink.setRelationSize(b.spcNode, b.dbNode, b.relNode, b.fork, b.blockNumber + 1, record.endLsn);
  }
}

/**
 * An image of one page is kept as the record it is: smaller, and without a copy. One of several pages would be stored
 * with each of them.
 */
function isWholeImage(record: WalRecord): boolean {
  return record.maxBlockId === 0 && record.blocks[0]!.inUse && record.blocks[0]!.applyImage;
}

function sameFork(a: BlockRef, b: BlockRef): boolean {
  return a.relNode === b.relNode && a.dbNode === b.dbNode && a.spcNode === b.spcNode && a.fork === b.fork;
}

function failure(record: WalRecord, reason: string): InterpretOutcome {
  const name = rmgrNames[record.rmid] ?? 'custom';
  return {
    kind: 'error',
    error: new IngestError(
      `WAL record at ${formatLsn(record.startLsn)} (resource manager ${record.rmid} ${name}, info 0x${record.info.toString(16).padStart(2, '0')}, ${record.totalLength} bytes) cannot be interpreted: ${reason}`,
      record.startLsn,
    ),
  };
}
