/** WAL for tests: what PostgreSQL would write, made of records that do nothing. */
import type {Lsn} from '#postgres/lsn.ts';
import {pageFirstIsContrecord, walPageSize, walSegmentSizeDefault, writeWalPageHeader} from '#postgres/wal/segment.ts';
import {crc32c} from '#runtime/crc.ts';

/** WAL of XLOG NOOP records with these payload lengths, from `at` on, with page headers; and where each record ends. */
export function makeNoopWal(
  at: number,
  payloads: readonly number[],
): {bytes: Buffer; ends: number[]; rawEnds: number[]} {
  const parts: Buffer[] = [];
  const ends: number[] = [];
  const rawEnds: number[] = [];
  let lsn = at;
  let previous = at - 64;
  const put = (bytes: Buffer, remaining: (left: number) => number): void => {
    for (let done = 0; done < bytes.length;) {
      if (lsn % walPageSize === 0) {
        const header = Buffer.alloc(40);
        const left = remaining(bytes.length - done);
        const size = writeWalPageHeader(header, 0, {
          pageLsn: lsn as Lsn,
          timeline: 1,
          systemId: 7n,
          remainingLength: left,
          info: left > 0 ? pageFirstIsContrecord : 0,
        });
        parts.push(header.subarray(0, size));
        lsn += size;
      }
      const count = Math.min(bytes.length - done, walPageSize - (lsn % walPageSize));
      parts.push(bytes.subarray(done, done + count));
      lsn += count;
      done += count;
    }
  };
  payloads.forEach((length, i) => {
    const main = Buffer.alloc(length, i + 1);
    const record = Buffer.alloc(24 + 5 + length);
    record.writeUInt32LE(record.length, 0);
    record.writeUInt32LE(previous % 2 ** 32, 8);
    record.writeUInt32LE(Math.floor(previous / 2 ** 32), 12);
    record[16] = 0x20; // NOOP
    record[24] = 254;
    record.writeUInt32LE(length, 25);
    main.copy(record, 29);
    record.writeUInt32LE(crc32c(record.subarray(0, 20), crc32c(record.subarray(24))), 20);
    // A record that would start at a page boundary starts after the page's header.
    if (lsn % walPageSize === 0) put(Buffer.alloc(0), () => 0);
    const begins = lsn % walPageSize === 0 ? lsn + (lsn % walSegmentSizeDefault === 0 ? 40 : 24) : lsn;
    put(record, (left) => (left === record.length ? 0 : left));
    previous = begins;
    rawEnds.push(lsn);
    const padding = -lsn & 7;
    if (padding > 0) put(Buffer.alloc(padding), () => 0);
    ends.push(lsn);
  });
  return {bytes: Buffer.concat(parts), ends, rawEnds};
}
