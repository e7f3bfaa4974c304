/**
 * Parts of objects on local disk, in front of a store that is far away. For range reads whose caller says how long the object
 * is; everything else passes through.
 *
 *   object → chunks of 64 KiB → slots of one file; which slot holds what is known in memory only
 *
 * So the cache starts empty with its process: nothing on disk has to be believed, and nothing survives that a crash could have
 * torn. A chunk read back is checked against the CRC-32C (over object, position and bytes) kept in memory; one that differs is
 * dropped and fetched again. A disk that fails costs speed, never an answer.
 *
 * - Budget: the file never grows beyond `bytesMax`.
 * - Fairness: chunks have an owner (the tenant in the object's name). When the file is full, the owner that holds most gives up
 *   its least recently used chunks; one that holds less than the mean never loses a chunk to another.
 * - One flight: callers that miss a chunk while it is being fetched wait for that fetch.
 * - Ranges above `admittedBytesMax` are served from the chunks that are there, but not kept: scans and merges read once.
 */
import {crc32c} from '#runtime/crc.ts';
import type {Disk, DiskFile} from '#runtime/disk.ts';
import {joinPath} from '#runtime/disk.ts';
import type {Log} from '#runtime/log.ts';
import type {ListedObject, ObjectHead, ObjectStore, PutOptions, RangeOptions} from './object-store.ts';

export const chunkBytes = 64 * 1024;
const admittedBytesMax = 1024 * 1024;
/** Chunks that lie next to each other are fetched in one request up to this. */
const requestChunksMax = 64;
const fileName = 'blocks';

interface Slot {
  readonly owner: Owner;
  readonly id: string;
  readonly number: number;
  readonly length: number;
  readonly checksum: number;
}

interface Owner {
  readonly name: string;
  /** Least recently used first. */
  readonly slots: Map<string, Slot>;
}

export interface CacheCounts {
  hits: number;
  misses: number;
  /** Chunks that were not as they had been written. */
  damaged: number;
  evictions: number;
}

export class CachingObjectStore implements ObjectStore {
  readonly counts: CacheCounts = {hits: 0, misses: 0, damaged: 0, evictions: 0};
  readonly #inner: ObjectStore;
  readonly #log: Log;
  readonly #slotsMax: number;
  readonly #file: DiskFile;
  readonly #owners = new Map<string, Owner>();
  readonly #free: number[] = [];
  readonly #flights = new Map<string, Promise<Buffer>>();
  #slotsUsed = 0;
  #slotsMade = 0;
  #failing = false;

  /** Empties `directory`. */
  constructor(inner: ObjectStore, options: {disk: Disk; directory: string; bytesMax: number; log: Log}) {
    this.#inner = inner;
    this.#log = options.log;
    this.#slotsMax = Math.max(1, Math.floor(options.bytesMax / chunkBytes));
    options.disk.makeDirectory(options.directory);
    this.#file = options.disk.open(joinPath(options.directory, fileName), 'truncate');
  }

  /** Bytes of disk in use. */
  get bytes(): number {
    return this.#slotsUsed * chunkBytes;
  }

  /** Bytes by owner. */
  owners(): {name: string; bytes: number}[] {
    return [...this.#owners.values()].map(({name, slots}) => ({name, bytes: slots.size * chunkBytes}));
  }

  close(): void {
    this.#file.close();
  }

  put(key: string, bytes: Buffer, options?: PutOptions): Promise<void> {
    return this.#inner.put(key, bytes, options);
  }
  get(key: string): Promise<Buffer> {
    return this.#inner.get(key);
  }
  head(key: string): Promise<ObjectHead | undefined> {
    return this.#inner.head(key);
  }
  list(prefix: string): Promise<ListedObject[]> {
    return this.#inner.list(prefix);
  }
  async delete(keys: readonly string[]): Promise<void> {
    await this.#inner.delete(keys);
    this.#forget(new Set(keys));
  }

  async getRange(key: string, start: number, length: number, options: RangeOptions = {}): Promise<Buffer> {
    const {objectBytes} = options;
    if (objectBytes === undefined || length === 0 || start + length > objectBytes)
      return this.#inner.getRange(key, start, length, options);
    if (options.fresh === true) this.#forgetRange(key, start, length);
    const owner = this.#owner(key);
    const first = Math.floor(start / chunkBytes);
    const last = Math.floor((start + length - 1) / chunkBytes);
    const chunks = new Array<Buffer | Promise<Buffer> | undefined>(last - first + 1);
    let missing = 0;
    for (let c = first; c <= last; c++) {
      const found = this.#flights.get(`${key}:${c}`) ?? this.#read(owner, key, c);
      chunks[c - first] = found;
      if (found === undefined) missing++;
    }
    if (missing > 0) {
      this.counts.misses += missing;
      if (length > admittedBytesMax) return this.#inner.getRange(key, start, length, options);
      for (let c = first; c <= last; c++) {
        if (chunks[c - first] !== undefined) continue;
        let end = c + 1;
        while (end <= last && chunks[end - first] === undefined && end - c < requestChunksMax) end++;
        const flights = this.#fetch(owner, key, c, end, objectBytes);
        for (let i = c; i < end; i++) chunks[i - first] = flights[i - c]!;
      }
    }
    this.counts.hits += chunks.length - missing;
    const parts: Buffer[] = [];
    for (const chunk of chunks) parts.push(await chunk!);
    if (parts.length === 1) return parts[0]!.subarray(start - first * chunkBytes, start - first * chunkBytes + length);
    const out = Buffer.allocUnsafe(length);
    let done = 0;
    for (let i = 0; i < parts.length; i++) {
      const from = i === 0 ? start - first * chunkBytes : 0;
      done += parts[i]!.copy(out, done, from, Math.min(parts[i]!.length, from + length - done));
    }
    return out;
  }

  /** One request for chunks [from, end), and what each of them becomes. */
  #fetch(owner: Owner, key: string, from: number, end: number, objectBytes: number): Promise<Buffer>[] {
    const start = from * chunkBytes;
    const bytes = this.#inner.getRange(key, start, Math.min(end * chunkBytes, objectBytes) - start, {objectBytes});
    const flights: Promise<Buffer>[] = [];
    for (let c = from; c < end; c++) {
      const id = `${key}:${c}`;
      const flight = bytes.then(
        (all) => {
          const chunk = all.subarray((c - from) * chunkBytes, (c - from + 1) * chunkBytes);
          this.#flights.delete(id);
          this.#write(owner, id, chunk);
          return chunk;
        },
        (error: unknown) => {
          this.#flights.delete(id);
          throw error;
        },
      );
      // Who asked hears of a failure; the others of the same request may not be waited for yet.
      flight.catch(() => {});
      this.#flights.set(id, flight);
      flights.push(flight);
    }
    return flights;
  }

  #read(owner: Owner, key: string, chunk: number): Buffer | undefined {
    const id = `${key}:${chunk}`;
    const slot = owner.slots.get(id);
    if (slot === undefined) return undefined;
    const bytes = Buffer.allocUnsafe(slot.length);
    let reason = 'differs from what was written';
    try {
      if (this.#file.read(bytes, slot.number * chunkBytes) === slot.length && checksum(id, bytes) === slot.checksum) {
        owner.slots.delete(id);
        owner.slots.set(id, slot);
        return bytes;
      }
    } catch (error) {
      reason = (error as Error).message;
    }
    this.counts.damaged++;
    this.#log.error('a chunk of the local cache is damaged; it is fetched again from the object store', {
      object: key,
      offset: chunk * chunkBytes,
      reason,
    });
    this.#drop(slot);
    return undefined;
  }

  #write(owner: Owner, id: string, bytes: Buffer): void {
    if (owner.slots.has(id)) return;
    const number = this.#takeSlot();
    try {
      this.#file.write(bytes, number * chunkBytes);
      this.#failing = false;
    } catch (error) {
      this.#free.push(number);
      if (!this.#failing)
        this.#log.warn('the local cache cannot be written; going on without it', {reason: (error as Error).message});
      this.#failing = true;
      return;
    }
    if (!this.#owners.has(owner.name)) this.#owners.set(owner.name, owner);
    owner.slots.set(id, {owner, id, number, length: bytes.length, checksum: checksum(id, bytes)});
    this.#slotsUsed++;
  }

  #takeSlot(): number {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#slotsMade < this.#slotsMax) return this.#slotsMade++;
    this.#evict();
    return this.#free.pop()!;
  }

  /** Makes room for a hundredth of the budget: the owners that hold most are brought down to one level. */
  #evict(): void {
    let wanted = Math.max(1, Math.floor(this.#slotsMax / 100));
    const owners = [...this.#owners.values()].sort((x, y) => y.slots.size - x.slots.size);
    for (let many = 1; wanted > 0 && owners.length > 0; many++) {
      // The `many` largest shrink to the size of the next one, each in turn.
      const level = owners[many]?.slots.size ?? 0;
      for (let progress = true; wanted > 0 && progress;) {
        progress = false;
        for (let i = 0; i < Math.min(many, owners.length) && wanted > 0; i++) {
          if (owners[i]!.slots.size <= level) continue;
          const [oldest] = owners[i]!.slots.values();
          if (oldest === undefined) continue;
          this.#drop(oldest);
          this.counts.evictions++;
          wanted--;
          progress = true;
        }
      }
      if (many > owners.length) break;
    }
  }

  #drop(slot: Slot): void {
    const {owner} = slot;
    owner.slots.delete(slot.id);
    if (owner.slots.size === 0) this.#owners.delete(owner.name);
    this.#free.push(slot.number);
    this.#slotsUsed--;
  }

  #forget(keys: ReadonlySet<string>): void {
    for (const name of new Set([...keys].map(ownerName)))
      for (const slot of this.#owners.get(name)?.slots.values() ?? [])
        if (keys.has(slot.id.slice(0, slot.id.lastIndexOf(':')))) this.#drop(slot);
  }

  #forgetRange(key: string, start: number, length: number): void {
    const owner = this.#owners.get(ownerName(key));
    for (let c = Math.floor(start / chunkBytes); c * chunkBytes < start + length; c++) {
      const slot = owner?.slots.get(`${key}:${c}`);
      if (slot !== undefined) this.#drop(slot);
    }
  }

  #owner(key: string): Owner {
    const name = ownerName(key);
    return this.#owners.get(name) ?? {name, slots: new Map()};
  }
}

/** `tenants/<tenant>/…` and `wal/<tenant>/…`. */
function ownerName(key: string): string {
  return key.split('/', 2)[1] ?? '';
}

function checksum(id: string, bytes: Buffer): number {
  return crc32c(bytes, crc32c(Buffer.from(id, 'latin1')));
}
