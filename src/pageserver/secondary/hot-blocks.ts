/**
 * Which parts of a tenant's objects are being read: written by who holds the tenant, read by the pageserver that keeps itself
 * ready to take over. A hint: without it everything works, only the first reads are slower. docs/formats/hot-blocks.md.
 *
 *   tenants/<shard id>/hot-blocks-<generation 8 hex>-<sequence 8 hex>
 *
 * The first line is `pagoda-hot-blocks <version> <crc 8 hex> <bytes>`, then JSON: for each object, below the tenant's prefix,
 * the numbers of its chunks of 64 KiB. The CRC-32C covers the object's name and the JSON.
 */
import {crc32c} from '#runtime/crc.ts';
import {chunkBytes} from '#objectstore/caching-object-store.ts';
import {tenantPrefix} from '../timeline/index-object.ts';
import type {PageserverContext} from '../timeline/state.ts';
import type {Tenant} from '../timeline/tenant.ts';

const formatVersion = 1;

/** Object name below the tenant's prefix → its hot chunks, ascending. */
export type HotBlocks = ReadonlyMap<string, readonly number[]>;

export function hotBlocksKey(tenantId: string, generation: number, sequence: number): string {
  return `${tenantPrefix(tenantId)}hot-blocks-${hex8(generation)}-${hex8(sequence)}`;
}

/** (generation, sequence) in the name of such an object, or undefined when it is none. */
export function parseHotBlocksKey(key: string): {generation: number; sequence: number} | undefined {
  const match = /\/hot-blocks-([0-9a-f]{8})-([0-9a-f]{8})$/.exec(key);
  return match ? {generation: parseInt(match[1]!, 16), sequence: parseInt(match[2]!, 16)} : undefined;
}

export function encodeHotBlocks(key: string, blocks: HotBlocks): Buffer {
  const body = Buffer.from(JSON.stringify([...blocks]), 'utf8');
  return Buffer.concat([
    Buffer.from(`pagoda-hot-blocks ${formatVersion} ${hex8(checksum(key, body))} ${body.length}\n`, 'latin1'),
    body,
  ]);
}

/** undefined: damaged, or of another version. It is only a hint. */
export function decodeHotBlocks(key: string, bytes: Buffer): HotBlocks | undefined {
  const lineEnd = Math.max(bytes.indexOf(10), 0);
  const head = /^pagoda-hot-blocks (\d{1,4}) ([0-9a-f]{8}) (\d{1,10})$/.exec(bytes.toString('latin1', 0, lineEnd));
  const body = bytes.subarray(lineEnd + 1);
  if (!head || Number(head[1]) !== formatVersion || body.length !== Number(head[3])) return undefined;
  if (hex8(checksum(key, body)) !== head[2]) return undefined;
  return new Map(JSON.parse(body.toString('utf8')) as [string, number[]][]);
}

/** What the tenant has in the block cache now. */
export function hotBlocksOf(tenant: Tenant): HotBlocks {
  const prefix = tenantPrefix(tenant.tenantId);
  const hot = new Map<string, number[]>();
  for (const timeline of tenant.timelines())
    for (const reader of timeline.state.layers.readers()) {
      if (reader.blocks.size === 0) continue;
      const chunks = new Set<number>();
      for (const offset of reader.blocks.keys()) chunks.add(Math.floor(offset / chunkBytes));
      hot.set(
        reader.objectKey.slice(prefix.length),
        [...chunks].sort((x, y) => x - y),
      );
    }
  return hot;
}

/** Puts the list of one attachment into the object store when it has changed; the one before goes. */
export class HotBlocksPublisher {
  readonly #context: PageserverContext;
  readonly #published = new WeakMap<Tenant, {sequence: number; text: string}>();

  constructor(context: PageserverContext) {
    this.#context = context;
  }

  async publish(tenant: Tenant): Promise<void> {
    const {store} = this.#context;
    const {tenantId, generation} = tenant;
    const blocks = hotBlocksOf(tenant);
    const last = this.#published.get(tenant);
    const text = JSON.stringify([...blocks]);
    if (text === (last?.text ?? '[]')) return;
    const sequence = (last?.sequence ?? 0) + 1;
    // A name is used once, whatever comes of it.
    this.#published.set(tenant, {sequence, text: last?.text ?? '[]'});
    const key = hotBlocksKey(tenantId, generation, sequence);
    await store.put(key, encodeHotBlocks(key, blocks), {ifNoneMatch: '*'});
    this.#published.set(tenant, {sequence, text});
    // Lists of earlier attachments are found by name; a later one's is not ours.
    const listed = await store.list(`${tenantPrefix(tenantId)}hot-blocks-`);
    const older = listed.filter((object) => {
      const at = parseHotBlocksKey(object.key);
      return (
        at !== undefined && (at.generation < generation || (at.generation === generation && at.sequence < sequence))
      );
    });
    if (older.length > 0) await store.delete(older.map((object) => object.key));
  }
}

function checksum(key: string, body: Buffer): number {
  return crc32c(body, crc32c(Buffer.from(key, 'utf8')));
}

function hex8(value: number): string {
  return value.toString(16).padStart(8, '0');
}
