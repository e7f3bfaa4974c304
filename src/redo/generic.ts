/**
 * Redo of generic records (resource manager 20), which extensions such as bloom write: access/transam/generic_xlog.c.
 * A block's data is a list of deltas: offset u16, length u16, bytes.
 */
import {copyBytes, pageGetLower, pageGetUpper, pageSize} from './bufpage.ts';
import {u16} from './bytes.ts';
import {RedoError, type RedoFunction} from './redo.ts';

/** Redo of one block of a generic record. */
export const redoGeneric: RedoFunction = (page, record, block, restored) => {
  if ((record.info & 0xf0) !== 0) throw new RedoError(`unknown generic record type ${record.info & 0xf0}`);
  if (restored) return false;
  const bytes = record.bytes;
  const end = block.dataOffset + block.dataLength;
  let at = block.dataOffset;
  while (at < end) {
    if (end - at < 4) throw new RedoError(`generic delta is cut off after ${end - at} bytes`);
    const offset = u16(bytes, at);
    const length = u16(bytes, at + 2);
    at += 4;
    if (length > end - at || offset + length > pageSize)
      throw new RedoError(`generic delta of ${length} bytes at ${offset}: ${end - at} bytes are left`);
    copyBytes(page, offset, bytes, at, length);
    at += length;
  }
  // the deltas leave out the hole, and the writer zeroed it
  const lower = pageGetLower(page);
  const upper = pageGetUpper(page);
  if (lower > upper || upper > pageSize)
    throw new RedoError(`generic record leaves a page with lower = ${lower}, upper = ${upper}`);
  page.fill(0, lower, upper);
  return true;
};
