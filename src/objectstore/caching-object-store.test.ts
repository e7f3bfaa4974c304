import assert from 'node:assert/strict';
import {mkdtempSync, rmSync, statSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, test} from 'node:test';
import {type Disk, systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import {SeededRandom} from '#runtime/random.ts';
import {CachingObjectStore, chunkBytes} from '#objectstore/caching-object-store.ts';
import {FailingObjectStore} from '#objectstore/failing-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';

const dir = mkdtempSync(join(tmpdir(), 'pagoda-cache-'));
after(() => rmSync(dir, {recursive: true, force: true}));
let caches = 0;

function world(bytesMax: number, disk: Disk = systemDisk) {
  const memory = new MemoryObjectStore();
  let requests = 0;
  const counting = new FailingObjectStore(memory, (operation) => {
    if (operation === 'getRange') requests++;
    return undefined;
  });
  const directory = join(dir, `c${caches++}`);
  const cache = new CachingObjectStore(counting, {disk, directory, bytesMax, log: silentLog});
  return {memory, counting, cache, file: join(directory, 'blocks'), requests: () => requests};
}

test('every range is what the store has, whatever is cached', async () => {
  const {memory, cache} = world(20 * chunkBytes);
  const random = new SeededRandom(1);
  const objects = [5, chunkBytes, chunkBytes * 3 + 17, chunkBytes * 9].map((size, i) => ({
    key: `tenants/t${i % 2}/x${i}`,
    bytes: random.bytes(size),
  }));
  for (const {key, bytes} of objects) await memory.put(key, bytes);
  for (let i = 0; i < 3000; i++) {
    const {key, bytes} = objects[random.uint32() % objects.length]!;
    const start = random.uint32() % bytes.length;
    const length = 1 + (random.uint32() % (bytes.length - start));
    const got = await cache.getRange(key, start, length, {objectBytes: bytes.length, fresh: random.float() < 0.1});
    assert.ok(got.equals(bytes.subarray(start, start + length)), `${key} ${start}+${length}`);
  }
  assert.ok(cache.counts.hits > cache.counts.misses);
  await assert.rejects(cache.getRange(objects[0]!.key, 4, 2, {objectBytes: 5}), {code: 'bad-range'});
  await assert.rejects(cache.getRange('tenants/t/none', 0, 1, {objectBytes: 5}), {code: 'not-found'});
});

test('one flight per chunk, and few requests', async () => {
  const {memory, cache, requests} = world(100 * chunkBytes);
  const bytes = new SeededRandom(2).bytes(10 * chunkBytes);
  await memory.put('tenants/a/x', bytes);
  const read = (start: number, length: number): Promise<Buffer> =>
    cache.getRange('tenants/a/x', start, length, {objectBytes: bytes.length});
  await Promise.all(Array.from({length: 50}, (_, i) => read(i * 100, 100)));
  assert.equal(requests(), 1);
  await read(0, 10 * chunkBytes);
  assert.equal(requests(), 2, 'nine chunks that lie together are one request');
  await read(0, 10 * chunkBytes);
  assert.equal(requests(), 2);
});

test('the file stays in its budget; a greedy tenant does not push out a modest one', async () => {
  const {memory, cache, file} = world(40 * chunkBytes);
  const bytes = new SeededRandom(3).bytes(chunkBytes);
  const read = async (tenant: string, i: number): Promise<boolean> => {
    await memory.put(`tenants/${tenant}/${i}`, bytes);
    const before = cache.counts.hits;
    await cache.getRange(`tenants/${tenant}/${i}`, 0, 10, {objectBytes: chunkBytes});
    return cache.counts.hits > before;
  };
  for (let i = 0; i < 10; i++) await read('modest', i);
  for (let i = 0; i < 1000; i++) await read('greedy', i);
  assert.ok(statSync(file).size <= 40 * chunkBytes);
  assert.ok(cache.bytes <= 40 * chunkBytes);
  for (let i = 0; i < 10; i++) assert.ok(await read('modest', i), `chunk ${i} of the modest tenant is still there`);
  assert.ok(!(await read('greedy', 0)));
  assert.deepEqual(
    cache
      .owners()
      .map(({name}) => name)
      .sort(),
    ['greedy', 'modest'],
  );
  await memory.put('tenants/third/x', bytes);
  for (let i = 0; i < 300; i++) await read('third', i);
  const sizes = cache.owners().map((o) => o.bytes / chunkBytes);
  assert.ok(Math.max(...sizes) - Math.min(...sizes) <= 10, `even shares: ${sizes.join(' ')}`);
});

test('what the disk has changed is found and fetched again', async () => {
  const {memory, cache, file, requests} = world(100 * chunkBytes);
  const random = new SeededRandom(4);
  const bytes = random.bytes(30 * chunkBytes + 100);
  await memory.put('tenants/a/x', bytes);
  const all = async (): Promise<void> => {
    for (let at = 0; at < bytes.length; at += 5000) {
      const length = Math.min(5000, bytes.length - at);
      const got = await cache.getRange('tenants/a/x', at, length, {objectBytes: bytes.length});
      assert.ok(got.equals(bytes.subarray(at, at + length)));
    }
  };
  await all();
  const before = requests();
  const handle = systemDisk.open(file, 'write');
  const one = Buffer.alloc(1);
  for (const chunk of [0, 7, 30]) {
    const at = chunk * chunkBytes + 50;
    handle.read(one, at);
    one[0]! ^= 1;
    handle.write(one, at);
  }
  // Two chunks have changed places: each is whole, but not what it should be.
  const x = Buffer.alloc(chunkBytes);
  const y = Buffer.alloc(chunkBytes);
  handle.read(x, 3 * chunkBytes);
  handle.read(y, 4 * chunkBytes);
  handle.write(y, 3 * chunkBytes);
  handle.write(x, 4 * chunkBytes);
  await all();
  assert.equal(cache.counts.damaged, 5);
  assert.equal(requests() - before, 5);
  handle.truncate(2 * chunkBytes);
  handle.close();
  await all();
  assert.equal(cache.counts.damaged, 5 + 29);
});

test('a disk that fails costs no answer', async () => {
  let failing = true;
  const disk: Disk = {
    ...systemDisk,
    open(path, mode) {
      const file = systemDisk.open(path, mode);
      return {
        size: () => file.size(),
        read: (b, p) => file.read(b, p),
        write(b, p) {
          if (failing) throw Object.assign(new Error('no space'), {code: 'ENOSPC'});
          file.write(b, p);
        },
        writev: (b, p) => file.writev(b, p),
        sync: () => file.sync(),
        syncNow: () => file.syncNow(),
        truncate: (n) => file.truncate(n),
        close: () => file.close(),
      };
    },
  };
  const {memory, cache} = world(10 * chunkBytes, disk);
  const bytes = new SeededRandom(5).bytes(chunkBytes * 4);
  await memory.put('tenants/a/x', bytes);
  const read = (): Promise<Buffer> => cache.getRange('tenants/a/x', 10, 200_000, {objectBytes: bytes.length});
  for (let i = 0; i < 5; i++) assert.ok((await read()).equals(bytes.subarray(10, 200_010)));
  assert.equal(cache.bytes, 0);
  failing = false;
  await read();
  assert.equal(cache.bytes, 4 * chunkBytes);
});

test('a deleted object is forgotten', async () => {
  const {memory, cache} = world(10 * chunkBytes);
  await memory.put('tenants/a/x', Buffer.from('old'));
  await cache.getRange('tenants/a/x', 0, 3, {objectBytes: 3});
  await cache.delete(['tenants/a/x']);
  assert.equal(cache.bytes, 0);
  await assert.rejects(cache.getRange('tenants/a/x', 0, 3, {objectBytes: 3}), {code: 'not-found'});
});
