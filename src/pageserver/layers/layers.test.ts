import {test} from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import {compareKeys, encodeKey, rangeOf, readKey, type Key, wholeKeySpace} from '#pageserver/timeline/key.ts';
import {type Value, flagStartsHistory, valueKind} from '#pageserver/timeline/value.ts';
import {WalRecord} from '#postgres/wal/record.ts';
import {BlockCache} from './block-cache.ts';
import {objectIdentity} from './layer-format.ts';
import {LayerReader, ReadPass} from './layer-reader.ts';
import {LayerWriter} from './layer-writer.ts';
import {MemoryLayer} from './memory-layer.ts';

const ids = {tenantId: 'a'.repeat(32), timelineId: 'b'.repeat(32)};
const objectId = `${ids.tenantId}/${ids.timelineId}/layer`;

interface Put {
  readonly key: Key;
  readonly lsn: Lsn;
  readonly payload: Buffer;
  readonly starts: boolean;
}

function fill(puts: readonly Put[]): MemoryLayer {
  const layer = new MemoryLayer(puts[0]!.lsn, 0);
  for (const p of puts)
    layer.put(
      layer.prefixId(p.key.prefix),
      p.key.e,
      p.lsn,
      valueKind.record,
      p.starts ? flagStartsHistory : 0,
      p.payload,
    );
  layer.freeze(lsn(puts.at(-1)!.lsn + 1));
  return layer;
}

async function write(
  layer: MemoryLayer,
  cacheBytes = 1 << 22,
): Promise<{reader: LayerReader; cache: BlockCache; size: number}> {
  const writer = new LayerWriter(objectIdentity(objectId, 7), {
    ...ids,
    flags: 0,
    startLsn: layer.startLsn,
    endLsn: layer.endLsn!,
  });
  for (const v of layer.entries())
    writer.add(v.prefix, v.e, v.lsn, v.kind, v.flags, v.blockId, v.chunk, v.offset, v.length);
  const built = writer.finish();
  const store = new MemoryObjectStore();
  await store.put('layer', Buffer.concat(built.pieces));
  const cache = new BlockCache(cacheBytes);
  const reader = new LayerReader({
    description: {
      name: 'layer',
      kind: 'delta',
      generation: 7,
      firstKey: built.firstKey.toString('hex'),
      lastKey: built.lastKey.toString('hex'),
      startLsn: layer.startLsn,
      endLsn: layer.endLsn!,
      complete: false,
      size: built.size,
      checksum: built.checksum,
      rootOffset: built.rootOffset,
      versions: built.versions,
      level: 0,
      run: 1,
      continues: false,
    },
    store,
    objectKey: 'layer',
    objectId,
    cache,
  });
  return {reader, cache, size: built.size};
}

async function find(reader: LayerReader, cache: BlockCache, key: Key, below: number, floor = 0): Promise<Value[]> {
  const pass = new ReadPass(cache);
  for (;;) {
    const values: Value[] = [];
    const outcome = reader.find(pass, key.prefix, key.e, below, floor, (value) => values.push(plain(value)));
    if (outcome === 'done' || outcome === 'continue') return values;
    await pass.fetch();
  }
}

/** With a payload of its own, to be compared. */
function plain({lsn: at, kind, flags, blockId, payload}: Value): Value {
  return {lsn: at, kind, flags, blockId, payload};
}

function findInMemory(layer: MemoryLayer, key: Key, below: number, floor = 0): Value[] {
  const values: Value[] = [];
  for (let v = layer.find(key.prefix, key.e, below); v >= 0; v = layer.olderThan(v)) {
    if (layer.lsnOf(v) < floor) break;
    values.push(plain(layer.value(v)));
    if ((values.at(-1)!.flags & flagStartsHistory) !== 0) break;
  }
  return values;
}

const u32 = fc.oneof(fc.integer({min: 0, max: 3}), fc.integer({min: 0, max: 0xffffffff}));
const arbitraryKey: fc.Arbitrary<Key> = fc.record(
  {
    prefix: fc.record(
      {
        kind: fc.constantFrom(0x10, 0x20, 0x40, 0x70),
        a: u32,
        b: fc.integer({min: 0, max: 2}),
        c: u32,
        d: fc.integer({min: 0, max: 3}),
      },
      {noNullPrototype: true},
    ),
    e: u32,
  },
  {noNullPrototype: true},
);

test('keys: bytes and fields are in the same order', () => {
  fc.assert(
    fc.property(arbitraryKey, arbitraryKey, (x, y) => {
      assert.equal(Math.sign(compareKeys(x, y)), Math.sign(encodeKey(x).compare(encodeKey(y))));
      assert.deepEqual(readKey(encodeKey(x), 0), x);
    }),
  );
});

test('a layer file says what its memory layer says, for any puts', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(arbitraryKey, {minLength: 1, maxLength: 60}),
      fc.array(
        fc.record({
          key: fc.nat(),
          step: fc.integer({min: 0, max: 3}),
          length: fc.oneof(
            {weight: 9, arbitrary: fc.integer({min: 0, max: 300})},
            {weight: 1, arbitrary: fc.integer({min: 8000, max: 90_000})},
          ),
          starts: fc.boolean(),
        }),
        {minLength: 1, maxLength: 400},
      ),
      fc.constantFrom(2_000, 1 << 22),
      async (keys, changes, cacheBytes) => {
        let at = 1000;
        const puts = changes.map(({key, step, length, starts}, i): Put => {
          at += step;
          return {key: keys[key % keys.length]!, lsn: lsn(at), payload: Buffer.alloc(length, i), starts};
        });
        const layer = fill(puts);
        const {reader, cache} = await write(layer, cacheBytes);
        for (const key of keys)
          for (const below of [0, 1001, 1000 + Math.floor((at - 1000) / 2), at, at + 1])
            for (const floor of [0, 1000 + Math.floor((at - 1000) / 3)])
              assert.deepEqual(await find(reader, cache, key, below, floor), findInMemory(layer, key, below, floor));
        await reader.verify();
        const range = rangeOf(0x20);
        for (const wanted of [range, wholeKeySpace]) {
          const pass = new ReadPass(cache);
          const found = new Set<string>();
          while (!reader.scanKeys(pass, wanted, (key) => found.add(encodeKey(key).toString('hex')))) await pass.fetch();
          const expected = puts
            .map((p) => encodeKey(p.key))
            .filter((k) => k.compare(wanted.start) >= 0 && k.compare(wanted.end) < 0);
          assert.deepEqual(found, new Set(expected.map((k) => k.toString('hex'))));
        }
      },
    ),
    {numRuns: 60},
  );
});

test('one key with very many versions goes over several index blocks', async () => {
  const key: Key = {prefix: {kind: 0x10, a: 1, b: 2, c: 3, d: 0}, e: 5};
  const puts: Put[] = [];
  for (let i = 0; i < 20_000; i++)
    puts.push({key, lsn: lsn(1000 + i), payload: Buffer.alloc(20, i), starts: i === 0 || i === 15_000});
  const layer = fill(puts);
  const {reader, cache} = await write(layer);
  assert.equal((await find(reader, cache, key, 21_000)).length, 5000);
  const old = await find(reader, cache, key, 15_000);
  assert.equal(old.length, 14_000);
  assert.deepEqual(
    old.map((v) => v.lsn),
    Array.from({length: 14_000}, (_, i) => 14_999 - i),
  );
});

test('a cold read is a few range requests, not the object', async () => {
  const puts: Put[] = [];
  for (let block = 0; block < 4000; block++) {
    const payload = Buffer.alloc(8192);
    for (let i = 0; i < 8192; i += 4) payload.writeUInt32LE(Math.imul(i + block, 2654435761) >>> 0, i);
    puts.push({key: {prefix: {kind: 0x10, a: 1, b: 2, c: 3, d: 0}, e: block}, lsn: lsn(1000), payload, starts: true});
  }
  const {reader, cache, size} = await write(fill(puts), 1 << 26);
  assert.equal(
    (await find(reader, cache, puts[1234]!.key, 2000))[0]!.payload.readUInt32LE(8),
    puts[1234]!.payload.readUInt32LE(8),
  );
  assert.ok(cache.bytes < 100_000, `${cache.bytes} bytes of ${size} were read`);
});

test('the block cache is bounded, and forgets layers', () => {
  const cache = new BlockCache(100_000);
  const owners = [0, 1, 2].map(() => ({blocks: new Map()}));
  for (let i = 0; i < 1000; i++) {
    cache.insert(owners[i % 3]!, i, Buffer.alloc(1000 + (i % 7)));
    assert.ok(cache.bytes <= 100_000);
    cache.find(owners[0]!, 0); // in use: stays
  }
  assert.ok(cache.find(owners[0]!, 0) !== undefined);
  for (const owner of owners) cache.forget(owner);
  assert.equal(cache.bytes, 0);
  assert.equal(cache.blockCount, 0);
});

test('a record is kept in its chunk of WAL when that is large, copied once otherwise', () => {
  const prefix = {kind: 0x10, a: 1663, b: 5, c: 100, d: 0};
  for (const [size, allocated] of [
    [20_000, 20_000], // kept
    [20_000, 60_000], // would pin too much
    [1000, 1000],
  ] as const) {
    const chunk = Buffer.from(new ArrayBuffer(allocated), 0, size).fill(1);
    const layer = new MemoryLayer(lsn(8), 0);
    const record = new WalRecord();
    record.bytes = chunk;
    for (let i = 0; i < 50_000; i++) {
      record.endLsn = lsn(8 + i * 8);
      record.offset = i % 900;
      record.totalLength = 60 + (i % 40);
      chunk[record.offset] = 1;
      // two pages of one record
      layer.putRecord(layer.prefixId(prefix), i % 7000, record, 3, 1);
      layer.putRecord(layer.prefixId({...prefix, c: 101}), 0xffffffff - (i % 3), record, 0, 32);
    }
    const kept = size * 2 > allocated && size > 16_384;
    assert.equal(layer.bytes < 24 * 131_072 + 500_000 + 20_000, kept, `${layer.bytes} bytes`);
    chunk.fill(2);
    const values = findInMemory(layer, {prefix, e: 6999}, 1e9);
    assert.equal(values.length, 1); // it starts history
    const {lsn: at, kind, flags, blockId, payload} = values[0]!;
    assert.deepEqual(
      {at, kind, flags, blockId, payload: payload.length},
      {at: 8 + 48_999 * 8, kind: valueKind.record, flags: 3, blockId: 1, payload: 60 + (48_999 % 40)},
    );
    assert.equal(values[0]!.payload[0], kept ? 2 : 1);
    const last = findInMemory(layer, {prefix: {...prefix, c: 101}, e: 0xffffffff}, 1e9);
    assert.equal(last.length, 16_667);
    assert.equal(last.at(-1)!.lsn, 8);
    layer.freeze(lsn(1e9));
    assert.equal([...layer.entries()].length, 100_000);
  }
});
