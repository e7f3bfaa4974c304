import * as zlib from 'node:zlib';
import lz4 from 'lz4-napi';

/** zstd at level 1: what storage blocks use (measured in docs/formats/layer.md). */
export function zstdCompress(buffer: Buffer, level = 1): Buffer {
  return zlib.zstdCompressSync(buffer, {params: {[zlib.constants.ZSTD_c_compressionLevel]: level}});
}

/** Throws when the frame is damaged or its content is longer than `bytesMax`. */
export function zstdDecompress(buffer: Buffer, bytesMax: number): Buffer {
  return zlib.zstdDecompressSync(buffer, {maxOutputLength: bytesMax});
}

/** A raw LZ4 block (no frame) of known length, as wal_compression=lz4 writes it. Throws when it is damaged. */
export function lz4DecompressBlock(buffer: Buffer, outLength: number): Buffer {
  // lz4-napi wants the length in front of the block, as lz4's "size prepended" form.
  const withSize = Buffer.allocUnsafe(buffer.length + 4);
  withSize.writeUInt32LE(outLength, 0);
  buffer.copy(withSize, 4);
  const out = lz4.uncompressSync(withSize);
  if (out.length !== outLength) throw new Error(`lz4 block gives ${out.length} bytes, expected ${outLength}`);
  return out;
}
