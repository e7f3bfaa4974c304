import assert from 'node:assert/strict';
import {test} from 'node:test';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {WalArchive, type WalPiece, walFooterBytes} from '#objectstore/wal-archive.ts';
import type {Lsn} from '#postgres/lsn.ts';
import {scrubWal} from './scrub-wal.ts';

const segmentSize = 1024;
const tenantId = '1'.repeat(32);
const [living, gone] = ['2'.repeat(32), '3'.repeat(32)];

const piece = (segment: number): WalPiece => ({
  segment,
  startLsn: (segment * segmentSize) as Lsn,
  endLsn: ((segment + 1) * segmentSize) as Lsn,
  partialTerm: undefined,
});

async function fill(store: MemoryObjectStore): Promise<WalArchive> {
  for (const timelineId of [living, gone]) {
    const archive = new WalArchive({store, tenantId, timelineId, segmentSize});
    const startLsn = piece(2).startLsn;
    await archive.putManifest({
      tenantId,
      timelineId,
      systemId: '7',
      pgVersion: 15,
      startLsn,
      history: [{term: 1, lsn: startLsn}],
    });
    for (let segment = 2; segment < 7; segment++)
      await archive.put(piece(segment), Buffer.alloc(segmentSize + walFooterBytes, segment));
  }
  return new WalArchive({store, tenantId, timelineId: living, segmentSize});
}

test('damaged and missing WAL is found and put back from a copy; WAL of a branch that is gone is named', async () => {
  const [store, copy] = [new MemoryObjectStore(), new MemoryObjectStore()];
  const archive = await fill(store);
  await fill(copy);
  let branches = [living, gone];
  const scrub = async (from?: MemoryObjectStore): Promise<string[]> =>
    (
      await scrubWal({
        store,
        copy: from,
        segmentSize,
        timelines: async () => new Set(branches.map((timelineId) => `${tenantId}/${timelineId}`)),
      })
    ).flatMap(({findings}) =>
      findings.map(({kind, object, repaired}) => `${repaired ? 'repaired ' : ''}${kind} ${object}`),
    );
  assert.deepEqual(await scrub(), []);

  branches = [living];
  const orphan = `orphan wal/${tenantId}/${gone}/`;
  assert.deepEqual(await scrub(), [orphan]);

  const [rotten, lost, alsoLost] = [3, 4, 5].map((segment) => archive.key(piece(segment)));
  const bytes = Buffer.from(store.objects.get(rotten!)!);
  bytes[100]! ^= 8;
  store.objects.set(rotten!, bytes);
  assert.deepEqual(await scrub(), [`damaged ${rotten}`, orphan]);
  store.objects.delete(lost!);
  store.objects.delete(alsoLost!);
  assert.deepEqual(await scrub(), [`damaged ${rotten}`, `dangling ${archive.prefix}`, orphan]);
  // A copy that has rotted too is of no use.
  const whole = copy.objects.get(alsoLost!)!;
  copy.objects.set(alsoLost!, bytes);
  assert.deepEqual(await scrub(copy), [
    `repaired damaged ${rotten}`,
    `repaired dangling ${lost}`,
    `dangling ${alsoLost}`,
    orphan,
  ]);
  copy.objects.set(alsoLost!, whole);
  assert.deepEqual(await scrub(copy), [`repaired dangling ${alsoLost}`, orphan]);
  assert.deepEqual(await scrub(), [orphan]);
  for (const [key, object] of store.objects) assert.ok(object.equals(copy.objects.get(key)!), key);

  // What was trimmed is not missed.
  await archive.trim(piece(4).startLsn);
  assert.deepEqual(await scrub(), [orphan]);
  const manifest = [...store.objects.keys()].find((key) => key.startsWith(`${archive.prefix}term-`))!;
  store.objects.set(manifest, Buffer.from('{}'));
  assert.deepEqual(await scrub(), [`damaged ${archive.prefix}`, orphan]);
});
