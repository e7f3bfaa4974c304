/**
 * Named, immutable bytes. Everything that must survive a node lies behind this interface. Names are paths of
 * [A-Za-z0-9._-] segments joined by '/'.
 */

export interface PutOptions {
  /** `If-None-Match: *`: ObjectStoreError 'exists' when the object is already there; it is then left as it is. */
  readonly ifNoneMatch?: '*';
}

/** Hints; a store that has no use for them takes no notice. */
export interface RangeOptions {
  /** Length of the whole object: parts of it may then be kept on local disk (caching-object-store.ts). */
  readonly objectBytes?: number;
  /** From the store itself: what came before was damaged. */
  readonly fresh?: boolean;
  /** Memory of at least `length` bytes for the answer, given up until it is there. A store may answer with memory of its own. */
  readonly into?: Buffer;
}

export interface ObjectHead {
  readonly size: number;
  readonly modifiedMs: number;
}

export interface ListedObject extends ObjectHead {
  readonly key: string;
}

export interface ObjectStore {
  /** Resolves when the object is durable. When it throws anything but 'exists', the object may or may not be there. */
  put(key: string, bytes: Buffer, options?: PutOptions): Promise<void>;
  /** The whole object. ObjectStoreError 'not-found'. */
  get(key: string): Promise<Buffer>;
  /** Exactly `length` bytes from `start`; ObjectStoreError 'bad-range' when the object ends before. */
  getRange(key: string, start: number, length: number, options?: RangeOptions): Promise<Buffer>;
  head(key: string): Promise<ObjectHead | undefined>;
  /** All objects whose key starts with `prefix`, sorted by key. */
  list(prefix: string): Promise<ListedObject[]>;
  /** Missing ones are fine. */
  delete(keys: readonly string[]): Promise<void>;
}

/**
 * 'unavailable': no answer, or a temporary refusal; whether a put or delete took effect is unknown. Retried by
 * RetryingObjectStore. The others are final. 'denied': wrong credentials, no such bucket, another installation's store; a
 * person has to act, the message says how.
 */
export type ObjectStoreErrorCode = 'not-found' | 'exists' | 'bad-range' | 'bad-key' | 'unavailable' | 'full' | 'denied';

export class ObjectStoreError extends Error {
  readonly code: ObjectStoreErrorCode;
  readonly key: string;
  constructor(code: ObjectStoreErrorCode, key: string, message: string, options?: ErrorOptions) {
    super(`object store: ${key}: ${message}`, options);
    this.code = code;
    this.key = key;
  }
}

/** Throws 'bad-key' for a name that could leave its folder or that S3 and file systems treat differently. */
export function checkObjectKey(key: string): void {
  if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]*(\/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$/.test(key) || key.length > 1000)
    throw new ObjectStoreError('bad-key', key.slice(0, 100), 'not a name for an object');
}
