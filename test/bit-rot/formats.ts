/**
 * What lies at rest, each as a specimen: some objects with known contents, and a reader that is production code. A reader
 * gives back what it served; the truth is kept apart, so that a wrong byte is seen even when nothing complains.
 */
import {type Disk, type DiskFile, systemDisk} from '#runtime/disk.ts';
import {silentLog} from '#runtime/log.ts';
import type {SeededRandom} from '#runtime/random.ts';
import {CachingObjectStore, chunkBytes} from '#objectstore/caching-object-store.ts';
import {MemoryObjectStore} from '#objectstore/memory-object-store.ts';
import {WalArchive, walFooterBytes} from '#objectstore/wal-archive.ts';
import {BlockCache} from '#pageserver/layers/block-cache.ts';
import {layerFlagImage, objectIdentity} from '#pageserver/layers/layer-format.ts';
import {LayerReader, PackedPage, ReadPass} from '#pageserver/layers/layer-reader.ts';
import {LayerWriter} from '#pageserver/layers/layer-writer.ts';
import {scrubTenant} from '#pageserver/inspect/scrub.ts';
import {
  type LayerDescription,
  type TimelineIndex,
  decodeIndex,
  encodeIndex,
  indexObjectKey,
  layerName,
  layerObjectId,
  timelinePrefix,
} from '#pageserver/timeline/index-object.ts';
import {relPagePrefix} from '#pageserver/timeline/key.ts';
import {type Value, flagStartsHistory, valueKind} from '#pageserver/timeline/value.ts';
import {blockSize} from '#postgres/relation.ts';
import {type Lsn, lsn} from '#postgres/lsn.ts';
import type {AcceptorState} from '#safekeeper/acceptor.ts';
import {decodeControlFile, encodeControlFile} from '#safekeeper/control-file.ts';
import {encodePackedPages, packedCodec, unpackPages} from '#wire/packed-pages.ts';

/** A reader served something else than was written: the one thing that must never happen. */
export class WrongBytes extends Error {}

export interface Specimen {
  /** By name; a case changes one of them. */
  readonly objects: ReadonlyMap<string, Buffer>;
  /**
   * Reads everything out of `objects`. Throws what production throws. `repaired`: damage was found, and everything that
   * was served was right.
   */
  read(objects: ReadonlyMap<string, Buffer>): Promise<'whole' | 'repaired'>;
  /** What an error must say about the object with this name. */
  readonly namedAs: (object: string) => string;
  /** Errors name the byte. */
  readonly saysOffset?: boolean;
}

const tenantId = '0123456789abcdef0123456789abcdef';
const timelineId = 'fedcba9876543210fedcba9876543210';

function storeOf(objects: ReadonlyMap<string, Buffer>): MemoryObjectStore {
  const store = new MemoryObjectStore();
  for (const [key, bytes] of objects) store.objects.set(key, bytes);
  return store;
}

interface MadeLayer {
  readonly description: LayerDescription;
  readonly truth: readonly {readonly e: number; readonly at: Lsn; readonly payload: Buffer}[];
}

const rel = {spcNode: 1663, dbNode: 5, relNode: 16384, fork: 0} as const;
const prefix = relPagePrefix(rel);

function makeLayers(
  random: SeededRandom,
  kind: 'delta' | 'image' = 'delta',
): {
  objects: Map<string, Buffer>;
  made: MadeLayer[];
  descriptions: LayerDescription[];
} {
  const objects = new Map<string, Buffer>();
  const made: MadeLayer[] = [];
  for (let n = 0; n < 3; n++) {
    const startLsn = lsn(0x1000000 * (n + 1));
    const endLsn = lsn(0x1000000 * (n + 2));
    const name = layerName(kind, startLsn, endLsn, n, 3);
    const writer = new LayerWriter(objectIdentity(layerObjectId(tenantId, timelineId, name), 3), {
      tenantId,
      timelineId,
      flags: kind === 'image' ? layerFlagImage : 0,
      startLsn,
      endLsn,
    });
    const truth: {e: number; at: Lsn; payload: Buffer}[] = [];
    for (let e = 0; e < 24; e++)
      for (let v = 0; v < (kind === 'image' ? 1 : 1 + (e % 4)); v++) {
        // Half of the bytes compress; of pages some do not.
        const length = kind === 'delta' ? 200 + (e % 7) * 100 : e % 10 < 6 ? 1000 : blockSize;
        const rest = kind === 'delta' ? 400 : blockSize - length;
        const payload = Buffer.concat([random.bytes(length), Buffer.alloc(rest, e)]);
        const at = lsn(startLsn + v * 8);
        writer.add(prefix, e, at, valueKind.image, v === 0 ? flagStartsHistory : 0, 0, payload, 0, payload.length);
        truth.push({e, at, payload});
      }
    const built = writer.finish();
    objects.set(timelinePrefix(tenantId, timelineId) + name, Buffer.concat(built.pieces));
    made.push({
      description: {
        name,
        kind,
        generation: 3,
        firstKey: built.firstKey.toString('hex'),
        lastKey: built.lastKey.toString('hex'),
        startLsn,
        endLsn,
        complete: kind === 'image',
        size: built.size,
        checksum: built.checksum,
        rootOffset: built.rootOffset,
        versions: built.versions,
        level: 0,
        run: n,
        continues: false,
      },
      truth,
    });
  }
  return {objects, made, descriptions: made.map(({description}) => description)};
}

/** Delta layers; every version of every key is read through index, blocks and cache. Image layers: as a run, sent as it lies there. */
function layers(random: SeededRandom, kind: 'delta' | 'image' = 'delta'): Specimen {
  const {objects, made} = makeLayers(random, kind);
  let packedPages = 0;
  return {
    objects,
    namedAs: (object) => object.slice(object.lastIndexOf('/') + 1),
    saysOffset: true,
    async read(present) {
      const store = storeOf(present);
      for (const {description, truth} of made) {
        const cache = new BlockCache(1 << 20);
        const reader = new LayerReader({
          description,
          store,
          objectKey: timelinePrefix(tenantId, timelineId) + description.name,
          objectId: layerObjectId(tenantId, timelineId, description.name),
          cache,
        });
        let failure: unknown;
        for (const {e, at, payload} of truth) {
          try {
            const got = await find(reader, cache, e, at);
            if (got === undefined || !got.equals(payload))
              throw new WrongBytes(`layer ${description.name}, key ${e} at ${at}: other bytes than were written`);
          } catch (error) {
            if (error instanceof WrongBytes) throw error;
            failure ??= error; // other keys may still be read, but never wrongly
          }
        }
        if (failure !== undefined) throw failure;
        await reader.verify();
      }
      if (kind === 'image' && packedPages === 0) throw new Error('no page was read as it lies in its object');
      return 'whole';

      async function find(reader: LayerReader, cache: BlockCache, e: number, at: Lsn): Promise<Buffer | undefined> {
        const pass = new ReadPass(cache, kind === 'image');
        for (;;) {
          let newest: Buffer | undefined;
          const outcome = reader.find(pass, prefix, e, at + 1, 0, (value) => (newest ??= received(value)));
          if (outcome === 'done' || outcome === 'continue') return newest;
          await pass.fetch();
        }
      }
    },
  };

  /** What a backend makes of it. */
  function received(value: Value): Buffer {
    const lz4 = value instanceof PackedPage ? value.block.lz4 : undefined;
    if (!(value instanceof PackedPage) || lz4 === undefined) return value.payload;
    packedPages++;
    const {offset, block} = value;
    const segment = {codec: packedCodec.lz4, rawBytes: block.rawLength, bytes: lz4, offsets: [offset]};
    return unpackPages(Buffer.concat(encodePackedPages([segment])), 1);
  }
}

const emptyIndex: Omit<TimelineIndex, 'tenantId' | 'timelineId' | 'generation' | 'sequence'> = {
  lifecycle: 'active',
  pgVersion: 15,
  systemId: '7300000000000000001',
  diskConsistentLsn: lsn(0x3000000),
  initialLsn: lsn(0x1000000),
  logicalSizeBytes: 24_576,
  safekeepers: [],
  retention: {windowSeconds: 86_400, windowBytes: 0},
  gcCutoffLsn: lsn(0x1000000),
  leases: [],
  layers: [],
};

function indexes(random: SeededRandom): Specimen {
  const objects = new Map<string, Buffer>();
  const truth = new Map<
    string,
    {index: TimelineIndex; at: {generation: number; sequence: number}; timelineId: string}
  >();
  for (let n = 0; n < 4; n++) {
    const id = n < 2 ? timelineId : random.bytes(16).toString('hex');
    const at = {generation: 3, sequence: n + 1};
    const index: TimelineIndex = {
      ...emptyIndex,
      tenantId,
      timelineId: id,
      ...at,
      diskConsistentLsn: lsn(0x3000000 + n),
      safekeepers: [{nodeId: 1, host: '127.0.0.1', port: 5000 + n}],
    };
    const key = indexObjectKey(tenantId, id, at.generation, at.sequence);
    objects.set(key, encodeIndex(index));
    truth.set(key, {index: decodeIndex(encodeIndex(index), {tenantId, timelineId: id, ...at}), at, timelineId: id});
  }
  return {
    objects,
    namedAs: (object) => object,
    async read(present) {
      for (const [key, {index, at, timelineId: id}] of truth) {
        const got = decodeIndex(present.get(key)!, {tenantId, timelineId: id, ...at});
        if (JSON.stringify(got) !== JSON.stringify(index)) throw new WrongBytes(`index ${key}: another content`);
      }
      return 'whole';
    },
  };
}

const segmentSize = 64 * 1024;

async function walArchive(random: SeededRandom): Promise<Specimen> {
  const store = new MemoryObjectStore();
  const truth: {archive: WalArchive; piece: Parameters<WalArchive['put']>[0]; bytes: Buffer}[] = [];
  for (const id of [timelineId, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa']) {
    const archive = new WalArchive({store, tenantId, timelineId: id, segmentSize});
    for (const [segment, length, partialTerm] of [
      [1, segmentSize, undefined],
      [2, 5000, 7],
    ] as const) {
      const bytes = random.bytes(length);
      const startLsn = (segment * segmentSize) as Lsn;
      const piece = {segment, startLsn, endLsn: (startLsn + length) as Lsn, partialTerm};
      await archive.put(piece, Buffer.concat([bytes, Buffer.alloc(walFooterBytes)]));
      truth.push({archive, piece, bytes});
    }
  }
  return {
    objects: new Map(store.objects),
    namedAs: (object) => object,
    async read(present) {
      const damaged = storeOf(present);
      for (const {archive, piece, bytes} of truth) {
        const id = archive.prefix.split('/')[2]!;
        const reader = new WalArchive({store: damaged, tenantId, timelineId: id, segmentSize});
        const got = await reader.get(piece);
        if (!got.equals(bytes)) throw new WrongBytes(`WAL object ${archive.key(piece)}: other bytes`);
      }
      return 'whole';
    },
  };
}

async function walManifests(random: SeededRandom): Promise<Specimen> {
  const store = new MemoryObjectStore();
  const truth: {timelineId: string; text: string}[] = [];
  for (const id of [timelineId, random.bytes(16).toString('hex')]) {
    const archive = new WalArchive({store, tenantId, timelineId: id, segmentSize});
    await archive.putManifest({
      tenantId,
      timelineId: id,
      systemId: '7300000000000000001',
      pgVersion: 150020,
      startLsn: lsn(0x1000000),
      history: [
        {term: 0, lsn: lsn(0x1000000)},
        {term: 4, lsn: lsn(0x1000000 + truth.length * 8)},
      ],
    });
    truth.push({timelineId: id, text: JSON.stringify(await archive.manifest())});
  }
  return {
    objects: new Map(store.objects),
    namedAs: (object) => object,
    async read(present) {
      const damaged = storeOf(present);
      for (const {timelineId: id, text} of truth) {
        const got = await new WalArchive({store: damaged, tenantId, timelineId: id, segmentSize}).manifest();
        if (JSON.stringify(got) !== text) throw new WrongBytes(`WAL manifest of ${id}: another content`);
      }
      return 'whole';
    },
  };
}

async function walTrimMarks(): Promise<Specimen> {
  const objects = new Map<string, Buffer>();
  const truth = new Map<string, Lsn>();
  for (const [i, id] of [timelineId, 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'].entries()) {
    const store = new MemoryObjectStore();
    const archive = new WalArchive({store, tenantId, timelineId: id, segmentSize});
    const startLsn = ((i + 1) * segmentSize) as Lsn;
    const endLsn = (startLsn + segmentSize) as Lsn;
    const piece = {segment: i + 1, startLsn, endLsn, partialTerm: undefined};
    await archive.put(piece, Buffer.alloc(segmentSize + walFooterBytes));
    await archive.trim(endLsn);
    truth.set(id, endLsn);
    for (const [key, bytes] of store.objects) objects.set(key, bytes);
  }
  return {
    objects,
    namedAs: (object) => object,
    async read(present) {
      const store = storeOf(present);
      for (const [id, lsn] of truth) {
        const got = await new WalArchive({store, tenantId, timelineId: id, segmentSize}).trimmedLsn();
        if (got !== lsn) throw new WrongBytes(`trim mark of ${id}: ${got}, not ${lsn}`);
      }
      return 'whole';
    },
  };
}

function controlFiles(random: SeededRandom): Specimen {
  const objects = new Map<string, Buffer>();
  const truth = new Map<string, string>();
  for (let n = 0; n < 3; n++) {
    const state: AcceptorState = {
      tenantId,
      timelineId: random.bytes(16).toString('hex'),
      systemId: '7300000000000000001',
      pgVersion: 150_020,
      startLsn: lsn(0x1000000),
      membership: {generation: 2, members: [{nodeId: 1, host: 'localhost', port: 6000 + n}], newMembers: []},
      term: n + 3,
      history: [
        {term: 0, lsn: lsn(0x1000000)},
        {term: n + 3, lsn: lsn(0x2000000)},
      ],
      commitLsn: lsn(0x3000000),
      remoteConsistentLsn: lsn(0x2800000),
      archivedLsn: lsn(0x2900000),
      localStartLsn: lsn(0x2000000),
    };
    const path = `/safekeeper/${state.timelineId}/safekeeper.control`;
    objects.set(path, encodeControlFile(state));
    truth.set(path, JSON.stringify(state));
  }
  return {
    objects,
    namedAs: (object) => object,
    async read(present) {
      for (const [path, text] of truth) {
        const got = JSON.stringify(
          decodeControlFile(present.get(path)!, path, {tenantId, timelineId: path.split('/')[2]!}),
        );
        if (got !== text) throw new WrongBytes(`control file ${path}: another content`);
      }
      return 'whole';
    },
  };
}

/** The file of the local cache is the object; the store behind it is the second copy. */
async function localCache(random: SeededRandom): Promise<Specimen> {
  const store = new MemoryObjectStore();
  const key = `tenants/${tenantId}/timelines/${timelineId}/layer`;
  const bytes = random.bytes(3 * chunkBytes);
  await store.put(key, bytes);
  let file: Buffer = Buffer.alloc(0);
  const inMemory: DiskFile = {
    size: () => file.length,
    read: (buffer, position) => file.copy(buffer, 0, position),
    write(buffer, position) {
      if (file.length < position + buffer.length)
        file = Buffer.concat([file, Buffer.alloc(position + buffer.length - file.length)]);
      buffer.copy(file, position);
    },
    writev() {},
    sync: async () => {},
    syncNow() {},
    truncate() {},
    close() {},
  };
  const disk: Disk = {...systemDisk, makeDirectory() {}, open: () => inMemory};
  const fill = async (): Promise<CachingObjectStore> => {
    file = Buffer.alloc(0);
    const cache = new CachingObjectStore(store, {disk, directory: '/none', bytesMax: 1 << 20, log: silentLog});
    await cache.getRange(key, 0, bytes.length, {objectBytes: bytes.length});
    return cache;
  };
  await fill();
  const name = 'cache/blocks';
  return {
    objects: new Map([[name, Buffer.from(file)]]),
    namedAs: () => key,
    async read(present) {
      const cache = await fill();
      file = Buffer.from(present.get(name)!);
      for (let at = 0; at < bytes.length; at += 20_000) {
        const length = Math.min(20_000, bytes.length - at);
        const got = await cache.getRange(key, at, length, {objectBytes: bytes.length});
        if (!got.equals(bytes.subarray(at, at + length))) throw new WrongBytes(`local cache: other bytes at ${at}`);
      }
      return cache.counts.damaged > 0 ? 'repaired' : 'whole';
    },
  };
}

/** Layers and the index that lists them, beside a copy of the store: what scrub finds it puts back. */
async function scrubbed(random: SeededRandom): Promise<Specimen> {
  const {objects: layerObjects, descriptions} = makeLayers(random);
  const at = {generation: 3, sequence: 9};
  const index = encodeIndex({...emptyIndex, tenantId, timelineId, ...at, layers: descriptions});
  const objects = new Map([...layerObjects, [indexObjectKey(tenantId, timelineId, at.generation, at.sequence), index]]);
  const copy = storeOf(objects);
  return {
    objects,
    namedAs: (object) => object,
    async read(present) {
      const store = storeOf(present);
      const {findings} = await scrubTenant({store, tenantId, copy});
      for (const [key, bytes] of objects)
        if (!(await store.get(key)).equals(bytes)) throw new WrongBytes(`${key} was not put back`);
      const again = await scrubTenant({store, tenantId});
      if (again.findings.length > 0) throw new WrongBytes(`still: ${JSON.stringify(again.findings)}`);
      return findings.length > 0 && findings.every(({repaired}) => repaired) ? 'repaired' : 'whole';
    },
  };
}

export const formats: Readonly<Record<string, (random: SeededRandom) => Specimen | Promise<Specimen>>> = {
  layer: layers,
  'image-layer': (random) => layers(random, 'image'),
  index: indexes,
  'wal-archive': walArchive,
  'wal-trim-mark': walTrimMarks,
  'wal-manifest': walManifests,
  'local-cache': localCache,
  'store-with-copy': scrubbed,
  'control-file': controlFiles,
};
