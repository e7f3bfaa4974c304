/**
 * A page patch: our own tiny record for page changes that PostgreSQL's WAL only implies, so that no redo function of
 * PostgreSQL describes them: transaction status (SLRU pages), cleared visibility-map bits, the tail of map pages after a
 * truncation. A patch is a value in storage like a WAL record; applied in place to the page as of the LSN before. A patch
 * never touches the page's LSN (PostgreSQL does not either).
 *
 * Encoding: operations one after the other, integers little-endian.
 *   u8 1 "set"  u16 offset, u16 length, bytes
 *   u8 2 "mask" u16 offset, u8 and, u8 or          byte = (byte & and) | or
 *   u8 3 "fill" u16 offset, u16 length, u8 value
 *   u8 4 "fsm"  u16 slot                            free-space map: forget leaf slots ≥ slot, recompute the inner nodes
 */
import {blockSize} from '#postgres/relation.ts';

/** A patch that is not well formed or leaves the page. */
export class PagePatchError extends Error {}

const opSet = 1;
const opMask = 2;
const opFill = 3;
const opFsmTruncate = 4;

export type PagePatchOperation =
  | {readonly kind: 'set'; readonly offset: number; readonly bytes: Buffer}
  | {readonly kind: 'mask'; readonly offset: number; readonly and: number; readonly or: number}
  | {readonly kind: 'fill'; readonly offset: number; readonly length: number; readonly value: number}
  | {readonly kind: 'fsm-truncate'; readonly slot: number};

/** Views of the builder's buffer are kept for patches up to this length: nearly all have 5 bytes. */
const viewsMax = 64;

/** Collects operations of one page; one builder is reused for all patches. */
export class PagePatchBuilder {
  #buffer = Buffer.allocUnsafe(512);
  #length = 0;
  /** By length. */
  #views: Buffer[] = [];

  get isEmpty(): boolean {
    return this.#length === 0;
  }

  set(offset: number, bytes: Uint8Array): void {
    const at = this.#reserve(5 + bytes.length);
    this.#header(at, opSet, offset);
    this.#buffer.writeUInt16LE(bytes.length, at + 3);
    this.#buffer.set(bytes, at + 5);
  }

  setUInt32(offset: number, value: number): void {
    const at = this.#reserve(9);
    this.#header(at, opSet, offset);
    this.#buffer.writeUInt16LE(4, at + 3);
    this.#buffer.writeUInt32LE(value, at + 5);
  }

  mask(offset: number, and: number, or: number): void {
    const at = this.#reserve(5);
    this.#header(at, opMask, offset);
    this.#buffer[at + 3] = and;
    this.#buffer[at + 4] = or;
  }

  fill(offset: number, length: number, value: number): void {
    if (length === 0) return;
    const at = this.#reserve(6);
    this.#header(at, opFill, offset);
    this.#buffer.writeUInt16LE(length, at + 3);
    this.#buffer[at + 5] = value;
  }

  fsmTruncate(slot: number): void {
    this.#header(this.#reserve(3), opFsmTruncate, slot);
  }

  /** The encoded patch, valid until the next operation; the builder is empty afterwards. */
  take(): Buffer {
    const length = this.#length;
    this.#length = 0;
    if (length > viewsMax) return this.#buffer.subarray(0, length);
    return (this.#views[length] ??= this.#buffer.subarray(0, length));
  }

  #reserve(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#length, this.#buffer.length * 2));
      this.#buffer.copy(larger, 0, 0, at);
      this.#buffer = larger;
      this.#views = [];
    }
    return at;
  }

  #header(at: number, op: number, offset: number): void {
    this.#buffer[at] = op;
    this.#buffer.writeUInt16LE(offset, at + 1);
  }
}

/** Applies an encoded patch in place. A page that has no older value is 8192 zeros. Throws PagePatchError; the page is then undefined. */
export function applyPagePatch(page: Buffer, patch: Buffer): void {
  let at = 0;
  while (at < patch.length) {
    const op = patch[at]!;
    need(patch, at, 3);
    const offset = patch[at + 1]! | (patch[at + 2]! << 8);
    if (op === opMask) {
      need(patch, at, 5);
      inPage(offset, 1);
      page[offset] = (page[offset]! & patch[at + 3]!) | patch[at + 4]!;
      at += 5;
    } else if (op === opSet) {
      need(patch, at, 5);
      const length = patch[at + 3]! | (patch[at + 4]! << 8);
      need(patch, at, 5 + length);
      inPage(offset, length);
      for (let i = 0; i < length; i++) page[offset + i] = patch[at + 5 + i]!;
      at += 5 + length;
    } else if (op === opFill) {
      need(patch, at, 6);
      const length = patch[at + 3]! | (patch[at + 4]! << 8);
      inPage(offset, length);
      page.fill(patch[at + 5]!, offset, offset + length);
      at += 6;
    } else if (op === opFsmTruncate) {
      truncateFsmPage(page, offset);
      at += 3;
    } else {
      throw new PagePatchError(`page patch: unknown operation ${op} at byte ${at} of ${patch.length}`);
    }
  }
}

/** The operations of a patch, for tools and tests. */
export function decodePagePatch(patch: Buffer): PagePatchOperation[] {
  const operations: PagePatchOperation[] = [];
  let at = 0;
  while (at < patch.length) {
    const op = patch[at]!;
    need(patch, at, 3);
    const offset = patch.readUInt16LE(at + 1);
    if (op === opMask) {
      need(patch, at, 5);
      operations.push({kind: 'mask', offset, and: patch[at + 3]!, or: patch[at + 4]!});
      at += 5;
    } else if (op === opSet) {
      need(patch, at, 5);
      const length = patch.readUInt16LE(at + 3);
      need(patch, at, 5 + length);
      operations.push({kind: 'set', offset, bytes: patch.subarray(at + 5, at + 5 + length)});
      at += 5 + length;
    } else if (op === opFill) {
      need(patch, at, 6);
      operations.push({kind: 'fill', offset, length: patch.readUInt16LE(at + 3), value: patch[at + 5]!});
      at += 6;
    } else if (op === opFsmTruncate) {
      operations.push({kind: 'fsm-truncate', slot: offset});
      at += 3;
    } else {
      throw new PagePatchError(`page patch: unknown operation ${op} at byte ${at} of ${patch.length}`);
    }
  }
  return operations;
}

function need(patch: Buffer, at: number, count: number): void {
  if (patch.length - at < count)
    throw new PagePatchError(`page patch of ${patch.length} bytes ends inside the operation at byte ${at}`);
}

function inPage(offset: number, length: number): void {
  if (offset + length > blockSize)
    throw new PagePatchError(`page patch writes ${length} bytes at ${offset}, beyond the page`);
}

// storage/fsm_internals.h: after the page header an int fp_next_slot, then a binary heap of one byte per node.
const fsmNodesOffset = 24 + 4;
const fsmNodes = blockSize - fsmNodesOffset;
const fsmInnerNodes = blockSize / 2 - 1;
/** Heap blocks that one free-space-map page covers (SlotsPerFSMPage). */
export const fsmSlotsPerPage = fsmNodes - fsmInnerNodes;

/** fsm_truncate_avail (storage/freespace/fsmpage.c): the leaves from `slot` on become 0, inner nodes the maximum of their children. */
function truncateFsmPage(page: Buffer, slot: number): void {
  if (slot >= fsmSlotsPerPage) return;
  page.fill(0, fsmNodesOffset + fsmInnerNodes + slot, blockSize);
  for (let node = fsmInnerNodes - 1; node >= 0; node--) {
    const left = 2 * node + 1;
    const right = left + 1;
    const leftValue = left < fsmNodes ? page[fsmNodesOffset + left]! : 0;
    const rightValue = right < fsmNodes ? page[fsmNodesOffset + right]! : 0;
    page[fsmNodesOffset + node] = leftValue > rightValue ? leftValue : rightValue;
  }
}
