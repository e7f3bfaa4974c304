import assert from 'node:assert/strict';
import {test} from 'node:test';
import type {Lsn} from '#postgres/lsn.ts';
import {FailingObjectStore} from './failing-object-store.ts';
import {MemoryObjectStore} from './memory-object-store.ts';
import {WalArchive, WalArchiveError, walFooterBytes} from './wal-archive.ts';

const segmentSize = 1024;
const ids = {tenantId: '1'.repeat(32), timelineId: '2'.repeat(32)};

test('WAL is trimmed by whole segments: the mark first, what an interrupted trim has left with the next', async () => {
  const store = new MemoryObjectStore();
  const failing = new FailingObjectStore(store);
  const archive = new WalArchive({store: failing, ...ids, segmentSize});
  const piece = (segment: number): Parameters<WalArchive['put']>[0] => ({
    segment,
    startLsn: (segment * segmentSize) as Lsn,
    endLsn: ((segment + 1) * segmentSize) as Lsn,
    partialTerm: undefined,
  });
  for (let segment = 2; segment < 9; segment++)
    await archive.put(piece(segment), Buffer.alloc(segmentSize + walFooterBytes, segment));
  const segments = async (): Promise<number[]> => (await archive.list()).map((p) => p.segment);
  const at = (segment: number): Lsn => (segment * segmentSize) as Lsn;
  assert.equal(await archive.trim(at(2)), 0);
  assert.equal(await archive.trimmedLsn(), 0, 'nothing was there to trim');
  assert.equal(await archive.trim(at(4)), 2);
  assert.deepEqual(await segments(), [4, 5, 6, 7, 8]);
  // Whoever looks for what was trimmed need not put it again; what is missing otherwise is missing.
  assert.equal(await archive.verify(piece(3)), true);
  store.objects.delete(archive.key(piece(8)));
  assert.equal(await archive.verify(piece(8)), false);
  // It dies between the mark and the deletion; another one that knows less comes first.
  failing.decide = (operation) => (operation === 'delete' ? 'before' : undefined);
  await assert.rejects(archive.trim(at(6)));
  failing.decide = () => undefined;
  assert.equal(await archive.trimmedLsn(), at(6));
  assert.equal(await archive.trim(at(5)), 2);
  assert.deepEqual(await segments(), [6, 7]);
  assert.equal(await archive.trimmedLsn(), at(6), 'it never falls');
  assert.equal([...store.objects.keys()].filter((key) => key.includes('trimmed')).length, 1);
  // The mark is as well guarded as the rest.
  const mark = [...store.objects.keys()].find((key) => key.includes('trimmed'))!;
  const whole = store.objects.get(mark)!;
  for (let i = 0; i < whole.length; i++) {
    const rotten = Buffer.from(whole);
    rotten[i]! ^= 4;
    store.objects.set(mark, rotten);
    await assert.rejects(archive.trimmedLsn(), WalArchiveError);
  }
  store.objects.set(mark, whole);
  await archive.deleteAll();
  assert.equal(store.objects.size, 0);
});
