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
import type {ObjectStore} from '#objectstore/object-store.ts';
import {RetryingObjectStore} from '#objectstore/retrying-object-store.ts';

const root = mkdtempSync(join(tmpdir(), 'pagoda-objects-'));
after(() => rmSync(root, {recursive: true, force: true}));

const folder = (name: string): FolderObjectStore =>
  new FolderObjectStore({root: join(root, name), disk: systemDisk, random: new SeededRandom(1), nowMs: Date.now()});

const stores: [string, () => ObjectStore][] = [
  ['memory', () => new MemoryObjectStore()],
  ['folder', () => folder('basic')],
];

for (const [name, make] of stores) {
  test(`${name}: put, get, ranges, list, delete`, async () => {
    const store = make();
    await store.put('t/1/b', Buffer.from('hello'));
    await store.put('t/1/a', Buffer.from(''));
    await store.put('t/10/a', Buffer.from('x'));
    assert.equal((await store.get('t/1/b')).toString(), 'hello');
    assert.equal((await store.getRange('t/1/b', 1, 3)).toString(), 'ell');
    await assert.rejects(store.getRange('t/1/b', 3, 3), {code: 'bad-range'});
    await assert.rejects(store.get('t/1/c'), {code: 'not-found'});
    await assert.rejects(store.getRange('t/1/c', 0, 1), {code: 'not-found'});
    assert.deepEqual(
      (await store.list('t/1')).map((o) => [o.key, o.size]),
      [
        ['t/1/a', 0],
        ['t/1/b', 5],
        ['t/10/a', 1],
      ],
    );
    assert.deepEqual(
      (await store.list('t/1/')).map((o) => o.key),
      ['t/1/a', 't/1/b'],
    );
    assert.deepEqual(await store.list('u/'), []);
    assert.equal((await store.head('t/1/b'))?.size, 5);
    assert.equal(await store.head('t/1'), undefined);
    await store.delete(['t/1/b', 't/1/none']);
    await assert.rejects(store.get('t/1/b'), {code: 'not-found'});
    await assert.rejects(store.getRange('t/1/b', 0, 1), {code: 'not-found'});
  });

  test(`${name}: If-None-Match keeps the first object`, async () => {
    const store = make();
    const results = await Promise.allSettled(
      ['one', 'two', 'three'].map((text) => store.put('race/x', Buffer.from(text), {ifNoneMatch: '*'})),
    );
    assert.equal(results.filter((r) => r.status === 'fulfilled').length, 1);
    for (const r of results) if (r.status === 'rejected') assert.equal(r.reason.code, 'exists');
  });

  test(`${name}: names cannot leave the store`, async () => {
    const store = make();
    for (const key of ['../x', 'a/../b', '/x', 'a//b', '', '.tmp/x', 'a/.b', 'a\0b', 'x'.repeat(1001)])
      await assert.rejects(store.put(key, Buffer.from('x')), {code: 'bad-key'}, key);
  });
}

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
