/** Creation and truncation of relation forks (catalog/storage.c smgr_redo, visibilitymap.c, freespace.c). */
import type {Lsn} from '#postgres/lsn.ts';
import {type ForkNumber, blockSize, fork} from '#postgres/relation.ts';
import type {WalRecord} from '#postgres/wal/record.ts';
import {type Effects, type InterpretContext, effects, problem} from '#pageserver/ingest/interpret-context.ts';
import {fsmSlotsPerPage} from '#pageserver/ingest/page-patch.ts';
import {relationMissing} from '#pageserver/ingest/sink.ts';
import {heapBlocksPerMapPage, mapBitsOffset} from '#pageserver/ingest/visibility-map.ts';

const opcodeCreate = 0x10;
const truncateHeap = 1;
const truncateVm = 2;
const truncateFsm = 4;

export function interpretStorage(record: WalRecord, context: InterpretContext): Effects {
  const {data} = context;
  if ((record.info & 0xf0) === opcodeCreate) {
    const spcNode = data.u32();
    const dbNode = data.u32();
    const relNode = data.u32();
    const forkNumber = data.u32();
    if (forkNumber > 3) return problem(`fork ${forkNumber}`);
    const size = context.size(spcNode, dbNode, relNode, forkNumber as ForkNumber);
    return effects(() => {
      if (size === relationMissing)
        context.createRelation(spcNode, dbNode, relNode, forkNumber as ForkNumber, record.endLsn);
    });
  }
  const blocks = data.u32();
  const relation = {spcNode: data.u32(), dbNode: data.u32(), relNode: data.u32()};
  const flags = data.u32();
  const size = (forkNumber: ForkNumber): number =>
    context.size(relation.spcNode, relation.dbNode, relation.relNode, forkNumber);
  const mainSize = size(fork.main);
  const vmSize = (flags & truncateVm) !== 0 ? size(fork.vm) : relationMissing;
  const fsmSize = (flags & truncateFsm) !== 0 ? size(fork.fsm) : relationMissing;
  return effects(() => {
    if (mainSize === relationMissing)
      context.createRelation(relation.spcNode, relation.dbNode, relation.relNode, fork.main, record.endLsn);
    else if ((flags & truncateHeap) !== 0 && blocks < mainSize)
      context.sink.setRelationSize(
        relation.spcNode,
        relation.dbNode,
        relation.relNode,
        fork.main,
        blocks,
        record.endLsn,
      );
    if (vmSize !== relationMissing) truncateMap(context, relation, vmSize, blocks, record.endLsn);
    if (fsmSize !== relationMissing) truncateFreeSpaceMap(context, relation, fsmSize, blocks, record.endLsn);
  });
}

interface Relation {
  readonly spcNode: number;
  readonly dbNode: number;
  readonly relNode: number;
}

/** visibilitymap_prepare_truncate: bits of the blocks that are gone are cleared in the last page that stays. */
function truncateMap(
  {sink, patch}: InterpretContext,
  r: Relation,
  mapSize: number,
  heapBlocks: number,
  lsn: Lsn,
): void {
  const lastPage = Math.floor(heapBlocks / heapBlocksPerMapPage);
  let newSize = lastPage;
  if (heapBlocks % heapBlocksPerMapPage !== 0) {
    newSize = lastPage + 1;
    if (lastPage >= mapSize) return;
    const offset = mapBitsOffset(heapBlocks);
    patch.mask(offset, (1 << ((heapBlocks % 4) * 2)) - 1, 0);
    patch.fill(offset + 1, blockSize - (offset + 1), 0);
    sink.relationPagePatch(r.spcNode, r.dbNode, r.relNode, fork.vm, lastPage, lsn, patch.take());
  }
  if (newSize < mapSize) sink.setRelationSize(r.spcNode, r.dbNode, r.relNode, fork.vm, newSize, lsn);
}

/** FreeSpaceMapPrepareTruncateRel. Upper pages are left as they are: they are hints, and searches correct them. */
function truncateFreeSpaceMap(
  {sink, patch}: InterpretContext,
  r: Relation,
  fsmSize: number,
  heapBlocks: number,
  lsn: Lsn,
): void {
  const page = fsmLeafPage(Math.floor(heapBlocks / fsmSlotsPerPage));
  const slot = heapBlocks % fsmSlotsPerPage;
  let newSize = page;
  if (slot > 0) {
    newSize = page + 1;
    if (page >= fsmSize) return;
    patch.fsmTruncate(slot);
    sink.relationPagePatch(r.spcNode, r.dbNode, r.relNode, fork.fsm, page, lsn, patch.take());
  }
  if (newSize < fsmSize) sink.setRelationSize(r.spcNode, r.dbNode, r.relNode, fork.fsm, newSize, lsn);
}

/** fsm_logical_to_physical for a page of the bottom level; the tree has three. */
function fsmLeafPage(leaf: number): number {
  const middle = Math.floor(leaf / fsmSlotsPerPage);
  const root = Math.floor(middle / fsmSlotsPerPage);
  return leaf + 1 + (middle + 1) + (root + 1) - 1;
}
