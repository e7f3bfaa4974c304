import assert from 'node:assert/strict';
import {test} from 'node:test';
import {lsn} from '#postgres/lsn.ts';
import {alignStartLsn} from '#postgres/wal/checkpoint-segment.ts';

test('a start position is moved up to a multiple of 8 and out of page headers', () => {
  const cases: [number, number][] = [
    [0x1000000, 0x1000000],
    [0x1000001, 0x1000028],
    [0x1000028, 0x1000028],
    [0x1002001, 0x1002018],
    [0x1002018, 0x1002018],
    [0x1002019, 0x1002020],
    [0x1001ff9, 0x1002000],
  ];
  for (const [from, to] of cases) assert.equal(alignStartLsn(lsn(from)), to);
});
