/**
 * The visibility map: two bits per heap block. Heap records that take bits away name only the heap page; their flags tell
 * (access/heapam_xlog.h; heapam.c heap_xlog_insert, _delete, _update, _lock; visibilitymap.c visibilitymap_clear). The bits
 * are cleared whether or not redo of the heap page has anything to do, and the map page's LSN stays.
 */
import type {Lsn} from '#postgres/lsn.ts';
import {blockSize, fork} from '#postgres/relation.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import type {InterpretContext} from '#pageserver/ingest/interpret-context.ts';
import {RecordDataError} from '#pageserver/ingest/record-data.ts';
import {relationNotLoaded} from '#pageserver/ingest/sink.ts';

// access/heapam_xlog.h
const heapInsert = 0x00;
const heapDelete = 0x10;
const heapUpdate = 0x20;
const heapHotUpdate = 0x40;
const heapLock = 0x60;
const heap2MultiInsert = 0x50;
const heap2LockUpdated = 0x60;
const allVisibleCleared = 0x01;
const oldAllVisibleCleared = 0x01;
const newAllVisibleCleared = 0x02;
const allFrozenCleared = 0x01;

// access/visibilitymapdefs.h, visibilitymap.c
const frozenBit = 0x02;
const bothBits = 0x03;
const pageHeaderSize = 24;

export const heapBlocksPerMapPage = (blockSize - pageHeaderSize) * 4;

/** Byte of a map page that holds the two bits of this heap block. */
export function mapBitsOffset(heapBlock: number): number {
  return pageHeaderSize + Math.floor((heapBlock % heapBlocksPerMapPage) / 4);
}

/** The bits one heap record clears: those of at most two blocks of one relation. */
export class MapClears {
  readonly #context: InterpretContext;
  #count = 0;
  readonly #entries = [
    {spcNode: 0, dbNode: 0, relNode: 0, mapBlock: 0, offset: 0, and: 0},
    {spcNode: 0, dbNode: 0, relNode: 0, mapBlock: 0, offset: 0, and: 0},
  ];

  constructor(context: InterpretContext) {
    this.#context = context;
  }

  /** Notes what a heap or heap2 record clears; sizes of map forks that are not loaded are noted as missing. */
  find(record: WalRecord): void {
    this.#count = 0;
    const opcode = record.info & 0x70;
    if (record.rmid === rmgr.heap) {
      switch (opcode) {
        case heapInsert:
          if ((flagsOf(record, 2) & allVisibleCleared) !== 0) this.#add(record, 0, bothBits);
          return;
        case heapDelete:
          if ((flagsOf(record, 7) & allVisibleCleared) !== 0) this.#add(record, 0, bothBits);
          return;
        case heapUpdate:
        case heapHotUpdate: {
          const flags = flagsOf(record, 7);
          // Block 1 is the old tuple's page when that is another one than the new tuple's, block 0.
          if ((flags & oldAllVisibleCleared) !== 0) this.#add(record, record.block(1) === undefined ? 0 : 1, bothBits);
          if ((flags & newAllVisibleCleared) !== 0) this.#add(record, 0, bothBits);
          return;
        }
        case heapLock:
          if ((flagsOf(record, 7) & allFrozenCleared) !== 0) this.#add(record, 0, frozenBit);
          return;
        default:
          return;
      }
    }
    if (opcode === heap2MultiInsert) {
      if ((flagsOf(record, 0) & allVisibleCleared) !== 0) this.#add(record, 0, bothBits);
    } else if (opcode === heap2LockUpdated && (flagsOf(record, 7) & allFrozenCleared) !== 0) {
      this.#add(record, 0, frozenBit);
    }
  }

  #add(record: WalRecord, blockId: number, bits: number): void {
    const b = record.block(blockId);
    if (b === undefined) throw new RecordDataError(`block ${blockId} is missing`);
    const mapBlock = Math.floor(b.blockNumber / heapBlocksPerMapPage);
    // A map page that does not exist has no bits to clear.
    const mapSize = this.#context.size(b.spcNode, b.dbNode, b.relNode, fork.vm);
    if (mapSize !== relationNotLoaded && mapBlock >= mapSize) return;
    const entry = this.#entries[this.#count++]!;
    entry.spcNode = b.spcNode;
    entry.dbNode = b.dbNode;
    entry.relNode = b.relNode;
    entry.mapBlock = mapBlock;
    entry.offset = mapBitsOffset(b.blockNumber);
    entry.and = ~(bits << ((b.blockNumber % 4) * 2)) & 0xff;
  }

  /** Hands the patches of the record last looked at to the sink. */
  apply(lsn: Lsn): void {
    const count = this.#count;
    if (count === 0) return;
    const entries = this.#entries;
    const {sink, patch} = this.#context;
    const first = entries[0]!;
    patch.mask(first.offset, first.and, 0);
    if (count === 2) {
      const second = entries[1]!;
      // Both pages of an update are of one relation; their bits are often on one map page, which gets one value then.
      if (second.mapBlock !== first.mapBlock)
        sink.relationPagePatch(first.spcNode, first.dbNode, first.relNode, fork.vm, first.mapBlock, lsn, patch.take());
      patch.mask(second.offset, second.and, 0);
    }
    const last = entries[count - 1]!;
    sink.relationPagePatch(last.spcNode, last.dbNode, last.relNode, fork.vm, last.mapBlock, lsn, patch.take());
  }
}

/** The byte of flags at this offset of the main data. */
function flagsOf(record: WalRecord, at: number): number {
  if (record.mainDataLength <= at)
    throw new RecordDataError(`main data of ${record.mainDataLength} bytes has no flags`);
  return record.bytes[record.mainDataOffset + at]!;
}
