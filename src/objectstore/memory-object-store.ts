import {
  type ListedObject,
  type ObjectHead,
  type ObjectStore,
  ObjectStoreError,
  type PutOptions,
  type RangeOptions,
  checkObjectKey,
} from './object-store.ts';

/** Objects in memory, for tests and the simulator. `objects` may be looked at and damaged by tests. */
export class MemoryObjectStore implements ObjectStore {
  readonly objects = new Map<string, Buffer>();

  async put(key: string, bytes: Buffer, options: PutOptions = {}): Promise<void> {
    checkObjectKey(key);
    if (options.ifNoneMatch === '*' && this.objects.has(key))
      throw new ObjectStoreError('exists', key, 'is already there');
    this.objects.set(key, Buffer.from(bytes));
  }

  async get(key: string): Promise<Buffer> {
    return Buffer.from(this.#object(key));
  }

  async getRange(key: string, start: number, length: number, {into}: RangeOptions = {}): Promise<Buffer> {
    const bytes = this.#object(key).subarray(start, start + length);
    if (bytes.length !== length)
      throw new ObjectStoreError('bad-range', key, `bytes ${start}+${length} asked, ${bytes.length} are there`);
    if (into === undefined) return Buffer.from(bytes);
    bytes.copy(into);
    return into.subarray(0, length);
  }

  async head(key: string): Promise<ObjectHead | undefined> {
    const bytes = this.objects.get(key);
    return bytes && {size: bytes.length, modifiedMs: 0};
  }

  async list(prefix: string): Promise<ListedObject[]> {
    const found: ListedObject[] = [];
    for (const [key, bytes] of this.objects)
      if (key.startsWith(prefix)) found.push({key, size: bytes.length, modifiedMs: 0});
    return found.sort((x, y) => (x.key < y.key ? -1 : 1));
  }

  async delete(keys: readonly string[]): Promise<void> {
    for (const key of keys) this.objects.delete(key);
  }

  #object(key: string): Buffer {
    const bytes = this.objects.get(key);
    if (bytes === undefined) throw new ObjectStoreError('not-found', key, 'does not exist');
    return bytes;
  }
}
