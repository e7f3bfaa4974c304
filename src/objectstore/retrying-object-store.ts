import type {Clock} from '#runtime/clock.ts';
import type {Random} from '#runtime/random.ts';
import {
  type ListedObject,
  type ObjectHead,
  type ObjectStore,
  ObjectStoreError,
  type PutOptions,
  type RangeOptions,
} from './object-store.ts';

export interface RetryOptions {
  readonly clock: Clock;
  readonly random: Random;
  /** Tries in all (default 6: about 3 s with the default delay). */
  readonly triesMax?: number;
  /** Before the second try; doubles each time, plus up to as much again at random. */
  readonly firstDelayMs?: number;
  /** Told of every failed try that is followed by another. */
  readonly onRetry?: (operation: string, error: ObjectStoreError) => void;
}

/**
 * Repeats what failed with 'unavailable'. A conditional put whose first try may have done its work and lost the answer
 * finds 'exists' on the next: it is a success when the object holds the very bytes.
 */
export class RetryingObjectStore implements ObjectStore {
  readonly #inner: ObjectStore;
  readonly #options: RetryOptions;

  constructor(inner: ObjectStore, options: RetryOptions) {
    this.#inner = inner;
    this.#options = options;
  }

  put(key: string, bytes: Buffer, options: PutOptions = {}): Promise<void> {
    return this.#retry('put', async (tried) => {
      try {
        await this.#inner.put(key, bytes, options);
      } catch (error) {
        if (!tried || !(error instanceof ObjectStoreError) || error.code !== 'exists') throw error;
        if (!(await this.#inner.get(key)).equals(bytes)) throw error;
      }
    });
  }
  get(key: string): Promise<Buffer> {
    return this.#retry('get', () => this.#inner.get(key));
  }
  getRange(key: string, start: number, length: number, options: RangeOptions = {}): Promise<Buffer> {
    return this.#retry('getRange', () => this.#inner.getRange(key, start, length, options));
  }
  head(key: string): Promise<ObjectHead | undefined> {
    return this.#retry('head', () => this.#inner.head(key));
  }
  list(prefix: string): Promise<ListedObject[]> {
    return this.#retry('list', () => this.#inner.list(prefix));
  }
  delete(keys: readonly string[]): Promise<void> {
    return this.#retry('delete', () => this.#inner.delete(keys));
  }

  async #retry<T>(operation: string, attempt: (tried: boolean) => Promise<T>): Promise<T> {
    const {clock, random, triesMax = 6, firstDelayMs = 50} = this.#options;
    for (let tries = 1; ; tries++) {
      try {
        return await attempt(tries > 1);
      } catch (error) {
        if (!(error instanceof ObjectStoreError) || error.code !== 'unavailable' || tries >= triesMax) throw error;
        this.#options.onRetry?.(operation, error);
        await clock.sleep(firstDelayMs * 2 ** (tries - 1) * (1 + random.float()));
      }
    }
  }
}
