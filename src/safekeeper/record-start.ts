/** Where records start in WAL that begins at the start of a segment, in the middle of a record perhaps. */
import {type Lsn, readLsn64} from '#postgres/lsn.ts';
import {pageFirstIsContrecord, shortPageHeaderSize, walPageHeaderSize, walPageSize} from '#postgres/wal/segment.ts';

/**
 * Where the first record starts in WAL that begins at `lsn`, the start of a segment: behind what its first page says is left
 * of the record before (XLogPageHeaderData.xlp_rem_len, access/xlog_internal.h). Undefined: not in these bytes. With `length`,
 * `bytes` need be no more than the page's header.
 */
export function firstRecordStart(bytes: Buffer, lsn: Lsn, length = bytes.length): Lsn | undefined {
  if (bytes.length < shortPageHeaderSize || length < walPageHeaderSize(lsn)) return undefined;
  if ((bytes.readUInt16LE(2) & pageFirstIsContrecord) === 0) return lsn;
  let left = bytes.readUInt32LE(16);
  let at = walPageHeaderSize(lsn);
  for (;;) {
    const inPage = walPageSize - (at % walPageSize);
    if (left <= inPage) break;
    left -= inPage;
    at += inPage + shortPageHeaderSize;
  }
  at += left;
  at += -at & 7;
  return at < length ? ((lsn + at) as Lsn) : undefined;
}

/** Where XLogRecord.xl_prev of the record at `lsn` lies (access/xlogrecord.h): its header may go on on the next page. */
export function prevFieldLsn(lsn: Lsn): Lsn {
  const start = lsn % walPageSize === 0 ? lsn + walPageHeaderSize(lsn) : lsn;
  const inPage = walPageSize - (start % walPageSize);
  if (inPage > 8) return (start + 8) as Lsn;
  const page = (start + inPage) as Lsn;
  return (page + walPageHeaderSize(page) + 8 - inPage) as Lsn;
}

export function readPrevField(bytes: Buffer): Lsn {
  return readLsn64(bytes, 0);
}
