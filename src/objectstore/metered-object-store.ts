import type {Clock} from '#runtime/clock.ts';
import type {Counter, Histogram, Metrics} from '#runtime/metrics.ts';
import type {Operation} from './failing-object-store.ts';
import {
  type ListedObject,
  type ObjectHead,
  type ObjectStore,
  ObjectStoreError,
  type PutOptions,
  type RangeOptions,
} from './object-store.ts';

interface Counts {
  readonly requests: Counter;
  readonly failures: Counter;
  readonly bytes: Counter;
  readonly seconds: Histogram;
}

const secondsBuckets: readonly number[] = [
  0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60,
];

/** Counts every try by operation. Below the retrying store, so that each try is seen. */
export class MeteredObjectStore implements ObjectStore {
  readonly #inner: ObjectStore;
  readonly #clock: Clock;
  readonly #counts: Readonly<Record<Operation, Counts>>;

  constructor(inner: ObjectStore, clock: Clock, metrics: Metrics) {
    this.#inner = inner;
    this.#clock = clock;
    const of = (operation: Operation): Counts => ({
      requests: metrics.counter('pagoda_object_store_requests_total', 'Requests to the object store', {operation}),
      failures: metrics.counter(
        'pagoda_object_store_failures_total',
        'Requests to the object store that failed and may be repeated',
        {operation},
      ),
      bytes: metrics.counter('pagoda_object_store_bytes_total', 'Bytes of objects sent or received', {operation}),
      seconds: metrics.histogram(
        'pagoda_object_store_seconds',
        'Time of one request to the object store',
        {operation},
        secondsBuckets,
      ),
    });
    this.#counts = {
      put: of('put'),
      get: of('get'),
      getRange: of('getRange'),
      head: of('head'),
      list: of('list'),
      delete: of('delete'),
    };
  }

  put(key: string, bytes: Buffer, options: PutOptions = {}): Promise<void> {
    return this.#run(
      'put',
      () => this.#inner.put(key, bytes, options),
      () => bytes.length,
    );
  }
  get(key: string): Promise<Buffer> {
    return this.#run(
      'get',
      () => this.#inner.get(key),
      (bytes) => bytes.length,
    );
  }
  getRange(key: string, start: number, length: number, options: RangeOptions = {}): Promise<Buffer> {
    return this.#run(
      'getRange',
      () => this.#inner.getRange(key, start, length, options),
      () => length,
    );
  }
  head(key: string): Promise<ObjectHead | undefined> {
    return this.#run('head', () => this.#inner.head(key));
  }
  list(prefix: string): Promise<ListedObject[]> {
    return this.#run('list', () => this.#inner.list(prefix));
  }
  delete(keys: readonly string[]): Promise<void> {
    return this.#run('delete', () => this.#inner.delete(keys));
  }

  async #run<T>(operation: Operation, work: () => Promise<T>, bytesOf?: (result: T) => number): Promise<T> {
    const counts = this.#counts[operation];
    const started = this.#clock.monotonicMs();
    counts.requests.inc();
    try {
      const result = await work();
      if (bytesOf !== undefined) counts.bytes.inc(bytesOf(result));
      return result;
    } catch (error) {
      if (error instanceof ObjectStoreError && error.code === 'unavailable') counts.failures.inc();
      throw error;
    } finally {
      counts.seconds.observe((this.#clock.monotonicMs() - started) / 1000);
    }
  }
}
