/**
 * Redo of one block of one WAL record: image restore, initialisation, LSN rules, and the dispatch to the resource manager's
 * function. PostgreSQL's XLogReadBufferForRedoExtended (access/transam/xlogutils.c) for a page that stands alone.
 */
import {formatLsn, readPageLsn, writePageLsn} from '#postgres/lsn.ts';
import {restoreImage} from '#postgres/wal/image.ts';
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {rmgr, rmgrNames} from '#postgres/wal/rmgr.ts';
import {pageIsNew, pageSize, startFromZeros} from './bufpage.ts';
import {redoBrin} from './brin.ts';
import {redoBtree} from './btree.ts';
import {redoGeneric} from './generic.ts';
import {redoGin} from './gin.ts';
import {redoGist} from './gist.ts';
import {redoHash} from './hash.ts';
import {redoHeap} from './heap.ts';
import {redoHeap2} from './heap2.ts';
import {RedoError, type RedoEnvironment, type RedoFunction} from './redo.ts';
import {redoSequence} from './sequence.ts';
import {redoSpGist} from './spgist.ts';
import {redoXlog} from './xlog.ts';

const functions: (RedoFunction | undefined)[] = [];
functions[rmgr.xlog] = redoXlog;
functions[rmgr.heap2] = redoHeap2;
functions[rmgr.heap] = redoHeap;
functions[rmgr.btree] = redoBtree;
functions[rmgr.hash] = redoHash;
functions[rmgr.gin] = redoGin;
functions[rmgr.gist] = redoGist;
functions[rmgr.sequence] = redoSequence;
functions[rmgr.spGist] = redoSpGist;
functions[rmgr.brin] = redoBrin;
functions[rmgr.generic] = redoGeneric;

/**
 * Applies what `record` does to its block `blockId` to `page` (8192 bytes), in place. `page` is the block as it was before
 * the record; its content does not matter when the block has an applied image or WILL_INIT. A record that the page already has (page LSN ≥
 * record.endLsn) changes nothing. Throws RedoError, and nothing else, naming resource manager, LSN and block; the page is
 * then undefined and must be thrown away.
 */
export function applyRecord(page: Buffer, record: WalRecord, blockId: number, environment: RedoEnvironment): void {
  try {
    if (page.length !== pageSize) throw new RedoError(`page of ${page.length} bytes`);
    const block = record.block(blockId);
    if (block === undefined) throw new RedoError('the record has no such block');
    const redo = functions[record.rmid];
    if (redo === undefined) throw new RedoError('unknown resource manager: it has no redo function for pages');
    let restored = false;
    if (block.applyImage) {
      restoreImage(record, block, page);
      restored = true;
      // an image of an all-new page stays as it is
      if (!pageIsNew(page)) writePageLsn(page, record.endLsn);
    } else if (block.willInit) {
      startFromZeros(page);
    } else {
      if (record.endLsn <= readPageLsn(page)) return;
      if (pageIsNew(page) && !startsFromZeros(record, block))
        throw new RedoError('the base page was never initialised');
    }
    if (redo(page, record, block, restored, environment)) writePageLsn(page, record.endLsn);
  } catch (error) {
    throw explain(error, record, blockId);
  } finally {
    startFromZeros(undefined);
  }
}

/** The opcode of a record as redo functions see it: xl_info without the two bits of the WAL layer. */
function opcode(record: WalRecord): number {
  return record.info & 0xf0;
}

/**
 * Blocks that may never have been in WAL: visibility map pages (made by extending the file, not logged), and pages whose
 * hint bits are logged without an image.
 */
function startsFromZeros(record: WalRecord, block: BlockRef): boolean {
  return (record.rmid === rmgr.heap2 && block.fork === 2) || record.rmid === rmgr.xlog;
}

function explain(error: unknown, record: WalRecord, blockId: number): RedoError {
  const reason = error instanceof Error ? error.message : String(error);
  const block = record.block(blockId);
  const where =
    block === undefined
      ? ''
      : ` (relation ${block.spcNode}/${block.dbNode}/${block.relNode} fork ${block.fork} block ${block.blockNumber})`;
  const name = rmgrNames[record.rmid] ?? `resource manager ${record.rmid}`;
  return new RedoError(
    `redo of ${name} 0x${opcode(record).toString(16)} at ${formatLsn(record.startLsn)}, block ${blockId}${where}: ${reason}`,
    {cause: error},
  );
}
