/**
 * One store belongs to one installation. Two that shared a bucket by mistake would take each other's objects for leftovers and
 * delete them; so the first writes its id into the object `pagoda-installation`, and a second is refused.
 */
import {
  type ListedObject,
  type ObjectHead,
  type ObjectStore,
  ObjectStoreError,
  type PutOptions,
  type RangeOptions,
} from './object-store.ts';

export const installationKey = 'pagoda-installation';

/** Says that the store is this installation's, or finds that it is. Throws 'denied' when it is another's. */
export async function claimStore(store: ObjectStore, installationId: string, place: string): Promise<void> {
  const wanted = Buffer.from(`${installationId}\n`, 'latin1');
  try {
    await store.put(installationKey, wanted, {ifNoneMatch: '*'});
  } catch (error) {
    if (!(error instanceof ObjectStoreError) || error.code !== 'exists') throw error;
    const found = (await store.get(installationKey)).toString('latin1').trim();
    if (found !== installationId)
      throw new ObjectStoreError(
        'denied',
        installationKey,
        `${place} belongs to another installation (${found.slice(0, 64)}; this one is ${installationId}). Give this one a bucket or ` +
          `a prefix of its own; if the other one is gone for good and this one is to take over its data, delete the object ${installationKey}`,
        {cause: error},
      );
  }
}

/**
 * Claims the store before the first use, so that a process may start while the store is away: a claim that could not be
 * decided is tried again by the next call.
 */
export class ClaimedObjectStore implements ObjectStore {
  readonly #inner: ObjectStore;
  readonly #installationId: string;
  readonly #place: string;
  #claim: Promise<void> | undefined;

  constructor(inner: ObjectStore, installationId: string, place: string) {
    this.#inner = inner;
    this.#installationId = installationId;
    this.#place = place;
  }

  async put(key: string, bytes: Buffer, options: PutOptions = {}): Promise<void> {
    await this.#claimed();
    return this.#inner.put(key, bytes, options);
  }
  async get(key: string): Promise<Buffer> {
    await this.#claimed();
    return this.#inner.get(key);
  }
  async getRange(key: string, start: number, length: number, options: RangeOptions = {}): Promise<Buffer> {
    await this.#claimed();
    return this.#inner.getRange(key, start, length, options);
  }
  async head(key: string): Promise<ObjectHead | undefined> {
    await this.#claimed();
    return this.#inner.head(key);
  }
  async list(prefix: string): Promise<ListedObject[]> {
    await this.#claimed();
    return this.#inner.list(prefix);
  }
  async delete(keys: readonly string[]): Promise<void> {
    await this.#claimed();
    return this.#inner.delete(keys);
  }

  #claimed(): Promise<void> {
    this.#claim ??= claimStore(this.#inner, this.#installationId, this.#place).catch((error: unknown) => {
      this.#claim = undefined;
      throw error;
    });
    return this.#claim;
  }
}
