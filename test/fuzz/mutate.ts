/** Mutations that know the structure of WAL records and pages, so that they reach beyond the first check. */
import type {BlockRef, WalRecord} from '#postgres/wal/record.ts';
import {rmgr} from '#postgres/wal/rmgr.ts';
import type {SeededRandom} from '#runtime/random.ts';
import type {Corpus, Sample} from './corpus.ts';

/** A record taken apart: all lengths are computed anew when it is put together, unless a mutation lies about them. */
export interface RecordParts {
  info: number;
  rmid: number;
  xid: number;
  blocks: BlockParts[];
  mainData: Buffer;
}

export interface BlockParts {
  id: number;
  fork: number;
  willInit: boolean;
  image: {bytes: Buffer; holeOffset: number; holeLength: number; info: number} | undefined;
  data: Buffer;
  spcNode: number;
  dbNode: number;
  relNode: number;
  blockNumber: number;
}

export function takeApart(record: WalRecord): RecordParts {
  const blocks: BlockParts[] = [];
  for (let id = 0; id <= record.maxBlockId; id++) {
    const b: BlockRef | undefined = record.block(id);
    if (b === undefined) continue;
    blocks.push({
      id,
      fork: b.fork,
      willInit: b.willInit,
      image: b.hasImage
        ? {
            bytes: Buffer.from(record.bytes.subarray(b.imageOffset, b.imageOffset + b.imageLength)),
            holeOffset: b.holeOffset,
            holeLength: b.holeLength,
            info: b.imageInfo,
          }
        : undefined,
      data: Buffer.from(record.blockData(b)),
      spcNode: b.spcNode,
      dbNode: b.dbNode,
      relNode: b.relNode,
      blockNumber: b.blockNumber,
    });
  }
  return {info: record.info, rmid: record.rmid, xid: record.xid, blocks, mainData: Buffer.from(record.mainData())};
}

/** The record's bytes (checksum zero: redo does not look at it). */
export function putTogether(parts: RecordParts): Buffer {
  const headers: Buffer[] = [];
  const payload: Buffer[] = [];
  for (const b of parts.blocks) {
    const header = Buffer.alloc(4 + 5 + 2 + 12 + 4);
    let at = 4;
    header[0] = b.id;
    header[1] = b.fork | (b.image === undefined ? 0 : 0x10) | (b.data.length > 0 ? 0x20 : 0) | (b.willInit ? 0x40 : 0);
    header.writeUInt16LE(b.data.length & 0xffff, 2);
    if (b.image !== undefined) {
      header.writeUInt16LE(b.image.bytes.length & 0xffff, 4);
      header.writeUInt16LE(b.image.holeOffset & 0xffff, 6);
      header[8] = b.image.info;
      at = 9;
      if ((b.image.info & 0x1c) !== 0 && (b.image.info & 0x01) !== 0) {
        header.writeUInt16LE(b.image.holeLength & 0xffff, 9);
        at = 11;
      }
      payload.push(b.image.bytes);
    }
    header.writeUInt32LE(b.spcNode, at);
    header.writeUInt32LE(b.dbNode, at + 4);
    header.writeUInt32LE(b.relNode, at + 8);
    header.writeUInt32LE(b.blockNumber, at + 12);
    headers.push(header.subarray(0, at + 16));
    payload.push(b.data);
  }
  if (parts.mainData.length > 0) {
    const long = parts.mainData.length > 255;
    const header = Buffer.alloc(long ? 5 : 2);
    header[0] = long ? 254 : 255;
    if (long) header.writeUInt32LE(parts.mainData.length, 1);
    else header[1] = parts.mainData.length;
    headers.push(header);
    payload.push(parts.mainData);
  }
  const bytes = Buffer.concat([Buffer.alloc(24), ...headers, ...payload]);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(parts.xid, 4);
  bytes[16] = parts.info;
  bytes[17] = parts.rmid;
  return bytes;
}

const pick = <T>(random: SeededRandom, from: readonly T[]): T => from[random.uint32() % from.length]!;
const chance = (random: SeededRandom, percent: number): boolean => random.uint32() % 100 < percent;

/** Sizes of headers and pages, limits of tuple and offset numbers, and their neighbours. */
const interesting16 = [
  0, 1, 2, 3, 4, 7, 8, 16, 23, 24, 25, 28, 32, 40, 64, 127, 128, 255, 256, 290, 291, 292, 407, 408, 680, 1023, 2046,
  2047, 2048, 4095, 4096, 8152, 8160, 8168, 8176, 8183, 8184, 8188, 8191, 8192, 8193, 16384, 0x7fff, 0x8000, 0xfff8,
  0xfffe, 0xffff,
];
const interesting32 = [0, 1, 2, 3, 255, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffff8, 0xfffffffe, 0xffffffff];
const rmids = Object.values(rmgr);

/** Changes one to three places of `bytes`, in place. */
export function mutateBytes(random: SeededRandom, bytes: Buffer, from = 0, to = bytes.length): void {
  if (to <= from) return;
  for (let n = 1 + (random.uint32() % 3); n > 0; n--) {
    const at = from + (random.uint32() % (to - from));
    const even = at & ~1;
    switch (random.uint32() % 6) {
      case 0:
        bytes[at] = bytes[at]! ^ (1 << (random.uint32() % 8));
        break;
      case 1:
        bytes[at] = random.uint32();
        break;
      case 2:
        if (even + 2 <= to) bytes.writeUInt16LE(pick(random, interesting16), even);
        break;
      case 3:
        if (at + 4 <= to) bytes.writeUInt32LE(pick(random, interesting32), at);
        break;
      case 4:
        if (even + 2 <= to)
          bytes.writeUInt16LE((bytes.readUInt16LE(even) + pick(random, [-8, -1, 1, 8])) & 0xffff, even);
        break;
      default:
        bytes.fill(pick(random, [0, 0xff, random.uint32() & 0xff]), at, Math.min(to, at + (random.uint32() % 16)));
    }
  }
}

/** Another length or content for a piece of a record. */
function mutatePiece(random: SeededRandom, piece: Buffer, lengthMax: number): Buffer {
  switch (random.uint32() % 6) {
    case 0:
      return piece.subarray(0, random.uint32() % (piece.length + 1));
    case 1:
      return Buffer.concat([piece, random.bytes(1 + (random.uint32() % 32))]).subarray(0, lengthMax);
    case 2: {
      // a stretch twice, or left out
      const start = random.uint32() % (piece.length + 1);
      const end = start + (random.uint32() % (piece.length - start + 1));
      return (
        chance(random, 50)
          ? Buffer.concat([piece.subarray(0, end), piece.subarray(start)])
          : Buffer.concat([piece.subarray(0, start), piece.subarray(end)])
      ).subarray(0, lengthMax);
    }
    default:
      if (piece.length > 0) mutateBytes(random, piece);
      return piece;
  }
}

/** One mutation of a record, in place. */
export function mutateRecord(random: SeededRandom, parts: RecordParts, blockId: number, other: RecordParts): void {
  const block = parts.blocks.find((b) => b.id === blockId) ?? parts.blocks[0];
  const otherBlock = other.blocks[0];
  switch (random.uint32() % 16) {
    case 0:
    case 1:
    case 2:
    case 3:
      parts.mainData = mutatePiece(random, parts.mainData, 100_000);
      return;
    case 4:
    case 5:
    case 6:
    case 7:
      if (block !== undefined) block.data = mutatePiece(random, block.data, 0xffff);
      return;
    case 8:
      parts.info = (parts.info & 0x0f) | ((random.uint32() % 16) << 4);
      return;
    case 9:
      if (chance(random, 30)) parts.rmid = chance(random, 90) ? pick(random, rmids) : random.uint32() & 0xff;
      else parts.mainData = Buffer.from(other.mainData);
      return;
    case 10:
      if (block !== undefined && otherBlock !== undefined) block.data = Buffer.from(otherBlock.data);
      return;
    case 11:
      if (block !== undefined) block.willInit = !block.willInit;
      return;
    case 12:
      if (parts.blocks.length > 1 && chance(random, 50)) parts.blocks.splice(random.uint32() % parts.blocks.length, 1);
      else if (otherBlock !== undefined && parts.blocks.length < 4)
        parts.blocks.push({...otherBlock, id: parts.blocks.length === 0 ? 0 : parts.blocks.at(-1)!.id + 1});
      return;
    case 13:
      if (block !== undefined) {
        block.fork = random.uint32() % 4;
        block.blockNumber = pick(random, interesting32);
      }
      return;
    case 14:
      parts.xid = pick(random, interesting32);
      return;
    default:
      mutateImage(random, block, otherBlock);
  }
}

function mutateImage(random: SeededRandom, block: BlockParts | undefined, other: BlockParts | undefined): void {
  if (block === undefined) return;
  const image = block.image;
  if (image === undefined) {
    if (other?.image !== undefined) block.image = {...other.image, bytes: Buffer.from(other.image.bytes)};
    else
      block.image = {
        bytes: random.bytes(1 + (random.uint32() % 300)),
        holeOffset: pick(random, interesting16) % 8192,
        holeLength: pick(random, interesting16) % 8192,
        info: random.uint32() & 0x1f,
      };
    return;
  }
  switch (random.uint32() % 5) {
    case 0:
      image.holeOffset = pick(random, interesting16);
      return;
    case 1:
      image.holeLength = pick(random, interesting16);
      return;
    case 2:
      image.info = random.uint32() & 0x1f;
      return;
    case 3:
      image.bytes = mutatePiece(random, image.bytes, 8192);
      return;
    default:
      if (image.bytes.length > 0) mutateBytes(random, image.bytes);
  }
}

/** One mutation of a page, in place. */
export function mutatePage(random: SeededRandom, page: Buffer, corpus: Corpus, sample: Sample): void {
  const lower = page.readUInt16LE(12);
  const special = page.readUInt16LE(16);
  switch (random.uint32() % 10) {
    case 0: // pd_lower, pd_upper, pd_special, pd_pagesize_version
      page.writeUInt16LE(pick(random, interesting16), 12 + 2 * (random.uint32() % 4));
      return;
    case 1: // pd_flags, pd_checksum
      page.writeUInt16LE(pick(random, interesting16), 8 + 2 * (random.uint32() % 2));
      return;
    case 2:
    case 3: {
      // a line pointer: offset, flags and length
      if (lower < 28 || lower > 8192) return;
      const at = 24 + 4 * (random.uint32() % ((lower - 24) >>> 2));
      const offset = chance(random, 50) ? pick(random, interesting16) : random.uint32();
      const length = chance(random, 50) ? pick(random, interesting16) : random.uint32();
      const old = page.readUInt32LE(at);
      const kinds = [
        (old & ~0x7fff) | (offset & 0x7fff),
        (old & 0x1ffff) | ((length & 0x7fff) << 17),
        (old & ~0x18000) | ((random.uint32() & 3) << 15),
        random.uint32(),
        0,
      ];
      page.writeUInt32LE(pick(random, kinds) >>> 0, at);
      return;
    }
    case 4:
      mutateBytes(random, page, lower >= 24 && lower < 8000 ? lower : 24, 8192); // tuples
      return;
    case 5:
      mutateBytes(random, page, special >= 24 && special < 8192 ? special : 8176, 8192); // special area
      return;
    case 6:
      mutateBytes(random, page, 0, 8192);
      return;
    case 7: // a page that this record type has seen elsewhere
      pick(random, corpus.byName.get(sample.name)!).before.copy(page);
      return;
    case 8: // any page
      pick(random, corpus.samples).before.copy(page);
      return;
    default:
      switch (random.uint32() % 3) {
        case 0:
          page.fill(0);
          return;
        case 1:
          random.bytes(8192).copy(page);
          return;
        default:
          mutateBytes(random, page, 24, 300); // meta pages keep their content here
      }
  }
}
