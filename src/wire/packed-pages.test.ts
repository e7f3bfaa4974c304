import assert from 'node:assert/strict';
import {test} from 'node:test';
import fc from 'fast-check';
import {lz4Compress} from '#runtime/compress.ts';
import {blockSize} from '#postgres/relation.ts';
import {type PackedSegment, PackedPagesError, encodePackedPages, packedCodec, unpackPages} from './packed-pages.ts';

/** Segments with so many pages each, of values 1, 2, 3, …; their bytes lie in one piece of memory, so far apart. */
function segmentsOf(counts: readonly {pages: number; lz4: boolean; gap: number}[]): PackedSegment[] {
  const parts: Buffer[] = [];
  let page = 0;
  const made = counts.map(({pages, lz4, gap}) => {
    const raw = Buffer.alloc(pages * (blockSize + 8));
    for (let i = 0; i < pages; i++) raw.fill(++page, 8 + i * (blockSize + 8), (i + 1) * (blockSize + 8));
    const bytes = lz4 ? lz4Compress(raw).subarray(4) : raw;
    parts.push(Buffer.alloc(gap), bytes);
    return {pages, lz4, rawBytes: raw.length, length: bytes.length};
  });
  const memory = Buffer.concat(parts);
  let at = 0;
  return made.map(({pages, lz4, rawBytes, length}, i) => {
    at += counts[i]!.gap;
    const bytes = memory.subarray(at, at + length);
    at += length;
    const offsets = Array.from({length: pages}, (_, n) => 8 + n * (blockSize + 8));
    return {codec: lz4 ? packedCodec.lz4 : packedCodec.none, rawBytes, bytes, offsets};
  });
}

const anySegments = fc
  .array(fc.record({pages: fc.integer({min: 1, max: 4}), lz4: fc.boolean(), gap: fc.constantFrom(0, 20, 500)}), {
    minLength: 1,
    maxLength: 16,
  })
  .map((counts) => ({segments: segmentsOf(counts), pages: counts.reduce((sum, c) => sum + c.pages, 0)}));

test('packed pages come out as they were, in their order', () => {
  fc.assert(
    fc.property(anySegments, ({segments, pages}) => {
      const out = unpackPages(Buffer.concat(encodePackedPages(segments)), pages);
      assert.equal(out.length, pages * blockSize);
      for (let i = 0; i < pages; i++)
        assert.ok(out.subarray(i * blockSize, (i + 1) * blockSize).every((byte) => byte === i + 1));
    }),
    {numRuns: 30},
  );
});

test('bytes that lie together are one piece', () => {
  const near = segmentsOf([20, 20, 20].map((gap) => ({pages: 3, lz4: true, gap})));
  assert.equal(encodePackedPages(near).length, 2);
  assert.equal(encodePackedPages(segmentsOf([20, 500].map((gap) => ({pages: 3, lz4: true, gap})))).length, 3);
});

test('damaged ones are an error, never a page of other bytes than theirs', () => {
  const good = Buffer.concat(encodePackedPages(segmentsOf([0, 0].map((gap) => ({pages: 2, lz4: true, gap})))));
  const refused = (change: (b: Buffer) => void, pages = 4): void => {
    const b = Buffer.from(good);
    change(b);
    assert.throws(() => unpackPages(b, pages), Error);
  };
  refused((b) => b.writeUInt32LE(0xffffffff, 0));
  refused((b) => (b[5] = 3));
  refused((b) => (b[4] = 9));
  refused((b) => b.writeUInt32LE(1 << 30, 8));
  refused((b) => b.writeUInt32LE(0xffffffff, 12));
  refused((b) => b.writeUInt32LE(0xffffffff, 16));
  refused((b) => b.writeUInt32LE(0xffffffff, 4 + 32));
  refused(() => {}, 5);
  assert.throws(() => unpackPages(Buffer.alloc(3), 1), PackedPagesError);
  fc.assert(
    fc.property(fc.nat(good.length - 1), fc.integer({min: 1, max: 255}), (at, change) => {
      const b = Buffer.from(good);
      b[at]! ^= change;
      try {
        assert.equal(unpackPages(b, 4).length, 4 * blockSize);
      } catch (error) {
        assert.ok(error instanceof Error && !(error instanceof RangeError), String(error));
      }
    }),
    {numRuns: 300},
  );
});
