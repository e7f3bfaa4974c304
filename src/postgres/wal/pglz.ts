/**
 * pglz, PostgreSQL's own LZ (common/pg_lzcompress.c). A control byte announces eight items, lowest bit first: 0 a literal
 * byte, 1 a match of two bytes (length - 3 in the low nibble of the first, the distance in the other twelve bits), with a
 * third byte of further length when the nibble is 15.
 */

/** Decompresses the whole of `source` into exactly `out.length` bytes. False when the data is damaged; `out` is then undefined. */
export function pglzDecompress(source: Buffer, out: Buffer): boolean {
  const sourceEnd = source.length;
  const outEnd = out.length;
  let from = 0;
  let to = 0;
  while (from < sourceEnd && to < outEnd) {
    let control = source[from++]!;
    for (let item = 0; item < 8 && from < sourceEnd && to < outEnd; item++, control >>= 1) {
      if ((control & 1) === 0) {
        out[to++] = source[from++]!;
        continue;
      }
      if (from + 2 > sourceEnd) return false;
      const tag = source[from]!;
      const distance = ((tag & 0xf0) << 4) | source[from + 1]!;
      let length = (tag & 0x0f) + 3;
      from += 2;
      if (length === 18) {
        if (from >= sourceEnd) return false;
        length += source[from++]!;
      }
      if (distance === 0 || distance > to) return false;
      const end = to + length < outEnd ? to + length : outEnd;
      // Byte by byte: a match may overlap what it produces, and is short.
      for (; to < end; to++) out[to] = out[to - distance]!;
    }
  }
  return from === sourceEnd && to === outEnd;
}
