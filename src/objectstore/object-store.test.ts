/** What is particular to one store or wrapper; what all have in common: test/objectstore/conformance.test.ts. */
import {after, test} from 'node:test';
import assert from 'node:assert/strict';
import {mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {SeededRandom} from '#runtime/random.ts';
import {FailingObjectStore, type Failure} from '#objectstore/failing-object-store.ts';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {RetryingObjectStore} from '#objectstore/retrying-object-store.ts';

const root = mkdtempSync(join(tmpdir(), 'pagoda-objects-'));
after(() => rmSync(root, {recursive: true, force: true}));

const folder = (name: string): FolderObjectStore =>
  new FolderObjectStore({root: join(root, name), disk: systemDisk, random: new SeededRandom(1), nowMs: Date.now()});

test('folder: a put that fails leaves nothing behind; old temporary files go', async () => {
  const disk = {
    ...systemDisk,
    rename: () => {
      throw Object.assign(new Error('no space'), {code: 'ENOSPC'});
    },
  };
  const path = join(root, 'failing');
  const store = new FolderObjectStore({root: path, disk, random: new SeededRandom(2), nowMs: Date.now()});
  await assert.rejects(store.put('a/b', Buffer.from('x')), {code: 'full'});
  assert.deepEqual(readdirSync(join(path, '.tmp')), []);
  writeFileSync(join(path, '.tmp', 'old'), 'x');
  utimesSync(join(path, '.tmp', 'old'), 1, 1);
  writeFileSync(join(path, '.tmp', 'young'), 'x');
  folder('failing');
  assert.deepEqual(readdirSync(join(path, '.tmp')), ['young']);
});

test('folder: large objects leave the event loop to others', async () => {
  const disk = {
    ...systemDisk,
    openLarge: (...where: Parameters<typeof systemDisk.openLarge>) => {
      const file = systemDisk.openLarge(...where);
      file.read = file.write = () => assert.fail('a large object is read or written while everybody waits');
      return file;
    },
  };
  const store = new FolderObjectStore({
    root: join(root, 'large'),
    disk,
    random: new SeededRandom(4),
    nowMs: Date.now(),
  });
  const bytes = new SeededRandom(5).bytes(5_000_000);
  await store.put('a/large', bytes, {ifNoneMatch: '*'});
  assert.ok((await store.get('a/large')).equals(bytes));
  assert.ok((await store.getRange('a/large', 1000, 3_000_000)).equals(bytes.subarray(1000, 3_001_000)));
  await assert.rejects(store.getRange('a/large', 1000, 5_000_000), {code: 'bad-range'});
  await assert.rejects(store.put('a/large', bytes, {ifNoneMatch: '*'}), {code: 'exists'});
  store.close();
});

test('retrying: repeats, gives up, and recognises its own put', async () => {
  const memory = new MemoryObjectStore();
  const script: Failure[] = [];
  const failing = new FailingObjectStore(memory, () => script.shift());
  const store = new RetryingObjectStore(failing, {
    clock: systemClock,
    random: new SeededRandom(3),
    triesMax: 3,
    firstDelayMs: 1,
  });

  script.push('before', 'before');
  await store.put('a', Buffer.from('1'));
  script.push('before', 'before', 'before');
  await assert.rejects(store.get('a'), {code: 'unavailable'});

  script.push('after');
  await store.put('b', Buffer.from('2'), {ifNoneMatch: '*'}); // performed, answer lost, found on the second try
  await assert.rejects(store.put('b', Buffer.from('2'), {ifNoneMatch: '*'}), {code: 'exists'});
  script.push('before');
  await assert.rejects(store.put('b', Buffer.from('other'), {ifNoneMatch: '*'}), {code: 'exists'});
  assert.equal((await memory.get('b')).toString(), '2');
});
