/**
 * The bytes of a layer file; docs/formats/layer.md is the description with a worked example. Integers are little-endian
 * except inside keys.
 *
 *   header (96 bytes) | data blocks | index blocks | root block | footer (96 bytes)
 *
 * Every block is a frame: 16 bytes {u8 type, u8 codec, u16 0, u32 rawLength, u32 payloadLength, u32 crc} and its payload.
 * The CRC-32C runs over: object id, u64 offset of the frame in the object, u32 generation, the frame's first 12 bytes,
 * payload. A block that is flipped, cut, moved within its object or taken from another object does not verify.
 */
import {crc32c} from '#runtime/crc.ts';
import {lz4Compress, lz4Decompress, zstdCompress, zstdDecompress} from '#runtime/compress.ts';
import {type Lsn, readLsn64, writeLsn64} from '#postgres/lsn.ts';

export const layerFormatVersion = 2;
const layerFormatVersionMin = 1;
export const layerHeaderBytes = 96;
export const layerFooterBytes = 96;
export const frameHeaderBytes = 16;
/** A block larger than this is not one of ours. */
export const rawBytesMax = 1 << 30;

export const blockType = {data: 0x44, index: 0x49, root: 0x52} as const;
const codecNone = 0;
const codecZstd = 1;
/** Since version 2. */
const codecLz4 = 2;

/** Layer flags. */
export const layerFlagImage = 1;

const headerMagic = Buffer.from('PGDALYR1', 'latin1');
const footerMagic = Buffer.from('1RYLADGP', 'latin1');

/** Bytes that fail their checksum, or are not what the format allows. Names object, offset and reason. */
export class LayerCorruption extends Error {}

/** What ties a block to its object: see checksumSeed. */
export interface ObjectIdentity {
  /** `<tenant>/<timeline>/<layer name>`. */
  readonly id: string;
  readonly generation: number;
  /** CRC of the id, where every checksum of the object starts. */
  readonly seed: number;
}

export function objectIdentity(id: string, generation: number): ObjectIdentity {
  return {id, generation, seed: crc32c(Buffer.from(id, 'utf8'))};
}

const context = Buffer.alloc(12);

function checksum(identity: ObjectIdentity, offset: number, head: Buffer, payload: Buffer): number {
  writeLsn64(context, 0, offset as Lsn); // the same u64 form
  context.writeUInt32LE(identity.generation, 8);
  return crc32c(payload, crc32c(head, crc32c(context, identity.seed)));
}

/** The content of a block, packed. */
export interface PackedBlock {
  readonly type: number;
  readonly codec: number;
  readonly rawLength: number;
  readonly payload: Buffer;
}

/**
 * Data blocks are compressed with LZ4, which costs a quarter of zstd's time both ways; index blocks, read once and kept,
 * with zstd. Only when that saves an eighth: else the payload is `raw` itself.
 */
export function packBlock(type: number, raw: Buffer): PackedBlock {
  const codec = type === blockType.data ? codecLz4 : codecZstd;
  const packed = raw.length < 64 ? raw : codec === codecLz4 ? lz4Compress(raw) : zstdCompress(raw);
  const useful = packed.length < raw.length - (raw.length >>> 3);
  return {type, codec: useful ? codec : codecNone, rawLength: raw.length, payload: useful ? packed : raw};
}

/** The frame of a block that will lie at `offset`. */
export function encodeFrame(identity: ObjectIdentity, offset: number, block: PackedBlock): Buffer[] {
  const {type, codec, rawLength, payload} = block;
  const head = Buffer.alloc(frameHeaderBytes);
  head[0] = type;
  head[1] = codec;
  head.writeUInt32LE(rawLength, 4);
  head.writeUInt32LE(payload.length, 8);
  head.writeUInt32LE(checksum(identity, offset, head.subarray(0, 12), payload), 12);
  return [head, payload];
}

/** A block as it lies in its object: checked, unpacked only when somebody looks into it. */
export class StoredBlock {
  readonly #identity: ObjectIdentity;
  readonly #offset: number;
  readonly #frame: Buffer;
  #raw: Buffer | undefined;

  /** `frame` was read from `offset`. Throws LayerCorruption. */
  constructor(identity: ObjectIdentity, offset: number, type: number, frame: Buffer) {
    checkFrame(identity, offset, type, frame);
    this.#identity = identity;
    this.#offset = offset;
    this.#frame = frame;
  }

  get rawLength(): number {
    return this.#frame.readUInt32LE(4);
  }

  /** The LZ4 block that it is, or undefined. */
  get lz4(): Buffer | undefined {
    return this.#frame[1] === codecLz4 ? this.#frame.subarray(frameHeaderBytes + 4) : undefined;
  }

  /** Throws LayerCorruption. */
  get raw(): Buffer {
    return (this.#raw ??= unpackFrame(this.#identity, this.#offset, this.#frame));
  }
}

/** The raw content of the frame `stored`, which was read from `offset`. Throws LayerCorruption. */
export function decodeFrame(identity: ObjectIdentity, offset: number, type: number, stored: Buffer): Buffer {
  checkFrame(identity, offset, type, stored);
  return unpackFrame(identity, offset, stored);
}

function checkFrame(identity: ObjectIdentity, offset: number, type: number, stored: Buffer): void {
  if (stored.length < frameHeaderBytes) throw corrupt(identity, offset, `block of ${stored.length} bytes`);
  const payloadLength = stored.readUInt32LE(8);
  const rawLength = stored.readUInt32LE(4);
  if (payloadLength !== stored.length - frameHeaderBytes)
    throw corrupt(identity, offset, `block says ${payloadLength} bytes, its index ${stored.length - frameHeaderBytes}`);
  const payload = stored.subarray(frameHeaderBytes);
  const sum = checksum(identity, offset, stored.subarray(0, 12), payload);
  if (sum !== stored.readUInt32LE(12)) throw corrupt(identity, offset, 'the checksum of the block is wrong');
  if (stored[0] !== type) throw corrupt(identity, offset, `block of type ${stored[0]}, expected ${type}`);
  if (rawLength > rawBytesMax) throw corrupt(identity, offset, `block of ${rawLength} raw bytes`);
  const codec = stored[1]!;
  if (codec !== codecNone && codec !== codecZstd && codec !== codecLz4)
    throw corrupt(identity, offset, `unknown codec ${codec}`);
  if (codec === codecLz4 && (payloadLength < 4 || payload.readUInt32LE(0) !== rawLength))
    throw corrupt(identity, offset, `the block does not decompress: an lz4 block of other than ${rawLength} bytes`);
}

/** Of a frame that checkFrame() has seen. */
function unpackFrame(identity: ObjectIdentity, offset: number, stored: Buffer): Buffer {
  const payload = stored.subarray(frameHeaderBytes);
  const rawLength = stored.readUInt32LE(4);
  if (stored[1] === codecNone) return payload;
  let raw: Buffer;
  try {
    raw = stored[1] === codecLz4 ? lz4Decompress(payload, rawLength) : zstdDecompress(payload, rawLength);
  } catch (error) {
    throw corrupt(identity, offset, `the block does not decompress: ${(error as Error).message}`);
  }
  if (raw.length !== rawLength) throw corrupt(identity, offset, `${raw.length} raw bytes, expected ${rawLength}`);
  return raw;
}

export function corrupt(identity: ObjectIdentity, offset: number, reason: string): LayerCorruption {
  return new LayerCorruption(
    `layer ${identity.id} is damaged at byte ${offset}: ${reason}; restore the object from another copy`,
  );
}

export interface LayerHeader {
  readonly tenantId: string;
  readonly timelineId: string;
  readonly flags: number;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
}

export function encodeHeader(identity: ObjectIdentity, header: LayerHeader): Buffer {
  const b = Buffer.alloc(layerHeaderBytes);
  headerMagic.copy(b, 0);
  b.writeUInt16LE(layerFormatVersion, 8);
  b.writeUInt16LE(header.flags, 10);
  b.writeUInt32LE(identity.generation, 12);
  Buffer.from(header.tenantId, 'hex').copy(b, 16);
  Buffer.from(header.timelineId, 'hex').copy(b, 32);
  writeLsn64(b, 48, header.startLsn);
  writeLsn64(b, 56, header.endLsn);
  b.writeUInt32LE(checksum(identity, 0, b.subarray(0, 92), Buffer.alloc(0)), 92);
  return b;
}

/** Throws LayerCorruption when the header is damaged or belongs to another object. */
export function checkHeader(identity: ObjectIdentity, b: Buffer): void {
  if (!b.subarray(0, 8).equals(headerMagic)) throw corrupt(identity, 0, 'the header has no magic');
  if (checksum(identity, 0, b.subarray(0, 92), Buffer.alloc(0)) !== b.readUInt32LE(92))
    throw corrupt(identity, 0, 'the checksum of the header is wrong');
  checkVersion(identity, 0, b.readUInt16LE(8));
}

export interface LayerFooter {
  readonly flags: number;
  readonly rootOffset: number;
  readonly rootStoredBytes: number;
  readonly dataBlocks: number;
  readonly indexBlocks: number;
  readonly keys: number;
  readonly versions: number;
}

export function encodeFooter(identity: ObjectIdentity, offset: number, footer: LayerFooter): Buffer {
  const b = Buffer.alloc(layerFooterBytes);
  writeLsn64(b, 0, footer.rootOffset as Lsn);
  b.writeUInt32LE(footer.rootStoredBytes, 8);
  b.writeUInt32LE(footer.dataBlocks, 12);
  b.writeUInt32LE(footer.indexBlocks, 16);
  writeLsn64(b, 24, footer.keys as Lsn);
  writeLsn64(b, 32, footer.versions as Lsn);
  b.writeUInt16LE(layerFormatVersion, 80);
  b.writeUInt16LE(footer.flags, 82);
  b.writeUInt32LE(checksum(identity, offset, b.subarray(0, 84), Buffer.alloc(0)), 84);
  footerMagic.copy(b, 88);
  return b;
}

export function decodeFooter(identity: ObjectIdentity, offset: number, b: Buffer): LayerFooter {
  if (b.length !== layerFooterBytes || !b.subarray(88).equals(footerMagic))
    throw corrupt(identity, offset, 'the object does not end in a footer');
  if (checksum(identity, offset, b.subarray(0, 84), Buffer.alloc(0)) !== b.readUInt32LE(84))
    throw corrupt(identity, offset, 'the checksum of the footer is wrong');
  checkVersion(identity, offset, b.readUInt16LE(80));
  return {
    flags: b.readUInt16LE(82),
    rootOffset: readLsn64(b, 0),
    rootStoredBytes: b.readUInt32LE(8),
    dataBlocks: b.readUInt32LE(12),
    indexBlocks: b.readUInt32LE(16),
    keys: readLsn64(b, 24),
    versions: readLsn64(b, 32),
  };
}

function checkVersion(identity: ObjectIdentity, offset: number, version: number): void {
  if (version < layerFormatVersionMin || version > layerFormatVersion)
    throw corrupt(
      identity,
      offset,
      `format version ${version}; this program reads ${layerFormatVersionMin} to ${layerFormatVersion}`,
    );
}
