/** WAL segment files and WAL page headers (access/xlog_internal.h). Sizes and magic of PostgreSQL 15. */
import {type Lsn, lsn, writeLsn64} from '#postgres/lsn.ts';

export const walPageSize = 8192;
export const walSegmentSizeDefault = 16 * 1024 * 1024;
/** XLOG_PAGE_MAGIC of PostgreSQL 15. */
export const walPageMagic = 0xd110;
/** SizeOfXLogShortPHD, SizeOfXLogLongPHD. */
export const shortPageHeaderSize = 24;
export const longPageHeaderSize = 40;

export const pageFirstIsContrecord = 0x0001;
export const pageLongHeader = 0x0002;
export const pageFirstIsOverwriteContrecord = 0x0008;
/** Those, and BKP_REMOVABLE (4), which nobody needs. */
export const pageFlagsAll = 0x000f;

/** Number of the segment that holds this position. */
export function segmentNumber(position: Lsn, segmentSize = walSegmentSizeDefault): number {
  return Math.floor(position / segmentSize);
}

export function segmentStart(position: Lsn, segmentSize = walSegmentSizeDefault): Lsn {
  return lsn(position - (position % segmentSize));
}

/** The file name under pg_wal: timeline, then the segment number in two parts, 8 upper-hex digits each. */
export function segmentFileName(timeline: number, segment: number, segmentSize = walSegmentSizeDefault): string {
  const perId = 0x100000000 / segmentSize;
  return hex8(timeline) + hex8(Math.floor(segment / perId)) + hex8(segment % perId);
}

/** Reads a segment file name, or undefined when it is none. */
export function parseSegmentFileName(
  name: string,
  segmentSize = walSegmentSizeDefault,
): {readonly timeline: number; readonly segment: number} | undefined {
  if (!/^[0-9A-F]{24}$/.test(name)) return undefined;
  const perId = 0x100000000 / segmentSize;
  const low = parseInt(name.slice(16), 16);
  if (low >= perId) return undefined;
  return {timeline: parseInt(name.slice(0, 8), 16), segment: parseInt(name.slice(8, 16), 16) * perId + low};
}

export interface WalPageHeader {
  /** Where the page starts. */
  readonly pageLsn: Lsn;
  readonly timeline: number;
  /** Flags other than LONG_HEADER. */
  readonly info?: number;
  /** Bytes of a record begun on an earlier page, from this page on. */
  readonly remainingLength?: number;
  readonly systemId: bigint;
  readonly segmentSize?: number;
}

/** Writes the short or (at the start of a segment) long header at `offset`; answers its size. */
export function writeWalPageHeader(buffer: Buffer, offset: number, header: WalPageHeader): number {
  const segmentSize = header.segmentSize ?? walSegmentSizeDefault;
  const long = header.pageLsn % segmentSize === 0;
  buffer.writeUInt16LE(walPageMagic, offset);
  buffer.writeUInt16LE((header.info ?? 0) | (long ? pageLongHeader : 0), offset + 2);
  buffer.writeUInt32LE(header.timeline, offset + 4);
  writeLsn64(buffer, offset + 8, header.pageLsn);
  buffer.writeUInt32LE(header.remainingLength ?? 0, offset + 16);
  buffer.writeUInt32LE(0, offset + 20);
  if (!long) return shortPageHeaderSize;
  buffer.writeBigUInt64LE(header.systemId, offset + 24);
  buffer.writeUInt32LE(segmentSize, offset + 32);
  buffer.writeUInt32LE(walPageSize, offset + 36);
  return longPageHeaderSize;
}

/** Size of the header of the page that starts at this position. */
export function walPageHeaderSize(pageLsn: Lsn, segmentSize = walSegmentSizeDefault): number {
  return pageLsn % segmentSize === 0 ? longPageHeaderSize : shortPageHeaderSize;
}

function hex8(value: number): string {
  return value.toString(16).toUpperCase().padStart(8, '0');
}
