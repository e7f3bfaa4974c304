/** Redo of XLOG records that carry blocks: FPI and FPI_FOR_HINT (access/transam/xlog.c xlog_redo). */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {RedoError} from './redo.ts';

const xlogFpiForHint = 0xa0;
const xlogFpi = 0xb0;

/** The image is the whole effect. FPI_FOR_HINT comes without one when the writer has full_page_writes off. */
export function redoXlog(_page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  const op = record.info & 0xf0;
  if (op !== xlogFpi && op !== xlogFpiForHint) throw new RedoError('XLOG record of this type has no blocks');
  if (!restored && (op === xlogFpi || block.hasImage))
    throw new RedoError('full-page image record without an image to apply');
  return false;
}
