import {
  type ListedObject,
  type ObjectHead,
  type ObjectStore,
  ObjectStoreError,
  type PutOptions,
  type RangeOptions,
} from './object-store.ts';

export type Operation = 'put' | 'get' | 'getRange' | 'head' | 'list' | 'delete';
/** `before`: nothing was done. `after`: done, but the answer is lost. */
export type Failure = 'before' | 'after' | undefined;

/** A store that fails on command, for tests: `decide` is asked before every operation. */
export class FailingObjectStore implements ObjectStore {
  decide: (operation: Operation, key: string) => Failure;
  readonly #inner: ObjectStore;

  constructor(inner: ObjectStore, decide: (operation: Operation, key: string) => Failure = () => undefined) {
    this.#inner = inner;
    this.decide = decide;
  }

  put(key: string, bytes: Buffer, options: PutOptions = {}): Promise<void> {
    return this.#run('put', key, () => this.#inner.put(key, bytes, options));
  }
  get(key: string): Promise<Buffer> {
    return this.#run('get', key, () => this.#inner.get(key));
  }
  getRange(key: string, start: number, length: number, options: RangeOptions = {}): Promise<Buffer> {
    return this.#run('getRange', key, () => this.#inner.getRange(key, start, length, options));
  }
  head(key: string): Promise<ObjectHead | undefined> {
    return this.#run('head', key, () => this.#inner.head(key));
  }
  list(prefix: string): Promise<ListedObject[]> {
    return this.#run('list', prefix, () => this.#inner.list(prefix));
  }
  delete(keys: readonly string[]): Promise<void> {
    return this.#run('delete', keys[0] ?? '', () => this.#inner.delete(keys));
  }

  async #run<T>(operation: Operation, key: string, effect: () => Promise<T>): Promise<T> {
    const failure = this.decide(operation, key);
    if (failure === 'before') throw new ObjectStoreError('unavailable', key, `${operation} refused by the test`);
    const result = await effect();
    if (failure === 'after') throw new ObjectStoreError('unavailable', key, `${operation}: answer lost by the test`);
    return result;
  }
}
