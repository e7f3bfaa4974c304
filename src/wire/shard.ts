/**
 * Shards of a tenant: who keeps which page.
 *
 * A tenant of more than one shard is `count` attachments, each with its own objects, generation and pageserver. In every
 * place of the pageserver and of the object store that names a tenant, a shard is named by its **shard id**:
 *   `<tenant>`            the plain 32-hex tenant id: the tenant has one shard
 *   `<tenant>-<nn><cc>`   two hex digits shard number (from 0), two hex digits shard count (2 to 128)
 * Safekeepers, the broker, archived WAL and tokens know tenants only.
 *
 * The main fork of a relation is cut into stripes of 2048 blocks (16 MiB), which are spread by a hash of relNode and stripe.
 * Tablespace and database are left out of the hash: a database copied file by file keeps its relNodes, so that each shard
 * can make its part of the copy from what it has. The other forks and everything that is no page of a relation belong to shard 0.
 */
import {type ForkNumber, type RelTag, fork} from '#postgres/relation.ts';

/** Blocks that lie together on a shard: 16 MiB. */
export const stripeBlocks = 2048;
export const shardCountMax = 128;

export interface ShardIdentity {
  readonly tenantId: string;
  /** From 0. */
  readonly number: number;
  readonly count: number;
  readonly stripeBlocks: number;
}

const form = /^([0-9a-f]{32})(?:-([0-9a-f]{2})([0-9a-f]{2}))?$/;

/** The only shard of a tenant of one. */
export function unsharded(tenantId: string): ShardIdentity {
  return {tenantId, number: 0, count: 1, stripeBlocks};
}

export function formatShardId({tenantId, number, count}: Omit<ShardIdentity, 'stripeBlocks'>): string {
  return count === 1 ? tenantId : `${tenantId}-${hex2(number)}${hex2(count)}`;
}

/** The identity in a shard id. Throws an Error that quotes the text when it is none. */
export function parseShardId(text: string): ShardIdentity {
  const match = form.exec(text);
  if (match === null)
    throw new Error(
      `${JSON.stringify(text.slice(0, 80))} is no shard id: expected 32 hex digits, or those with -<nn><cc>`,
    );
  if (match[2] === undefined) return unsharded(text);
  const number = parseInt(match[2], 16);
  const count = parseInt(match[3]!, 16);
  if (count < 2 || count > shardCountMax || number >= count)
    throw new Error(
      `${JSON.stringify(text)} is no shard id: shard ${number} of ${count}, where 2 to ${shardCountMax} may be`,
    );
  return {tenantId: match[1]!, number, count, stripeBlocks};
}

/** The tenant of a shard id. Throws as parseShardId. */
export function tenantOfShardId(text: string): string {
  return parseShardId(text).tenantId;
}

/** Every shard id of a tenant, in order. */
export function shardIdsOf(tenantId: string, count: number): string[] {
  return Array.from({length: count}, (_, number) => formatShardId({tenantId, number, count}));
}

/** Number of the shard that keeps a block. */
export function shardOfBlock(shards: {readonly count: number} | number, rel: RelTag, block: number): number {
  return shardOf(typeof shards === 'number' ? shards : shards.count, rel.relNode, rel.fork, block);
}

/** The same, for those who have no RelTag at hand. */
export function shardOf(count: number, relNode: number, forkNumber: ForkNumber, block: number): number {
  if (count === 1 || forkNumber !== fork.main) return 0;
  return combine(murmur32(relNode), murmur32((block / stripeBlocks) | 0)) % count;
}

/** The finisher of MurmurHash3: every bit of the input changes half the bits of the output. */
function murmur32(value: number): number {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function combine(a: number, b: number): number {
  return (a ^ (b + 0x9e3779b9 + (a << 6) + (a >>> 2))) >>> 0;
}

function hex2(n: number): string {
  return n.toString(16).padStart(2, '0');
}
