/** Full-page images in WAL records (RestoreBlockImage in access/transam/xlogreader.c). */
import {lz4DecompressBlock, zstdDecompress} from '#runtime/compress.ts';
import {type Lsn, formatLsn, writePageLsn} from '#postgres/lsn.ts';
import {blockSize} from '#postgres/relation.ts';
import {pglzDecompress} from '#postgres/wal/pglz.ts';
import {
  type BlockRef,
  WalDecodeError,
  type WalRecord,
  bkpImageCompressLz4,
  bkpImageCompressPglz,
  bkpImageCompressZstd,
} from '#postgres/wal/record.ts';

const scratch = Buffer.alloc(blockSize);

/**
 * Writes the block's image into `page` (8192 bytes), the hole as zeros. The page LSN is the one in the image: the caller
 * sets it (setRestoredPageLsn). Throws WalDecodeError when there is no image or it cannot be decompressed.
 */
export function restoreImage(record: WalRecord, block: BlockRef, page: Buffer): void {
  if (!block.hasImage) throw imageError(record, block, 'has no image');
  let bytes = record.bytes;
  let at = block.imageOffset;
  const contentLength = blockSize - block.holeLength;
  const compressed = block.imageInfo & (bkpImageCompressPglz | bkpImageCompressLz4 | bkpImageCompressZstd);
  if (compressed !== 0) {
    bytes = decompress(record, block, bytes.subarray(at, at + block.imageLength), contentLength);
    at = 0;
  }
  const holeEnd = block.holeOffset + block.holeLength;
  bytes.copy(page, 0, at, at + block.holeOffset);
  if (block.holeLength > 0) page.fill(0, block.holeOffset, holeEnd);
  bytes.copy(page, holeEnd, at + block.holeOffset, at + contentLength);
}

/** After a restore the page gets the record's end as LSN, except an all-new page (pd_upper = 0), which stays as it is. */
export function setRestoredPageLsn(page: Buffer, endLsn: Lsn): void {
  if (page[14] !== 0 || page[15] !== 0) writePageLsn(page, endLsn);
}

/** A view of exactly `length` bytes, valid until the next call. */
function decompress(record: WalRecord, block: BlockRef, source: Buffer, length: number): Buffer {
  if ((block.imageInfo & bkpImageCompressPglz) !== 0) {
    const out = scratch.subarray(0, length);
    if (!pglzDecompress(source, out)) throw imageError(record, block, 'cannot be decompressed (pglz)');
    return out;
  }
  const method = (block.imageInfo & bkpImageCompressLz4) !== 0 ? 'lz4' : 'zstd';
  let out: Buffer;
  try {
    out = method === 'lz4' ? lz4DecompressBlock(source, length) : zstdDecompress(source, length);
  } catch (error) {
    throw imageError(
      record,
      block,
      `cannot be decompressed (${method}: ${error instanceof Error ? error.message : String(error)})`,
    );
  }
  if (out.length !== length) throw imageError(record, block, `decompresses to ${out.length} bytes, expected ${length}`);
  return out;
}

function imageError(record: WalRecord, block: BlockRef, problem: string): WalDecodeError {
  return new WalDecodeError(`WAL record at ${formatLsn(record.startLsn)}: the image of block ${block.id} ${problem}`);
}
