import * as zlib from 'node:zlib';
import lz4 from 'lz4-napi';

/** zstd at level 1: what storage blocks use (measured in docs/formats/layer.md). */
export function zstdCompress(buffer: Buffer, level = 1): Buffer {
  return zlib.zstdCompressSync(buffer, {params: {[zlib.constants.ZSTD_c_compressionLevel]: level}});
}

/** Throws when the frame is damaged or its content is longer than `bytesMax`. */
export function zstdDecompress(buffer: Buffer, bytesMax: number): Buffer {
  // One piece of output: Node's default of 16 KiB pieces, put together, doubles the time for a block of 32 KiB.
  return zlib.zstdDecompressSync(buffer, {
    maxOutputLength: bytesMax,
    chunkSize: Math.max(64, Math.min(bytesMax, 1 << 20)),
  });
}

/** LZ4 block with its raw length (u32 LE) in front. */
export function lz4Compress(buffer: Buffer): Buffer {
  return lz4.compressSync(buffer);
}

/** The opposite of lz4Compress. Throws when the block is damaged or is not of `length` raw bytes. */
export function lz4Decompress(buffer: Buffer, length: number): Buffer {
  if (buffer.length < 4 || buffer.readUInt32LE(0) !== length)
    throw new Error(`an lz4 block of other than ${length} bytes`);
  const out = lz4.uncompressSync(buffer);
  if (out.length !== length) throw new Error(`lz4 block gives ${out.length} bytes, expected ${length}`);
  return out;
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
