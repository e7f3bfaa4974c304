/**
 * Effects of WAL records that are not their listed blocks, as far as page chains depend on them (wal-redo.md 5.2): files
 * that are created, truncated, dropped or copied, and visibility map bits. Written apart from the page server's ingest, so
 * that the two check each other.
 */
import type {WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import type {PageStore} from './pages.ts';

const heapBlocksPerMapPage = 32672;

/** Applies them to `store`. To be called before the record's own blocks are redone. */
export function applyEffects(store: PageStore, record: WalRecord): void {
  const data = record.mainData();
  switch (record.rmid) {
    case rmgr.storage:
      if ((record.info & 0xf0) === 0x10)
        store.create(data.readUInt32LE(0), data.readUInt32LE(4), data.readUInt32LE(8), data.readUInt32LE(12));
      else truncate(store, data);
      return;
    case rmgr.database:
      database(store, record.info & 0xf0, data);
      return;
    case rmgr.transaction:
      dropFiles(store, record, data);
      return;
    case rmgr.heap:
      heapMapBits(store, record, data);
      return;
    case rmgr.heap2:
      if ((record.info & 0x70) === 0x50 && (data[0]! & 0x01) !== 0) clearBits(store, record, 0, 3);
      if ((record.info & 0x70) === 0x60 && (data[7]! & 0x01) !== 0) clearBits(store, record, 0, 2);
      return;
    default:
  }
}

function heapMapBits(store: PageStore, record: WalRecord, data: Buffer): void {
  switch (record.info & 0x70) {
    case 0x00: // INSERT
      if ((data[2]! & 0x01) !== 0) clearBits(store, record, 0, 3);
      return;
    case 0x10: // DELETE
      if ((data[7]! & 0x01) !== 0) clearBits(store, record, 0, 3);
      return;
    case 0x20: // UPDATE
    case 0x40: // HOT_UPDATE
      if ((data[7]! & 0x01) !== 0) clearBits(store, record, record.block(1) === undefined ? 0 : 1, 3);
      if ((data[7]! & 0x02) !== 0) clearBits(store, record, 0, 3);
      return;
    case 0x60: // LOCK
      if ((data[7]! & 0x01) !== 0) clearBits(store, record, 0, 2);
      return;
    default:
  }
}

function clearBits(store: PageStore, record: WalRecord, blockId: number, bits: number): void {
  const heap = record.block(blockId)!;
  const mapBlock = Math.floor(heap.blockNumber / heapBlocksPerMapPage);
  const map = store.peek(heap.spcNode, heap.dbNode, heap.relNode, 2, mapBlock);
  if (map === undefined) return;
  const index = heap.blockNumber % heapBlocksPerMapPage;
  const at = 24 + (index >>> 2);
  map[at] = map[at]! & ~(bits << ((index & 3) * 2));
}

function truncate(store: PageStore, data: Buffer): void {
  const blocks = data.readUInt32LE(0);
  const spc = data.readUInt32LE(4);
  const db = data.readUInt32LE(8);
  const rel = data.readUInt32LE(12);
  const flags = data.readUInt32LE(16);
  if ((flags & 1) !== 0) store.truncate(spc, db, rel, 0, blocks);
  if ((flags & 2) === 0) return;
  const index = blocks % heapBlocksPerMapPage;
  let mapBlocks = Math.floor(blocks / heapBlocksPerMapPage);
  if (index > 0) {
    const map = store.peek(spc, db, rel, 2, mapBlocks);
    if (map !== undefined) {
      const at = 24 + (index >>> 2);
      map.fill(0, at + 1);
      map[at] = map[at]! & ((1 << ((index & 3) * 2)) - 1);
    }
    mapBlocks++;
  }
  store.truncate(spc, db, rel, 2, mapBlocks);
}

function database(store: PageStore, op: number, data: Buffer): void {
  if (op === 0x00)
    store.copyDatabase(data.readUInt32LE(12), data.readUInt32LE(8), data.readUInt32LE(4), data.readUInt32LE(0));
  if (op === 0x20) {
    const db = data.readUInt32LE(0);
    for (let i = 0; i < data.readUInt32LE(4); i++) store.dropDatabase(data.readUInt32LE(8 + i * 4), db);
  }
}

/** COMMIT, ABORT and their PREPARED forms: the relations that go with the transaction. */
function dropFiles(store: PageStore, record: WalRecord, data: Buffer): void {
  const op = record.info & 0x70;
  if ((op !== 0x00 && op !== 0x20 && op !== 0x30 && op !== 0x40) || (record.info & 0x80) === 0) return;
  const xinfo = data.readUInt32LE(8);
  let at = 12;
  if ((xinfo & 0x1) !== 0) at += 8;
  if ((xinfo & 0x2) !== 0) at += 4 + data.readUInt32LE(at) * 4;
  if ((xinfo & 0x4) === 0) return;
  const count = data.readUInt32LE(at);
  at += 4;
  for (let i = 0; i < count; i++, at += 12)
    store.drop(data.readUInt32LE(at), data.readUInt32LE(at + 4), data.readUInt32LE(at + 8));
}
