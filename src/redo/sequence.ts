/** Redo of sequences (commands/sequence.c seq_redo): the page is made anew from the tuple in the record. */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {pageAddItemFrom, pageGetSpecial, pageInit} from './bufpage.ts';
import {mainData, setU32} from './bytes.ts';
import {RedoError} from './redo.ts';

const sequenceMagic = 0x1717;
/** xl_seq_rec: the RelFileNode before the tuple. */
const headerLength = 12;

export function redoSequence(page: Buffer, record: WalRecord, block: BlockRef, restored: boolean): boolean {
  if (restored) return false;
  if ((record.info & 0xf0) !== 0 || block.id !== 0) throw new RedoError('unknown Sequence record');
  const at = mainData(record, headerLength + 1);
  pageInit(page, 8);
  setU32(page, pageGetSpecial(page), sequenceMagic);
  pageAddItemFrom(page, record.bytes, at + headerLength, record.mainDataLength - headerLength, 1);
  return true;
}
