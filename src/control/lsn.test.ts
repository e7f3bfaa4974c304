import {strict as assert} from 'node:assert';
import {test} from 'node:test';
import {alignDown, formatLsn, type Lsn, parseLsn} from './lsn.ts';

test('LSNs are read and written as PostgreSQL does', () => {
  assert.equal(formatLsn(parseLsn('16/B374D848')!), '16/B374D848');
  assert.equal(parseLsn('16/B374D8481'), undefined);
  assert.equal(parseLsn('x'), undefined);
});

test('a branch begins where a record may begin', () => {
  const align = (lsn: number): number => alignDown(lsn as Lsn);
  assert.equal(align(0x1000_1005), 0x1000_1000);
  assert.equal(align(0x1002_0007), 0x1002_0000, 'in a page header: the page itself');
  assert.equal(align(0x1002_0018), 0x1002_0018, 'right behind it');
  assert.equal(align(0x1000_0020), 0x1000_0000, 'the first page of a segment has the longer header');
  assert.equal(align(0x1000_0028), 0x1000_0028);
});
