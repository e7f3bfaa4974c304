/** One suite for every object store: in memory, a folder, S3 (Ceph RGW), and S3 behind a proxy that makes faults. */
import assert from 'node:assert/strict';
import {spawn} from 'node:child_process';
import {chmodSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, before, test} from 'node:test';
import {systemClock} from '#runtime/clock.ts';
import {systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import {Metrics} from '#runtime/metrics.ts';
import {SeededRandom, systemRandom} from '#runtime/random.ts';
import {FolderObjectStore} from '#objectstore/folder-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {type ObjectStore, ObjectStoreError} from '#objectstore/object-store.ts';
import {type ObjectStoreConfig, openObjectStore} from '#objectstore/open.ts';
import {RetryingObjectStore} from '#objectstore/retrying-object-store.ts';
import {S3ObjectStore, type S3StoreConfig} from '#objectstore/s3-object-store.ts';
import {type Fault, FaultProxy, faults} from './fault-proxy.ts';
import {Rgw} from './rgw.ts';

const dir = mkdtempSync(join(tmpdir(), 'pagoda-stores-'));
let rgw: Rgw;
let proxy: FaultProxy;

before(async () => {
  rgw = await Rgw.start();
  proxy = await FaultProxy.start(rgw.endpoint);
});
after(async () => {
  await proxy?.stop();
  await rgw?.stop();
  rmSync(dir, {recursive: true, force: true});
});

const retrying = (inner: ObjectStore): ObjectStore =>
  new RetryingObjectStore(inner, {
    clock: systemClock,
    random: new SeededRandom(5),
    triesMax: 12,
    firstDelayMs: 2,
  });

let folders = 0;
const stores: [string, () => Promise<ObjectStore>][] = [
  ['memory', async () => new MemoryObjectStore()],
  [
    'folder',
    async () =>
      new FolderObjectStore({
        root: join(dir, `store${folders++}`),
        disk: systemDisk,
        random: systemRandom,
        nowMs: Date.now(),
      }),
  ],
  ['s3', async () => new S3ObjectStore(await rgw.bucket(), systemClock)],
  ['s3 with a prefix', async () => new S3ObjectStore({...(await rgw.bucket()), prefix: 'some/where/'}, systemClock)],
  [
    's3 behind faults',
    async () => {
      const config = await rgw.bucket(proxy.endpoint);
      // `hang` costs a whole try; it has a test of its own.
      proxy.random(
        7,
        4,
        faults.filter((fault) => fault !== 'hang'),
      );
      proxy.slowMs = 30;
      return retrying(new S3ObjectStore(config, systemClock));
    },
  ],
];

for (const [name, make] of stores) {
  test(`${name}: put, get, ranges, heads, lists, deletes`, async () => {
    const store = await make();
    const big = systemRandom.bytes(9_000_001);
    await store.put('t/1/b', Buffer.from('hello'));
    await store.put('t/1/a', Buffer.from(''));
    await store.put('t/10/a', Buffer.from('x'));
    await store.put('t/1/big', big);
    assert.equal((await store.get('t/1/b')).toString(), 'hello');
    assert.equal((await store.get('t/1/a')).length, 0);
    assert.ok((await store.get('t/1/big')).equals(big));
    assert.equal((await store.getRange('t/1/b', 1, 3)).toString(), 'ell');
    assert.equal((await store.getRange('t/1/b', 0, 5)).toString(), 'hello');
    assert.equal((await store.getRange('t/1/b', 2, 0)).length, 0);
    assert.ok((await store.getRange('t/1/big', 4_194_300, 100_000)).equals(big.subarray(4_194_300, 4_294_300)));
    await assert.rejects(store.getRange('t/1/b', 3, 3), {code: 'bad-range'});
    await assert.rejects(store.getRange('t/1/b', 5, 1), {code: 'bad-range'});
    await assert.rejects(store.getRange('t/1/b', 500, 1), {code: 'bad-range'});
    await assert.rejects(store.get('t/1/c'), {code: 'not-found'});
    await assert.rejects(store.getRange('t/1/c', 0, 1), {code: 'not-found'});
    const list = async (prefix: string): Promise<[string, number][]> =>
      (await store.list(prefix)).map((o) => [o.key, o.size]);
    assert.deepEqual(await list('t/1'), [
      ['t/1/a', 0],
      ['t/1/b', 5],
      ['t/1/big', big.length],
      ['t/10/a', 1],
    ]);
    assert.deepEqual((await list('t/1/')).length, 3);
    assert.deepEqual(await list('u/'), []);
    assert.equal((await store.head('t/1/b'))?.size, 5);
    assert.equal(await store.head('t/1'), undefined);
    assert.equal(await store.head('t/1/none'), undefined);
    await store.put('t/1/b', Buffer.from('again'));
    assert.equal((await store.get('t/1/b')).toString(), 'again');
    await store.delete(['t/1/b', 't/1/none']);
    await store.delete(['t/1/b']);
    await store.delete([]);
    await assert.rejects(store.get('t/1/b'), {code: 'not-found'});
    await assert.rejects(store.getRange('t/1/b', 0, 1), {code: 'not-found'});
    assert.equal((await list('t/')).length, 3);
  });

  test(`${name}: If-None-Match lets one of sixteen win, and its bytes stay`, async () => {
    const store = await make();
    const results = await Promise.allSettled(
      Array.from({length: 16}, (_, i) => store.put('race/x', Buffer.from(`writer ${i}`), {ifNoneMatch: '*'})),
    );
    const winners = results.flatMap((r, i) => (r.status === 'fulfilled' ? [i] : []));
    assert.equal(winners.length, 1);
    for (const r of results) if (r.status === 'rejected') assert.equal(r.reason.code, 'exists', String(r.reason));
    assert.equal((await store.get('race/x')).toString(), `writer ${winners[0]}`);
    await assert.rejects(store.put('race/x', Buffer.from('late'), {ifNoneMatch: '*'}), {code: 'exists'});
  });

  test(`${name}: a list of more than a page, and its deletion`, async () => {
    const store = await make();
    const keys = Array.from({length: 1105}, (_, i) => `many/${String(i).padStart(5, '0')}`);
    for (let i = 0; i < keys.length; i += 32)
      await Promise.all(keys.slice(i, i + 32).map((key) => store.put(key, Buffer.from(key), {ifNoneMatch: '*'})));
    assert.deepEqual(
      (await store.list('many/')).map((o) => o.key),
      keys,
    );
    await store.delete(keys.slice(1));
    assert.deepEqual(
      (await store.list('')).map((o) => o.key),
      keys.slice(0, 1),
    );
  });

  test(`${name}: names cannot leave the store`, async () => {
    const store = await make();
    for (const key of ['../x', 'a/../b', '/x', 'a//b', '', '.tmp/x', 'a/.b', 'a\0b', 'x'.repeat(1001)])
      await assert.rejects(store.put(key, Buffer.from('x')), {code: 'bad-key'}, key);
  });
}

test('every fault, at every operation, ends in the right result', async () => {
  const store = retrying(new S3ObjectStore({...(await rgw.bucket(proxy.endpoint)), tryMsMax: 1000}, systemClock));
  const bytes = systemRandom.bytes(100_000);
  let number = 0;
  proxy.slowMs = 100;
  for (const fault of faults) {
    const key = `f/${number++}`;
    const once = (): void => {
      let left = 1;
      proxy.decide = () => (left-- > 0 ? fault : undefined);
    };
    const doneBefore = proxy.done.get(fault) ?? 0;
    once();
    await store.put(key, bytes, {ifNoneMatch: '*'});
    once();
    assert.ok((await store.get(key)).equals(bytes), fault);
    once();
    assert.ok((await store.getRange(key, 500, 70_000)).equals(bytes.subarray(500, 70_500)), fault);
    once();
    assert.equal((await store.head(key))?.size, bytes.length, fault);
    once();
    assert.deepEqual(
      (await store.list('f/')).map((o) => o.key),
      [key],
      fault,
    );
    once();
    await assert.rejects(store.put(key, Buffer.from('other'), {ifNoneMatch: '*'}), {code: 'exists'}, fault);
    once();
    await store.delete([key]);
    assert.deepEqual(await store.list('f/'), [], fault);
    assert.equal((proxy.done.get(fault) ?? 0) - doneBefore, 7, `the proxy did its faults (${fault})`);
  }
  proxy.decide = () => '503';
  const started = performance.now();
  await assert.rejects(store.get('f/0'), {code: 'unavailable'});
  assert.ok(performance.now() - started > 1000, 'it backed off before it gave up');
  proxy.decide = () => undefined;
});

test('a store that hangs for ever costs a bounded time', async () => {
  const config: S3StoreConfig = {...(await rgw.bucket(proxy.endpoint)), tryMsMax: 100};
  proxy.decide = () => 'hang' satisfies Fault;
  const store = new S3ObjectStore(config, systemClock);
  await assert.rejects(store.get('x'), {code: 'unavailable', message: /nothing came for 100 ms/});
  proxy.decide = () => undefined;
});

test('s3: what a person has to mend is not retried, and says so', async () => {
  const config = await rgw.bucket();
  const missing = new S3ObjectStore({...config, bucket: 'nowhere'}, systemClock);
  await assert.rejects(missing.get('x'), {code: 'denied', message: /there is no bucket nowhere/});
  await assert.rejects(missing.put('x', Buffer.from('x')), {code: 'denied'});
  const wrong = join(dir, 'wrong');
  writeFileSync(wrong, 'AWS_ACCESS_KEY_ID=pagoda-test\nAWS_SECRET_ACCESS_KEY=guess\n', {mode: 0o600});
  await assert.rejects(new S3ObjectStore({...config, credentialsFile: wrong}, systemClock).get('x'), {
    code: 'denied',
    message: /credentials/,
  });
  writeFileSync(wrong, 'AWS_ACCESS_KEY_ID=x\n');
  await assert.rejects(new S3ObjectStore({...config, credentialsFile: wrong}, systemClock).get('x'), {
    message: /needs the lines/,
  });
  chmodSync(wrong, 0o644);
  await assert.rejects(new S3ObjectStore({...config, credentialsFile: wrong}, systemClock).get('x'), {
    message: /chmod 600/,
  });
});

test('folder: If-None-Match is exact between processes', async () => {
  const root = join(dir, 'processes');
  const script = `
    import {FolderObjectStore} from ${JSON.stringify(join(import.meta.dirname, '../../src/objectstore/folder-object-store.ts'))};
    import {systemDisk} from ${JSON.stringify(join(import.meta.dirname, '../../src/runtime/disk.ts'))};
    import {systemRandom} from ${JSON.stringify(join(import.meta.dirname, '../../src/runtime/random.ts'))};
    const store = new FolderObjectStore({root: ${JSON.stringify(root)}, disk: systemDisk, random: systemRandom, nowMs: Date.now()});
    const won = [];
    while (Date.now() < Number(process.argv[1])) {}
    for (let i = 0; i < 200; i++)
      await store.put('k/' + i, Buffer.from(String(process.pid)), {ifNoneMatch: '*'}).then(() => won.push(i), (e) => { if (e.code !== 'exists') throw e; });
    console.log(JSON.stringify(won));
  `;
  const at = String(Date.now() + 1500);
  const won = await Promise.all(
    Array.from(
      {length: 3},
      () =>
        new Promise<{pid: number; keys: number[]}>((resolve, reject) => {
          const child = spawn(process.execPath, ['--input-type=module', '-e', script, at], {
            stdio: ['ignore', 'pipe', 'inherit'],
          });
          let text = '';
          child.stdout.on('data', (d: Buffer) => (text += d.toString()));
          child.on('close', (code) =>
            code === 0 ? resolve({pid: child.pid!, keys: JSON.parse(text) as number[]}) : reject(new Error(`${code}`)),
          );
        }),
    ),
  );
  const all = won.flatMap(({keys}) => keys).sort((x, y) => x - y);
  assert.deepEqual(
    all,
    Array.from({length: 200}, (_, i) => i),
  );
  const store = new FolderObjectStore({root, disk: systemDisk, random: systemRandom, nowMs: Date.now()});
  for (const {pid, keys} of won)
    for (const key of keys) assert.equal((await store.get(`k/${key}`)).toString(), String(pid));
});

const deps = {clock: systemClock, random: systemRandom, disk: systemDisk, log: silentLog};

for (const kind of ['folder', 's3'] as const)
  test(`${kind}: a second installation is refused before it touches anything`, async () => {
    const config: ObjectStoreConfig = kind === 'folder' ? {kind, root: join(dir, 'claimed')} : await rgw.bucket();
    const first = openObjectStore({...config, installationId: 'first'}, deps);
    await first.put('a', Buffer.from('1'));
    const second = openObjectStore({...config, installationId: 'second'}, deps);
    await assert.rejects(
      second.delete(['a']),
      (error: ObjectStoreError) =>
        error.code === 'denied' && /belongs to another installation \(first; this one is second\)/.test(error.message),
    );
    await assert.rejects(second.list(''), {code: 'denied'});
    const again = openObjectStore({...config, installationId: 'first'}, deps);
    assert.equal((await again.get('a')).toString(), '1');
  });

test('s3: requests, bytes and failures are counted by operation', async () => {
  const metrics = new Metrics();
  const config = await rgw.bucket(proxy.endpoint);
  const store = openObjectStore(config, {...deps, metrics});
  let left = 1;
  proxy.decide = () => (left-- > 0 ? '503' : undefined);
  await store.put('a', Buffer.alloc(1000));
  await store.getRange('a', 0, 10);
  const text = metrics.text();
  assert.match(text, /pagoda_object_store_requests_total\{operation="put"\} 2/);
  assert.match(text, /pagoda_object_store_failures_total\{operation="put"\} 1/);
  assert.match(text, /pagoda_object_store_bytes_total\{operation="put"\} 1000/);
  assert.match(text, /pagoda_object_store_bytes_total\{operation="getRange"\} 10/);
});
