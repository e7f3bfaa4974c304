/**
 * Goes through the versions of one layer file in order of (key, LSN), past the block cache: what compaction reads once would
 * only drive out what reads need. Holds one index block, one raw data block, and at most `readAheadBytes` of stored blocks
 * (one block at least).
 */
import {assert} from '#runtime/assert.ts';
import {type Lsn, readLsn64} from '#postgres/lsn.ts';
import {keyBytes} from '#pageserver/timeline/key.ts';
import {type Value, readValue} from '#pageserver/timeline/value.ts';
import {blockType} from './layer-format.ts';
import {type IndexLayout, type LayerReader, layoutOf, rootBlock} from './layer-reader.ts';
import {rootEntryBytes} from './layer-writer.ts';

export class LayerCursor {
  readonly reader: LayerReader;
  readonly #from: Buffer;
  readonly #end: Buffer;
  readonly #readAheadBytes: number;
  #root: Buffer | undefined;
  /** Root entry of #index. */
  #entry = 0;
  #index: Buffer | undefined;
  #layout: IndexLayout | undefined;
  #keys = 0;
  #key = 0;
  #version = 0;
  #versionEnd = 0;
  /** Which of the index block's data blocks #data is. */
  #block = -1;
  #data: Buffer | undefined;
  /** Stored blocks read ahead: from this offset of the object on. */
  #stored: Buffer = Buffer.alloc(0);
  #storedAt = 0;

  /** Keys from `from` (in) to `end` (out), encoded. */
  constructor(reader: LayerReader, from: Buffer, end: Buffer, readAheadBytes: number) {
    this.reader = reader;
    this.#from = from;
    this.#end = end;
    this.#readAheadBytes = readAheadBytes;
  }

  /** Memory it holds, in bytes. */
  get heldBytes(): number {
    return (this.#root?.length ?? 0) + (this.#index?.length ?? 0) + (this.#data?.length ?? 0) + this.#stored.length;
  }

  /** Goes to the first version. False: there is none. */
  async start(): Promise<boolean> {
    const root = (this.#root = await this.reader.readRoot());
    const count = root.readUInt32LE(0);
    // The last index block whose first key is not above `from`; a key may begin in the block before one that it fills.
    let entry = 0;
    while (entry + 1 < count && root.compare(this.#from, 0, keyBytes, at(entry + 1), at(entry + 1) + keyBytes) < 0)
      entry++;
    this.#entry = entry;
    if (!(await this.#openIndex())) return false;
    while (this.#compareKey(this.#from) < 0) if (!(await this.#nextKey())) return false;
    return this.#compareKey(this.#end) < 0;
  }

  /** The key's bytes are keyBuffer[keyOffset … keyOffset + 18). */
  get keyBuffer(): Buffer {
    return this.#index!;
  }
  get keyOffset(): number {
    return 12 + this.#key * keyBytes;
  }
  get lsn(): Lsn {
    return readLsn64(this.#index!, this.#layout!.lsnsAt + this.#version * 8);
  }

  /** The version's value, when its block is in memory; else fetchValue(). */
  get value(): Value | undefined {
    const index = this.#index!;
    const layout = this.#layout!;
    const block = index.readUInt16LE(layout.blockNumbersAt + this.#version * 2);
    if (block !== this.#block && !this.#openStored(block)) return undefined;
    return readValue(this.#data!, index.readUInt32LE(layout.offsetsAt + this.#version * 4) >>> 1, this.lsn);
  }

  async fetchValue(): Promise<Value> {
    const index = this.#index!;
    const {blocks, blockNumbersAt, blocksAt} = this.#layout!;
    let block = index.readUInt16LE(blockNumbersAt + this.#version * 2);
    const start = readLsn64(index, blocksAt + block * 12) as number;
    let end = start;
    for (; block < blocks; block++) {
      const next = (readLsn64(index, blocksAt + block * 12) as number) + index.readUInt32LE(blocksAt + block * 12 + 8);
      if (end > start && next - start > this.#readAheadBytes) break;
      end = next;
    }
    this.#stored = await this.reader.readStored(start, end - start);
    this.#storedAt = start;
    const {value} = this;
    assert(value !== undefined, 'the block was read just now');
    return value;
  }

  /** Goes to the next version: true, or false at the end; a promise when a block has to be read. */
  next(): boolean | Promise<boolean> {
    if (++this.#version < this.#versionEnd) return true;
    const moved = this.#nextKey();
    return typeof moved === 'boolean'
      ? moved && this.#compareKey(this.#end) < 0
      : moved.then((there) => there && this.#compareKey(this.#end) < 0);
  }

  #nextKey(): boolean | Promise<boolean> {
    if (++this.#key < this.#keys) {
      this.#openKey();
      return true;
    }
    this.#entry++;
    return this.#openIndex();
  }

  async #openIndex(): Promise<boolean> {
    const root = this.#root!;
    if (this.#entry >= root.readUInt32LE(0)) return false;
    const {offset, storedBytes} = rootBlock(root, at(this.#entry));
    const stored = await this.reader.readStored(offset, storedBytes);
    this.#index = this.reader.decodeStored(offset, blockType.index, stored);
    this.#layout = layoutOf(this.#index);
    this.#keys = this.#index.readUInt32LE(0);
    this.#key = 0;
    this.#block = -1;
    this.#data = undefined;
    this.#openKey();
    return true;
  }

  #openKey(): void {
    const versions = this.#layout!.firstVersionAt + this.#key * 4;
    this.#version = this.#index!.readUInt32LE(versions);
    this.#versionEnd = this.#index!.readUInt32LE(versions + 4);
  }

  #openStored(block: number): boolean {
    const entry = this.#layout!.blocksAt + block * 12;
    const offset = readLsn64(this.#index!, entry) as number;
    const length = this.#index!.readUInt32LE(entry + 8);
    const from = offset - this.#storedAt;
    if (from < 0 || from + length > this.#stored.length) return false;
    this.#data = this.reader.decodeStored(offset, blockType.data, this.#stored.subarray(from, from + length));
    this.#block = block;
    return true;
  }

  #compareKey(key: Buffer): number {
    return this.#index!.compare(key, 0, keyBytes, this.keyOffset, this.keyOffset + keyBytes);
  }
}

function at(entry: number): number {
  return 4 + entry * rootEntryBytes;
}
