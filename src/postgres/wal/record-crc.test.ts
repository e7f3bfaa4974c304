import assert from 'node:assert/strict';
import {test} from 'node:test';
import {endOfCheckedRun, recordCrc} from '#postgres/wal/record-crc.ts';
import {SeededRandom} from '#runtime/random.ts';

const random = new SeededRandom(4);
/** One of from … to. */
const integer = (from: number, to: number): number => from + Math.floor(random.float() * (to - from + 1));

/** Records with padding between them, from `start` on: where each begins, and where the last one ends. */
function records(count: number, start: number): {bytes: Buffer; begins: number[]; end: number} {
  const lengths = Array.from({length: count}, () => 24 + integer(0, integer(0, 9) === 0 ? 8000 : 600));
  const bytes = random.bytes(start + lengths.reduce((sum, length) => sum + length + 8, 0) + 16);
  const begins: number[] = [];
  let at = start;
  let end = start;
  for (const length of lengths) {
    begins.push(at);
    bytes.writeUInt32LE(length, at);
    bytes.writeUInt32LE(recordCrc(bytes, at, at + length), at + 20);
    end = at + length;
    at = end + (-length & 7);
  }
  bytes.fill(0, at, at + 4); // no record follows
  return {bytes, begins, end};
}

test('a run of records is checked as each of them is', () => {
  for (let round = 0; round < 300; round++) {
    const {bytes, begins, end} = records(integer(1, 20), 8 * integer(0, 4));
    assert.equal(endOfCheckedRun(bytes, begins[0]!, bytes.length), end);
    // A record that is not whole is not looked at.
    const last = begins.at(-1)!;
    const cut = endOfCheckedRun(bytes, begins[0]!, end - 1);
    assert.ok(cut <= last && (begins.length === 1 || last - cut < 8), `${cut} of ${last}`);
  }
});

test('one wrong bit anywhere in a run is found', () => {
  for (let round = 0; round < 300; round++) {
    const {bytes, begins, end} = records(integer(1, 12), 0);
    const bit = integer(0, end * 8 - 1);
    const at = bit >>> 3;
    const begin = begins.findLast((b) => b <= at)!;
    const length = bytes.readUInt32LE(begin);
    bytes[at]! ^= 1 << (bit & 7);
    const checked = endOfCheckedRun(bytes, 0, bytes.length);
    // Padding belongs to no record. A wrong length may end the run before its record: what is before is right.
    if (at >= begin + length) assert.equal(checked, end);
    else assert.ok(checked <= begin, `bit ${bit} of the record at ${begin}: right up to ${checked}`);
  }
});
