/**
 * Pages as storage keeps them: several in one compressed block, which whoever needs the pages unpacks. A third of the bytes
 * go over each socket, and the page server does not touch what it sends. Both ends are here; the extension's is unpack_pages()
 * of extension/agent.c.
 *
 *   u16 segments | u16 0 |
 *   segments × {u8 codec, u8 pages, u16 0, u32 rawBytes, u32 dataOffset, u32 dataBytes} |
 *   for each page, in order: u32 where it begins in the raw bytes of its segment |
 *   data
 *
 * Little-endian. A segment's bytes are data[dataOffset … dataOffset + dataBytes); codec 0: raw as they are, 1: an LZ4 block (at
 * most 64 KiB raw). Segments come in order of their pages; between their bytes there may be others. All together is at most 4 KiB longer than
 * the pages themselves.
 */
import {lz4DecompressBlock} from '#runtime/compress.ts';
import {blockSize} from '#postgres/relation.ts';

export const packedCodec = {none: 0, lz4: 1} as const;

const headerBytes = 4;
const segmentBytes = 16;
/** Raw bytes of an LZ4 segment. */
export const packedRawBytesMax = 64 * 1024;
/** Bytes between two segments that are sent along rather than paid for with another piece. */
const gapBytesMax = 32;

export interface PackedSegment {
  readonly codec: number;
  readonly rawBytes: number;
  readonly bytes: Buffer;
  /** Where each page begins in the raw bytes. */
  readonly offsets: readonly number[];
}

export class PackedPagesError extends Error {}

/** The pieces of the payload, to be sent one after the other: those after the first are views of the segments' bytes. */
export function encodePackedPages(segments: readonly PackedSegment[]): Buffer[] {
  let pages = 0;
  for (const {offsets} of segments) pages += offsets.length;
  const table = Buffer.allocUnsafe(headerBytes + segments.length * segmentBytes + pages * 4);
  const pieces = [table];
  table.writeUInt32LE(segments.length, 0);
  let at = headerBytes;
  let offsetAt = headerBytes + segments.length * segmentBytes;
  let dataBytes = 0;
  let memory: ArrayBufferLike | undefined;
  let start = 0;
  let end = 0;
  for (const {codec, rawBytes, bytes, offsets} of segments) {
    const gap = bytes.byteOffset - end;
    if (bytes.buffer === memory && gap >= 0 && gap <= gapBytesMax) dataBytes += gap;
    else {
      if (memory !== undefined) pieces.push(Buffer.from(memory as ArrayBuffer, start, end - start));
      memory = bytes.buffer;
      start = bytes.byteOffset;
    }
    end = bytes.byteOffset + bytes.length;
    table.writeUInt32LE(codec | (offsets.length << 8), at);
    table.writeUInt32LE(rawBytes, at + 4);
    table.writeUInt32LE(dataBytes, at + 8);
    table.writeUInt32LE(bytes.length, at + 12);
    at += segmentBytes;
    dataBytes += bytes.length;
    for (const offset of offsets) offsetAt = table.writeUInt32LE(offset, offsetAt);
  }
  if (memory !== undefined) pieces.push(Buffer.from(memory as ArrayBuffer, start, end - start));
  return pieces;
}

/** The `pages` pages of a payload, one after the other. Throws PackedPagesError. */
export function unpackPages(payload: Buffer, pages: number): Buffer {
  const segments = payload.length < headerBytes ? 0 : payload.readUInt32LE(0);
  const offsetsAt = headerBytes + segments * segmentBytes;
  const dataAt = offsetsAt + pages * 4;
  if (segments > pages || dataAt > payload.length)
    throw new PackedPagesError(`packed pages: ${payload.length} bytes of ${segments} segments for ${pages} pages`);
  const out = Buffer.allocUnsafe(pages * blockSize);
  let page = 0;
  for (let s = 0; s < segments; s++) {
    const at = headerBytes + s * segmentBytes;
    const codec = payload[at]!;
    const count = payload[at + 1]!;
    const rawBytes = payload.readUInt32LE(at + 4);
    const from = dataAt + payload.readUInt32LE(at + 8);
    const length = payload.readUInt32LE(at + 12);
    const known =
      codec === packedCodec.none ? rawBytes === length : codec === packedCodec.lz4 && rawBytes <= packedRawBytesMax;
    if (!known || page + count > pages || from + length > payload.length)
      throw new PackedPagesError(`packed pages: segment ${s} is damaged`);
    const bytes = payload.subarray(from, from + length);
    const raw = codec === packedCodec.none ? bytes : lz4DecompressBlock(bytes, rawBytes);
    for (let i = 0; i < count; i++, page++) {
      const offset = payload.readUInt32LE(offsetsAt + page * 4);
      if (offset + blockSize > raw.length) throw new PackedPagesError(`packed pages: page ${page} leaves its segment`);
      raw.copy(out, page * blockSize, offset, offset + blockSize);
    }
  }
  if (page !== pages) throw new PackedPagesError(`packed pages: ${page} pages, ${pages} were announced`);
  return out;
}
