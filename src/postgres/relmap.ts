/**
 * pg_filenode.map (RelMapFile in utils/cache/relmapper.c): file nodes of the relations that cannot have one in pg_class.
 * PostgreSQL 15: 512 bytes; magic, count, 62 entries of (oid, file node), checksum, padding.
 */
import {crc32c} from '#runtime/crc.ts';

export const relationMapSize = 512;
const relationMapMagic = 0x592717;
const entriesMax = 62;
const crcOffset = 504;

/** A relation map that Postgres would refuse. */
export class RelationMapError extends Error {}

/** The map as oid → file node. Throws RelationMapError with the reason. */
export function parseRelationMap(bytes: Buffer): Map<number, number> {
  if (bytes.length !== relationMapSize)
    throw new RelationMapError(`relation map of ${bytes.length} bytes, expected ${relationMapSize}`);
  const magic = bytes.readUInt32LE(0);
  if (magic !== relationMapMagic)
    throw new RelationMapError(
      `relation map with magic ${magic.toString(16)}, expected ${relationMapMagic.toString(16)}`,
    );
  const count = bytes.readUInt32LE(4);
  if (count > entriesMax) throw new RelationMapError(`relation map of ${count} entries, at most ${entriesMax} fit`);
  if (crc32c(bytes.subarray(0, crcOffset)) !== bytes.readUInt32LE(crcOffset))
    throw new RelationMapError('relation map with a wrong checksum');
  const map = new Map<number, number>();
  for (let i = 0; i < count; i++) map.set(bytes.readUInt32LE(8 + i * 8), bytes.readUInt32LE(12 + i * 8));
  return map;
}
